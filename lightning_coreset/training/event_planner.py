"""Plan the events of a training run, from the model as it is now and the events before."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, Literal, TypeAlias, get_args

import lightning.pytorch as pl
from lightning.pytorch.utilities import rank_zero_warn

from lightning_coreset.plan import PruningPlan
from lightning_coreset.planning import (
    ModelCost,
    Request,
    bottom_up_sizes,
    check_reachable,
    final_sizes,
    idle_rules,
    make_plan,
    measure,
    measure_input_norms,
    measure_original,
    prunable,
)
from lightning_coreset.structure import NOTHING_UNTRAINED, ChannelGroup, Completion, Structure, analyse
from lightning_coreset.training.example import ExampleSource
from lightning_coreset.training.progress import Progress
from lightning_coreset.training.requirements import check_not_captured
from lightning_coreset.training.strategies import from_rank_zero, run_on_all_ranks
from lightning_coreset.training.untrained_finder import UntrainedFinder
from lightning_coreset.verification import describe_failures, tried_groups, with_unproven

Order: TypeAlias = Literal["together", "bottom_up"]


class EventPlanner:
    """Plans event after event of one training run.

    Args:
        request: What is requested at the end of the schedule.
        source: Examples of how the module is run.
        order: ``"together"`` if an event prunes all groups, ``"bottom_up"`` if it prunes the next ones to their final
            size.
        check: Whether to test all groups on a copy first.
        certify: Whether to compute certificates.
        change_attributes: Whether that test may complete groups by numbers that modules remember.
        untrained: Finds what of the module nothing trains.

    Raises:
        ValueError: If ``order`` is none of these.
    """

    def __init__(
        self,
        request: Request,
        source: ExampleSource,
        order: Order,
        check: bool,
        certify: bool,
        change_attributes: bool = True,
        untrained: UntrainedFinder | None = None,
    ) -> None:
        if order not in get_args(Order):
            raise ValueError(f"Expected order to be 'together' or 'bottom_up' but got {order!r}.")
        self.request = request
        self.source = source
        self.order = order
        self.check = check
        self.certify = certify
        self.change_attributes = change_attributes
        self.untrained = untrained or UntrainedFinder()

    def begin(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, progress: Progress
    ) -> tuple[ModelCost, list[ChannelGroup]]:
        """Before the first event: test all groups, and measure the original model.

        Returns:
            Parameters, MACs and widths of the original model, and the groups of the present one that can be pruned.

        Raises:
            ValueError: If nothing can be pruned, or not as much as is requested in the end.
        """
        self._look_for_untrained(trainer, pl_module, progress)
        structure = run_on_all_ranks(trainer, lambda: self.structure(trainer, pl_module, progress))
        if progress.original is None:
            if self.check:
                tried = run_on_all_ranks(trainer, lambda: self._tried(trainer, pl_module, structure))
                # The same on every rank, though an example of another rank might show something else.
                progress.completions, progress.unsound = from_rank_zero(trainer, lambda: tried)
                structure = run_on_all_ranks(trainer, lambda: self.structure(trainer, pl_module, progress))
            if progress.untrained is not None and progress.untrained.frozen:  # now it is known what of it counts
                progress.untrained = progress.untrained.counting(pl_module, structure.groups)
                structure = run_on_all_ranks(trainer, lambda: self.structure(trainer, pl_module, progress))
            self.untrained.report(pl_module, progress.untrained)
            targets = from_rank_zero(trainer, lambda: self._targets(pl_module, structure, progress.is_resumed))
            progress.original, progress.final_sizes = targets
        return progress.original, prunable(pl_module, structure, self.request)[0]

    def _look_for_untrained(self, trainer: pl.Trainer, pl_module: pl.LightningModule, progress: Progress) -> None:
        """Find out what of the module nothing trains: anew as long as nothing is pruned, for values show more later."""
        if not progress.plans:
            found = from_rank_zero(trainer, lambda: self.untrained.find(trainer, pl_module, self.request.only))
            if progress.untrained is None or not progress.untrained.same_parts(found):
                progress.untrained = found
                progress.original, progress.completions, progress.unsound = None, {}, {}

    def structure(self, trainer: pl.Trainer, pl_module: pl.LightningModule, progress: Progress) -> Structure:
        """The structure of the model as it is now, as the self-check left it: completed, without groups that failed."""
        check_not_captured(pl_module)
        with self.source.examples(trainer, pl_module) as examples:
            untrained = NOTHING_UNTRAINED if progress.untrained is None else progress.untrained.of(pl_module)
            structure = analyse(pl_module, examples, heads=self.request.heads, untrained=untrained)
            uncertain = progress.completions.keys() - {group.name for group in structure.groups}
            if uncertain:  # that the self-check accepted
                pieces = analyse(
                    pl_module, examples, heads=self.request.heads, unequal_pieces=True, untrained=untrained
                )
                structure = structure.joined(pieces, uncertain)
        names = {group.name for group in structure.groups}
        return structure.completed(progress.completions).without(
            {name: why for name, why in progress.unsound.items() if name in names}
        )

    def plan(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        progress: Progress,
        fraction: float,
        on_progress: Callable[[str, int, int], None] | None = None,
    ) -> PruningPlan | None:
        """Plan the next event, on rank zero for all ranks.

        Args:
            trainer: The Trainer.
            pl_module: Its module, only read.
            progress: What was done before.
            fraction: The fraction of the requested ratio that is to be reached, in (0, 1].
            on_progress: Called at every group, as the ``progress`` of :func:`make_plan`.

        Returns:
            The plan; ``None`` if there is nothing left to prune.
        """
        if progress.untrained is not None:
            known = progress.untrained
            made = from_rank_zero(trainer, lambda: self.untrained.made_since(trainer, pl_module, known))
            progress.untrained = replace(known, copies=made)
        # On every rank, since the module's own step may wait for the other ranks.
        structure = run_on_all_ranks(trainer, lambda: self.structure(trainer, pl_module, progress))
        inputs = run_on_all_ranks(trainer, lambda: self._layer_inputs(trainer, pl_module)) if self.certify else None
        request = self.request.scaled(fraction, seed=self.request.seed + len(progress.done))
        sizes = bottom_up_sizes(progress.final_sizes, fraction) or None

        def plan_as_dict() -> dict[str, Any] | None:
            if not prunable(pl_module, structure, self.request)[0]:
                return None
            plan = make_plan(
                pl_module,
                structure,
                request,
                original=progress.original,
                sizes=sizes,
                inputs=inputs,
                strict=False,
                progress=on_progress,
            )
            return plan.to_dict()

        plan = from_rank_zero(trainer, plan_as_dict)
        return None if plan is None else PruningPlan.from_dict(plan)

    def _targets(
        self, pl_module: pl.LightningModule, structure: Structure, resumed: bool
    ) -> tuple[ModelCost, dict[str, int]]:
        """Parameters, MACs and widths of the original and, with ``"bottom_up"``, the final sizes of groups."""
        # A run that goes on from a checkpoint of another one, such as one without this callback.
        count = measure_original if resumed else measure
        original = count(pl_module, structure, self.request)
        check_reachable(pl_module, structure, self.request, original=original)
        for message in idle_rules(pl_module, structure, self.request):
            rank_zero_warn(message)
        final = final_sizes(pl_module, structure, self.request, original) if self.order == "bottom_up" else {}
        return original, dict(final)

    def _layer_inputs(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> Any:
        with self.source.examples(trainer, pl_module) as examples:
            return measure_input_norms(pl_module, examples[0])

    def _tried(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, structure: Structure
    ) -> tuple[dict[str, Completion], dict[str, str]]:
        """What has to be known of groups, and the groups that fail the self-check."""
        with self.source.examples(trainer, pl_module) as examples:
            offered = structure
            if self.change_attributes:
                offered = with_unproven(pl_module, structure, examples, heads=self.request.heads)
            before = {group.name: group for group in offered.groups}
            unproven = before.keys() - {group.name for group in structure.groups}
            groups, failures = tried_groups(
                pl_module, offered.groups, examples, change_attributes=self.change_attributes, unproven=unproven
            )
        groups = tuple(group for group in groups if group.name not in failures)
        failures = {name: reason for name, reason in failures.items() if name not in unproven}
        if failures:
            rank_zero_warn(describe_failures(failures))
        changed = (group for group in groups if group.name in unproven or group != before[group.name])
        return {group.name: Completion.of(group, before) for group in changed}, failures
