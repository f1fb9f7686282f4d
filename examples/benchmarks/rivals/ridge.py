"""Calibrated ridge regression: channels are chosen, and the layers that read them re-solved on inputs.

GRAIL (Tang et al., CPAL 2026, arXiv 2602.23795): after any choice of channels, the activations of all are predicted
from those kept by ridge regression on their second moments, and the map is merged into the layers that read them.

CORP (Zhang and Yang, arXiv 2602.05243), its closed form for the hidden channels of an MLP: the removed ones are affine
functions of those kept, so moments are centred and a constant goes into the bias. Channels stay by the energy of their
activations times that of the weights that read them. What CORP does to queries and keys is not here.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lightning_coreset import PruningPlan, plan_pruning, prune
from lightning_coreset.methods import Method, Selection
from lightning_coreset.plan import ParameterChange
from rivals.chains import Layer, largest

Readers = dict[str, ParameterChange]
"""The changes of the weights that read a group, by the names of their layers."""
Inputs = Tensor | Mapping[str, Tensor]
RIDGE = 1e-3
"""As a part of the mean diagonal of the moments."""


@dataclass(frozen=True, eq=False)
class Given(Method):
    """Keep these channels of every group, whatever they are."""

    kept: Tensor

    def select(self, group: Any, size: int) -> Selection:
        return Selection(self.kept if size < group.size else torch.arange(group.size))


@dataclass
class Moments:
    """The sums of what a layer reads, ``(N,)``, and of its products, ``(N, N)``, over samples and positions."""

    count: int = 0
    total: Tensor | float = 0.0
    products: Tensor | float = 0.0

    def add(self, layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        """A hook before the layer."""
        x = inputs[0].detach()
        rows = (x.movedim(1, -1) if isinstance(layer, nn.Conv2d) else x).flatten(0, -2).double()
        self.count += len(rows)
        self.total, self.products = self.total + rows.sum(dim=0), self.products + rows.T @ rows

    def of(self, centred: bool) -> tuple[Tensor, Tensor]:
        """The mean with the covariance, or zero with the second moments."""
        mean, second = torch.as_tensor(self.total) / self.count, torch.as_tensor(self.products) / self.count
        return (mean, second - torch.outer(mean, mean)) if centred else (torch.zeros_like(mean), second)


def prune_with_ridge(
    model: nn.Module,
    example: Inputs,
    groups: Iterable[str],
    ratio: float,
    batches: Iterable[Inputs],
    *,
    method: str | Method = "magnitude",
    affine: bool = False,
    **options: Any,
) -> None:
    """Prune group after group in place, each on what the network as pruned so far computes.

    Args:
        model: The network.
        example: A small batch of inputs.
        groups: The layers that name the groups, in the order of the network.
        ratio: What each group loses.
        batches: Inputs to calibrate with.
        method: Chooses the channels, unless ``affine``.
        affine: Whether to choose and to predict as CORP does, else as GRAIL.
        options: More arguments of :func:`lightning_coreset.prune`.
    """
    arguments = {"self_check": False, **options}
    for name in groups:
        ratios = {name: ratio}
        readers = find_readers(model, plan_pruning(model, example, ratios, method=method, **arguments))
        moments = measured(model, readers, batches)
        chosen = Given(most_energy(model, readers, moments)) if affine else method
        whole = {one: model.get_submodule(one).weight.detach().double() for one in readers}
        plan = prune(model, example, pruning_ratio=ratios, method=chosen, **arguments)
        for one, change in find_readers(model, plan).items():
            refit(model.get_submodule(one), whole[one], change, moments[one], affine)


def find_readers(model: nn.Module, plan: PruningPlan) -> Readers:
    """The linear layers and convolutions that lose inputs."""
    found = {}
    for change in plan.changes:
        module, _, tensor = change.name.rpartition(".")
        if tensor == "weight" and 1 in change.kept and isinstance(model.get_submodule(module), Layer):
            found[module] = change
    return found


@torch.no_grad()
def measured(model: nn.Module, readers: Readers, batches: Iterable[Inputs]) -> dict[str, Moments]:
    """The moments of what these layers read."""
    moments = {name: Moments() for name in readers}
    handles = [model.get_submodule(name).register_forward_pre_hook(one.add) for name, one in moments.items()]
    for batch in batches:
        model.eval()(**batch) if isinstance(batch, Mapping) else model.eval()(batch)
    for handle in handles:
        handle.remove()
    return moments


def most_energy(model: nn.Module, readers: Readers, moments: Mapping[str, Moments]) -> Tensor:
    """The channels with most energy, as their readers weigh it; as many as the readers are to keep."""
    weights = {name: model.get_submodule(name).weight.detach().double().transpose(0, 1).flatten(1) for name in readers}
    energy = [one.of(centred=False)[1].diagonal() * weights[name].square().sum(dim=1) for name, one in moments.items()]
    return largest(torch.stack(energy).sum(dim=0), len(next(iter(readers.values())).kept[1]))


@torch.no_grad()
def refit(layer: nn.Module, weight: Tensor, change: ParameterChange, moments: Moments, affine: bool) -> None:
    """Give a layer that lost inputs the weights that predict its outputs best.

    Args:
        layer: The layer, which is narrow by now.
        weight: Its weight before, ``(O, N)`` or ``(O, N, k, k)``.
        change: What it lost.
        moments: Of all that it read.
        affine: Whether a constant may go into its bias.
    """
    assert isinstance(layer, Layer)
    centred = affine and layer.bias is not None
    mean, second = moments.of(centred)
    kept = change.kept[1]
    within = second[kept][:, kept]
    within += RIDGE * second.diagonal().mean() * torch.eye(len(kept), dtype=second.dtype)
    mixture = torch.linalg.solve(within, second[kept]).T
    mixture[kept] = torch.eye(len(kept), dtype=mixture.dtype)
    columns = weight[change.kept.get(0, slice(None))].unsqueeze(-1).flatten(2)
    layer.weight.data = torch.einsum("onk,nm->omk", columns, mixture).reshape(layer.weight.shape).to(layer.weight)
    if centred:
        assert layer.bias is not None
        layer.bias.add_((columns.sum(dim=2) @ (mean - mixture @ mean[kept])).to(layer.bias))
