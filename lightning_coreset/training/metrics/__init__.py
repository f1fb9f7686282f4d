"""A number that says how good the model is, and the tools to get it from a user's steps.

``recorder`` records the calls of networks in a step, ``dataflow`` and ``outputs`` find outputs and targets in them,
``scoring`` makes a number of these. ``probe`` measures that number over the steps of training, ``logged`` one that the
module logs itself, ``monitor`` the one that the user chose, as
``accuracy_monitor`` says. ``isolation`` runs a user's code without side effects.
"""

from __future__ import annotations

from lightning_coreset.training.metrics.accuracy_monitor import AccuracyMonitor, Mode, as_monitor
from lightning_coreset.training.metrics.isolation import isolated
from lightning_coreset.training.metrics.logged import is_same_value
from lightning_coreset.training.metrics.monitor import Monitor
from lightning_coreset.training.metrics.recorder import Call, ForwardRecorder, Hook, called_from_python

__all__ = [
    "AccuracyMonitor",
    "Call",
    "ForwardRecorder",
    "Hook",
    "Mode",
    "Monitor",
    "as_monitor",
    "called_from_python",
    "is_same_value",
    "isolated",
]
