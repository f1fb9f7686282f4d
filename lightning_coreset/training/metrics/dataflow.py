"""What goes from the batch into the networks of a step, and what comes out of them."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from lightning_coreset.nested import Path, tensors_by_path
from lightning_coreset.training.metrics.recorder import Call

_LABEL_ARGUMENTS = {"label", "labels", "target", "targets"}
_LABEL_NAMES = _LABEL_ARGUMENTS | {"y", "class", "classes"}  # in a batch; as an argument, `y` may be a condition


def named_like_a_label(path: Path) -> bool:
    """Whether something in a batch has the name of a label, as ``batch["labels"]`` has."""
    return bool(path) and str(path[-1]).lower() in _LABEL_NAMES


def is_network(call: Call) -> bool:
    """Whether a call is one of a network, not of a function or a loss."""
    return has_parameters(call) and not returns_scalars(call)


def has_parameters(call: Call) -> bool:
    """Whether the module that is called has parameters."""
    return next(call.module.parameters(), None) is not None


def returns_scalars(call: Call) -> bool:
    """Whether a call returns only scalars, as losses do."""
    return all(tensor.ndim == 0 for tensor in tensors_by_path(call.output).values())


def outputs_of(output: Any) -> dict[Path, Tensor]:
    """The tensors that a call returned; only ``logits`` if one has that name, as in Hugging Face's outputs."""
    tensors = tensors_by_path(output)
    return {("logits",): tensors[("logits",)]} if ("logits",) in tensors else tensors


def inputs_of(call: Call) -> list[Tensor]:
    """The tensors that go into a call, except labels: some networks take them to return the loss with the logits."""
    names = [*inspect.signature(call.module.forward).parameters]
    names += [""] * (len(call.args) - len(names))  # of *args
    inputs = [*zip(names, call.args, strict=False), *call.kwargs.items()]
    return list(tensors_by_path([value for name, value in inputs if name.lower() not in _LABEL_ARGUMENTS]).values())


def not_read_by_networks(calls: Sequence[Call], batch: Any) -> dict[Path, Tensor]:
    """The tensors of a batch that go into no network, except as labels."""
    inputs = {_identity(tensor) for call in calls if not returns_scalars(call) for tensor in inputs_of(call)}
    return {path: tensor for path, tensor in tensors_by_path(batch).items() if _identity(tensor) not in inputs}


def not_read_later(call: Call, later: Sequence[Call]) -> dict[Path, Tensor]:
    """The tensors that a call returned and that go into none of the later calls."""
    read = {storage(tensor) for other in later for tensor in inputs_of(other)}
    return {path: tensor for path, tensor in outputs_of(call.output).items() if storage(tensor) not in read}


def storage(tensor: Tensor) -> int:
    """The address of a tensor's memory, which its views share; of a sparse tensor what tells it from others."""
    return tensor.untyped_storage().data_ptr() if tensor.layout is torch.strided else id(tensor)


def _identity(tensor: Tensor) -> tuple[int, torch.Size]:
    return tensor.data_ptr() if tensor.layout is torch.strided else id(tensor), tensor.shape
