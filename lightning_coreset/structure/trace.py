"""Run a network on examples under the engine, and leave it exactly as it was."""

from __future__ import annotations

import random
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from typing import TypeAlias

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.parameter import is_lazy

from lightning_coreset._compat import eager_execution
from lightning_coreset.module_specs import check_module_sizes, module_spec, sizing_tensor
from lightning_coreset.state import ModuleState, restored
from lightning_coreset.structure.attention import followed_attention
from lightning_coreset.structure.collectives import local_collectives
from lightning_coreset.structure.derivatives import StandInDerivatives
from lightning_coreset.structure.example import BOTH_MODES, Example, Examples, RunMode, as_examples, output_tensors
from lightning_coreset.structure.function_calls import FollowedCalls
from lightning_coreset.structure.last_layers import MAKES_OUTPUTS
from lightning_coreset.structure.loss_terms import end_terms
from lightning_coreset.structure.penalties import end_penalties
from lightning_coreset.structure.propagation import Propagation
from lightning_coreset.structure.recurrence import FollowedRecurrence
from lightning_coreset.structure.registry import find_rule
from lightning_coreset.structure.unsupported import unsupported_parameters
from lightning_coreset.structure.untrained import Copy
from lightning_coreset.structure.weight_norms import FollowedWeightNorms

OnFailure: TypeAlias = Callable[[Example, Mapping[RunMode, Exception]], None]
"""What is done about an example that does not run in some of its modes; it may raise."""


def raise_or_warn(example: Example, errors: Mapping[RunMode, Exception]) -> None:
    """Raise what a network raised in all modes of an example; warn if it ran in one of them."""
    if len(errors) == len(example.modes):
        failure, *_ = errors.values()
        raise failure
    for mode, error in errors.items():
        other = next(one for one in example.modes if one != mode)
        message = (
            f"The network could not be run in {mode} mode, so only what {other} reaches is seen: {error}\n"
            f"Give example inputs that suit {mode} mode as well, such as a tuple of inputs and targets."
        )
        warnings.warn(message, stacklevel=2)


def trace(
    model: nn.Module,
    examples: Examples,
    *,
    within_heads: bool = False,
    unequal_pieces: bool = False,
    copies: Sequence[Copy] = (),
    on_failure: OnFailure = raise_or_warn,
) -> Propagation:
    """Follow examples through ``model``, each first as in evaluation, then as in training.

    The second run shows what evaluation does not reach, such as auxiliary heads. Modules that draw random numbers or
    keep statistics stay in evaluation mode. Every run begins from the same state, and in the end the network, what it
    holds and random states are as before. Multiply-accumulates of a layer are those of the first example that runs it.

    Args:
        model: The network whose parameters are followed.
        examples: How the network is run; what that returns counts as its output.
        within_heads: Whether dimensions within attention heads may go, instead of whole heads.
        unequal_pieces: Whether pieces of different sizes may lose positions, each its own.
        copies: Copies of parts of the network, which lose the same channels as their originals.
        on_failure: Told of every example that does not run in some of its modes, with what the network raised.

    Raises:
        ValueError: If a parameter is not initialised yet, or a module differs from its registered ``ModuleSpec``.
        Exception: What ``on_failure`` raises; by default what the network does, if an example runs in no mode.
    """
    check_initialised(model)
    check_module_sizes(model)
    with ExitStack() as stack:
        for context in (preserved_random(model), plain_execution()):
            stack.enter_context(context)
        engine = Propagation(
            model,
            find_rule,
            unsupported_parameters(model),
            within_heads=within_heads,
            unequal_pieces=unequal_pieces,
            copies=copies,
        )
        stack.enter_context(FollowedCalls(engine))
        stack.enter_context(_watched_inputs(model, engine))
        stack.enter_context(followed_attention(model, engine))
        for example in as_examples(examples):
            if not example.needed(engine.used):
                engine.followed.append(())
                engine.showed.append(False)
                continue
            before = engine.union_find.changes, len(engine.used)
            errors = _follow(engine, model, example)
            engine.showed.append(before != (engine.union_find.changes, len(engine.used)))
            if errors:
                on_failure(example, errors)
    return engine


def _follow(engine: Propagation, model: nn.Module, example: Example) -> dict[RunMode, Exception]:
    """Follow one example in its modes, and note in which; returns what the network raised in the others.

    Paths and multiply-accumulates are recorded in the first mode that works.
    """
    errors: dict[RunMode, Exception] = {}
    modes: list[RunMode] = [mode for mode in BOTH_MODES if mode in example.modes]
    for mode in modes:
        first = len(errors) == modes.index(mode)
        try:
            with restored(model, watch=False) as state:  # every run begins alike
                engine.writes = state.watching()
                set_mode(model, mode)
                with engine.records.recording(example.batch_size) if first else nullcontext():
                    _run(engine, model, example)
                if any(map(engine.is_followed, state.new_tensors())):  # the next run may read it
                    with suppress(Exception):  # such as an iterator that is at its end
                        _run(engine, model, example)
        except Exception as error:
            errors[mode] = error
    engine.followed.append(tuple(mode for mode in modes if mode not in errors))
    return errors


def _run(engine: Propagation, model: nn.Module, example: Example) -> None:
    engine.residual.begin_run()
    engine.pointwise.begin_run()
    try:
        derivatives = StandInDerivatives(engine.note_derivative)
        followed = FollowedWeightNorms(engine), FollowedRecurrence(engine)
        with engine.executor.running(), followed[0], followed[1], derivatives, engine, local_collectives():
            outputs = example.run(model, example.inputs)
        end_terms(engine, outputs)
        engine.last_layers.end(outputs)
        for tensor in output_tensors(outputs):
            engine.has_outputs = True
            end_penalties(engine, tensor)
            engine.block(tensor, MAKES_OUTPUTS)
        outputs = tensor = None  # so that only what the network itself keeps is left
    finally:
        engine.executor.close()


@contextmanager
def _watched_inputs(model: nn.Module, engine: Propagation) -> Iterator[None]:
    """Note which sizes of modules follow the channels of an input, since the module has no tensor to follow."""

    def watcher(name: str, sizes: Mapping[str, int]) -> Callable[..., None]:
        def see(_: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
            for attribute, dim in sizes.items():
                own = dim % inputs[0].dim()
                engine.counts.append((engine.channel_labels(inputs[0], own, "is normalised"), name, attribute))

        return see

    handles = [
        module.register_forward_pre_hook(watcher(name, module_spec(module).input_sizes))
        for name, module in model.named_modules()
        if module_spec(module).input_sizes and sizing_tensor(module) is None
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def set_mode(model: nn.Module, mode: RunMode) -> None:
    """Evaluation mode, or what :func:`train_mode` sets."""
    if mode == "training":
        train_mode(model)
    else:
        model.eval()


def train_mode(model: nn.Module) -> None:
    """Training mode, but for modules that draw random numbers or keep statistics."""
    model.train()
    for module in model.modules():
        if module_spec(module).always_eval:
            module.eval()


def check_initialised(model: nn.Module) -> None:
    """Raise ``ValueError`` if a parameter has no shape yet."""
    for name, parameter in model.named_parameters():
        if is_lazy(parameter):
            raise ValueError(
                f"Expected initialised parameters but {name!r} is lazy and has no shape yet. "
                "Run the model once on real inputs first."
            )


@contextmanager
def plain_execution() -> Iterator[None]:
    """Operations that the rules know: no fused attention, no compiled code, no inference mode; no gradients."""
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with torch.inference_mode(False), torch.no_grad(), sdpa_kernel(SDPBackend.MATH), eager_execution():
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)


@contextmanager
def preserved(model: nn.Module) -> Iterator[ModuleState]:
    """Undo what the block does to a network and to what it holds, and restore random states."""
    with preserved_random(model), restored(model) as state:
        yield state


@contextmanager
def preserved_random(model: nn.Module) -> Iterator[None]:
    """Restore the random states of Python, numpy, and torch on the CPU and on the model's CUDA devices."""
    devices = {parameter.device for parameter in model.parameters() if parameter.is_cuda}
    numpy = sys.modules.get("numpy")  # not a dependency: what was never imported draws no numbers
    state = random.getstate()
    numpy_state = numpy.random.get_state() if numpy is not None else None
    try:
        with torch.random.fork_rng(devices=list(devices)):
            yield
    finally:
        random.setstate(state)
        if numpy is not None:
            numpy.random.set_state(numpy_state)
