"""One group's layers as the matrices of the mathematics: what a pruning method sees."""

from __future__ import annotations

from lightning_coreset.layers.consumer_set import (
    ConsumerSet,
    closed_form_pairs,
    consumer_sets,
    main_set,
    makers_of_derived,
)
from lightning_coreset.layers.coordinate_change import CoordinateChange
from lightning_coreset.layers.group_view import GroupView, NoCoresetForm
from lightning_coreset.layers.head_blocks import Columns, HeadBlock, Rows, head_blocks
from lightning_coreset.layers.layer_pair import LayerPair, to_cpu_float64
from lightning_coreset.layers.measured_readers import (
    MeasuredReader,
    SelectionForm,
    measured_readers,
    selection_form,
    written,
)
from lightning_coreset.layers.moved_producers import MovedProducers, movable_pair
from lightning_coreset.layers.new_weights import write_updates
from lightning_coreset.layers.pairing import check_positions, check_ranges, layer_pairs, single_channel_pairs
from lightning_coreset.layers.plan_state import ActivationMoments, PlanState
from lightning_coreset.layers.stream_parts import StreamNorm, StreamParts, norms_to_sample, stream_parts

__all__ = [
    "ActivationMoments",
    "Columns",
    "ConsumerSet",
    "CoordinateChange",
    "GroupView",
    "HeadBlock",
    "LayerPair",
    "MeasuredReader",
    "MovedProducers",
    "NoCoresetForm",
    "PlanState",
    "Rows",
    "SelectionForm",
    "StreamNorm",
    "StreamParts",
    "check_positions",
    "check_ranges",
    "closed_form_pairs",
    "consumer_sets",
    "head_blocks",
    "layer_pairs",
    "main_set",
    "makers_of_derived",
    "measured_readers",
    "movable_pair",
    "norms_to_sample",
    "selection_form",
    "single_channel_pairs",
    "stream_parts",
    "to_cpu_float64",
    "write_updates",
    "written",
]
