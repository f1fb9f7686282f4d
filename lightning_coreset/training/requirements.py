"""What pruning in training requires of a Trainer and a model; checked before anything is changed."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as pl
from lightning.fabric.utilities.exceptions import MisconfigurationException
from torch import nn
from torch.nn.parameter import is_lazy

from lightning_coreset._compat import communication_state, loses_first_static_iteration, starts_by_multiprocessing
from lightning_coreset.checkpoint import is_resizable
from lightning_coreset.training.packages import kinds
from lightning_coreset.training.strategies import is_ddp

_SUPPORTED = ("strategies.SingleDeviceStrategy", "strategies.DDPStrategy")
_UNSUPPORTED = (
    "strategies.DeepSpeedStrategy",
    "strategies.xla.XLAStrategy",
    "strategies.single_xla.SingleDeviceXLAStrategy",
)
"""Subclasses of the supported ones."""


def check_strategy(trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
    """Refuse a strategy under which parameters cannot change their shape, before anything is changed.

    Args:
        trainer: The Trainer, about to train.
        pl_module: Its module, before the callback has done anything to it.

    Raises:
        MisconfigurationException: For a strategy other than a single device or DDP; for post-local SGD, whose ranks
            have different weights; for processes that are spawned or forked if the main process could not load their
            result into the module; before Lightning 2.6 for a static graph with manual optimization.
    """
    strategy = trainer.strategy
    if not _is_one_of(strategy, _SUPPORTED) or _is_one_of(strategy, _UNSUPPORTED):
        raise MisconfigurationException(
            f"Expected a single-device or a DDP strategy but got {type(strategy).__name__}, which flattens, shards "
            "or compiles parameters and cannot follow a change of their shapes. Prune before wrapping, with "
            "lightning_coreset.prune(model, example_inputs, ...), or train with strategy='ddp'."
        )
    if is_ddp(strategy) and _averages_models(strategy):
        raise MisconfigurationException(
            "Expected a DDP communication hook that keeps the ranks' weights equal but got post-local SGD, with which "
            "weights differ between two averagings: a plan made from those of one rank does not fit another. Use "
            "another ddp_comm_hook, or none."
        )
    is_manual = not pl_module.automatic_optimization
    if is_ddp(strategy) and is_manual and loses_first_static_iteration(strategy):
        raise MisconfigurationException(
            "Expected Lightning 2.6 or newer for manual optimization under DDP with static_graph=True but got an older "
            "one, which does not reduce the gradients of the first iteration, nor of the first after an event: the "
            "weights of the ranks diverge. Install a newer Lightning, or train without static_graph=True."
        )
    if starts_by_multiprocessing(strategy.launcher) and not is_resizable(pl_module):
        raise MisconfigurationException(
            f"Expected the module to be resizable but got {type(pl_module).__name__} as it was built. Processes that "
            "are spawned or forked prune copies of the module, and at the end the main process loads theirs into its "
            "own. Call lightning_coreset.make_resizable(model) before trainer.fit(model), or train with "
            "strategy='ddp'."
        )


def has_lazy_layers(module: nn.Module) -> bool:
    """Whether a module has layers that get their shapes when they are first run."""
    return any(map(is_lazy, (*module.parameters(), *module.buffers())))


def _is_one_of(strategy: object, paths: tuple[str, ...]) -> bool:
    return any(isinstance(strategy, kinds(path)) for path in paths)


def check_no_lazy_layers(module: nn.Module) -> None:
    """Raise ``ValueError`` for a layer that no step has run before the first event."""
    for name, tensor in (*module.named_parameters(), *module.named_buffers()):
        if is_lazy(tensor):
            raise ValueError(
                f"Expected the steps before the first pruning event to give all lazy layers their shapes but {name!r} "
                "has none yet. Run its layer once before training, or remove it."
            )


def check_not_captured(model: nn.Module) -> None:
    """Refuse a model with a module that ``torch.cuda.make_graphed_callables`` has captured.

    Its graph keeps reading and writing the memory of the old tensors after parameters are replaced: there would be no
    error and wrong results. (``torch.compile(mode="reduce-overhead")`` captures again what has changed.)

    Raises:
        MisconfigurationException: If there is such a module.
    """
    for name, module in model.named_modules():
        # The only sign of it is its own function in place of the method.
        if "make_graphed_callables" in getattr(vars(module).get("forward"), "__qualname__", ""):
            raise MisconfigurationException(
                f"Expected modules without captured CUDA graphs but got {name or type(module).__name__!r}, captured by "
                "torch.cuda.make_graphed_callables: its graph would keep using the memory of the unpruned parameters. "
                "Capture it after training, or use torch.compile(module, mode='reduce-overhead') instead."
            )


def _averages_models(strategy: Any) -> bool:
    # Not at the top: torch may be built without distributed.
    from torch.distributed.algorithms.ddp_comm_hooks.post_localSGD_hook import PostLocalSGDState

    return communication_state(strategy, PostLocalSGDState) is not None
