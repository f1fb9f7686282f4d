"""What the self-check finds out about groups, as plain data for the events of a training run that follow."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from lightning_coreset.structure.pairing import merged
from lightning_coreset.structure.records import ChannelGroup, Count


@dataclass(frozen=True)
class Completion:
    """What has to be known of a group beside what the analysis sees.

    Attributes:
        counts: Numbers that modules remember, which change with the group.
        merged: Names of groups within the heads of an attention that have to lose equally many, the first of them the
            group's own; empty for a group by itself.
        scaled_by_size: As for ``Pairing``; ``None`` for other groups.
    """

    counts: tuple[Count, ...] = ()
    merged: tuple[str, ...] = ()
    scaled_by_size: bool | None = None

    @classmethod
    def of(cls, group: ChannelGroup, before: Mapping[str, ChannelGroup]) -> Completion:
        """What was found out about a group.

        Args:
            group: The group as it is now.
            before: The groups as the analysis saw them, by name.
        """
        within = group.pairing
        parts = within.merged if within is not None else ()
        known = {count for name in parts or (group.name,) for count in before[name].counts}
        counts = tuple(count for count in group.counts if count not in known)
        return cls(counts, parts, None if within is None else within.scaled_by_size)

    def apply(self, groups: Mapping[str, ChannelGroup], name: str) -> ChannelGroup | None:
        """The group of this name, completed; ``None`` if it is not among the groups, or too small by now."""
        if any(part not in groups for part in self.merged or (name,)):
            return None
        group = merged([groups[part] for part in self.merged]) if self.merged else groups[name]
        if group is None:
            return None
        if group.pairing is not None and self.scaled_by_size is not None:
            group = replace(group, pairing=replace(group.pairing, scaled_by_size=self.scaled_by_size))
        return group.with_counts(self.counts)

    def to_dict(self) -> dict[str, Any]:
        """Numbers, strings, lists and dicts."""
        return asdict(self) | {"counts": [asdict(count) for count in self.counts], "merged": list(self.merged)}

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> Completion:
        """The inverse of :meth:`to_dict`."""
        return cls(tuple(Count(**count) for count in plain["counts"]), tuple(plain["merged"]), plain["scaled_by_size"])
