"""See which networks a step calls, whatever the step is: the outermost calls of modules in it."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping, MutableMapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from torchmetrics import Metric, MetricCollection

from lightning_coreset._compat import in_backward, is_compiled_in_place, is_torch_loss, without_compile_wrapper


@dataclasses.dataclass(frozen=True, eq=False)
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


@dataclasses.dataclass(eq=False)
class _Running:
    """A call that has not returned yet; ``name`` is ``None`` where it will not be recorded."""

    module: nn.Module
    name: str | None
    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = dataclasses.field(default_factory=dict)
    before: tuple[tuple[Any, ...], dict[str, Any]] | None = None


class ForwardRecorder:
    """Record the calls that a step makes of a module and its submodules, but for the calls within such calls.

    ``self.decoder(self.encoder(x))`` in a step makes two calls. ``self(x)`` makes one, of the module itself, and what
    its ``forward`` does is not looked at. A module that is called twice makes two calls. Not recorded are

    - metrics of torchmetrics, and what they call;
    - losses: modules without parameters that are torch's own losses or return nothing but scalars. Other modules
      without parameters (``Softmax``, ``Flatten``, augmentations) may well stand between networks;
    - calls that raise or return ``None``;
    - calls in the backward pass, where activation checkpointing calls the inside of networks anew;
    - calls inside code compiled by ``torch.compile``; ``torch.compile(module)`` itself is recorded, but not what is
      compiled in place (``module.compile()``).

    Recording goes on from entering the context (or ``start``) to leaving it (or ``stop``). A copy or a pickle of the
    module, made meanwhile, records nothing.

    Args:
        module: The module, mostly a LightningModule.
        only: Qualified names of the submodules to watch, as they were recorded before, all others not being seen; by
            default all are watched.
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
            watched = _called_from_python(self._module)
        else:  # seen in an earlier step; to walk over a large network in every step takes longer than to watch it
            watched = ((name, self._module.get_submodule(name)) for name in self._only)
        for name, module in watched:
            before, after = _Hook(partial(self._before, name)), _Hook(self._after)
            self._handles.append(module.register_forward_pre_hook(before, with_kwargs=True))
            self._handles.append(module.register_forward_hook(after, with_kwargs=True, always_call=True))

    def stop(self) -> None:
        """Stop recording; ``calls`` stay."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._running.clear()

    def clear(self) -> None:
        """Forget all calls, and with them the last reference to their tensors."""
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
        if not self._running and not isinstance(module, Metric | MetricCollection):
            call.name, call.args, call.kwargs = name, detach(args), detach(kwargs)
            if self._copy_inputs:
                call.before = copied((call.args, call.kwargs))
        self._running.append(call)

    def _after(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        # A call may return without having begun: a hook of the user's raised before ours ran.
        if all(call.module is not module for call in self._running):
            return
        while (call := self._running.pop()).module is not module:
            pass
        if call.name is not None and output is not None and not _is_loss(module, output):
            self.calls.append(Call(call.name, module, call.args, call.kwargs, detach(output), call.before))


def detach(tree: Any) -> Any:
    """Detach all tensors in nested tuples, lists, mappings and dataclasses.

    Example:
        >>> detach({"logits": torch.ones(1, requires_grad=True)})
        {'logits': tensor([1.])}
    """
    return map_tensors(Tensor.detach, tree)


def copied(tree: Any) -> Any:
    """Copy all tensors in nested tuples, lists, mappings and dataclasses."""
    return map_tensors(torch.clone, tree)


def map_tensors(function: Callable[[Tensor], Any], tree: Any) -> Any:
    """Copy nested tuples, lists, mappings and dataclasses, with a function applied to the tensors in them.

    Anything else is passed on as it is. Keeps types, also those of Hugging Face's outputs and of frozen dataclasses.

    Example:
        >>> map_tensors(lambda tensor: tuple(tensor.shape), [torch.ones(2, 3), {"a": (torch.ones(4), "b")}])
        [(2, 3), {'a': ((4,), 'b')}]
    """
    mapped = partial(map_tensors, function)
    if isinstance(tree, Tensor):
        return function(tree)
    if isinstance(tree, tuple) and hasattr(tree, "_fields"):
        return type(tree)(*map(mapped, tree))
    if type(tree) in (tuple, list):
        return type(tree)(map(mapped, tree))
    if isinstance(tree, MutableMapping):  # before dataclasses: the outputs of Hugging Face are both
        result = copy.copy(tree)
        for key, value in tree.items():
            result[key] = mapped(value)
        return result
    if dataclasses.is_dataclass(tree) and not isinstance(tree, type):
        result = copy.copy(tree)
        for field in dataclasses.fields(tree):
            if hasattr(tree, field.name):
                object.__setattr__(result, field.name, mapped(getattr(tree, field.name)))
        return result
    return tree


def named_tensors(tree: Any, path: tuple[Any, ...] = ()) -> dict[tuple[Any, ...], Tensor]:
    """Return the tensors in nested tuples, lists, mappings and dataclasses, by the keys that lead to them.

    Example:
        >>> sorted(named_tensors([torch.ones(2), {"a": torch.ones(3), "b": "text"}]))
        [(0,), (1, 'a')]
    """
    if isinstance(tree, Tensor):
        return {path: tree}
    if isinstance(tree, Mapping):  # before dataclasses: the outputs of Hugging Face are both
        items: Iterable[tuple[Any, Any]] = tree.items()
    elif isinstance(tree, tuple | list):
        items = enumerate(tree)
    elif dataclasses.is_dataclass(tree) and not isinstance(tree, type):
        items = [(f.name, getattr(tree, f.name)) for f in dataclasses.fields(tree) if hasattr(tree, f.name)]
    else:
        return {}
    return {name: tensor for key, value in items for name, tensor in named_tensors(value, (*path, key)).items()}


class _Hook:
    """A hook that stays behind where its module is copied or pickled: a bound method would drag all calls along."""

    def __init__(self, function: Callable[..., None]) -> None:
        self._function = function

    def __call__(self, *args: Any) -> None:
        if not torch.compiler.is_compiling():
            self._function(*args)

    def __reduce__(self) -> tuple[Any, ...]:
        return _Hook, (_do_nothing,)


def _do_nothing(*args: Any) -> None:
    pass


def _called_from_python(module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Walk over the modules of a network, but for those within compiled code.

    Hooks on them would see nothing, and would have it compiled anew whenever they come or go, until it is given up.
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
    """Tell a step in disguise: under DDP Lightning calls the module with its ``forward`` replaced by the step."""
    return getattr(module.__dict__.get("forward"), "__name__", None) == "wrapped_forward"


def _is_loss(module: nn.Module, output: Any) -> bool:
    returns_loss = is_torch_loss(module) or all(tensor.ndim == 0 for tensor in named_tensors(output).values())
    return returns_loss and next(module.parameters(), None) is None
