"""Plan the events of a training run, from the model as it is now and the events before."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.utilities import rank_zero_warn

from lightning_coreset.moments import MeasuringRuns
from lightning_coreset.plan import PruningPlan
from lightning_coreset.planning import (
    DEFAULT_RATIO,
    ModelCost,
    Request,
    Rule,
    bottom_up_sizes,
    check_reachable,
    final_sizes,
    goes_less_far,
    idle_rules,
    make_plan,
    measure,
    measure_input_norms,
    measure_original,
    prunable,
    sensible,
    why_less,
    why_thin,
    with_later_groups,
)
from lightning_coreset.schedule import Order
from lightning_coreset.structure import NOTHING_UNTRAINED, Completion, Structure, analyse
from lightning_coreset.training.examples import ExampleSource
from lightning_coreset.training.late_layers import LateLayers
from lightning_coreset.training.latency_count import LatencyCount
from lightning_coreset.training.moment_runs import MomentRuns
from lightning_coreset.training.other_ranks import OtherRanks
from lightning_coreset.training.progress import Progress
from lightning_coreset.training.requirements import check_not_captured
from lightning_coreset.training.strategies import from_rank_zero, gathered, run_on_all_ranks
from lightning_coreset.training.untrained_finder import UntrainedFinder
from lightning_coreset.verification import NOT_FINITE, describe_failures, tried_groups, with_unproven


class EventPlanner:
    """Plans event after event of one training run.

    Args:
        request: What is requested at the end of the schedule.
        source: Examples of how the module is run.
        order: ``"together"`` if an event prunes all groups, ``"bottom_up"`` if it prunes the next ones to their final
            size.
        self_check: Whether to test all groups on a copy first.
        certify: Whether to compute certificates.
        change_attributes: Whether that test may complete groups by numbers that modules remember.
        untrained: Finds what of the module nothing trains.
        never_run: Rules for modules that nothing ever runs; the channels that others could read or write stay.
        verbose: Whether to show a progress bar while layers are timed.

    Attributes:
        waits: Whether the last event has nothing to prune until layers have run that could read or write channels.
        offered: How many groups may lose channels, and the layers that stay, each with the reason; as ``begin`` found.

    Raises:
        ValueError: If ``never_run`` is no sequence of rules.
    """

    def __init__(
        self,
        request: Request,
        source: ExampleSource,
        order: Order,
        self_check: bool,
        certify: bool,
        change_attributes: bool = True,
        untrained: UntrainedFinder | None = None,
        never_run: Sequence[Rule] = (),
        verbose: bool = True,
    ) -> None:
        self.request = request
        self.source = source
        self.order = order
        self.self_check = self_check
        self.certify = certify
        self.change_attributes = change_attributes
        self.untrained = untrained or UntrainedFinder()
        self.late = LateLayers(request, never_run)
        self.latency = LatencyCount(source, verbose=verbose)
        self.moments = MomentRuns(request, source)
        self._others = OtherRanks()
        self.waits = False
        self.offered: tuple[int, Mapping[str, str]] = 0, {}
        self._was_reachable = False  # by what had run in this fit when it was looked at last
        self._told: float | None = None  # the ratio by default that was said last
        self._told_thin: str | None = None

    def check_rules(self, pl_module: pl.LightningModule) -> None:
        """Raise ``ValueError`` if a rule matches nothing in a model."""
        self.request.check_rules(pl_module)
        self.late.check_rules(pl_module)

    def begin(self, trainer: pl.Trainer, pl_module: pl.LightningModule, progress: Progress) -> bool:
        """Before the first event: test all groups, and measure the original model.

        Returns:
            Whether that could be done; not if nothing has run yet that shows the structure, on some rank.

        Raises:
            ValueError: If nothing can be pruned, or not as much as is requested in the end.
            MisconfigurationException: If the module cannot be run on any example.
        """
        if not progress.plans and self.source.has_begun and from_rank_zero(trainer, lambda: self.source.has_untried):
            progress.forget_model()  # what has run since may show more
        self._look_for_untrained(trainer, pl_module, progress)

        def read() -> tuple[Structure, bool]:
            structure = self.structure(trainer, pl_module, progress)
            return structure, self.source.agree_to_begin(structure)

        structure, reads = run_on_all_ranks(trainer, read)
        if not all(gathered(trainer, reads)):
            self.source.fall_back()
            return False
        if progress.original is None:
            structure = self._checked(trainer, pl_module, progress, structure)
            if progress.untrained is not None and progress.untrained.frozen:  # now it is known what of it counts
                progress.untrained = progress.untrained.counting(pl_module, structure.groups)
                structure = run_on_all_ranks(trainer, lambda: self.structure(trainer, pl_module, progress))
            structure = self._others.without_disputed(trainer, structure)
            self.untrained.report(trainer, pl_module, progress.untrained)
            self._count_latency(trainer, pl_module, progress, structure)
            targets = from_rank_zero(trainer, lambda: self._targets(pl_module, structure, progress.is_resumed))
            if targets is not None:
                progress.original, progress.final_sizes, progress.target = targets
                self._aim_at(progress.target)
        else:
            self._count_latency(trainer, pl_module, progress, structure)
        groups, skipped = prunable(pl_module, structure, self.request)
        self.offered = len(groups), skipped
        self.source.have_begun()
        return True

    def start(self, target: float | None) -> None:
        """Begin a fit, or a dry run: with the ratio that a run was found to have, or ``None``."""
        self._was_reachable = False
        self._aim_at(target)

    def _count_latency(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, progress: Progress, structure: Structure
    ) -> None:
        """With ``unit="latency"``: know the seconds of the network's layers, as they were known first."""
        if self.request.unit == "latency":
            self.request = self.latency.counted(trainer, pl_module, progress, structure, self.request)

    def _aim_at(self, target: float | None) -> None:
        """Plan for a ratio that was found sensible where none was given; ``None`` for the one that is requested."""
        if self.request.by_default:
            self.request = replace(self.request, pruning_ratio=DEFAULT_RATIO if target is None else target)

    def _look_for_untrained(self, trainer: pl.Trainer, pl_module: pl.LightningModule, progress: Progress) -> None:
        """Find out what of the module nothing trains: anew as long as nothing is pruned, for values show more later."""
        if not progress.plans:
            run_on_all_ranks(trainer, lambda: self.untrained.note_held(trainer, pl_module))
            found = from_rank_zero(trainer, lambda: self.untrained.find(trainer, pl_module, self.request.only))
            if progress.untrained is None or not progress.untrained.same_parts(found):
                progress.untrained = found
                progress.forget_model()

    def structure(self, trainer: pl.Trainer, pl_module: pl.LightningModule, progress: Progress) -> Structure:
        """The structure of the model as it is now, as the self-check left it: completed, without groups that failed."""
        check_not_captured(pl_module)
        untrained = NOTHING_UNTRAINED if progress.untrained is None else progress.untrained.of(pl_module)
        heads, again = self.request.heads, True
        while again:
            with self.source.examples(trainer, pl_module, idle=True) as examples:
                if not examples:
                    return Structure((), {}, {})
                structure = analyse(
                    pl_module, examples, heads=heads, untrained=untrained, on_failure=self.source.failed
                )
                uncertain = progress.completions.keys() - {group.name for group in structure.groups}
                if uncertain:  # that the self-check accepted
                    pieces = analyse(
                        pl_module,
                        examples,
                        heads=heads,
                        unequal_pieces=True,
                        untrained=untrained,
                        on_failure=_nothing,
                    )
                    structure = structure.joined(pieces, uncertain)
            again = self.source.settle(structure)
        structure = self.source.without_held(structure)
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
            The plan; ``None`` if there is nothing left to prune, or if the examples do not run any more and have to
            begin again.
        """
        if progress.untrained is not None:
            known = progress.untrained
            run_on_all_ranks(trainer, lambda: self.untrained.note_held(trainer, pl_module))
            progress.untrained = from_rank_zero(trainer, lambda: self.untrained.found_since(trainer, pl_module, known))
        # On every rank, since the module's own step may wait for the other ranks.
        structure = run_on_all_ranks(trainer, lambda: self.structure(trainer, pl_module, progress))
        if not all(gathered(trainer, self.source.has_begun)):
            self.source.fall_back()
            return None
        if from_rank_zero(trainer, lambda: self.source.has_untried):
            structure = self._checked(trainer, pl_module, progress, structure)
            self.source.mark_tried()
            progress.original = from_rank_zero(trainer, lambda: self._with_later_groups(pl_module, structure, progress))
        structure = self._others.without_disputed(trainer, structure)
        offered = self.late.without_unread(pl_module, structure)
        inputs = run_on_all_ranks(trainer, lambda: self._layer_inputs(trainer, pl_module)) if self.certify else None
        request = self.request.scaled(fraction, seed=self.request.seed + len(progress.done))
        sizes = bottom_up_sizes(progress.final_sizes, fraction) or None

        def plan_as_dict(runs: MeasuringRuns | None = None) -> dict[str, Any] | None:
            if not prunable(pl_module, offered, self.request)[0]:
                return None
            plan = make_plan(
                pl_module,
                offered,
                request,
                original=progress.original,
                sizes=sizes,
                inputs=inputs,
                runs=runs,
                strict=False,
                progress=on_progress,
            )
            return plan.to_dict()

        if self.moments.may_measure:
            # On every rank, since each measures on what it has.
            with self.moments.at_event(trainer, pl_module, offered, request.seed) as runs:
                found = run_on_all_ranks(trainer, lambda: plan_as_dict(runs))
            plan = from_rank_zero(trainer, lambda: found)
        else:
            plan = from_rank_zero(trainer, plan_as_dict)
        self.waits = from_rank_zero(trainer, lambda: plan is None and len(offered.groups) < len(structure.groups))
        return None if plan is None else PruningPlan.from_dict(plan)

    def _checked(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, progress: Progress, structure: Structure
    ) -> Structure:
        """The structure as the self-check leaves it, which sees examples that have come since the last time."""
        if not self.self_check:
            return structure
        tried = run_on_all_ranks(trainer, lambda: self._tried(trainer, pl_module, structure))
        # The same on every rank, though an example of another rank might show something else.
        completions, unsound = from_rank_zero(trainer, lambda: tried)
        progress.completions |= completions
        progress.unsound |= unsound
        return run_on_all_ranks(trainer, lambda: self.structure(trainer, pl_module, progress))

    def _targets(
        self, pl_module: pl.LightningModule, structure: Structure, resumed: bool
    ) -> tuple[ModelCost | None, dict[str, int], float | None] | None:
        """Parameters, MACs and widths of the original, final sizes of groups with ``"bottom_up"``, a sensible ratio.

        The ratio is ``None`` if one was given. All is ``None`` if that can be reached only if layers run that have not
        run so far. Where nothing can go and nobody has said how much should, there is no original.
        """
        # A run that goes on from a checkpoint of another one, such as one without this callback.
        count = measure_original if resumed else measure
        try:
            original = count(pl_module, structure, self.request)
            request = sensible(pl_module, structure, self.request, original=original)
            self._check_reachable(pl_module, structure, request, original)
        except ValueError as error:
            if self.late.could_give(pl_module, structure):
                return None
            wished = not self.request.by_default or self.request.only or self.request.ignore
            if wished or prunable(pl_module, structure, self.request)[0]:
                raise
            if self._told != 0.0:
                rank_zero_warn(f"Nothing is pruned, and training goes on as without CoresetPruningCallback. {error}")
            self._told = 0.0
            return None, {}, 0.0
        if goes_less_far(request) and request.target != self._told:
            rank_zero_warn(why_less(pl_module, structure, request, original=original))
        self._told = request.target
        for message in idle_rules(pl_module, structure, request):
            rank_zero_warn(message)
        final = final_sizes(pl_module, structure, request, original) if self.order == "bottom_up" else {}
        thin = why_thin(pl_module, structure, request, original=original, sizes=final or None)
        if thin is not None and thin != self._told_thin:
            rank_zero_warn(thin)
        self._told_thin = thin
        return original, dict(final), request.target if request.by_default else None

    def _check_reachable(
        self, pl_module: pl.LightningModule, structure: Structure, request: Request, original: ModelCost
    ) -> None:
        """Refuse a ratio that cannot be reached; only warn where that shows after the first batch, in mid-training."""
        try:
            check_reachable(pl_module, structure, request, original=original)
        except ValueError as error:
            if not self._was_reachable:
                raise
            rank_zero_warn(f"Steps after the first one hold more channels, so that less can go than was asked. {error}")
        self._was_reachable = True

    def _with_later_groups(
        self, pl_module: pl.LightningModule, structure: Structure, progress: Progress
    ) -> ModelCost | None:
        known = progress.original
        return None if known is None else with_later_groups(known, pl_module, structure, self.request)

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
        if any(NOT_FINITE in reason for reason in failures.values()) and self.source.take_whole_batches():
            return self._tried(trainer, pl_module, structure)
        groups = tuple(group for group in groups if group.name not in failures)
        failures = {name: reason for name, reason in failures.items() if name not in unproven}
        if failures:
            rank_zero_warn(describe_failures(failures))
        changed = (group for group in groups if group.name in unproven or group != before[group.name])
        return {group.name: Completion.of(group, before) for group in changed}, failures


def _nothing(*failure: object) -> None:
    pass
