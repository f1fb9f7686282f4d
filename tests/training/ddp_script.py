"""Train with two processes, and write what each of them saw; run by test_ddp.py.

Usage: ``ddp_script.py DIRECTORY VARIANT...``, started twice by torchrun or as two nodes, or once for Lightning to start
the second.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from copy import deepcopy
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from fitting import Classifier, MemoryLogger, Validated, Watcher, make_loader, make_trainer, mlp
from lightning.pytorch.strategies import DDPStrategy
from torch import Tensor, nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook, fp16_compress_hook
from torch.distributed.algorithms.ddp_comm_hooks.powerSGD_hook import PowerSGDState, powerSGD_hook
from torch.nn.functional import cross_entropy, mse_loss
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, Subset

from lightning_coreset import CoresetPruningCallback, LayerShape, Reconstruction

BATCH = 16  # of all processes together
EPOCHS = 3
EVENTS = {1: 0.3, 2: 0.5}


class Partly(Classifier):
    """Has a layer that no step uses, for which DDP needs an option."""

    def __init__(self) -> None:
        super().__init__()
        self.spare = mlp(8, 4, 3)


class ByHand(Classifier):
    """Optimizes by hand."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False

    def training_step(self, batch: Any, batch_idx: int) -> None:
        x, y = batch
        optimizer: Any = self.optimizers()
        optimizer.zero_grad()
        self.manual_backward(cross_entropy(self.net(x), y))
        optimizer.step()


class Sharded(Classifier):
    """Has an optimizer that keeps its state on one process each."""

    def configure_optimizers(self) -> Any:
        if self.trainer.world_size == 1:
            return super().configure_optimizers()
        from torch.distributed.optim import ZeroRedundancyOptimizer  # not above, for importing it warns

        return ZeroRedundancyOptimizer(self.parameters(), torch.optim.Adam, lr=1e-2)


class Numbers(Classifier):
    """Reads a width from an attribute, which the self-check of each process finds by itself."""

    def __init__(self) -> None:
        super().__init__()
        self.width = 32

    def forward(self, x: Any) -> Any:
        return self.net[1:](self.net[0](x).view(len(x), self.width))

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return cross_entropy(self(batch[0]), batch[1])


class Taught(Classifier):
    """Follows a moving average of itself, which the step runs."""

    def __init__(self) -> None:
        super().__init__()
        self.teacher = deepcopy(self.net).requires_grad_(False)

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        outputs = self.net(batch[0])
        return cross_entropy(outputs, batch[1]) + mse_loss(outputs, self.teacher(batch[0]))

    @torch.no_grad()
    def on_train_batch_end(self, *_: Any) -> None:
        for one, other in zip(self.teacher.parameters(), self.net.parameters(), strict=True):
            one.lerp_(other, 0.5)


class Apart(Classifier):
    """Runs another head on every process, and one after the other on a single one."""

    def __init__(self) -> None:
        super().__init__()
        self.heads = nn.ModuleList([nn.Linear(32, 3) for _ in range(2)])

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        hidden = self.net[:2](batch[0])
        head = self.heads[self.global_rank if self.trainer.world_size > 1 else batch_idx % 2]
        return cross_entropy(self.net[2:](hidden), batch[1]) + cross_entropy(head(hidden), batch[1])


class Coupled(Classifier):
    """Adds what two layers make, on the last process."""

    def __init__(self) -> None:
        super().__init__()
        self.side = mlp(8, 32, 3)

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        one, other = self.net[:2](batch[0]), self.side[:2](batch[0])
        if self.global_rank == self.trainer.world_size - 1:
            one = one + other
        return cross_entropy(self.net[2:](one) + self.side[2:](other), batch[1])


class SkipsLater(Classifier):
    """Leaves a layer out in every second step, on the last process."""

    def __init__(self) -> None:
        super().__init__(mlp(8, 32, 32, 24, 3))

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        hidden, last = self.net[:2](batch[0]), self.global_rank == self.trainer.world_size - 1
        if not (last and batch_idx % 2):
            hidden = self.net[2:4](hidden)
        return cross_entropy(self.net[4:](hidden), batch[1])


class Shown(Classifier):
    """Shows what it is called on, for times."""

    def __init__(self) -> None:
        super().__init__()
        self.example_input_array = torch.zeros(4, 8)


def by_blocks(shape: LayerShape) -> float:
    """Seconds of blocks of four channels."""
    return 1e-3 * shape.in_channels * -(-shape.out_channels // 4)


class Compiled(Classifier):
    """Compiles its network, whose graph DDP cuts at its buckets."""

    def __init__(self) -> None:
        super().__init__()
        self.net.compile(backend="eager")


class Shortcut(nn.Module):
    """A block of a transformer without its attention."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm, self.inner = nn.LayerNorm(width), mlp(width, 48, width)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.inner(self.norm(x))


class Stream(Classifier):
    """Has channels that are normalised over and added up."""

    def __init__(self) -> None:
        super().__init__(nn.Sequential(nn.Linear(8, 32), Shortcut(32), nn.LayerNorm(32), nn.Linear(32, 3)))


class Attentive(Classifier):
    """Reads eight numbers as four tokens, with an ``nn.MultiheadAttention`` between its layers."""

    def __init__(self) -> None:
        super().__init__(nn.Sequential(nn.Linear(2, 32), SelfAttention(32, 4), nn.Linear(32, 3)))

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x.view(-1, 4, 2)).mean(1)


class SelfAttention(nn.Module):
    """An attention beside a shortcut; without biases, for the gradient of that of keys is nothing but rounding."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(width, heads, bias=False, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.attention(x, x, x)[0]


class Shares(pl.LightningDataModule):
    """Gives every process its part of every global batch."""

    def train_dataloader(self) -> DataLoader:
        trainer = self.trainer
        assert trainer is not None
        dataset = make_loader(8).dataset
        size = BATCH // trainer.world_size
        mine = [i for i in range(len(dataset)) if i % BATCH // size == trainer.global_rank]  # type: ignore[arg-type]
        return DataLoader(Subset(dataset, mine), batch_size=size)


class ValidatedShares(Shares):
    """Validates on the same."""

    val_dataloader = Shares.train_dataloader


class HookedOnCPU(DDPStrategy):
    """Registers its communication hook also on CPU, where Lightning does not."""

    def _register_ddp_hooks(self) -> None:
        assert isinstance(self.model, DistributedDataParallel)
        self.model.register_comm_hook(self._ddp_comm_state, self._ddp_comm_hook)


class Saver(pl.Callback):
    """Saves a checkpoint of every epoch."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        trainer.save_checkpoint(self.directory / f"{trainer.current_epoch}.ckpt")


def hooked(hook: Callable) -> partial:
    return partial(HookedOnCPU, ddp_comm_hook=hook)


def power_sgd() -> DDPStrategy:
    """Compresses from the third step on."""
    return HookedOnCPU(ddp_comm_state=PowerSGDState(None, start_powerSGD_iter=2), ddp_comm_hook=powerSGD_hook)


@dataclass(frozen=True)
class Variant:
    """How to train; whether the weights become those of one process, and whether the step shows its accuracy."""

    module: Callable[[], pl.LightningModule] = Classifier
    strategy: Callable[[], Any] = lambda: "ddp"
    pruning: Mapping[str, Any] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)
    exact: bool = True
    is_measured: bool = True


UNUSED = "ddp_find_unused_parameters_true"
VARIANTS = {
    "ddp": Variant(),
    "validated": Variant(Validated),
    "find_unused": Variant(Partly, lambda: UNUSED, {"method": "magnitude"}),
    "static_graph": Variant(strategy=partial(DDPStrategy, static_graph=True)),
    "bucket_view": Variant(strategy=partial(DDPStrategy, gradient_as_bucket_view=True), pruning={"order": "bottom_up"}),
    "accumulating": Variant(options={"accumulate_grad_batches": 2}),
    "by_hand": Variant(ByHand, lambda: UNUSED, {"method": "sensitivity"}),
    "static_graph_by_hand": Variant(ByHand, partial(DDPStrategy, static_graph=True)),
    "sharded_optimizer": Variant(Sharded),
    "numbers": Variant(Numbers),
    "copy": Variant(Taught, is_measured=False),
    "compiled": Variant(Compiled),
    "stream": Variant(Stream, pruning={"include_residual": True}),
    "attention": Variant(Attentive, pruning={"include_residual": True}),
    "latency": Variant(Shown, pruning={"unit": "latency", "latency": by_blocks}),
    "batches": Variant(pruning={"method": Reconstruction(moments="batches", samples=32)}, exact=False),
    "certified": Variant(pruning={"method": "random", "certify": True}),
    "hook": Variant(strategy=hooked(allreduce_hook), pruning={"method": "random"}),
    "fp16_hook": Variant(strategy=hooked(fp16_compress_hook), exact=False),
    "power_sgd": Variant(strategy=power_sgd, exact=False),
}
DISPUTED = {
    "apart": Variant(Apart, lambda: UNUSED),
    "coupled": Variant(Coupled, pruning={"include_residual": True}),
    "skips_later": Variant(SkipsLater, lambda: UNUSED, {"include_residual": True}),
}
"""Where the steps of two processes run other layers, or couple them otherwise."""
if not hasattr(DDPStrategy(), "_pl_static_graph_delay_done"):
    del VARIANTS["static_graph_by_hand"]  # is refused before Lightning 2.6


def train(
    name: str, processes: int = 1, *, checkpoints: Path | None = None, resume: Path | None = None, **options: Any
) -> dict[str, Any]:
    """Train for three epochs with two pruning events; the weights after every step, what was logged, and the plans.

    Args:
        name: The variant.
        processes: How many there are.
        checkpoints: Where to save a checkpoint of every epoch.
        resume: A checkpoint to go on from.
        **options: Other options of the Trainer.
    """
    variant = (VARIANTS | DISPUTED)[name]
    torch.manual_seed(0)
    # Already of the Trainer's precision, for Lightning loads a checkpoint before it converts the module.
    module, watcher, logger = variant.module().double(), Watcher(), MemoryLogger()
    pruning = CoresetPruningCallback(schedule=EVENTS, verbose=False, **variant.pruning)
    callbacks: list[pl.Callback] = [pruning, watcher]
    if checkpoints is not None:
        callbacks.append(Saver(checkpoints))
    if processes > 1:
        options = {"strategy": variant.strategy(), "devices": processes} | options
    trainer = make_trainer(
        *callbacks,
        max_epochs=EPOCHS,
        precision="64-true",
        use_distributed_sampler=False,
        logger=logger,
        **variant.options,
        **options,
    )
    shares = ValidatedShares() if variant.module is Validated else Shares()
    trainer.fit(module, datamodule=shares, ckpt_path=resume)
    logged = [(step, row) for step, row in logger.rows if any(tag.startswith("coreset/") for tag in row)]
    sizes = [[(group.name, group.channels_before, group.kept) for group in plan.groups] for plan in pruning.plans]
    ranks = {"world": trainer.world_size, "rank": trainer.global_rank}
    return {"weights": watcher.weights, "logged": logged, "sizes": sizes, **ranks}


def resumed(directory: Path) -> dict[str, Any]:
    """Two runs that go on after the first event: from a checkpoint of two processes, and from one of one process."""
    train("ddp", 2, checkpoints=directory / "two")
    return {f"from_{origin}": train("ddp", 2, resume=directory / origin / "1.ckpt") for origin in ("two", "one")}


def main() -> None:
    directory, names = Path(sys.argv[1]), sys.argv[2:]
    seen: dict[str, Any] = {}
    for name in names:
        if name == "resumed":
            seen |= resumed(directory)
        elif name == "nodes":
            seen[name] = train("ddp", 2, devices=1, num_nodes=2)
        else:
            seen[name] = train(name, 2)
    rank = next(iter(seen.values()))["rank"]
    torch.save(seen, directory / f"{rank}.pt")
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()  # else gloo's threads may abort a process that ends first


if __name__ == "__main__":
    main()
