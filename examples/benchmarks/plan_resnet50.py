"""ResNet-50 pruned in one call, against Torch-Pruning's MagnitudePruner doing the same.

Structure, planning and surgery together: the wall time of the first call in a fresh process, on a fresh network of
random weights and one image of 224 x 224, on the CPU. Both sides remove the same share of the same channels (checked:
the networks that come out have the same widths), once of the channels inside the blocks and once of all of them. With
``method="sensitivity"`` ours also reweights what reads the channels; Torch-Pruning ranks filters by their L2 norm.
Torch-Pruning has no self-check, so the comparison is with ``check=False``; what the check costs stands beside it.

    pip install torch-pruning==1.6.1
    python examples/benchmarks/plan_resnet50.py

Some minutes, most of them imports. Prints a Markdown table; set OMP_NUM_THREADS to fix the number of threads.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import subprocess
import sys
import time
from collections import defaultdict
from importlib.metadata import PackageNotFoundError, version

import torch
from torch import Tensor, nn

RUNS = {"lightning_coreset": "ours", "with the self-check": "checked", "Torch-Pruning": "theirs"}
# Other load on the machine only ever adds time: the fastest run has least of it.
PICKS = (statistics.median, min)
WORK = {"inside the blocks": False, "all channels": True}


class Bottleneck(nn.Module):
    """1 x 1, 3 x 3, 1 x 1, and a shortcut that projects where shapes change."""

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(inputs, width, 1, bias=False), nn.BatchNorm2d(width)
        self.conv2, self.bn2 = nn.Conv2d(width, width, 3, stride, 1, bias=False), nn.BatchNorm2d(width)
        self.conv3, self.bn3 = nn.Conv2d(width, 4 * width, 1, bias=False), nn.BatchNorm2d(4 * width)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = None
        if stride > 1 or inputs != 4 * width:
            projection = nn.Conv2d(inputs, 4 * width, 1, stride, bias=False)
            self.downsample = nn.Sequential(projection, nn.BatchNorm2d(4 * width))

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.relu(self.bn2(self.conv2(x)))
        return self.relu(self.bn3(self.conv3(x)) + shortcut)


class ResNet50(nn.Module):
    """He et al., arXiv 1512.03385, with the stride in the 3 x 3 convolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 64, 7, 2, 3, bias=False), nn.BatchNorm2d(64)
        self.relu, self.maxpool = nn.ReLU(inplace=True), nn.MaxPool2d(3, 2, 1)
        blocks, inputs = [], 64
        for count, width, stride in ((3, 64, 1), (4, 128, 2), (6, 256, 2), (3, 512, 2)):
            for number in range(count):
                blocks.append(Bottleneck(inputs, width, stride if number == 0 else 1))
                inputs = 4 * width
        self.blocks = nn.Sequential(*blocks)
        self.avgpool, self.fc = nn.AdaptiveAvgPool2d(1), nn.Linear(inputs, 1000)

    def forward(self, x: Tensor) -> Tensor:
        x = self.blocks(self.maxpool(self.relu(self.bn1(self.conv1(x)))))
        return self.fc(self.avgpool(x).flatten(1))


def ours(model: ResNet50, x: Tensor, ratio: float, residual: bool, check: bool) -> float:
    """Seconds of one call of ``prune``."""
    from lightning_coreset import prune

    start = time.perf_counter()
    prune(model, x, ratio, unit="channels", method="sensitivity", include_residual=residual, check=check)
    return time.perf_counter() - start


def theirs(model: ResNet50, x: Tensor, ratio: float, residual: bool) -> float:
    """Seconds from the dependency graph to the pruned network."""
    import torch_pruning as tp

    # What ours leaves alone: the output, and unless asked for the channels that shortcuts add up.
    added = [block.conv3 for block in model.blocks]
    added += [block.downsample[0] for block in model.blocks if block.downsample]
    ignored = [model.fc] if residual else [model.fc, *added]
    start = time.perf_counter()
    importance = tp.importance.MagnitudeImportance(p=2)
    tp.pruner.MagnitudePruner(model, x, importance, pruning_ratio=ratio, ignored_layers=ignored).step()
    return time.perf_counter() - start


def child(run: str, ratio: float, residual: bool) -> None:
    """One call in this process; prints its seconds and the widths that came out."""
    torch.manual_seed(0)
    model, x = ResNet50(), torch.randn(1, 3, 224, 224)
    taken = theirs(model, x, ratio, residual) if run == "theirs" else ours(model, x, ratio, residual, run == "checked")
    with torch.no_grad():
        assert model.eval()(x).shape == (1, 1000)
    widths = [tuple(parameter.shape) for parameter in model.parameters()]
    print(json.dumps({"seconds": taken, "widths": widths, "threads": torch.get_num_threads()}))


def measure(run: str, ratio: float, residual: bool) -> dict:
    """One call in a fresh process."""
    command = [sys.executable, __file__, "--child", run, "--ratio", str(ratio), *(["--residual"] if residual else [])]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def package_version(name: str) -> str:
    """Of the installed package; a source tree on the path has none."""
    try:
        return version(name)
    except PackageNotFoundError:
        return "from source"


def main() -> None:
    """Measure in turn, so that whatever else the machine does meets all alike; print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ratio", type=float, default=0.5)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--residual", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--child", choices=RUNS.values(), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        child(arguments.child, arguments.ratio, arguments.residual)
        return
    seconds: dict[tuple[str, str], list[float]] = defaultdict(list)
    threads = 0
    for _ in range(arguments.repeats):
        for work, residual in WORK.items():
            found = {name: measure(run, arguments.ratio, residual) for name, run in RUNS.items()}
            assert len({str(one["widths"]) for one in found.values()}) == 1, "the networks that came out differ"
            for name, one in found.items():
                seconds[work, name].append(one["seconds"])
                threads = one["threads"]
    report(arguments.ratio, arguments.repeats, threads, seconds)


def report(ratio: float, repeats: int, threads: int, seconds: dict[tuple[str, str], list[float]]) -> None:
    """Medians and fastest runs as a Markdown table."""
    print(
        f"ResNet-50, {ratio:.0%} of the channels: seconds, median / fastest of {repeats} fresh processes. "
        f"lightning_coreset {package_version('lightning-coreset')}, torch-pruning {package_version('torch-pruning')}, "
        f"torch {torch.__version__}, Python {platform.python_version()}, {platform.machine()}, {threads} threads.\n"
    )
    print("| pruned | " + " | ".join(RUNS) + " | lightning_coreset over Torch-Pruning |")
    print("| --- |" + " --- |" * (len(RUNS) + 1))
    for work in WORK:
        cells = [" / ".join(f"{pick(seconds[work, name]):.2f}" for pick in PICKS) for name in RUNS]
        mine, other = seconds[work, "lightning_coreset"], seconds[work, "Torch-Pruning"]
        cells.append(" / ".join(f"{pick(mine) / pick(other):.2f}" for pick in PICKS))
        print(f"| {work} | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
