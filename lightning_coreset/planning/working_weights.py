"""The tensors of a model while a plan is made: as the groups chosen so far leave them."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from lightning_coreset.plan import ParameterChange
from lightning_coreset.planning.selection import Selection, column_factors
from lightning_coreset.structure import ChannelGroup
from lightning_coreset.surgery import index_dims, scale_dims_, staying_positions


@dataclass(frozen=True, eq=False)
class _Cut:
    """What a chosen group does to a tensor that reads it.

    Attributes:
        dim: The dimension of the tensor along which the group lies.
        left: Positions that stay, or ``None`` if what goes is to be zero instead.
        factors: By what to multiply every position, float64, zero where it goes.
    """

    dim: int
    left: Tensor | None
    factors: Tensor

    def __call__(self, tensor: Tensor) -> Tensor:
        if self.left is None:
            return scale_dims_(tensor.clone(), {self.dim: self.factors})
        return scale_dims_(index_dims(tensor, {self.dim: self.left}), {self.dim: self.factors[self.left]})


class WorkingWeights(Mapping[str, Tensor]):
    """A model's parameters and buffers by name, as they are by now; the model's own are only read.

    What reads a class that goes is zero in them, or cut away already where ``cut`` allows it and no other group lies
    along the same dimension. A tensor that is never looked at again is never made.

    Args:
        tensors: Parameters and buffers by name.
        groups: All groups of the plan.
        cut: Whether what reads a group may become narrower; not where the laws of its inputs are known channel by
            channel.
    """

    def __init__(self, tensors: Mapping[str, Tensor], groups: Sequence[ChannelGroup], *, cut: bool) -> None:
        self._original = tensors
        self._tensors = dict(tensors)
        self._to_cut: defaultdict[str, list[_Cut]] = defaultdict(list)
        self._factors: defaultdict[str, dict[int, Tensor]] = defaultdict(dict)
        self._rewritten: set[str] = set()
        lying = Counter((member.name, member.dim) for group in groups for member in group.members)
        self._lonely = {where for where, count in lying.items() if count == 1} if cut else set()

    def __getitem__(self, name: str) -> Tensor:
        for cut in self._to_cut.pop(name, ()):
            self._tensors[name] = cut(self._tensors[name].detach())
        return self._tensors[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)

    def put(self, group: ChannelGroup, selection: Selection) -> None:
        """Go on from what was chosen for a group."""
        for name, value in selection.updates.items():
            self._tensors[name] = value
            self._to_cut.pop(name, None)  # what it was computed from was cut already
            self._rewritten.add(name)
        if selection.updates or (selection.weights is None and len(selection.kept) == group.size):
            return
        factor = selection.factor(group)
        stays = torch.zeros(group.size, dtype=torch.bool).index_fill_(0, selection.kept, True)
        for member in group.by_role("consumer"):
            name, dim = member.name, member.dim
            length = self._original[name].shape[dim]
            factors = column_factors(member, factor, length)
            if selection.weights is not None:
                known = self._factors[name].get(dim)
                self._factors[name][dim] = factors if known is None else known * factors
            lonely = (name, dim) in self._lonely
            left = staying_positions(member, stays, length).nonzero().squeeze(1) if lonely else None
            self._to_cut[name].append(_Cut(dim, left, factors))

    @property
    def reweighted(self) -> set[str]:
        """Tensors whose content changes by more than a slice."""
        return self._rewritten | self._factors.keys()

    def completed(self, change: ParameterChange) -> ParameterChange:
        """A slice of a tensor with all else that happens to its content."""
        name, kept = change.name, change.kept
        if name in self._rewritten:
            return replace(change, value=index_dims(self[name], kept).to(self._original[name].dtype))
        factors = self._factors.get(name, {})
        return replace(change, factors={dim: own[kept[dim]] if dim in kept else own for dim, own in factors.items()})
