"""Other forms of groups that fail, for the analysis cannot tell all that matters.

Whether attention divides its products by the root of how many dimensions there are, or by a number that it keeps, looks
the same in one run. A network that views queries, keys and values by one width of its heads cannot give them two; and
one that views a tensor by the width of another cannot make one of them narrower alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from lightning_coreset.structure import ChannelGroup, merged


@dataclass(frozen=True)
class Form:
    """A group to try instead of others.

    Attributes:
        group: The group; it has the name of the first.
        instead_of: The names of the groups whose channels it has.
        is_new: Whether it differs from what failed before.
        with_numbers: Whether numbers may have to change with it as well.
    """

    group: ChannelGroup
    instead_of: tuple[str, ...]
    is_new: bool = True
    with_numbers: bool = True


def other_forms(groups: Sequence[ChannelGroup]) -> Iterator[list[Form]]:
    """What to try for groups that fail, the likeliest first: as they are, with other numbers, then in other forms."""
    alone = [Form(group, (group.name,), is_new=False) for group in groups]
    yield alone
    yield _scaled_otherwise(alone)
    together = [Form(group, parts) for group, parts in one_width_each(groups)]
    yield together
    yield _of_as_many(groups)
    yield _scaled_otherwise(together)


def _scaled_otherwise(forms: Iterable[Form]) -> list[Form]:
    """The same queries and keys, with the other answer to what their products are divided by."""
    changed = []
    for form in forms:
        within = form.group.pairing
        if within is not None and within.queries:
            other = replace(within, scaled_by_size=not within.scaled_by_size)
            changed.append(Form(replace(form.group, pairing=other), form.instead_of))
    return changed


def _of_as_many(groups: Sequence[ChannelGroup]) -> list[Form]:
    """Groups of as many channels as one: the code may take the width of one from another, as SegFormer's does."""
    of_size: dict[int, list[ChannelGroup]] = {}
    for group in groups:
        if group.pairing is None:
            of_size.setdefault(group.size, []).append(group)
    together = ((members, merged(members)) for members in of_size.values() if len(members) > 1)
    return [
        Form(one, tuple(group.name for group in members), with_numbers=False)
        for members, one in together
        if one is not None
    ]


def one_width_each(groups: Sequence[ChannelGroup]) -> list[tuple[ChannelGroup, tuple[str, ...]]]:
    """The groups within the heads of each attention as one, where there are several, with their names."""
    sets: list[tuple[set[str], list[ChannelGroup]]] = []
    for group in groups:
        if group.pairing is None or not group.pairing.heads:
            continue
        modules, members = _attentions(group), [group]
        for other in [one for one in sets if one[0] & modules]:
            sets.remove(other)
            modules, members = modules | other[0], [*other[1], *members]
        sets.append((modules, members))
    together = ((members, merged(members)) for _, members in sets if len(members) > 1)
    return [(one, tuple(group.name for group in members)) for members, one in together if one is not None]


def _attentions(group: ChannelGroup) -> set[str]:
    """The modules around the layers that make the channels."""
    layers = {member.name.rpartition(".")[0] for member in group.by_role("producer")}
    return {layer.rpartition(".")[0] for layer in layers}
