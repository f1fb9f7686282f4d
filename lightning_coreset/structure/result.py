"""What is known of the channels of a network, once it was followed."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace

from lightning_coreset.qualified_names import not_pruned
from lightning_coreset.structure.completion import Completion
from lightning_coreset.structure.example import RunMode
from lightning_coreset.structure.records import ChannelGroup
from lightning_coreset.structure.untrained import NOTHING_UNTRAINED, Untrained
from lightning_coreset.tables import html_lines, html_table, text_table


@dataclass(frozen=True)
class Structure:
    """What is known of the channels of a network.

    Attributes:
        groups: The channels that can be removed, in network order.
        refused: Layers whose channels cannot be, by qualified module name, each with the reason.
        macs: Multiply-accumulates of one sample by qualified name of the weight; ``""`` holds those of products
            between activations, as in attention.
        product_macs: How much of ``macs[""]`` goes with the classes of groups in proportion, by the groups' names:
            of one, or of two that a product has along different dimensions.
        untrained: Which parts of the network nothing trains.
        used: Names of the parameters and buffers that were used in a run; a penalty on parameters does not count.
        followed: For each example, the modes in which it was followed: none if it failed, or was not needed.
        showed: For each example, whether it used or coupled or held anything that those before it did not.
        has_outputs: Whether any example returned a tensor; else nothing has an influence.
        uncounted: Operators that may be products, and whose multiply-accumulates are in none of these numbers.
    """

    groups: tuple[ChannelGroup, ...]
    refused: Mapping[str, str] = field(repr=False)
    macs: Mapping[str, int] = field(repr=False)
    product_macs: Mapping[tuple[str, ...], float] = field(default_factory=dict, repr=False)
    untrained: Untrained = field(default=NOTHING_UNTRAINED, repr=False)
    used: frozenset[str] = field(default=frozenset(), repr=False)
    followed: tuple[tuple[RunMode, ...], ...] = field(default=(), repr=False)
    showed: tuple[bool, ...] = field(default=(), repr=False)
    has_outputs: bool = field(default=True, repr=False)
    uncounted: tuple[str, ...] = field(default=(), repr=False)

    def __repr__(self) -> str:
        return f"<Structure: {len(self.groups)} groups of channels, {len(self.refused)} layers that stay>"

    def __str__(self) -> str:
        """The groups as a table, and the layers that stay, by reason."""
        return "\n".join([text_table(self.rows()), *not_pruned(self.refused)])

    def _repr_html_(self) -> str:
        """What notebooks show: the same."""
        return f"<div>{html_table(self.rows())}{html_lines(not_pruned(self.refused))}</div>"

    def rows(self) -> list[tuple[str, ...]]:
        """The cells of the table of groups, with a row of headings."""
        heads = ("group", "classes", "made by", "read by", "channelwise", "remark")
        return [heads, *map(_row, self.groups)]

    def with_groups(self, groups: Sequence[ChannelGroup]) -> Structure:
        """The structure with others in place of groups of the same names, and of those that are merged into them."""
        parts = {group.name: group.pairing.merged for group in groups if group.pairing is not None}
        return self._replaced(groups, {part: name for name, own in parts.items() for part in own if part != name})

    def with_merged(self, merged: Sequence[tuple[ChannelGroup, Collection[str]]]) -> Structure:
        """The structure with groups that are merged of others, each with the names of these."""
        gone = {part: group.name for group, parts in merged for part in parts if part != group.name}
        return self._replaced([group for group, _ in merged], gone)

    def _replaced(self, groups: Sequence[ChannelGroup], gone: Mapping[str, str]) -> Structure:
        """The structure with others in place of groups of the same names.

        Args:
            groups: The others.
            gone: Names of groups that are part of another one now, each with that one's.
        """
        others = {group.name: group for group in groups}
        macs: dict[tuple[str, ...], float] = defaultdict(float)
        for names, count in self.product_macs.items():
            macs[tuple(gone.get(name, name) for name in names)] += count
        left = tuple(others.get(group.name, group) for group in self.groups if group.name not in gone)
        return replace(self, groups=left, product_macs=dict(macs))

    def joined(self, other: Structure, names: Collection[str] | None = None) -> Structure:
        """The structure with groups that only another analysis of the network found: those that overlap no own group.

        Args:
            other: What that found.
            names: Names of the only groups that are taken from there.
        """
        known = {group.name for group in self.groups}
        groups = list(self.groups)
        added: list[ChannelGroup] = []
        for number, group in enumerate(other.groups):
            if group.name in known or (names is not None and group.name not in names):
                continue
            if any(group.overlaps(own) for own in self.groups):
                continue
            later = {one.name for one in other.groups[number:]}  # in network order
            at = next((place for place, one in enumerate(groups) if one.name in later), len(groups))
            groups.insert(at, group)
            added.append(group)
        layers = {member.name.removesuffix(".weight") for group in added for member in group.by_role("producer")}
        refused = {name: why for name, why in self.refused.items() if name not in layers or name in other.refused}
        new = {group.name for group in added}
        products = {
            names: macs for names, macs in other.product_macs.items() if new & {*names} and {*names} <= new | known
        }
        return replace(self, groups=tuple(groups), refused=refused, product_macs={**self.product_macs, **products})

    def completed(self, completions: Mapping[str, Completion]) -> Structure:
        """The structure with what a self-check found out about groups, by their names."""
        groups = {group.name: group for group in self.groups}
        found = [completion.apply(groups, name) for name, completion in completions.items()]
        return self.with_groups([group for group in found if group is not None])

    def without(self, reasons: Mapping[str, str]) -> Structure:
        """The structure without some groups, by name, each refused for a reason."""
        groups = tuple(group for group in self.groups if group.name not in reasons)
        return replace(self, groups=groups, refused={**self.refused, **reasons})


def _row(group: ChannelGroup) -> tuple[str, ...]:
    remarks = [remark for remark, holds in (("normalised", group.normalized), ("paired", group.pairing)) if holds]
    counts = [len(group.by_role(role)) for role in ("producer", "consumer", "channelwise")]
    return group.name, f"{group.size:,}", *map(str, counts), ", ".join(remarks)
