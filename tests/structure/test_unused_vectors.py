"""A bias that the network does not use goes with the rows of its layer's weight."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_coreset import make_resizable, prune
from lightning_coreset.structure import analyse


class WithoutBias(nn.Module):
    """Takes the weights of layers that have biases."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.middle, self.last = nn.Conv2d(3, 8, 3), nn.Linear(8, 12), nn.Linear(12, 2)

    def forward(self, x: Tensor) -> Tensor:
        h = F.conv2d(x, self.conv.weight).relu().mean((2, 3))
        return self.last(F.linear(h, self.middle.weight).relu())


X = torch.randn(4, 3, 6, 6)


def test_an_unused_bias_is_a_member():
    groups = {group.name: group for group in analyse(WithoutBias(), X).groups}
    for name, size in (("conv", 8), ("middle", 12)):
        member = groups[name].member_at(f"{name}.bias", 0)
        assert member is not None
        assert (member.role, member.total) == ("channelwise", size)


@pytest.mark.parametrize("record", [True, False])
def test_what_was_pruned_is_loaded(record: bool):
    model, fresh = WithoutBias(), make_resizable(WithoutBias())
    prune(model, X, 0.5)
    assert len(model.middle.bias) == model.middle.out_features < 12
    state = model.state_dict()
    fresh.load_state_dict(state if record else {name: tensor.clone() for name, tensor in state.items()})
    torch.testing.assert_close(fresh(X), model(X), rtol=0, atol=0)


def test_a_bias_of_another_length_is_left_alone():
    model = WithoutBias()
    model.middle.bias = nn.Parameter(torch.zeros(5))
    prune(model, X, 0.5)
    assert len(model.middle.bias) == 5
