"""An example of how a network is run: inputs, and the call that takes them."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple, TypeAlias

import torch
from torch import Tensor, nn

from lightning_coreset.nested import map_tensors, tensors_in

ExampleInputs: TypeAlias = Tensor | tuple[Any, ...] | Mapping[str, Any]
"""A tensor, a tuple of positional arguments or a mapping of keyword arguments for ``model.forward``."""

RunMode: TypeAlias = Literal["evaluation", "training"]
BOTH_MODES: tuple[RunMode, ...] = ("evaluation", "training")


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


def output_tensors(output: Any) -> list[Tensor]:
    """The tensors in what a network returns; they keep their shapes when it is pruned.

    Models of Hugging Face's transformers with a head return what they made on the way as well: hidden states,
    attentions, key-value caches, the outputs of their parts. Beside logits or a loss, these do not count.
    """
    if not _is_model_output(output):
        return list(tensors_in(output))
    fields = dict(output.items())
    if any("logits" in name or "loss" in name for name in fields):
        fields = {name: value for name, value in fields.items() if not _on_the_way(name, value)}
    return list(tensors_in(fields))


def _is_model_output(value: Any) -> bool:
    """Whether it is one of transformers' outputs, without an import of the package."""
    return isinstance(value, Mapping) and any(
        cls.__name__ == "ModelOutput" and cls.__module__.startswith("transformers.") for cls in type(value).__mro__
    )


_ON_THE_WAY = ("hidden_state", "hidden_states", "attentions", "past_key_values", "cache", "cache_params", "mems")


def _on_the_way(name: str, value: Any) -> bool:
    return _is_model_output(value) or name.endswith(_ON_THE_WAY)


class StepOutputs(NamedTuple):
    """What a step of training makes.

    Attributes:
        numbers: What it returns and logs. Single numbers among them are losses, parts of these, and measurements.
        features: What the network's own ``forward`` returned within it, of which others make use.
    """

    numbers: Sequence[Tensor]
    features: Sequence[Tensor] = ()


@dataclass(frozen=True, eq=False)
class Example:
    """Inputs for a network and how to run it on them.

    Attributes:
        inputs: Any nest of tensors.
        run: Takes the network, or a copy of it, and the inputs; what it returns counts as the network's output.
        batch_size: Samples in ``inputs``, for multiply-accumulates per sample.
        modes: The modes in which the network is run on them. One that fails is left out if the other works.
        needed: Asked right before the network is run on them, with the names of all parameters and buffers that the
            examples before have used: whether it would show something new.
    """

    inputs: Any
    run: Callable[[nn.Module, Any], Any] = call
    batch_size: int = 1
    modes: tuple[RunMode, ...] = BOTH_MODES
    needed: Callable[[Collection[str]], bool] = lambda used: True

    @classmethod
    def of(cls, example_inputs: ExampleInputs) -> Example:
        """The example of a user's inputs; the first tensor's first dimension counts as the batch.

        Inference tensors, which cannot be followed, are copied.
        """
        with torch.inference_mode(False):
            inputs = map_tensors(lambda tensor: tensor.clone() if tensor.is_inference() else tensor, example_inputs)
        batch = next((tensor.shape[0] for tensor in tensors_in(inputs) if tensor.dim() > 0), 1)
        return cls(inputs, batch_size=batch)

    def other(self, generator: torch.Generator) -> Example:
        """An example of the same shapes with other floating values; whole numbers (tokens, targets) and edges stay.

        Those that are all 0, or another number above 1, become 0 and this number (1): of equal tokens, attention is the
        same whatever it computes.
        """

        def redraw(tensor: Tensor) -> Tensor:
            if tensor.numel() < 2 or tensor.is_complex() or tensor.dtype == torch.bool:
                return tensor
            if tensor.layout is not torch.strided:  # the edges of a graph
                return tensor
            if not tensor.is_floating_point():
                value = int(tensor.reshape(-1)[0])
                if value in (1, -1) or bool((tensor != value).any()):  # a mask of ones stays
                    return tensor
                drawn = torch.randint(0, 2, tensor.shape, generator=generator).to(tensor.device, tensor.dtype)
                return drawn * (value or 1)
            noise = torch.randn(tensor.shape, generator=generator).to(tensor.device, tensor.dtype)
            spread = tensor.std()
            return tensor.flip(0) + (spread if bool(spread > 0) else 1.0) * noise

        return replace(self, inputs=map_tensors(redraw, self.inputs))

    def part(self, start: int, count: int) -> Example:
        """Some of the samples: what has no batch dimension stays whole."""
        batched = {
            id(tensor) for tensor in tensors_in(self.inputs) if tensor.dim() > 0 and len(tensor) == self.batch_size
        }
        stop = min(start + count, self.batch_size)
        inputs = map_tensors(lambda one: one[start:stop] if id(one) in batched else one, self.inputs)
        return replace(self, inputs=inputs, batch_size=stop - start)

    def to(self, dtype: torch.dtype) -> Example:
        """The example with its floating tensors in another precision."""

        def convert(tensor: Tensor) -> Tensor:
            return tensor.to(dtype) if tensor.is_floating_point() else tensor

        return replace(self, inputs=map_tensors(convert, self.inputs))


Examples: TypeAlias = Example | Sequence[Example]
"""One way of running a network, or several: what holds for its channels has to hold in all of them."""


def as_examples(examples: Examples) -> tuple[Example, ...]:
    """The examples, also if it is only one."""
    return (examples,) if isinstance(examples, Example) else tuple(examples)
