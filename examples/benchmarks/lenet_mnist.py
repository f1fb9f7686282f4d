"""LeNet-300-100 on MNIST: accuracy without tuning, and after one epoch, of every method at several keep ratios.

A second table brackets the worst error of a coreset of the first layer, whatever the input.

Run with a copy of MNIST as an ``.npz`` with ``train_x``, ``train_y``, ``test_x`` and ``test_y``:

    python examples/benchmarks/lenet_mnist.py --data mnist.npz

or let torchvision, if it is installed, download it into a folder:

    python examples/benchmarks/lenet_mnist.py --data folder

Some minutes on one CPU core with the default three seeds. Prints two Markdown tables; ``--certificates`` prints
the second one alone.
"""

from __future__ import annotations

import argparse
import copy
import platform
from collections import defaultdict
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from lightning_coreset import Magnitude, Random, Reconstruction, Sensitivity, prune
from lightning_coreset.coreset import certify, find_activation, largest_found_error
from lightning_coreset.methods import Method

KEEP = (0.5, 0.25, 0.1, 0.05)
METHODS: dict[str, Method] = {
    "random": Random(),
    "top-k L2 norm": Magnitude(2),
    "sensitivity (paper, m distinct)": Sensitivity(),
    "sensitivity, pps": Sensitivity("pps"),
    "reconstruction": Reconstruction(),
}
CERTIFIED_KEEP = (0.5, 0.25)
CERTIFIED = ("sensitivity (paper, m distinct)", "reconstruction")
Split = tuple[Tensor, Tensor]
Accuracies = dict[tuple[str, float], list[tuple[float, float]]]
Brackets = dict[tuple[str, float], list[tuple[float, float, float, float]]]


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


def certified(
    model: nn.Sequential, method: Method, keep: float, radius: float, seed: int
) -> tuple[float, float, float, float]:
    """Layer 1 alone: the largest output found of what reads it, the largest error found, certified, and by triangle."""
    pruned = copy.deepcopy(model)
    plan = prune(
        pruned,
        torch.zeros(2, 784),
        1 - keep,
        unit="channels",
        method=method,
        ignore=("2",),
        seed=seed,
        check=False,
        certify=True,
        input_radius=radius,
    )
    (group,) = plan.groups
    first, second, reweighted = model[0], model[2], pruned[2]
    assert isinstance(first, nn.Linear)
    assert isinstance(second, nn.Linear)
    assert isinstance(reweighted, nn.Linear)
    rows = torch.cat([first.weight, first.bias[:, None]], dim=1).detach()
    weight = second.weight.detach()
    change = weight.clone()
    change[:, list(group.kept)] -= reweighted.weight.detach()
    relu = find_activation("relu")
    assert relu is not None
    largest = weight.norm(dim=1).topk(16).indices
    generator = torch.Generator().manual_seed(seed)
    own = largest_found_error(weight[largest], rows, relu, input_radius=radius, generator=generator)
    triangle = certify(change, rows, relu, input_radius=radius, sharpen=False).triangle
    assert group.found_error is not None
    assert group.certified_error is not None
    return float(own.max()), group.found_error, group.certified_error, float(triangle.max())


def package_version() -> str:
    """Of the installed package; a source tree on the path has none."""
    try:
        return version("lightning-coreset")
    except PackageNotFoundError:
        return "from source"


def main() -> None:
    """Train, prune every way, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--untuned", action="store_true", help="leave out the epoch of tuning")
    parser.add_argument("--certificates", action="store_true", help="print the table of certificates alone")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    training, test = load(arguments.data)
    radius = float(training[0].norm(dim=1).max())
    dense: list[float] = []
    results: Accuracies = defaultdict(list)
    brackets: Brackets = defaultdict(list)
    for seed in range(arguments.seeds):
        model = lenet(seed)
        train(model, training, arguments.epochs, 1e-3, torch.Generator().manual_seed(seed))
        dense.append(accuracy(model, test))
        for name in CERTIFIED:
            for keep in CERTIFIED_KEEP:
                brackets[name, keep].append(certified(model, METHODS[name], keep, radius, seed))
        for name, method in METHODS.items():
            for keep in () if arguments.certificates else KEEP:
                pruned = copy.deepcopy(model)
                prune(pruned, training[0][:2], 1 - keep, unit="channels", method=method, seed=seed, check=False)
                before = accuracy(pruned, test)
                if not arguments.untuned:
                    train(pruned, training, 1, 1e-3, torch.Generator().manual_seed(seed))
                results[name, keep].append((before, accuracy(pruned, test)))
    if not arguments.certificates:
        report(dense, results, arguments.seeds)
    report_certificates(brackets, radius, arguments.seeds)


def report_certificates(brackets: Brackets, radius: float, seeds: int) -> None:
    """The means over seeds as a Markdown table."""
    print(
        f"\nLayer 1 of LeNet-300-100 alone, all inputs of norm up to {radius:.2f} (the largest image), mean of "
        f"{seeds} seeds: what the worst input does to the worst of the next layer's outputs.\n"
    )
    print("| keep | method | largest output found | largest error found | certified | triangle bound |")
    print("| --- |" + " --- |" * 5)
    for keep in CERTIFIED_KEEP:
        for name in CERTIFIED:
            cells = np.mean(brackets[name, keep], axis=0)
            print(f"| {keep:.0%} | {name} | " + " | ".join(f"{cell:.1f}" for cell in cells) + " |")


def report(dense: list[float], results: Accuracies, seeds: int) -> None:
    """The means over seeds as a Markdown table."""
    print(
        f"LeNet-300-100, MNIST, {np.mean(dense):.1f}% unpruned, mean of {seeds} seeds: test accuracy without tuning -> "
        f"after one epoch, by the share of neurons kept in each hidden layer. lightning_coreset "
        f"{package_version()}, torch {torch.__version__}, {platform.machine()}, one thread.\n"
    )
    print("| method | " + " | ".join(f"{keep:.0%}" for keep in KEEP) + " |")
    print("| --- |" + " --- |" * len(KEEP))
    for name in METHODS:
        cells = [np.mean(results[name, keep], axis=0) for keep in KEEP]
        print(f"| {name} | " + " | ".join(f"{before:.1f} -> {after:.1f}" for before, after in cells) + " |")


if __name__ == "__main__":
    main()
