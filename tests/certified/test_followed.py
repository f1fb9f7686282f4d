"""Networks that do something unusual on the way: followed rightly, or refused before anything is said."""

import copy
import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from lightning_coreset import certified_agreement, output_change


class Calls(nn.Module):
    """A function of the input and a layer."""

    def __init__(self, function: Callable[[Tensor, nn.Module], Tensor], layer: nn.Module | None = None) -> None:
        super().__init__()
        self.layer, self.function = layer or nn.Linear(4, 3), function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x, self.layer)


def two(function: Callable[[Tensor, nn.Module], Tensor], layer: nn.Module | None = None) -> tuple[nn.Module, nn.Module]:
    """A network and another one with other weights, in float64."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        one = Calls(function, layer).double()
        other = copy.deepcopy(one)
        for parameter in other.parameters():
            parameter.data.add_(0.2 * torch.randn_like(parameter))
    return one, other


def inputs(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


FOLLOWED = {
    "in place on the input": (lambda x, f: functional.relu(f(x.sub_(1.0).div_(0.5))), None, (4,)),
    "an in-place ReLU first": (lambda x, f: f(functional.relu_(x)), None, (4,)),
    "permuted and flattened": (lambda x, f: f(x).permute(0, 2, 3, 1).flatten(1).relu(), nn.Conv2d(1, 2, 2), (1, 3, 3)),
    "contiguous, then a view": (lambda x, f: f(x).unflatten(1, (2, 2)).transpose(1, 2).contiguous().view(-1, 4),
                                nn.Linear(4, 4), (4,)),
    "a constant made on the way": (lambda x, f: f(x) @ torch.ones(3, 3).tril(), None, (4,)),
    "a mask of truth values": (lambda x, f: f(x * torch.tensor([True, False, True, True])), None, (4,)),
    "a mean in another precision": (lambda x, f: f(x - x.mean(1, keepdim=True, dtype=torch.float32)), None, (4,)),
    "pooling with a negative divisor": (lambda x, f: functional.avg_pool2d(f(x), 2, divisor_override=-4).relu(),
                                        nn.Conv2d(1, 1, 1), (1, 2, 2)),
    "a large constant": (lambda x, f: f(x).relu() + torch.tensor([0.0, 0.0, -1e9]), None, (4,)),
}  # fmt: skip


ROOM = {"a mean in another precision": 1e-6, "a large constant": 1e-6}
"""What the networks themselves round."""


def made(network: nn.Module, x: Tensor) -> Tensor:
    """What a network in float64 makes of inputs, with constants of that precision."""
    torch.set_default_dtype(torch.float64)
    try:
        with torch.no_grad():
            return network(x.clone())
    finally:
        torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("name", FOLLOWED)
@pytest.mark.parametrize("count", [1, 6])
def test_no_input_of_a_ball_leaves_the_bounds(name, count):
    function, layer, shape = FOLLOWED[name]
    one, other = two(function, layer)
    x = inputs(count, *shape)
    before = x.clone()
    for radius in (0.0, 0.5):
        found = output_change(one, other, x, radius=radius)
        assert torch.equal(x, before)
        for seed in range(200):
            move = torch.randn(x.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
            move *= radius / move.flatten(1).norm(dim=1).view(-1, *[1] * len(shape))
            change = made(one, x + move) - made(other, x + move)
            room = 1e-12 + ROOM.get(name, 0.0)
            assert bool(((found.low - room <= change) & (change <= found.high + room)).all())
        if not radius:
            torch.testing.assert_close(found.low, found.high, rtol=0, atol=1e-3 if name == "a large constant" else 1e-5)


def test_predictions_are_those_of_the_network_itself():
    one, other = two(FOLLOWED["in place on the input"][0])
    x = inputs(100, 4)
    found = certified_agreement(one, other, x, radius=0.01).per_sample
    with torch.no_grad():
        first, second = one(x.clone()).argmax(1), other(x.clone()).argmax(1)
    assert torch.equal(found.prediction, first)
    assert not bool((found.certified & (first != second)).any())


MIXED = {
    "the mean of the batch": lambda x, f: f(x - x.mean(0)),
    "beside a large number": lambda x, f: f(x - x.mean(0)) + torch.tensor([0.0, 0.0, -1e9]),
    "chance beside a large number": lambda x, f: f(functional.dropout(x, 0.5)) + torch.tensor([0.0, 0.0, -1e9]),
    "the size of the batch": lambda x, f: f(x) * (1.0 if len(x) == 1 else 2.0),
}


@pytest.mark.parametrize("name", MIXED)
@pytest.mark.parametrize("count", [1, 5])
def test_samples_that_are_not_by_themselves_are_refused(name, count):
    with pytest.raises(ValueError, match=r"to compute every sample alike and by itself|is neither"):
        output_change(*two(MIXED[name]), inputs(count, 4), radius=0.1)


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda x, f: f(x) + torch.tensor([0.0, 0.0, -math.inf]), "Expected finite outputs"),
        (lambda x, f: f(x) * math.nan, "Expected finite outputs"),
        (lambda x, f: torch.cat([f(x), f(x)]), "Expected one row of outputs for each sample"),
        (lambda x, f: f(x).flatten(), "Expected one row of outputs for each sample"),
        (lambda x, f: f(x).sum(1, dtype=torch.long), "is neither"),
    ],
)
def test_outputs_that_cannot_be_bounded_are_refused(function, message):
    with pytest.raises(ValueError, match=message):
        output_change(*two(function), inputs(5, 4))


@pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")
def test_networks_that_cannot_be_followed_are_refused():
    one, x = nn.Linear(4, 3), inputs(5, 4)
    with pytest.raises(ValueError, match="is lazy and has no shape yet"):
        output_change(nn.LazyLinear(3), one, x)
    with pytest.raises(ValueError, match=r"the pruned network has a TorchScript module"):
        output_change(one, torch.jit.trace(copy.deepcopy(one), x.float()), x)  # type: ignore[arg-type]
    for seed in ("a", None, -1, 2**70, 1.5):
        with pytest.raises(ValueError, match="Expected seed to be a whole number"):
            certified_agreement(one, one, x, seed=seed)  # type: ignore[arg-type]


@pytest.mark.parametrize("threshold", [5.3, 8.0, 20.0])
def test_the_step_of_softplus_counts(threshold):
    one = nn.Sequential(nn.Linear(1, 1), nn.Softplus(threshold=threshold)).double()
    other = copy.deepcopy(one)
    for network, bias in ((one, threshold), (other, threshold + 1e-9)):
        network[0].weight.data.fill_(1.0)
        network[0].bias.data.fill_(bias)
    zero = torch.zeros(1, 1, dtype=torch.float64)
    with torch.no_grad():
        step = float(one(zero) - other(zero))
    assert float(output_change(one, other, zero, radius=0.1).high) >= step > 1e-9
