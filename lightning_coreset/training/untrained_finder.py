"""Finds, in a training run, what of the module nothing trains, and says so."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.utilities import rank_zero_info
from torch import nn

from lightning_coreset.planning import Rule
from lightning_coreset.training.copies import EarlierValues, find_copies
from lightning_coreset.training.optimizer_state import all_optimizers
from lightning_coreset.training.trained import trained_parameters, without_gradients
from lightning_coreset.training.untrained_parts import Copies, UntrainedParts, find_untrained

_MOST_NAMES = 4


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

    def begin(self, model: nn.Module) -> None:
        """Start a training run.

        Raises:
            ValueError: If a mapping names a module that does not exist, or two that are not alike.
        """
        self._earlier = self._said = None
        if isinstance(self.copies, Mapping):
            _check_pairs(model, self.copies)

    def see(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Remember the values of what nothing trains, at the beginning of training."""
        trained = _trained(trainer, pl_module)
        known = find_copies(pl_module, trained, EarlierValues()) if self.copies == "find" else {}
        self._earlier = EarlierValues.of(pl_module, trained, known)

    def find(self, trainer: pl.Trainer, pl_module: pl.LightningModule, only: Sequence[Rule]) -> UntrainedParts:
        """What nothing trains, as far as it can be seen now.

        Args:
            trainer: The Trainer.
            pl_module: Its module.
            only: Rules for the layers that are pruned: what they name is not taken for frozen.
        """
        trained = _trained(trainer, pl_module)
        idle = without_gradients(trainer.optimizers)
        return find_untrained(
            pl_module, trained, self._earlier or EarlierValues(), idle=idle, copies=self.copies, only=only
        )

    def made_since(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, parts: UntrainedParts
    ) -> Mapping[str, str]:
        """The copies, with those that were made since the parts were found."""
        if self.copies != "find":
            return parts.copies
        found = find_copies(pl_module, _trained(trainer, pl_module), EarlierValues())
        new = {name: original for name, original in found.items() if not parts.has(name)}
        if new:
            rank_zero_info(_about_copies(new))
        return {**parts.copies, **new}

    def report(self, model: nn.Module, parts: UntrainedParts | None) -> None:
        """Say once what was found."""
        if parts is None or (self._said is not None and parts.same_parts(self._said)):
            return
        self._said = parts
        if parts.copies:
            rank_zero_info(_about_copies(parts.copies))
        untrained = parts.of(model)
        counts = {name: one.numel() for name, one in model.named_parameters() if name in untrained.uncounted}
        frozen = {
            name: sum(counts.get(one, 0) for one in counts if one.startswith(f"{name}.")) for name in parts.frozen
        }
        frozen = {name: count for name, count in frozen.items() if count}
        if frozen:
            first = next(iter(frozen))
            has_layers = any(True for _ in model.get_submodule(first).children())
            rank_zero_info(_about_frozen(frozen, f"{first}.*" if has_layers else first))


def _trained(trainer: pl.Trainer, pl_module: pl.LightningModule) -> set[int]:
    callbacks: list[Any] = trainer.callbacks  # type: ignore[attr-defined]
    return trained_parameters(pl_module, all_optimizers(trainer, pl_module), callbacks)


def _about_copies(copies: Mapping[str, str]) -> str:
    pairs = _listed([f"{name} of {original or 'the module'}" for name, original in copies.items()])
    return (
        f"Found copies that nothing trains: {pairs}. They lose the channels that their originals lose, and do not "
        "count for the pruning ratio. If they are independent, pass copies='none', or the pairs that are copies."
    )


def _about_frozen(frozen: Mapping[str, int], rule: str) -> str:
    parts = _listed([f"{name} ({count:,} parameters)" for name, count in frozen.items()])
    return (
        f"Nothing trains {parts}, so it stays whole and does not count for the pruning ratio. A rule of only that "
        f"names its layers, such as only=['{rule}'], prunes it."
    )


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - _MOST_NAMES} more" if len(names) > _MOST_NAMES else ""
    return ", ".join(names[:_MOST_NAMES]) + more


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
