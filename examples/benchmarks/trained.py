"""The trained networks of ``one_shot.py``: how they are built and trained, and a cache, so that it happens once.

MNIST and CIFAR-10 are ``.npz`` files or folders for torchvision, as in ``examples/data.py`` and ``images.py``.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from images import Batches, Images, mnist, prepared
from torch import Tensor, nn
from tuning import Build, adam, seeded, sgd, train

sys.path.insert(0, str(Path(__file__).parents[1]))
from networks import Block, conv_norm

VGG_CHANNELS = (32, 64, 64, 128, 128)
VGG_POOLED = (True, True, False, True, False)
RESNET_CHANNELS = (32, 64, 128)


def lenet() -> nn.Sequential:
    """784-300-100-10."""
    return nn.Sequential(nn.Linear(784, 300), nn.ReLU(), nn.Linear(300, 100), nn.ReLU(), nn.Linear(100, 10))


def small_vgg() -> nn.Sequential:
    """Five convolutions with BatchNorm, the last of which reads images of 4 x 4; 280,000 parameters."""
    layers: list[nn.Module] = []
    before = 3
    for after, pooled in zip(VGG_CHANNELS, VGG_POOLED, strict=True):
        layers += [conv_norm(before, after), nn.ReLU()]
        layers += [nn.MaxPool2d(2)] if pooled else []
        before = after
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(before, 10))


def small_resnet() -> nn.Sequential:
    """A first convolution of stride 2, and three residual blocks of 32, 64 and 128 channels; 310,000 parameters."""
    first, *others = RESNET_CHANNELS
    blocks = [Block(first, first, 1)]
    blocks += [Block(before, after, 2) for before, after in zip(RESNET_CHANNELS, others, strict=False)]
    ends = nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(RESNET_CHANNELS[-1], 10)
    return nn.Sequential(conv_norm(3, first, stride=2), nn.ReLU(), *blocks, *ends)


@dataclass(frozen=True)
class Recipe:
    """How a network of images is made.

    Attributes:
        name: The name in tables.
        build: Builds it with random weights.
        optimizer: Makes its optimizer.
        epochs: Epochs of training, with a cosine schedule after a short warm-up.
        augment: Whether training images are shifted and mirrored.
    """

    name: str
    build: Callable[[], nn.Sequential]
    optimizer: Build
    epochs: int
    augment: bool

    def with_epochs(self, epochs: int | None) -> Recipe:
        """With another number of epochs, if one is given."""
        return self if epochs is None else replace(self, epochs=epochs)

    def trained(self, images: Images, seed: int, cache: Path, device: str = "cpu") -> nn.Sequential:
        """The network in evaluation mode on the CPU, from the cache or trained on ``device``."""

        def fit(model: nn.Sequential) -> None:
            x, y = images.train
            batches = Batches((x.to(device), y.to(device)), torch.Generator().manual_seed(seed), augment=self.augment)
            train(model.to(device), batches, self.epochs, self.optimizer, warm_up=0.05)

        setting = f"{self.name}, {len(images.train[1])} images, {self.epochs} epochs, seed {seed}"
        return cached(cache, setting, lambda: seeded(self.build, seed), fit)


LENET = Recipe("LeNet-300-100", lenet, adam(1e-3), 8, augment=False)
VGG = Recipe("small VGG", small_vgg, sgd(0.1), 12, augment=True)
RESNET = Recipe("small ResNet", small_resnet, sgd(0.1), 12, augment=True)


def flat_mnist(path: Path) -> Images:
    """MNIST as vectors of 784 numbers."""
    return Images(*((x.flatten(1), y) for x, y in mnist(path)))


def cifar(path: Path, count: int, test_count: int) -> Images:
    """A part of CIFAR-10."""
    return prepared(path, count, test_count, pixels=32)


def cached(cache: Path, setting: str, build: Callable[[], nn.Module], fit: Callable[[nn.Module], None]) -> nn.Module:
    """A trained network in evaluation mode on the CPU; trained only if no file of this ``setting`` is in the folder.

    Args:
        cache: The folder.
        setting: All that the weights depend on, in words: the name of the file.
        build: Builds the untrained network.
        fit: Trains it, on any device.
    """
    model = build()
    path = cache / (re.sub(r"[^a-z0-9]+", "-", setting.lower()) + ".pt")
    if path.exists():
        model.load_state_dict(torch.load(path, weights_only=True))
        return model.eval()
    fit(model)
    model.cpu()
    cache.mkdir(parents=True, exist_ok=True)
    state: dict[str, Tensor] = model.state_dict()
    torch.save(state, path)
    return model.eval()
