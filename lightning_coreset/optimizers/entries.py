"""What an optimizer keeps of its parameters under one name, seen for all parameters together."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from lightning_coreset.followers import follow, hold_weights
from lightning_coreset.optimizers.discovery import parameters_of
from lightning_coreset.optimizers.slicing import is_elementwise, slice_tensor
from lightning_coreset.plan import ParameterChange

# What torch's own optimizers keep for each element, and others under the same names. Only the averaged weights of ASGD
# are weights.
_STATISTICS = frozenset(
    {
        *("momentum_buffer", "exp_avg", "exp_avg_sq", "max_exp_avg_sq", "exp_inf", "sum", "square_avg"),
        *("grad_avg", "acc_delta", "prev", "step_size"),
    }
)
_KNOWN = _STATISTICS | {"ax"}


class StateEntries:
    """The tensors that an optimizer keeps of its parameters, by name.

    Args:
        tensors: Under each name the parameters with their tensors.
        changes: The changes of parameters, which have been cut already.
        before: The content of the changed parameters before, as far as it is known.
    """

    def __init__(
        self,
        tensors: Mapping[Any, Iterable[tuple[Tensor, Tensor]]],
        changes: Mapping[Tensor, ParameterChange],
        before: Mapping[Tensor, Tensor],
    ) -> None:
        self._tensors = {key: list(pairs) for key, pairs in tensors.items()}
        self._changes, self._before = changes, before
        self._weights: dict[Any, bool] = {}

    @classmethod
    def of_state(
        cls, optimizer: Any, changes: Mapping[Tensor, ParameterChange], before: Mapping[Tensor, Tensor]
    ) -> StateEntries:
        """The entries of an optimizer's state, without what it wraps."""
        tensors: dict[Any, list[tuple[Tensor, Tensor]]] = {}
        for parameter, state in optimizer.state.items():
            if isinstance(parameter, Tensor) and isinstance(state, dict):
                for key, value in state.items():
                    if isinstance(value, Tensor):
                        tensors.setdefault(key, []).append((parameter, value))
        return cls(tensors, changes, before)

    def sliced(self, key: Any, value: Tensor, parameter: Tensor, change: ParameterChange) -> Tensor | None:
        """A tensor as it is after the change of its parameter; ``None`` if that is not known."""
        if change.kept and not self.is_elementwise(key, value, change):
            return None
        plain = tuple(value.shape) == change.old_shape and type(value) is Tensor
        if not _gives_values(change) or not plain or not self._hold_weights(key):
            return slice_tensor(value, parameter, change)
        if parameter in self._before:
            return follow(value, change, self._before[parameter], parameter)
        only_factors = change.value is None and change.norm_of is None
        return follow(value, change, value, parameter) if only_factors else None

    def is_elementwise(self, key: Any, value: Tensor, change: ParameterChange) -> bool:
        """Whether a tensor has a number for each element of its parameter.

        Beside an (n, n) weight a matrix for pairs of rows or of columns has the same shape, as Shampoo and SOAP keep
        them. What it is shows in other parameters. If all are square, only names that torch uses are known.
        """
        shape = change.old_shape
        if len(shape) not in (2, 3) or len(set(shape)) == len(shape) or tuple(value.shape) != shape:
            return True  # or of another shape, which shows by itself
        others = [(tuple(other.shape), whole) for other, whole in self._with_shapes(key) if _tells_apart(whole)]
        if others:
            return all(is_elementwise(*both) for both in others)
        return key in _KNOWN or self._hold_weights(key)

    def _hold_weights(self, key: Any) -> bool:
        """Whether the tensors are earlier or averaged values of the weights, which have to move with these."""
        if key in _STATISTICS:
            return False
        if key not in self._weights:
            self._weights[key] = hold_weights(self._beside_weights(key))
        return self._weights[key]

    def _with_shapes(self, key: Any) -> Iterator[tuple[Tensor, tuple[int, ...]]]:
        """The tensor of every parameter, with the parameter's shape before the event."""
        for parameter, value in self._tensors[key]:
            change = self._changes.get(parameter)
            yield value, tuple(parameter.shape) if change is None else change.old_shape

    def _beside_weights(self, key: Any) -> Iterator[tuple[Tensor, Tensor]]:
        for parameter, value in self._tensors[key]:
            change = self._changes.get(parameter)
            if change is None:
                weights = parameter.detach()
            elif parameter in self._before:
                weights = self._before[parameter]
            elif not _gives_values(change):
                cut = slice_tensor(value, parameter, change)
                value, weights = value if cut is None else cut, parameter.detach()
            else:
                continue
            if value.shape == weights.shape and type(value) is Tensor:
                yield value, weights


def _gives_values(change: ParameterChange) -> bool:
    return change.value is not None or bool(change.factors) or change.norm_of is not None


def _tells_apart(shape: tuple[int, ...]) -> bool:
    """Whether a tensor for each element has another shape than one for pairs of rows or columns."""
    return len(shape) > 1 and shape[0] != shape[1] and shape[-1] != shape[-2]


def of_all_parameters(optimizer: Any, changes: Mapping[Tensor, ParameterChange]) -> set[Tensor]:
    """The parameters under which an optimizer keeps a vector of all its parameters' elements, if any of these changes.

    LBFGS keeps its history under the first one.
    """
    parameters = parameters_of(optimizer)
    if len(parameters) < 2 or not any(parameter in changes and changes[parameter].kept for parameter in parameters):
        return set()
    total = sum(old_numel(parameter, changes) for parameter in parameters)
    found = (parameter for parameter in parameters if parameter in optimizer.state)
    return {parameter for parameter in found if total in _sizes(optimizer.state[parameter])}


def old_numel(parameter: Tensor, changes: Mapping[Tensor, ParameterChange]) -> int:
    """How many elements a parameter had before the event."""
    change = changes.get(parameter)
    return parameter.numel() if change is None else torch.Size(change.old_shape).numel()


def _sizes(state: Any, depth: int = 3) -> Iterator[int]:
    if isinstance(state, Tensor):
        yield state.numel()
    elif depth > 0 and isinstance(state, Mapping | list | tuple):
        for each in state.values() if isinstance(state, Mapping) else state:
            yield from _sizes(each, depth - 1)
