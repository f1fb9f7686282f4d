"""What is promised for all inputs holds behind sums over positions: random small networks, attacked."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from breadth import thinned
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_coreset import plan_pruning
from lightning_coreset.methods import Magnitude, Method, Reconstruction, Sensitivity, certified_draws
from lightning_coreset.plan import PruningPlan
from lightning_coreset.surgery import apply_changes

pytestmark = pytest.mark.usefixtures("double_precision")

POSITIONS, WIDTH = 6, 12


class Points(nn.Module):
    """Rows of norm at most 1 through a Linear; then a sum of some kind before or behind the activation."""

    def __init__(self, behind: Callable[[Tensor], Tensor], before: Callable[[Tensor], Tensor] = torch.clone) -> None:
        super().__init__()
        self.a = nn.Linear(3, WIDTH)
        self.behind, self.before = behind, before
        with torch.no_grad():
            shape = behind(torch.relu(before(self.a(torch.zeros(2, POSITIONS, 3))))).shape
        self.b = nn.Linear(shape[-1], 4)
        self.c = nn.Linear(4, 2)

    def hidden(self, x: Tensor) -> Tensor:
        return self.behind(torch.relu(self.before(self.a(x))))

    def seen(self, x: Tensor) -> Tensor:
        return self.b(self.hidden(x))

    def forward(self, x: Tensor) -> Tensor:
        return self.c(torch.relu(self.seen(x)))

    def inputs(self, copies: int) -> Tensor:
        return torch.randn(copies, POSITIONS, 3)

    def bounded(self, x: Tensor) -> Tensor:
        return x / x.norm(dim=2, keepdim=True).clamp_min(1.0)


class Attention(Points):
    """Positions are added up with weights that depend on the input."""

    def __init__(self) -> None:
        super().__init__(torch.clone)
        self.scores = nn.Linear(3, 1)

    def hidden(self, x: Tensor) -> Tensor:
        weights = torch.softmax(self.scores(x), 1).transpose(1, 2)
        return (weights @ super().hidden(x))[:, 0]


class Images(nn.Module):
    """The same with pixels of norm at most 1 and convolutions."""

    def __init__(self, behind: Callable[[Tensor], Tensor], kernel: int = 1, norm: bool = False) -> None:
        super().__init__()
        self.a, self.behind = nn.Conv2d(3, WIDTH, 1), behind
        self.first, self.norm = (self._batch_norm() if norm else nn.Identity() for _ in range(2))
        with torch.no_grad():
            flat = behind(torch.zeros(2, WIDTH, 4, 4)).dim() == 2
        self.b = nn.Linear(WIDTH, 4) if flat else nn.Conv2d(WIDTH, 4, kernel, padding=kernel // 2)
        self.c = nn.Linear(4, 2) if flat else nn.Conv2d(4, 2, 1)

    @staticmethod
    def _batch_norm() -> nn.Module:
        norm = nn.BatchNorm2d(WIDTH)
        nn.init.normal_(norm.weight)
        nn.init.normal_(norm.bias, std=30.0)  # padding is far from what stands in its place
        nn.init.normal_(norm.running_mean)
        return norm

    def seen(self, x: Tensor) -> Tensor:
        return self.b(self.behind(self.norm(torch.relu(self.first(self.a(x))))))

    def forward(self, x: Tensor) -> Tensor:
        return self.c(torch.relu(self.seen(x)))

    def inputs(self, copies: int) -> Tensor:
        return torch.randn(copies, 3, 4, 4)

    def bounded(self, x: Tensor) -> Tensor:
        return x / x.norm(dim=1, keepdim=True).clamp_min(1.0)


MIXING = torch.randn(5, POSITIONS, generator=torch.Generator().manual_seed(0))

COVERED: dict[str, Callable[[], nn.Module]] = {
    "sum": lambda: Points(lambda h: h.sum(1)),
    "mean": lambda: Points(lambda h: h.mean(1)),
    "sum before the activation": lambda: Points(nn.Identity(), before=lambda h: h.sum(1)),
    "two sums": lambda: Points(lambda h: h.unflatten(1, (2, 3)).sum(2).sum(1)),
    "einsum": lambda: Points(lambda h: torch.einsum("bnc->bc", h)),
    "sum of pieces": lambda: Points(lambda h: torch.stack(h.unbind(1)).sum(0)),
    "max": lambda: Points(lambda h: h.amax(1)),
    "sum, then max": lambda: Points(lambda h: h.unflatten(1, (2, 3)).sum(2).amax(1)),
    "sum over pixels": lambda: Images(lambda h: h.sum((2, 3))),
    "sum of rows, mean of columns": lambda: Images(lambda h: h.sum(2).mean(2)),
    "average pooling with a divisor": lambda: Images(nn.AvgPool2d(2, divisor_override=1)),
    "average pooling with padding": lambda: Images(nn.AvgPool2d(3, padding=1)),
    "average pooling": lambda: Images(nn.AdaptiveAvgPool2d(2)),
    "padded convolution": lambda: Images(nn.Identity(), kernel=3),
    "padded convolution behind a BatchNorm": lambda: Images(nn.Identity(), kernel=3, norm=True),
    "sum behind a BatchNorm": lambda: Images(lambda h: h.sum((2, 3)), norm=True),
    "padding behind a BatchNorm": lambda: Images(lambda h: F.pad(h, (1, 1, 1, 1)), norm=True),
    "nearest": lambda: Images(lambda h: F.interpolate(h, scale_factor=2)),
    "bilinear": lambda: Images(lambda h: F.interpolate(h, scale_factor=2, mode="bilinear")),
    "reflection": lambda: Images(lambda h: F.pad(h, (1, 1, 1, 1), mode="reflect")),
}
NOT_KNOWN: dict[str, Callable[[], nn.Module]] = {
    "fixed weights": lambda: Points(lambda h: (MIXING.to(h) @ h)[:, 0]),
    "attention": Attention,
    "bicubic": lambda: Images(lambda h: F.interpolate(h, scale_factor=2, mode="bicubic")),
    "difference of positions": lambda: Points(lambda h: h[:, 0] - h[:, 1]),
    "sum written out": lambda: Points(lambda h: h[:, 0] + h[:, 1] + h[:, 2]),
    "sum divided": lambda: Points(lambda h: h.sum(1) / 3),
    "cumulative sum": lambda: Points(lambda h: h.cumsum(1)),
}


def applied(model: nn.Module, plan: PruningPlan) -> nn.Module:
    pruned = copy.deepcopy(model)
    apply_changes(pruned, plan.changes, plan.attributes)
    return pruned


def largest(model: nn.Module, of: Callable[[Tensor], Tensor], steps: int = 150) -> float:
    """The largest absolute value that an input of the ball makes, by projected gradient ascent from many starts."""
    x = model.bounded(3 * model.inputs(64)).requires_grad_(True)
    found = 0.0
    for step in range(steps):
        error = of(x).abs().flatten(1).amax(1)
        found = max(found, float(error.detach().max()))
        (gradient,) = torch.autograd.grad(error.sum(), x)
        size = (
            0.5
            * 0.98**step
            / torch.linalg.vector_norm(gradient, dim=tuple(range(1, x.dim())), keepdim=True).clamp_min(1e-12)
        )
        with torch.no_grad():
            x.copy_(model.bounded(x + size * gradient))
    return found


def planned(model: nn.Module, method: Method, **options: object) -> PruningPlan:
    return plan_pruning(model, model.inputs(2), {"a": 0.5}, method=method, seed=1, **options)


def coordinates(model: nn.Module) -> int:
    """An output of a convolution adds as many coordinates as its kernel has positions."""
    weight = model.b.weight
    return weight[0, 0].numel() if weight.dim() > 2 else 1


@pytest.mark.parametrize("method", [Reconstruction(), Sensitivity(), Magnitude()], ids=lambda one: one.label)
@pytest.mark.parametrize("name", thinned(COVERED.keys(), 3))
def test_no_input_makes_more_than_what_is_certified(name: str, method: Method) -> None:
    model = COVERED[name]().eval()
    plan = planned(model, method, certify=True, input_radius=1.0)
    (group,) = plan.groups
    assert group.channels_after < group.channels_before
    assert group.certified_error is not None, group.radius_source
    pruned = applied(model, plan)
    assert largest(model, lambda x: model.seen(x) - pruned.seen(x)) <= group.certified_error * coordinates(model) * (
        1 + 1e-9
    )


@pytest.mark.parametrize("name", NOT_KNOWN)
def test_where_the_weights_of_positions_are_not_known_nothing_is_certified(name: str) -> None:
    plan = planned(NOT_KNOWN[name]().eval(), Magnitude(), certify=True, input_radius=1.0)
    assert [group.certified_error for group in plan.groups] == [None]


@pytest.mark.parametrize("name", ["sum", "two sums", "mean", "max", "sum before the activation"])
def test_no_input_leaves_a_propagated_radius(name: str) -> None:
    model = COVERED[name]().eval()
    plan = plan_pruning(model, model.inputs(2), {"a": 0.5, "b": 0.5}, certify=True, input_radius=1.0)
    second = plan.groups[1]
    assert second.radius_source == "propagated"
    assert second.input_radius is not None
    pruned = applied(model, plan)
    assert largest(model, lambda x: pruned.hidden(x).norm(dim=-1, keepdim=True)) <= second.input_radius * (1 + 1e-9)


def wide(behind: Callable[[Tensor], Tensor]) -> nn.Module:
    """Enough channels that the theorem leaves some of them out."""
    torch.manual_seed(0)
    model = Points(behind)
    model.a, model.b = nn.Linear(3, 8000), nn.Linear(8000, 4)
    return model


def promised(model: nn.Module, epsilon: float) -> PruningPlan:
    return plan_pruning(model, model.inputs(2), method=Sensitivity(epsilon=epsilon), only=["a"], seed=1)


@pytest.mark.parametrize("name", thinned([name for name in COVERED if "max" not in name], 4))
def test_no_input_breaks_a_promise(name: str) -> None:
    """Of an error that about half of the channels can keep: certified, and attacked in the network as it is pruned."""
    torch.manual_seed(2)
    model = COVERED[name]().eval()
    half = planned(model, Sensitivity("pps"), certify=True, input_radius=1.0).groups[0].certified_error
    assert half is not None
    epsilon = 1.1 * half
    plan = plan_pruning(model, model.inputs(2), method=Sensitivity(epsilon=epsilon), only=["a"], seed=1)
    (group,) = plan.groups
    assert group.method == f"sensitivity (epsilon={epsilon:g}, certificate)"
    assert group.channels_after < WIDTH
    pruned = applied(model, plan)
    found = largest(model, lambda x: model.seen(x) - pruned.seen(x))
    assert found <= epsilon * coordinates(model) * (1 + 1e-9)


@pytest.fixture
def no_certificate(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(certified_draws, "_WORK", 0)


@pytest.mark.usefixtures("no_certificate")
@pytest.mark.parametrize("behind", [lambda h: h.sum(1), lambda h: h.mean(1)], ids=["sum", "mean"])
def test_no_input_breaks_what_the_refined_theorem_promises(behind: Callable[[Tensor], Tensor]) -> None:
    model = wide(behind)
    epsilon = 2.5 * (POSITIONS if float(behind(torch.ones(1, POSITIONS, 1))) > 1 else 1)
    (group,) = promised(model, epsilon).groups
    assert group.method.endswith("refined theorem)")
    assert group.channels_after < 8000
    pruned = applied(model, promised(model, epsilon))
    assert largest(model, lambda x: model.seen(x) - pruned.seen(x), steps=20) <= epsilon


@pytest.mark.usefixtures("no_certificate")
def test_a_sum_is_drawn_for_a_promise_as_often_as_the_mean_for_its_share() -> None:
    (of_sum,) = promised(wide(lambda h: h.sum(1)), 6.0 * POSITIONS).groups
    (of_mean,) = promised(wide(lambda h: h.mean(1)), 6.0).groups
    assert of_sum.kept == of_mean.kept
    assert of_sum.channels_after < 8000
    with pytest.warns(UserWarning, match="The bound is vacuous for a"):
        promised(wide(lambda h: h.sum(1)), 1.0)


def test_no_size_is_promised_where_every_channel_has_a_position_of_its_own() -> None:
    (group,) = promised(wide(lambda h: h.amax(1)), 6.0).groups
    assert "a max pooling takes every channel from a position of its own" in group.method
