"""Change a model in place: slice its tensors, keep its ``Parameter`` objects, mend what its modules remember."""

from __future__ import annotations

from lightning_coreset.surgery.apply import apply_changes, replace_data
from lightning_coreset.surgery.model_shapes import Layout, all_tensors, forget, original_layout, remembered
from lightning_coreset.surgery.modules import mended_sizes, sizing_tensor
from lightning_coreset.surgery.removal import remove_channels
from lightning_coreset.surgery.resizing import resize
from lightning_coreset.surgery.slicing import (
    content,
    multiplied,
    named_tensors,
    scale_counts,
    slice_members,
    staying_positions,
    take,
)
from lightning_coreset.surgery.snapshot import Snapshot

__all__ = [
    "Layout",
    "Snapshot",
    "all_tensors",
    "apply_changes",
    "content",
    "forget",
    "mended_sizes",
    "multiplied",
    "named_tensors",
    "original_layout",
    "remembered",
    "remove_channels",
    "replace_data",
    "resize",
    "scale_counts",
    "sizing_tensor",
    "slice_members",
    "staying_positions",
    "take",
]
