"""Steps that differentiate themselves: gradient penalties, forces of a potential, inner loops.

A derivative with respect to a tensor has that tensor's shape and channels. Where the network without some channels is
the same function as the one with zeros in their place, its derivatives are the same, too. So no gradient is computed
where a network is followed or tried: each is replaced by a tensor made of what is differentiated and of the tensor with
respect to which it is. It has the labels of the latter, and differs wherever one of both does.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.overrides import TorchFunctionMode

from lightning_coreset._compat import in_forward_mode, outside_of_modes, without_transforms
from lightning_coreset._registration import Registration
from lightning_coreset.structure.collectives import local_collectives
from lightning_coreset.structure.example import Example
from lightning_coreset.structure.weak_map import IdentityWeakMap


class StandInDerivatives(TorchFunctionMode):
    """Answers ``torch.autograd.grad`` and ``backward`` by tensors of the right shapes, also without gradients enabled.

    After ``backward``, leaves that require gradients have one, until the mode ends; so have tensors that were told to
    ``retain_grad``. Hooks on tensors are called with one. The tangents of forward mode are replaced, too. The
    transforms of ``torch.func`` come to the same functions in the end.

    Args:
        made: Told of every such tensor and of what it is a derivative with respect to.
    """

    def __init__(self, made: Callable[[Tensor, Tensor], None] | None = None) -> None:
        super().__init__()
        self._made = made
        self._factor: Tensor | None = None  # of the last call of backward
        self._retaining: IdentityWeakMap[bool] = IdentityWeakMap()
        self._tangents: IdentityWeakMap[bool] = IdentityWeakMap()
        self._hooks: list[tuple[Tensor, Callable[[Tensor], object]]] = []
        self._with_gradient: list[Tensor] = []
        self._calls = {
            torch.autograd.grad: self._grad,
            torch.autograd.backward: self._backward,
            Tensor.backward: self._backward,
            Tensor.retain_grad: self._retain,
            Tensor.register_hook: self._add_hook,
            Tensor.grad.__get__: self._read,  # type: ignore[attr-defined]
        }

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run a function of torch, or what stands for it."""
        return self._calls.get(function, function)(*args, **(kwargs or {}))

    def __enter__(self) -> StandInDerivatives:
        """Begin the mode."""
        self._forward_mode = (forward_ad.make_dual, forward_ad.unpack_dual)
        forward_ad.make_dual, forward_ad.unpack_dual = _make_dual, self._unpack_dual
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        """End the mode; gradients that it has set are gone."""
        super().__exit__(*error)
        forward_ad.make_dual, forward_ad.unpack_dual = self._forward_mode
        self._drop_gradients()
        self._hooks, self._factor = [], None

    def _grad(
        self,
        outputs: Tensor | Sequence[Tensor],
        inputs: Tensor | Sequence[Tensor],
        grad_outputs: Tensor | Sequence[Tensor | None] | None = None,
        *_: Any,
        is_grads_batched: bool = False,
        **__: Any,
    ) -> tuple[Tensor, ...]:
        factor = _factor(_several(outputs), _several(grad_outputs), batched=is_grads_batched)
        derivatives = tuple(self._derivative(factor, one) for one in _several(inputs))
        self._call_hooks(factor)
        return derivatives

    def _backward(self, tensors: Tensor | Sequence[Tensor], gradient: Any = None, *_: Any, **options: Any) -> None:
        gradients = options.get("grad_tensors", gradient)
        self._factor = _factor(_several(tensors), _several(gradients))
        self._drop_gradients()  # also what the code has set to zero since the last call
        self._call_hooks(self._factor)

    def _derivative(self, factor: Tensor, source: Tensor) -> Tensor:
        """What stands for a derivative with respect to ``source``: zero where this is, as removed inputs of a layer."""
        with outside_of_modes():
            starts_at_zero = not bool(without_transforms(source).detach().any())  # as a perturbation to be found does
        factor = factor.to(source.dtype)
        factor = factor.reshape(*factor.shape, *[1] * source.dim())
        return self._told(source * 0.0 + factor if starts_at_zero else source * factor, source)

    def _told(self, derivative: Tensor, source: Tensor) -> Tensor:
        if self._made is not None:
            self._made(derivative, source)
        return derivative

    def _unpack_dual(self, tensor: Tensor, *, level: int | None = None) -> forward_ad.UnpackedDualTensor:
        if not in_forward_mode() or tensor in self._tangents:  # as of every tensor that is printed
            return forward_ad.UnpackedDualTensor(tensor, None)
        tangent = self._told(tensor.square(), tensor)
        self._tangents[tangent] = True
        return forward_ad.UnpackedDualTensor(tensor, tangent)

    def _call_hooks(self, factor: Tensor) -> None:
        for tensor, hook in self._hooks:
            hook(self._derivative(factor, tensor))

    def _retain(self, tensor: Tensor) -> None:
        self._retaining[tensor] = True

    def _add_hook(self, tensor: Tensor, hook: Callable[[Tensor], object]) -> Registration:
        entry = (tensor, hook)
        self._hooks.append(entry)
        return Registration(lambda: self._hooks.remove(entry) if entry in self._hooks else None)

    def _drop_gradients(self) -> None:
        for tensor in self._with_gradient:
            tensor.grad = None
        self._with_gradient = []

    def _read(self, tensor: Tensor) -> Tensor | None:
        wanted = (tensor.is_leaf and tensor.requires_grad) or tensor in self._retaining
        if self._factor is not None and wanted and tensor.grad is None:
            tensor.grad = self._derivative(self._factor, tensor).detach()
            self._with_gradient.append(tensor)
        return tensor.grad


def run_with_derivatives(model: nn.Module, example: Example) -> Any:
    """Run an example without gradients; where the network needs them to differentiate itself, with them.

    Gradients that it leaves on parameters are removed.
    """
    try:
        with local_collectives():
            return example.run(model, example.inputs)
    except Exception:  # what torch says differs from function to function; another error comes again
        before = [(parameter, parameter.grad) for parameter in model.parameters()]
        try:
            with torch.enable_grad(), local_collectives():
                return example.run(model, example.inputs)
        finally:
            for parameter, gradient in before:
                parameter.grad = gradient


def _make_dual(tensor: Tensor, tangent: Tensor, *, level: int | None = None) -> Tensor:
    return tensor.view_as(tensor)


def _several(tensors: Any) -> tuple[Any, ...]:
    return tuple(tensors) if isinstance(tensors, (list, tuple)) else (tensors,)


def _factor(outputs: Sequence[Tensor], weights: Sequence[Tensor | None], *, batched: bool = False) -> Tensor:
    """A number that depends on all outputs, between 0 and 2; with ``batched`` weights, one for each of these."""
    total: Any = 0.0
    for number, output in enumerate(outputs):
        weight = weights[number] if number < len(weights) else None
        product = output if weight is None else output * weight
        product = torch.view_as_real(product) if product.is_complex() else product
        lead = 1 if batched and weight is not None else 0
        total = total + (product.flatten(lead).sum(lead) if product.dim() > lead else product)
    return 1.0 + total / (1.0 + abs(total))
