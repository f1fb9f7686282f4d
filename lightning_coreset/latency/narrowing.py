"""One layer at other widths, with an input for it: what is timed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from lightning_coreset._compat import bare_copy
from lightning_coreset.latency.layers import LayerCall
from lightning_coreset.module_specs import module_spec, sizing_tensor
from lightning_coreset.plan import ParameterChange
from lightning_coreset.surgery import apply_changes, registered_tensors


def at_widths(module: nn.Module, call: LayerCall, in_channels: int, out_channels: int) -> nn.Module:
    """A copy of a layer that reads and makes so many channels, without hooks.

    Its weights are the layer's first ones, again from the start where there are more than the layer has.
    """
    layer = bare_copy(module)
    lengths = {
        call.reads.dim: call.reads.positions(in_channels),
        call.makes.dim: call.makes.positions(out_channels),
    }
    tensors = registered_tensors(layer)
    own = tensors[call.weight.rpartition(".")[2]]
    width, changes = own.shape[call.makes.dim], []
    for name, tensor in tensors.items():
        if tensor is own:
            wanted = lengths
        elif tensor.dim() == 1 and tensor.shape[0] == call.makes.of(width):  # biases and statistics
            wanted = {0: out_channels}
        else:
            continue
        kept = {dim: torch.arange(length) % tensor.shape[dim] for dim, length in wanted.items()}
        shape = tuple(wanted.get(dim, length) for dim, length in enumerate(tensor.shape))
        changes.append(ParameterChange(name, tuple(tensor.shape), shape, kept))
    apply_changes(layer, changes)
    return layer


def random_input(call: LayerCall, in_channels: int, like: Tensor) -> Tensor:
    """An input of a layer with so many channels, on the device of ``like``; the global generator is not used."""
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(call.shape_at(in_channels), generator=generator)
    values = values.to(like.device, getattr(torch, call.dtype))
    return values.contiguous(memory_format=torch.channels_last) if call.channels_last else values


def settings_of(module: nn.Module) -> Mapping[str, Any]:
    """What beside its widths a layer's time may depend on: plain attributes, such as its kernel and its stride."""
    found = sizing_tensor(module)
    shape = tuple(found[1].shape) if found is not None else ()
    spec = module_spec(module)
    widths = {*(spec.updated_sizes(vars(module), shape) if shape else ()), *spec.other_sizes}
    plain = {
        name: value
        for name, value in sorted(vars(module).items())
        if not name.startswith("_") and name != "training" and name not in widths and _is_plain(value)
    }
    tensors = {name: str(tensor.dtype) for name, tensor in sorted(registered_tensors(module).items())}
    return {"type": f"{type(module).__module__}.{type(module).__qualname__}", **plain, **tensors}


def _is_plain(value: Any) -> bool:
    if isinstance(value, tuple | list):
        return all(map(_is_plain, value))
    return value is None or isinstance(value, bool | int | float | str)
