"""The tensors of a model while a plan is made, as the groups chosen so far leave them."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import ItemsView, Iterable, Iterator, KeysView, Mapping, Sequence, ValuesView
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from lightning_coreset.methods import Selection
from lightning_coreset.plan import ParameterChange
from lightning_coreset.structure import ChannelGroup, Member
from lightning_coreset.surgery import index_dims, scale_dims_, staying_positions


@dataclass(frozen=True, eq=False)
class _ColumnUpdate:
    """What a chosen group does to a tensor that reads it.

    Attributes:
        dim: The dimension of the tensor along which the group lies.
        left: Positions that stay, or ``None`` if the others are set to zero instead.
        factors: The multiplier of every position, float64, zero for removed ones.
    """

    dim: int
    left: Tensor | None
    factors: Tensor

    def __call__(self, tensor: Tensor) -> Tensor:
        if self.left is None:
            return scale_dims_(tensor.clone(), {self.dim: self.factors})
        return scale_dims_(index_dims(tensor, {self.dim: self.left}), {self.dim: self.factors[self.left]})


class WorkingWeights(dict[str, Tensor]):
    """A model's parameters and buffers by name, as the groups chosen so far leave them; the model's own are only read.

    Weights that read a removed channel are zero in them, or removed already where ``cut`` allows it and no other group
    lies along the same dimension. A tensor is updated when it is looked up: one that nobody reads again never is. Until
    then it is missing from the underlying dict, so that looking up any other tensor costs nothing.

    Args:
        tensors: Parameters and buffers by name.
        groups: All groups of the plan.
        cut: Whether consumers may become narrower; not where a method needs them at their full width.
    """

    def __init__(self, tensors: Mapping[str, Tensor], groups: Sequence[ChannelGroup], *, cut: bool) -> None:
        super().__init__(tensors)
        self._original = tensors
        self._pending: dict[str, tuple[Tensor, list[_ColumnUpdate]]] = {}
        self._factors: defaultdict[str, dict[int, Tensor]] = defaultdict(dict)
        self._rewritten: set[str] = set()
        # These are multiplied in the end, and rounded after that.
        pairings = [group.pairing for group in groups if group.pairing is not None]
        self._scaled = {name for pairing in pairings for name, _, _ in pairing.queries}
        groups_along = Counter((member.name, member.dim) for group in groups for member in group.members)
        self._may_narrow = {where for where, count in groups_along.items() if count == 1} if cut else set()

    def __missing__(self, name: str) -> Tensor:
        tensor, updates = self._pending.pop(name)  # a KeyError for a name that does not exist, as of any dict
        for update in updates:
            tensor = update(tensor.detach())
        self[name] = tensor
        return tensor

    def __contains__(self, name: object) -> bool:
        return name in self._original

    def get(self, name: str, default: Any = None) -> Any:
        """The tensor of this name, or the default."""
        return self[name] if name in self else default  # noqa: SIM401 - this is `get`

    def __iter__(self) -> Iterator[str]:
        return iter(self._original)

    def __len__(self) -> int:
        return len(self._original)

    def keys(self) -> KeysView[str]:
        """All names."""
        return KeysView(self)

    def values(self) -> ValuesView[Tensor]:
        """All tensors, up to date."""
        return ValuesView(self)

    def items(self) -> ItemsView[str, Tensor]:
        """All names and tensors, up to date."""
        return ItemsView(self)

    def apply(self, group: ChannelGroup, selection: Selection) -> None:
        """Go on from the selection of a group."""
        for name, value in selection.updates.items():
            self._pending.pop(name, None)  # the new value was computed from the updated one
            self[name] = value
            self._rewritten.add(name)
        if selection.updates or (selection.weights is None and len(selection.kept) == group.size):
            return
        factors = selection.factors(group.size)
        stays = torch.zeros(group.size, dtype=torch.bool).index_fill_(0, selection.kept, True)
        for member in group.by_role("consumer"):
            self._update_columns(member, factors, stays, reweighted=selection.weights is not None)

    def settle(self, names: Iterable[str]) -> None:
        """Keep the new contents of tensors, which no group that is to come has a part in, in their own precision.

        In double precision the new weights of a network are twice as large as it is. Vectors, which are small, wait for
        the end: a bias, or the variance of a BatchNorm, may follow groups that it is no part of.
        """
        for name in names:
            if name in self._rewritten and name not in self._scaled and self._original[name].dim() > 1:
                self[name] = self[name].to(self._original[name].dtype)

    def _update_columns(self, member: Member, factors: Tensor, stays: Tensor, *, reweighted: bool) -> None:
        name, dim = member.name, member.dim
        length = self._original[name].shape[dim]
        columns = member.at_positions(factors, length)
        if reweighted:
            known = self._factors[name].get(dim)
            self._factors[name][dim] = columns if known is None else known * columns
        narrow = (name, dim) in self._may_narrow
        left = staying_positions(member, stays, length).nonzero().squeeze(1) if narrow else None
        if name not in self._pending:
            self._pending[name] = (self.pop(name), [])
        self._pending[name][1].append(_ColumnUpdate(dim, left, columns))

    @property
    def changed(self) -> set[str]:
        """Tensors whose content changes by more than a slice."""
        return self._rewritten | self._factors.keys()

    def completed(self, change: ParameterChange) -> ParameterChange:
        """A slice of a tensor with all else that happens to its content."""
        name, kept = change.name, change.kept
        if name in self._rewritten:
            value = scale_dims_(index_dims(self[name], kept), change.factors).to(self._original[name].dtype)
            self[name] = self._original[name]  # nothing reads it any more
            return replace(change, value=value, factors={})
        factors = dict(change.factors)
        for dim, own in self._factors.get(name, {}).items():
            left = own[kept[dim]] if dim in kept else own
            factors[dim] = factors[dim] * left if dim in factors else left
        return replace(change, factors=factors)
