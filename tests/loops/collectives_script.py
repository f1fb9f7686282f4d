"""Train with two processes whose steps talk to each other, and write what came of it; run by test_collectives.py.

Usage: ``collectives_script.py DIRECTORY KIND...``, started twice by torchrun.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from fitting import Classifier, make_loader, make_trainer, mlp, widths
from torch import Tensor
from torch.nn.functional import cross_entropy, normalize
from torchmetrics import MeanMetric

from lightning_coreset import CoresetPruningCallback


class Contrastive(Classifier):
    """Compares the codes of its samples with those of all ranks."""

    def __init__(self, kind: str) -> None:
        torch.manual_seed(0)
        super().__init__(mlp(8, 16, 12, 4))
        self.kind = kind
        self.mean = MeanMetric(dist_sync_on_step=True)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        codes = normalize(self.net(batch[0]), dim=1)
        others = KINDS[self.kind](self, codes)
        return cross_entropy(codes @ others.T / 0.1, torch.arange(len(codes)))


def gathered(module: Contrastive, codes: Tensor) -> Tensor:
    return module.all_gather(codes, sync_grads=True).flatten(0, 1)  # type: ignore[union-attr]


def in_lists(module: Contrastive, codes: Tensor) -> Tensor:
    parts = [torch.zeros_like(codes) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, codes.detach())
    parts[module.global_rank] = codes
    return torch.cat(parts)


def reduced(module: Contrastive, codes: Tensor) -> Tensor:
    mean = codes.detach().mean(0)
    dist.all_reduce(mean)
    return codes - mean / dist.get_world_size()


def by_strategy(module: Contrastive, codes: Tensor) -> Tensor:
    mean: Any = module.trainer.strategy.reduce(codes.detach().mean(), reduce_op="mean")
    module.trainer.strategy.barrier()
    return codes * module.trainer.strategy.broadcast(1.0) + 0 * mean


def functional(module: Contrastive, codes: Tensor) -> Tensor:
    import torch.distributed._functional_collectives as collectives

    mean = collectives.all_reduce(codes.detach().mean(0), "sum", dist.group.WORLD)  # type: ignore[arg-type]
    return codes - mean / dist.get_world_size()


def objects(module: Contrastive, codes: Tensor) -> Tensor:
    counts: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(counts, len(codes))
    assert set(counts) == {len(codes)}
    return codes


def by_metric(module: Contrastive, codes: Tensor) -> Tensor:
    module.mean(codes.detach().mean())
    return codes


def on_one_rank(module: Contrastive, codes: Tensor) -> Tensor:
    told = codes.detach().mean(0) if dist.get_rank() == 0 else torch.zeros(codes.shape[1])
    dist.broadcast(told, 0)
    return codes + 0 * told


KINDS: dict[str, Callable[[Contrastive, Tensor], Tensor]] = {
    "none": lambda module, codes: codes,
    "gathered": gathered,
    "in lists": in_lists,
    "reduced": reduced,
    "by strategy": by_strategy,
    "functional": functional,
    "object": objects,
    "metric": by_metric,
    "on one rank": on_one_rank,
}


def train(kind: str) -> dict[str, Any]:
    module = Contrastive(kind)
    pruning = CoresetPruningCallback(0.4, schedule={1: 0.4}, method="magnitude", eval_batches=0, verbose=False)
    make_trainer(pruning, max_epochs=2, devices=2, strategy="ddp").fit(module, make_loader(8, samples=32, batch_size=8))
    return {"widths": widths(module), "weights": {name: value.clone() for name, value in module.state_dict().items()}}


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    directory, *kinds = sys.argv[1:]
    found = {kind: train(kind) for kind in kinds}
    torch.save(found, Path(directory) / f"{dist.get_rank()}.pt")
