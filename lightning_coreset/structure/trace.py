"""Run a network once under the engine, and leave it exactly as it was."""

from __future__ import annotations

import random
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.parameter import is_lazy
from torch.overrides import TorchFunctionMode

from lightning_coreset._compat import eager_execution, registered_buffers, set_registered_buffers
from lightning_coreset.module_specs import check_module_sizes, module_spec, sizing_tensor
from lightning_coreset.structure.attention import followed_attention
from lightning_coreset.structure.example import Example, output_tensors
from lightning_coreset.structure.propagation import Propagation
from lightning_coreset.structure.registry import find_rule
from lightning_coreset.structure.unsupported import unsupported_parameters
from lightning_coreset.structure.weight_norms import FollowedWeightNorms


def trace(
    model: nn.Module, example: Example, *, within_heads: bool = False, unequal_pieces: bool = False
) -> Propagation:
    """Follow an example through ``model``, first as in evaluation, then as in training.

    The second run shows what evaluation does not reach, such as auxiliary heads. Modules that draw random numbers or
    keep statistics stay in evaluation mode. Flags, buffers and random states are restored.

    Args:
        model: The network whose parameters are followed.
        example: How the network is run; what that returns counts as its output.
        within_heads: Whether dimensions within attention heads may go, instead of whole heads.
        unequal_pieces: Whether pieces of different sizes may lose positions, each its own.

    Raises:
        ValueError: If a parameter is not initialised yet, or a module differs from its registered ``ModuleSpec``.
        Exception: What the network raises in evaluation mode.
    """
    _check_initialised(model)
    check_module_sizes(model)
    with ExitStack() as stack:
        for context in (preserved(model), plain_execution()):
            stack.enter_context(context)
        engine = Propagation(
            model,
            find_rule,
            unsupported_parameters(model),
            within_heads=within_heads,
            unequal_pieces=unequal_pieces,
        )
        stack.enter_context(_WatchedAttention(engine))
        stack.enter_context(_watched_inputs(model, engine))
        stack.enter_context(followed_attention(model, engine))
        model.eval()
        _run(engine, model, example)
        engine.records.recording = False
        train_mode(model)
        try:
            _run(engine, model, example)
        except Exception as error:
            message = (
                f"The network could not be run in training mode, so only what evaluation reaches is seen: {error}\n"
                "Give example inputs that suit training mode as well, such as a tuple of inputs and targets."
            )
            warnings.warn(message, stacklevel=2)
    return engine


def _run(engine: Propagation, model: nn.Module, example: Example) -> None:
    try:
        with engine.executor.running(), FollowedWeightNorms(engine), engine:
            outputs = example.run(model, example.inputs)
        for tensor in output_tensors(outputs):
            engine.block(tensor, "reaches the network's output")
        outputs = tensor = None  # so that only what the network itself keeps is left
    finally:
        engine.executor.close()


class _WatchedAttention(TorchFunctionMode):
    """Tells the engine when attention divides products of queries and keys by the root of their number itself."""

    def __init__(self, engine: Propagation) -> None:
        super().__init__()
        self._engine = engine

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is not F.scaled_dot_product_attention:
            return func(*args, **kwargs)
        self._engine.scale_is_implicit = kwargs.get("scale") is None
        try:
            return func(*args, **kwargs)
        finally:
            self._engine.scale_is_implicit = False


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


def train_mode(model: nn.Module) -> None:
    """Training mode, but for modules that draw random numbers or keep statistics."""
    model.train()
    for module in model.modules():
        if module_spec(module).always_eval:
            module.eval()


def _check_initialised(model: nn.Module) -> None:
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
def preserved(model: nn.Module) -> Iterator[None]:
    """Restore training flags, buffers (values and objects) and random states."""
    modules = list(model.modules())
    flags = [(module, module.training) for module in modules]
    buffers = [(module, registered_buffers(module)) for module in modules]
    values = [(buffer, buffer.clone()) for buffer in model.buffers()]
    try:
        with preserved_random(model):
            yield
    finally:
        for module, training in flags:
            module.training = training
        for module, own in buffers:
            set_registered_buffers(module, own)
        with torch.no_grad():
            for buffer, value in values:
                buffer.copy_(value)


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
