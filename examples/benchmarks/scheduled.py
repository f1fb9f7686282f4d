"""A training with pruning, by our callback or by one that calls Torch-Pruning."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import lightning as L
import torch
import torch.nn.functional as F
from contenders import METHODS, Shapes, prune_to_shapes, shapes
from images import Batches, Images
from torch import Tensor, nn
from tuning import accuracy, cosine, sgd

from lightning_coreset import CoresetPruningCallback, Random, prune
from lightning_coreset.methods import Method


class Classifier(L.LightningModule):
    """An ordinary LightningModule, without any code for pruning."""

    def __init__(self, network: nn.Module, example: Tensor) -> None:
        super().__init__()
        self.network = network
        self.example_input_array = example

    def forward(self, images: Tensor) -> Tensor:
        return self.network(images)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        images, labels = batch
        return F.cross_entropy(self(images), labels)

    def configure_optimizers(self) -> dict:
        optimizer = sgd(0.1)(self.parameters())
        schedule = cosine(optimizer, int(self.trainer.estimated_stepping_batches), warm_up=0.05)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


@dataclass(frozen=True)
class Course:
    """How a network is trained and pruned.

    Attributes:
        epochs: The total number of epochs.
        ratio: The fraction of the multiply-accumulates to remove.
        include_residual: Whether channels coupled by additions are pruned.
        precision: An argument of the Trainer.
    """

    epochs: int
    ratio: float
    include_residual: bool = False
    precision: str = "32-true"

    def train(self, network: nn.Module, images: Images, seed: int, callbacks: Sequence[L.Callback] = ()) -> float:
        """Train on the device of the images; return the test accuracy in percent."""
        batches = Batches(images.train, torch.Generator().manual_seed(seed), augment=True)
        self.trainer(images, callbacks).fit(Classifier(network, images.example), batches)
        return accuracy(network.to(images.example.device), images.test)

    def events(self, network: nn.Module, images: Images) -> dict[int, Shapes]:
        """The shapes after every pruning event, by epoch; the network is not changed."""
        module = Classifier(network, images.example)
        dry_run = self.callback(Random(), 0).dry_run(self.trainer(images), module)
        found, network = {}, copy.deepcopy(network)
        for epoch, plan in dry_run.plans.items():
            gone = {
                group.name.removeprefix("network."): 1 - group.channels_after / group.channels_before
                for group in plan.groups
                if group.channels_after < group.channels_before
            }
            prune(
                network, images.example, gone, method="random", include_residual=self.include_residual, self_check=False
            )
            found[epoch] = shapes(network)
        return found

    def pruner(self, name: str, seed: int, events: Mapping[int, Shapes]) -> L.Callback:
        """The callback that prunes with the method of that name."""
        return self.callback(METHODS[name], seed) if name in METHODS else TorchPruning(name, events)

    def callback(self, method: Method, seed: int) -> CoresetPruningCallback:
        return CoresetPruningCallback(
            self.ratio,
            unit="macs",
            method=method,
            include_residual=self.include_residual,
            eval_batches=0,
            self_check=False,
            seed=seed,
            verbose=False,
        )

    def trainer(self, images: Images, callbacks: Sequence[L.Callback] = ()) -> L.Trainer:
        return L.Trainer(
            max_epochs=self.epochs,
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
        events: The shapes after every event, by epoch.
    """

    def __init__(self, name: str, events: Mapping[int, Shapes]) -> None:
        self.name, self.events = name, events

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Prune if an event is due."""
        if trainer.current_epoch not in self.events:
            return
        before = dict(pl_module.named_parameters())
        network = pl_module.network.eval()
        prune_to_shapes(self.name, network, pl_module.example_input_array, self.events[trainer.current_epoch])
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
