"""LeNet-300-100 on MNIST: accuracy without tuning, and after one epoch, of every method at several keep ratios.

Run with a copy of MNIST as an ``.npz`` with ``train_x``, ``train_y``, ``test_x`` and ``test_y``:

    python examples/benchmarks/lenet_mnist.py --data mnist.npz

or let torchvision, if it is installed, download it into a folder:

    python examples/benchmarks/lenet_mnist.py --data folder

About ten minutes on one CPU core with the default three seeds. Prints two Markdown tables.
"""

from __future__ import annotations

import argparse
import copy
import platform
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

import lightning_coreset
from lightning_coreset import Magnitude, Random, Reconstruction, Sensitivity, prune

KEEP = (0.5, 0.25, 0.1, 0.05)
METHODS = {
    "random": Random(),
    "top-k L2 norm": Magnitude(2),
    "sensitivity (paper, m distinct)": Sensitivity(),
    "sensitivity, pps": Sensitivity("pps"),
    "reconstruction": Reconstruction(),
}
Split = tuple[Tensor, Tensor]


def load(path: Path) -> tuple[Split, Split]:
    """Training and test images, scaled to [0, 1] and flattened, with their labels."""
    if path.suffix == ".npz":
        arrays = dict(np.load(path))
    else:
        from torchvision.datasets import MNIST  # type: ignore[import-not-found]

        sets = {"train": MNIST(path, train=True, download=True), "test": MNIST(path, train=False, download=True)}
        arrays = {f"{name}_x": one.data.numpy() for name, one in sets.items()}
        arrays |= {f"{name}_y": one.targets.numpy() for name, one in sets.items()}
    train, test = (
        (torch.from_numpy(arrays[f"{name}_x"]).flatten(1).float() / 255, torch.from_numpy(arrays[f"{name}_y"]).long())
        for name in ("train", "test")
    )
    return train, test


def batches(split: Split, generator: torch.Generator, size: int = 128) -> Iterator[Split]:
    """One epoch in random order."""
    for chosen in torch.randperm(len(split[0]), generator=generator).split(size):
        yield split[0][chosen], split[1][chosen]


def train(model: nn.Module, split: Split, epochs: int, lr: float, generator: torch.Generator) -> None:
    """Adam with a cosine to zero."""
    optimizer = torch.optim.Adam(model.parameters(), lr)
    steps = epochs * -(-len(split[0]) // 128)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(epochs):
        for x, y in batches(split, generator):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x), y).backward()
            optimizer.step()
            schedule.step()


@torch.no_grad()
def accuracy(model: nn.Module, split: Split) -> float:
    """In percent."""
    return 100 * float((model(split[0]).argmax(1) == split[1]).double().mean())


def lenet(seed: int) -> nn.Sequential:
    """784-300-100-10."""
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(784, 300), nn.ReLU(), nn.Linear(300, 100), nn.ReLU(), nn.Linear(100, 10))


def main() -> None:
    """Train, prune every way, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--untuned", action="store_true", help="leave out the epoch of tuning")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    training, test = load(arguments.data)
    dense: list[float] = []
    results: dict[tuple[str, float], list[tuple[float, float]]] = defaultdict(list)
    for seed in range(arguments.seeds):
        model = lenet(seed)
        train(model, training, arguments.epochs, 1e-3, torch.Generator().manual_seed(seed))
        dense.append(accuracy(model, test))
        for name, method in METHODS.items():
            for keep in KEEP:
                pruned = copy.deepcopy(model)
                prune(pruned, training[0][:2], 1 - keep, unit="channels", method=method, seed=seed, check=False)
                before = accuracy(pruned, test)
                if not arguments.untuned:
                    train(pruned, training, 1, 1e-3, torch.Generator().manual_seed(seed))
                results[name, keep].append((before, accuracy(pruned, test)))
    report(dense, results, arguments.seeds)


def report(dense: list[float], results: dict[tuple[str, float], list[tuple[float, float]]], seeds: int) -> None:
    """The means over seeds as a Markdown table."""
    print(
        f"LeNet-300-100, MNIST, {np.mean(dense):.1f}% unpruned, mean of {seeds} seeds: test accuracy without tuning -> "
        f"after one epoch, by the share of neurons kept in each hidden layer. lightning_coreset "
        f"{lightning_coreset.__version__}, torch {torch.__version__}, {platform.machine()}, one thread.\n"
    )
    print("| method | " + " | ".join(f"{keep:.0%}" for keep in KEEP) + " |")
    print("| --- |" + " --- |" * len(KEEP))
    for name in METHODS:
        cells = [np.mean(results[name, keep], axis=0) for keep in KEEP]
        print(f"| {name} | " + " | ".join(f"{before:.1f} -> {after:.1f}" for before, after in cells) + " |")


if __name__ == "__main__":
    main()
