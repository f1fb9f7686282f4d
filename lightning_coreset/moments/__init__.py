"""What layers read, measured: a network is run on probes or batches, and samples of the layers' inputs are taken."""

from __future__ import annotations

from lightning_coreset.moments.channel_norms import has_channel_norms
from lightning_coreset.moments.inputs import LayerInput, MeasuredInputs, NormInput
from lightning_coreset.moments.norm_watch import normalised
from lightning_coreset.moments.runs import MeasuringRuns, Unmeasurable

__all__ = [
    "LayerInput",
    "MeasuredInputs",
    "MeasuringRuns",
    "NormInput",
    "Unmeasurable",
    "has_channel_norms",
    "normalised",
]
