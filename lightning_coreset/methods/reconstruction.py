"""The coreset by least squares: the channels that best replace the others, and the weights with which they do."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, get_args

from torch import Tensor

from lightning_coreset import coreset
from lightning_coreset._arguments import is_number, is_whole_number
from lightning_coreset._calls import level_of_caller
from lightning_coreset.layers import (
    ConsumerSet,
    GroupView,
    NoCoresetForm,
    consumer_sets,
    main_set,
    makers_of_derived,
    write_updates,
)
from lightning_coreset.methods.measured import reconstructed
from lightning_coreset.methods.measures import Measures, MomentsKind
from lightning_coreset.methods.method import Method, expected_error_curve
from lightning_coreset.methods.prepared import Settings
from lightning_coreset.methods.ranking import rank_by_norms
from lightning_coreset.methods.refining import Refining
from lightning_coreset.methods.selection import Selection
from lightning_coreset.methods.waiting import Waiting, prepare
from lightning_coreset.moments import Unmeasurable


@dataclass(frozen=True)
class Reconstruction(Method):
    """The channels that best replace the others, and the weights with which they do, by least squares.

    Deterministic. The mean squared error of the next layers' outputs is minimised under a distribution of the channels:
    its second moments are all that counts. They are derived from the weights, or measured where layers read the
    channels, which needs no data either if the network is run on synthetic probes.

    Attributes:
        rounds: Rounds of the backward elimination. With 16 the error is within 1% of dropping one channel at a time.
        ridge: Regularisation, as a part of the mean diagonal of the moments. From 1e-8 to 1e-2 it makes no difference;
            1e-3 keeps the new weights small.
        moments: How moments are found.

            - ``"closed_form"`` derives them for Gaussian pre-activations, which BatchNorms give or which are carried
              from layer to layer. Only for groups of one layer, one activation and the layers that read it; others are
              ranked by norms.
            - ``"synthetic"`` measures them on probes (``lightning_coreset.probes``), for all groups whose consumers
              are linear, whatever stands in between. Right for networks with BatchNorms, which take the statistics of
              the probes meanwhile, with LayerNorms or RMSNorms, behind which their law stands, and for vectors. Other
              networks may lose more than by ``"closed_form"``.
            - ``"batches"`` measures them on data: the training batches that pass by in a Trainer, or ``data=``.
            - ``"auto"`` is ``"synthetic"`` for networks with such norms or whose inputs are vectors, else
              ``"closed_form"``: without data in any case.
        samples: How many samples layers are measured on. Fewer than 256 cost accuracy; more gain little. Of vectors
            it is eight times as many probes; of large images, which have more positions each, down to a quarter.
        refine: Whether the filters that stay may move within the span of all filters, to where the expected error is
            least: of chains of one layer, an activation and its readers with at most 1024 channels, where moments are
            measured. ``None`` does so for those with at most 512 of which at most two thirds stay (the more goes at
            once, the more it is worth), the smallest first, up to 1500 channels in all: some seconds. The same of
            values, and of queries with keys, within attention heads, and of streams behind LayerNorms and RMSNorms,
            which costs next to nothing: by default of all of them.
        sequential: Whether every group is fitted to what the layers read in the network as pruned so far, at the cost
            of one or two more runs for each group. By default with ``"batches"``; on probes it gains nothing.
        probes: A function ``(example_inputs, generator) -> inputs`` that makes the probes of ``"synthetic"``, instead
            of those by the kind of the inputs.

    Raises:
        ValueError: If an option is of another kind or out of its range.
    """

    rounds: int = 16
    ridge: float = 1e-3
    moments: MomentsKind = "auto"
    samples: int = 256
    refine: bool | None = None
    sequential: bool | None = None
    probes: Callable[[Any, Any], Any] | None = None
    reads_full_width = True

    def __post_init__(self) -> None:
        if not is_whole_number(self.rounds) or self.rounds < 1:
            raise ValueError(f"Expected rounds to be an integer of at least 1 but got {self.rounds!r}.")
        if not is_number(self.ridge) or self.ridge <= 0:
            raise ValueError(f"Expected ridge to be a positive number but got {self.ridge!r}.")
        if self.moments not in get_args(MomentsKind):
            names = ", ".join(map(repr, get_args(MomentsKind)))
            raise ValueError(f"Expected moments to be one of {names} but got {self.moments!r}.")
        if not is_whole_number(self.samples) or self.samples < 2:
            raise ValueError(f"Expected samples to be an integer of at least 2 but got {self.samples!r}.")
        for name in ("refine", "sequential"):
            if getattr(self, name) not in (None, True, False) or is_number(getattr(self, name)):
                raise ValueError(f"Expected {name} to be True, False or None but got {getattr(self, name)!r}.")
        if self.probes is not None and not callable(self.probes):
            raise ValueError(
                f"Expected probes to be a function of the example inputs and a generator but got {self.probes!r}."
            )

    @property
    def measures(self) -> Measures | None:
        """On what the inputs of layers are measured; ``None`` if moments are derived."""
        return None if self.moments == "closed_form" else Measures(self.moments, self.samples, self.probes)

    def prepare(self, groups: Sequence[GroupView], sizes: Mapping[str, int]) -> None:
        """Measure what the consumers of all groups read, and choose the channels, unless moments are derived."""
        if not groups:
            return
        groups[0].state.carried = makers_of_derived(groups)
        runs = groups[0].state.runs
        if runs is None:
            return
        losing = [group for group in groups if sizes[group.name] < group.size]
        try:
            groups[0].state.prepared |= prepare(losing, sizes, runs, self._settings)
        except Unmeasurable as reason:
            warnings.warn(_why_derived(reason), stacklevel=level_of_caller())

    def select(self, group: GroupView, size: int) -> Selection:
        """Backward elimination on the consumers' summed error; every consumer gets weights of its own."""
        prepared = group.state.prepared.pop(group.name, None)  # its samples are held no longer than this
        if prepared is not None and size < group.size:
            try:
                if isinstance(prepared, Waiting):
                    group.state.prepared |= prepared.prepared()
                    prepared = group.state.prepared.pop(group.name)
                return reconstructed(group, prepared, size, self._settings, self._measured_label(group))
            except NoCoresetForm as reason:
                return self._derived(group, size, reason)
            except Unmeasurable as reason:
                group.state.prepared.clear()
                warnings.warn(_why_derived(reason), stacklevel=level_of_caller())
        return self._derived(group, size)

    def error_curve(self, group: GroupView) -> Tensor:
        """With this method's ridge."""
        return expected_error_curve(group, self.ridge)

    @property
    def _settings(self) -> Settings:
        sequential = self.moments == "batches" if self.sequential is None else self.sequential
        return Settings(self.rounds, self.ridge, Refining.of(self.refine), sequential)

    def _measured_label(self, group: GroupView) -> str:
        assert group.state.runs is not None
        return f"{self.label} ({group.state.runs.source})"

    def _derived(self, group: GroupView, size: int, reason: NoCoresetForm | None = None) -> Selection:
        """By moments in closed form, else by norms."""
        try:
            sets = consumer_sets(group)  # also of a group that stays whole: later ones need its moments
            return Selection.whole(group.size) if size >= group.size else self._reconstruct(sets, size)
        except NoCoresetForm as form:
            return rank_by_norms(group, size, reason or form)

    def _reconstruct(self, sets: list[ConsumerSet], size: int) -> Selection:
        main = main_set(sets)
        fit = coreset.reconstruct(main.moment, main.rows, size, mean=main.centre, rounds=self.rounds, ridge=self.ridge)
        updates: dict[str, Tensor] = {}
        for one in sets:
            mix = fit.mix if one is main else coreset.mixing_matrix(one.moment, fit.kept, ridge=self.ridge)
            write_updates(one, fit.kept, mix, updates)
        error = fit.error / fit.energy if fit.energy > 0 else 0.0
        return Selection(fit.kept, self.label, updates, error)


def _why_derived(reason: Unmeasurable) -> str:
    return (
        f"Moments are derived in closed form instead of measured: {reason}. Groups without such a form are ranked by "
        "norms."
    )
