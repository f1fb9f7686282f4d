"""Groups of layers that are alike are completed alike: one of each kind is tried, and then all together.

A network of many blocks has as many groups of each kind. What one of them needs (numbers that change along, another
form), the others mostly need, too, so that a handful of trials takes the place of several for every group. All is
proven by a trial in the end; where that fails, the groups are looked at one by one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TypeAlias

from lightning_coreset.structure import ChannelGroup
from lightning_coreset.verification.forms import one_width_each
from lightning_coreset.verification.remembered import Search

Complete: TypeAlias = Callable[
    [tuple[ChannelGroup, ...], dict[str, str]], tuple[tuple[ChannelGroup, ...], dict[str, str]]
]
"""From groups, and those that fail with the reasons, to completed groups and those that still fail."""

Failing: TypeAlias = Callable[[Sequence[ChannelGroup]], dict[str, str]]
"""From groups to those that fail, each with the reason."""


def completed_alike(
    groups: Sequence[ChannelGroup], search: Search, failing: Failing, complete: Complete
) -> tuple[ChannelGroup, ...] | None:
    """The groups with what has to change with them, found out for one group of each kind.

    Args:
        groups: Groups that fail together.
        search: Knows the numbers of the network.
        failing: Finds the groups that fail among several, of which most succeed.
        complete: Completes groups that fail, one by one.

    Returns:
        Groups that are yet to be tried together; ``None`` if they have to be looked at one by one.
    """
    kinds: dict[object, list[ChannelGroup]] = {}
    for group in groups:
        kinds.setdefault((search.situation(group), group.pairing is None), []).append(group)
    if 2 * len(kinds) > len(groups):
        return None
    first = tuple(members[0] for members in kinds.values())
    failures = failing(first)
    if not failures:
        return None
    found, left = complete(first, failures)
    if left:
        return None
    of_kind = {members[0].name: members for members in kinds.values()}
    known = {group.name: group for group in first}
    replaced: dict[str, ChannelGroup | None] = {}
    for group in found:
        if group != known[group.name]:
            others = _completed_like(group, known, of_kind, search)
            if others is None:
                return None
            replaced |= others
    return tuple(one for group in groups if (one := replaced.get(group.name, group)) is not None)


def _completed_like(
    example: ChannelGroup, known: Mapping[str, ChannelGroup], of_kind: Mapping[str, list[ChannelGroup]], search: Search
) -> dict[str, ChannelGroup | None] | None:
    """What takes the place of all groups of the kinds that an example was made of; nothing where another one does."""
    within = example.pairing
    parts = within.merged if within is not None and within.merged else (example.name,)
    if within is not None and within.merged and not within.heads:
        return None  # which groups are as wide as one another is to be found out for each
    members = [group for part in parts for group in of_kind[part]]
    forms = one_width_each(members) if len(parts) > 1 else [(group, (group.name,)) for group in members]
    bases = {group.name: group for group, _ in one_width_each([known[part] for part in parts])}
    keys = search.keys(example, bases[example.name] if len(parts) > 1 else known[example.name])
    replaced: dict[str, ChannelGroup | None] = {}
    for group, instead_of in forms:
        if group.pairing is not None and within is not None:
            group = replace(group, pairing=replace(group.pairing, scaled_by_size=within.scaled_by_size))
        completed = search.with_keys(group, keys)
        if completed is None:
            return None
        replaced |= {**dict.fromkeys(instead_of), group.name: completed}
    return replaced if replaced.keys() == {group.name for group in members} else None
