"""Operators that read fixed positions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from lightning_coreset.structure.labels import TensorInfo
from lightning_coreset.structure.op_call import OpCall
from lightning_coreset.structure.propagation import Propagation
from lightning_coreset.structure.rule_kinds.movement import check_shapes
from lightning_coreset.structure.steps import Step


@dataclass(frozen=True)
class Pinned:
    """The operator reads fixed positions, or computes over them: no single channel along some dimensions may go.

    Channels along the other dimensions of the first argument pass to the results; further tensors are left whole.

    Args:
        dims: Dimensions of the first argument, from the end if negative; ``None`` for all of them.

    Raises:
        ValueError: If ``dims`` are not whole numbers.

    Example:
        Statistics over the last dimension, as in a fused LayerNorm. Channels of images lie along another one:

        >>> import torch
        >>> from lightning_coreset.structure import Pinned, register_rule
        >>> @torch.library.custom_op("shop::standardize", mutates_args=())
        ... def standardize(x: torch.Tensor) -> torch.Tensor:
        ...     return (x - x.mean(-1, keepdim=True)) / x.std(-1, keepdim=True)
        >>> register_rule(torch.ops.shop.standardize, Pinned(dims=(-1,))).remove()
    """

    dims: Sequence[int] | None = None

    def __post_init__(self) -> None:
        if self.dims is not None and not all(isinstance(dim, int) for dim in self.dims):
            raise ValueError(f"Expected dims to be whole numbers or None but got {self.dims!r}.")

    def __call__(self, propagation: Propagation, call: OpCall) -> None:
        """Follow a call."""
        if call.written:
            raise NotImplementedError("it writes into its arguments")
        source = call.tensors[0]
        reason = f"is read at fixed positions ({call.title})"
        for other in call.tensors[1:]:
            propagation.block(other, reason)
        dims = range(source.dim()) if self.dims is None else {dim % source.dim() for dim in self.dims}
        axes = propagation.pin_dims(source, dims, reason)
        info = TensorInfo(axes, producer_paths=propagation.producer_paths(call.tensors, Step(call.name, call.numbers)))
        for result in call.results:
            propagation.set_info(result, info)
        check_shapes(propagation, call)
