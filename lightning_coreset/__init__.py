"""Structured pruning with provable coresets, inside PyTorch Lightning and without it."""

from __future__ import annotations

from lightning_coreset.agreement import Agreement, OutputChange, SampleAgreement, certified_agreement, output_change
from lightning_coreset.callback import CoresetPruningCallback
from lightning_coreset.checkpoint import PrunedCheckpointMixin, load_pruned, make_plain, make_resizable, resizable
from lightning_coreset.latency import LatencyTable, LayerShape, measure_latency
from lightning_coreset.methods import Importance, Magnitude, Random, Reconstruction, Sensitivity
from lightning_coreset.plan import GroupPlan, ParameterChange, PruningPlan
from lightning_coreset.pruning import count_macs, plan_pruning, prune
from lightning_coreset.scan import Scan, ScanRecord, sensitivity_scan
from lightning_coreset.schedule import PruningSchedule
from lightning_coreset.training import AccuracyGuard, AccuracyMonitor

__version__ = "0.1.0"

__all__ = [
    "AccuracyGuard",
    "AccuracyMonitor",
    "Agreement",
    "CoresetPruningCallback",
    "GroupPlan",
    "Importance",
    "LatencyTable",
    "LayerShape",
    "Magnitude",
    "OutputChange",
    "ParameterChange",
    "PrunedCheckpointMixin",
    "PruningPlan",
    "PruningSchedule",
    "Random",
    "Reconstruction",
    "SampleAgreement",
    "Scan",
    "ScanRecord",
    "Sensitivity",
    "certified_agreement",
    "count_macs",
    "load_pruned",
    "make_plain",
    "make_resizable",
    "measure_latency",
    "output_change",
    "plan_pruning",
    "prune",
    "resizable",
    "sensitivity_scan",
]
