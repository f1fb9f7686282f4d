"""The layers whose time depends on their widths, and how each is called in a network."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from lightning_coreset._compat import BatchOrInstanceNorm, Convolution, own_tensors
from lightning_coreset.state import restored
from lightning_coreset.structure import Example, preserved_random
from lightning_coreset.surgery import registered_tensors


@dataclass(frozen=True)
class LayerShape:
    """One layer at some widths, as a function that is given as ``latency`` sees it.

    Attributes:
        name: Qualified name of the module.
        kind: The name of its type, such as ``"Conv2d"``.
        in_channels: Channels that it reads; features of a ``Linear``.
        out_channels: Channels that it makes; of a normalisation the same as ``in_channels``.
        input_shape: Shape of its input, batch first, with ``in_channels`` channels.
        module: The module itself, to read what a time may depend on beside these, such as ``module.kernel_size``. Its
            own sizes are those of now, not the widths that are asked for. Not to be changed.
    """

    name: str
    kind: str
    in_channels: int
    out_channels: int
    input_shape: tuple[int, ...]
    module: nn.Module = field(repr=False, compare=False)


Latency: TypeAlias = Callable[[LayerShape], float]
"""The seconds that one call of a layer takes at some widths."""


@dataclass(frozen=True)
class Width:
    """Where a layer's width stands in its weight.

    Attributes:
        dim: The dimension of the weight.
        multiple: Channels for each position along it: several in a grouped convolution.
        divisor: Positions for each channel: several where a depthwise convolution makes several channels of each.
    """

    dim: int
    multiple: int = 1
    divisor: int = 1

    def of(self, length: float) -> int:
        """The width with so many positions."""
        return round(length * self.multiple / self.divisor)

    def positions(self, width: int) -> int:
        """The positions of so many channels."""
        return width * self.divisor // self.multiple


@dataclass(frozen=True)
class LayerCall:
    """How a network calls one of its layers; plain data.

    Attributes:
        layer: Qualified name of the module.
        kind: The name of its type.
        weight: Qualified name of the tensor whose shape has the widths.
        reads: Where the weight has the channels that the layer reads.
        makes: Where it has those that the layer makes.
        in_channels: Channels that it reads in the network as it was looked at.
        out_channels: Channels that it makes there.
        input_shape: The shape of its input there.
        channel_dim: The dimension of the channels in that shape, from the end.
        dtype: The input's type.
        channels_last: Whether the input lies in memory with its channels last.
        count: How often the network calls it like this.
    """

    layer: str
    kind: str
    weight: str
    reads: Width
    makes: Width
    in_channels: int
    out_channels: int
    input_shape: tuple[int, ...]
    channel_dim: int
    dtype: str
    channels_last: bool = False
    count: int = 1

    def shape_at(self, in_channels: int) -> tuple[int, ...]:
        """The shape of the input with so many channels."""
        shape = list(self.input_shape)
        shape[self.channel_dim] = in_channels
        return tuple(shape)


def called_layers(model: nn.Module, example: Example) -> tuple[LayerCall, ...]:
    """Run a network in evaluation mode, and note how it calls its layers; the network is as before afterwards.

    Left out is what has no widths that are known: types of modules other than torch's convolutions, ``Linear`` and
    normalisations, those with a ``forward`` of their own on the instance or a weight that is computed, and weights that
    are used without a call of their module.
    """
    names = {id(tensor): name for name, tensor in reversed(registered_tensors(model).items())}
    calls: Counter[LayerCall] = Counter()

    def note(name: str, module: nn.Module, inputs: tuple[Any, ...]) -> None:
        call = _call(name, module, names, inputs)
        if call is not None:
            calls[call] += 1

    with evaluated(model):
        handles = [
            module.register_forward_pre_hook(partial(_noted, note, name))
            for name, module in model.named_modules()
            if _tensor_of(module) is not None
        ]
        try:
            example.run(model, example.inputs)
        finally:
            for handle in handles:
                handle.remove()
    return tuple(replace(call, count=count) for call, count in calls.items())


def _noted(note: Callable[..., None], name: str, module: nn.Module, inputs: tuple[Any, ...]) -> None:
    note(name, module, inputs)  # a hook that returns something would change the inputs


@contextmanager
def evaluated(*models: nn.Module) -> Iterator[None]:
    """Run the block with networks in evaluation mode and without gradients; what it does to them is undone.

    But for writes into parameters, for which every operation would have to be looked at, and would take longer.
    """
    with ExitStack() as stack:
        for model in models:
            stack.enter_context(preserved_random(model))
            stack.enter_context(restored(model, watch=False))
            model.eval()
        stack.enter_context(torch.inference_mode())
        yield


def _call(name: str, module: nn.Module, names: Mapping[int, str], inputs: tuple[Any, ...]) -> LayerCall | None:
    tensor = _tensor_of(module)
    first = inputs[0] if inputs else None
    if tensor is None or id(tensor) not in names or not isinstance(first, Tensor):
        return None
    reads, makes, dim = _geometry(module, tensor, first.dim())
    width = reads.of(tensor.shape[reads.dim])
    if first.dim() < -dim or first.shape[dim] != width:
        return None
    return LayerCall(
        layer=name,
        kind=type(module).__name__,
        weight=names[id(tensor)],
        reads=reads,
        makes=makes,
        in_channels=width,
        out_channels=makes.of(tensor.shape[makes.dim]),
        input_shape=tuple(first.shape),
        channel_dim=dim,
        dtype=str(first.dtype).removeprefix("torch."),
        channels_last=_is_channels_last(first),
    )


def _is_channels_last(tensor: Tensor) -> bool:
    return tensor.dim() == 4 and not tensor.is_contiguous() and tensor.is_contiguous(memory_format=torch.channels_last)


def _tensor_of(module: nn.Module) -> Tensor | None:
    """The tensor whose shape has the widths; ``None`` for a module that is not known."""
    if "forward" in vars(module) or any(True for _ in module.children()):
        return None
    name = "running_mean" if isinstance(module, BatchOrInstanceNorm) else "weight"
    own = own_tensors(module)
    tensor = own.get(name) if own.get(name) is not None else own.get("weight")
    if isinstance(module, nn.LayerNorm | nn.RMSNorm) and len(module.normalized_shape) != 1:
        return None
    known = (Convolution, nn.Linear, BatchOrInstanceNorm, nn.GroupNorm, nn.LayerNorm, nn.RMSNorm)
    return tensor if isinstance(module, known) or _is_conv1d(module) else None


def _is_conv1d(module: nn.Module) -> bool:
    """Whether it is the layer of that name in transformers, a ``Linear`` with a transposed weight."""
    return type(module).__name__ == "Conv1D" and type(module).__module__.startswith("transformers.")


def _geometry(module: Any, tensor: Tensor, dims: int) -> tuple[Width, Width, int]:
    """Where the weight has the widths read and made, and the dimension of the input's channels, from the end."""
    if isinstance(module, Convolution):
        reads, makes = _convolution_widths(module, tensor)
        return reads, makes, -1 - len(module.kernel_size)
    if isinstance(module, nn.Linear):
        return Width(1), Width(0), -1
    if _is_conv1d(module):
        return Width(0), Width(1), -1
    return Width(0), Width(0), -1 if isinstance(module, nn.LayerNorm | nn.RMSNorm) else 1 - dims


def _convolution_widths(module: Any, tensor: Tensor) -> tuple[Width, Width]:
    groups = module.groups
    if groups > 1 and groups == module.in_channels:  # depthwise: it has as many groups as channels
        more = module.out_channels // module.in_channels
        return (Width(0), Width(0, more)) if module.transposed else (Width(0, divisor=more), Width(0))
    inner = Width(1, groups)
    return (Width(0), inner) if module.transposed else (inner, Width(0))
