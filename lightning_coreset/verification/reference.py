"""The network that a pruned one is compared with: all channels there, those that were removed without effect."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor

from lightning_coreset.structure import ChannelGroup, Member
from lightning_coreset.structure.weak_map import IdentityWeakMap
from lightning_coreset.structure.weight_norms import MadeWeights
from lightning_coreset.surgery import made_weights, weight_norms_of
from lightning_coreset.verification.disturbed import columns_that_differ, disturbed
from lightning_coreset.verification.twin import TwinRun, copy_of_layout
from lightning_coreset.verification.virtual import VirtualWeights

Removed = Mapping[str, set[int]]
"""The classes that are removed, by the name of the group."""


class FixedWeights(MadeWeights):
    """Runs a model with weights that ``weight_norm`` would make, but which are given.

    What is set to zero in a direction, or is another number there, would change its norm and with it all that is left.

    Args:
        tensors: The model's parameters and buffers by name.
        groups: Of whose weights the present values are taken.

    Attributes:
        tensors: All tensors by name, with the weights under the names of their directions; what is done to these has an
            effect on runs in this mode.
        modes: This mode; nothing where no weight is made by ``weight_norm``, since every mode takes time.
    """

    def __init__(self, tensors: Mapping[str, Tensor], groups: Iterable[ChannelGroup]) -> None:
        super().__init__()
        norms = weight_norms_of(groups)
        self.tensors = made_weights(tensors, norms.values())
        self._made: IdentityWeakMap[Tensor] = IdentityWeakMap()
        for name in norms:
            self._made[tensors[name]] = self.tensors[name]
        self.modes: list[FixedWeights] = [self] if norms else []

    def made(
        self, direction: Tensor, magnitude: Tensor, dim: int | None, compute: Callable[[], Tensor]
    ) -> Tensor | None:
        """The weight that was given."""
        return self._made.get(direction)


def readers(group: ChannelGroup) -> tuple[Member, ...]:
    """What reads the channels of a group; of queries and keys, which only meet each other, what makes them."""
    return group.by_role("consumer") or group.by_role("producer")


@contextmanager
def kept_weights(
    tensors: Mapping[str, Tensor],
    groups: Iterable[ChannelGroup],
    removed: Removed,
    virtual: VirtualWeights | None = None,
) -> Iterator[Callable[[str], Tensor]]:
    """Put what reads removed classes back in the end.

    Yields:
        Makes a copy of a weight as it was. Only what may change is kept: all weights of a network take much memory.
    """
    parts: dict[str, list[tuple[int, Tensor, Tensor]]] = {}
    writes: dict[str, int] = {}  # into those that are made whenever they are read
    for group in groups:
        for member, index in _positions(readers(group), removed[group.name]):
            tensor = tensors[member.name].detach()
            if virtual is not None and tensor in virtual:
                writes[member.name] = len(virtual.made(tensor).steps)
                continue
            index = index.to(tensor.device)
            parts.setdefault(member.name, []).append((member.dim, index, tensor.index_select(member.dim, index)))

    @torch.no_grad()
    def put_back(name: str, tensor: Tensor) -> Tensor:
        for dim, index, content in parts.get(name, ()):
            tensor.index_copy_(dim, index, content)
        return tensor

    def as_it_was(name: str) -> Tensor:
        if virtual is not None and name in writes:
            return virtual.after(tensors[name], writes[name])
        return put_back(name, copy_of_layout(tensors[name].detach()))

    try:
        yield as_it_was
    finally:
        if virtual is not None:
            for name, count in writes.items():
                del virtual.made(tensors[name]).steps[count:]
        for name in parts:
            put_back(name, tensors[name])


def zero_consumers_(tensors: Mapping[str, Tensor], groups: Iterable[ChannelGroup], removed: Removed) -> None:
    """Set to zero what reads removed classes."""
    for group in groups:
        zero_(tensors, group.by_role("consumer"), removed[group.name])


@torch.no_grad()
def zero_(tensors: Mapping[str, Tensor], members: Iterable[Member], removed: Collection[int]) -> None:
    """Set members of a group to zero at the positions of removed classes."""
    for member, index in _positions(members, removed):
        tensor = tensors[member.name]
        tensor.index_fill_(member.dim, index.to(tensor.device), 0.0)


def twin_run(
    tensors: Mapping[str, Tensor],
    before: Callable[[str], Tensor],
    groups: Sequence[ChannelGroup],
    removed: Removed,
    virtual: VirtualWeights | None = None,
    reduced: bool = False,
) -> TwinRun:
    """A run in two versions, which differ in what makes the removed classes.

    Args:
        tensors: Those of the network whose consumers were set to zero.
        before: Makes a copy of a weight as it was before that.
        groups: The groups.
        removed: What goes of them.
        virtual: Makes weights of the network whenever they are read.
        reduced: Whether the network may reduce over channels that it does not normalise, as a penalty does.
    """
    layouts: dict[tuple[str, int], Tensor] = {}
    making: dict[str, list[tuple[Member, Tensor]]] = {}
    reading: dict[str, list[tuple[Member, Tensor]]] = {}
    known_layouts = reduced or any(group.normalized for group in groups)
    for member, index in (found for group in groups for found in _positions(group.members, removed[group.name])):
        if known_layouts:
            nothing = torch.zeros(tensors[member.name].shape[member.dim], dtype=torch.bool)
            layouts.setdefault((member.name, member.dim), nothing)[index] = True
        if tensors[member.name].is_floating_point():
            of_role = reading if member.role == "consumer" else making
            of_role.setdefault(member.name, []).append((member, index))

    def looked_up(name: str) -> tuple[Tensor, Tensor]:
        found = before(name)
        return found, disturbed(found, reading[name], virtual=virtual)()

    return TwinRun(
        [
            (tensors[name], disturbed(tensors[name], places, reading.get(name, ()), virtual))
            for name, places in making.items()
        ],
        [(tensors[name], partial(looked_up, name)) for name in reading if tensors[name].dim() == 2],
        {tuple(mask.tolist()): mask for mask in layouts.values()}.values(),
        _without_numbers(tensors, groups, removed),
        [
            (tensors[name], columns_that_differ(tensors[name], places, reading.get(name, ())))
            for name, places in making.items()
            if tensors[name].dim() == 2
        ],
    )


def _without_numbers(
    tensors: Mapping[str, Tensor], groups: Iterable[ChannelGroup], removed: Removed
) -> list[tuple[Tensor, Tensor]]:
    """Weights that may be standardised over removed columns, each with a version that has no numbers there."""
    found: dict[str, Tensor] = {}
    for group in groups:
        if group.standardised:
            for member, index in _positions(group.by_role("consumer"), removed[group.name]):
                whole = found.setdefault(member.name, copy_of_layout(tensors[member.name]))
                whole.index_fill_(member.dim, index.to(whole.device), float("nan"))
    return [(tensors[name], marked) for name, marked in found.items()]


def _positions(members: Iterable[Member], removed: Collection[int]) -> Iterator[tuple[Member, Tensor]]:
    """The members in which removed classes have positions, with these."""
    for member in members:
        positions = [position for number in removed for position in member.index[number]]
        if positions:
            yield member, torch.tensor(positions, dtype=torch.int64)
