"""Weights of a copy that take no memory: each is computed from the original's whenever an operation reads it.

A trial runs in double precision, and the copies that it takes, one with all channels and one without some, would be
several times as large as a network in single or half precision. Of large weights a copy therefore has the form only:
memory that is reserved and never touched. What an operation reads of it is made right before, by the same steps as of
a real copy, and let go of afterwards; for products of matrices some rows at a time.
"""

from __future__ import annotations

import math
import mmap
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from lightning_coreset._compat import DispatchMode, storage_number, tree_map
from lightning_coreset.state import FreedMemory, return_freed_memory, written_arguments
from lightning_coreset.verification.made_weights import STEPS, MadeWeight, Rows, view_of
from lightning_coreset.verification.products_by_rows import BY_ROWS

MANY = 1 << 24
"""Elements of large weights from which on a network's copy has none of them: smaller ones fit anywhere."""
LARGE = 1 << 16
"""Elements of a large weight."""

_FLAGS = tuple(getattr(mmap, name, 0) for name in ("MAP_PRIVATE", "MAP_ANONYMOUS"))  # of every system but Windows
_READS = frozenset({Tensor.numpy, Tensor.tolist, Tensor.__array__})


class _Reads(TorchFunctionMode):
    """Forbids to read the memory of weights that have none, as for an array, which no operation sees."""

    def __init__(self, weights: VirtualWeights) -> None:
        super().__init__()
        self._weights = weights

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run the function."""
        if func in _READS and args[0] in self._weights:
            raise NotImplementedError(f"{func.__name__} reads a weight that has no memory")
        return func(*args, **(kwargs or {}))


class VirtualWeights(DispatchMode):
    """Computes the content of weights whenever an operation reads them. Enter it before all other modes.

    A network that writes into its weights itself, as momentum encoders are updated, needs a copy that has them.

    Args:
        model: The network whose weights they are.

    Attributes:
        freed: Gives memory back to the system.

    Raises:
        NotImplementedError: In the mode, where code writes into such a weight, reads its memory, or views it in another
            dtype.
    """

    supports_higher_order_operators = True

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self._model = model
        self.freed = FreedMemory(model)
        self._contents: dict[int, MadeWeight] = {}
        self._reads = _Reads(self)

    def __enter__(self) -> VirtualWeights:
        """Begin the mode."""
        return_freed_memory()  # what has led here, as following the network, may have left as much as that takes
        self._reads.__enter__()
        super().__enter__()
        return self

    def __exit__(self, *exception: Any) -> None:
        """End it."""
        super().__exit__(*exception)
        self._reads.__exit__(*exception)

    def in_place_of_weights(self) -> dict[int, nn.Parameter]:
        """New parameters for a copy of the model in place of its large weights, by the ids of these."""
        found: dict[int, nn.Parameter] = {}
        for parameter in _large_weights(self._model):
            new = self.new(parameter.shape, parameter.dtype, parameter.detach().__getitem__, own=False)
            found[id(parameter)] = nn.Parameter(new, parameter.requires_grad)
            vars(found[id(parameter)]).update(vars(parameter))
        return found

    def new(
        self, shape: Sequence[int], dtype: torch.dtype, make: Callable[[Rows], Tensor], *, own: bool = True
    ) -> Tensor:
        """A tensor whose content is made when it is read.

        Args:
            shape: Its shape.
            dtype: Its dtype.
            make: Makes rows of the content, contiguous.
            own: Whether these are a new tensor, which may be written into.
        """
        count = math.prod(shape)
        memory = torch.frombuffer(mmap.mmap(-1, count * dtype.itemsize, flags=sum(_FLAGS)), dtype=dtype, count=count)
        self._contents[storage_number(memory)] = MadeWeight(memory.view(*shape), make, own)
        return memory.view(*shape)

    def __contains__(self, tensor: Tensor) -> bool:
        return self._known(tensor) is not None

    def after(self, tensor: Tensor, steps: int) -> Tensor:
        """A weight as it was after the first steps that were taken with it."""
        return self.new(tensor.shape, tensor.dtype, partial(self.made(tensor).rows, count=steps), own=False)

    def made(self, tensor: Tensor) -> MadeWeight:
        """How a weight is made."""
        known = self._known(tensor)
        assert known is not None
        return known

    def convert(self, model: nn.Module, dtype: torch.dtype) -> None:
        """Give the weights of a model that are made when they are read another dtype."""
        for parameter in model.parameters():
            known = self._known(parameter)
            if known is not None and parameter.dtype != dtype:
                parameter.data = self.new(parameter.shape, dtype, partial(_converted, known, dtype))

    @contextmanager
    def forgetting(self) -> Iterator[None]:
        """Forget in the end what was made in the block, of which nothing may be left then."""
        before = dict(self._contents)
        try:
            yield
        finally:
            self._contents = before

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run the operation on what its arguments should contain."""
        kwargs = kwargs or {}
        if getattr(func, "is_view", False):
            result = func(*args, **kwargs)
            if self._shows_what(args[0], result):
                return result
        if not any(map(self._is_virtual, (*args, *kwargs.values()))):
            result = func(*args, **kwargs)
            if isinstance(result, Tensor):
                self.freed.count(result)
            return result
        written = [args[place] if place < len(args) else kwargs.get(name) for place, name in written_arguments(func)]
        if any(map(self._is_virtual, written)):
            return self._write(func, args, kwargs)
        by_rows = None if kwargs else BY_ROWS.get(func)
        result = None if by_rows is None else by_rows(self._known, *args)
        if result is not None:
            self.freed.count(result)
            return result
        real_args, real_kwargs = tree_map(self._real, (args, kwargs))
        return func(*real_args, **real_kwargs)

    def _shows_what(self, tensor: Any, result: Any) -> bool:
        """Whether a view is right as it is: of no such weight, or on its memory, which ``contiguous`` may have copied.

        Raises:
            NotImplementedError: If it shows the numbers of such a weight in another form, such as complex ones.
        """
        if not self._is_virtual(tensor):
            return True
        if isinstance(result, Tensor) and result.dtype != tensor.dtype and self._is_virtual(result):
            raise NotImplementedError(f"a weight that has no memory is read as {result.dtype}")
        return self._is_virtual(result)

    def _write(self, func: Any, args: Any, kwargs: Any) -> Any:
        """Note a small write."""
        target = args[0]
        known = self._known(target) if isinstance(target, Tensor) else None
        if func not in STEPS or known is None:
            raise NotImplementedError(f"{func} writes into a weight that has no memory")
        known.note(func, view_of(target), *tree_map(self._real, (args[1:], kwargs)))
        return target

    def _is_virtual(self, value: Any) -> bool:
        if isinstance(value, Tensor):
            return self._known(value) is not None
        return isinstance(value, (list, tuple)) and any(map(self._is_virtual, value))

    def _real(self, leaf: Any) -> Any:
        known = self._known(leaf) if isinstance(leaf, Tensor) else None
        if known is None:
            return leaf
        self.freed.count(leaf)
        return known.view(view_of(leaf))

    def _known(self, tensor: Tensor) -> MadeWeight | None:
        if tensor.layout is not torch.strided or tensor.is_meta or not tensor.is_cpu:
            return None
        try:
            return self._contents.get(storage_number(tensor))
        except (RuntimeError, NotImplementedError):  # it has no memory of its own
            return None


def saves_memory(model: nn.Module) -> bool:
    """Whether a model is so large that a copy should do without its weights, and the system can reserve memory."""
    return all(_FLAGS) and sum(parameter.numel() for parameter in _large_weights(model)) >= MANY


def _large_weights(model: nn.Module) -> list[nn.Parameter]:
    """The parameters with many elements, each in a memory of its own."""
    return [
        parameter
        for parameter in model.parameters()
        if type(parameter) is nn.Parameter
        and parameter.dim() > 1
        and parameter.numel() >= LARGE
        and parameter.layout is torch.strided
        and parameter.device.type == "cpu"
        and parameter.is_floating_point()
        and parameter.is_contiguous()
        and parameter.untyped_storage().nbytes() == parameter.numel() * parameter.itemsize
    ]


def _converted(known: MadeWeight, dtype: torch.dtype, which: Rows) -> Tensor:
    return known.rows(which).to(dtype, copy=True)
