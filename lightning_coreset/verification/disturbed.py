"""Other values for what makes removed channels: no output may depend on them.

What reads removed channels of another group stays zero: else each layer would read the ones before, and the values
would grow beyond all bounds in deep networks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import TypeAlias

import torch
from torch import Tensor

from lightning_coreset.structure import Member
from lightning_coreset.verification.made_weights import MadeWeight, Rows, Step
from lightning_coreset.verification.randomised import noise
from lightning_coreset.verification.twin import copy_of_layout
from lightning_coreset.verification.virtual import VirtualWeights

Places: TypeAlias = Sequence[tuple[Member, Tensor]]
"""Members of groups, each with the positions of removed classes in it."""

_SEEN = 64
"""Rows of a weight that tell how large its numbers are."""


def disturbed(
    tensor: Tensor, places: Places, zeros: Places = (), virtual: VirtualWeights | None = None
) -> Callable[[], Tensor]:
    """Makes a copy with other values at some positions; a variance stays positive.

    Args:
        tensor: The tensor.
        places: Where other values go.
        zeros: Where zeros go after that.
        virtual: Makes weights whenever they are read: of a matrix among them the copy is another one.
    """
    if virtual is None or tensor not in virtual or tensor.dim() != 2:
        return partial(_copy, tensor, places, zeros)
    made, generator = virtual.made(tensor), torch.Generator().manual_seed(1)
    steps = [_other_values(made, member, index, generator) for member, index in places]
    steps += [_zeros(made, member, index) for member, index in zeros]
    second = virtual.new(tensor.shape, tensor.dtype, partial(_rows, made, steps))
    return lambda: second


def columns_that_differ(tensor: Tensor, places: Places, zeros: Places) -> Tensor:
    """In which columns of a matrix :func:`disturbed` makes other values, as a mask."""
    found = torch.zeros(tensor.shape[1], dtype=torch.bool)
    for member, index in places:
        found[index if member.dim == 1 else slice(None)] = True
    for member, index in zeros:
        if member.dim == 1:
            found[index] = False
    return found


@torch.no_grad()
def _copy(tensor: Tensor, places: Places, zeros: Places) -> Tensor:
    result = copy_of_layout(tensor)
    generator = torch.Generator().manual_seed(1)
    for member, index in places:
        index = index.to(tensor.device)
        part = result.index_select(member.dim, index)
        # Of the other sign, so that one of both passes a ReLU; and random, or it could cancel out in a norm.
        affine = member.role == "channelwise"
        other = _scaled(part) if affine else _size(part) * noise(part, generator) - part
        result.index_copy_(member.dim, index, other)
    for member, index in zeros:
        result.index_fill_(member.dim, index.to(tensor.device), 0.0)
    return result


def _scaled(part: Tensor) -> Tensor:
    return part * 1.7 + 0.1


def _size(part: Tensor) -> Tensor:
    return part.std(correction=0).clamp_min(0.1) * 0.5


def _rows(made: MadeWeight, steps: Iterable[Step], which: Rows) -> Tensor:
    content = made.rows(which).clone()
    for step in steps:
        step(content, which)
    return content


def _other_values(made: MadeWeight, member: Member, index: Tensor, generator: torch.Generator) -> Step:
    """The same on some rows; the noise is a product of two vectors, which are all that has to be kept of it."""
    shape, dim = made.memory.shape, member.dim
    if member.role == "channelwise":
        return _at(shape, dim, index, lambda part, which: _scaled(part))
    seen = index if dim == 0 else torch.arange(shape[0])
    part = made.rows(seen[:: max(len(seen) // _SEEN, 1)])
    along, across = (torch.randn(length, generator=generator, dtype=part.dtype) for length in shape)
    along = along * (_size(part) if dim == 0 else _size(part[:, index]))
    across = across if dim == 0 else across[index]
    return _at(shape, dim, index, lambda part, which: torch.outer(along[which], across) - part)


def _zeros(made: MadeWeight, member: Member, index: Tensor) -> Step:
    return _at(made.memory.shape, member.dim, index, lambda part, which: torch.zeros_like(part))


def _at(shape: Sequence[int], dim: int, index: Tensor, other: Callable[[Tensor, Rows], Tensor]) -> Step:
    """Writes other values into some rows, or into some columns, of rows of a matrix."""
    if dim == 1:
        return lambda content, which: content.index_copy_(1, index, other(content.index_select(1, index), which))
    places = torch.arange(shape[0])
    within = torch.zeros(shape[0], dtype=torch.bool)
    within[index] = True

    def write(content: Tensor, which: Rows) -> None:
        here = within[which].nonzero().squeeze(1)
        content.index_copy_(0, here, other(content.index_select(0, here), places[which][here]))

    return write
