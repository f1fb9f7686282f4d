"""The tensors of a model while a plan is made: as the groups chosen so far leave them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace

from torch import Tensor

from lightning_coreset.plan import ParameterChange
from lightning_coreset.planning.selection import Selection, column_factors, multiply
from lightning_coreset.structure import ChannelGroup, Member
from lightning_coreset.surgery import take


class Working:
    """Working copies of a model's tensors; the model's own are only read.

    What reads a class that goes is zero in them, or cut away already where ``cut`` allows it and no other group lies
    along the same dimension: the rest then has less to read and to write.

    Args:
        tensors: Parameters and buffers by name.
        groups: All groups of the plan.
        cut: Whether what reads a group may become narrower; not where the laws of its inputs are known channel by
            channel.

    Attributes:
        tensors: Parameters and buffers by name, as they are by now.
        reweighted: Tensors whose content changes by more than a slice.
    """

    def __init__(self, tensors: Mapping[str, Tensor], groups: Sequence[ChannelGroup], *, cut: bool) -> None:
        self.tensors = dict(tensors)
        self._original = tensors
        self.reweighted: set[str] = set()
        self._cut: dict[str, set[int]] = {}
        lying = Counter((member.name, member.dim) for group in groups for member in group.members)
        self._lonely = {where for where, count in lying.items() if count == 1} if cut else set()

    def put(self, group: ChannelGroup, selection: Selection) -> None:
        """Go on from what was chosen for a group."""
        self.reweighted |= selection.updates.keys()
        self.tensors |= selection.updates
        if selection.updates or (selection.weights is None and len(selection.kept) == group.size):
            return
        stays = replace(selection, weights=None).factor(group)
        factor = None if selection.weights is None else selection.factor(group)
        for member in group.by_role("consumer"):
            if factor is not None:
                self.reweighted.add(member.name)
            if (member.name, member.dim) in self._lonely:
                self._cut_away(member, stays, factor)
            else:
                self._scale(member, stays if factor is None else factor)

    def _scale(self, member: Member, factor: Tensor) -> None:
        tensor = self.tensors[member.name].detach()
        factors = column_factors(member, factor, tensor.shape[member.dim])
        self.tensors[member.name] = multiply(tensor.clone(), member.dim, factors)

    def _cut_away(self, member: Member, stays: Tensor, factor: Tensor | None) -> None:
        tensor, dim = self.tensors[member.name].detach(), member.dim
        length = tensor.shape[dim]
        left = column_factors(member, stays, length).nonzero().squeeze(1)
        tensor = tensor.index_select(dim, left.to(tensor.device))
        if factor is not None:
            multiply(tensor, dim, column_factors(member, factor, length)[left])
        self.tensors[member.name] = tensor
        self._cut.setdefault(member.name, set()).add(dim)

    def content(self, change: ParameterChange) -> ParameterChange:
        """A slice of a tensor with its new content, if that is more than the slice."""
        if change.name not in self.reweighted:
            return change
        done = self._cut.get(change.name, set())
        left = {dim: positions for dim, positions in change.kept.items() if dim not in done}
        value = take(self.tensors[change.name], left)
        return replace(change, value=value.to(self._original[change.name].dtype))
