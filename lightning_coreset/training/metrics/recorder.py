"""Record which networks a step calls, whatever the step is: the outermost calls of modules in it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from torchmetrics import Metric, MetricCollection

from lightning_coreset._compat import (
    in_backward,
    is_compiled_in_place,
    is_torch_loss,
    without_compile_wrapper,
    without_transforms,
)
from lightning_coreset.nested import map_tensors, tensors_by_path


@dataclass(frozen=True, eq=False)
class Call:
    """One call of a module.

    Attributes:
        name: Qualified name of the module; empty for the LightningModule itself, called as ``self(x)``.
        module: The module.
        args: Positional arguments, tensors detached.
        kwargs: Keyword arguments, tensors detached.
        output: What the call returned, tensors detached.
        before: Copies of ``args`` and ``kwargs`` from before the call, if asked for: a network may write to its inputs.
    """

    name: str
    module: nn.Module
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    output: Any
    before: tuple[tuple[Any, ...], dict[str, Any]] | None = None


@dataclass(eq=False)
class _Running:
    """A call that has not returned yet; ``name`` is ``None`` if it will not be recorded."""

    module: nn.Module
    name: str | None
    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = field(default_factory=dict)
    before: tuple[tuple[Any, ...], dict[str, Any]] | None = None


class ForwardRecorder:
    """Record the outermost calls that a step makes of a module and its submodules.

    ``self.decoder(self.encoder(x))`` in a step gives two calls. ``self(x)`` gives one, of the module itself; the calls
    within its ``forward`` are not recorded. A module that is called twice gives two calls. Not recorded are

    - metrics of torchmetrics, and what they call;
    - losses: modules without parameters that are torch's own losses or return only scalars. Other modules without
      parameters (``Softmax``, ``Flatten``, augmentations) may be between two networks;
    - calls that raise or return ``None``;
    - calls in the backward pass, where activation checkpointing calls parts of networks again;
    - calls on what a transform of ``torch.func`` has wrapped, which has no values outside of the transform;
    - calls inside code compiled by ``torch.compile``; ``torch.compile(module)`` itself is recorded, but not what is
      compiled in place (``module.compile()``).

    Calls are recorded from entering the context (or ``start``) until leaving it (or ``stop``). A copy or a pickle of
    the module made in that time records nothing.

    Args:
        module: The module, usually a LightningModule.
        only: Qualified names of the submodules to watch, as in the ``name`` of earlier calls; by default all.
        copy_inputs: Whether to copy the inputs before each call, as :attr:`Call.before`.

    Attributes:
        calls: The calls so far, in the order in which they returned.

    Example:
        >>> network = nn.Sequential(nn.Linear(3, 4), nn.ReLU())
        >>> with ForwardRecorder(network) as recorder:
        ...     _ = network(torch.ones(2, 3))
        ...     _ = network[0](torch.ones(5, 3))
        >>> [(call.name, tuple(call.output.shape)) for call in recorder.calls]
        [('', (2, 4)), ('0', (5, 4))]
    """

    def __init__(self, module: nn.Module, *, only: set[str] | None = None, copy_inputs: bool = False) -> None:
        self.calls: list[Call] = []
        self._module = module
        self._only = only
        self._copy_inputs = copy_inputs
        self._running: list[_Running] = []
        self._handles: list[RemovableHandle] = []

    def start(self) -> None:
        """Begin to record; starting twice is starting once."""
        if self._handles:
            return
        if self._only is None:
            watched = called_from_python(self._module)
        else:  # walking over all modules of a large network takes longer than recording one of them
            watched = ((name, self._module.get_submodule(name)) for name in self._only)
        for name, module in watched:
            if isinstance(module, torch.jit.ScriptModule):  # has no hooks
                continue
            before, after = Hook(partial(self._before, name)), Hook(self._after)
            self._handles.append(module.register_forward_pre_hook(before, with_kwargs=True))
            self._handles.append(module.register_forward_hook(after, with_kwargs=True, always_call=True))

    def stop(self) -> None:
        """Stop recording; ``calls`` stay."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._running.clear()

    def clear(self) -> None:
        """Drop all calls, and with them the last references to their tensors."""
        self.calls.clear()
        self._running.clear()

    def __enter__(self) -> ForwardRecorder:
        self.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.stop()

    def _before(self, name: str, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if in_backward() or _is_redirected(module):
            return
        call = _Running(module, None)
        if (
            not self._running
            and not isinstance(module, Metric | MetricCollection)
            and not _is_transformed(args, kwargs)
        ):
            call.name, call.args, call.kwargs = name, _detached(args), _detached(kwargs)
            if self._copy_inputs:
                call.before = map_tensors(torch.clone, (call.args, call.kwargs))
        self._running.append(call)

    def _after(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        # A call may return without having begun: a hook of the user's raised before ours ran.
        if all(call.module is not module for call in self._running):
            return
        while (call := self._running.pop()).module is not module:
            pass
        if call.name is not None and output is not None and not _is_loss(module, output):
            self.calls.append(Call(call.name, module, call.args, call.kwargs, _detached(output), call.before))


def _detached(tree: Any) -> Any:
    return map_tensors(Tensor.detach, tree)


class Hook:
    """A hook whose copies and pickles do nothing: a bound method would be copied with the recorder and all calls."""

    def __init__(self, function: Callable[..., None]) -> None:
        self._function = function

    def __call__(self, *args: Any) -> None:
        """Call the function."""
        if not torch.compiler.is_compiling():
            self._function(*args)

    def __reduce__(self) -> tuple[Any, ...]:
        return Hook, (_do_nothing,)


def _do_nothing(*args: Any) -> None:
    pass


def called_from_python(module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Yield the modules of a network except those within compiled code.

    Hooks on these would never run, and adding or removing one makes torch recompile, until it gives up compiling.
    """
    hidden: set[nn.Module] = set()
    for name, each in module.named_modules():
        inner = without_compile_wrapper(each)
        if inner is not each:
            hidden.update(inner.modules())
        elif is_compiled_in_place(each):
            hidden.update(each.modules())
        if each not in hidden:
            yield name, each


def _is_redirected(module: nn.Module) -> bool:
    """Whether ``forward`` is replaced by a step, as Lightning does while it calls DDP's wrapper."""
    return getattr(module.__dict__.get("forward"), "__name__", None) == "wrapped_forward"


def _is_transformed(*trees: Any) -> bool:
    return any(without_transforms(tensor) is not tensor for tensor in tensors_by_path(trees).values())


def _is_loss(module: nn.Module, output: Any) -> bool:
    returns_loss = is_torch_loss(module) or all(tensor.ndim == 0 for tensor in tensors_by_path(output).values())
    return returns_loss and next(module.parameters(), None) is None
