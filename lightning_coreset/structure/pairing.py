"""Classes that are put together of parts: in another way, each part by itself, or of the parts of several groups."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace

from torch import Tensor

from lightning_coreset.structure.records import ChannelGroup, Member, Pairing


def paired(group: ChannelGroup, order: Tensor) -> ChannelGroup:
    """The group with its parts put together in another way.

    Args:
        group: A group whose classes have parts.
        order: For every block a permutation of the classes, ``(blocks, classes)``: the part that each new class takes.
    """
    rows, members = order.tolist(), []
    for member, (start, stop), parts in parts_of(group):
        index = tuple(
            tuple(place for block in range(start, stop) for place in parts[rows[block][number]][block - start])
            for number in range(group.size)
        )
        members.append(replace(member, index=index))
    return replace(group, members=tuple(members))


def single_dimensions(group: ChannelGroup) -> ChannelGroup:
    """Every part as a class of its own, those of one class side by side in the order of the blocks; to score them."""
    assert group.pairing is not None
    blocks, members = group.pairing.blocks, []
    for member, (start, stop), parts in parts_of(group):
        index = [own[block - start] if start <= block < stop else () for own in parts for block in range(blocks)]
        members.append(replace(member, index=tuple(index)))
    return replace(group, members=tuple(members), pairing=Pairing(((0, 1),) * len(members)))


def merged(groups: Sequence[ChannelGroup]) -> ChannelGroup | None:
    """Groups that have to lose equally many channels, as one; ``None`` if they have no number of classes in common.

    So it is where a network views queries, keys and values by one width of its heads, or a layer's outputs by the width
    of another tensor.
    """
    size = math.gcd(*(group.size for group in groups))
    if size < 2:
        return None
    members: list[Member] = []
    spans: list[tuple[int, int]] = []
    first = 0
    for group in groups:
        several, blocks = group.size // size, 0
        for member, (start, stop), parts in parts_of(group):
            index = (
                tuple(
                    place
                    for block in range(stop - start)
                    for part in parts[number * several : (number + 1) * several]
                    for place in part[block]
                )
                for number in range(size)
            )
            members.append(replace(member, index=tuple(index)))
            spans.append((first + start, first + stop))
            blocks = max(blocks, stop)
        first += blocks
    pairings = [group.pairing for group in groups if group.pairing is not None]
    return replace(
        groups[0],
        members=tuple(members),
        paths=tuple(path for group in groups for path in group.paths),
        counts=tuple(dict.fromkeys(count for group in groups for count in group.counts)),
        normalized=any(group.normalized for group in groups),
        weight_norms=tuple(dict.fromkeys(norm for group in groups for norm in group.weight_norms)),
        copies=tuple(dict.fromkeys(copy for group in groups for copy in group.copies)),
        residual=any(group.residual for group in groups),
        standardised=any(group.standardised for group in groups),
        routed=any(group.routed for group in groups),
        multiple=math.lcm(*(group.multiple // math.gcd(group.multiple, group.size // size) for group in groups)),
        pairing=Pairing(
            tuple(spans),
            any(one.heads for one in pairings),
            tuple(place for one in pairings for place in one.queries),
            any(one.scaled_by_size for one in pairings),
            tuple(group.name for group in groups),
        ),
    )


def parts_of(group: ChannelGroup) -> Iterator[tuple[Member, tuple[int, int], list[list[tuple[int, ...]]]]]:
    """For every member, its blocks from the first to before the last, and for every class its positions in each."""
    spans = group.pairing.spans if group.pairing is not None else ((0, 1),) * len(group.members)
    for member, (start, stop) in zip(group.members, spans, strict=True):
        parts = []
        for places in member.index:
            width = len(places) // (stop - start)
            parts.append([places[block * width : (block + 1) * width] for block in range(stop - start)])
        yield member, (start, stop), parts
