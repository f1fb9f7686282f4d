"""Finds, in a training run, what of the module nothing trains, and says so."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.utilities import rank_zero_info
from torch import nn

from lightning_coreset.held_tensors import note_held
from lightning_coreset.planning import Rule
from lightning_coreset.qualified_names import lies_in, listed
from lightning_coreset.structure import Copy
from lightning_coreset.training.copies import EarlierValues, find_copies
from lightning_coreset.training.flat_copies import check_no_flat_copies
from lightning_coreset.training.mirrors import Mirrors
from lightning_coreset.training.outside_copies import OutsideCopies, users_callbacks
from lightning_coreset.training.shadows import Shadow, held_shadows, registered_shadows
from lightning_coreset.training.trained import trained_in, trained_parameters, without_gradients
from lightning_coreset.training.untrained_parts import Copies, UntrainedParts, find_untrained


class UntrainedFinder:
    """Finds copies and frozen parts of a module.

    Args:
        copies: ``"find"`` to find copies; ``"none"`` if there are none, whatever looks like one; or a mapping from
            modules that are copies to their originals, by name.

    Raises:
        ValueError: If ``copies`` is none of these.
    """

    def __init__(self, copies: Copies = "find") -> None:
        self.copies: Copies = _checked(copies)
        self._earlier: EarlierValues | None = None
        self._said: UntrainedParts | None = None
        self._held: Sequence[Mapping[str, str]] = ()
        self._trained: set[int] = set()
        self._looked: tuple[Any, ...] | None = None

    def begin(self, model: nn.Module) -> None:
        """Start a training run.

        Raises:
            ValueError: If a mapping names a module that does not exist, or two that are not alike.
        """
        self._earlier = self._said = self._looked = None
        if isinstance(self.copies, Mapping):
            _check_pairs(model, self.copies)

    def see(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Remember the values of what nothing trains, at the beginning of training."""
        trained = trained_parameters(pl_module, trainer.optimizers, trainer.callbacks)  # type: ignore[attr-defined]
        known = find_copies(pl_module, trained, EarlierValues()) if self.copies == "find" else {}
        self._earlier = EarlierValues.of(pl_module, trained, known)

    def find(self, trainer: pl.Trainer, pl_module: pl.LightningModule, only: Sequence[Rule]) -> UntrainedParts:
        """What nothing trains, as far as it can be seen now.

        Args:
            trainer: The Trainer.
            pl_module: Its module.
            only: Rules for the layers that are pruned: what they name is not taken for frozen.
        """
        trained = self._trained
        idle = without_gradients(trainer.optimizers)
        return find_untrained(
            pl_module,
            trained,
            self._earlier or EarlierValues(),
            idle=idle,
            copies=self.copies,
            held=self._held,
            only=only,
        )

    def note_held(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Look what is trained by now, and note on the module which tensors it holds that mirror it; on every rank."""
        now = pl_module, trainer.current_epoch, trainer.global_step
        if self._looked == now:
            return
        self._looked, self._trained = now, trained_in(trainer, pl_module)
        shadows: list[Shadow] = []
        if self.copies != "none":
            check_no_flat_copies(pl_module, users_callbacks(trainer).values())
            shadows, _ = held_shadows(pl_module, pl_module, Mirrors(pl_module, self._trained))
        note_held(pl_module, {name: path for shadow in shadows for name, path in shadow.paths.items()})
        self._held = [shadow.mirrored for shadow in shadows]

    def found_since(self, trainer: pl.Trainer, pl_module: pl.LightningModule, parts: UntrainedParts) -> UntrainedParts:
        """The parts, with copies and shadow weights that were made since they were found."""
        if self.copies == "none":
            return parts
        trained = self._trained
        found = find_copies(pl_module, trained, EarlierValues()) if self.copies == "find" else {}
        new = {name: original for name, original in found.items() if not parts.has(name)}
        copies = {**parts.copies, **new}
        known = {name for shadow in parts.shadows for name in shadow}
        shadows = [
            shadow
            for shadow in (*registered_shadows(pl_module, trained, copies), *self._held)
            if known.isdisjoint(shadow)
        ]
        if new or shadows:
            rank_zero_info(_about_copies(new, shadows))
        return replace(parts, copies=copies, shadows=(*parts.shadows, *shadows))

    def report(self, trainer: pl.Trainer, model: pl.LightningModule, parts: UntrainedParts | None) -> None:
        """Say once what was found."""
        if parts is None or (self._said is not None and parts.same_parts(self._said)):
            return
        self._said = parts
        if parts.copies or parts.shadows:
            rank_zero_info(_about_copies(parts.copies, parts.shadows))
        outside = OutsideCopies.of(trainer, model).names
        if outside:
            rank_zero_info(
                f"Found copies of weights that callbacks or attributes keep: {listed(outside)}. They lose the "
                "channels that the weights lose."
            )
        untrained = parts.of(model)
        counts = {name: one.numel() for name, one in model.named_parameters() if name in untrained.uncounted}
        frozen = {
            name: sum(counts.get(one, 0) for one in counts if one.startswith(f"{name}.")) for name in parts.frozen
        }
        frozen = {name: count for name, count in frozen.items() if count}
        if frozen:
            first = next(iter(frozen))
            has_layers = any(True for _ in model.get_submodule(first).children())
            rank_zero_info(_about_frozen(frozen, f"{first}.*" if has_layers else first, _built_alike(model, frozen)))


def _about_copies(copies: Mapping[str, str], shadows: Sequence[Mapping[str, str]]) -> str:
    tensors = [Copy.of_tensors(shadow) for shadow in shadows]
    mirrored = [f"{next(iter(shadow))}, ..." for shadow in shadows]
    pairs = listed(
        [
            *(f"{name} of {original or 'the module'}" for name, original in copies.items()),
            *(f"{name} of {one.original or 'the module'}" for name, one in zip(mirrored, tensors, strict=True)),
        ]
    )
    return (
        f"Found copies that nothing trains: {pairs}. They lose the channels that their originals lose, and do not "
        "count for the pruning ratio. If they are independent, pass copies='none', or the pairs that are copies."
    )


def _about_frozen(frozen: Mapping[str, int], rule: str, alike: Mapping[str, str]) -> str:
    parts = listed([f"{name} ({count:,} parameters)" for name, count in frozen.items()])
    copies = f" If it takes its weights from what it is built like, say copies={dict(alike)!r}." if alike else ""
    return (
        f"Nothing trains {parts}, so it stays whole and does not count for the pruning ratio. A rule of only that "
        f"names its layers, such as only=['{rule}'], prunes it.{copies}"
    )


def _built_alike(model: nn.Module, frozen: Iterable[str]) -> dict[str, str]:
    """Frozen parts with another part of the same parameters by name and shape, from which they may be synchronised."""
    parts = {name: _parameters_of(module) for name, module in model.named_modules() if name}
    found = {}
    for name in frozen:
        own = parts.get(name)
        others = [
            other
            for other, its in parts.items()
            if own and its == own and not any(lies_in(other, part) for part in frozen)
        ]
        if others:
            found[name] = others[0]
    return found


def _parameters_of(module: nn.Module) -> dict[str, torch.Size]:
    return {name: one.shape for name, one in module.named_parameters()}


def _checked(copies: Any) -> Copies:
    if copies in ("find", "none"):
        return copies
    if isinstance(copies, Mapping) and all(isinstance(one, str) for pair in copies.items() for one in pair):
        return dict(copies)
    raise ValueError(
        "Expected copies to be 'find', 'none' or a mapping from the names of modules that are copies to those of their "
        f"originals, such as {{'target': 'online'}}, but got {copies!r}."
    )


def _check_pairs(model: nn.Module, pairs: Mapping[str, str]) -> None:
    modules = dict(model.named_modules())
    for name, original in pairs.items():
        if name == original:
            raise ValueError(f"Expected copies to name a copy and its original but got {name!r} for both.")
        for one in (name, original):
            if one not in modules:
                raise ValueError(
                    f"Expected copies to name modules but got {one!r}, which the module does not have. "
                    "Names are those of model.named_modules()."
                )
        theirs = {other: tensor.shape for other, tensor in modules[original].named_parameters()}
        for other, tensor in modules[name].named_parameters():
            if theirs.get(other) != tensor.shape:
                shape = tuple(theirs[other]) if other in theirs else None
                raise ValueError(
                    f"Expected {name!r} to be a copy of {original!r} but its {other!r} has shape "
                    f"{tuple(tensor.shape)} and that of the original {shape}. Name modules of the same structure, such "
                    "as the module inside of a wrapper."
                )
