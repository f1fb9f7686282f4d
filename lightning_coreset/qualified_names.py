"""Qualified names of modules and tensors: which lies in which, and how messages list them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise


def lies_in(path: str, container: str) -> bool:
    """Whether a name is that of a module, or of something in it; all lie in the network itself, ``""``."""
    return not container or path == container or path.startswith(f"{container}.")


def common_module(paths: Iterable[str]) -> str:
    """The smallest module that contains some, ``""`` if that is the network itself.

    Example:
        >>> common_module(["net.encoder.0", "net.encoder.1.conv", "net.encoder"])
        'net.encoder'
    """
    parts = [path.split(".") for path in paths]
    shared = 0
    while parts and all(len(part) > shared and part[shared] == parts[0][shared] for part in parts):
        shared += 1
    return ".".join(parts[0][:shared]) if parts else ""


def listed(names: Sequence[str], most: int = 4) -> str:
    """The first of some names, and how many others there are; many that only differ in a number count as one.

    Example:
        >>> listed(["a", "b", "c"], most=2)
        'a, b and 1 more'
        >>> listed(["stem", *(f"layers.{number}.mlp" for number in range(32)), "head"])
        'stem, layers.0-31.mlp (32), head'
    """
    entries = alike(names, least=most + 1)
    hidden = sum(len(own) for _, own in entries[most:])
    more = f" and {hidden} more" if hidden else ""
    return ", ".join(label for label, _ in entries[:most]) + more


def alike(names: Sequence[str], least: int = 3) -> list[tuple[str, list[str]]]:
    """Names, where at least so many that only differ in their numbers are one entry, each with those it stands for.

    Example:
        >>> alike(["net.0", "net.2", "net.4", "head"])
        [('net.0-4 (3)', ['net.0', 'net.2', 'net.4']), ('head', ['head'])]
        >>> [label for label, _ in alike(["layer1.0.conv", "layer1.1.conv", "layer2.0.conv"])]
        ['layer1.0.conv and 2 more like it']
    """
    kinds: dict[object, list[str]] = {}
    for name in names:
        # Only of plain names: the numbers in "fc (1,200 parameters)" number nothing.
        kind = tuple(re.split(r"\d+", name)) if re.fullmatch(r"'?[\w.]+'?", name) else name
        kinds.setdefault(kind, []).append(name)
    entries: list[tuple[str, list[str]]] = []
    for kind in kinds.values():
        entries += [(name, [name]) for name in kind] if len(kind) < least else [(_as_one(kind), kind)]
    return entries


def _as_one(names: Sequence[str]) -> str:
    parts = [re.split(r"(\d+)", name) for name in names]
    varying = [place for place, values in enumerate(zip(*parts, strict=True)) if len(set(values)) > 1]
    if len(varying) == 1:
        (place,) = varying
        numbers = sorted(int(part[place]) for part in parts)
        steps = {after - before for before, after in pairwise(numbers)}
        if len(steps) == 1 and min(steps) > 0:
            first = [*parts[0][:place], f"{numbers[0]}-{numbers[-1]}", *parts[0][place + 1 :]]
            return f"{''.join(first)} ({len(names)})"
    return f"{names[0]} and {len(names) - 1} more like it"


def by_reason(reasons: Mapping[str, str]) -> dict[str, list[str]]:
    """The names that each reason holds for, by reason."""
    names: dict[str, list[str]] = {}
    for name, reason in reasons.items():
        names.setdefault(reason, []).append(name)
    return names


def sentence(names: Sequence[str], reason: str, most: int = 4) -> str:
    """What is said of some layers, of which ``most`` are named.

    Example:
        >>> sentence(["fc"], "is a bias")
        'fc is a bias'
        >>> sentence([f"blocks.{number}" for number in range(9)], "is gated")
        'blocks.0-8 (9): each is gated'
    """
    return f"{names[0]} {reason}" if len(names) == 1 else f"{listed(names, most)}: {_of_each(reason)}"


def labelled_reasons(reasons: Mapping[str, str]) -> list[str]:
    """A line for each reason, behind the names that it holds for.

    Example:
        >>> labelled_reasons({"a": "is gated", "b": "is gated", "c": "is a bias"})
        ['  a, b: each is gated', '  c: is a bias']
    """
    told = by_reason(reasons).items()
    return [f"  {listed(names)}: {_of_each(reason) if len(names) > 1 else reason}" for reason, names in told]


def _of_each(reason: str) -> str:
    """A reason of several: most are predicates, "is gated"; some are whole clauses, "the trial could not be run"."""
    return reason if reason.split(" ", 1)[0] in _CLAUSES else f"each {reason}"


_CLAUSES = frozenset({"the", "its", "with", "without", "other"})
"""First words of reasons that have a subject of their own."""


def not_pruned(skipped: Mapping[str, str]) -> list[str]:
    """Lines that say which layers are not pruned and why, one for each reason.

    Example:
        >>> not_pruned({"fc": "is a bias", **{f"blocks.{number}": "is gated" for number in range(9)}})
        ['not pruned: fc is a bias', 'not pruned: blocks.0-8 (9): each is gated']
    """
    return [f"not pruned: {sentence(names, reason)}" for reason, names in by_reason(skipped).items()]
