"""Training loop of the accuracy benchmarks: cosine learning rate, accuracy, recomputed BatchNorm statistics."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from itertools import chain, islice, repeat

import torch
import torch.nn.functional as F
from images import Batches, Split
from torch import nn
from torch.optim.lr_scheduler import LambdaLR
from torch.optim.swa_utils import update_bn

Build = Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer]
"""Makes an optimizer for parameters."""


def sgd(lr: float, weight_decay: float = 5e-4) -> Build:
    """SGD with Nesterov momentum, as usual for CIFAR-10."""
    return lambda parameters: torch.optim.SGD(parameters, lr, 0.9, weight_decay=weight_decay, nesterov=True)


def adam(lr: float) -> Build:
    """Adam with default options."""
    return lambda parameters: torch.optim.Adam(parameters, lr)


def cosine(optimizer: torch.optim.Optimizer, steps: int, warm_up: float = 0.0) -> LambdaLR:
    """A cosine schedule from the learning rate to zero, after a linear warm-up for a fraction of the steps."""
    rising = round(warm_up * steps)

    def factor(step: int) -> float:
        if step < rising:
            return (step + 1) / (rising + 1)
        return (1 + math.cos(math.pi * (step - rising) / max(steps - rising, 1))) / 2

    return LambdaLR(optimizer, factor)


def seeded(build: Callable[[], nn.Sequential], seed: int) -> nn.Sequential:
    """A network with random weights; the state of the global generator is restored."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build()


def train(model: nn.Module, batches: Batches, epochs: float, build: Build, warm_up: float = 0.0) -> None:
    """Train for at least one step; a fraction of an epoch uses that fraction of its batches."""
    steps = max(round(epochs * len(batches)), 1)
    optimizer = build(model.parameters())
    schedule = cosine(optimizer, steps, warm_up)
    model.train()
    for x, y in islice(chain.from_iterable(repeat(batches)), steps):
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
        schedule.step()


@torch.no_grad()
def accuracy(model: nn.Module, split: Split, size: int = 1000) -> float:
    """Accuracy in percent."""
    model.eval()
    pieces = zip(split[0].split(size), split[1].split(size), strict=True)
    right = [(model(x).argmax(1) == y).sum() for x, y in pieces]
    return 100 * float(torch.stack(right).sum()) / len(split[1])


def recalibrate(model: nn.Module, split: Split, count: int = 512, size: int = 128) -> None:
    """Recompute running means and variances on the first ``count`` training images, without augmentation."""
    update_bn(split[0][:count].split(size), model)
