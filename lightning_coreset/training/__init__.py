"""Pruning while a Trainer trains: events, the guard, metrics, reports. The callback calls these in its hooks."""

from __future__ import annotations

from lightning_coreset.training.accuracy_guard import AccuracyGuard, OnFailure
from lightning_coreset.training.averaged_models import (
    average_again,
    averaged_copies,
    load_outgrown_copies,
)
from lightning_coreset.training.best_checkpoint import BestCheckpoint, BestCheckpoints
from lightning_coreset.training.dry_run import DryRun, dry_run
from lightning_coreset.training.event_planner import EventPlanner
from lightning_coreset.training.examples import ExampleSource
from lightning_coreset.training.guard import Guard
from lightning_coreset.training.metrics import AccuracyMonitor, Mode, Monitor
from lightning_coreset.training.options import Options
from lightning_coreset.training.outgrown import OutgrownCopies
from lightning_coreset.training.packages import Callback
from lightning_coreset.training.progress import Progress
from lightning_coreset.training.pruning_run import PruningRun
from lightning_coreset.training.recalibration import Recalibration
from lightning_coreset.training.report import (
    EventRecord,
    History,
    Reporter,
    last_step,
    logged_step,
    printable,
    settings,
    summary,
)
from lightning_coreset.training.requirements import check_no_lazy_layers, check_strategy, has_lazy_layers
from lightning_coreset.training.timeline import Timeline
from lightning_coreset.training.untrained_finder import UntrainedFinder
from lightning_coreset.training.untrained_parts import Copies, UntrainedParts

__all__ = [
    "AccuracyGuard",
    "AccuracyMonitor",
    "BestCheckpoint",
    "BestCheckpoints",
    "Callback",
    "Copies",
    "DryRun",
    "EventPlanner",
    "EventRecord",
    "ExampleSource",
    "Guard",
    "History",
    "Mode",
    "Monitor",
    "OnFailure",
    "Options",
    "OutgrownCopies",
    "Progress",
    "PruningRun",
    "Recalibration",
    "Reporter",
    "Timeline",
    "UntrainedFinder",
    "UntrainedParts",
    "average_again",
    "averaged_copies",
    "check_no_lazy_layers",
    "check_strategy",
    "dry_run",
    "has_lazy_layers",
    "last_step",
    "load_outgrown_copies",
    "logged_step",
    "printable",
    "settings",
    "summary",
]
