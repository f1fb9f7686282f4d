"""Tell which batches of a validation may be its last ones: only they have to be copied."""

from __future__ import annotations

import lightning.pytorch as pl
from lightning.fabric.utilities.data import sized_len

from lightning_coreset._compat import tree_leaves


def first_of_latest(trainer: pl.Trainer, count: int) -> int:
    """The index within its loader from which on a batch may be one of the last ``count`` of this validation.

    It is 0 where nobody knows, since a loader has no length. With several loaders it may hold for more batches than
    those: they may follow each other or take turns, and if they take turns, the shortest may end it for all.

    Args:
        trainer: The Trainer, in validation or the sanity check.
        count: How many.
    """
    if any(sized_len(loader) is None for loader in tree_leaves(trainer.val_dataloaders)):
        return 0  # even if there is a limit: it may have fewer batches
    batches = trainer.num_sanity_val_batches if trainer.sanity_checking else trainer.num_val_batches
    # One more, since a step that takes an iterator fetches its batch later: hooks get the index of the one before.
    return max(0, int(min(batches)) - count - 1)
