"""What a run keeps for its derivatives, in a quarter of the memory.

The run that is differentiated is the highest point of a self-check: torch keeps the activations of all layers, in the
double precision of a trial. All that is asked of the derivatives is whether any number of them is not zero, so two
bytes (bfloat16, whose numbers are as large and as small as those of single precision) will do for what they are
computed of. The run itself computes in double precision as any other.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn

from lightning_coreset._compat import times_written, view_base

_LARGE = 1 << 12
"""Elements from which on a tensor is converted."""
_COMPARING = frozenset(
    f"{name}Backward{number}"
    for name in ("Maximum", "Minimum", "Fmax", "Fmin", "Amax", "Amin", "Clamp", "ClampMin", "ClampMax", "Aminmax")
    for number in range(3)
) | {"MaxBackward1", "MinBackward1", "LinalgVectorNormBackward0", "NormBackward0", "NormBackward1", "CdistBackward0"}
"""Derivatives that ask which of two numbers is larger, and share where they are equal."""


def kept_in_two_bytes() -> AbstractContextManager[Any]:
    """In the block, what is kept for derivatives takes two bytes for each number.

    Parameters stay what they are, for they are there anyway, and so do numbers that bfloat16 cannot hold: an infinite
    number in their place would make derivatives of zero appear to be none.

    Example:
        >>> x = torch.randn(5000, dtype=torch.float64, requires_grad=True)
        >>> with kept_in_two_bytes():
        ...     y = x.exp().sum()
        >>> y.backward()
        >>> bool(torch.allclose(x.grad, x.detach().exp(), rtol=1e-2))
        True
    """
    return torch.autograd.graph.saved_tensors_hooks(_packed, _unpacked)


def compares(outputs: Iterable[Tensor]) -> bool:
    """Whether derivatives depend on comparisons of what is kept, in which rounding makes unequal numbers equal."""
    pending = [one.grad_fn for one in outputs]
    seen: set[Any] = set()
    while pending:
        node = pending.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if node.name() in _COMPARING:
            return True
        pending += [following for following, _ in node.next_functions]
    return False


def forbids_hooks(error: Exception) -> bool:
    """Whether an error says that nothing may be kept in another form, as in a function that ``torch.func`` derives."""
    return "saved tensor hooks" in str(error)


@torch.no_grad()
def _packed(tensor: Tensor) -> tuple[Tensor, int | None]:
    """What is kept of a tensor, and of one that is not converted how many times it was written into."""
    # Not the tensor itself: of a result, it would keep the node that made it, which keeps it. Where gradients are asked
    # of few parameters, nothing else frees such a node, and with it all that was kept before it.
    as_it_is = tensor.detach(), times_written(tensor)
    if tensor.dtype is not torch.float64 or tensor.numel() < _LARGE or tensor.layout is not torch.strided:
        return as_it_is
    if any(isinstance(one, nn.Parameter) for one in (tensor, view_base(tensor))):
        return as_it_is
    if tensor.untyped_storage().nbytes() < tensor.numel() * tensor.itemsize:  # expanded: a copy would be larger
        return as_it_is
    converted = tensor.detach().bfloat16()
    return (converted, None) if bool(converted.isfinite().all()) else as_it_is


@torch.no_grad()
def _unpacked(kept: tuple[Tensor, int | None]) -> Tensor:
    tensor, version = kept
    if version is None:
        return tensor.double()
    if times_written(tensor) != version:  # torch sees to that itself, unless it is told how to keep tensors
        raise NotImplementedError("what is needed for a derivative was written into since")
    return tensor
