"""Runs a network for a trial: every run begins alike, and leaves the network as it was."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lightning_coreset.state import ModuleState
from lightning_coreset.structure import (
    Example,
    RunMode,
    StandInDerivatives,
    StepOutputs,
    local_collectives,
    output_tensors,
    plain_execution,
    preserved_random,
    set_mode,
)
from lightning_coreset.verification.concerned import Concerned, WhereConcerned
from lightning_coreset.verification.depthwise import depthwise_convolutions
from lightning_coreset.verification.expectations import Expectations, WithoutQuantization
from lightning_coreset.verification.grouped_products import GroupedProducts
from lightning_coreset.verification.layers_of_modes import Layer, LayeredMode
from lightning_coreset.verification.penalties import ConstantPenalties
from lightning_coreset.verification.randomised import seed_everything


@dataclass(eq=False)
class Run:
    """An example, with the mode in which the network is run on it.

    Attributes:
        example: The example.
        mode: The mode.
        carries: Whether the network computes numbers and keeps them, which its next run may read: it is run twice in
            a row then. ``None`` before the first run, which shows it.
        draws: Whether it draws random numbers in it.
        penalties: Whether it computes penalties on parameters. ``None`` before the first run.
        outputs: How many tensors it returned the last time.
    """

    example: Example
    mode: RunMode
    carries: bool | None = None
    draws: bool = False
    penalties: bool | None = None
    outputs: int = 0


class Runner:
    """Runs networks.

    Args:
        around: Modes that see what concerns them in every run.

    Attributes:
        leaves_nothing_to_chance: Whether the means of random numbers take their place in evaluation mode as well.
        runs_steps: Whether a network was run in steps of training, which may add penalties on activations to a loss.
        repeats: Whether a network that keeps numbers, which its next run may read, is run twice in a row.
        count: How many times a network was run.
    """

    def __init__(self, around: Sequence[Concerned] = ()) -> None:
        self._around = tuple(around)
        self.leaves_nothing_to_chance = False
        self.runs_steps = False
        self.repeats = True
        self.count = 0
        self._known: tuple[nn.Module, ModuleState] | None = None

    def outputs(
        self,
        runs: Sequence[Run],
        model: nn.Module,
        *,
        gradients: bool = False,
        modes: Sequence[AbstractContextManager[Any]] = (),
        layers: Sequence[Layer] = (),
        concerned: Sequence[Concerned] = (),
        as_before: bool = False,
    ) -> list[Tensor]:
        """All floating-point outputs. Each run begins with the state that the model has now, and leaves it.

        Args:
            runs: The runs.
            model: The network.
            gradients: Whether to enable gradients.
            modes: Modes to run it in, the innermost last.
            layers: What sees every operation, the innermost last, and within these modes.
            concerned: What sees the operations that concern it.
            as_before: Whether the network should compute what it did when it ran last, so that what it did not do then
                need not be looked for: if it does so now, its outputs are others.
        """
        outputs: list[Tensor] = []
        # Only matrices in a stack are multiplied by groups.
        grouped = [GroupedProducts()] if any(one.dim() > 2 for one in model.parameters() if one.dim() != 4) else []
        depthwise = depthwise_convolutions(model)
        penalties = ConstantPenalties(model)
        with self._restored_after_each(model, keep=not as_before) as state_before:
            for run in runs:
                means = run.mode == "training" or self.leaves_nothing_to_chance
                expectations = [Expectations()] if means else []
                penalties.found = False
                sees_all = [*([] if as_before and run.penalties is False else [penalties]), *layers]
                with (
                    state_before() as state,
                    plain_execution(),
                    torch.set_grad_enabled(gradients),
                    ExitStack() as stack,
                ):
                    around = (*self._around, state.watching(), *depthwise, *grouped)
                    seen = WhereConcerned([*around, WithoutQuantization(), *expectations, *concerned])
                    penalties.run = seen.run
                    for mode in (*modes, LayeredMode(sees_all, seen.run)) if sees_all else (seen, *modes):
                        stack.enter_context(mode)
                    stack.enter_context(StandInDerivatives())
                    stack.enter_context(local_collectives())
                    set_mode(model, run.mode)
                    seed_everything(model)
                    before = _random_states(model)
                    found = self._step(run, model)
                    run.draws |= not means and not all(map(torch.equal, before, _random_states(model)))
                    if run.carries is None:
                        run.carries = state.holds_new_numbers()
                        found += self._second(run, model)
                    elif run.carries and self.repeats:
                        found += self._step(run, model)
                run.penalties = bool(run.penalties) or penalties.found
                run.outputs = len(found)
                outputs += found
        return outputs

    def _step(self, run: Run, model: nn.Module) -> list[Tensor]:
        self.count += 1
        found = run.example.run(model, run.example.inputs)
        self.runs_steps |= isinstance(found, StepOutputs)
        return [tensor.clone() for tensor in output_tensors(found) if tensor.is_floating_point()]

    def _second(self, run: Run, model: nn.Module) -> list[Tensor]:
        try:
            return self._step(run, model) if run.carries else []
        except Exception:  # an iterator may be at its end
            run.carries = False
            return []

    @contextmanager
    def _restored_after_each(
        self, model: nn.Module, *, keep: bool
    ) -> Iterator[Callable[[], AbstractContextManager[ModuleState]]]:
        """Restore a model after every run.

        What the model holds is looked up once for all runs, which takes as long as some of them where modules are many,
        and once for several calls if it is the same still. If it holds iterators, these cannot go back twice.

        Args:
            model: The model.
            keep: Whether to keep what was looked up for the next call, and with it the memory of all parameters.

        Yields:
            A context for each run.
        """
        known = self._known[1] if self._known is not None and self._known[0] is model else None
        if known is not None and not known.is_as_it_was():
            known = None

        @contextmanager
        def one() -> Iterator[ModuleState]:
            nonlocal known
            with preserved_random(model):
                state = known or ModuleState(model)
                known = state if state.may_be_used_again else None
                if keep:
                    self._known = None if known is None else (model, known)
                try:
                    yield state
                finally:
                    state.restore()

        yield one

    def forget(self) -> None:
        """Let go of what a model was seen to hold, before it is converted."""
        self._known = None


def _random_states(model: nn.Module) -> list[Tensor]:
    devices = {parameter.device for parameter in model.parameters() if parameter.is_cuda}
    return [torch.get_rng_state(), *map(torch.cuda.get_rng_state, devices)]
