"""Accuracy at equal measured latency: networks pruned to a fraction of the time, and to a fraction of the MACs.

    pip install ".[benchmarks]"
    OMP_NUM_THREADS=1 python examples/benchmarks/latency.py --data cifar10.npz

CIFAR-10 is an ``.npz`` file, or a folder that torchvision downloads into; ``examples/data.py`` describes the file. A
ResNet-20 of twice the usual width is trained on images averaged down to 16 x 16, and copies of it are pruned inside the
blocks

- with ``unit="latency"``: for each target the fraction of the time that is to go, by a table measured on this machine;
- with ``unit="macs"``: to the smallest ratio whose network takes no longer, found by bisection. Both networks are
  measured in turns, in one process, and ``unit="macs"`` may be 1% slower.

Both are fine-tuned alike. Test accuracy is measured without fine-tuning and after it, as mean and standard deviation
over the seeds. About eight minutes a seed on one core. Prints a Markdown table for every batch size.
"""

from __future__ import annotations

import argparse
import copy
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from images import Batches, Images
from networks import resnet
from reporting import markdown
from studies import Study, begin
from torch import Tensor, nn
from tuning import accuracy, sgd, train

from lightning_coreset import LatencyTable, count_macs, measure_latency, prune
from lightning_coreset.latency import compared
from lightning_coreset.structure import Example

SLACK = 1.01
STAGES = ("untuned", "tuned")
STUDY = Study("ResNet-20, twice as wide", partial(resnet, depth=20, width=2.0), 8000, 5000, 16, 8)


@dataclass
class Result:
    """What came of one way to prune, in one seed."""

    time: float
    params: int
    macs: int
    untuned: float
    tuned: float


def main(argv: Sequence[str] | None = None) -> None:
    """Train, prune, search, tune and print."""
    arguments = command_line().parse_args(argv)
    begin(arguments.data)
    images = STUDY.images(arguments.data)
    results: dict[tuple[int, float, str, str], list[Result]] = defaultdict(list)
    dense = []
    for seed in range(arguments.seeds):
        model = STUDY.network(images, seed)
        train(model, batches(images, seed), arguments.epochs, sgd(0.1), warm_up=0.05)
        dense.append(accuracy(model, images.test))
        for batch in arguments.batches:
            x = images.test[0][:batch]
            table = measure_latency(model, x, verbose=False)
            for target in arguments.targets:
                for allocation in arguments.allocations:
                    pair = equally_fast(model, x, table, target, allocation)
                    for unit, network in pair.items():
                        found = result(model, network, x, images, seed, arguments.tuning)
                        results[batch, target, allocation, unit].append(found)
                        print(f"seed {seed} batch {batch} {target:.0%} {allocation} {unit}: {found}", flush=True)
    report(results, dense, arguments.batches, arguments.tuning)


def command_line() -> argparse.ArgumentParser:
    """The options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="CIFAR-10: an .npz file or a folder")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=float, default=STUDY.epochs, help="epochs of training")
    parser.add_argument("--tuning", type=float, default=1.0, help="epochs of fine-tuning")
    parser.add_argument("--batches", type=int, nargs="+", default=[16], help="batch sizes that are timed")
    parser.add_argument("--targets", type=float, nargs="+", default=[0.15, 0.25, 0.45])
    parser.add_argument("--allocations", nargs="+", default=["uniform", "error"])
    return parser


def batches(images: Images, seed: int) -> Batches:
    """Batches of training images, shifted and mirrored."""
    return Batches(images.train, torch.Generator().manual_seed(seed), augment=True)


def equally_fast(
    model: nn.Sequential, x: Tensor, table: LatencyTable, target: float, allocation: str
) -> dict[str, nn.Module]:
    """The network pruned to a fraction of its latency, and the least pruned one by MACs that takes no longer."""
    by_latency = pruned(model, x, target, allocation, unit="latency", latency=table)
    low, high, found = 0.0, 0.9, None
    for _ in range(8):
        ratio = (low + high) / 2
        by_macs = pruned(model, x, ratio, allocation, unit="macs")
        theirs, ours = compared(by_macs, by_latency, Example.of(x))
        if theirs <= SLACK * ours:
            high, found = ratio, by_macs
        else:
            low = ratio
    assert found is not None, "90% of the MACs take no less time than the target"
    return {"latency": by_latency, "macs": found}


def pruned(model: nn.Sequential, x: Tensor, ratio: float, allocation: str, **options: object) -> nn.Module:
    """A pruned copy."""
    network = copy.deepcopy(model).eval()
    prune(network, x, ratio, allocation=allocation, self_check=False, verbose=False, **options)  # type: ignore[arg-type]
    return network


def result(model: nn.Sequential, network: nn.Module, x: Tensor, images: Images, seed: int, tuning: float) -> Result:
    """Measure and tune a pruned network."""
    whole, time = compared(model, network, Example.of(x))
    untuned = accuracy(network, images.test)
    train(network, batches(images, seed), tuning, sgd(0.01))
    params = sum(parameter.numel() for parameter in network.parameters())
    return Result(time / whole, params, count_macs(network, x), untuned, accuracy(network, images.test))


def report(
    results: dict[tuple[int, float, str, str], list[Result]],
    dense: Sequence[float],
    sizes: Sequence[int],
    tuning: float,
) -> None:
    """Print a table for every batch size."""
    head = ("target", "allocation", "unit", "measured time", "parameters", "MACs", "no tuning", f"{tuning:g} epoch")
    for batch in sizes:
        print(f"\n{STUDY.name}, batches of {batch}, {cell(dense)}% unpruned, {len(dense)} seeds.\n")
        rows = [
            (
                *(f"-{target:.0%}", allocation, unit),
                f"{100 * np.mean([one.time for one in found]):.1f}%",
                f"{np.mean([one.params for one in found]):,.0f}",
                f"{np.mean([one.macs for one in found]):,.0f}",
                cell([one.untuned for one in found]),
                cell([one.tuned for one in found]),
            )
            for (size, target, allocation, unit), found in results.items()
            if size == batch
        ]
        print(markdown(head, rows), flush=True)
        print("\nHow far latency is ahead of macs in accuracy, the difference within each seed:\n")
        ahead = [
            (f"-{target:.0%}", allocation, *(cell(gains(results, size, target, allocation, which)) for which in STAGES))
            for size, target, allocation, unit in results
            if size == batch and unit == "macs"
        ]
        print(markdown(("target", "allocation", "no tuning", f"{tuning:g} epoch"), ahead), flush=True)


def gains(
    results: dict[tuple[int, float, str, str], list[Result]], batch: int, target: float, allocation: str, stage: str
) -> list[float]:
    """By how much accuracy is higher with ``unit="latency"``, seed by seed."""
    pair = (results[batch, target, allocation, unit] for unit in ("latency", "macs"))
    return [getattr(one, stage) - getattr(other, stage) for one, other in zip(*pair, strict=True)]


def cell(values: Sequence[float]) -> str:
    """Mean and standard deviation over seeds, as text."""
    spread = f" ± {np.std(values, ddof=1):.1f}" if len(values) > 1 else ""
    return f"{np.mean(values):.1f}{spread}"


if __name__ == "__main__":
    main()
