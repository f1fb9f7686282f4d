"""Plain training of the accuracy benchmarks: a cosine to zero, accuracy, and BatchNorms recomputed."""

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
    """With Nesterov's momentum, as is usual on CIFAR-10."""
    return lambda parameters: torch.optim.SGD(parameters, lr, 0.9, weight_decay=weight_decay, nesterov=True)


def adam(lr: float) -> Build:
    """Adam as it is."""
    return lambda parameters: torch.optim.Adam(parameters, lr)


def cosine(optimizer: torch.optim.Optimizer, steps: int, warm_up: float = 0.0) -> LambdaLR:
    """From the learning rate to zero; before that linearly up to it, in a fraction of the steps."""
    rising = round(warm_up * steps)

    def factor(step: int) -> float:
        if step < rising:
            return (step + 1) / (rising + 1)
        return (1 + math.cos(math.pi * (step - rising) / max(steps - rising, 1))) / 2

    return LambdaLR(optimizer, factor)


def seeded(build: Callable[[], nn.Sequential], seed: int) -> nn.Sequential:
    """A network of random weights; the global generator goes on as if nothing had been drawn."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build()


def train(model: nn.Module, batches: Batches, epochs: float, build: Build, warm_up: float = 0.0) -> None:
    """Train, by at least one step; a part of an epoch sees that part of its batches."""
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
    """In percent."""
    model.eval()
    pieces = zip(split[0].split(size), split[1].split(size), strict=True)
    right = [(model(x).argmax(1) == y).sum() for x, y in pieces]
    return 100 * float(torch.stack(right).sum()) / len(split[1])


def recalibrate(model: nn.Module, split: Split, count: int = 512, size: int = 128) -> None:
    """Recompute running means and variances on the first so many training images, as they are."""
    update_bn(split[0][:count].split(size), model)
