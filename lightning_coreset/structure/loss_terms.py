"""Terms of a loss that are made of activations: penalties on their size, sparsity, entropy or variance.

A sum, mean or norm over channels that only meets numbers until it is added to a loss says nothing of what the network
computes: the channels that go take their part of it along. Where nothing else is in that loss, it is the objective
itself, and what the network is trained for keeps its channels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from torch import Tensor

from lightning_coreset.structure.example import StepOutputs
from lightning_coreset.structure.labels import Statistic
from lightning_coreset.structure.op_call import OpCall, name_of, tensors_among
from lightning_coreset.structure.penalties import hold, is_scalar

if TYPE_CHECKING:
    from lightning_coreset.structure.propagation import Propagation

REDUCTIONS = frozenset({"mean", "sum", "var", "std", "var_mean", "std_mean", "norm", "linalg_vector_norm"})
"""Reductions by which networks normalise, and of which penalties are made."""

_SUMS = frozenset({"add", "sub", "rsub"})


def note_terms(propagation: Propagation, function: Any, tensors: Sequence[Tensor], result: Any) -> None:
    """Note the results that are made of activations, unless they are nothing but statistics over channels."""
    if not any(tensor in propagation.terms for tensor in tensors):
        infos = [propagation.info(tensor) for tensor in tensors]
        inputs = [tensor.numel() > 1 and not info.constant for tensor, info in zip(tensors, infos, strict=True)]
        statistics = any(info.statistics for info in infos)
        if statistics or not any(inputs) or not any(info.constant for info in infos):
            return
    for one in tensors_among((result,)):
        if name_of(function) not in REDUCTIONS or not _is_statistic(propagation, one):
            propagation.terms[one] = True


def _is_statistic(propagation: Propagation, tensor: Tensor) -> bool:
    """Whether a result is a statistic over channels that may still go; what is over outputs is a loss."""
    info = propagation.info(tensor)
    taken = [one for one in info.statistics if one.joins_loss]
    if info.channel_labels or not taken:
        return False
    blocked = propagation.union_find.blocked()
    return not all(bool(blocked[propagation.union_find.roots(one.labels)].all()) for one in taken)


def gathers_terms(propagation: Propagation, call: OpCall) -> bool:
    """Whether a call reduces or puts together statistics alone, as the mean of a penalty over a batch does."""
    if call.name not in REDUCTIONS and call.name != "stack":
        return False
    return all(
        propagation.info(one).statistics and one not in propagation.terms and not propagation.info(one).channel_labels
        for one in call.tensors
    )


def meets_only_numbers(propagation: Propagation, call: OpCall) -> bool:
    """Whether statistics that enter a call are scaled, combined with each other, or added to another term of a loss."""
    made = [tensor for tensor in call.tensors if tensor in propagation.terms]
    if made and not all(map(is_scalar, (*call.tensors, *call.results))):
        return False
    others = [tensor for tensor in call.tensors if tensor not in propagation.terms]
    if made and call.name not in _SUMS and (len(made) > 1 or any(propagation.info(one).statistics for one in others)):
        return False  # a statistic that scales another term is a weight of it
    return all(_is_number(propagation, tensor) for tensor in others)


def _is_number(propagation: Propagation, tensor: Tensor) -> bool:
    info = propagation.info(tensor)
    return bool(tensor.dim() == 0 or info.constant or info.uniform or info.statistics or tensor in propagation.alike)


def is_read_loss(propagation: Propagation, call: OpCall) -> bool:
    """Whether code reads the value of what may be a whole loss, to print it or to see whether it is finite."""
    return call.name == "_local_scalar_dense" and call.tensors[0] in propagation.terms


def end_terms(propagation: Propagation, outputs: Any) -> None:
    """Statistics that were added to another term of a loss hold nothing, there and where they are logged."""
    added = _end_in_outputs(propagation, outputs) if isinstance(outputs, StepOutputs) else set()
    for one in propagation.read_terms:
        if id(one.labels) not in added:
            hold(propagation, one, "is read as a number of Python (aten._local_scalar_dense)")
    propagation.read_terms.clear()


def _end_in_outputs(propagation: Propagation, outputs: StepOutputs) -> set[int]:
    """The labels of the statistics that hold nothing, by their ids."""
    features = {id(tensor) for tensor in outputs.features}
    numbers = [tensor for tensor in outputs.numbers if is_scalar(tensor) and id(tensor) not in features]
    added = {
        id(one.labels)
        for tensor in numbers
        if tensor in propagation.terms
        for one in propagation.info(tensor).statistics
        if one.joins_loss
    }

    def ended(one: Statistic) -> bool:
        return one.joins_loss and id(one.labels) in added

    for tensor in numbers:
        info = propagation.info(tensor)
        left = tuple(one for one in info.statistics if not ended(one))
        if len(left) < len(info.statistics):
            propagation.set_info(tensor, replace(info, statistics=left))
    return added
