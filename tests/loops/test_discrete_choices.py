"""Networks that choose: a choice that only rounding changes is no coupling, and one that channels change is one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from breadth import crossed
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_coreset import prune
from lightning_coreset.structure import Example, analyse
from lightning_coreset.structure.records import ChannelGroup
from lightning_coreset.verification import tried_groups
from lightning_coreset.verification.choices import MadeChoices, differ_by_rounding


def suppressed(boxes: Tensor, scores: Tensor, threshold: float) -> Tensor:
    """Non-maximum suppression of intervals, written out."""
    kept: list[int] = []
    for one in scores.argsort(descending=True).tolist():
        start = torch.maximum(boxes[one, 0], boxes[kept, 0])
        overlap = torch.minimum(boxes[one, 1], boxes[kept, 1]) - start
        if not bool((overlap > threshold).any()):
            kept.append(one)
    return torch.tensor(kept[:8])


class Chooser(nn.Module):
    """Makes features in single precision, as detectors do, of many inputs that are nearly equal."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(6, 24), nn.Linear(24, 16)
        self.score, self.third, self.last = nn.Linear(16, 1), nn.Linear(16, 12), nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.second(self.first(x.float()).relu()).tanh()
        y = (y - y.mean(0)) / y.std(0)  # so that inputs that are nearly equal are none any more
        return self.choose(y, self.score(y)[:, 0])

    def rest(self, y: Tensor) -> Tensor:
        return self.last(self.third(y).relu())

    def choose(self, y: Tensor, scores: Tensor) -> Tensor:
        raise NotImplementedError


class TopK(Chooser):
    def choose(self, y, scores):
        return self.rest(y[scores.topk(800).indices])


class Sorted(Chooser):
    def choose(self, y, scores):
        values, order = scores.sort()
        return self.rest(y[order]) * values[:, None]


class Detector(Chooser):
    """Proposals: the best by their scores, without those that overlap, above a threshold; then a head on each."""

    def choose(self, y, scores):
        best = scores.topk(32).indices
        centres = y[best, :1]
        boxes = torch.cat([centres - 1e-4, centres + 1e-4], 1)
        kept = best[suppressed(boxes, scores[best], 1e-4)]
        return self.rest(y[kept[scores[kept] > scores.mean()]])


class Experts(Chooser):
    """Hard routing: each token goes to one of several experts."""

    def __init__(self) -> None:
        super().__init__()
        self.router = nn.Linear(16, 4, bias=False)
        self.experts = nn.ModuleList(nn.Sequential(nn.Linear(16, 12), nn.ReLU(), nn.Linear(12, 16)) for _ in range(4))
        with torch.no_grad():  # always two of them with nearly the same chance
            self.router.weight[2:] = self.router.weight[:2] + 1e-6 * torch.randn(2, 16)

    def choose(self, y, scores):
        chosen = self.router(y).argmax(1)
        result = torch.zeros_like(y)
        for number, expert in enumerate(self.experts):
            place = (chosen == number).nonzero()[:, 0]
            result = result.index_put((place,), expert(y[place]))
        return self.rest(y + result) + chosen[:, None]


class Codebook(Chooser):
    """A codebook with straight-through gradients; the codes are nearly equally far."""

    def __init__(self) -> None:
        super().__init__()
        self.codes = nn.Parameter(1e-6 * torch.randn(64, 3))
        self.into = nn.Linear(16, 3)

    def choose(self, y, scores):
        z = self.into(y)
        distance = (z[:, None] - self.codes[None]).pow(2).sum(2)
        index = distance.argmin(1)
        code = self.codes[index] * 1e6
        return self.rest(y) + z + (code - z).detach() + F.one_hot(index, 64).sum(0)[:3]


class HardAttention(Chooser):
    def choose(self, y, scores):
        weights = F.gumbel_softmax(scores[None].expand(3, -1), hard=True) + F.one_hot(scores.argmax(), len(scores))
        return self.rest(weights @ y)


class Threshold(Chooser):
    """Thresholds in masks, for Python, and by rounding: at the median, so that a value lies on them."""

    def choose(self, y, scores):
        middle = scores.median()
        y = torch.where((scores >= middle)[:, None], y, -y)
        if scores.sum().item() > 0:
            y = y.flip(0)
        steps = torch.round((scores - middle) / scores.std() + 0.5)
        return self.rest(y) * steps[:, None]


CHOOSERS = (TopK, Sorted, Detector, Experts, Codebook, HardAttention, Threshold)


def near(samples: int = 1000) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(1, 6, generator=generator) + 3e-2 * torch.randn(samples, 6, generator=generator)


def tried(model: nn.Module, x: Tensor, change: Callable[[ChannelGroup], ChannelGroup] = lambda group: group):
    groups = [change(group) for group in analyse(model, x).groups]
    return {group.name for group in groups}, tried_groups(model, groups, Example.of(x))[1]


@pytest.mark.parametrize("kind", CHOOSERS)
def test_rounding_couples_nothing(kind):
    torch.manual_seed(0)
    names, failures = tried(kind(), near())
    assert names >= {"first", "third"}
    assert failures == {}


@pytest.mark.parametrize("kind", [TopK, Sorted])
def test_without_repeated_choices_rounding_would_show(kind, monkeypatch):
    """The networks of the test above are hard ones."""
    monkeypatch.setattr(MadeChoices, "_is_noted", lambda *_: False)
    torch.manual_seed(0)
    assert tried(kind(), near())[1]


def forgotten(name: str) -> Callable[[ChannelGroup], ChannelGroup]:
    def change(group: ChannelGroup) -> ChannelGroup:
        return replace(group, members=tuple(member for member in group.members if member.name != name))

    return change


def shifted(name: str) -> Callable[[ChannelGroup], ChannelGroup]:
    def change(group: ChannelGroup) -> ChannelGroup:
        members = [
            replace(member, index=member.index[1:] + member.index[:1]) if member.name == name else member
            for member in group.members
        ]
        return replace(group, members=tuple(members))

    return change


@pytest.mark.parametrize(("kind", "change"), crossed(CHOOSERS, [forgotten, shifted]))
def test_wrong_groups_before_a_choice_are_found(kind, change):
    torch.manual_seed(0)
    model, x = kind(), torch.randn(800, 6, generator=torch.Generator().manual_seed(0))
    assert "first" in tried(model, x, change("second.weight"))[1]


class Leaks(nn.Module):
    """Channels reach the output by a choice alone, past what the analysis sees."""

    def __init__(self, choose: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.first, self.last, self.choose = nn.Linear(6, 24), nn.Linear(24, 3), choose

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x).tanh()
        hidden = torch.as_tensor(y.detach().numpy().mean(1), dtype=y.dtype)  # a mean over channels that nobody sees
        return self.last(y) * (1 + self.choose(hidden).to(y)[:, None])


LEAKS: dict[str, Callable[[Tensor], Tensor]] = {
    "order": lambda hidden: hidden.argsort().argsort(),
    "threshold": lambda hidden: hidden > hidden.median(),
    "largest": lambda hidden: F.one_hot(hidden.argmax(), len(hidden)),
    "rounded": lambda hidden: (hidden * 20).round(),
    "for Python": lambda hidden: torch.full_like(hidden, int(hidden.sum().item() * 10)),
    "bins": lambda hidden: torch.bucketize(hidden, torch.linspace(-1, 1, 40, dtype=hidden.dtype)),
}


@pytest.mark.parametrize("choice", LEAKS)
def test_a_choice_that_removed_channels_change_is_a_coupling(choice):
    torch.manual_seed(0)
    model, x = Leaks(LEAKS[choice]), torch.randn(30, 6)
    names, failures = tried(model, x)
    assert names == failures.keys() == {"first"}


def test_a_network_that_stops_on_other_values_is_no_reason_to_give_up():
    """With zeros instead of what reads some channels, the last features of the first layer are all zero."""

    class Strict(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c, self.d = nn.Linear(6, 8), nn.Linear(8, 8), nn.Linear(6, 8), nn.Linear(8, 3)

        def forward(self, x: Tensor) -> Tensor:
            y = self.b(self.a(x).relu())
            if not bool((y.detach().std(0) > 1e-9).all()):
                raise ValueError("constant features")
            return self.d(y.relu() + self.c(x))

    torch.manual_seed(0)
    model = Strict()
    with torch.no_grad():
        model.b.weight.copy_(torch.eye(8))
    failures = tried(model, torch.randn(50, 6))[1]
    assert failures.keys() == {"a"}
    reason = "with other values in some of its channels the network does not run (ValueError: constant features)"
    assert failures["a"].startswith(reason)


def test_a_width_in_a_choice_is_found():
    class Wide(Chooser):
        def choose(self, y, scores):
            hidden = self.third(y).relu()
            return self.last(hidden)[scores.topk(hidden.shape[1]).indices.sort().values[-3:]]

    torch.manual_seed(0)
    assert tried(Wide(), torch.randn(50, 6))[1].keys() == {"third"}


def test_the_pruned_network_chooses_for_itself():
    torch.manual_seed(0)
    model, x = Detector(), torch.randn(50, 6)
    prune(model, x, {"third": 0.5})
    assert model.third.out_features == 6
    assert model(x).shape[1] == 3


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        (torch.tensor([1.0, 2.0]), torch.tensor([1.00001, 2.0]), True),
        (torch.tensor([1.0, 2.0]), torch.tensor([1.01, 2.0]), False),
        (torch.tensor([1.0, 2.0]).double(), torch.tensor([1.00001, 2.0]).double(), False),
        (torch.tensor([1.0, float("inf")]), torch.tensor([1.0, float("inf")]), True),
        (torch.tensor([1.0, float("inf")]), torch.tensor([1.0, -float("inf")]), False),
        (torch.tensor([1.0, float("nan")]), torch.tensor([1.0, 2.0]), False),
        (torch.tensor([1, 2]), torch.tensor([1, 3]), False),
        (torch.tensor([]), torch.tensor([]), True),
    ],
)
def test_what_rounding_may_explain(one, other, same):
    assert differ_by_rounding(one, other) is same
