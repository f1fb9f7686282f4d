"""Norms of the inputs of layers, measured on an example: the radius of the ball of inputs that a certificate covers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from lightning_coreset._compat import without_transforms
from lightning_coreset.module_specs import module_spec, sizing_tensor
from lightning_coreset.structure import Example, plain_execution, preserved, run_with_derivatives, set_mode


@dataclass(frozen=True)
class InputNorms:
    """What an example showed of the inputs of layers, by the qualified name of their weight.

    Attributes:
        norms: The largest norm of an input: of a row for a Linear, of a patch for a convolution.
        first: Weights that read what the first layer reads, the network's own input.
        repeated: Weights of layers that are called more than once in a run.
    """

    norms: Mapping[str, float]
    first: frozenset[str] = frozenset()
    repeated: frozenset[str] = frozenset()


def measure_input_norms(model: nn.Module, example: Example) -> InputNorms:
    """Run a network once, in the first mode of the example, and measure the inputs of its Linears and convolutions.

    Flags, buffers and random states are restored. Layers that are no module of their own, such as a weight used in a
    functional call, are not seen.

    Args:
        model: The network.
        example: How it is run. The radii hold for these inputs only.
    """
    watch = _Watch({id(tensor): name for name, tensor in model.named_parameters()})
    handles = [
        module.register_forward_pre_hook(watch.see, with_kwargs=True)
        for module in model.modules()
        if _weight(module) is not None
    ]
    try:
        with preserved(model), plain_execution():
            set_mode(model, example.modes[0])
            run_with_derivatives(model, example)
    finally:
        for handle in handles:
            handle.remove()
    return InputNorms(watch.radii, frozenset(watch.first - watch.deep), frozenset(watch.repeated))


@dataclass
class _Watch:
    """Sees every call of a layer with a weight."""

    names: Mapping[int, str]
    radii: dict[str, float] = field(default_factory=dict)
    first: set[str] = field(default_factory=set)
    deep: set[str] = field(default_factory=set)
    repeated: set[str] = field(default_factory=set)
    seen: set[str] = field(default_factory=set)
    _origin: torch.UntypedStorage | None = None  # held, so that its address is not given to another tensor

    def see(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        inputs = args[0] if args else next(iter(kwargs.values()), None)
        name = self.names.get(id(_weight(module)))
        if name is None or not isinstance(inputs, Tensor):
            return
        plain = without_transforms(inputs)
        if self._origin is None:
            self._origin = plain.untyped_storage()
        # Views, such as a Flatten's, share the storage.
        own = plain.untyped_storage().data_ptr() == self._origin.data_ptr()
        (self.repeated if name in self.seen else self.seen).add(name)
        (self.first if own else self.deep).add(name)
        if inputs.is_floating_point() and inputs.numel() > 0 and module_spec(module).reads != "indices":
            # In a transform of torch.func, rows lie in an unknown way: the norm of all together is no smaller.
            squares = _squares(module, inputs.detach().double()) if plain is inputs else plain.double().square().sum()
            radius = float(squares.detach().clamp_min(0).amax().sqrt())
            self.radii[name] = max(self.radii.get(name, 0.0), radius)


def _weight(module: nn.Module) -> Tensor | None:
    found = sizing_tensor(module)
    return found[1] if found is not None and found[1].dim() > 1 else None


def _squares(module: Any, inputs: Tensor) -> Tensor:
    """The squared norms of the rows or patches that a layer reads."""
    if module_spec(module).reads != "patches":
        return inputs.square().sum(dim=-1)
    # A convolution of the squares with a kernel of ones: it knows strides, paddings and dilations by itself.
    squares = inputs.square()
    if squares.dim() == len(module.kernel_size) + 1:  # a single image without a batch
        squares = squares[None]
    squares = squares.unflatten(1, (module.groups, -1)).sum(dim=2)
    ones = squares.new_ones(module.groups, 1, *module.kernel_size)
    options = {"stride": module.stride, "dilation": module.dilation, "groups": module.groups}
    convolve: Callable[..., Tensor]
    if module.transposed:
        convolve = getattr(functional, f"conv_transpose{len(module.kernel_size)}d")
        return convolve(squares, ones, padding=module.padding, output_padding=module.output_padding, **options)
    convolve = getattr(functional, f"conv{len(module.kernel_size)}d")
    if module.padding_mode == "zeros":
        return convolve(squares, ones, padding=module.padding, **options)
    padded = functional.pad(squares, _padding_of_each_side(module), mode=module.padding_mode)
    return convolve(padded, ones, **options)


def _padding_of_each_side(module: Any) -> list[int]:
    """The padding of a convolution as ``functional.pad`` takes it: before and after, from the last dimension on."""
    kernel, dilation, padding = module.kernel_size, module.dilation, module.padding
    if padding == "same":
        total = [step * (size - 1) for step, size in zip(dilation, kernel, strict=True)]
        sides = [(both // 2, both - both // 2) for both in total]
    else:
        sides = [(0, 0) if padding == "valid" else (int(size), int(size)) for size in padding]
    return [size for pair in reversed(sides) for size in pair]
