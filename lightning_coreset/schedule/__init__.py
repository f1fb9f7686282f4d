"""When to prune and how much: progress of training -> pruning ratio, as plain functions of numbers."""

from __future__ import annotations

from lightning_coreset.schedule.curves import Schedule
from lightning_coreset.schedule.events import check_schedule, events_of, pruning_events
from lightning_coreset.schedule.pruning_schedule import Interval, Order, PruningSchedule, as_schedule

__all__ = [
    "Interval",
    "Order",
    "PruningSchedule",
    "Schedule",
    "as_schedule",
    "check_schedule",
    "events_of",
    "pruning_events",
]
