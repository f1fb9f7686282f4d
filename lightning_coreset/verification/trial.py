"""Removes channels of groups from copies of a model, and compares outputs."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lightning_coreset.structure import (
    ChannelGroup,
    Example,
    Examples,
    RunMode,
    StandInDerivatives,
    as_examples,
    local_collectives,
    output_tensors,
    paired,
    plain_execution,
    preserved,
    preserved_random,
    set_mode,
)
from lightning_coreset.surgery import apply_changes, named_tensors, scale_counts, slice_members
from lightning_coreset.verification.expectations import Expectations
from lightning_coreset.verification.randomised import duplicate, noise, randomise_, seed_everything
from lightning_coreset.verification.reference import FixedWeights, Removed, readers, twin_run, zero_, zero_consumers_
from lightning_coreset.verification.removed import removed_classes

_TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-3}
"""Largest difference relative to the largest output; a wrong index changes outputs by about their own size."""

LEAK = "its channels reach further"
"""The beginning of the reason that no number of the network explains."""


@dataclass(frozen=True)
class _Run:
    """An example, with the mode in which the network is run on it."""

    example: Example
    mode: RunMode


class Trial:
    """Tries groups on fresh copies of one model with randomised parameters.

    Args:
        model: The network; it is not changed.
        examples: How to run it. Groups have to pass on all of them.

    Raises:
        Exception: What copying or running the model raises.
    """

    def __init__(self, model: nn.Module, examples: Examples) -> None:
        self.model = duplicate(model)
        self._generator = torch.Generator().manual_seed(0)
        randomise_(self.model, self._generator)
        self.dtype = torch.float64
        try:
            self._read(as_examples(examples))
        except Exception:  # code that makes single-precision tensors itself cannot run in double precision
            self.dtype = torch.float32
            self._read(as_examples(examples))

    def _read(self, examples: Sequence[Example]) -> None:
        """Find the runs that work in this precision: the first of every example, and those in training mode as well."""
        self.model.to(self.dtype)
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
        with preserved(self.model):
            try:
                self._outputs(self.model, both)
                return both
            except Exception:
                self._outputs(self.model, [run])
                return [run]

    def failing(self, groups: Sequence[ChannelGroup], reason: str | None = None) -> dict[str, str]:
        """The groups that fail, with the reasons, found by halving; all of them where they fail only together.

        Args:
            groups: The groups.
            reason: Why they fail together, if that is known.
        """
        reason = reason or self.attempt(groups)
        if reason is None:
            return {}
        if len(groups) == 1:
            return {groups[0].name: reason}
        middle = len(groups) // 2
        found = self.failing(groups[:middle]) | self.failing(groups[middle:])
        return found or {group.name: f"together with others, {reason}" for group in groups}

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
        expected = self.run(self.model) if idle else []
        silent = []
        for group in idle:  # the gradient may have been disabled, or really be zero
            model = duplicate(self.model)
            fixed = FixedWeights(named_tensors(model), [group])
            zero_(fixed.tensors, readers(group), removed_classes([group])[group.name])
            if self._difference(self.run(model, modes=[fixed]), expected) is None:
                silent.append(group.name)
        reason = "its removal cannot be tried, since it has no influence on the outputs of the example inputs"
        return dict.fromkeys(silent, reason)

    def attempt(self, groups: Sequence[ChannelGroup]) -> str | None:
        """Remove channels, and zero their consumers on another copy: both must compute the same.

        With the consumers at zero, no output may notice what their producers compute.
        """
        groups = [_paired_at_random(group).with_copies for group in groups]
        removed = removed_classes(groups)
        model = duplicate(self.model)
        expected, disturbed = self._reference(model, groups, removed)
        if expected and not any(bool(tensor.isfinite().any()) for tensor in expected):
            return "no output is a finite number, so that nothing can be compared"
        leak = self._difference(disturbed, expected)
        if leak is not None:
            return f"its channels reach further than its consumers ({leak})"
        kept = [(group, sorted(set(range(group.size)) - removed[group.name])) for group in groups]
        try:
            apply_changes(model, slice_members(named_tensors(model), kept), scale_counts(model, kept))
            found = self.run(model)
        except Exception as error:
            return (
                f"without some of its channels the network does not run ({type(error).__name__}: {first_line(error)}); "
                "a width may be written as a number in its code, or kept in an attribute (see register_module)"
            )
        difference = self._difference(found, expected)
        return None if difference is None else f"its removal changes what the network computes ({difference})"

    def _reference(
        self, model: nn.Module, groups: Sequence[ChannelGroup], removed: Removed
    ) -> tuple[list[Tensor], list[Tensor]]:
        """What the network computes with the consumers of removed channels at zero.

        Where it normalises over channels, the statistics are those of the channels that stay; queries and keys are
        multiplied without those that go.

        Args:
            model: A copy of the network; its consumers stay at zero.
            groups: The groups.
            removed: What goes of them.

        Returns:
            The outputs, and the outputs where the producers of removed channels have other weights.
        """
        fixed = FixedWeights(named_tensors(model), groups)
        zero_consumers_(fixed.tensors, groups, removed)
        twins = twin_run(fixed.tensors, self.model, groups, removed)
        outputs = self.run(model, modes=[fixed, twins])
        disturbed = [twins.twin(tensor) for tensor in outputs]
        return outputs, [tensor if twin is None else twin for tensor, twin in zip(outputs, disturbed, strict=True)]

    def run(
        self, model: nn.Module, *, gradients: bool = False, modes: Sequence[AbstractContextManager[Any]] = ()
    ) -> list[Tensor]:
        """All floating-point outputs of all examples, run in modes, with the same random numbers every time."""
        return self._outputs(model, self._runs, gradients=gradients, modes=modes)

    def _outputs(
        self,
        model: nn.Module,
        runs: Sequence[_Run],
        *,
        gradients: bool = False,
        modes: Sequence[AbstractContextManager[Any]] = (),
    ) -> list[Tensor]:
        outputs = []
        for run in runs:
            set_mode(model, run.mode)
            in_training = [Expectations()] if run.mode == "training" else []
            with preserved_random(model), plain_execution(), torch.set_grad_enabled(gradients), ExitStack() as stack:
                for mode in (*in_training, *modes, StandInDerivatives(), local_collectives()):
                    stack.enter_context(mode)
                seed_everything(model)
                found = run.example.run(model, run.example.inputs)
            outputs += [tensor for tensor in output_tensors(found) if tensor.is_floating_point()]
        model.eval()
        return outputs

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
        """The consumers that some output depends on, by its gradient."""
        consumers = {member.name for group in groups for member in readers(group)}
        parameters = {
            name: tensor.requires_grad_(True)
            for name, tensor in named_tensors(self.model).items()
            if name in consumers and tensor.is_floating_point()
        }
        outputs = [tensor for tensor in self.run(self.model, gradients=True) if tensor.requires_grad]
        if not outputs or not parameters:
            return set()
        generator = torch.Generator().manual_seed(0)
        # What a checkpointed part computes again has to be computed in the same way.
        with plain_execution(), torch.enable_grad(), local_collectives():
            # Random weights, since plain sums cancel, as behind a softmax.
            weighted = [(output * noise(output, generator)).nansum().cpu() for output in outputs]
            gradients = torch.autograd.grad(torch.stack(weighted).sum(), list(parameters.values()), allow_unused=True)
        return {name for name, grad in zip(parameters, gradients, strict=True) if grad is not None and grad.any()}


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
