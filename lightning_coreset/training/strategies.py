"""Work on one or many processes: the same on all ranks, or on rank zero for all, with DDP's wrapper off the model."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, TypeGuard, TypeVar

import lightning.pytorch as pl
import torch
from torch.nn.parallel import DistributedDataParallel

from lightning_coreset._compat import communication_state, repeat_static_graph_delay
from lightning_coreset.nested import map_tensors
from lightning_coreset.training.packages import kinds

if TYPE_CHECKING:
    from lightning.pytorch.strategies import DDPStrategy

T = TypeVar("T")


@contextmanager
def unwrapped(trainer: pl.Trainer) -> Iterator[None]:
    """Remove DDP's wrapper from the model during surgery and put a new one on.

    The wrapper's reducer holds buckets of the old shapes; with ``find_unused_parameters`` it would silently keep using
    them, and the weights of the ranks would diverge. Setting up a new wrapper is a collective operation: what raises an
    ``Exception`` in the block has to raise on all ranks. Any other ``BaseException`` ends the run, with no new wrapper.
    """
    strategy = trainer.strategy
    if not is_ddp(strategy) or not isinstance(strategy.model, DistributedDataParallel):
        yield
        return
    repeat_static_graph_delay(strategy)
    strategy.model = strategy.lightning_module
    gc.collect()  # the old reducer's hooks sit on the parameters until it is gone
    failure: Exception | None = None
    try:
        yield
    except Exception as error:
        failure = error
    _reset_powersgd(strategy)
    strategy.configure_ddp()
    if failure is not None:
        raise failure


def is_ddp(strategy: object) -> TypeGuard[DDPStrategy]:
    """Whether a strategy is DDP, of either package."""
    return isinstance(strategy, kinds("strategies.DDPStrategy"))


def _reset_powersgd(strategy: DDPStrategy) -> None:
    """Clear the errors and factors that PowerSGD holds for each bucket: the new buckets have other shapes.

    DDP rebuilds its buckets after the first iteration, so that compression must not start within the next two.
    """
    from torch.distributed.algorithms.ddp_comm_hooks.powerSGD_hook import PowerSGDState

    state = communication_state(strategy, PowerSGDState)
    if state is not None:
        for memory in (state.error_dict, state.p_memory_dict, state.q_memory_dict):
            memory.clear()
        state.iter = max(0, min(state.iter, state.start_powerSGD_iter - 2))


def run_on_all_ranks(trainer: pl.Trainer, work: Callable[[], T]) -> T:
    """Do the same work on every rank; if it fails on one of them, all raise.

    Otherwise the others would wait for that rank at their next collective operation.

    Raises:
        Exception: What ``work`` raised here.
        RuntimeError: If it raised on other ranks only.
    """
    failure: Exception | None = None
    try:
        result = work()
    except Exception as error:
        failure = error
    messages = gathered(trainer, None if failure is None else repr(failure))
    if failure is not None:
        raise failure
    failures = {rank: message for rank, message in enumerate(messages) if message is not None}
    if failures:
        raise RuntimeError(f"A pruning event failed on other ranks, so no rank was pruned: {failures}")
    return result  # type: ignore[possibly-undefined]


def from_rank_zero(trainer: pl.Trainer, work: Callable[[], T]) -> T:
    """Do the work on rank zero and return its result, plain data, on every rank; if it fails, all raise.

    With several ranks its tensors are on the CPU: another rank may not have their device.
    """
    if trainer.world_size == 1:
        return work()
    result = run_on_all_ranks(trainer, lambda: _on_cpu(work()) if trainer.is_global_zero else None)
    return trainer.strategy.broadcast(result)  # type: ignore[return-value]


def _on_cpu(result: T) -> T:
    return map_tensors(lambda tensor: tensor.cpu(), result)


def gathered(trainer: pl.Trainer, value: T) -> list[T]:
    """The values of all ranks, in the order of ranks."""
    values = [value] * trainer.world_size
    if trainer.world_size > 1:
        torch.distributed.all_gather_object(values, value)
    return values
