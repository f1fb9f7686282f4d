"""Groups that the steps of other ranks couple otherwise: rank zero plans for all, and has not seen these steps."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TypeAlias

import lightning.pytorch as pl
from lightning.pytorch.utilities import rank_zero_warn

from lightning_coreset.qualified_names import listed
from lightning_coreset.structure import ChannelGroup, Structure
from lightning_coreset.training.strategies import gathered

_Outline: TypeAlias = Mapping[tuple[str, int], tuple[int, int]]
"""Of every dimension of a tensor that is in a group, the number of classes and a hash of their positions."""


@dataclass(frozen=True)
class _Seen:
    """What the examples of a rank showed: the tensors that they used, and the groups."""

    used: frozenset[str]
    groups: tuple[_Outline, ...]

    def allows(self, group: _Outline) -> bool:
        """Whether a group may be cut for all that this rank knows.

        It may if this rank found the same, or used nothing of it. Of a group that it used in part, it must have found
        just this part: any more would be another reader or another layer that loses the same channels.
        """
        part = {place: classes for place, classes in group.items() if place[0] in self.used}
        overlapping = [own for own in self.groups if not own.keys().isdisjoint(group)]
        return overlapping == ([part] if part else [])


class OtherRanks:
    """Holds what the ranks do not agree on, and says so once."""

    def __init__(self) -> None:
        self._told: set[str] = set()

    def without_disputed(self, trainer: pl.Trainer, structure: Structure) -> Structure:
        """The structure without groups that another rank could not cut as they are; a collective operation.

        Every rank sees batches of its own, and a step may run other layers on them, or couple layers by its loss.
        """
        if trainer.world_size == 1:
            return structure
        outlines = {group.name: _outline(group) for group in structure.groups}
        ranks = gathered(trainer, _Seen(structure.used, tuple(outlines.values())))
        disputed = [name for name, outline in outlines.items() if not all(seen.allows(outline) for seen in ranks)]
        self._tell(disputed)
        return structure.without(dict.fromkeys(disputed, "the step of another rank couples it with other layers"))

    def _tell(self, disputed: Iterable[str]) -> None:
        new = [name for name in disputed if name not in self._told]
        if new:
            rank_zero_warn(
                f"The training steps of other ranks run other layers with the channels of {listed(new, most=5)}, or "
                "couple them otherwise, than those of rank 0: these stay, until the steps of all ranks have shown the "
                "same. Give CoresetPruningCallback(example_inputs=...) if forward shows everything."
            )
            self._told.update(new)


def _outline(group: ChannelGroup) -> _Outline:
    # The hash of integers is the same in every process.
    return {(one.name, one.dim): (len(one.index), hash(one.index)) for one in group.members}
