"""Which channels stay, and what becomes of those that read them, against naive references."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
import torch
from breadth import crossed
from networks import NETWORKS, make, structure_of
from torch import Tensor, nn

from lightning_coreset.coreset import draw_distinct, draw_fixed, draw_pps
from lightning_coreset.layers import GroupView, PlanState
from lightning_coreset.methods import Magnitude, Method, Random, Reconstruction, Selection, Sensitivity
from lightning_coreset.methods.reweighting import reweighted_consumers
from lightning_coreset.structure import ChannelGroup, analyse
from lightning_coreset.surgery import named_tensors

SAMPLERS = {"distinct": draw_distinct, "draws": draw_fixed, "pps": draw_pps}


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def setting(name: str, number: int = 0) -> tuple[ChannelGroup, Mapping[str, Tensor]]:
    model, _ = make(name)
    return structure_of(name).groups[number], named_tensors(model)


def select(group: ChannelGroup, size: int, method: Method, tensors: Mapping[str, Tensor], seed: int = 0) -> Selection:
    return method.select(GroupView(group, tensors, PlanState(generator(seed))), size)


METHODS = [
    Reconstruction(),
    Sensitivity(),
    Sensitivity("draws"),
    Sensitivity("pps"),
    Magnitude(1),
    Magnitude(2),
    Random(),
]
EVERY_GROUP = [(name, number) for name in NETWORKS for number in range(len(structure_of(name).groups))]


@pytest.mark.parametrize(("where", "method"), crossed(EVERY_GROUP, METHODS))
def test_what_stays_is_ordered_and_of_the_right_size(where, method):
    group, tensors = setting(*where)
    before = {key: tensor.detach().clone() for key, tensor in tensors.items()}
    for size in (1, group.size // 2, group.size - 1):
        selection = select(group, max(size, 1), method, tensors)
        kept = selection.kept.tolist()
        assert kept == sorted(set(kept))
        assert kept[0] >= 0
        assert kept[-1] < group.size
        if getattr(method, "sampler", "") == "draws":
            assert 1 <= len(kept) <= max(size, 1)
        else:
            assert len(kept) == max(size, 1)
        for key, value in reweighted_consumers(group, selection, tensors).items():
            assert value.shape == tensors[key].shape
            assert value.isfinite().all()
    for key, tensor in tensors.items():
        torch.testing.assert_close(tensor.detach(), before[key], rtol=0, atol=0)


@pytest.mark.parametrize("method", METHODS, ids=str)
def test_whole_groups_are_left_as_they_are(method):
    group, tensors = setting("vgg")
    selection = select(group, group.size, method, tensors)
    assert selection.kept.tolist() == list(range(group.size))
    assert (selection.updates, selection.method) == ({}, "kept whole")


@pytest.mark.parametrize("radius", [1.0, 0.2])
@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("network", ["mlp", "lenet"])
def test_sensitivity_equals_the_formula(network, sampler, radius):
    """Columns of kept channels times their multiplier, zero elsewhere; scores as the paper says, straight down."""
    group, tensors = setting(network, 1)
    maker, reader = (member.name for member in (*group.by_role("producer"), *group.by_role("consumer")))
    rows = torch.cat([tensors[maker].flatten(1), tensors[maker.replace("weight", "bias")][:, None]], 1).detach()
    columns = tensors[reader].detach().unflatten(1, (group.size, -1))
    bound = rows.norm(dim=1) * (radius**2 + 1) ** 0.5
    bound = bound if network == "mlp" else bound.tanh()
    scores = columns.norm(dim=2).amax(dim=0) * bound
    sample = SAMPLERS[sampler](scores, 5, generator(3))
    selection = select(group, 5, Sensitivity(sampler, radius), tensors, seed=3)
    assert selection.kept.tolist() == sample.kept.tolist()
    factor = torch.zeros(group.size, dtype=torch.float64)
    factor[sample.kept] = sample.weights
    rewritten = reweighted_consumers(group, selection, tensors)
    assert rewritten.keys() == {reader}
    torch.testing.assert_close(rewritten[reader], (columns * factor[:, None]).flatten(1), rtol=1e-12, atol=0)
    assert selection.method == f"sensitivity ({sampler})"


@pytest.mark.parametrize("p", [1, 2])
@pytest.mark.parametrize(("name", "number"), EVERY_GROUP)
def test_magnitude_is_the_norm_of_what_makes_a_channel(name, number, p):
    group, tensors = setting(name, number)
    scores = []
    for channel in range(group.size):
        total = 0.0
        for member in group.by_role("producer") or group.by_role("consumer"):
            rows = [tensors[member.name].detach().select(member.dim, place) for place in member.index[channel]]
            total += float(sum((row.abs() ** p).sum() for row in rows)) ** (1 / p) if rows else 0.0
        scores.append(total)
    size = min(3, group.size - 1)
    selection = select(group, size, Magnitude(p), tensors)
    assert selection.kept.tolist() == sorted(sorted(range(group.size), key=lambda i: -scores[i])[:size])
    assert (dict(selection.updates), selection.method) == ({}, f"magnitude (L{p})")


def test_the_two_norms_differ():
    group, tensors = setting("mlp")
    tensors = dict(tensors)
    tensors["0.weight"] = torch.zeros(16, 6, dtype=torch.float64)
    tensors["0.weight"][3, 0] = 2.0  # L1 2, L2 2
    tensors["0.weight"][7] = 0.5  # L1 3, L2 1.2
    assert select(group, 1, Magnitude(1), tensors).kept.tolist() == [7]
    assert select(group, 1, Magnitude(2), tensors).kept.tolist() == [3]


def test_random_keeps_every_channel_equally_often():
    group, tensors = setting("mlp", 1)
    counts = torch.zeros(group.size)
    for seed in range(600):
        counts[select(group, 4, Random(), tensors, seed).kept] += 1
    expected = 600 * 4 / group.size
    assert ((counts - expected).abs() < 5 * (expected * (1 - 4 / group.size)) ** 0.5).all()


@pytest.mark.parametrize(
    ("name", "number", "reason"),
    [
        ("mobilenet", 0, "several layers make its channels"),
        ("gated", 0, "several layers make its channels"),
        ("autoencoder", 0, "no layer's weight makes its channels"),
        ("attention", 0, "an embedding makes its channels"),
        ("normed", 0, "group_norm stands between its producer and its consumer"),
    ],
)
@pytest.mark.parametrize("method", [Reconstruction(), Sensitivity()], ids=str)
def test_groups_without_a_form_are_ranked_by_norms(name, number, reason, method):
    group, tensors = setting(name, number)
    selection = select(group, 2, method, tensors)
    scores = [importance(group, tensors, channel) for channel in range(group.size)]
    assert selection.kept.tolist() == sorted(sorted(range(group.size), key=lambda i: -scores[i])[:2])
    assert selection.method == f"rank ({reason})"
    assert dict(selection.updates) == {}


def importance(group: ChannelGroup, tensors: Mapping[str, Tensor], channel: int) -> float:
    """The sum of the producers' norms times the largest norm, over outputs, of a consumer's slice."""

    def part(member) -> Tensor:
        places = torch.tensor(member.index[channel])
        return tensors[member.name].detach().index_select(member.dim, places).movedim(member.dim, 0)

    made = sum(part(member).norm() for member in group.by_role("producer") or group.by_role("consumer"))
    largest = 0.0
    for member in group.by_role("consumer"):
        read = part(member)  # (places, outputs, ...)
        largest = max(largest, float((read.transpose(0, 1).flatten(1) ** 2).sum(1).max()) ** 0.5)
    return float(made) * largest


@pytest.mark.parametrize("name", ["mlp", "vgg", "unet", "siblings", "lenet"])
def test_reconstruction_needs_half_of_what_is_there_twice(name):
    """Where every channel has a twin, half of the channels compute the same."""
    model, x = make(name)
    group = structure_of(name).groups[0]
    tensors = dict(named_tensors(model))
    half = group.size // 2
    twins = [*range(half), *range(half), *range(2 * half, group.size)]
    for member in group.members:
        if member.role != "consumer":
            source = [place for twin in twins for place in member.index[twin]]
            target = [place for places in member.index for place in places]
            copied = tensors[member.name].detach().clone()
            picked = copied.index_select(member.dim, torch.tensor(source))
            tensors[member.name] = copied.index_copy(member.dim, torch.tensor(target), picked)
    selection = select(group, group.size - half, Reconstruction(ridge=1e-12), tensors)
    assert len({twins[channel] for channel in selection.kept.tolist()}) == group.size - half
    assert selection.expected_error == pytest.approx(0, abs=1e-8)
    with torch.no_grad():
        before = torch.func.functional_call(model, tensors, x)
        after = torch.func.functional_call(model, {**tensors, **selection.updates}, x)
        unchanged = {
            name: value for name, value in tensors.items() if name not in {m.name for m in group.by_role("consumer")}
        }
        ones = torch.ones(len(selection.kept), dtype=torch.float64)
        zeroed = reweighted_consumers(group, Selection(selection.kept, weights=ones), tensors)
        sliced = torch.func.functional_call(model, {**unchanged, **zeroed}, x)
    torch.testing.assert_close(after, before, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(sliced, before, rtol=1e-2, atol=1e-2)


def test_reconstruction_equals_least_squares_on_gaussian_inputs():
    """With no data, the new weights are those that a regression on many Gaussian inputs would find."""
    model, _ = make("mlp")
    tensors = named_tensors(model)
    selection = select(structure_of("mlp").groups[0], 8, Reconstruction(ridge=1e-9), tensors)
    x = torch.randn(200_000, 6, dtype=torch.float64)
    with torch.no_grad():
        hidden = model[:2](x)
        target = hidden @ model[2].weight.T
        fitted = torch.linalg.lstsq(hidden[:, selection.kept], target).solution.T
        error = ((hidden[:, selection.kept] @ fitted.T - target) ** 2).sum() / (target**2).sum()
    found = selection.updates["2.weight"][:, selection.kept]
    torch.testing.assert_close(found, fitted, rtol=0.05, atol=0.02)
    assert selection.expected_error == pytest.approx(float(error), rel=0.05)


class Shared(nn.Module):
    """Two layers of one shape, with one BatchNorm behind both."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(5, 8), nn.Linear(5, 8, bias=False)
        self.c, self.d = nn.Linear(8, 4, bias=False), nn.Linear(8, 4, bias=False)
        self.norm, self.head = nn.BatchNorm1d(4), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        left = self.norm(self.c(self.a(x).relu()))
        return self.head(left.relu() - self.norm(self.d(self.b(x).relu())).relu())


@pytest.mark.parametrize("number", [0, 1])
def test_a_norm_that_serves_two_layers_is_left_alone(number):
    model = Shared().eval()
    group = analyse(model, torch.randn(3, 5)).groups[number]
    selection = select(group, 4, Reconstruction(), named_tensors(model))
    assert {"norm.running_mean", "norm.running_var"}.isdisjoint(selection.updates)


def test_scaled_consumers_by_hand():
    group, tensors = setting("lenet", 1)
    factor = torch.arange(group.size, dtype=torch.float64)
    scaled = reweighted_consumers(group, Selection(torch.arange(group.size), weights=factor), tensors)
    assert scaled.keys() == {"6.weight"}
    torch.testing.assert_close(scaled["6.weight"], tensors["6.weight"].detach() * factor.repeat_interleave(4))
    assert scaled["6.weight"].dtype == torch.float64
