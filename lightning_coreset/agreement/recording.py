"""Runs a network on one sample and writes down, operation by operation, how its output depends on its input."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from lightning_coreset._compat import DispatchMode, storage_number
from lightning_coreset.agreement.affine_rules import Data, affine_functions
from lightning_coreset.agreement.nonlinear_rules import write_nonlinear
from lightning_coreset.agreement.tape import Tape
from lightning_coreset.agreement.twins import Twin
from lightning_coreset.agreement.writer import Writer
from lightning_coreset.structure import OpCall
from lightning_coreset.structure.op_call import tensors_among

_OF_SHAPE = frozenset(
    "empty_like zeros_like ones_like full_like rand_like randn_like new_empty new_zeros new_ones new_full".split()
)
"""Operators that read the shape of a tensor and none of its numbers."""
_UNFOLLOWED, _OVERWRITTEN = -1, -2


def record(twin: Twin, sample: Tensor) -> Tape:
    """The operations of a network on one sample ``(1, ...)``, float64.

    Raises:
        ValueError: If one of them is neither affine in the data nor an activation that is known.
    """
    with twin.ready(), ExitStack() as stack:
        recorder = _Recorder(twin, sample)
        for handle in recorder.followed_modules():
            stack.callback(handle.remove)
        with recorder:
            result = twin.output(sample)
    number = recorder.number(result)
    if number < 0:
        raise ValueError(
            f"Expected the output of the {twin.name} network to be computed from its input in torch's operators but it "
            "is not."
        )
    return Tape.of(recorder.writer.nodes, number, sample.device)


class _Recorder(DispatchMode):
    """Sees the operations of one run.

    Args:
        twin: The network.
        sample: Its input.
    """

    def __init__(self, twin: Twin, sample: Tensor) -> None:
        super().__init__()
        self.twin, self.writer = twin, Writer(sample)
        # By ids, which stay their own as long as the tensors are held.
        self._known: dict[int, tuple[Tensor, int]] = {id(sample): (sample, 0)}
        self._path: list[str] = []

    def number(self, tensor: Tensor) -> int:
        """The node of a tensor, or why there is none, as a negative number."""
        return self._known.get(id(tensor), (tensor, _UNFOLLOWED))[1]

    def followed_modules(self) -> Iterator[Any]:
        """Hooks on the copy that say which module runs."""

        def entering(path: str) -> Callable[..., None]:
            return lambda module, inputs: self._path.append(path)

        def leaving(module: nn.Module, inputs: Any, outputs: Any) -> None:
            self._path.pop()

        for path, module in self.twin.module.named_modules():
            yield module.register_forward_pre_hook(entering(path), prepend=True)
            yield module.register_forward_hook(leaving)

    def __torch_dispatch__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run an operation, and write it down if it reads what depends on the input."""
        kwargs = kwargs or {}
        read = tensors_among((args, kwargs))
        if not any(id(one) in self._known for one in read):
            return function(*args, **kwargs)
        call = OpCall.read(function, args, kwargs, read, None)
        inputs: list[int] = []
        arguments = {name: self._argument(value, inputs) for name, value in call.arguments.items()}
        result = function(*args, **kwargs)
        if call.name not in _OF_SHAPE:
            self._write(OpCall.read(function, args, kwargs, read, result), arguments, inputs)
        return result

    def _argument(self, value: Any, inputs: list[int]) -> Any:
        """An argument with ``Data`` for what depends on the input, and copies of constants."""
        if isinstance(value, (list, tuple)):
            return [self._argument(one, inputs) for one in value]
        if not isinstance(value, Tensor):
            return value
        if id(value) in self._known:
            inputs.append(self.number(value))
            return Data(len(inputs) - 1)
        copied = value.detach().clone()
        return copied.double() if copied.is_floating_point() else copied

    def _write(self, call: OpCall, arguments: dict[str, Any], inputs: list[int]) -> None:
        path = self._path[-1] if self._path else ""
        self.writer.place = f"{call.title} in {path!r}" if path else f"{call.title} in the forward of the whole"
        if call.results and {*inputs} == {_UNFOLLOWED} and not call.written:  # indices of maxima that nobody reads
            self._known |= {id(one): (one, _UNFOLLOWED) for one in call.results}
            return
        if min(inputs) < 0 or call.has_out or (call.inplace and id(call.tensors[0]) not in self._known):
            raise self._refusal()
        functions = affine_functions(call, arguments)
        if functions is None:
            number = write_nonlinear(self.writer, call, arguments, inputs)
            if number is None:
                raise self._refusal()
            numbers = [number]
        else:
            numbers = self._affine(*functions, inputs)
        self._forget_overwritten(call)
        numbers += [_UNFOLLOWED] * (len(call.results) - len(numbers))
        for tensor, number in zip(call.results, numbers, strict=True):
            self._known[id(tensor)] = (tensor, number)

    def _affine(self, function: Any, magnitude: Any, inputs: list[int]) -> list[int]:
        """A node for every result."""
        shapes = [self.writer.nodes[one].shape for one in inputs]
        result = function(*(torch.zeros(shape, dtype=torch.float64, device=self.writer.device) for shape in shapes))
        if isinstance(result, Tensor):
            return [self.writer.affine(function, magnitude, *inputs)]

        def picked(run: Any, which: int) -> Any:
            return lambda *data: run(*data)[which]

        return [
            self.writer.affine(picked(function, one), picked(magnitude, one), *inputs) for one in range(len(result))
        ]

    def _forget_overwritten(self, call: OpCall) -> None:
        """What shares the memory that an operation wrote into has other numbers now."""
        written = {storage_number(one) for one in call.written}
        for key, (tensor, _) in self._known.items():
            if written and storage_number(tensor) in written:
                self._known[key] = (tensor, _OVERWRITTEN)

    def _refusal(self) -> ValueError:
        return ValueError(
            "Expected operators that are affine in the data, or activations of single numbers whose turning points are "
            f"known, but {self.writer.place} of the {self.twin.name} network is neither, so that nothing can be proven "
            "of its outputs. See docs/mathematics.md for what is covered."
        )
