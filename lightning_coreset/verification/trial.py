"""Removes channels of groups from copies of a model, and compares outputs."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from functools import partial
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn

from lightning_coreset.nested import tensors_in
from lightning_coreset.plan import ParameterChange
from lightning_coreset.state import ran_out_of_memory
from lightning_coreset.structure import (
    ChannelGroup,
    Example,
    Examples,
    RunMode,
    as_examples,
    local_collectives,
    paired,
    plain_execution,
)
from lightning_coreset.structure.example import call
from lightning_coreset.surgery import Snapshot, apply_changes, named_tensors, new_value, scale_counts, slice_members
from lightning_coreset.verification.choices import MadeChoices, RepeatedChoices
from lightning_coreset.verification.concerned import Concerned
from lightning_coreset.verification.depthwise import depthwise_convolutions
from lightning_coreset.verification.randomised import noise, randomise_
from lightning_coreset.verification.reference import (
    FixedWeights,
    Removed,
    kept_weights,
    readers,
    twin_run,
    zero_,
    zero_consumers_,
)
from lightning_coreset.verification.removed import removed_classes, unlike_classes
from lightning_coreset.verification.runs import Run, Runner
from lightning_coreset.verification.saved_activations import kept_in_single_precision
from lightning_coreset.verification.suspects import raised_in, suspects_of
from lightning_coreset.verification.virtual import VirtualWeights
from lightning_coreset.verification.ways import ParametersUsed

_TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-3}
"""Largest difference relative to the largest output; a wrong index changes outputs by about their own size."""

_FEW = 3
"""Groups that are tried one by one rather than by a gradient, which takes as long as some runs, and memory."""

LEAK = "its channels reach further"
"""The beginning of the reason that no number of the network explains."""
NOT_FINITE = "no output is a finite number, so that nothing can be compared"
"""In the reasons of a trial on too few samples, of which a step may make several parts."""


class Trial:
    """Tries groups on a model with randomised parameters: changes it, runs it, and puts it back.

    Args:
        model: A model that may be changed: a copy, or one whose parameters are put back afterwards.
        examples: How to run it. Groups have to pass on all of them.
        dtypes: The precisions to run it in, the preferred one first.
        untouched: Parameters that the model should not use any more.
        around: Modes that see what concerns them in every run.
        virtual: Makes weights of the model whenever they are read; it has to be entered.
        prepare: Whether to find out how it can be run. Without that, only :meth:`passes` may be called before
            :meth:`prepare`.

    Attributes:
        model: The model.
        dtype: The precision that it has.
        runner: Runs it.

    Raises:
        Exception: What running the model raises in all precisions.
        RuntimeError: If the model uses these parameters.
    """

    def __init__(
        self,
        model: nn.Module,
        examples: Examples,
        *,
        dtypes: Sequence[torch.dtype] = (torch.float64, torch.float32),
        untouched: ParametersUsed | None = None,
        around: Sequence[Concerned] = (),
        virtual: VirtualWeights | None = None,
        prepare: bool = True,
    ) -> None:
        self.model = model.eval()
        self._examples, self._dtypes = as_examples(examples), tuple(dtypes)
        self._untouched, self._virtual = untouched, virtual
        self._watch: list[AbstractContextManager[Any]] = [] if untouched is None else [untouched]
        self._generator = torch.Generator().manual_seed(0)
        self._raised_in: str | None = None  # where the last attempt raised an error
        self._influential: set[str] = set()  # consumers on which an output is known to depend
        self.runner = Runner(around)
        randomise_(self.model, self._generator)
        if prepare:
            self.prepare()

    def prepare(self) -> None:
        """Find a precision in which the model runs, and the examples and modes that work."""
        for number, dtype in enumerate(self._dtypes, 1):
            self._use(dtype)
            try:
                self._read()
                break
            except Exception:  # code that makes single-precision tensors itself cannot run in double precision
                if number == len(self._dtypes):
                    raise
        if self._untouched is not None and self._untouched.found:
            raise RuntimeError("it uses parameters of the original, which its code finds in some other way")
        self._watch = []

    def _use(self, dtype: torch.dtype) -> None:
        self.dtype = dtype
        if self._virtual is not None:
            self._virtual.convert(self.model, dtype)
        self.model.to(dtype)
        self.runner.leaves_nothing_to_chance = self.runner.runs_steps = False
        self._runs: list[Run] = []
        self._runs_in_training: list[Run] = []

    def _read(self) -> None:
        """Find the runs that work in this precision: the first of every example, and those in training mode as well."""
        for example in self._examples:
            errors, first = [], True
            for mode in example.modes:
                try:
                    runs = self._working(example.to(self.dtype), mode)
                except Exception as error:  # it may want targets: the analysis has warned of that
                    errors.append(error)
                else:
                    (self._runs if first else self._runs_in_training).extend(runs)
                    first = False
            if first:
                raise errors[0]

    def _working(self, example: Example, mode: RunMode) -> list[Run]:
        """The example, and one like it if that runs: a step that checks its inputs may reject random ones."""
        first, *others = _alike(example, mode, self._generator)
        try:
            self._outputs([first, *others], modes=self._watch)
            return [first, *others]
        except Exception:
            self._outputs([first], modes=self._watch)
            return [first]

    def passes(self, groups: Sequence[ChannelGroup]) -> bool:
        """Whether the groups pass all at once, in all modes, on all examples and others like these.

        That is nearly always so, and then all there is to know. In a good case it takes half of the runs that it takes
        to find out first how the model can be run, and then to try its modes one after the other. In any other case
        nothing is known: only :meth:`prepare` and what follows tell.
        """
        state = self._generator.get_state()
        try:
            self._use(self._dtypes[0])
            for example in (one.to(self.dtype) for one in self._examples):
                if example.run is not call:  # what a step adds to a loss has to be known beforehand
                    self._outputs([Run(example, example.modes[0])], modes=self._watch)
                for number, mode in enumerate(example.modes):
                    runs = _alike(example, mode, self._generator)
                    (self._runs_in_training if number else self._runs).extend(runs)
            evaluated, self._runs = self._runs, [*self._runs, *self._runs_in_training]
            try:
                passed = self._attempt_all(groups, asked=evaluated) is None
            finally:
                self._runs = evaluated
            return passed and (self._untouched is None or not self._untouched.found)
        except Exception:  # also where there is no memory for all at once
            return False
        finally:
            self._generator.set_state(state)

    def failing(self, groups: Sequence[ChannelGroup], reason: str | None = None) -> dict[str, str]:
        """The groups that fail, with the reasons, found by halving; all of them where they fail only together.

        Args:
            groups: The groups.
            reason: Why they fail together, if that is known.
        """
        try:
            reason = reason or self.attempt(groups)
        except Exception as error:
            if len(groups) == 1 or not ran_out_of_memory(error):
                raise
            return self.failing_in_halves(groups)
        if reason is None:
            return {}
        if len(groups) == 1:
            return {groups[0].name: self.explained(groups, reason)}
        suspects = suspects_of(groups, self._raised_in) if self._raised_in else []
        if suspects:
            others = [group for group in groups if group not in suspects]
            found = self.failing(others) | self.failing(suspects)
        else:
            found = self.failing_in_halves(groups)
        if found:
            return found
        reason = self.explained(groups, reason)
        return {group.name: f"together with others, {reason}" for group in groups}

    def failing_in_halves(self, groups: Sequence[ChannelGroup]) -> dict[str, str]:
        """The same for each half of the groups, where there is no memory to try all of them at once."""
        middle = len(groups) // 2
        return self.failing(groups[:middle]) | self.failing(groups[middle:])

    def failing_in_training(self, groups: Sequence[ChannelGroup]) -> dict[str, str]:
        """The groups that fail in training mode, with the reasons; none if no example is run in it as well."""
        if not groups or not self._runs_in_training:
            return {}
        runs, self._runs = self._runs, self._runs_in_training
        try:
            failures = self.failing(groups)
        finally:
            self._runs = runs
        return {name: f"in training mode, {reason}" for name, reason in failures.items()}

    def without_effect(self, groups: Sequence[ChannelGroup]) -> dict[str, str]:
        """The groups whose consumers have no influence on any output, so that the trial proved nothing."""
        shown: set[str] = set()

        def idle() -> list[ChannelGroup]:
            return [group for group in groups if not self._have_influence(group) and group.name not in shown]

        if 0 < len(few := idle()) <= _FEW:
            shown = {group.name for group in few} - {group.name for group in self._silent(few)}
        try:
            for run in self._runs:
                if left := idle():
                    self._look_for_influence(run, left)
        except Exception:  # a network that cannot be differentiated: each group is tried
            self._influential.clear()
        silent = self._silent(idle())  # the gradient may have been disabled, or really be zero
        reason = "its removal cannot be tried, since it has no influence on the outputs of the example inputs"
        return dict.fromkeys((group.name for group in silent), reason)

    def _silent(self, groups: Sequence[ChannelGroup]) -> list[ChannelGroup]:
        """The groups whose consumers can be set to zero without a difference to any output."""
        silent = list(groups)
        for run in self._runs:
            expected = self._outputs([run]) if silent else []
            silent = [group for group in silent if self._difference(self._without(group, run), expected) is None]
        return silent

    def _without(self, group: ChannelGroup, run: Run) -> list[Tensor]:
        """What a run computes with the consumers of some channels of a group at zero."""
        fixed = FixedWeights(named_tensors(self.model), [group])
        removed = removed_classes([group])
        with kept_weights(fixed.tensors, [group], removed, self._virtual):
            zero_(fixed.tensors, readers(group), removed[group.name])
            return self._outputs([run], modes=fixed.modes)

    def unsteady(self) -> str | None:
        """How two runs of the model as it is differ, though both begin alike; ``None`` if they do not."""
        runs = (*self._runs, *self._runs_in_training)
        return self._difference(self._outputs(runs), self._outputs(runs))

    @property
    def has_several_runs(self) -> bool:
        """Whether :meth:`screening` leaves out any run."""
        return len(self._runs) > 1

    @contextmanager
    def screening(self) -> Iterator[None]:
        """In the block, groups are tried in the first run alone, and once: it shows nearly all errors.

        What fails there fails. What passes is yet to be proven.
        """
        runs, self._runs = self._runs, self._runs[:1]
        self.runner.repeats = False
        try:
            yield
        finally:
            self._runs, self.runner.repeats = runs, True

    def attempt(self, groups: Sequence[ChannelGroup]) -> str | None:
        """Remove channels, and at another time zero their consumers: both must compute the same.

        With the consumers at zero, no output may notice what their producers compute. A network that draws random
        numbers in evaluation mode, too, may draw others once channels are gone; then the means of these are compared.

        Returns:
            A reason if that fails: what the first run that shows an error shows. See :meth:`explained`.
        """
        return self._attempt_or_expect(groups, False)

    def explained(self, groups: Sequence[ChannelGroup], reason: str) -> str:
        """Why groups fail that do, by the weightiest of the errors in all runs, as messages tell it.

        Args:
            groups: The groups.
            reason: What :meth:`attempt` said.
        """
        return reason if len(self._runs) < 2 else self._attempt_or_expect(groups, True) or reason

    def _attempt_or_expect(self, groups: Sequence[ChannelGroup], explain: bool) -> str | None:
        reason = self._attempt_all(groups, explain=explain)
        if reason is None or not any(run.draws for run in self._runs):
            return reason
        self.runner.leaves_nothing_to_chance = True
        try:
            return self._attempt_all(groups, explain=explain)
        finally:
            self.runner.leaves_nothing_to_chance = False

    def _attempt_all(
        self, groups: Sequence[ChannelGroup], asked: Collection[Run] = (), explain: bool = False
    ) -> str | None:
        """With classes that are unlike the others of their group, once they go, and once they stay."""
        groups = [_paired_at_random(group).with_copies for group in groups]
        ways = (True, False) if any(map(unlike_classes, groups)) else (None,)
        reasons = (self._attempt(groups, removed_classes(groups, unlike=way), asked, explain) for way in ways)
        return next((reason for reason in reasons if reason is not None), None)

    def _attempt(
        self, groups: Sequence[ChannelGroup], removed: Removed, asked: Collection[Run] = (), explain: bool = False
    ) -> str | None:
        """In the first run, then in the others: most groups that fail do so in each. To explain it, all are needed."""
        self._raised_in = None
        parts = [self._runs] if explain or len(self._runs) < 2 else [self._runs[:1], self._runs[1:]]
        finite: dict[RunMode, list[bool]] = {}
        for place, runs in enumerate(parts, 1):
            reason = self._compared(groups, removed, runs, asked, finite, last=place == len(parts))
            if reason is not None:
                return reason
        return None

    def _compared(
        self,
        groups: Sequence[ChannelGroup],
        removed: Removed,
        runs: Sequence[Run],
        asked: Collection[Run],
        finite: dict[RunMode, list[bool]],
        *,
        last: bool,
    ) -> str | None:
        """Why what some of the runs compute is not what it should be.

        Args:
            groups: The groups.
            removed: What goes of them.
            runs: The runs.
            asked: See :meth:`_narrowed`.
            finite: Of each mode, which outputs have finite numbers; those of these runs are added.
            last: Whether there are no more runs.
        """
        choices = MadeChoices()
        try:
            expected, disturbed = self._reference(groups, removed, runs, choices)
        except Exception as error:
            if ran_out_of_memory(error):
                raise
            return (
                "with other values in some of its channels the network does not run "
                f"({type(error).__name__}: {first_line(error)}), so that their removal cannot be tried"
            )
        for mode, outputs in _by_mode(runs, expected).items():
            finite.setdefault(mode, []).extend(map(_has_numbers, outputs))
        if last and any(known and not any(known) for known in finite.values()):
            return NOT_FINITE
        leak = self._difference(disturbed, expected)
        if leak is not None:
            return f"its channels reach further than its consumers ({leak})"
        del disturbed
        kept = [(group, sorted(set(range(group.size)) - removed[group.name])) for group in groups]
        before = Snapshot(self.model)
        try:
            with nullcontext() if self._virtual is None else self._virtual.forgetting():
                try:
                    changes = slice_members(named_tensors(self.model), kept)
                    apply_changes(self.model, changes, scale_counts(self.model, kept), cut=self._cut)
                    found = self._narrowed(groups, runs, choices.repeated(), asked)
                finally:
                    before.restore()
        except Exception as error:
            if ran_out_of_memory(error):
                raise
            self._raised_in = raised_in(error, self.model)
            return (
                f"without some of its channels the network does not run ({type(error).__name__}: {first_line(error)}); "
                "a width may be written as a number in its code, or kept in an attribute (see register_module)"
            )
        difference = self._difference(found, expected)
        return None if difference is None else f"its removal changes what the network computes ({difference})"

    def _reference(
        self, groups: Sequence[ChannelGroup], removed: Removed, runs: Sequence[Run], choices: MadeChoices
    ) -> tuple[list[Tensor], list[Tensor]]:
        """What the network computes with the consumers of removed channels at zero.

        Where it normalises over channels, the statistics are those of the channels that stay; queries and keys are
        multiplied without those that go.

        Args:
            groups: The groups.
            removed: What goes of them.
            runs: The runs.
            choices: Notes what the network chooses.

        Returns:
            The outputs, and the outputs where the producers of removed channels have other weights.
        """
        fixed = FixedWeights(named_tensors(self.model), groups)
        with kept_weights(fixed.tensors, groups, removed, self._virtual) as before:
            zero_consumers_(fixed.tensors, groups, removed)
            twins = twin_run(fixed.tensors, before, groups, removed, reduced=self.runner.runs_steps)
            outputs = self._outputs(runs, modes=fixed.modes, layers=[choices, twins])
        disturbed = [twins.twin(tensor) for tensor in outputs]
        twins.close()
        return outputs, [tensor if twin is None else twin for tensor, twin in zip(outputs, disturbed, strict=True)]

    def run(
        self,
        *,
        model: nn.Module | None = None,
        gradients: bool = False,
        modes: Sequence[AbstractContextManager[Any]] = (),
    ) -> list[Tensor]:
        """All floating-point outputs of all examples, run in modes, with the same random numbers every time.

        Args:
            model: Another model to run on them.
            gradients: Whether to enable gradients.
            modes: The modes, the innermost last.
        """
        return self._outputs(self._runs, model=model, gradients=gradients, modes=modes)

    def _outputs(self, runs: Sequence[Run], *, model: nn.Module | None = None, **options: Any) -> list[Tensor]:
        return self.runner.outputs(runs, self.model if model is None else model, **options)

    def _cut(self, change: ParameterChange, tensor: Tensor) -> Tensor:
        """What a change leaves of a tensor; of one that is made whenever it is read, the same is true."""
        virtual = self._virtual
        if virtual is None or tensor not in virtual or change.value is not None:
            return new_value(change, tensor)
        whole = tensor.data
        return virtual.new(
            change.new_shape, tensor.dtype, lambda: new_value(change, virtual.content(whole)).contiguous()
        )

    def _narrowed(
        self, groups: Sequence[ChannelGroup], runs: Sequence[Run], choices: RepeatedChoices, asked: Collection[Run]
    ) -> list[Tensor]:
        """What the narrowed network computes.

        Args:
            groups: The groups that have lost channels.
            runs: The runs.
            choices: What the network chose before.
            asked: Runs that may show, by the way, which consumers have influence.
        """
        options: dict[str, Any] = {"modes": self._watch, "concerned": [choices], "as_before": True}
        first = [run for run in runs[:1] if run in self._runs[:1] and run in asked]
        found = [output for run in first for output in self._look_for_influence(run, groups, **options)]
        return found + self._outputs(runs[len(first) :], **options)

    @torch.no_grad()  # a network may have enabled gradients for its own derivatives
    def _difference(self, found: Sequence[Tensor], expected: Sequence[Tensor]) -> str | None:
        if [tensor.shape for tensor in found] != [tensor.shape for tensor in expected]:
            return "outputs of another shape"
        for one, other in zip(found, expected, strict=True):
            finite = other.isfinite()
            if not torch.equal(one.isfinite(), finite) or not torch.equal(one.isnan(), other.isnan()):
                return "other outputs are not finite"
            if finite.any():
                if not finite.all():
                    one, other = one[finite], other[finite]
                error = float((one - other).abs().max() / other.abs().max().clamp_min(1e-12))
                if error > _TOLERANCE[self.dtype]:
                    return f"relative error {error:.1e}"
        return None

    def _look_for_influence(self, run: Run, groups: Sequence[ChannelGroup], **options: Any) -> list[Tensor]:
        """Note which consumers of groups some output depends on, by its gradient in one run, and return the outputs."""
        consumers = {member.name for group in groups for member in readers(group)}
        parameters = {
            name: tensor.requires_grad_(True)
            for name, tensor in named_tensors(self.model).items()
            if name in consumers and tensor.is_floating_point()
        }
        with ExitStack() as stack:
            if self._virtual is not None:
                stack.enter_context(self._virtual.sparing())
            with kept_in_single_precision():
                outputs = self._outputs([run], gradients=True, **options)
            differentiable = [tensor for tensor in outputs if tensor.requires_grad]
            if differentiable and parameters:
                for mode in depthwise_convolutions(self.model):
                    stack.enter_context(mode)
                self._influential |= _with_gradients(differentiable, parameters)
            outputs = [tensor.detach() for tensor in outputs]
            del differentiable
        return outputs

    def _have_influence(self, group: ChannelGroup) -> bool:
        """Whether an output is known to depend on the consumers of a group."""
        return any(one.name in self._influential for one in readers(group))


def _alike(example: Example, mode: RunMode, generator: torch.Generator) -> list[Run]:
    """A run on an example, and one on others of the same shapes, unless that would be the same."""
    other = example.other(generator)
    pairs = zip(tensors_in(example.inputs), tensors_in(other.inputs), strict=True)
    same = all(one is its for one, its in pairs)
    return [Run(example, mode)] if same else [Run(example, mode), Run(other, mode)]


def _by_mode(runs: Iterable[Run], outputs: Iterable[Tensor]) -> dict[RunMode, list[Tensor]]:
    """The outputs of runs, those in each mode of the network by themselves."""
    of_mode: dict[RunMode, list[Tensor]] = {}
    left = iter(outputs)
    for run in runs:
        of_mode.setdefault(run.mode, []).extend(islice(left, run.outputs))
    return of_mode


def _has_numbers(tensor: Tensor) -> bool:
    return bool(tensor.isfinite().any())


def _with_gradients(outputs: Sequence[Tensor], parameters: Mapping[str, Tensor]) -> set[str]:
    """The names of the parameters whose gradient is not zero; each is let go of as soon as it is known."""
    found: set[str] = set()

    def see(name: str, tensor: Tensor) -> None:
        if tensor.grad is not None and bool(tensor.grad.any()):
            found.add(name)
        tensor.grad = None

    before = {name: tensor.grad for name, tensor in parameters.items()}
    handles = []
    for name, tensor in parameters.items():
        tensor.grad = None
        handles.append(tensor.register_post_accumulate_grad_hook(partial(see, name)))
    generator = torch.Generator().manual_seed(0)
    try:
        # What a checkpointed part computes again has to be computed in the same way.
        with plain_execution(), torch.enable_grad(), local_collectives():
            # Random weights, since plain sums cancel, as behind a softmax.
            weighted = [(output * noise(output, generator)).nansum().cpu() for output in outputs]
            torch.autograd.backward(torch.stack(weighted).sum(), inputs=list(parameters.values()))
    finally:
        for handle in handles:
            handle.remove()
        for name, tensor in parameters.items():
            tensor.grad = before[name]
    return found


def first_line(error: Exception) -> str:
    """The beginning of an error's message."""
    return str(error).strip().partition("\n")[0][:160]


def _paired_at_random(group: ChannelGroup) -> ChannelGroup:
    """Dimensions of different heads are put together by their ranks later: any way must be right."""
    if group.pairing is None or group.pairing.blocks == 1:
        return group
    generator = torch.Generator().manual_seed(0)
    orders = [torch.randperm(group.size, generator=generator) for _ in range(group.pairing.blocks)]
    return paired(group, torch.stack(orders))
