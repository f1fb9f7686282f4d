"""Run a user's hooks to look at what they do, as if they had never run."""

from __future__ import annotations

import random
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor, nn

from lightning_coreset._compat import own_tensors, trainer_of


@contextmanager
def isolated(module: pl.LightningModule) -> Iterator[None]:
    """Undo what the block does to a LightningModule, also if it raises.

    Inside, ``log``, ``log_dict`` and ``print`` of the module (and of LightningModules within it) do nothing, and
    neither do the Trainer's loggers: their ``experiment`` and whatever writes are stand-ins, while their names and
    directories can be read. Gradients are out of sight.

    Afterwards everything is as before, and the same objects: buffers, states of torchmetrics, flags of train and eval
    mode, gradients and ``requires_grad``, hooks, and all plain attributes of all modules, with the content of tensors,
    lists, dicts, deques, sets, and of what these hold. The random numbers of torch (on the CPU and on the CUDA devices
    of the module's parameters), of ``random`` and of numpy go on where they were.

    Not undone, for it would cost a copy of the model or could not be known: the content of parameters (so no optimizer
    may step in the block, as the ``training_step`` of manual optimization does), attributes of objects that are neither
    modules nor containers, and what leaves the process by other ways (``print``, files).

    Args:
        module: The LightningModule, with or without a Trainer.

    Example:
        >>> model = pl.LightningModule()
        >>> model.seen = []
        >>> with isolated(model):
        ...     model.seen.append(1)
        ...     model.print("not printed")
        ...     model.log("loss", 0.5)  # without a Trainer this would raise
        >>> model.seen
        []
    """
    snapshot = _Snapshot(module)
    try:
        snapshot.hide_gradients()
        for each in module.modules():
            if isinstance(each, pl.LightningModule):
                each.__dict__.update(log=_ignore, log_dict=_ignore, print=_ignore)
        with _random_numbers(module), _silent_loggers(module):
            yield
    finally:
        snapshot.restore()


class _Snapshot:
    """What can be reached from a module through modules and containers, and how to bring it back."""

    def __init__(self, module: nn.Module) -> None:
        self._restorers: list[Callable[[], object]] = []
        self._parameters: list[tuple[nn.Parameter, Tensor | None, bool]] = []
        # Their ids stand for the objects, which the restorers keep alive.
        seen: set[int] = set()
        pending: list[Any] = [module]
        while pending:
            value = pending.pop()
            if id(value) not in seen:
                seen.add(id(value))
                pending.extend(self._save(value))

    def hide_gradients(self) -> None:
        """Take the gradients away: cheaper than copying them, for ``backward`` would add to them in place."""
        for parameter, _, _ in self._parameters:
            parameter.grad = None

    def restore(self) -> None:
        for restore in self._restorers:
            restore()
        for parameter, grad, requires_grad in self._parameters:
            parameter.requires_grad_(requires_grad)
            parameter.grad = grad

    def _save(self, value: Any) -> Iterable[Any]:
        """Save a value, and return what it holds."""
        if isinstance(value, nn.Parameter):
            self._parameters.append((value, value.grad, value.requires_grad))
        elif isinstance(value, Tensor):
            if not nn.parameter.is_lazy(value) and not value.is_meta:
                self._restorers.append(partial(_restore_tensor, value, value.detach().clone()))
        elif isinstance(value, nn.Module):
            if any(map(nn.parameter.is_lazy, own_tensors(value).values())):
                return value.children()  # the first call makes it another class, which cannot be undone
            return (vars(value),)
        elif isinstance(value, dict):
            self._restorers.append(partial(_restore_dict, value, dict(value)))
            return value.values()
        elif isinstance(value, list | deque):
            self._restorers.append(partial(_restore_sequence, value, list(value)))
            return value
        elif isinstance(value, set):
            self._restorers.append(partial(_restore_set, value, set(value)))
        elif isinstance(value, tuple):
            return value
        elif isinstance(value, torch.Generator):
            self._restorers.append(partial(value.set_state, value.get_state()))
        return ()


def _restore_tensor(tensor: Tensor, content: Tensor) -> None:
    # Through `data`: autograd must not take the content for changed, for it is what it was, and the states of metrics
    # that were reset during validation are inference tensors, which cannot be written to directly.
    if tensor.shape != content.shape:
        tensor.data = content
    elif tensor.layout is not torch.strided or not torch.equal(tensor, content):
        tensor.data.copy_(content)


# The containers are written to only where they differ: a module's own dict is among them, and so are those of what the
# user shares between threads.
def _restore_dict(container: dict[Any, Any], content: dict[Any, Any]) -> None:
    if list(container) != list(content) or any(container[key] is not value for key, value in content.items()):
        container.clear()
        container.update(content)


def _restore_sequence(container: list[Any] | deque[Any], content: list[Any]) -> None:
    if len(container) != len(content) or any(a is not b for a, b in zip(container, content, strict=True)):
        container.clear()
        container.extend(content)


def _restore_set(container: set[Any], content: set[Any]) -> None:
    if container != content:
        container.clear()
        container.update(content)


@contextmanager
def _random_numbers(module: nn.Module) -> Iterator[None]:
    devices = {parameter.device for parameter in module.parameters() if parameter.is_cuda}
    numpy_random = sys.modules.get("numpy.random")
    python_state = random.getstate()
    numpy_state = numpy_random.get_state() if numpy_random else None
    try:
        with torch.random.fork_rng(devices):
            yield
    finally:
        random.setstate(python_state)
        if numpy_random:
            numpy_random.set_state(numpy_state)


@contextmanager
def _silent_loggers(module: pl.LightningModule) -> Iterator[None]:
    # `LightningModule.logger` is a property, which nothing in the module's own dict can shadow: it asks the Trainer.
    trainer: Any = trainer_of(module)
    if trainer is None:
        yield
        return
    loggers = trainer.loggers
    trainer.loggers = [_SilentLogger(logger) for logger in loggers]
    try:
        yield
    finally:
        trainer.loggers = loggers


class _Nothing:
    """Whatever is done with it, nothing happens."""

    def __getattr__(self, name: str) -> _Nothing:
        if name.startswith("__"):
            raise AttributeError(name)
        return self

    def __call__(self, *args: Any, **kwargs: Any) -> _Nothing:
        return self

    def __getitem__(self, key: Any) -> _Nothing:
        return self

    def __setitem__(self, key: Any, value: Any) -> None:
        pass


class _SilentLogger:
    """A logger's stand-in, of the same class as far as ``isinstance`` can tell, that does not write."""

    experiment = _Nothing()

    def __init__(self, logger: Any) -> None:
        self._logger = logger

    @property
    def __class__(self) -> type:  # pyright: ignore[reportIncompatibleMethodOverride]
        return type(self._logger)

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._logger, name)
        writes = name.startswith(("log", "watch")) or name in ("save", "finalize", "after_save_checkpoint")
        return _ignore if writes and callable(value) else value


def _ignore(*args: Any, **kwargs: Any) -> None:
    pass
