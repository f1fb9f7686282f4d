"""The dimensions within attention heads, head by head: what makes queries, keys and values, and what reads values.

Shapes: N dimensions of a head; d inputs of a projection; h heads of queries that share one of keys and values.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace

from torch import Tensor

from lightning_coreset.layers.group_view import GroupView
from lightning_coreset.layers.layer_pair import to_cpu_float64
from lightning_coreset.structure import Member, layer_of, parts_of


@dataclass(frozen=True)
class Rows:
    """Where one weight makes the dimensions of one head.

    Attributes:
        weight: Qualified name of the weight.
        dim: The dimension of the weight along which they lie.
        places: Their positions, one for each.
        bias: Qualified name of the bias, if there is one, with the same positions.
    """

    weight: str
    dim: int
    places: tuple[int, ...]
    bias: str | None

    def matrix(self, tensors: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """The weights that make them, float64 (N, d), and the constants, (N,)."""
        weight = to_cpu_float64(tensors[self.weight]).movedim(self.dim, 0)[list(self.places)]
        if self.bias is None:
            return weight, weight.new_zeros(len(self.places))
        return weight, to_cpu_float64(tensors[self.bias])[list(self.places)]


@dataclass(frozen=True)
class Columns:
    """Where one weight reads the values of one head.

    Attributes:
        weight: Qualified name of the weight.
        dim: The dimension that is contracted.
        places: The positions of the dimensions.
    """

    weight: str
    dim: int
    places: tuple[int, ...]


@dataclass(frozen=True)
class HeadBlock:
    """One head: either its values, or its queries and keys.

    Attributes:
        queries: What makes its queries: several where heads of queries share one of keys.
        others: What makes its keys, or its values; several where these are summed, as with adapters.
        readers: What reads its values; none of a head of queries and keys.
    """

    queries: tuple[Rows, ...]
    others: tuple[Rows, ...]
    readers: tuple[Columns, ...]


def head_blocks(view: GroupView) -> list[HeadBlock | None]:
    """The heads of a group of dimensions within heads; none of another group.

    Where one number gives the width of queries, keys and values, they are three parts of one head, and become two: it
    is taken that keys come before values. ``None`` stands for a head that has to lose the same dimensions as others, as
    with rotary embeddings, or where anything but projections and their biases holds values of single dimensions.
    """
    within = view.group.pairing
    if within is None or not within.heads or view.group.weight_norms:
        return []
    found = [_Parts() for _ in range(within.blocks)]
    queries = {(name, dim): set(places) for name, dim, places in within.queries}
    for member, (start, stop), parts in parts_of(view.group):
        asks = queries.get((member.name, member.dim), set())
        for block in range(start, stop):
            found[block].add(member, [own[block - start] for own in parts], asks)
    return [block for parts in found for block in parts.blocks(view)]


@dataclass(eq=False)
class _Parts:
    """What lies in one head, while the members of a group are gone through."""

    queries: list[Rows] = field(default_factory=list)
    others: list[Rows] = field(default_factory=list)
    readers: list[Columns] = field(default_factory=list)
    vectors: dict[tuple[str, tuple[int, ...]], str] = field(default_factory=dict)
    uneven: bool = False

    def add(self, member: Member, places: Sequence[tuple[int, ...]], asks: Collection[int]) -> None:
        """Note what one member has of the head: the places of every dimension."""
        width = len(places[0])
        if any(len(own) != width for own in places):
            self.uneven = True
            return
        for column in range(width):
            own = tuple(one[column] for one in places)
            if member.role == "consumer":
                self.readers.append(Columns(member.name, member.dim, own))
            elif member.role == "producer":
                (self.queries if own[0] in asks else self.others).append(Rows(member.name, member.dim, own, None))
            else:
                self.vectors[layer_of(member.name), own] = member.name

    def blocks(self, view: GroupView) -> list[HeadBlock | None]:
        """The head, or two, if that is all there is to it."""
        queries, others = self._with_biases(self.queries), self._with_biases(self.others)
        biases = {rows.bias for rows in (*queries, *others)}
        matrices = all(view.tensors[one.weight].dim() == 2 for one in (*queries, *others, *self.readers))
        if self.uneven or not matrices or not biases.issuperset(self.vectors.values()):
            return [None]
        if others and self.readers and not queries:
            return [HeadBlock((), others, tuple(self.readers))]
        if len({rows.weight for rows in queries}) != 1:
            return [None]
        if len(others) == 1 and not self.readers:
            return [HeadBlock(queries, others, ())]
        if len(others) == 2 and self.readers:
            keys, values = sorted(others, key=lambda rows: rows.places)
            return [HeadBlock(queries, (keys,), ()), HeadBlock((), (values,), tuple(self.readers))]
        return [None]

    def _with_biases(self, made: Sequence[Rows]) -> tuple[Rows, ...]:
        """With what holds a number for each of the same rows, in the same module; whether it is added is seen later."""
        return tuple(replace(rows, bias=self.vectors.get((layer_of(rows.weight), rows.places))) for rows in made)
