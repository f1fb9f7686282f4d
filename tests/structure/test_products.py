"""Products in other forms than layers: with a parameter, summed; of a weight with itself; with learned queries."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from networks import zero_consumers
from torch import Tensor, nn

from lightning_coreset.structure import Structure, analyse
from lightning_coreset.surgery import remove_channels

pytestmark = pytest.mark.usefixtures("double_precision")

WIDTH = 8


class Net(nn.Module):
    """Something between two layers that may use the vector, the heads' vectors or a square of parameters."""

    def __init__(self, between: Callable[[Net, Tensor], Tensor]) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(5, WIDTH), nn.Linear(WIDTH, 3)
        self.vector, self.heads = nn.Parameter(torch.randn(1, WIDTH)), nn.Parameter(torch.randn(1, 2, WIDTH // 2))
        self.between = between

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.between(self, self.a(x)))


def scored(net: Net, h: Tensor) -> Tensor:
    return h * torch.sigmoid((h * net.vector).sum(-1, keepdim=True))


def scored_by_heads(net: Net, h: Tensor) -> Tensor:
    parts = h.view(len(h), 2, -1)
    return (parts * torch.sigmoid((parts * net.heads).sum(-1))[..., None]).flatten(1)


def scored_in_order(net: Net, h: Tensor) -> Tensor:
    scores = (net.vector * h).sum(1)
    return h[scores.argsort()] * scores.softmax(0)[:, None]


def found(between: Callable[[Net, Tensor], Tensor]) -> tuple[Net, Structure]:
    torch.manual_seed(0)
    net = Net(between)
    return net, analyse(net, torch.randn(6, 5))


@pytest.mark.parametrize(
    ("between", "size", "reader"),
    [(scored, WIDTH, "vector"), (scored_by_heads, WIDTH // 2, "heads"), (scored_in_order, WIDTH, "vector")],
)
def test_a_sum_over_a_product_with_a_parameter_reads_channels(between, size: int, reader: str) -> None:
    net, structure = found(between)
    (group,) = structure.groups
    assert (group.name, group.size, group.normalized) == ("a", size, False)
    assert (reader, "consumer") in {(member.name, member.role) for member in group.members}
    reference, pruned, x = copy.deepcopy(net), copy.deepcopy(net), torch.randn(6, 5)
    zero_consumers(reference, group, [0, 2])
    remove_channels(pruned, group, [0, 2])
    assert torch.allclose(pruned(x), reference(x), rtol=1e-12, atol=1e-12)
    assert not torch.allclose(net(x), reference(x), rtol=1e-3)


def test_what_is_computed_of_a_parameter_reads_no_channels() -> None:
    """Zeros in the parameter would not be zeros in what is made of it."""
    _, structure = found(lambda net, h: h * (h * net.vector.exp()).sum(-1, keepdim=True).sigmoid())
    (group,) = structure.groups
    assert group.normalized
    assert "consumer" not in {member.role for member in group.members if member.name == "vector"}


def test_a_product_of_a_weight_with_itself_is_no_weight_of_fewer_channels() -> None:
    class Gram(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w, self.v, self.u = nn.Linear(6, 12), nn.Linear(12, 3), nn.Linear(6, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.v(self.w(x).relu()) + self.u(x @ (self.w.weight.t() @ self.w.weight))

    assert not analyse(Gram(), torch.randn(4, 6)).groups


@pytest.mark.parametrize(("scale", "names"), [(None, []), (0.5, ["keys"])])
def test_learned_queries_keep_the_size_that_they_are_scaled_by(scale: float | None, names: list[str]) -> None:
    class Pool(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.queries, self.keys = nn.Parameter(torch.randn(1, 3, WIDTH)), nn.Linear(5, WIDTH)
            self.last = nn.Linear(5, 2)

        def forward(self, x: Tensor) -> Tensor:
            queries = self.queries.expand(len(x), -1, -1)
            return self.last(F.scaled_dot_product_attention(queries, self.keys(x), x, scale=scale))

    structure = analyse(Pool(), torch.randn(2, 6, 5))
    assert [group.name for group in structure.groups] == names
    if scale is None:
        reason = "is multiplied with learned queries or keys, scaled by their size"
        assert structure.refused["keys"] == reason
