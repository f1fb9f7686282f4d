"""Changes of a whole training run that are undone if anything in them fails: model, averaged copies, optimizers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import lightning.pytorch as pl
import torch

from lightning_coreset.optimizers import StateSnapshot
from lightning_coreset.surgery import Snapshot, named_tensors
from lightning_coreset.training.averaged_models import averaged_copies
from lightning_coreset.training.optimizer_state import copy_to_cpu
from lightning_coreset.training.outside_copies import OutsideCopies


@contextmanager
def undone_on_failure(
    trainer: pl.Trainer, pl_module: pl.LightningModule, optimizers: Sequence[Any], *, contents: bool = False
) -> Iterator[None]:
    """Undo what surgery in the block has done, if the block raises.

    Args:
        trainer: The Trainer.
        pl_module: Its module.
        optimizers: All optimizers.
        contents: Whether the block writes to tensors in place as well; for that they are copied to the CPU first.
    """
    models = (pl_module, *averaged_copies(trainer))
    snapshots = [Snapshot(model) for model in models]
    states = [StateSnapshot(optimizer) for optimizer in optimizers]
    tensors = [named_tensors(model) for model in models] if contents else []
    copies = [copy_to_cpu(own) for own in tensors]
    outside = OutsideCopies.of(trainer, pl_module)
    outside_snapshot, outside_contents = outside.snapshot(), outside.to_dict() if contents else None
    try:
        yield
    except BaseException:  # also a KeyboardInterrupt, after which Lightning may save a checkpoint
        for snapshot in (*snapshots, *states, outside_snapshot):
            snapshot.restore()
        if outside_contents is not None:
            outside.load(outside_contents)
        with torch.no_grad():
            for own, copied in zip(tensors, copies, strict=True):
                for name, tensor in own.items():
                    tensor.data.copy_(copied[name])
        raise
