"""Whether all ranks have the same plan and the same weights, by checksums."""

from __future__ import annotations

from hashlib import sha256

import lightning.pytorch as pl
import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from lightning_coreset._compat import ignored_by_ddp
from lightning_coreset.plan import PruningPlan
from lightning_coreset.qualified_names import listed
from lightning_coreset.training.strategies import gathered


def check_agreement(trainer: pl.Trainer, pl_module: pl.LightningModule, plan: PruningPlan) -> None:
    """Compare plan and weights with those of rank zero, before anything is changed; a collective operation.

    Weights that differ only cause a warning: DDP gives every rank those of rank zero when it is set up again. But
    something in the training makes them differ, and optimizer states may differ as well. Not compared are buffers,
    since running statistics differ until the next forward pass, and parameters that DDP is configured to ignore.

    Raises:
        RuntimeError: On all ranks, if one has another plan than rank zero.
    """
    if trainer.world_size == 1:
        return
    weights = fingerprints(pl_module)
    mine = fingerprint(plan), sha256(repr(weights).encode()).hexdigest()
    plans, models = zip(*gathered(trainer, mine), strict=True)
    others = [rank for rank, found in enumerate(plans) if found != plans[0]]
    if others:
        raise RuntimeError(
            f"Expected every rank to have the plan of rank 0 but got another one on ranks {others}. No rank was pruned."
        )
    if len(set(models)) > 1:  # true on all ranks, so that all take part in the next collective operation
        _warn_of_difference(gathered(trainer, weights))


def fingerprint(plan: PruningPlan) -> str:
    """A hash of a plan, the same on every device."""
    plain = plan.to_dict()
    changes = [
        change
        | {
            "kept": {dim: positions.tolist() for dim, positions in change["kept"].items()},
            "value": None if change["value"] is None else _checksum(change["value"]),
            "factors": {dim: _checksum(factors) for dim, factors in change["factors"].items()},
        }
        for change in plain["changes"]
    ]
    return sha256(repr(plain | {"changes": changes}).encode()).hexdigest()


def fingerprints(pl_module: pl.LightningModule) -> dict[str, int]:
    """A checksum of every parameter that DDP keeps equal, by its name."""
    ignored = ignored_by_ddp(pl_module)
    return {name: _checksum(tensor) for name, tensor in pl_module.named_parameters() if name not in ignored}


_INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64, 16: torch.int64}
"""By the size of an element in bytes; a complex128 is read as two of them."""


def _checksum(tensor: Tensor) -> int:
    """The sum of the bits as integers, modulo 2**64: exact, in whatever order a device adds."""
    bits = tensor.detach().reshape(-1).view(_INTEGERS[tensor.element_size()])
    return int(bits.sum(dtype=torch.int64))


def _warn_of_difference(weights: list[dict[str, int]]) -> None:
    for rank, found in enumerate(weights):
        names = [name for name in {**weights[0], **found} if found.get(name) != weights[0].get(name)]
        if names:
            rank_zero_warn(
                f"Expected all ranks to have the same weights before a pruning event but those of rank {rank} differ "
                f"from rank 0's in {listed(names, most=5)}. All continue with those of rank 0. Look for what changes "
                "weights on one rank alone."
            )
