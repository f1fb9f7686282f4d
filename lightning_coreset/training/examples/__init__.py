"""How a LightningModule is run to read its structure: whatever runs before an event is an example.

``source`` collects examples; ``observer`` and ``watch`` notice steps that run something new, ``candidate`` says what a
batch offers. ``steps`` and ``forward`` run a module's methods, ``moment`` restores what their code may branch on, and
``batches`` handles batches of any make.
"""

from __future__ import annotations

from lightning_coreset.training.examples.candidate import Candidate
from lightning_coreset.training.examples.plain_form import read_candidates
from lightning_coreset.training.examples.source import ExampleSource
from lightning_coreset.training.examples.steps import recorded_calls, training_step

__all__ = ["Candidate", "ExampleSource", "read_candidates", "recorded_calls", "training_step"]
