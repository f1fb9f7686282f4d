"""Change a model in place: slice its tensors, keep its ``Parameter`` objects, mend what its modules remember."""

from __future__ import annotations

from lightning_coreset.surgery.applying import apply_changes, replace_data
from lightning_coreset.surgery.removal import remove_channels
from lightning_coreset.surgery.slicing import named_tensors, scale_counts, slice_members, take
from lightning_coreset.surgery.snapshot import Snapshot

__all__ = [
    "Snapshot",
    "apply_changes",
    "named_tensors",
    "remove_channels",
    "replace_data",
    "scale_counts",
    "slice_members",
    "take",
]
