"""Train a ResNet or a VGG for CIFAR-10, once without pruning and once with ``CoresetPruningCallback``.

    python examples/cifar.py                              # ResNet-20 on scikit-learn's digits: no download
    python examples/cifar.py --residual                   # also prune channels coupled by residual additions
    python examples/cifar.py --network vgg                # a narrow VGG-11
    python examples/cifar.py --data folder --epochs 100   # CIFAR-10, downloaded by torchvision into this folder
    python examples/cifar.py --data cifar10.npz --network vgg --depth 16 --width 1 --epochs 100

What to expect: a line for every pruning event, then a table. Half of the MACs are left. On the digits the final
accuracy is within about one point of the unpruned network's; during training it fluctuates while the learning rate is
high. Without ``--residual`` a ResNet is pruned inside its blocks only. Training on CIFAR-10 itself is slow without a
GPU.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import lightning as L
import torch
import torch.nn.functional as F
from data import Images, cifar10, digits, loaders
from networks import resnet, vgg
from report import Result, quiet, show
from torch import Tensor, nn
from torchmetrics.classification import MulticlassAccuracy

from lightning_coreset import CoresetPruningCallback


class Classifier(L.LightningModule):
    """An ordinary LightningModule, without any code for pruning."""

    def __init__(self, network: nn.Module, lr: float) -> None:
        super().__init__()
        self.network = network
        self.lr = lr
        self.accuracy = MulticlassAccuracy(num_classes=10, average="micro")

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        images, labels = batch
        return F.cross_entropy(self.network(augmented(images)), labels, label_smoothing=0.1)

    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
        images, labels = batch
        self.accuracy(self.network(images), labels)
        self.log("val_acc", self.accuracy)

    def configure_optimizers(self) -> dict:
        optimizer = torch.optim.SGD(self.parameters(), self.lr, momentum=0.9, nesterov=True, weight_decay=5e-4)
        steps = self.trainer.estimated_stepping_batches
        scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, self.lr, total_steps=int(steps))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


def augmented(images: Tensor) -> Tensor:
    """Shift the images of a batch by up to an eighth of their size, and mirror colour images with probability 1/2."""
    size = images.shape[-1]
    shift = size // 8
    top, left = torch.randint(2 * shift + 1, (2,)).tolist()
    images = F.pad(images, [shift] * 4)[..., top : top + size, left : left + size]
    if images.shape[1] == 3:  # a mirrored digit is another symbol
        mirrored = torch.rand(len(images), 1, 1, 1, device=images.device) < 0.5
        images = torch.where(mirrored, images.flip(-1), images)
    return images


def train(args: argparse.Namespace, images: Images, callbacks: list[L.Callback]) -> Result:
    """Train a new network, always from the same initial weights."""
    L.seed_everything(args.seed, verbose=False)
    colours = images.example.shape[1]
    if args.network == "resnet":
        network = resnet(colours, depth=args.depth or 20, width=args.width or 1)
    else:
        network = vgg(colours, depth=args.depth or 11, width=args.width or 0.25)
    trainer = L.Trainer(
        max_epochs=args.epochs,
        devices=1,
        callbacks=callbacks,
        logger=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        enable_progress_bar=False,
    )
    trainer.fit(Classifier(network, args.lr), *loaders(images, batch_size=64))
    return Result.of(network.cpu(), images.example, trainer.callback_metrics["val_acc"].item())


def main() -> None:
    """Train with and without pruning, and compare."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, help="CIFAR-10: an .npz file or a folder (default: scikit-learn's digits)")
    parser.add_argument("--network", choices=["resnet", "vgg"], default="resnet", help="(default: %(default)s)")
    parser.add_argument("--depth", type=int, help="20, 56 ... of a ResNet (default: 20); 11, 13, 16, 19 of a VGG (11)")
    parser.add_argument("--width", type=float, help="factor on numbers of channels (default: ResNet 1, VGG 0.25)")
    parser.add_argument(
        "--ratio", type=float, default=0.5, help="fraction of the MACs to remove (default: %(default)s)"
    )
    parser.add_argument("--residual", action="store_true", help="prune channels coupled by residual additions, too")
    parser.add_argument("--epochs", type=int, default=20, help="epochs of each training (default: %(default)s)")
    parser.add_argument("--lr", type=float, default=0.05, help="largest learning rate (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    quiet()
    images = digits() if args.data is None else cifar10(args.data)

    before = train(args, images, [])
    pruning = CoresetPruningCallback(args.ratio, unit="macs", include_residual=args.residual)
    after = train(args, images, [pruning])

    pruning.summary()
    show(f"{args.network}, {args.epochs} epochs", before, after)


if __name__ == "__main__":
    main()
