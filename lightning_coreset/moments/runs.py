"""Runs a network on probes or batches, with tensors of one's own in place of its own, and takes samples.

Nothing that a user can see is disturbed: modes, buffers, gradients and random states are as before, dropout is off.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, MutableMapping, Sequence
from contextlib import AbstractContextManager, ExitStack, suppress
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from lightning_coreset.moments.channel_norms import modules_of_norms
from lightning_coreset.moments.half_precision import products_in_single
from lightning_coreset.moments.inputs import LayerInput, MeasuredInputs, NormInput
from lightning_coreset.moments.joining import Unmeasurable, joined, of_all_calls, of_all_norms, rows_in
from lightning_coreset.moments.norm_watch import ChannelNorms
from lightning_coreset.moments.sampling import numbers_of
from lightning_coreset.moments.watch import AllSeen, BatchNormOutputs, WeightReads
from lightning_coreset.structure import Example, plain_execution, preserved, run_with_derivatives, set_mode
from lightning_coreset.surgery import named_tensors

_FEW = 2
"""Samples of the run that counts rows; one alone has no statistics that a BatchNorm could take."""


@dataclass(frozen=True, eq=False)
class MeasuringRuns:
    """A network with inputs to run it on.

    Attributes:
        model: The network, which is left as it is.
        examples: The inputs: one list of runs for each way of running the network. Later ways are only run for weights
            that none before has shown.
        by_batch: Whether BatchNorms use the statistics of the batch: for probes, which are unlike what the network's
            running statistics were taken of.
        source: What the inputs are, in words: ``"probes"`` or ``"batches"``.
        norms_by_law: Whether norms over channels make what their law says, for probes of networks that have them.
        independent: Whether rows of one run are as good as of several, since such norms make all that counts. Then the
            first runs are enough if they have as many positions as rows are wanted.
        gather: Where several ranks measure, each on inputs of its own, returns what all of them found, in their order.
        ranks: How many there are.
    """

    model: nn.Module
    examples: Sequence[Sequence[Example]]
    by_batch: bool
    source: str
    norms_by_law: bool = False
    independent: bool = False
    gather: Callable[[MeasuredInputs | Unmeasurable], Sequence[MeasuredInputs | Unmeasurable]] | None = None
    ranks: int = 1

    def measure(
        self,
        weights: Mapping[str, tuple[int, int]],
        norms: Mapping[str, int] | None = None,
        tensors: Mapping[str, Tensor] | None = None,
        channel_norms: Mapping[str, int] | None = None,
        *,
        counted: Mapping[str, tuple[int, int]] | None = None,
        least_runs: int = 1,
        to_the_end: bool = False,
    ) -> MeasuredInputs:
        """Run the network, and sample what layers read.

        A run ends once it has shown all weights as often as an earlier one has that went to the end, if there is one.

        Args:
            weights: For weights by name, the dimension that is contracted, and how many rows to sample of all runs.
            norms: For running means of BatchNorms by name, how many rows to sample of what these make.
            tensors: Parameters and buffers for the run, by name; those of the network by default.
            channel_norms: For weights of norms over channels by name, how many rows to sample of what these read.
            counted: Further weights, as ``weights``, of which nothing is held: as many runs are made as these need too,
                and what they read is to be finite.
            least_runs: How many runs to make at least where the first are enough for all these weights.
            to_the_end: Whether the first run of each way goes to the end in any case: for what the network returns.

        Raises:
            Unmeasurable: If a run fails, or shows NaN or infinity, on any rank.
        """
        others = {name: rows for name, rows in (counted or {}).items() if name not in weights}
        wanted = _Wanted(
            {**others, **weights}, norms or {}, channel_norms or {}, frozenset(others), least_runs, to_the_end
        )
        if self.gather is None:
            return self._measured(wanted, tensors)
        own: MeasuredInputs | Unmeasurable
        try:
            own = self._measured(wanted, tensors)
        except Unmeasurable as reason:
            own = reason  # told to all ranks, which would wait for this one
        return joined(self.gather(own))

    def rows_of_one_run(self, weights: Mapping[str, tuple[int, int]]) -> dict[str, tuple[int, int]]:
        """About how many rows the first run gives of each weight that it reads, by a run of few of its samples.

        Args:
            weights: As for :meth:`measure`.

        Returns:
            By the name of the weight, the number of rows, and a number that is the same for all that read one tensor.

        Raises:
            Unmeasurable: If it fails.
        """
        first, parts = self.examples[0][0], 1 if self.independent else len(self.examples[0]) * self.ranks
        wanted = _Wanted(weights, {}, {}, frozenset(weights)).share(parts)
        few = first.part(0, _FEW) if first.batch_size > _FEW else first
        try:
            found = self._seen([few], wanted, None, {})
        except Unmeasurable:  # on another number of samples
            few, found = first, self._seen([first], wanted, None, {})
        samples = first.batch_size / max(few.batch_size, 1)
        return {name: (round(len(read.stored) * samples), id(read.stored)) for name, read in found.layers.items()}

    def _measured(self, wanted: _Wanted, tensors: Mapping[str, Tensor] | None) -> MeasuredInputs:
        found = MeasuredInputs()
        tensors = None if tensors is None else self._like_own(tensors)
        for way, runs in enumerate(self.examples):
            left = wanted.besides(found)
            if left.weights or left.norms:
                seen = self._seen(runs, left, tensors, self._reads.setdefault(way, {}))
                found = MeasuredInputs(
                    {**found.layers, **seen.layers},
                    {**found.normed, **seen.normed},
                    found.outputs + seen.outputs,
                    {**found.channel_norms, **seen.channel_norms},
                    found.runs or seen.runs,
                )
        self._check(found)
        held = {name: read for name, read in found.layers.items() if name not in wanted.counted}
        return replace(found, layers=held)

    def _seen(
        self,
        runs: Sequence[Example],
        wanted: _Wanted,
        tensors: Mapping[str, Tensor] | None,
        known: MutableMapping[tuple[str, int], int],
    ) -> MeasuredInputs:
        """What one way of running the network shows; how often a run reads each weight becomes ``known``."""
        share = wanted.share(1 if self.independent else len(runs) * self.ranks)
        calls: dict[str, list[LayerInput]] = {}
        normed: dict[str, list[Tensor]] = {}
        channels: dict[str, list[NormInput]] = {}
        returned: list[Tensor] = []
        reads_of_one = wanted.reads(known)
        number = 0
        for number, example in enumerate(runs):
            with preserved(self.model), plain_execution():  # each run from the state in which the network is
                set_mode(self.model, example.modes[0])
                own = {**named_tensors(self.model), **(tensors or {})}
                reads = WeightReads(own, share.weights, reads_of_one, only_count=share.counted)
                outputs = BatchNormOutputs(own, share.norms, by_batch=self.by_batch)
                modules = self._norms if self.norms_by_law or share.channel_norms else ()
                watch = ChannelNorms(
                    modules, by_law=self.norms_by_law, seed=number, tensors=own, wanted=share.channel_norms
                )
                with suppress(AllSeen):  # of which what the network returns is not known
                    single = products_in_single(own.values())  # first, so that watches see the weights themselves
                    returned += numbers_of(self._run(example, tensors, single, reads, outputs, watch))
            if reads_of_one is None:
                counts = {(name, dim): len(reads.found.get(name, ())) for name, (dim, _) in wanted.weights.items()}
                known.update(counts)
                if not wanted.norms:  # which may lie behind the last weight
                    reads_of_one = {name: count for (name, _), count in counts.items()}
            for name, found in reads.found.items():
                if not self.independent or rows_in(calls.get(name, ())) < wanted.weights[name][1]:
                    calls.setdefault(name, []).extend(replace(one, norm=watch.behind(one.stored)) for one in found)
            for name, made in outputs.found.items():
                normed.setdefault(name, []).extend(made)
            for name, given in watch.found.items():
                channels.setdefault(name, []).extend(given)
            enough = all(rows_in(calls[name]) >= wanted.weights[name][1] for name in calls)
            if self.independent and enough and number + 1 >= wanted.least_runs:
                break
        made = {name: torch.cat(rows) for name, rows in normed.items()}
        return MeasuredInputs(of_all_calls(calls), made, tuple(returned), of_all_norms(channels), number + 1)

    def _like_own(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Tensors in the precision and on the device of the network's own; others of its tensors are left out."""
        own = named_tensors(self.model)
        return {name: tensor.to(own[name]) for name, tensor in tensors.items() if name in own}

    def _run(self, example: Example, tensors: Mapping[str, Tensor] | None, *modes: AbstractContextManager[Any]) -> Any:
        with ExitStack() as stack:
            # Autocast would multiply with copies of weights; samples are compared with the weights themselves.
            stack.enter_context(torch.autocast(self._device, enabled=False))
            for mode in modes:
                stack.enter_context(mode)
            try:
                if tensors is None:
                    return run_with_derivatives(self.model, example)
                names = {f"model.{name}": tensor for name, tensor in tensors.items()}
                return functional_call(_Runner(self.model, example), names, ())
            except Exception as error:
                raise Unmeasurable(f"it cannot be run on {self.source}: {type(error).__name__}: {error}") from error

    @cached_property
    def _reads(self) -> dict[int, dict[tuple[str, int], int]]:
        """How often a run of each way that went to the end read weights, by name and contracted dimension."""
        return {}

    @cached_property
    def _norms(self) -> list[nn.Module]:
        return modules_of_norms(self.model)

    @property
    def _device(self) -> str:
        return next((one.device.type for one in named_tensors(self.model).values()), "cpu")

    def _check(self, measured: MeasuredInputs) -> None:
        for name, read in measured.layers.items():
            if not bool(read.stored.isfinite().all()):
                raise Unmeasurable(f"the {self.source} make NaN or infinity where {name} reads")
        for name, rows in measured.normed.items():
            if not bool(rows.isfinite().all()):
                raise Unmeasurable(f"the {self.source} make NaN or infinity where {name} is")


@dataclass(frozen=True)
class _Wanted:
    """What is to be sampled, with the number of rows of each; as in :meth:`MeasuringRuns.measure`.

    Attributes:
        weights: Those that are only counted too.
        norms: As there.
        channel_norms: As there.
        counted: The names of the weights that are only counted.
        least_runs: As there.
        to_the_end: As there.
    """

    weights: Mapping[str, tuple[int, int]]
    norms: Mapping[str, int]
    channel_norms: Mapping[str, int]
    counted: frozenset[str]
    least_runs: int = 1
    to_the_end: bool = False

    def reads(self, known: Mapping[tuple[str, int], int]) -> dict[str, int] | None:
        """How often a run reads each weight; ``None`` if it has to go to the end, or that is not known of all."""
        names = {name: (name, dim) for name, (dim, _) in self.weights.items()}
        if self.to_the_end or self.norms or self.channel_norms or not known.keys() >= set(names.values()):
            return None
        return {name: known[key] for name, key in names.items()}

    def besides(self, found: MeasuredInputs) -> _Wanted:
        """What is not found yet."""
        return replace(
            self,
            weights={name: wanted for name, wanted in self.weights.items() if name not in found.layers},
            norms={name: rows for name, rows in self.norms.items() if name not in found.normed},
            channel_norms={name: rows for name, rows in self.channel_norms.items() if name not in found.channel_norms},
        )

    def share(self, parts: int) -> _Wanted:
        """What one of several runs is to give."""
        return replace(
            self,
            weights={name: (dim, -(-rows // parts)) for name, (dim, rows) in self.weights.items()},
            norms={name: -(-rows // parts) for name, rows in self.norms.items()},
            channel_norms={name: -(-rows // parts) for name, rows in self.channel_norms.items()},
        )


class _Runner(nn.Module):
    """The network and an example as one module, whose tensors ``functional_call`` can replace."""

    def __init__(self, model: nn.Module, example: Example) -> None:
        super().__init__()
        self.model = model
        self.training = model.training
        self._example = (example,)

    def forward(self) -> Any:
        return run_with_derivatives(self.model, self._example[0])
