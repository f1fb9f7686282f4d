"""A training with pruning, by our callback or by one that calls Torch-Pruning."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import lightning as L
import torch
import torch.nn.functional as F
from contenders import METHODS, Shapes, prune_to_shapes, shapes
from images import Batches, Images
from torch import Tensor, nn
from tuning import Build, accuracy, cosine, sgd

from lightning_coreset import CoresetPruningCallback, PruningSchedule, Random, prune
from lightning_coreset.methods import Method
from lightning_coreset.planning import PruningRatio

PRUNED_EARLY = PruningSchedule()
"""The callback's own: between 10% and 70% of the training, most of it at first."""
SGD = sgd(0.1)


class Classifier(L.LightningModule):
    """An ordinary LightningModule, without any code for pruning; the learning rate falls by a cosine."""

    def __init__(self, network: nn.Module, example: Tensor, optimizer: Build, warm_up: float) -> None:
        super().__init__()
        self.network = network
        self.example_input_array = example
        self.optimizer, self.warm_up = optimizer, warm_up

    def forward(self, images: Tensor) -> Tensor:
        return self.network(images)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        images, labels = batch
        return F.cross_entropy(self(images), labels)

    def configure_optimizers(self) -> dict:
        optimizer = self.optimizer(self.parameters())
        schedule = cosine(optimizer, int(self.trainer.estimated_stepping_batches), self.warm_up)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


@dataclass(frozen=True)
class Course:
    """How a network is trained and pruned.

    Attributes:
        epochs: The total number of epochs; -1 where ``steps`` says how long it is.
        ratio: The fraction of the multiply-accumulates to remove, or the fraction of the channels of every layer.
        include_residual: Whether channels coupled by additions are pruned.
        precision: An argument of the Trainer.
        steps: The total number of optimizer steps; -1 where ``epochs`` says how long it is.
        schedule: When it is pruned.
        optimizer: Makes the optimizer.
        warm_up: The part of the steps in which the learning rate rises.
        augment: Whether training images are shifted and mirrored.
        batch: Images in a batch.
    """

    epochs: int
    ratio: PruningRatio
    include_residual: bool = False
    precision: str = "32-true"
    steps: int = -1
    schedule: PruningSchedule = PRUNED_EARLY
    optimizer: Build = SGD
    warm_up: float = 0.05
    augment: bool = True
    batch: int = 128

    def train(self, network: nn.Module, images: Images, seed: int, callbacks: Sequence[L.Callback] = ()) -> float:
        """Train on the device of the images; return the test accuracy in percent."""
        network.train()  # Lightning leaves a network in evaluation mode as it is
        generator = torch.Generator().manual_seed(seed)
        batches = Batches(images.train, generator, self.batch, augment=self.augment)
        self.trainer(images, callbacks).fit(self.module(network, images), batches)
        return accuracy(network.to(images.example.device), images.test)

    def events(self, network: nn.Module, images: Images) -> dict[int, Shapes]:
        """The shapes after every pruning event, by epoch (step); the network is not changed."""
        module = self.module(network, images)
        dry_run = self.callback(Random(), 0).dry_run(self.trainer(images), module)
        found, network = {}, copy.deepcopy(network)
        for time, plan in dry_run.plans.items():
            gone = {
                group.name.removeprefix("network."): 1 - group.channels_after / group.channels_before
                for group in plan.groups
                if group.channels_after < group.channels_before
            }
            if gone:  # a small event may remove no whole channel
                prune(
                    network,
                    images.example,
                    gone,
                    method="random",
                    include_residual=self.include_residual,
                    self_check=False,
                )
            found[time] = shapes(network)
        return found

    def pruner(self, name: str, seed: int, events: Mapping[int, Shapes]) -> L.Callback:
        """The callback that prunes with the method of that name."""
        return self.callback(METHODS[name], seed) if name in METHODS else self.torch_pruning(name, events)

    def torch_pruning(self, name: str, events: Mapping[int, Shapes]) -> TorchPruning:
        return TorchPruning(name, events, by_step=self.schedule.interval == "step")

    def module(self, network: nn.Module, images: Images) -> Classifier:
        return Classifier(network, images.example, self.optimizer, self.warm_up)

    def callback(self, method: Method, seed: int) -> CoresetPruningCallback:
        return CoresetPruningCallback(
            self.ratio,
            unit="macs",
            method=method,
            schedule=self.schedule,
            include_residual=self.include_residual,
            eval_batches=0,
            self_check=False,
            seed=seed,
            verbose=False,
        )

    def trainer(self, images: Images, callbacks: Sequence[L.Callback] = ()) -> L.Trainer:
        return L.Trainer(
            max_epochs=self.epochs,
            max_steps=self.steps,
            accelerator="gpu" if images.example.is_cuda else "cpu",
            devices=1,
            precision=self.precision,
            callbacks=[*callbacks],
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )


class TorchPruning(L.Callback):
    """Prune with Torch-Pruning, at the epochs and to the widths of our callback.

    Args:
        name: One of the importances in ``contenders.TORCH_PRUNING``.
        events: The shapes after every event, by epoch, or by optimizer step.
        by_step: Whether it is by step.
    """

    def __init__(self, name: str, events: Mapping[int, Shapes], by_step: bool = False) -> None:
        self.name, self.events, self.by_step = name, events, by_step

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Prune if an event is due at this epoch."""
        if not self.by_step and trainer.current_epoch in self.events:
            self.prune(trainer, pl_module, self.events[trainer.current_epoch])

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Prune if an event is due at this step."""
        if self.by_step and trainer.global_step in self.events:
            self.prune(trainer, pl_module, self.events[trainer.global_step])

    def prune(self, trainer: L.Trainer, pl_module: L.LightningModule, wanted: Shapes) -> None:
        """Prune to these shapes, and hand the new parameters to the optimizer."""
        before = dict(pl_module.named_parameters())
        network = pl_module.network.eval()
        prune_to_shapes(self.name, network, pl_module.example_input_array, wanted)
        network.train()
        (optimizer,) = trainer.optimizers
        replace_parameters(optimizer, before, dict(pl_module.named_parameters()))


def replace_parameters(
    optimizer: torch.optim.Optimizer, before: Mapping[str, nn.Parameter], after: Mapping[str, nn.Parameter]
) -> None:
    """Replace parameters in an optimizer; the state of the new ones is empty."""
    new = {old: after[name] for name, old in before.items()}
    for group in optimizer.param_groups:
        group["params"] = [new[old] for old in group["params"]]
    for old, parameter in new.items():
        if parameter is not old:
            optimizer.state.pop(old, None)
