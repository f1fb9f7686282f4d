"""Single things that objects keep, as they were: to put back, and to compare with what they are now."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from types import FunctionType
from typing import Any, Protocol

import torch
from torch import Tensor

from lightning_coreset.state.iterators import ReplayedIterator
from lightning_coreset.state.reach import data_of_class, is_array

_WITHOUT_NUMBERS = (bool, int, str, bytes, type, FunctionType, ReplayedIterator, torch.dtype, torch.device)
_NOTHING = object()


class Saved(Protocol):
    """Something as it was."""

    def restore(self) -> object:
        """Put it back; may be called again."""
        ...

    def new(self) -> Iterable[Any]:
        """What has taken its place."""
        ...

    def is_as_it_was(self) -> bool:
        """Whether nothing has to be put back."""
        ...


class SavedPlace:
    """What stands at one place, a slot of an object or the content of a cell of a function; or that nothing does.

    Args:
        owner: The object or the cell.
        name: The name of the place.
    """

    def __init__(self, owner: Any, name: str) -> None:
        self._owner, self._name = owner, name
        self._value = self._get()

    def restore(self) -> None:
        """Put it back."""
        if self.is_as_it_was():
            return
        if self._value is _NOTHING:
            object.__delattr__(self._owner, self._name)
        else:
            object.__setattr__(self._owner, self._name, self._value)

    def new(self) -> Iterable[Any]:
        """What stands there now."""
        now = self._get()
        return () if now is self._value or now is _NOTHING else (now,)

    def is_as_it_was(self) -> bool:
        """Whether the same thing stands there."""
        return self._get() is self._value

    def _get(self) -> Any:
        try:
            return getattr(self._owner, self._name, _NOTHING)
        except ValueError:  # an empty cell
            return _NOTHING


class SavedNumbers:
    """The state of a generator of random numbers, or the position of an iterator: always put back, never looked at."""

    def __init__(self, value: Any, put: Callable[[Any], object]) -> None:
        self._value, self._put = value, put

    def restore(self) -> None:
        """Put it back."""
        self._put(self._value)

    def new(self) -> Iterable[Any]:
        """Nothing."""
        return ()

    def is_as_it_was(self) -> bool:
        """Unknown."""
        return False


class SavedTensor:
    """The content of a tensor."""

    def __init__(self, tensor: Tensor) -> None:
        self._tensor, self._content = tensor, tensor.detach().clone()

    def restore(self) -> None:
        """Write it, if it is another one now."""
        # Through `data`: for autograd the content has not changed, since it is what it was; and the states of metrics
        # that were reset during validation are inference tensors, which cannot be written to directly.
        if not self._has_same_form():
            self._tensor.data = self._content.clone()
        elif not self._is_equal():
            self._tensor.data.copy_(self._content)

    def new(self) -> Iterable[Any]:
        """The tensor, if its content is another one."""
        return () if self.is_as_it_was() else (self._tensor,)

    def is_as_it_was(self) -> bool:
        """Whether it has the same form and numbers, none of which is NaN."""
        return self._has_same_form() and self._is_equal()

    def _has_same_form(self) -> bool:
        now, then = self._tensor, self._content
        return now.shape == then.shape and now.dtype == then.dtype and now.device == then.device

    def _is_equal(self) -> bool:
        return self._tensor.layout is torch.strided and torch.equal(self._tensor, self._content)


class SavedArray:
    """The content of an array of numpy."""

    def __init__(self, array: Any) -> None:
        self._array, self._content = array, array.copy()

    def restore(self) -> None:
        """Write it."""
        if self._array.shape != self._content.shape:
            self._array.resize(self._content.shape, refcheck=False)
        self._array[...] = self._content

    def new(self) -> Iterable[Any]:
        """The array, if its content is another one."""
        return () if self.is_as_it_was() else (self._array,)

    def is_as_it_was(self) -> bool:
        """Whether it has the same shape and bytes."""
        return self._array.shape == self._content.shape and self._array.tobytes() == self._content.tobytes()


class SavedSet:
    """The elements of a set."""

    def __init__(self, container: set[Any]) -> None:
        self._container, self._content = container, set(container)

    def restore(self) -> None:
        """Put them back, if they are others now."""
        if self._container != self._content:
            self._container.clear()
            self._container.update(self._content)

    def new(self) -> Iterable[Any]:
        """The elements that it has now and had not."""
        return self._container - self._content

    def is_as_it_was(self) -> bool:
        """Whether it has the same elements."""
        return self._container == self._content


class SavedClass:
    """The data of a class."""

    def __init__(self, kind: type) -> None:
        self._kind, self._content = kind, data_of_class(kind)

    def restore(self) -> None:
        """Set it again, where it is other data now."""
        found = data_of_class(self._kind)
        for name in found.keys() - self._content.keys():
            delattr(self._kind, name)
        for name, value in self._content.items():
            if found.get(name, self._content) is not value:
                setattr(self._kind, name, value)

    def new(self) -> Iterable[Any]:
        """What it has now in place of something else."""
        return new_items(self._content, data_of_class(self._kind))

    def is_as_it_was(self) -> bool:
        """Whether it has the same data under the same names."""
        found = data_of_class(self._kind)
        return found.keys() == self._content.keys() and not new_items(self._content, found)


def new_items(before: Mapping[Any, Any], now: Mapping[Any, Any]) -> list[Any]:
    """The values that are other objects in a second dict, or stand in it alone."""
    return [value for key, value in now.items() if before.get(key, before) is not value]


def holds_numbers(value: Any) -> bool:
    """Whether something new may hold numbers that a network has computed; whole numbers are none, as of a counter."""
    if value is None or isinstance(value, _WITHOUT_NUMBERS):
        return False
    if isinstance(value, Tensor):
        return value.is_floating_point() or value.is_complex()
    if is_array(value):
        return value.dtype.kind in "fcO"
    if isinstance(value, Mapping):
        return any(map(holds_numbers, value.values()))
    if isinstance(value, (list, tuple, set, frozenset)):
        return any(map(holds_numbers, value))
    return True
