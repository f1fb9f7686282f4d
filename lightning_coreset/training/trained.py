"""Which parameters of a module are trained."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import lightning.pytorch as pl
from torch import nn

from lightning_coreset.module_specs import is_size
from lightning_coreset.optimizers import innermost_first, parameters_of
from lightning_coreset.training.optimizer_state import all_optimizers
from lightning_coreset.training.packages import is_lightning_module, kinds


def trained_in(trainer: pl.Trainer, pl_module: pl.LightningModule) -> set[int]:
    """The parameters, by id, that a Trainer's optimizers train, or others that the module keeps."""
    callbacks: list[Any] = trainer.callbacks  # type: ignore[attr-defined]
    return trained_parameters(pl_module, all_optimizers(trainer, pl_module), callbacks)


def trained_parameters(pl_module: nn.Module, optimizers: Iterable[Any], callbacks: Iterable[Any]) -> set[int]:
    """The parameters that optimizers train, or will, by id.

    Those with ``requires_grad`` in any optimizer; all of an optimizer whose parameters are all frozen just now, as a
    GAN's discriminator is while the generator steps; and what a finetuning callback has frozen until later. Without any
    optimizer of the module's parameters all with ``requires_grad`` count: the user steps by hand, or trains copies.

    Args:
        pl_module: The module.
        optimizers: The Trainer's, and others.
        callbacks: The Trainer's.
    """
    trained: set[int] = set()
    known = False
    own = {id(one) for one in pl_module.parameters()}
    for optimizer in optimizers:
        parameters = [one for layer in innermost_first(optimizer) for one in parameters_of(layer)]
        known = known or any(id(one) in own for one in parameters)
        active = [one for one in parameters if one.requires_grad]
        trained |= {id(one) for one in active or parameters}
    if not known:
        trained = {id(one) for one in pl_module.parameters() if one.requires_grad}
    for callback in callbacks:
        if isinstance(callback, kinds("callbacks.BaseFinetuning")) and is_lightning_module(pl_module):
            trained |= _frozen_by(callback, pl_module)
    return trained


def without_gradients(optimizers: Iterable[Any]) -> set[int]:
    """The parameters, by id, that optimizers have, but never step: others have a gradient or a state by now.

    An average of a part of the module is of this kind, if ``configure_optimizers`` passes all parameters of the module.
    """
    idle: set[int] = set()
    for optimizer in optimizers:
        for layer in innermost_first(optimizer):
            parameters = parameters_of(layer)
            stepped = [one for one in parameters if one.grad is not None or one in layer.state]
            if stepped:
                idle |= {id(one) for one in parameters} - {id(one) for one in stepped}
    return idle


def _frozen_by(callback: Any, pl_module: nn.Module) -> set[int]:
    """What a finetuning callback freezes before training: told by letting it do so once more."""
    parameters = list(pl_module.parameters())
    with _flags_kept(pl_module):
        for parameter in parameters:
            parameter.requires_grad_(parameter.is_floating_point() or parameter.is_complex())
        try:
            callback.freeze_before_training(pl_module)
        except Exception:  # of a user's subclass: then nothing of what is frozen is known to stay so
            return {id(one) for one in parameters}
        return {id(one) for one in parameters if not one.requires_grad}


@contextmanager
def _flags_kept(module: nn.Module) -> Iterator[None]:
    """Restore ``requires_grad`` and the flags and numbers of modules: to freeze a BatchNorm sets some."""
    gradients = [(parameter, parameter.requires_grad) for parameter in module.parameters()]
    flags = [
        (one, {name: value for name, value in vars(one).items() if is_size(value) or isinstance(value, (bool, float))})
        for one in module.modules()
    ]
    try:
        yield
    finally:
        for parameter, flag in gradients:
            parameter.requires_grad_(flag)
        for one, values in flags:
            vars(one).update(values)


def untrained_modules(module: nn.Module, trained: Collection[int]) -> list[str]:
    """The largest submodules with parameters none of which is trained, by name, in the order of the module."""
    found: list[str] = []
    seen: set[nn.Module] = set()

    def visit(name: str, one: nn.Module) -> None:
        if one in seen:
            return
        seen.add(one)
        own = [id(parameter) for parameter in one.parameters()]
        if own and name and not any(number in trained for number in own):
            found.append(name)
            return
        for child, inner in one.named_children():
            visit(f"{name}.{child}" if name else child, inner)

    visit("", module)
    return found
