"""Steps that talk to other ranks: where a network is followed or tried, each rank answers its collectives itself.

Ranks run a step for its structure each on its own, and not equally often, so that a real collective would wait for ever
or mix with others. What comes of it has to have the right form, and channels in the right places: it is what a rank
would see if all others had the same.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, distributed

from lightning_coreset._compat import (
    DispatchMode,
    finished_work,
    group_size,
    is_sum,
    plain_collective_result,
    schema_of,
    tree_map,
)
from lightning_coreset.structure.op_call import OpCall


@contextmanager
def local_collectives() -> Iterator[None]:
    """In the block, nothing is sent to other ranks, whichever function, group or backend is used.

    Enter it last: what takes the place of a collective is then seen by all other modes.
    """
    if not distributed.is_available() or not distributed.is_initialized():
        yield
        return
    names = ("broadcast_object_list", "scatter_object_list")
    before = {name: getattr(distributed, name) for name in names}
    try:
        for name in names:  # whose receivers make room by numbers that were never sent
            setattr(distributed, name, _keep_objects)
        with _LocalCollectives():
            yield
    finally:
        for name, function in before.items():
            setattr(distributed, name, function)


def _keep_objects(*_: Any, **__: Any) -> None:
    pass


class _LocalCollectives(DispatchMode):
    """Answers the operators by which torch's functions and process groups communicate."""

    supports_higher_order_operators = True

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operation, a collective as if all ranks had the same."""
        # A functional collective returns a class of tensors that waits for values: here they are there.
        args, kwargs = tree_map(plain_collective_result, (args, kwargs or {}))
        namespace = getattr(function, "namespace", "")
        if "c10d" not in namespace:
            return function(*args, **kwargs)
        call = OpCall.read(function, args, kwargs, [], None)
        name = call.function.overloadpacket.__name__
        if namespace == "c10d":
            return _finish(call, _IN_PLACE.get(name))
        answer = _FUNCTIONAL.get(name)
        if answer is None:
            raise NotImplementedError(f"{function} cannot be answered without other ranks")
        return answer(call.arguments)


def _finish(call: OpCall, write: Callable[[Mapping[str, Any]], None] | None) -> Any:
    """Write the results of a collective of a process group, and return what its operator returns."""
    given = call.arguments
    if write is not None:
        write(given)
    returns = len(schema_of(call.function).returns)
    work = finished_work()
    if returns == 2:
        written = given.get("output_tensors", given.get("output_tensor", given.get("tensors")))
        return written, work
    return work if returns else None


# ---- collectives of a process group, which write into tensors; those that are missing here have nothing to write


def _all_reduce(given: Mapping[str, Any]) -> None:
    for tensor in given["tensors"]:
        _scale(tensor, given)


def _scale(tensor: Tensor, given: Mapping[str, Any]) -> None:
    if is_sum(given["reduce_op"]):
        tensor.mul_(group_size(given["process_group"]))


def _gather_lists(given: Mapping[str, Any]) -> None:
    for outputs, tensor in zip(given["output_tensors"], given["input_tensors"], strict=False):
        for output in outputs:
            if output.shape == tensor.shape:  # ranks may have other numbers of samples
                output.copy_(tensor)


def _gather(given: Mapping[str, Any]) -> None:
    outputs = given.get("outputs", given.get("output_tensor"))
    tensors = given.get("inputs", given.get("input_tensor"))
    for output, tensor in zip(_several(outputs), _several(tensors), strict=True):
        output.copy_(_repeated(tensor, output))


def _repeated(tensor: Tensor, output: Tensor) -> Tensor:
    """A tensor of every rank, one behind the other or in a new first dimension as the output has it."""
    copies = [tensor] * (output.numel() // max(tensor.numel(), 1))
    return torch.stack(copies) if output.dim() > tensor.dim() else torch.cat(copies)


def _scatter_reduced(given: Mapping[str, Any]) -> None:
    for output, tensors in zip(given["output_tensors"], given["input_tensors"], strict=True):
        output.copy_(tensors[0])
        _scale(output, given)


def _scatter_reduced_parts(given: Mapping[str, Any]) -> None:
    outputs = given.get("outputs", given.get("output_tensor"))
    tensors = given.get("inputs", given.get("input_tensor"))
    for output, tensor in zip(_several(outputs), _several(tensors), strict=True):
        output.copy_(tensor.view(-1, *output.shape)[0])
        _scale(output, given)


def _scatter(given: Mapping[str, Any]) -> None:
    for output, tensors in zip(given["output_tensors"], given["input_tensors"], strict=False):
        if len(tensors) > 0:  # on the rank that sends
            output.copy_(tensors[0])


def _exchange(given: Mapping[str, Any]) -> None:
    outputs = given.get("output_tensors", given.get("output"))
    tensors = given.get("input_tensors", given.get("input"))
    for output, tensor in zip(_several(outputs), _several(tensors), strict=True):
        if output.shape == tensor.shape:
            output.copy_(tensor)


def _several(tensors: Any) -> Sequence[Tensor]:
    return [tensors] if isinstance(tensors, Tensor) else tensors


_IN_PLACE: Mapping[str, Callable[[Mapping[str, Any]], None]] = {
    **dict.fromkeys(("allreduce_", "allreduce_coalesced_", "reduce_"), _all_reduce),
    **dict.fromkeys(("allgather_", "gather_"), _gather_lists),
    "allgather_coalesced_": lambda given: _gather_lists(
        {"output_tensors": zip(*given["output_lists"], strict=True), "input_tensors": given["input_list"]}
    ),
    **dict.fromkeys(("_allgather_base_", "allgather_into_tensor_coalesced_"), _gather),
    "reduce_scatter_": _scatter_reduced,
    **dict.fromkeys(("_reduce_scatter_base_", "reduce_scatter_tensor_coalesced_"), _scatter_reduced_parts),
    "scatter_": _scatter,
    **dict.fromkeys(("alltoall_", "alltoall_base_"), _exchange),
}


# ---- functional collectives, which return tensors


def _reduced(given: Mapping[str, Any]) -> Tensor:
    return given["input"] * _ranks(given)


def _ranks(given: Mapping[str, Any]) -> int:
    if given["reduce_op"] != "sum":
        return 1
    return given.get("group_size") or group_size(given["group_name"])


def _reduced_in_place(given: Mapping[str, Any]) -> Tensor:
    return given["input"].mul_(_ranks(given))


def _part(given: Mapping[str, Any], tensor: Tensor) -> Tensor:
    return tensor.view(given["group_size"], -1, *tensor.shape[1:])[0] * _ranks(given)


def _exchanged(given: Mapping[str, Any]) -> Tensor:
    tensor, rows = given["input"], given["output_split_sizes"]
    if not rows or sum(rows) == len(tensor):
        return tensor.clone()
    return torch.cat([tensor] * (sum(rows) // max(len(tensor), 1) + 1))[: sum(rows)]


def _each(answer: Callable[[Mapping[str, Any]], Tensor]) -> Callable[[Mapping[str, Any]], list[Tensor]]:
    return lambda given: [answer({**given, "input": tensor}) for tensor in given["inputs"]]


def _gathered(given: Mapping[str, Any]) -> Tensor:
    return torch.cat([given["input"]] * given["group_size"])


def _reduced_part(given: Mapping[str, Any]) -> Tensor:
    return _part(given, given["input"])


_FUNCTIONAL: Mapping[str, Callable[[Mapping[str, Any]], Any]] = {
    "all_reduce": _reduced,
    "all_reduce_": _reduced_in_place,
    "all_reduce_coalesced": _each(_reduced),
    "all_reduce_coalesced_": _each(_reduced_in_place),
    "all_gather_into_tensor": _gathered,
    "all_gather_into_tensor_coalesced": _each(_gathered),
    "all_gather_into_tensor_out": lambda given: given["out"].copy_(_gathered(given)),
    "reduce_scatter_tensor": _reduced_part,
    "reduce_scatter_tensor_coalesced": _each(_reduced_part),
    "reduce_scatter_tensor_out": lambda given: given["out"].copy_(_reduced_part(given)),
    "all_to_all_single": _exchanged,
    "broadcast": lambda given: given["input"].clone(),
    "broadcast_": lambda given: given["input"],
    **dict.fromkeys(("wait_tensor", "_wrap_tensor_autograd", "isend", "irecv"), lambda given: _first(given)),
    "batch_p2p_ops": lambda given: list(given["tensors"]),
}


def _first(given: Mapping[str, Any]) -> Tensor:
    return next(value for value in given.values() if isinstance(value, Tensor))
