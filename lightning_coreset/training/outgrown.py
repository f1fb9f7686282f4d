"""Copies of weights that are in no checkpoint, and are as large as the model was built when a smaller one is loaded."""

from __future__ import annotations

import lightning.pytorch as pl
import torch
from lightning.pytorch.utilities import rank_zero_warn

from lightning_coreset.followers import hold_weights
from lightning_coreset.qualified_names import listed
from lightning_coreset.surgery import ModelShapes, named_tensors, original_shapes, replace_data, resize
from lightning_coreset.training.mirrors import Mirrors
from lightning_coreset.training.outside_copies import OutsideCopies, alike, outside_of


class OutgrownCopies:
    """Makes copies that a checkpoint did not bring as large as the weights that they mirror.

    What held the weights before the checkpoint was loaded starts from the model's present ones, as a new average does;
    other numbers start from zero.
    """

    def __init__(self) -> None:
        self._weights: set[str] = set()

    def remember(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Before a checkpoint is loaded: which copies hold the weights."""
        tensors = named_tensors(pl_module)
        copies = OutsideCopies.of(trainer, pl_module)
        for shadow in (*copies.own, *copies.shadows):
            if hold_weights((one, tensors[shadow.mirrored[name]]) for name, one in shadow.tensors.items()):
                self._weights |= shadow.tensors.keys()
        self._weights |= copies.modules.keys()

    @torch.no_grad()
    def renew(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Once it is loaded: start those anew that have the sizes from before pruning."""
        shapes = ModelShapes.of(pl_module).shapes
        before = original_shapes(pl_module).shapes
        if before == shapes:
            return
        mirrors = Mirrors(pl_module, {id(one) for one in pl_module.parameters()}, before)
        renewed: list[str] = []
        own, shadows, modules = outside_of(trainer, pl_module, mirrors)
        for shadow in (*own, *shadows):
            weights = {name: mirrors.tensors[full].detach() for name, full in shadow.mirrored.items()}
            if any(tensor.shape != weights[name].shape for name, tensor in shadow.tensors.items()):
                for name, tensor in shadow.tensors.items():
                    new = weights[name].to(tensor, copy=True)
                    replace_data(tensor, new if name in self._weights else torch.zeros_like(new))
                renewed.append(f"{next(iter(shadow.tensors))}, ...")
        for name, module in modules.items():
            copy = alike(module, mirrors) if name in self._weights else None
            original = None if copy is None else pl_module.get_submodule(copy.original)
            if original is not None and ModelShapes.of(module).shapes != ModelShapes.of(original).shapes:
                shapes_of = ModelShapes.of(original)
                resize(module, shapes_of.restrict(ModelShapes.of(module)))
                module.load_state_dict(original.state_dict(), strict=False)
                renewed.append(name)
        if renewed:
            rank_zero_warn(
                f"The checkpoint is of a pruned model and does not hold {listed(renewed)}, "
                "which mirror its weights. They start anew: averages from the weights of the checkpoint, other numbers "
                "from zero. Save them in the checkpoint to go on with them."
            )
