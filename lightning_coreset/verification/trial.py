"""Removes channels of groups from copies of a model, and compares outputs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from lightning_coreset.state import ran_out_of_memory
from lightning_coreset.structure import (
    ChannelGroup,
    Example,
    Examples,
    RunMode,
    StandInDerivatives,
    StepOutputs,
    as_examples,
    local_collectives,
    output_tensors,
    paired,
    plain_execution,
    preserved,
    set_mode,
)
from lightning_coreset.surgery import Snapshot, apply_changes, named_tensors, scale_counts, slice_members
from lightning_coreset.verification.choices import MadeChoices
from lightning_coreset.verification.expectations import Expectations, WithoutQuantization
from lightning_coreset.verification.grouped_products import GroupedProducts
from lightning_coreset.verification.penalties import ConstantPenalties
from lightning_coreset.verification.randomised import noise, randomise_, seed_everything
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
from lightning_coreset.verification.suspects import raised_in, suspects_of
from lightning_coreset.verification.ways import ParametersUsed

_TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-3}
"""Largest difference relative to the largest output; a wrong index changes outputs by about their own size."""

LEAK = "its channels reach further"
"""The beginning of the reason that no number of the network explains."""
NOT_FINITE = "no output is a finite number, so that nothing can be compared"
"""In the reasons of a trial on too few samples, of which a step may make several parts."""


@dataclass(eq=False)
class _Run:
    """An example, with the mode in which the network is run on it.

    Attributes:
        example: The example.
        mode: The mode.
        carries: Whether the network computes numbers and keeps them, which its next run may read: it is run twice in
            a row then. ``None`` before the first run, which shows it.
        draws: Whether it draws random numbers in it.
    """

    example: Example
    mode: RunMode
    carries: bool | None = None
    draws: bool = False


def _random_states(model: nn.Module) -> list[Tensor]:
    devices = {parameter.device for parameter in model.parameters() if parameter.is_cuda}
    return [torch.get_rng_state(), *map(torch.cuda.get_rng_state, devices)]


class Trial:
    """Tries groups on a model with randomised parameters: changes it, runs it, and puts it back.

    Args:
        model: A model that may be changed: a copy, or one whose parameters are put back afterwards.
        examples: How to run it. Groups have to pass on all of them.
        dtypes: The precisions to run it in, the preferred one first.
        untouched: Parameters that the model should not use any more.

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
    ) -> None:
        self.model = model.eval()
        self._watch: list[AbstractContextManager[Any]] = [] if untouched is None else [untouched]
        self._generator = torch.Generator().manual_seed(0)
        self._raised_in: str | None = None  # where the last attempt raised an error
        randomise_(self.model, self._generator)
        for number, dtype in enumerate(dtypes, 1):
            self.dtype = dtype
            try:
                self._read(as_examples(examples))
                break
            except Exception:  # code that makes single-precision tensors itself cannot run in double precision
                if number == len(dtypes):
                    raise
        if untouched is not None and untouched.found:
            raise RuntimeError("it uses parameters of the original, which its code finds in some other way")
        self._watch = []

    def _read(self, examples: Sequence[Example]) -> None:
        """Find the runs that work in this precision: the first of every example, and those in training mode as well."""
        self.model.to(self.dtype)
        self._leaves_nothing_to_chance = False
        self._runs_steps = False  # which may add penalties on activations to a loss
        self._runs: list[_Run] = []
        self._runs_in_training: list[_Run] = []
        for example in examples:
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

    def _working(self, example: Example, mode: RunMode) -> list[_Run]:
        """The example, and one like it if that runs: a step that checks its inputs may reject random ones."""
        run = _Run(example, mode)
        both = [run, _Run(example.other(self._generator), mode)]
        try:
            self._outputs(both, modes=self._watch)
            return both
        except Exception:
            self._outputs([run], modes=self._watch)
            return [run]

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
            return {groups[0].name: reason}
        suspects = suspects_of(groups, self._raised_in) if self._raised_in else []
        if suspects:
            others = [group for group in groups if group not in suspects]
            found = self.failing(others) | self.failing(suspects)
        else:
            found = self.failing_in_halves(groups)
        return found or {group.name: f"together with others, {reason}" for group in groups}

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
        try:
            influential = self._influential(groups)
        except Exception:  # a network that cannot be differentiated: each group is tried
            influential = set()
        idle = [group for group in groups if not any(one.name in influential for one in readers(group))]
        expected = self.run() if idle else []
        silent = []
        for group in idle:  # the gradient may have been disabled, or really be zero
            fixed = FixedWeights(named_tensors(self.model), [group])
            removed = removed_classes([group])
            with kept_weights(fixed.tensors, [group], removed):
                zero_(fixed.tensors, readers(group), removed[group.name])
                if self._difference(self.run(modes=[fixed]), expected) is None:
                    silent.append(group.name)
        reason = "its removal cannot be tried, since it has no influence on the outputs of the example inputs"
        return dict.fromkeys(silent, reason)

    def unsteady(self) -> str | None:
        """How two runs of the model as it is differ, though both begin alike; ``None`` if they do not."""
        runs = (*self._runs, *self._runs_in_training)
        return self._difference(self._outputs(runs), self._outputs(runs))

    def attempt(self, groups: Sequence[ChannelGroup]) -> str | None:
        """Remove channels, and at another time zero their consumers: both must compute the same.

        With the consumers at zero, no output may notice what their producers compute. A network that draws random
        numbers in evaluation mode, too, may draw others once channels are gone; then the means of these are compared.
        """
        reason = self._attempt_all(groups)
        if reason is None or not any(run.draws for run in self._runs):
            return reason
        self._leaves_nothing_to_chance = True
        try:
            return self._attempt_all(groups)
        finally:
            self._leaves_nothing_to_chance = False

    def _attempt_all(self, groups: Sequence[ChannelGroup]) -> str | None:
        """With classes that are unlike the others of their group, once they go, and once they stay."""
        groups = [_paired_at_random(group).with_copies for group in groups]
        ways = (True, False) if any(map(unlike_classes, groups)) else (None,)
        reasons = (self._attempt(groups, removed_classes(groups, unlike=way)) for way in ways)
        return next((reason for reason in reasons if reason is not None), None)

    def _attempt(self, groups: Sequence[ChannelGroup], removed: Removed) -> str | None:
        choices = MadeChoices()
        self._raised_in = None
        try:
            expected, disturbed = self._reference(groups, removed, choices)
        except Exception as error:
            if ran_out_of_memory(error):
                raise
            return (
                "with other values in some of its channels the network does not run "
                f"({type(error).__name__}: {first_line(error)}), so that their removal cannot be tried"
            )
        if expected and not any(bool(tensor.isfinite().any()) for tensor in expected):
            return NOT_FINITE
        leak = self._difference(disturbed, expected)
        if leak is not None:
            return f"its channels reach further than its consumers ({leak})"
        kept = [(group, sorted(set(range(group.size)) - removed[group.name])) for group in groups]
        before = Snapshot(self.model)
        try:
            apply_changes(self.model, slice_members(named_tensors(self.model), kept), scale_counts(self.model, kept))
            found = self.run(modes=[choices.repeated()])
        except Exception as error:
            if ran_out_of_memory(error):
                raise
            self._raised_in = raised_in(error, self.model)
            return (
                f"without some of its channels the network does not run ({type(error).__name__}: {first_line(error)}); "
                "a width may be written as a number in its code, or kept in an attribute (see register_module)"
            )
        finally:
            before.restore()
        difference = self._difference(found, expected)
        return None if difference is None else f"its removal changes what the network computes ({difference})"

    def _reference(
        self, groups: Sequence[ChannelGroup], removed: Removed, choices: MadeChoices
    ) -> tuple[list[Tensor], list[Tensor]]:
        """What the network computes with the consumers of removed channels at zero.

        Where it normalises over channels, the statistics are those of the channels that stay; queries and keys are
        multiplied without those that go.

        Args:
            groups: The groups.
            removed: What goes of them.
            choices: Notes what the network chooses.

        Returns:
            The outputs, and the outputs where the producers of removed channels have other weights.
        """
        fixed = FixedWeights(named_tensors(self.model), groups)
        with kept_weights(fixed.tensors, groups, removed) as before:
            zero_consumers_(fixed.tensors, groups, removed)
            twins = twin_run(fixed.tensors, before, groups, removed, reduced=self._runs_steps)
            outputs = self.run(modes=[fixed, twins, choices])
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

    def _outputs(
        self,
        runs: Sequence[_Run],
        *,
        model: nn.Module | None = None,
        gradients: bool = False,
        modes: Sequence[AbstractContextManager[Any]] = (),
    ) -> list[Tensor]:
        """The same for some runs. Each begins with the state that the model has now, and leaves it."""
        model = self.model if model is None else model
        outputs = []
        # Every mode makes every operation slower; only matrices in a stack are multiplied by groups.
        grouped = [GroupedProducts()] if any(one.dim() > 2 for one in model.parameters() if one.dim() != 4) else []
        for run in runs:
            means = run.mode == "training" or self._leaves_nothing_to_chance
            expectations = [Expectations()] if means else []
            own = (ConstantPenalties(model), StandInDerivatives(), local_collectives())
            with (
                preserved(model) as state,
                plain_execution(),
                torch.set_grad_enabled(gradients),
                ExitStack() as stack,
            ):
                for mode in (*grouped, WithoutQuantization(), *expectations, *modes, *own):
                    stack.enter_context(mode)
                set_mode(model, run.mode)
                seed_everything(model)
                before = _random_states(model)
                outputs += self._step(run, model)
                run.draws |= not means and not all(map(torch.equal, before, _random_states(model)))
                if run.carries is None:
                    run.carries = state.holds_new_numbers() and self._runs_again(run, model)
                elif run.carries:
                    outputs += self._step(run, model)
        return outputs

    def _step(self, run: _Run, model: nn.Module) -> list[Tensor]:
        found = run.example.run(model, run.example.inputs)
        self._runs_steps |= isinstance(found, StepOutputs)
        return [tensor.clone() for tensor in output_tensors(found) if tensor.is_floating_point()]

    def _runs_again(self, run: _Run, model: nn.Module) -> bool:
        try:
            self._step(run, model)
            return True
        except Exception:  # an iterator may be at its end
            return False

    @torch.no_grad()  # a network may have enabled gradients for its own derivatives
    def _difference(self, found: Sequence[Tensor], expected: Sequence[Tensor]) -> str | None:
        if [tensor.shape for tensor in found] != [tensor.shape for tensor in expected]:
            return "outputs of another shape"
        for one, other in zip(found, expected, strict=True):
            finite = other.isfinite()
            if not torch.equal(one.isfinite(), finite) or not torch.equal(one.isnan(), other.isnan()):
                return "other outputs are not finite"
            if finite.any():
                one, other = one[finite], other[finite]
                error = float((one - other).abs().max() / other.abs().max().clamp_min(1e-12))
                if error > _TOLERANCE[self.dtype]:
                    return f"relative error {error:.1e}"
        return None

    def _influential(self, groups: Sequence[ChannelGroup]) -> set[str]:
        """The consumers that some output depends on, by its gradient in one run after the other."""
        consumers = {member.name for group in groups for member in readers(group)}
        parameters = {
            name: tensor.requires_grad_(True)
            for name, tensor in named_tensors(self.model).items()
            if name in consumers and tensor.is_floating_point()
        }
        found: set[str] = set()
        for run in self._runs:
            outputs = [tensor for tensor in self._outputs([run], gradients=True) if tensor.requires_grad]
            left = {name: tensor for name, tensor in parameters.items() if name not in found}
            if outputs and left:
                found |= _with_gradients(outputs, left)
        return found


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
