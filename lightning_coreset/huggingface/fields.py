"""The search for config fields that tell the sizes of a pruned model, each proven by a model that is built from it.

A field gets another value only if every size becomes right that it changes in a model that is built from the config.
Where a config cannot tell everything, at least one tensor keeps another shape, so that ``from_pretrained`` fails
instead of giving a model that computes something else.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping
from itertools import combinations, product
from typing import Any, TypeAlias

from torch import nn

from lightning_coreset.checkpoint import PruningMetadata
from lightning_coreset.huggingface.building import Builder, Fact, facts, fields_of_config, with_fields
from lightning_coreset.module_specs import is_integer

Fields: TypeAlias = dict[str, int]
"""Values of config fields, by path."""

_MOST_BUILDS = 400
_MOST_AT_ONCE = 3  # fields that only together are right, such as a width, the heads, and the heads of the keys
_MOST_VALUES = 4  # that are tried for one field


class FieldSearch:
    """The search for one pruned model.

    Args:
        builder: Builds models of its class.
        start: Its config, in which no field tells of the pruning yet.
        pruned: The pruned model.
        names: The sizes that pruning changed.
        never: The tensors whose contents no config can tell.
        proof: Whether the pruned model can have a config, and whether one that tells every size gives this model.
    """

    def __init__(
        self,
        builder: Builder,
        start: Any,
        pruned: nn.Module,
        names: Collection[str],
        never: Collection[str],
        proof: Callable[[Any, bool], bool],
    ) -> None:
        self._builder, self._start, self._names = builder, start, names
        self._wanted, self._saved = facts(pruned, names), set(pruned.state_dict())
        self._never, self._proof = never, proof
        self._known: dict[frozenset[tuple[str, int]], dict[Fact, int] | None] = {}

    def run(self, candidates: Mapping[str, list[int]]) -> Fields:
        """The fields found, with their new values; none if the config can tell nothing."""
        found: Fields = {}
        while (better := next(self._better(found, candidates), None)) is not None:
            found = better
        return found

    def _better(self, found: Fields, candidates: Mapping[str, list[int]]) -> Iterator[Fields]:
        useful: dict[str, list[int]] = {}
        for path, values in candidates.items():
            for value in values:
                trial = {**found, path: value}
                if self._accepts(trial, found):
                    yield trial
                elif self._mends_something(trial, found):  # it may be right together with others
                    useful.setdefault(path, []).append(value)
        for number in range(2, _MOST_AT_ONCE + 1):
            for paths in combinations(useful, number):
                for values in product(*(useful[path] for path in paths)):
                    trial = {**found, **dict(zip(paths, values, strict=True))}
                    if self._accepts(trial, found):
                        yield trial

    def _accepts(self, trial: Fields, found: Fields) -> bool:
        """Whether all that a trial changes becomes right, and loading still fails if something else is wrong."""
        changed, built = self._changed(trial, found), self._built(trial)
        if not changed or built is None or any(self._is_wrong(fact, built) for fact in changed):
            return False
        wrong = {name for name, number in {**self._wanted, **built} if self._is_wrong((name, number), built)}
        if wrong and wrong.isdisjoint(self._saved):
            return False
        return self._proof(with_fields(self._start, trial), not wrong)

    def _mends_something(self, trial: Fields, found: Fields) -> bool:
        built = self._built(trial)
        return built is None or any(not self._is_wrong(fact, built) for fact in self._changed(trial, found))

    def _changed(self, trial: Fields, found: Fields) -> list[Fact]:
        before, after = self._built(found) or {}, self._built(trial) or {}
        return [fact for fact in {**before, **after} if before.get(fact) != after.get(fact)]

    def _is_wrong(self, fact: Fact, built: Mapping[Fact, int]) -> bool:
        return fact[0] in self._never or built.get(fact) != self._wanted.get(fact)

    def _built(self, fields: Fields) -> dict[Fact, int] | None:
        """The facts of a model with these fields; ``None`` if there is none, or too many have been built."""
        key = frozenset(fields.items())
        if key not in self._known:
            if len(self._known) >= _MOST_BUILDS:
                return None
            try:
                self._known[key] = facts(self._builder.build(with_fields(self._start, fields)), self._names)
            except Exception:  # a config, or a module, that refuses sizes which do not go together
                self._known[key] = None
        return self._known[key]


def candidate_fields(config: Any, metadata: PruningMetadata) -> dict[str, list[int]]:
    """Values to try for each integer of a config: new sizes of what had the same size, or scaled like a multiple of it.

    The most frequent first.
    """
    changes: Counter[tuple[int, int]] = Counter()
    for kind in ("shapes", "sizes"):
        before, after = getattr(metadata.original, kind), getattr(metadata.pruned, kind)
        for name, old in before.items():
            for pair in zip(_elements(old), _elements(after[name]), strict=False):
                changes[pair] += pair[0] != pair[1]
    found: dict[str, list[int]] = {}
    for path, size in fields_of_config(config).items():
        for number, value in enumerate(_elements(size)):
            tried = Counter[int]()
            for (old, new), count in changes.items():
                if count and (scaled := _scaled(value, old, new)) is not None:
                    tried[scaled] += count
            values = [each for each, _ in tried.most_common(_MOST_VALUES)]
            if values:
                found[path if is_integer(size) else f"{path}[{number}]"] = values
    return found


def _scaled(value: int, old: int, new: int) -> int | None:
    """What has to a value the ratio of a new size to an old one, if that one is a multiple or a fraction of it."""
    if value < 2 or old < 1 or new < 1 or (old % value and value % old) or value * new % old:
        return None
    return value * new // old


def _elements(size: Any) -> tuple[int, ...]:
    return (size,) if is_integer(size) else tuple(size)
