"""Copies of all weights in one vector, which no event can cut: refused before the first one."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from torch import Tensor, nn

from lightning_coreset.held_tensors import held_by, path_name

_NEAR = 0.5
"""How far the values of a copy may be from the weights, relative to these; other vectors are none."""


def check_no_flat_copies(module: nn.Module, callbacks: Iterable[Any]) -> None:
    """Raise ``MisconfigurationException`` if a module or a callback holds its weights as one vector.

    As an average made with ``torch.nn.utils.parameters_to_vector`` is: once a channel is gone it fits no more.
    """
    parameters = [one.detach() for one in module.parameters()]
    if len(parameters) < 2 or any(one.is_meta or nn.parameter.is_lazy(one) for one in module.parameters()):
        return
    total = sum(one.numel() for one in parameters)
    for name, tensor in _vectors(module, callbacks):
        if tensor.numel() == total and _is_near(tensor, parameters):
            raise MisconfigurationException(
                f"Expected copies of weights to be one tensor for each parameter but {name} is a vector of all "
                f"{total:,} numbers of the module's parameters, which a pruning event cannot cut. Keep the copies one "
                "by one, as in [one.detach().clone() for one in self.parameters()], or say "
                "CoresetPruningCallback(copies='none') if it is made anew after the event."
            )


def _vectors(module: nn.Module, callbacks: Iterable[Any]) -> Iterator[tuple[str, Tensor]]:
    for name, buffer in module.named_buffers():
        if buffer.dim() == 1:
            yield name, buffer
    for holder in (module, *callbacks):
        for collection in held_by(holder, module)[0]:
            for key, tensor in collection.tensors.items():
                if tensor.dim() == 1:
                    yield path_name(collection.path_to(key)), tensor


@torch.no_grad()
def _is_near(vector: Tensor, parameters: list[Tensor]) -> bool:
    if not vector.is_floating_point():
        return False
    pieces = vector.detach().split([one.numel() for one in parameters])
    distance = sum(
        float((piece.to(one) - one.flatten()).square().sum()) for piece, one in zip(pieces, parameters, strict=True)
    )
    return distance <= _NEAR**2 * sum(float(one.square().sum()) for one in parameters)
