"""Batches of any make: kept on the CPU, cut to a few samples where that is safe, and fresh for every run."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from lightning_coreset.nested import map_tensors, tensors_in

_SAMPLES = 8
"""A few samples show the same structure as the whole batch, and take less time and memory."""


def first_samples(batch: Any) -> Any:
    """The first samples of a batch that holds only tensors of one length; any other batch as it is."""
    leaves: list[Any] = []
    try:
        map_tensors(leaves.append, batch, leaves.append)
        if not leaves or not all(isinstance(leaf, Tensor) and leaf.dim() > 0 for leaf in leaves):
            return batch
        if len({len(leaf) for leaf in leaves}) > 1:
            return batch
        return map_tensors(lambda tensor: tensor[:_SAMPLES].clone(), batch)
    except Exception:  # a container that knows its own length, such as a TensorDict
        return batch


def shallow(batch: Any) -> Any:
    """The same tensors in other containers, from which a step may remove items."""
    try:
        return map_tensors(lambda tensor: tensor, batch)
    except Exception:
        return batch


def device_of(pl_module: Any) -> torch.device:
    """Where the weights of a LightningModule are.

    Its own ``device`` is where it was last moved as a whole: outside of a fit its parts may be elsewhere.
    """
    places = [parameter.device for parameter in pl_module.parameters()]
    return pl_module.device if pl_module.device in places or not places else places[0]


def on_device(batch: Any, device: torch.device | str) -> Any:
    """A batch on another device; the original is not changed.

    Unlike Lightning's ``move_data_to_device``, which refuses frozen dataclasses, and changes the original where its own
    ``to`` does, as those of Hugging Face and graph batches do.
    """

    def move(value: Any) -> Any:
        if not _moves_itself(value):
            return value
        own = copy.copy(value)
        moved = own.to(device)
        return own if moved is None else moved

    return map_tensors(lambda tensor: tensor.to(device), batch, move, _moves_itself)


def fresh(batch: Any) -> Any:
    """A copy for one run: a step may write to its tensors, or remove items as ``batch.pop("labels")`` does."""
    return map_tensors(Tensor.clone, batch, _copied, _moves_itself)


def _copied(value: Any) -> Any:
    """A copy of an object that holds tensors, if it can be copied."""
    try:
        return copy.deepcopy(value) if next(tensors_in(value), None) is not None else value
    except Exception:
        return value


def _moves_itself(value: Any) -> bool:
    """Whether it is an object with tensors that has its own way of moving them: graph batches, TensorDicts."""
    return callable(getattr(value, "to", None)) and not isinstance(value, Tensor | nn.Module | type)
