"""Checkpoints of pruned models: what they say about the structure, and models that follow it when they load."""

from __future__ import annotations

from lightning_coreset.checkpoint.hooks import is_resizable, keep_record_among_items, make_plain, make_resizable
from lightning_coreset.checkpoint.loading import PrunedCheckpointMixin, load_pruned
from lightning_coreset.checkpoint.resize import fit_to

__all__ = [
    "PrunedCheckpointMixin",
    "fit_to",
    "is_resizable",
    "keep_record_among_items",
    "load_pruned",
    "make_plain",
    "make_resizable",
]
