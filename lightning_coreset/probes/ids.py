"""Which elements of the inputs are rows of embeddings, and ids made up for them."""

from __future__ import annotations

import torch
from torch import Generator, Tensor

from lightning_coreset.probes.leaf import IdRange, Leaf
from lightning_coreset.probes.tracking import Numbers
from lightning_coreset.structure import OpCall

_EMBEDDINGS = ("embedding", "_embedding_bag", "_embedding_bag_forward_only")
_UNLIMITED = torch.iinfo(torch.int64).max


class IdRanges:
    """The range of every element of the inputs that has entered an embedding so far.

    Args:
        numbers: Which elements tensors hold.
        values: The inputs, as they were before the network ran.
    """

    def __init__(self, numbers: Numbers, values: list[Tensor]) -> None:
        self._numbers = numbers
        self._values = torch.cat([_as_whole(value).flatten().cpu() for value in values]) if values else torch.empty(0)
        self._ends: dict[int, Tensor] = {}
        self._paddings: dict[int, Tensor] = {}

    def note(self, call: OpCall) -> bool:
        """Note the ids that a call looks up; returns whether it looks up any elements of inputs."""
        if call.name not in _EMBEDDINGS:
            return False
        table, places = call.args[:2]
        held = self._numbers.of(places)
        if held is None or self._numbers.of(table) is not None or self._numbers.is_computed(table):
            return False
        held, places = held.flatten().cpu(), places.flatten().cpu()
        padding = call.arguments.get("padding_idx", -1)
        for leaf in self._numbers.leaves_in(held):
            start, stop = self._numbers.starts[leaf : leaf + 2]
            own = (held >= start) & (held < stop)
            # What the network added to a number before the look-up, such as the first row of a field's own part.
            added = places[own] - self._values[held[own]]
            element = held[own] - start
            ends = self._ends.setdefault(leaf, torch.full((stop - start,), _UNLIMITED))
            ends.scatter_reduce_(0, element, table.shape[0] - added, "amin")
            if padding >= 0:
                paddings = self._paddings.setdefault(leaf, torch.full((stop - start,), -1))
                paddings[element] = padding - added
        return True

    def of(self, leaf: int) -> IdRange | None:
        """The range of one input's elements; ``None`` if none of them has entered an embedding."""
        if leaf not in self._ends:
            return None
        shape = self._numbers.shapes[leaf]
        ends = self._ends[leaf]
        paddings = self._paddings.get(leaf, torch.full_like(ends, -1))
        return IdRange(ends.masked_fill(ends == _UNLIMITED, 0).view(shape), paddings.view(shape))


def with_ids(made: Tensor, leaf: Leaf, generator: Generator) -> Tensor:
    """Replace elements that enter embeddings, if any do, by uniform ids without the one for padding."""
    if leaf.ids is None:
        return made
    end, padding = leaf.ids.end, leaf.ids.padding
    if leaf.has_batch:  # an id is for every sample alike, so the narrowest range of all samples holds
        end, padding = end.masked_fill(end == 0, _UNLIMITED).amin(0), padding.amax(0)
        end = end.masked_fill(end == _UNLIMITED, 0)
    skips = (padding >= 0) & (padding < end) & (end > 1)
    uniform = torch.rand(made.shape, generator=generator, dtype=torch.float64)
    ids = (uniform * (end - skips.long())).long()
    ids += skips & (ids >= padding)
    return torch.where((end > 0).to(made.device), ids.to(made.device, made.dtype), made)


def _as_whole(value: Tensor) -> Tensor:
    """Numbers of a tensor that may be rows; those of floats and complex numbers without their fractions."""
    return (value.real if value.is_complex() else value).nan_to_num(0, 0, 0).long()
