"""Layers that make outputs, or what a loss is computed of, are told so, whatever operator comes first behind them."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_coreset.structure import Example, StepOutputs, analyse

OUTPUTS, LOSS = "makes outputs of the network", "makes inputs of the loss"


class Head(nn.Module):
    """A layer, and what becomes of its channels."""

    def __init__(self, end) -> None:
        super().__init__()
        self.first, self.last, self.end = nn.Linear(4, 6), nn.Linear(6, 8), end

    def forward(self, x: Tensor) -> Tensor:
        return self.end(self.last(self.first(x).relu()))


@pytest.mark.parametrize(
    "end",
    [
        lambda x: x,
        lambda x: F.log_softmax(x, -1),
        lambda x: x.softmax(-1).argmax(-1),
        lambda x: x[:, :3],
        lambda x: x * torch.rand(8),
        lambda x: F.normalize(x) @ F.normalize(x).T,
        lambda x: torch.ops.aten._pdist_forward(x, 2.0),  # an operator without a rule
    ],
)
def test_what_reaches_an_output_without_another_layer_makes_it(end):
    structure = analyse(Head(end), torch.randn(3, 4))

    assert dict(structure.refused) == {"last": OUTPUTS}


def step(loss, *, forward: bool) -> Example:
    """A training step; with ``forward`` the network is called as others call it, so its result is an output."""

    def run(model: nn.Module, x: Tensor) -> StepOutputs:
        made = model(x)
        return StepOutputs([loss(made)], [made] if forward else [])

    return Example(torch.randn(3, 4), run, batch_size=3)


TARGETS = torch.tensor([0, 1, 2])


@pytest.mark.parametrize(
    "loss",
    [
        lambda x: F.cross_entropy(x, TARGETS),
        lambda x: F.mse_loss(x, torch.randn(3, 8)),
        lambda x: F.binary_cross_entropy(x.sigmoid(), torch.rand(3, 8)),
        lambda x: F.cross_entropy(x, TARGETS, weight=torch.ones(8)) + F.l1_loss(x, x.detach().flip(0)),
        lambda x: F.nll_loss(torch.ops.aten._pdist_forward(x, 2.0)[None].log(), TARGETS[:1]),
    ],
)
@pytest.mark.parametrize(("forward", "expected"), [(False, LOSS), (True, OUTPUTS)])
def test_what_only_a_loss_is_computed_of_is_told_apart(loss, forward, expected):
    structure = analyse(Head(lambda x: x), step(loss, forward=forward))

    assert dict(structure.refused) == {"last": expected}


def test_losses_of_each_channel_pass_channels_on():
    """As those that an autoencoder weights before it sums them."""

    class Reconstructs(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.other, self.last = nn.Linear(4, 8), nn.Linear(4, 8), nn.Linear(8, 2)

        def forward(self, x: Tensor) -> Tensor:
            target = self.other(x).sigmoid().round()
            return self.last(F.binary_cross_entropy(self.first(x).sigmoid(), target, reduction="none"))

    (group,) = analyse(Reconstructs(), torch.randn(3, 4)).groups
    assert {member.name.partition(".")[0] for member in group.members} == {"first", "other", "last"}


def test_checks_of_distributions_have_a_rule():
    class Latent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = nn.Linear(4, 8), nn.Linear(8, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.last(torch.distributions.Normal(self.first(x), 1.0, validate_args=True).mean)

    assert "reduced across channels" in analyse(Latent(), torch.randn(3, 4)).refused["first"]


class Between(nn.Module):
    """The channels of a layer are read by another one, and something is computed of them besides."""

    def __init__(self, besides) -> None:
        super().__init__()
        self.first, self.last, self.besides = nn.Linear(4, 6), nn.Linear(6, 2), besides

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = self.first(x)
        return self.last(x), self.besides(x)


def test_a_layer_that_another_one_reads_keeps_the_reason_that_says_more():
    mixed = analyse(Between(lambda x: x.softmax(-1)), torch.randn(3, 4))
    returned = analyse(Between(lambda x: x), torch.randn(3, 4))

    assert dict(mixed.refused) == {"first": "is mixed across channels (aten._softmax)", "last": OUTPUTS}
    assert dict(returned.refused) == {"first": OUTPUTS, "last": OUTPUTS}
