"""Weights of a copy that take no memory: each is computed from the original's whenever an operation reads it.

A trial runs in double precision, and the copies that it takes, one with all channels and one without some, would be
several times as large as a network in single or half precision. Of large weights a copy therefore has the form only:
memory that is reserved and never touched. What an operation reads of it is made right before, by the same steps as of
a real copy, and let go of afterwards.
"""

from __future__ import annotations

import math
import mmap
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from lightning_coreset._compat import DispatchMode, storage_number, tree_map
from lightning_coreset.state import written_arguments
from lightning_coreset.verification.memory import return_freed_memory

MANY = 1 << 24
"""Elements of large weights from which on a network's copy has none of them: smaller ones fit anywhere."""
LARGE = 1 << 16
"""Elements of a large weight."""
_MADE, _FEW = 1 << 28, 1 << 26
"""Bytes of results and weights after which the system gets back what is no longer used of them; where much is kept."""

_FLAGS = tuple(getattr(mmap, name, 0) for name in ("MAP_PRIVATE", "MAP_ANONYMOUS"))  # of every system but Windows
_View: TypeAlias = tuple[torch.Size, tuple[int, ...], int]
_READS = frozenset({Tensor.numpy, Tensor.tolist, Tensor.__array__})
_aten = torch.ops.aten
_NOTED = frozenset({_aten.index_fill_.int_Scalar, _aten.mul_.Tensor, _aten.add_.Tensor, _aten.masked_fill_.Scalar})
"""What is done to weights before a run: noted, and done anew whenever the weight is made.

A network that writes into its weights itself, as momentum encoders are updated, needs a copy that has them.
"""


@dataclass
class _Content:
    """How the content of one memory is made.

    Attributes:
        memory: The memory, which is never read.
        make: Makes a tensor of the memory's form.
        own: Whether that is a new tensor, which may be written into.
        writes: What was written since, each into a view, and what else an operator was given.
    """

    memory: Tensor
    make: Callable[[], Tensor]
    own: bool = True
    writes: list[tuple[Any, _View, Any, Any]] = field(default_factory=list)

    def whole(self, count: int | None = None) -> Tensor:
        """The content after the first writes; after all by default. Only to be read."""
        content, writes = self.make(), self.writes[:count]
        if writes and not self.own:
            content = content.clone()
        for function, view, args, kwargs in writes:
            function(content.as_strided(*view), *args, **kwargs)
        return content


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

    Raises:
        RuntimeError: In the mode, where code writes into such a weight, or reads its memory.
    """

    supports_higher_order_operators = True

    def __init__(self) -> None:
        super().__init__()
        self._contents: dict[int, _Content] = {}
        self._reads = _Reads(self)
        self._made, self._limit = 0, _MADE  # bytes since the system last got any back, and at most

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

    def in_place_of(self, model: nn.Module) -> dict[int, nn.Parameter]:
        """New parameters for a copy of a model in place of its large weights, by the ids of these."""
        found: dict[int, nn.Parameter] = {}
        for parameter in _large_weights(model):
            new = self.new(parameter.shape, parameter.dtype, parameter.detach, own=False)
            found[id(parameter)] = nn.Parameter(new, parameter.requires_grad)
            vars(found[id(parameter)]).update(vars(parameter))
        return found

    def new(self, shape: Sequence[int], dtype: torch.dtype, make: Callable[[], Tensor], *, own: bool = True) -> Tensor:
        """A tensor whose content is made when it is read.

        Args:
            shape: Its shape.
            dtype: Its dtype.
            make: Makes the content, a contiguous tensor.
            own: Whether that is a new tensor, which may be written into.
        """
        count = math.prod(shape)
        memory = torch.frombuffer(mmap.mmap(-1, count * dtype.itemsize, flags=sum(_FLAGS)), dtype=dtype, count=count)
        self._contents[storage_number(memory)] = _Content(memory, make, own)
        return memory.view(*shape)

    def __contains__(self, tensor: Tensor) -> bool:
        return self._known(tensor) is not None

    @torch.no_grad()
    def content(self, tensor: Tensor, writes: int | None = None) -> Tensor:
        """The content of a tensor after as many writes, only to be read."""
        known = self._known(tensor)
        assert known is not None
        return known.whole(writes).as_strided(*_view(tensor))

    def writes(self, tensor: Tensor) -> int:
        """How many times something was written into a tensor."""
        known = self._known(tensor)
        assert known is not None
        return len(known.writes)

    def undo(self, tensor: Tensor, writes: int) -> None:
        """Forget all but the first writes."""
        known = self._known(tensor)
        assert known is not None
        del known.writes[writes:]

    def convert(self, model: nn.Module, dtype: torch.dtype) -> None:
        """Give the weights of a model that are made when they are read another dtype."""
        for parameter in model.parameters():
            known = self._known(parameter)
            if known is not None and parameter.dtype != dtype:
                parameter.data = self.new(parameter.shape, dtype, _converted(known, dtype))

    @contextmanager
    def sparing(self) -> Iterator[None]:
        """In the block, the system gets back sooner what is no longer used, for activations are kept beside it."""
        self._limit = _FEW
        try:
            yield
        finally:
            self._limit = _MADE
            return_freed_memory()

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
            return func(*args, **kwargs)
        if not any(map(self._is_virtual, (*args, *kwargs.values()))):
            result = func(*args, **kwargs)
            if isinstance(result, Tensor):
                self._count(result)
            return result
        written = [args[place] if place < len(args) else kwargs.get(name) for place, name in written_arguments(func)]
        if any(map(self._is_virtual, written)):
            return self._write(func, args, kwargs)
        real_args, real_kwargs = tree_map(self._real, (args, kwargs))
        return func(*real_args, **real_kwargs)

    def _write(self, func: Any, args: Any, kwargs: Any) -> Any:
        """Note a small write."""
        target = args[0]
        known = self._known(target) if isinstance(target, Tensor) else None
        if func not in _NOTED or known is None:
            raise NotImplementedError(f"{func} writes into a weight that has no memory")
        others, options = tree_map(self._real, (args[1:], kwargs))
        known.writes.append((func, _view(target), others, options))
        return target

    def _is_virtual(self, value: Any) -> bool:
        if isinstance(value, Tensor):
            return self._known(value) is not None
        return isinstance(value, (list, tuple)) and any(map(self._is_virtual, value))

    def _real(self, leaf: Any) -> Any:
        known = self._known(leaf) if isinstance(leaf, Tensor) else None
        if known is None:
            return leaf
        self._count(leaf)
        return known.whole().as_strided(*_view(leaf))

    def _count(self, tensor: Tensor) -> None:
        self._made += tensor.numel() * tensor.itemsize
        if self._made > self._limit:
            return_freed_memory()
            self._made = 0

    def _known(self, tensor: Tensor) -> _Content | None:
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


def _view(tensor: Tensor) -> _View:
    return tensor.shape, tensor.stride(), int(tensor.storage_offset())


def _converted(content: _Content, dtype: torch.dtype) -> Callable[[], Tensor]:
    return lambda: content.whole().to(dtype, copy=True)
