"""Change a model in place: slice its tensors, keep its ``Parameter`` objects, update the sizes in its modules."""

from __future__ import annotations

from lightning_coreset.indexing import index_dims, scale_dims_
from lightning_coreset.surgery.apply import apply_changes, replace_data
from lightning_coreset.surgery.model_shapes import (
    ModelShapes,
    all_tensors,
    forget_original_shapes,
    hand_down_record,
    keep_record,
    original_shapes,
    recorded_shapes,
)
from lightning_coreset.surgery.removal import remove_channels
from lightning_coreset.surgery.resizing import resize
from lightning_coreset.surgery.slicing import (
    follow_norms,
    named_tensors,
    new_value,
    registered_tensors,
    scale_counts,
    slice_members,
    staying_positions,
    weight_norms_of,
)
from lightning_coreset.surgery.snapshot import Snapshot
from lightning_coreset.surgery.weight_norms import as_direction, made_weights

__all__ = [
    "ModelShapes",
    "Snapshot",
    "all_tensors",
    "apply_changes",
    "as_direction",
    "follow_norms",
    "forget_original_shapes",
    "hand_down_record",
    "index_dims",
    "keep_record",
    "made_weights",
    "named_tensors",
    "new_value",
    "original_shapes",
    "recorded_shapes",
    "registered_tensors",
    "remove_channels",
    "replace_data",
    "resize",
    "scale_counts",
    "scale_dims_",
    "slice_members",
    "staying_positions",
    "weight_norms_of",
]
