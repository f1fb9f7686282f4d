"""Checkpoints of pruned models: what they say about the structure, and models that follow it when they load."""

from __future__ import annotations

from lightning_coreset.checkpoint.configs import write_configs
from lightning_coreset.checkpoint.consistency import inferred_sizes
from lightning_coreset.checkpoint.everywhere import resizable
from lightning_coreset.checkpoint.hooks import is_resizable, make_plain, make_resizable, store_metadata_as_item
from lightning_coreset.checkpoint.loading import PrunedCheckpointMixin, load_pruned
from lightning_coreset.checkpoint.metadata import KEY, PruningMetadata
from lightning_coreset.checkpoint.resize import resize_to_state_dict

__all__ = [
    "KEY",
    "PrunedCheckpointMixin",
    "PruningMetadata",
    "inferred_sizes",
    "is_resizable",
    "load_pruned",
    "make_plain",
    "make_resizable",
    "resizable",
    "resize_to_state_dict",
    "store_metadata_as_item",
    "write_configs",
]
