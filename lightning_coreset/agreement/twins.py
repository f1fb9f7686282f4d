"""Copies of networks that may be run without a trace."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lightning_coreset._compat import DispatchMode
from lightning_coreset.state import duplicate
from lightning_coreset.structure import check_initialised, plain_execution, preserved_random
from lightning_coreset.structure.op_call import tensors_among, written_by


@dataclass(frozen=True, eq=False)
class Twin:
    """A copy of a network, in float64 and in evaluation mode.

    Attributes:
        name: What messages call the network.
        module: The copy.
        device: Of its parameters.
    """

    name: str
    module: nn.Module
    device: torch.device

    @classmethod
    def of(cls, name: str, network: nn.Module) -> Twin:
        """A copy of the network, which stays as it is.

        Raises:
            ValueError: If it cannot be followed: a parameter has no shape yet, or it is a TorchScript module.
        """
        check_initialised(network)
        if any(isinstance(module, torch.jit.ScriptModule) for module in network.modules()):
            raise ValueError(
                f"Expected Python modules but the {name} network has a TorchScript module, whose operations cannot be "
                "followed. Pass the network before torch.jit.script or torch.jit.trace."
            )
        with torch.inference_mode(False), preserved_random(network):
            module = duplicate(network).double().eval()
        tensors = [*module.parameters(), *module.buffers()]
        return cls(name, module, tensors[0].device if tensors else torch.device("cpu"))

    @contextmanager
    def ready(self) -> Iterator[None]:
        """A context in which the copy can be run, without gradients; random states are as before in the end."""
        with preserved_random(self.module), plain_execution(), torch.backends.cudnn.flags(enabled=False):
            yield

    def output(self, inputs: Tensor) -> Tensor:
        """What the copy makes of a batch.

        Raises:
            ValueError: If that is not one tensor.
        """
        with _RealNumbers():
            result = self.module(inputs)
        if not isinstance(result, Tensor):
            raise ValueError(
                f"Expected the {self.name} network to return one tensor but got {type(result).__name__}. Wrap it in a "
                "module that returns the scores alone."
            )
        return result


class _RealNumbers(DispatchMode):
    """Keeps numbers in float64 where a network casts them to another precision, or meets constants of another one."""

    def __torch_dispatch__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run an operation."""
        kwargs = kwargs or {}
        if function is torch.ops.aten._to_copy.default and args[0].is_floating_point():
            dtype = kwargs.get("dtype")
            if dtype is None or dtype.is_floating_point:
                kwargs = {**kwargs, "dtype": torch.float64}
        elif isinstance(dtype := kwargs.get("dtype"), torch.dtype) and dtype.is_floating_point:
            kwargs = {**kwargs, "dtype": torch.float64}
        if not written_by(function) and _is_mixed(tensors_among((args, kwargs))):
            args, kwargs = _widened(args), {name: _widened(value) for name, value in kwargs.items()}
        return function(*args, **kwargs)


def _is_mixed(tensors: Sequence[Tensor]) -> bool:
    """Whether some numbers are in float64 and others in another precision."""
    dtypes = {one.dtype for one in tensors if one.is_floating_point()}
    return torch.float64 in dtypes and len(dtypes) > 1


def _widened(value: Any) -> Any:
    """An argument with all real numbers in float64."""
    if isinstance(value, Tensor):
        return value.double() if value.is_floating_point() and value.dtype != torch.float64 else value
    return type(value)(map(_widened, value)) if type(value) in (list, tuple) else value
