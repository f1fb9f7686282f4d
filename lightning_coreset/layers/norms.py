"""Norms of the parts of weights, without copies of the weights."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from lightning_coreset.structure import Member

_RANGE = (1e-16, 1e16)
"""Norms whose squares neither overflow nor underflow in single precision."""
_PIECE = 1 << 17
"""Numbers in a piece of a weight, so that its squares stay in a core's cache."""


def row_norms(matrix: Tensor, p: int = 2) -> Tensor:
    """The norms of the rows of (n, d), float64 (n,)."""
    norms = _norms_of_columns if len(matrix) > 1 and matrix.stride(0) == 1 else torch.linalg.vector_norm
    return _as_precise_as_needed(matrix, lambda rows, dtype: norms(rows, p, dim=1, dtype=dtype))


def _norms_of_columns(matrix: Tensor, p: int, *, dim: int, dtype: torch.dtype) -> Tensor:
    """``vector_norm`` of the rows of a matrix in column-major order, for which torch's own is slow."""
    if p != 2:
        return torch.linalg.vector_norm(matrix, p, dim=dim, dtype=dtype)
    return torch.stack([squares.sum(0) for squares in _squares(matrix.t(), dtype)]).sum(0).sqrt()


def kernel_squares(weight: Tensor) -> Tensor:
    """The squares of a weight (O, I, k), added up over the several positions of its kernel, (O, I)."""
    weight = weight.detach().cpu()
    return torch.cat(list(_added_up(weight, torch.promote_types(weight.dtype, torch.float32))))


def largest_slice_norms(
    weight: Tensor, member: Member, scale: Tensor | None = None, squares: Tensor | None = None
) -> Tensor:
    """Of every class the largest norm, over the outputs of a weight, of what reads it.

    Args:
        weight: (O, I, k).
        member: Where the classes lie along the second dimension.
        scale: What to multiply each output by, (O,).
        squares: Its :func:`kernel_squares`, where they are known.

    Returns:
        float64 (N,).
    """
    scale = torch.ones(len(weight), dtype=torch.float64) if scale is None else scale

    def norms(weight: Tensor, dtype: torch.dtype) -> Tensor:
        known = None if squares is None or squares.dtype != dtype else [squares]
        factors, first, largest = scale.to(dtype).square()[:, None], 0, []
        for piece in known or _added_up(weight, dtype):
            read = member.by_class(piece, dim=1)
            read = read[:, :, 0] if read.shape[2] == 1 else read.sum(dim=2)
            largest.append((read * factors[first : first + len(piece)]).amax(dim=0))
            first += len(piece)
        return torch.stack(largest).amax(dim=0).sqrt()

    return _as_precise_as_needed(weight, norms)


def class_norms(tensor: Tensor, member: Member, p: int = 2) -> Tensor:
    """The norm of every class's part of a tensor, float64 (N,)."""
    rows = tensor.movedim(member.dim, 0)
    return torch.linalg.vector_norm(member.by_class(row_norms(rows.reshape(len(rows), -1), p)), p, dim=1)


def largest_class_norms(tensor: Tensor, member: Member, outputs: Sequence[int]) -> Tensor:
    """The largest norm over the outputs of every class's part of a tensor that reads the classes, float64 (N,).

    Args:
        tensor: A weight.
        member: Where the classes lie.
        outputs: The dimensions of which every index is an output; what lies along others, as a kernel does, is all of
            one output's.
    """
    if tensor.dim() == 1:
        return class_norms(tensor, member)
    slices = tensor.movedim((*outputs, member.dim), tuple(range(len(outputs) + 1))).flatten(0, len(outputs) - 1)
    return largest_slice_norms(slices.reshape(*slices.shape[:2], -1), member)


def _added_up(weight: Tensor, dtype: torch.dtype) -> Iterator[Tensor]:
    """The squares of a weight (O, I, k), added up over its positions, (o, I) for one piece after the other."""
    ones = torch.ones(weight.shape[2], dtype=dtype)
    for squares in _squares(weight, dtype):
        # A product adds up short rows faster than a reduction does.
        yield squares[:, :, 0] if len(ones) == 1 else squares @ ones


def _squares(tensor: Tensor, dtype: torch.dtype) -> Iterator[Tensor]:
    """The squares of one piece of a tensor after the other, all in one buffer, since allocation would dominate."""
    rows = max(_PIECE // max(tensor[0].numel(), 1), 1)
    buffer = torch.empty((min(rows, len(tensor)), *tensor.shape[1:]), dtype=dtype)
    for piece in tensor.split(rows):
        into = buffer[: len(piece)]
        yield torch.mul(piece, piece, out=into) if piece.dtype == dtype else into.copy_(piece).square_()


def in_single_precision(norms: Tensor) -> bool:
    """Whether norms are of a size whose squares neither overflow nor underflow in single precision."""
    return bool(((norms > _RANGE[0]) & (norms < _RANGE[1])).all())


def _as_precise_as_needed(weight: Tensor, norms: Callable[[Tensor, torch.dtype], Tensor]) -> Tensor:
    """Norms of a weight as float64, on the CPU, where they are the same for every device.

    Computed in single precision, which is several times as fast: a relative error of 1e-6 changes no choice that
    depends on them.
    """
    weight = weight.detach().cpu()
    found = norms(weight, torch.promote_types(weight.dtype, torch.float32))
    if not in_single_precision(found):
        found = norms(weight, torch.float64)
    return found.double()
