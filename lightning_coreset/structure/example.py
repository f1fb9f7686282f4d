"""An example of how a network is run: inputs, and the call that takes them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from lightning_coreset._compat import tree_map

ExampleInputs: TypeAlias = Tensor | tuple[Any, ...] | Mapping[str, Any]
"""A tensor, a tuple of positional arguments or a mapping of keyword arguments for ``model.forward``."""


def call(model: nn.Module, example_inputs: ExampleInputs) -> Any:
    """Call the model on example inputs.

    Raises:
        ValueError: If they are neither a tensor nor a tuple nor a mapping.
    """
    if isinstance(example_inputs, Tensor):
        return model(example_inputs)
    if isinstance(example_inputs, Mapping):
        return model(**example_inputs)
    if isinstance(example_inputs, (tuple, list)):
        return model(*example_inputs)
    raise ValueError(
        "Expected example_inputs to be a tensor, a tuple of positional arguments or a dict of keyword arguments, "
        f"but got {type(example_inputs).__name__}."
    )


@dataclass(frozen=True, eq=False)
class Example:
    """Inputs for a network and how to run it on them.

    Attributes:
        inputs: Any nest of tensors.
        run: Takes the network, or a copy of it, and the inputs; what it returns counts as the network's output.
        batch_size: Samples in ``inputs``, for multiply-accumulates per sample.
    """

    inputs: Any
    run: Callable[[nn.Module, Any], Any] = call
    batch_size: int = 1

    @classmethod
    def of(cls, example_inputs: ExampleInputs) -> Example:
        """The example of a user's inputs; the first tensor's first dimension counts as the batch.

        Inference tensors, which cannot be followed, are copied.
        """
        with torch.inference_mode(False):
            inputs = tree_map(lambda leaf: leaf.clone() if _is_inference(leaf) else leaf, example_inputs)
        batch = next((tensor.shape[0] for tensor in tensors_in(inputs) if tensor.dim() > 0), 1)
        return cls(inputs, batch_size=batch)

    def other(self, generator: torch.Generator) -> Example:
        """An example of the same shapes with other floating values; whole numbers (tokens, targets) stay."""

        def redraw(leaf: Any) -> Any:
            if not isinstance(leaf, Tensor) or not leaf.is_floating_point() or leaf.numel() < 2:
                return leaf
            noise = torch.randn(leaf.shape, generator=generator).to(leaf.device, leaf.dtype)
            return leaf.flip(0) + leaf.std() * noise

        return replace(self, inputs=tree_map(redraw, self.inputs))

    def to(self, dtype: torch.dtype) -> Example:
        """The example with its floating tensors in another precision."""
        floating = tree_map(lambda leaf: leaf.to(dtype) if _is_floating(leaf) else leaf, self.inputs)
        return replace(self, inputs=floating)


def tensors_in(value: Any, depth: int = 6) -> Iterator[Tensor]:
    """All tensors in nested containers, dataclasses and plain objects."""
    if isinstance(value, Tensor):
        yield value
    elif depth == 0 or isinstance(value, (str, bytes, int, float, bool, nn.Module, type(None))):
        return
    elif isinstance(value, Mapping):
        for one in value.values():
            yield from tensors_in(one, depth - 1)
    elif isinstance(value, (list, tuple, set)):
        for one in value:
            yield from tensors_in(one, depth - 1)
    elif dataclasses.is_dataclass(value) or hasattr(value, "__dict__"):
        for one in vars(value).values():
            yield from tensors_in(one, depth - 1)


def _is_floating(leaf: Any) -> bool:
    return isinstance(leaf, Tensor) and leaf.is_floating_point()


def _is_inference(leaf: Any) -> bool:
    return isinstance(leaf, Tensor) and leaf.is_inference()
