"""One call of an operator in two versions: on what a network computes, and on the twins of that."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from typing import Any

import torch
from torch import Tensor

from lightning_coreset.structure import OpCall
from lightning_coreset.structure.op_call import tensors_among, written_by
from lightning_coreset.verification.choices import differ_by_rounding, is_choice
from lightning_coreset.verification.kept_only import (
    channels_left_out,
    may_leave_out,
    product_without,
    reduced_over,
    removed_in_product,
)
from lightning_coreset.verification.layers_of_modes import Proceed


def run_both(call: OpCall, other: OpCall, layouts: Iterable[Tensor], proceed: Proceed) -> tuple[Any, Any]:
    """The results of a call and its twin, with the same random numbers."""
    first = call.args[0] if call.args else None
    twin = other.args[0] if other.args else None
    kept = channels_left_out(call, twin, layouts) if isinstance(twin, Tensor) and isinstance(first, Tensor) else {}
    if kept:
        return reduced_over(call, kept), reduced_over(other, kept)
    removed = removed_in_product(call, other)
    if removed is not None:
        return product_without(call, removed), product_without(other, removed)
    generators = _generators(call) if _draws(call.function) else []
    states = [generator.get_state() for generator in generators]
    result = proceed(call.function, call.args, call.kwargs)
    for generator, state in zip(generators, states, strict=True):
        generator.set_state(state)
    its = proceed(other.function, other.args, other.kwargs)
    alike = chooses_alike(call.function, (call.args, call.kwargs), (other.args, other.kwargs), result)
    return result, result if alike else its


def chooses_alike(function: Any, arguments: Any, others: Any, result: Any) -> bool:
    """Whether both versions choose from the same numbers, so that only rounding could make them choose differently."""
    if not is_choice(function, arguments, result) or written_by(function):
        return False
    pairs = zip(tensors_among(others), tensors_among(arguments), strict=True)
    return all(one.shape == its.shape and differ_by_rounding(one, its) for one, its in pairs)


@cache
def is_plain(function: Any) -> bool:
    """Whether an operator takes no statistics over channels, multiplies no activations and draws nothing."""
    return not (may_leave_out(function) or _draws(function))


@cache
def _draws(function: Any) -> bool:
    return torch.Tag.nondeterministic_seeded in function.tags


def tensors_written(function: Any, args: Any, kwargs: Any) -> list[Tensor]:
    """The tensors that a call writes into."""
    return OpCall.read(function, args, kwargs, [], None).written if written_by(function) else []


def _generators(call: OpCall) -> list[torch.Generator]:
    """The generators that a call may draw from."""
    own = [call.arguments.get("generator"), torch.default_generator, *torch.cuda.default_generators]
    return [generator for generator in own if isinstance(generator, torch.Generator)]
