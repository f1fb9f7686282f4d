"""Synthetic inputs, by which the channels of a network are measured without data."""

from __future__ import annotations

from lightning_coreset.probes.dead_leaves import dead_leaves
from lightning_coreset.probes.given import Probes, ProbesFunction, as_probes
from lightning_coreset.probes.leaf import Leaf, ProbesUnavailable, Use
from lightning_coreset.probes.pink_noise import pink_noise
from lightning_coreset.probes.registry import register_probe
from lightning_coreset.probes.synthetic import synthetic_inputs

__all__ = [
    "Leaf",
    "Probes",
    "ProbesFunction",
    "ProbesUnavailable",
    "Use",
    "as_probes",
    "dead_leaves",
    "pink_noise",
    "register_probe",
    "synthetic_inputs",
]
