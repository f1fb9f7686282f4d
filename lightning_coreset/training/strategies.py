"""What pruning asks of a Trainer's strategy: one process, or DDP that is taken down and set up again."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import lightning.pytorch as pl
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.strategies import DDPStrategy, DeepSpeedStrategy, SingleDeviceStrategy
from lightning.pytorch.strategies.single_xla import SingleDeviceXLAStrategy
from lightning.pytorch.strategies.xla import XLAStrategy
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from lightning_coreset._compat import (
    communication_state,
    loses_first_static_iteration,
    repeat_static_graph_delay,
    starts_by_multiprocessing,
    tree_map,
)
from lightning_coreset.checkpoint import is_resizable

T = TypeVar("T")


def check_strategy(trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
    """Refuse a strategy under which parameters cannot change their shape, before anything is changed.

    Args:
        trainer: The Trainer, about to train.
        pl_module: Its module, before the callback has done anything to it.

    Raises:
        MisconfigurationException: For a strategy that is neither of a single device nor DDP; for post-local SGD, whose
            ranks have weights of their own; before Lightning 2.6 for a static graph under manual optimization; for
            processes that are spawned or forked with a module that the main process could not load their result into.
    """
    strategy = trainer.strategy
    # These are subclasses of what can follow.
    unable = isinstance(strategy, (DeepSpeedStrategy, XLAStrategy, SingleDeviceXLAStrategy))
    if unable or not isinstance(strategy, (SingleDeviceStrategy, DDPStrategy)):
        raise MisconfigurationException(
            f"Expected a single-device or a DDP strategy but got {type(strategy).__name__}, which flattens, shards "
            "or compiles parameters and cannot follow a change of their shapes. Prune before wrapping, with "
            "lightning_coreset.prune(model, example_inputs, ...), or train with strategy='ddp'."
        )
    if isinstance(strategy, DDPStrategy) and _averages_models(strategy):
        raise MisconfigurationException(
            "Expected a DDP communication hook that keeps the ranks' weights equal but got post-local SGD, with which "
            "each rank has its own between two averagings: a plan made from those of one rank fits no other. Use "
            "another ddp_comm_hook, or none."
        )
    by_hand = not pl_module.automatic_optimization
    if isinstance(strategy, DDPStrategy) and by_hand and loses_first_static_iteration(strategy):
        raise MisconfigurationException(
            "Expected Lightning 2.6 or newer for manual optimization under DDP with static_graph=True but got an older "
            "one, which does not reduce the gradients of the first iteration, nor of the first after an event: the "
            "ranks drift apart. Install a newer Lightning, or train without static_graph=True."
        )
    if starts_by_multiprocessing(strategy.launcher) and not is_resizable(pl_module):
        raise MisconfigurationException(
            f"Expected the module to be resizable but got {type(pl_module).__name__} as it was built. Processes that "
            "are spawned or forked prune copies of the module, and at the end the main process loads theirs into its "
            "own. Call lightning_coreset.make_resizable(model) before trainer.fit(model), or train with "
            "strategy='ddp'."
        )


@contextmanager
def unwrapped(trainer: pl.Trainer) -> Iterator[None]:
    """Take DDP's wrapper off the model for the time of a surgery and put a new one on.

    The wrapper's reducer holds buckets of the old shapes; with ``find_unused_parameters`` it would go on with them
    silently, and the ranks would drift apart. Setting up a new one is a collective operation: what raises an
    ``Exception`` in the block has to do so on all ranks. Anything else ends the run, and no new one is set up.
    """
    strategy = trainer.strategy
    if not isinstance(strategy, DDPStrategy) or not isinstance(strategy.model, DistributedDataParallel):
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


def _averages_models(strategy: DDPStrategy) -> bool:
    # Not at the top: torch may be built without distributed.
    from torch.distributed.algorithms.ddp_comm_hooks.post_localSGD_hook import PostLocalSGDState

    return communication_state(strategy, PostLocalSGDState) is not None


def _reset_powersgd(strategy: DDPStrategy) -> None:
    """Let PowerSGD forget the errors and factors that it holds for each bucket: the new buckets have other shapes.

    DDP lays them out once more after the first iteration, so that it has to wait for two before it compresses.
    """
    from torch.distributed.algorithms.ddp_comm_hooks.powerSGD_hook import PowerSGDState

    state = communication_state(strategy, PowerSGDState)
    if state is not None:
        for memory in (state.error_dict, state.p_memory_dict, state.q_memory_dict):
            memory.clear()
        state.iter = max(0, min(state.iter, state.start_powerSGD_iter - 2))


def run_on_all_ranks(trainer: pl.Trainer, work: Callable[[], T]) -> T:
    """Do the same work on every rank; where it fails on one of them, all raise.

    Otherwise the others would wait for the one that failed at their next collective operation.

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
    """Do the work on rank zero, and have its result, plain data, on every rank; where it fails, all raise.

    With many ranks its tensors are on the CPU: their device on rank zero means nothing to another rank.
    """
    if trainer.world_size == 1:
        return work()
    result = run_on_all_ranks(trainer, lambda: _on_cpu(work()) if trainer.is_global_zero else None)
    return trainer.strategy.broadcast(result)  # type: ignore[return-value]


def _on_cpu(result: T) -> T:
    return tree_map(lambda leaf: leaf.cpu() if isinstance(leaf, Tensor) else leaf, result)  # type: ignore[return-value]


def gathered(trainer: pl.Trainer, value: T) -> list[T]:
    """The values of all ranks, in their order."""
    values = [value] * trainer.world_size
    if trainer.world_size > 1:
        torch.distributed.all_gather_object(values, value)
    return values
