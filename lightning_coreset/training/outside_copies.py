"""Copies of a module's weights that lie outside of it: in callbacks, and in attributes where nothing registers them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from lightning_coreset.followers import follow, hold_weights
from lightning_coreset.indexing import index_dims
from lightning_coreset.plan import AttributeChange, ParameterChange, PruningPlan
from lightning_coreset.surgery import (
    ModelShapes,
    Snapshot,
    apply_changes,
    named_tensors,
    registered_tensors,
    replace_data,
    resize,
)
from lightning_coreset.training.averaged_models import averaged_copies
from lightning_coreset.training.mirrors import Match, Mirrors
from lightning_coreset.training.optimizer_state import copy_to_cpu
from lightning_coreset.training.shadows import Shadow, held_shadows

_OWN = __name__.partition(".")[0]


@dataclass(frozen=True, eq=False)
class HeldModule:
    """A module outside of the LightningModule that is a copy of it or of a part of it.

    Attributes:
        module: The copy.
        mirrored: The names of the tensors that it mirrors, by the names of its own.
        original: The name of the module that it is a copy of.
    """

    module: nn.Module
    mirrored: Mapping[str, str]
    original: str

    def shrink(self, tensors: Mapping[str, Tensor], plan: PruningPlan) -> None:
        """Cut it as its original is about to be, by a plan for the LightningModule with these tensors."""
        own, names = registered_tensors(self.module), {full: name for name, full in self.mirrored.items()}
        changes = []
        for change in plan.changes:
            if change.name in names:
                name = names[change.name]
                value = None if change.value is None else follow(own[name], change, tensors[change.name], change.value)
                of, follows = names.get(change.norm_of or ""), names.get(change.follows or "")
                changes.append(replace(change, name=name, value=value, norm_of=of, follows=follows))
        apply_changes(self.module, changes, list(self._attributes(plan)))

    def _attributes(self, plan: PruningPlan) -> Iterator[AttributeChange]:
        prefix = f"{self.original}." if self.original else ""
        for change in plan.attributes:
            if change.module == self.original or change.module.startswith(prefix):
                yield replace(change, module=change.module[len(prefix) :])


@dataclass(frozen=True, eq=False)
class OutsideCopies:
    """All copies of a LightningModule's weights that lie outside of it.

    Attributes:
        shadows: Collections of tensors in callbacks.
        own: The same in the module, which are cut with it as tensors of its own.
        modules: Modules, by name.
    """

    shadows: tuple[Shadow, ...]
    own: tuple[Shadow, ...]
    modules: Mapping[str, HeldModule]

    @classmethod
    def of(cls, trainer: pl.Trainer, pl_module: pl.LightningModule) -> OutsideCopies:
        """Those that there are now. Averaged models, which other parts see to, are left out."""
        mirrors = Mirrors(pl_module, {id(one) for one in pl_module.parameters()})
        own, shadows, modules = outside_of(trainer, pl_module, mirrors)
        held = {name: copy for name, module in modules.items() if (copy := _as_copy(module, mirrors)) is not None}
        return cls(tuple(shadows), tuple(own), held)

    @torch.no_grad()
    def shrink(self, pl_module: pl.LightningModule, plan: PruningPlan) -> None:
        """Cut them as the module is about to be, by a plan for it."""
        tensors = named_tensors(pl_module)
        changes = {change.name: change for change in plan.changes}
        ready = [one for shadow in self.shadows for one in _new_values(shadow, changes, tensors)]
        for held in self.modules.values():
            held.shrink(tensors, plan)
        for tensor, value in ready:
            replace_data(tensor, value)

    @property
    def names(self) -> list[str]:
        """What they are called, one name for each collection."""
        return [*(f"{next(iter(shadow.tensors))}, ..." for shadow in self.shadows), *self.modules]

    def snapshot(self) -> OutsideSnapshot:
        """To undo surgery."""
        tensors = [(tensor, tensor.data) for tensor in self._tensors().values()]
        return OutsideSnapshot(tensors, [Snapshot(held.module) for held in self.modules.values()])

    def to_dict(self) -> dict[str, Any]:
        """Copies of all tensors, on the CPU, and the sizes of modules, as plain data."""
        modules = {}
        for name, held in self.modules.items():
            shapes = ModelShapes.of(held.module)
            modules[name] = {
                "shapes": {one: list(shape) for one, shape in shapes.shapes.items()},
                "sizes": dict(shapes.sizes),
                "tensors": copy_to_cpu(registered_tensors(held.module)),
            }
        return {"shadows": copy_to_cpu(self._tensors()), "modules": modules}

    def _tensors(self) -> dict[str, Tensor]:
        return {name: one for shadow in (*self.shadows, *self.own) for name, one in shadow.tensors.items()}

    @torch.no_grad()
    def load(self, content: Mapping[str, Any]) -> None:
        """Put back what :meth:`to_dict` gave; what was not there then, or is not now, is left as it is."""
        saved_tensors, saved_modules = content.get("shadows", {}), content.get("modules", {})
        for name, tensor in self._tensors().items():
            if name in saved_tensors:
                replace_data(tensor, saved_tensors[name].to(tensor.device, tensor.dtype, copy=True))
        for name, held in self.modules.items():
            if name in saved_modules:
                saved = saved_modules[name]
                shapes = {one: tuple(shape) for one, shape in saved["shapes"].items()}
                resize(held.module, ModelShapes(shapes, saved["sizes"]))
                for one, tensor in registered_tensors(held.module).items():
                    tensor.data.copy_(saved["tensors"][one])


@dataclass(frozen=True, eq=False)
class OutsideSnapshot:
    """What to go back to within an event."""

    tensors: list[tuple[Tensor, Tensor]]
    modules: list[Snapshot]

    def restore(self) -> None:
        """Put the old tensors back."""
        for tensor, value in self.tensors:
            if tensor.data_ptr() != value.data_ptr() or tensor.shape != value.shape:
                replace_data(tensor, value)
        for snapshot in self.modules:
            snapshot.restore()


def outside_of(
    trainer: pl.Trainer, pl_module: pl.LightningModule, mirrors: Mirrors
) -> tuple[list[Shadow], list[Shadow], dict[str, nn.Module]]:
    """Collections of tensors in the module and in callbacks that mirror weights, and modules that nothing registers."""
    own, modules = held_shadows(pl_module, pl_module, mirrors)
    shadows: list[Shadow] = []
    for number, callback in users_callbacks(trainer).items():
        found, more = held_shadows(callback, pl_module, mirrors, f"{type(callback).__name__} {number}: ")
        shadows += found
        modules |= more
    known = {id(one) for one in averaged_copies(trainer)}
    return own, shadows, {name: module for name, module in modules.items() if id(module) not in known}


def users_callbacks(trainer: pl.Trainer) -> dict[int, Any]:
    """The callbacks of users' classes, by their place among all."""
    callbacks: list[Any] = trainer.callbacks  # type: ignore[attr-defined]
    origins = [[kind.__module__.partition(".")[0] for kind in type(one).__mro__] for one in callbacks]
    return {
        number: one
        for number, (one, own) in enumerate(zip(callbacks, origins, strict=True))
        if own[0] not in ("lightning", "pytorch_lightning") and _OWN not in own
    }


def _as_copy(module: nn.Module, mirrors: Mirrors) -> HeldModule | None:
    """A module as a copy, if it is one: its parameters have the names and shapes of a part, and values near to it."""
    copy = alike(module, mirrors)
    if copy is None or mirrors.distance(Match(copy.mirrored), registered_tensors(module)) is None:
        return None
    return copy


def alike(module: nn.Module, mirrors: Mirrors) -> HeldModule | None:
    """A module as a copy of the part that has the same names and shapes, whatever its values are."""
    match = next(iter(mirrors.of(registered_tensors(module))), None)
    names = {name for name, one in module.named_parameters() if is_lazy(one) or one.dim() > 0}
    if match is None or not names <= match.names.keys():
        return None
    key, full = next(iter(match.names.items()))
    if not full.endswith(key):
        return None
    return HeldModule(module, match.names, full[: len(full) - len(key)].removesuffix("."))


def _new_values(
    shadow: Shadow, changes: Mapping[str, ParameterChange], tensors: Mapping[str, Tensor]
) -> Iterator[tuple[Tensor, Tensor]]:
    """The tensors of a shadow that change, each with its new value."""
    pairs = [(tensor, tensors[shadow.mirrored[name]]) for name, tensor in shadow.tensors.items()]
    follows = hold_weights(pairs)
    for name, tensor in shadow.tensors.items():
        full = shadow.mirrored[name]
        change, weights = changes.get(full), tensors[full]
        if change is None or not (change.kept or follows):
            continue
        if tensor.data_ptr() == weights.data_ptr():  # the weights themselves, by another name
            continue
        if not follows:
            yield tensor, index_dims(tensor, change.kept)
        elif change.value is None:
            yield tensor, follow(tensor, replace(change, norm_of=None), weights, weights)
        else:
            yield tensor, follow(tensor, change, weights, change.value)
