"""Inputs of which no other number of samples can be made: graphs, packed sequences, single samples."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Generator, Tensor
from torch.nn.utils.rnn import PackedSequence

from lightning_coreset.nested import map_tensors
from lightning_coreset.probes.leaf import IdRange, Leaf
from lightning_coreset.structure import Example


def has_fixed_size(example: Example, leaves: Sequence[Leaf]) -> bool:
    """Whether the rows of the inputs are counted by something that is taken from the example.

    The rows are the nodes of a graph if there is a sparse matrix, a square one over them, or numbers of theirs in a
    tensor that has another length, as edges have; or they are steps of packed sequences; or there is only one sample.
    """
    return _holds_packed_sequence(example.inputs) or any(leaf.is_one_sample or _counts_rows(leaf) for leaf in leaves)


def unbatched(make: Callable[[Leaf, int, Generator], Tensor], leaf: Leaf, generator: Generator) -> Tensor:
    """Make a single sample, which has no batch dimension."""
    uses = [replace(use, dims=tuple(None if dim is None else dim + 1 for dim in use.dims)) for use in leaf.uses]
    ids = None if leaf.ids is None else IdRange(leaf.ids.end[None], leaf.ids.padding[None])
    return make(replace(leaf, value=leaf.value[None], uses=tuple(uses), ids=ids), 1, generator)[0]


def _counts_rows(leaf: Leaf) -> bool:
    value = leaf.value
    if value.layout is not torch.strided:
        return True
    if value.is_floating_point() or value.dtype == torch.bool:
        square = value.dim() == 2 and value.shape[0] == value.shape[1] > 1
        return square and leaf.has_batch and leaf.reader is None
    return leaf.may_hold_places and leaf.is_used_as("index")


def _holds_packed_sequence(inputs: Any) -> bool:
    found: list[Any] = []

    def is_packed(value: Any) -> bool:
        found.extend([value] if isinstance(value, PackedSequence) else [])
        return False

    map_tensors(lambda tensor: tensor, inputs, closed=is_packed)
    return bool(found)
