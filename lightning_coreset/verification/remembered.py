"""Finds the numbers that a network remembers and that have to change with its groups, and proves each set by trials.

Widths are kept in attributes (``self.dim_head``) and configs. Which of them is the width of which group cannot be read
from their values, since many numbers are equal by coincidence. So a set of them is kept only if the network without
some channels of the group then computes what it should, and does not so without any one of them.

The cost, in trials (about three runs of the network each): nothing where no group fails. Where one fails, one run that
notes which attributes are read; one trial for a group that is like one solved before; for others one, mostly, to find
a set, and one for each number to see that it is needed; at most :data:`_MOST_TRIALS` where it is hard to find. In the
end one trial of all groups together.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import chain, combinations
from typing import TypeAlias

from torch import nn

from lightning_coreset.qualified_names import listed
from lightning_coreset.structure import ChannelGroup
from lightning_coreset.verification.candidates import Candidate, Key, RememberedNumbers

Attempt: TypeAlias = Callable[[Sequence[ChannelGroup]], str | None]
"""Tries the removal of channels of groups; the reason if that fails."""
Choice: TypeAlias = tuple[Candidate, ...]

_MOST_TRIALS = 48
"""To find a set for one group."""
_MOST_SINGLY = 24
"""Numbers of a set that are dropped one at a time; of a larger one, all of the same name in modules of one type."""


class Search:
    """Completes groups by the numbers that have to change with them; :meth:`read` comes first.

    Args:
        model: The network on which ``attempt`` tries groups.
        attempt: Tries groups, with the numbers that they count.
    """

    def __init__(self, model: nn.Module, attempt: Attempt) -> None:
        self._model, self._attempt = model, attempt
        self._solved: dict[frozenset[Key], None] = {}
        self._hopeless: set[Key] = set()

    def read(self, run: Callable[[], object]) -> None:
        """Note which numbers the network reads when ``run`` runs it as it is; these are looked through from now on."""
        self._numbers = RememberedNumbers(self._model, run)

    def completed(
        self, groups: Sequence[ChannelGroup], failures: Mapping[str, str]
    ) -> tuple[dict[str, ChannelGroup], dict[str, str]]:
        """Those of the groups that fail that succeed with other numbers; for the others the reasons.

        Args:
            groups: All groups.
            failures: Those that fail for a reason that numbers may explain, by name.
        """
        found, reasons = {}, {}
        for group in groups:
            if group.name in failures:
                choice = self._solution(group)
                if choice is None:
                    reasons[group.name] = self._why(group, failures[group.name])
                else:
                    found[group.name] = _with_numbers(group, choice)
        sound = [group for group in groups if group.name not in failures]
        reason = self._attempt([*sound, *found.values()]) if found else None
        if reason is None:
            return found, reasons
        # What fails with the groups that were never in question says nothing about the numbers.
        base = sound if sound and self._attempt(sound) is None else []
        known = reason if len(base) == len(sound) else None
        accepted = {group.name for group in self._together(base, list(found.values()), reasons, known)}
        return {name: group for name, group in found.items() if name in accepted}, reasons

    def situation(self, group: ChannelGroup) -> Key:
        """What groups have in common whose layers lie alike in modules of the same type."""
        return self._numbers.situation(group)

    def keys(self, group: ChannelGroup, before: ChannelGroup) -> frozenset[Key]:
        """Which numbers were added to a group, in words that hold for a group of like layers."""
        added = {*group.counts} - {*before.counts}
        return frozenset(each.key for each in self._numbers.candidates(before) if added.issuperset(each.counts))

    def with_keys(self, group: ChannelGroup, keys: frozenset[Key]) -> ChannelGroup | None:
        """A group with these numbers; ``None`` if it has no such."""
        choice = tuple(each for each in self._numbers.candidates(group) if each.key in keys)
        if {each.key for each in choice} != keys or (choice and not _is_possible(choice)):
            return None
        return _with_numbers(group, choice)

    def _solution(self, group: ChannelGroup) -> Choice | None:
        """A set of numbers with which a group succeeds alone, and of which none is left out."""
        candidates = self._numbers.candidates(group)
        tried: dict[frozenset[Candidate], bool] = {}

        def succeeds(choice: Choice) -> bool:
            key = frozenset(choice)
            if key not in tried:
                tried[key] = self._attempt([_with_numbers(group, choice)]) is None
            return tried[key]

        for keys in self._solved:
            choice = tuple(each for each in candidates if each.key in keys)
            if {each.key for each in choice} == keys and _is_possible(choice) and succeeds(choice):
                return choice
        within = group.pairing
        form = None if within is None else (within.scaled_by_size, bool(within.merged))
        kind = (self._numbers.situation(group), frozenset(each.key for each in candidates), form)
        if kind in self._hopeless:
            return None
        for choice in _choices(candidates):
            if succeeds(choice):
                needed = _minimal(choice, succeeds)
                self._solved[frozenset(each.key for each in needed)] = None
                return needed
            if len(tried) >= _MOST_TRIALS:
                break
        self._hopeless.add(kind)
        return None

    def _together(
        self, base: list[ChannelGroup], added: list[ChannelGroup], reasons: dict[str, str], known: str | None = None
    ) -> list[ChannelGroup]:
        """The groups that succeed together, from the ones in ``base`` on; all at once do not if that is known."""
        if not added:
            return base
        reason = known or self._attempt([*base, *added])
        if reason is None:
            return [*base, *added]
        if len(added) == 1:
            reasons[added[0].name] = f"together with others, {reason}"
            return base
        middle = len(added) // 2
        return self._together(self._together(base, added[:middle], reasons), added[middle:], reasons)

    def _why(self, group: ChannelGroup, failure: str) -> str:
        titles = list(dict.fromkeys(each.title for each in self._numbers.candidates(group)))
        if not titles:
            return f"{failure}; no attribute that its modules read has such a value"
        return f"{failure}; changing {listed(titles)} along does not help"


def _with_numbers(group: ChannelGroup, choice: Choice) -> ChannelGroup:
    return group.with_counts(count for each in choice for count in each.counts)


def _is_possible(choice: Choice) -> bool:
    """Whether no two of them are the same number."""
    places = [place for each in choice for place in each.places]
    return bool(choice) and len(places) == len(set(places))


def _choices(candidates: Sequence[Candidate]) -> Iterator[Choice]:
    """Sets to try: the likely ones at once, all at once, then small ones, the smallest first."""
    seen: set[frozenset[Candidate]] = set()
    likely = [each for each in candidates if not any(each.rank[:2])]
    owned = [each for each in candidates if not each.rank[0]]
    by_name: dict[tuple[object, ...], list[Candidate]] = {}
    for each in candidates:
        by_name.setdefault(each.key[1:], []).append(each)
    large = map(_without_rivals, (likely, owned, candidates, *by_name.values()))
    small = (choice for count in (1, 2, 3, 4) for choice in combinations(candidates, count))
    for choice in chain(large, small):
        key = frozenset(choice)
        if key not in seen and _is_possible(choice):
            seen.add(key)
            yield choice


def _without_rivals(candidates: Sequence[Candidate]) -> Choice:
    """The candidates, and of several for one number the likeliest."""
    chosen: list[Candidate] = []
    taken: set[tuple[str, str]] = set()
    for each in candidates:
        if not taken & each.places:
            chosen.append(each)
            taken |= each.places
    return tuple(chosen)


def _minimal(choice: Choice, succeeds: Callable[[Choice], bool]) -> Choice:
    """A part of a set that succeeds and of which nothing can be left out."""
    by_name: dict[tuple[object, ...], list[Candidate]] = {}
    for each in reversed(choice):  # the least likely first
        by_name.setdefault(each.key[1:] if len(choice) > _MOST_SINGLY else (each,), []).append(each)
    dropped = True
    while dropped:
        dropped = False
        for part in by_name.values():
            fewer = tuple(each for each in choice if each not in part)
            if fewer and len(fewer) < len(choice) and succeeds(fewer):
                choice, dropped = fewer, True
    return choice
