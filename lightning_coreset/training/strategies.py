"""What pruning asks of a Trainer's strategy: one process, or DDP that is taken down and set up again."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager

import lightning.pytorch as pl
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.strategies import DDPStrategy, DeepSpeedStrategy, SingleDeviceStrategy
from lightning.pytorch.strategies.single_xla import SingleDeviceXLAStrategy
from lightning.pytorch.strategies.xla import XLAStrategy
from torch.nn.parallel import DistributedDataParallel

from lightning_coreset.plan import PruningPlan


def check_strategy(trainer: pl.Trainer) -> None:
    """Raise ``MisconfigurationException`` for a strategy under which parameters cannot change their shape."""
    strategy = trainer.strategy
    # These are subclasses of what can follow.
    unable = isinstance(strategy, (DeepSpeedStrategy, XLAStrategy, SingleDeviceXLAStrategy))
    if isinstance(strategy, (SingleDeviceStrategy, DDPStrategy)) and not unable:
        return
    raise MisconfigurationException(
        f"Expected a single-device or a DDP strategy but got {type(strategy).__name__}, which flattens, shards "
        "or compiles parameters and cannot follow a change of their shapes. Prune before wrapping, with "
        "lightning_coreset.prune(model, example_inputs, ...), or train with strategy='ddp'."
    )


@contextmanager
def unwrapped(trainer: pl.Trainer) -> Iterator[None]:
    """Take DDP's wrapper off the model for the time of a surgery and put a new one on.

    The wrapper's reducer holds buckets of the old shapes; with ``find_unused_parameters`` it would go on with them
    silently, and the ranks would drift apart.
    """
    strategy = trainer.strategy
    if not isinstance(strategy, DDPStrategy) or not isinstance(strategy.model, DistributedDataParallel):
        yield
        return
    strategy.model = strategy.lightning_module
    gc.collect()  # the old reducer's hooks sit on the parameters until it is gone
    try:
        yield
    finally:
        # Private, but with static_graph=True and manual optimization the first iteration's delayed all-reduce is
        # otherwise never run again, and the ranks drift apart silently.
        strategy._pl_static_graph_delay_done = False
        strategy.configure_ddp()


def agreed(trainer: pl.Trainer, plan: PruningPlan) -> PruningPlan:
    """The plan of rank zero, on every rank."""
    if trainer.world_size == 1:
        return plan
    plain = plan.to_dict() if trainer.global_rank == 0 else None
    return PruningPlan.from_dict(trainer.strategy.broadcast(plain))  # type: ignore[arg-type]
