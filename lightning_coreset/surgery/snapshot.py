"""Undo surgery: a model as it was before."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from lightning_coreset._compat import renew_weights
from lightning_coreset.module_specs import configs_of, is_size
from lightning_coreset.surgery.apply import replace_data
from lightning_coreset.surgery.model_shapes import ModelShapes
from lightning_coreset.surgery.settling import settling
from lightning_coreset.surgery.slicing import named_tensors


class Snapshot:
    """A model's tensors, gradients, ``requires_grad`` and attributes that state sizes, to be restored after surgery.

    The objects stay: the same parameters and buffers get their old shapes, contents, dtype and device back. What
    surgery records on the model for checkpoints is restored as well.

    Args:
        model: The model as it is now.
        copy: Whether to copy all tensors, so that the model may even be trained before it is restored. Without copies,
            references to the old tensors are kept: that costs nothing until surgery replaces them, and undoes only
            surgery.

    Example:
        >>> from lightning_coreset import prune
        >>> model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> before = Snapshot(model)
        >>> _ = prune(model, torch.randn(1, 4), 0.5)
        >>> before.restore()
        >>> model[0]
        Linear(in_features=4, out_features=8, bias=True)
    """

    def __init__(self, model: nn.Module, *, copy: bool = False) -> None:
        self._model, self._copy = model, copy
        self._tensors = [
            (
                tensor,
                _copied_if(tensor.data, copy),
                None if tensor.grad is None else _copied_if(tensor.grad, copy),
                tensor.requires_grad,
            )
            for tensor in named_tensors(model).values()
        ]
        self._attributes: list[tuple[nn.Module, dict[str, Any]]] = [
            (
                module,
                {
                    name: (value, list(value) if isinstance(value, list) else None)
                    for name, value in vars(module).items()
                    if is_size(value) or isinstance(value, (bool, ModelShapes))
                }
                # Surgery replaces these objects by copies.
                | {name: (config, None) for name, config in configs_of(module)},
            )
            for module in model.modules()
        ]

    @torch.inference_mode(False)  # its tensors could not be trained
    @torch.no_grad()
    def restore(self) -> None:
        """Restore everything; may be called again later."""
        replaced = set()
        for tensor, value, grad, requires_grad in self._tensors:
            grad = None if grad is None else _copied_if(grad, self._copy)
            if not _same_layout(tensor, value):
                replace_data(tensor, _copied_if(value, self._copy), grad)
                replaced.add(id(tensor))
            elif tensor.data_ptr() != value.data_ptr():
                tensor.data.copy_(value)
            tensor.grad = grad
            if tensor.requires_grad != requires_grad:
                tensor.requires_grad_(requires_grad)
        for module, attributes in self._attributes:
            renew_weights(module)
            for name in [name for name, value in vars(module).items() if isinstance(value, ModelShapes)]:
                del vars(module)[name]
            for name, (value, elements) in attributes.items():
                if elements is not None and value != elements:  # the same list, for whoever else holds it
                    value[:] = elements
                vars(module)[name] = value
        for settle in settling(self._model, replaced):
            settle()


def _same_layout(tensor: Tensor, other: Tensor) -> bool:
    return (tensor.shape, tensor.stride(), tensor.dtype, tensor.device) == (
        other.shape,
        other.stride(),
        other.dtype,
        other.device,
    )


def _copied_if(tensor: Tensor, copy: bool) -> Tensor:
    return tensor.detach().clone() if copy else tensor
