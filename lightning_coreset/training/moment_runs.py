"""The runs in which an event measures what layers read: on synthetic probes, or on batches of the training so far."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.utilities import rank_zero_warn

from lightning_coreset.moments import MeasuringRuns
from lightning_coreset.planning import Request, measuring_runs, moments_kind
from lightning_coreset.structure import Example, Structure
from lightning_coreset.training.examples import ExampleSource
from lightning_coreset.training.examples.batches import fresh, on_device
from lightning_coreset.training.examples.plain_form import bytes_of
from lightning_coreset.training.examples.steps import StepRun
from lightning_coreset.training.strategies import gathered


class MomentRuns:
    """Keeps training batches, if the method reads any, and makes the runs of an event.

    It keeps the first batches of every epoch on the CPU, as they were before the step, until they have as many samples
    as the method asks for: only tensors are copied, and nothing is computed on the way.

    Args:
        request: Whose method says what is measured.
        source: Examples of how the module is run.
    """

    def __init__(self, request: Request, source: ExampleSource) -> None:
        self._measures = request.method.measures
        reads = self._measures is not None and self._measures.moments == "batches"
        self._samples = self._measures.samples if self._measures is not None and reads else 0
        self._source = source
        self._kept: list[Any] = []
        self._count = 0

    @property
    def may_measure(self) -> bool:
        """Whether the method measures anything in some network."""
        return self._measures is not None

    def see_batch(self, batch: Any, batch_idx: int) -> None:
        """Keep a batch, in ``on_train_batch_start``."""
        if not self._samples or batch is None:
            return
        if batch_idx == 0:
            self._kept, self._count = [], 0
        if self._count < self._samples:
            self._kept.append(on_device(fresh(batch), "cpu"))
            self._count += Example.of(batch).batch_size

    def to_plain(self, most: int) -> list[Any] | None:
        """The batches for a checkpoint; ``None`` if there are none, they are more than so many bytes, or not plain."""
        size = bytes_of(self._kept)
        return list(self._kept) if self._kept and size is not None and size <= most else None

    def resume_with(self, batches: Sequence[Any]) -> None:
        """Go on with the batches of the run that a checkpoint is of."""
        self._kept = list(batches)

    def stop(self) -> None:
        """Drop batches."""
        self._kept, self._count = [], 0

    @contextmanager
    def at_event(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, structure: Structure, seed: int
    ) -> Iterator[MeasuringRuns | None]:
        """The runs; a collective operation, as is all that is done with them."""
        with self._source.examples(trainer, pl_module) as examples:
            runs = self._runs(pl_module, examples, structure, seed)
            # Probes are the same on every rank, and so is what they show.
            if runs is not None and runs.source == "batches" and trainer.world_size > 1:
                runs = replace(runs, gather=lambda own: gathered(trainer, own), ranks=trainer.world_size)
            yield runs

    def _runs(
        self, pl_module: pl.LightningModule, examples: Sequence[Example], structure: Structure, seed: int
    ) -> MeasuringRuns | None:
        measures = self._measures
        if measures is None or moments_kind(measures, pl_module, structure, examples) != "batches":
            return measuring_runs(pl_module, structure, measures, examples, seed=seed)
        step = next((one for one in examples if isinstance(one.run, StepRun) and one.run.hook == "training_step"), None)
        if step is None or not self._kept:
            rank_zero_warn(_NO_BATCHES)
            return measuring_runs(pl_module, structure, replace(measures, moments="auto"), examples, seed=seed)
        # A step runs on a copy of its batch.
        runs = [replace(step, inputs=on_device(batch, pl_module.device)) for batch in self._kept]
        return MeasuringRuns(pl_module, [runs], by_batch=False, source="batches")


_NO_BATCHES = (
    "Moments are not measured on batches, as moments='batches' asks for: no batch has passed by yet, or the training "
    "step cannot be run once more, as with manual optimization. They are found as with moments='auto'."
)
