"""Calls of torch's functions that say more than the operators that they become."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from lightning_coreset.structure.propagation import Propagation


class FollowedCalls(TorchFunctionMode):
    """Tells the engine what a call means that aten takes apart.

    - Attention divides products of queries and keys by the root of their number itself, unless it is given a scale.
    - A Linear is one layer with its bias, also where its input is a view that aten multiplies first and adds a bias to
      afterwards.
    """

    def __init__(self, engine: Propagation) -> None:
        super().__init__()
        self._engine = engine

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is F.linear:
            return _linear(*args, **kwargs)
        if func is F.scaled_dot_product_attention:
            return self._attention(func, args, kwargs)
        return func(*args, **kwargs)

    def _attention(self, func: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        self._engine.scale_is_implicit = kwargs.get("scale") is None
        try:
            return func(*args, **kwargs)
        finally:
            self._engine.scale_is_implicit = False


def _linear(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    if bias is None or input.dim() < 3 or input.is_contiguous():
        return F.linear(input, weight, bias)
    return F.linear(input.contiguous(), weight, bias)
