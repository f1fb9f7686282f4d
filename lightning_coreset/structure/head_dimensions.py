"""Channels within attention heads: value dimensions, and dimensions of queries and keys.

Every head has to lose as many of them, since the network views all heads as one rectangular tensor; but not the same
ones, unless a rotary embedding or a norm between the projection and the product shares them out. Queries and keys lose
the same dimensions. So a class of such a group has one dimension of every head, and which dimensions of different heads
are put together is free: they are *blocks* that can be paired in any way.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from lightning_coreset.structure.labels import ChannelLabels
from lightning_coreset.structure.records import Member, Pairing
from lightning_coreset.structure.union_find import ChannelUnionFind

if TYPE_CHECKING:
    from lightning_coreset.structure.propagation import Propagation

_SHARED = -2


def note_head_dimensions(propagation: Propagation, axis: ChannelLabels, dim: int) -> None:
    """Note labels that vary along ``dim`` within heads, which lie along other dimensions."""
    labels = axis.labels.movedim(dim, -1)
    propagation.head_dimensions.append(labels.reshape(-1, labels.shape[-1]))


@dataclass(frozen=True, eq=False)
class Queries:
    """The queries of one product of queries and keys.

    Attributes:
        labels: Their labels; of all heads, or of one where all heads share theirs.
        makers: Names of the weights that make them and no keys; ``None`` where one weight makes both.
        scaled_by_size: Whether the product is seen to be divided by the root of how many dimensions there are.
    """

    labels: Tensor
    makers: frozenset[str] | None
    scaled_by_size: bool


@dataclass(frozen=True, eq=False)
class HeadBlocks:
    """What is known of the dimensions within heads once the whole network was followed.

    Attributes:
        fine: The root of every label before the heads were united.
        block_of: By such a root, the number of its head; negative where it has none, or several.
        kind_of: By root, a number above 0 for dimensions within heads: those of values differ from those of queries.
    """

    fine: Tensor
    block_of: Tensor
    kind_of: Tensor

    @classmethod
    def of(cls, grids: Sequence[Tensor], union_find: ChannelUnionFind) -> HeadBlocks:
        """Let all heads lose as many dimensions: those in one column of a grid (heads, dimensions) become a class."""
        fine = union_find.all_roots().clone()
        block_of, kind_of = torch.full_like(fine, -1), torch.zeros_like(fine)
        for grid in grids:
            for number, row in enumerate(fine[grid].unique(dim=0)):
                known = block_of[row]
                block_of[row] = torch.where((known == -1) | (known == number), number, _SHARED)
        for grid in grids:
            union_find.unite(grid[:1].expand_as(grid), grid, "is a dimension within attention heads")
        for kind, grid in enumerate(grids, start=1):
            roots = union_find.roots(grid)
            kind_of[roots] = torch.where(kind_of[roots] == 0, kind, kind_of[roots])
        return cls(fine, block_of, kind_of)

    def count(self, members: Iterable[Member], ranges: Mapping[tuple[str, int], range]) -> int:
        """In how many blocks the classes of a group can be paired anew; 1 if they cannot."""
        counts = set()
        for member in members:
            blocks = self._blocks(member, ranges)
            if not blocks:
                return 1
            for own in blocks:
                distinct, parts = torch.tensor(own).unique(return_counts=True)
                if int(distinct[0]) < 0 or bool((parts != parts[0]).any()):
                    return 1
                counts.add(len(distinct))
        return counts.pop() if len(counts) == 1 else 1

    def sorted(self, member: Member, ranges: Mapping[tuple[str, int], range]) -> Member:
        """The member with the positions of every class in the order of the blocks."""
        index = tuple(
            tuple(place for _, place in sorted(zip(blocks, places, strict=True)))
            for blocks, places in zip(self._blocks(member, ranges), member.index, strict=True)
        )
        return replace(member, index=index)

    def _blocks(self, member: Member, ranges: Mapping[tuple[str, int], range]) -> list[list[int]]:
        own = ranges[member.name, member.dim]
        block_of = self.block_of[self.fine[own.start : own.stop]].tolist()
        return [[block_of[place] for place in places] for places in member.index] if all(member.index) else []


def within_heads(
    members: Sequence[Member],
    ranges: Mapping[tuple[str, int], range],
    blocks: HeadBlocks,
    queries: Sequence[Queries],
    biases: Mapping[str, str | None],
) -> tuple[tuple[Member, ...], Pairing]:
    """The members of a group of dimensions within heads, and what else is to be known of it.

    Args:
        members: The members of the group.
        ranges: The labels of every dimension.
        blocks: The heads.
        queries: Of all products of queries and keys.
        biases: By the name of a weight, that of its layer's bias.
    """
    count = blocks.count(members, ranges)
    if count > 1:
        members = [blocks.sorted(member, ranges) for member in members]
    producers = {member.name: member for member in members if member.role == "producer"}
    others = {member.name: member for member in members if member.role == "channelwise"}
    made: dict[tuple[str, int], set[int]] = {}
    scaled = False
    for one in queries:
        for member in producers.values():
            positions = _positions(one, member, ranges[member.name, member.dim])
            bias = others.get(biases.get(member.name) or "")
            for own in (member, bias) if positions else ():
                if own is not None:
                    made.setdefault((own.name, own.dim), set()).update(positions)
            scaled |= bool(positions) and one.scaled_by_size
    places = tuple((*where, tuple(sorted(positions))) for where, positions in made.items())
    return tuple(members), Pairing(((0, count),) * len(members), True, places, scaled)


def _positions(queries: Queries, member: Member, own: range) -> set[int]:
    """Where a weight makes queries."""
    if queries.makers is not None:
        return {place for places in member.index for place in places} if member.name in queries.makers else set()
    labels = queries.labels[(queries.labels >= own.start) & (queries.labels < own.stop)]
    return set((labels - own.start).tolist())
