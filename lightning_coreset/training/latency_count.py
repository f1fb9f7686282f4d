"""The latency of a LightningModule: measured once in a training run, and checked after its last event."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import lightning.pytorch as pl
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.utilities import rank_zero_warn

from lightning_coreset.latency import LatencyTable, NetworkLatency, compared, is_doubtful, network_latency, why_doubtful
from lightning_coreset.plan import PruningPlan
from lightning_coreset.planning import Request, prunable
from lightning_coreset.state import duplicate
from lightning_coreset.structure import Example, Structure
from lightning_coreset.surgery import original_shapes, resize
from lightning_coreset.training.examples import ExampleSource
from lightning_coreset.training.progress import Progress
from lightning_coreset.training.strategies import from_rank_zero


class LatencyCount:
    """Knows the seconds of a module's layers from before the first event to the last one.

    Args:
        source: Has the inputs that the module is timed on.
        verbose: Whether to show a progress bar while measuring.
    """

    def __init__(self, source: ExampleSource, *, verbose: bool) -> None:
        self._source = source
        self._verbose = verbose

    def counted(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        progress: Progress,
        structure: Structure,
        request: Request,
    ) -> Request:
        """The request with the latency of the module: what ``progress`` has, or what is found out on rank zero.

        Raises:
            MisconfigurationException: If no inputs were given that the module could be timed on.
            ValueError: For a table of another device or network.
        """
        if not self._source.has_inputs:
            raise MisconfigurationException(
                "Expected inputs to time the module on but there are none: unit='latency' counts the time of the "
                "module's forward on a batch of the size that it will be used with. Give "
                "CoresetPruningCallback(example_inputs=...) or the module's example_input_array."
            )
        if progress.latency is None:
            progress.latency = from_rank_zero(trainer, lambda: self._found(trainer, pl_module, structure, request))
        function = None if isinstance(request.timing, LatencyTable) else request.timing
        found = NetworkLatency.from_dict(progress.latency, function, pl_module)
        return replace(request, network_latency=found)

    def _found(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, structure: Structure, request: Request
    ) -> dict[str, Any]:
        groups, _ = prunable(pl_module, structure, request)
        offered = replace(structure, groups=tuple(groups))
        with self._source.given(trainer, pl_module) as example:
            found = network_latency(pl_module, offered, example, request.timing, verbose=self._verbose)
        return found.to_dict()

    def measured(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, plan: PruningPlan, request: Request
    ) -> tuple[float, float] | None:
        """After the last event: the seconds of the original and of the pruned model, measured in turns.

        The original is a copy of the present model with the shapes that it had before all events. A warning says if
        times do not confirm the plan, or could not be measured: the event is over, and training goes on.

        Returns:
            The seconds; ``None`` if they were not measured. A function may tell the times of another device.
        """
        latency = request.network_latency
        if request.unit != "latency" or latency is None or latency.table is None:
            return None

        def times() -> tuple[float, float] | str:
            try:
                with self._source.given(trainer, pl_module) as example:
                    return _times(pl_module, example)
            except Exception as error:
                return f"{type(error).__name__}: {error}"

        measured = from_rank_zero(trainer, times)
        if isinstance(measured, str):
            rank_zero_warn(f"Could not measure the latency of the pruned model: {measured}")
            return None
        if is_doubtful(plan.reached, measured):
            rank_zero_warn(why_doubtful(plan.reached, measured))
        return measured


def _times(pl_module: pl.LightningModule, example: Example) -> tuple[float, float]:
    original = duplicate(pl_module)
    resize(original, original_shapes(pl_module))
    return compared(original, pl_module, example)
