"""Run a user's hooks to see what they do, without their side effects."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import lightning.pytorch as pl

from lightning_coreset._compat import trainer_of
from lightning_coreset.state import ModuleState
from lightning_coreset.structure import preserved_random
from lightning_coreset.training.packages import is_lightning_module


@contextmanager
def isolated(module: pl.LightningModule, *, parameters: bool = True) -> Iterator[None]:
    """Undo what the block does to a LightningModule, also if it raises.

    Inside, ``log``, ``log_dict`` and ``print`` of the module (and of LightningModules within it) do nothing. The
    Trainer's loggers do not write either: their ``experiment`` and their methods that write are replaced, while their
    names and directories can be read. Gradients are ``None``.

    Afterwards everything is as before, and the same objects: parameters and buffers of whatever size, states of
    torchmetrics, train and eval mode, gradients and ``requires_grad``, hooks, and all plain attributes of all modules,
    with the content of tensors, containers, numpy arrays, generators of random numbers and iterators, and the
    attributes of objects, functions and classes of the user's that they hold. The random states of torch (on the CPU
    and on the CUDA devices of the module's parameters), of ``random`` and of numpy are restored.

    Not undone, since it cannot be seen: global variables, what other objects of the program keep (the Trainer, loaders,
    loggers, threads), and other output of the process (``print``, files).

    Args:
        module: The LightningModule, with or without a Trainer.
        parameters: Whether the content of parameters is restored as well. For this every operation is looked at.

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
    before = ModuleState(module)
    try:
        before.hide_gradients()
        for each in module.modules():
            if is_lightning_module(each):
                each.__dict__.update(log=_ignore, log_dict=_ignore, print=_ignore)
        with preserved_random(module), _silent_loggers(module), before.watching() if parameters else nullcontext():
            yield
    finally:
        before.restore()


@contextmanager
def _silent_loggers(module: pl.LightningModule) -> Iterator[None]:
    # `LightningModule.logger` is a property that asks the Trainer: an attribute of the module cannot replace it.
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
    """Accepts every call, attribute and item, and does nothing."""

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
    """Replaces a logger, is an instance of its class for ``isinstance``, and does not write."""

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
