"""Dimensions within attention heads that rotate: combinations of all stand for those that stay.

The bases are those of :mod:`lightning_coreset.coreset.head_bases`.

Shapes: N dimensions of a head, m of which stay; R samples.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from lightning_coreset.coreset import query_key_bases, value_basis
from lightning_coreset.layers import Columns, GroupView, HeadBlock, MeasuredReader, Rows, head_blocks, to_cpu_float64
from lightning_coreset.moments import LayerInput, MeasuredInputs
from lightning_coreset.structure import Member

_SIZE = 2.0
"""Of queries, keys and values where two networks are compared."""


@dataclass(frozen=True, eq=False)
class Rotation:
    """New bases for the heads of a group, each with the most important direction first.

    Attributes:
        view: The group.
        blocks: Its heads; ``None`` for one that stays in its basis.
        bases: Of keys or values, (N, N) in terms of the old, and of queries, with ``queries.T @ others`` the identity.
        gains: What makes the dimensions of a head as large as is wanted for a comparison, by what makes them.
    """

    view: GroupView
    blocks: Sequence[HeadBlock | None]
    bases: Sequence[tuple[Tensor, Tensor]]
    gains: Mapping[Rows, float]

    @property
    def moves(self) -> bool:
        """Whether any head rotates."""
        return any(block is not None for block in self.blocks)

    @property
    def turns_all(self) -> bool:
        """Whether every head rotates."""
        return all(block is not None for block in self.blocks)

    @property
    def turns_values(self) -> bool:
        """Whether everything that reads the group reads a head that rotates."""
        read = self.read
        members = self.view.group.by_role("consumer")
        return all(columns in read for member in members for columns in _columns_of(member))

    @property
    def read(self) -> dict[Columns, Tensor]:
        """The new basis of what every reader of a head that rotates reads."""
        return {columns: others for block, (others, _) in self.moving() for columns in block.readers}

    def only_values(self) -> Rotation:
        """The same with queries and keys in their own basis."""
        blocks = [block if block is not None and block.readers else None for block in self.blocks]
        return replace(self, blocks=blocks)

    def in_place_of(self, view: GroupView, kept: Tensor) -> dict[str, Tensor]:
        """New contents of whole tensors, in which the leading directions are in the places of those that stay."""
        updates: dict[str, Tensor] = {}
        for block, (others, queries) in self.moving():
            for rows in (*block.others, *block.queries):
                basis = torch.zeros_like(others)  # queries of what goes add nothing to products until it is gone
                basis[kept] = (queries if rows in block.queries else others)[: len(kept)]
                write_rows(updates, view.tensors, rows, basis)
        return updates

    def samples_for(self, readers: Sequence[MeasuredReader], kept: Tensor) -> dict[str, Tensor]:
        """What the readers will read, by the name of the weight, (R, m, q, 1)."""
        bases, found = self.read, {}
        for reader in readers:
            old = reader.samples()
            new = old[:, kept].clone()
            for column, columns in enumerate(_columns_of(reader.columns)):
                if columns in bases:
                    new[:, :, column, 0] = old[:, :, column, 0] @ bases[columns][: len(kept)].T.to(old)
            found[reader.layer.weight] = new
        return found

    def moving(self) -> Iterator[tuple[HeadBlock, tuple[Tensor, Tensor]]]:
        """The heads that rotate, with their bases."""
        for block, bases in zip(self.blocks, self.bases, strict=True):
            if block is not None:
                yield block, bases


def rotation(view: GroupView, measured: MeasuredInputs, *, ridge: float) -> Rotation | None:
    """The best bases of a group's heads; ``None`` if none can be told."""
    blocks: list[HeadBlock | None] = []
    bases: list[tuple[Tensor, Tensor]] = []
    gains: dict[Rows, float] = {}
    for block in head_blocks(view):
        made = {} if block is None else _made_by(block, view, measured.layers)
        found = None if block is None or made is None else _bases(block, made, view, measured.layers, ridge)
        blocks.append(None if found is None else block)
        bases.append(found or (torch.empty(0), torch.empty(0)))
        gains |= _gains(block, made) if block is not None and made is not None else {}
    rotated = Rotation(view, blocks, bases, gains)
    return rotated if rotated.moves else None


def _bases(
    block: HeadBlock, made: Mapping[Rows, Tensor], view: GroupView, layers: Mapping[str, LayerInput], ridge: float
) -> tuple[Tensor, Tensor] | None:
    if block.readers:
        basis = _of_values(block.readers, view, layers, ridge)
        return None if basis is None else (basis, torch.empty(0))
    queries, keys = [made[rows] for rows in block.queries], made[block.others[0]]
    asked = torch.stack([one.T @ one / len(one) for one in queries]).sum(dim=0)
    # What all keys have in common adds the same to all products of a query, which softmax ignores.
    keys = keys - keys.mean(dim=0)
    of_queries, of_keys = query_key_bases(asked, keys.T @ keys / len(keys), ridge=ridge)
    return of_keys, of_queries


def _of_values(
    readers: Sequence[Columns], view: GroupView, layers: Mapping[str, LayerInput], ridge: float
) -> Tensor | None:
    """The basis of the values of a head: what matters most to its readers first."""
    covariance, importance = None, None
    for columns in readers:
        read = layers.get(columns.weight)
        if read is None or read.groups > 1 or read.stored.shape[2] != 1:
            return None
        rows = read.rows[:, list(columns.places), 0].double()
        rows = rows - rows.mean(dim=0) if read.bias is not None else rows
        weights = to_cpu_float64(view.tensors[columns.weight]).movedim(columns.dim, 0)[list(columns.places)]
        second, wanted = rows.T @ rows / len(rows), weights @ weights.T
        covariance = second if covariance is None else covariance + second
        importance = wanted if importance is None else importance + wanted
    assert covariance is not None and importance is not None  # noqa: PT018 - there is a reader
    return value_basis(covariance, importance, ridge=ridge)


def _made_by(block: HeadBlock, view: GroupView, layers: Mapping[str, LayerInput]) -> dict[Rows, Tensor] | None:
    """Samples of what the projections of a head make, (R, N) each; ``None`` if what one of them reads is not known."""
    found = {}
    for rows in (*block.queries, *block.others):
        read = layers.get(rows.weight)
        weight, constant = rows.matrix(view.tensors)
        if read is None or read.groups > 1 or read.stored.shape[1:] != (weight.shape[1], 1):
            return None
        found[rows] = read.rows[:, :, 0].double() @ weight.T + constant
    return found


def _gains(block: HeadBlock, made: Mapping[Rows, Tensor]) -> dict[Rows, float]:
    """What brings the dimensions of a head to a size of about two; parts that are summed by one factor."""
    gains: dict[Rows, float] = {}
    for together in (block.queries, block.others):
        size = sum(float(made[rows].square().mean()) for rows in together) ** 0.5
        gains |= dict.fromkeys(together, _SIZE / size if size > 0 else 1.0)
    return gains


def own_copy(updates: dict[str, Tensor], tensors: Mapping[str, Tensor], name: str) -> Tensor:
    """The new contents of a tensor, float64, to write into."""
    if name not in updates:
        updates[name] = to_cpu_float64(tensors[name]).clone()
    return updates[name]


def write_rows(updates: dict[str, Tensor], tensors: Mapping[str, Tensor], rows: Rows, basis: Tensor) -> None:
    """Put combinations of the rows of a head in their place."""
    weight, constant = rows.matrix(tensors)
    places = list(rows.places)
    own_copy(updates, tensors, rows.weight).movedim(rows.dim, 0)[places] = basis @ weight
    if rows.bias is not None:
        own_copy(updates, tensors, rows.bias)[places] = basis @ constant


def _columns_of(member: Member) -> Iterator[Columns]:
    """What one consumer reads, head by head."""
    return (Columns(member.name, member.dim, tuple(places)) for places in member.positions.T.tolist())
