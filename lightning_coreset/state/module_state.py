"""The state of a module and of all that it holds, whatever a user keeps there, to go back to."""

from __future__ import annotations

import functools
import operator
from collections import OrderedDict, defaultdict, deque
from collections.abc import Collection, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from itertools import starmap
from types import FunctionType
from typing import Any

import torch
from torch import Tensor, nn

from lightning_coreset.state.iterators import ReplayedIterator, is_iterator_type
from lightning_coreset.state.reach import (
    ATOMS,
    has_own_state,
    is_array,
    is_shared,
    parts_of,
    random_states,
    reachable,
    slots_of,
)
from lightning_coreset.state.saved import (
    Saved,
    SavedArray,
    SavedClass,
    SavedNumbers,
    SavedPlace,
    SavedSet,
    SavedTensor,
    holds_numbers,
    new_items,
)
from lightning_coreset.state.writes import UndoneWrites

_DICTS = frozenset({dict, OrderedDict, defaultdict})


class ModuleState:
    """The state of all objects that a module reaches, to go back to. Restoring writes to the same objects.

    Modules, containers, objects with attributes or slots, functions with what they enclose, users' classes, generators
    of random numbers, arrays and iterators are entered. What belongs to the program as well, such as a Trainer, a
    loader or a file, is not.

    Parameters and what optimizers keep of them are not copied: :meth:`watching` sees what is written into them. Their
    gradients and ``requires_grad`` are restored.

    Args:
        module: The module.
    """

    @torch.inference_mode(False)
    @torch.no_grad()
    def __init__(self, module: nn.Module) -> None:
        # Most of what there is to save are dicts, which modules have many of.
        self._dicts: list[tuple[dict[Any, Any], dict[Any, Any]]] = []
        self._sequences: list[tuple[list[Any] | deque[Any], list[Any]]] = []
        self._others: list[Saved] = []
        self._parameters: list[tuple[nn.Parameter, Tensor | None, bool]] = []
        self._iterators: dict[int, ReplayedIterator] = {}
        self._large: dict[int, Tensor] = {}
        tensors: list[Tensor] = []
        seen: set[int] = set()  # ids suffice: what holds an object keeps it alive
        pending: list[Any] = [module]
        while pending:
            value = pending.pop()
            kind = type(value)
            if kind in ATOMS or id(value) in seen:
                continue
            seen.add(id(value))
            if kind in _DICTS:
                if value:
                    pending.extend(value.values())
                    self._save_dict(value)
                else:
                    self._dicts.append((value, {}))
            elif _is_tensor_type(kind):
                tensors.append(value)
            elif not is_shared(value):
                self._save(value)
                pending.extend(parts_of(value))
            elif kind is ReplayedIterator:
                self._others.append(SavedNumbers(value.position, partial(setattr, value, "position")))
        for tensor in tensors:
            self._save_tensor(tensor)
        self._writes = UndoneWrites(one for one in self._large.values() if not _has_no_content(one))

    def hide_gradients(self) -> None:
        """Set all gradients to ``None``: ``backward`` would add to them in place, and copying them costs more."""
        for parameter, _, _ in self._parameters:
            parameter.grad = None

    def watching(self) -> UndoneWrites:
        """A context in which it is seen what is written into parameters, to be undone by :meth:`restore`."""
        return self._writes

    @torch.inference_mode(False)
    @torch.no_grad()
    def restore(self) -> None:
        """Put everything back; may be called again."""
        # Containers are written to only if they differ: some may be shared with threads.
        for container, content in self._dicts:
            if self._iterators:
                content = {key: self._left(value) for key, value in content.items()}
            if _differ(container, content):
                container.clear()
                container.update(content)
        for sequence, items in self._sequences:
            items = [self._left(value) for value in items]
            if _are_others(sequence, items):
                sequence.clear()
                sequence.extend(items)
        for saved in self._others:
            saved.restore()
        self._writes.undo()
        for parameter, grad, requires_grad in self._parameters:
            if parameter.requires_grad != requires_grad:
                parameter.requires_grad_(requires_grad)
            if parameter.grad is not grad:
                parameter.grad = grad

    @property
    def may_be_used_again(self) -> bool:
        """Whether the module may be changed and restored more than once: it holds no iterators, which go on."""
        return not self._iterators

    def is_as_it_was(self) -> bool:
        """Whether there is nothing to restore, so that a new state of the module would be the same.

        What is written into parameters is seen within :meth:`watching` alone, and no state has it.
        """
        return (
            self.may_be_used_again
            and not any(starmap(_differ, self._dicts))
            and not any(starmap(_are_others, self._sequences))
            and all(one.requires_grad == needs and one.grad is grad for one, grad, needs in self._parameters)
            and self._writes.nothing_to_undo
            and all(saved.is_as_it_was() for saved in self._others)
        )

    def holds_new_numbers(self) -> bool:
        """Whether the module holds other numbers than before, which its next step may read.

        Whole numbers do not count, such as those of a counter, and parameters do not.
        """
        return any(map(holds_numbers, self._new()))

    def new_tensors(self) -> list[Tensor]:
        """The tensors that the module holds in place of others, or that have other contents, but for parameters."""
        return [one for value in self._new() for one in reachable(value) if isinstance(one, Tensor)]

    def _new(self) -> Iterator[Any]:
        for container, content in self._dicts:
            yield from new_items(content, container)
        for sequence, items in self._sequences:
            known = {*map(id, items)}
            yield from (value for value in sequence if id(value) not in known)
        for saved in self._others:
            yield from saved.new()

    def _save_dict(self, value: dict[Any, Any]) -> None:
        self._dicts.append((value, dict(value)))
        if any(map(is_iterator_type, map(type, value.values()))):
            for key, iterator in self._replayed(list(value.items())):
                value[key] = iterator

    def _save_tensor(self, value: Tensor) -> None:
        if isinstance(value, nn.Parameter):
            self._parameters.append((value, value.grad, value.requires_grad))
            self._large[id(value)] = value
            if value.grad is not None:
                self._large[id(value.grad)] = value.grad
        elif id(value) not in self._large and not _has_no_content(value):
            self._others.append(SavedTensor(value))

    def _save(self, value: Any) -> None:
        """Save what is no tensor, no plain dict, and no module, whose attributes are one."""
        add = self._others.append
        if isinstance(value, nn.Module):
            return
        if isinstance(value, dict):
            self._save_dict(value)
        elif isinstance(value, (list, deque)):
            self._sequences.append((value, list(value)))
            if isinstance(value, list) and any(map(is_iterator_type, map(type, value))):
                for place, iterator in self._replayed(list(enumerate(value))):
                    value[place] = iterator
        elif isinstance(value, set):
            add(SavedSet(value))
        elif isinstance(value, FunctionType):
            for cell in value.__closure__ or ():
                add(SavedPlace(cell, "cell_contents"))
        elif isinstance(value, type):
            if has_own_state(value):
                add(SavedClass(value))
        elif is_array(value):
            add(SavedArray(value))
        elif isinstance(value, torch.optim.Optimizer):
            kept = (one for state in value.state.values() if isinstance(state, dict) for one in state.values())
            self._large |= {id(one): one for one in kept if isinstance(one, Tensor)}
        else:
            self._save_object(value)

    def _save_object(self, value: Any) -> None:
        """Save the state of a generator of random numbers, or the slots of an object."""
        generator = random_states(value)
        if generator is not None:
            get, put = generator
            self._others.append(SavedNumbers(get(), put))
        for name in slots_of(type(value)):
            self._others.append(SavedPlace(value, name))

    def _replayed(self, items: list[tuple[Any, Any]]) -> list[tuple[Any, ReplayedIterator]]:
        """What takes the place of iterators among the values of a container."""
        return [
            (key, self._iterators.setdefault(id(value), ReplayedIterator(value)))
            for key, value in items
            if is_iterator_type(type(value))
        ]

    def _left(self, value: Any) -> Any:
        """A value as it is put back."""
        replayed = self._iterators.get(id(value)) if self._iterators else None
        return value if replayed is None else replayed.left()


@functools.cache
def _is_tensor_type(kind: type) -> bool:
    return issubclass(kind, Tensor)


def _differ(container: dict[Any, Any], content: dict[Any, Any]) -> bool:
    """Whether dicts have other keys, keys in another order, or other objects under them."""
    return (
        len(container) != len(content)
        or any(map(operator.is_not, container, content))  # tensors as keys cannot be compared
        or any(map(operator.is_not, container.values(), content.values()))
    )


def _are_others(sequence: Collection[Any], items: Collection[Any]) -> bool:
    """Whether sequences consist of other objects."""
    return len(sequence) != len(items) or any(map(operator.is_not, sequence, items))


@contextmanager
def restored(module: nn.Module, *, watch: bool = True) -> Iterator[ModuleState]:
    """Undo what the block does to a module and to all that it holds, also if it raises.

    Args:
        module: The module.
        watch: Whether to look at all operations for what they write into parameters; otherwise another mode has to
            tell :meth:`ModuleState.watching` of them.

    Example:
        >>> net = nn.BatchNorm1d(2)
        >>> with restored(net):
        ...     _ = net(torch.randn(4, 2))
        >>> net.num_batches_tracked.item()
        0
    """
    state = ModuleState(module)
    try:
        with state.watching() if watch else nullcontext():
            yield state
    finally:
        state.restore()


def _has_no_content(tensor: Tensor) -> bool:
    return nn.parameter.is_lazy(tensor) or tensor.is_meta
