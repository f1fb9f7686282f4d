"""Gain from pruning: epoch time, latency, memory and file size, compared with masks and with a network built small.

A network from which 50% and 90% of the multiply-accumulates were removed is compared with

- the unpruned network (*whole*);
- the same small network built from scratch: new modules with the pruned widths and new weights. Pruning should not
  leave anything that makes a network slower than this;
- Lightning's ``ModelPruning`` with the same ``amount``: masks on single weights (``l1_unstructured``), and on whole
  filters of all layers except the last (``ln_structured``). Masks are added at the end of the first epoch. Epochs are
  timed with masks, everything else after ``ModelPruning`` has made them permanent at the end of training.

Weights and data are random: accuracy is measured in other benchmarks. Trainings (with Lightning and AdamW) and latency
measurements alternate in one process. Times are medians relative to the unpruned network. The peak memory is the
maximum allocated by torch: the network, its optimizer and everything that two training steps need.

    pip install ".[benchmarks]"
    python examples/benchmarks/what_it_buys.py

Some minutes on two cores. Prints two Markdown tables.
"""

from __future__ import annotations

import argparse
import copy
import sys
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from statistics import median

import lightning as L
import torch
from footprint import onnx_bytes, training_peak
from lightning.pytorch.callbacks import ModelPruning
from measuring import interleaved, seconds
from overhead import mlp
from reporting import markdown, setting
from torch import nn
from trainings import Classifier, Clock, batches, trainer

from lightning_coreset import prune

sys.path.insert(0, str(Path(__file__).parents[1]))
from networks import vgg

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
SHARES = (0.5, 0.9)
LATENCIES = (1, 64)
WHOLE, PRUNED, SCRATCH = "whole", "pruned", "built from scratch"
MASKS = {"masks on weights": "l1_unstructured", "masks on filters": "ln_structured"}


@dataclass(frozen=True)
class Case:
    """A network, and the shape of one sample."""

    build: Callable[[], nn.Module]
    sample: tuple[int, ...]


CASES = {
    "MLP 784-1024-1024-1024-10": Case(partial(mlp, 784, 1024, 1024, 1024, 10), (784,)),
    "VGG-11 of a quarter's width, 32 x 32": Case(partial(vgg, depth=11, width=0.25), (3, 32, 32)),
}


def rebuilt(model: nn.Module) -> nn.Module:
    """The same network built from scratch: all layers with weights are replaced by new ones of the same sizes."""
    fresh = copy.deepcopy(model)
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear):
            made: nn.Module = nn.Linear(module.in_features, module.out_features, bias=module.bias is not None)
        elif isinstance(module, nn.Conv2d):
            made = nn.Conv2d(
                module.in_channels,
                module.out_channels,
                module.kernel_size,
                module.stride,
                module.padding,
                bias=module.bias is not None,
            )
        elif isinstance(module, nn.BatchNorm2d):
            made = nn.BatchNorm2d(module.num_features)
        else:
            assert next(module.parameters(recurse=False), None) is None, f"{name}: do not know how to build it"
            continue
        parent, _, own = name.rpartition(".")
        setattr(fresh.get_submodule(parent), own, made)
    return fresh


def masks(model: nn.Module, kind: str, share: float) -> ModelPruning:
    """Lightning's callback, which only prunes at the end of the first epoch."""
    layers = [module for module in model.modules() if isinstance(module, (nn.Linear, nn.Conv2d))]
    structured = kind == "ln_structured"
    return ModelPruning(
        kind,
        parameters_to_prune=[(layer, "weight") for layer in (layers[:-1] if structured else layers)],
        use_global_unstructured=not structured,
        amount=share,
        apply_pruning=lambda epoch: epoch == 0,
        use_lottery_ticket_hypothesis=False,
        **({"pruning_dim": 0, "pruning_norm": 2} if structured else {}),
    )


@dataclass
class Contender:
    """One way to make a network smaller, and its measurements.

    Attributes:
        start: The network before training; every training uses a copy.
        mask: The kind of masks, if any.
        share: The fraction that is masked.
        epochs: Seconds of epochs.
        latencies: Seconds of an inference, by batch size.
        trained: The network after the last training.
    """

    start: nn.Module
    mask: str | None = None
    share: float = 0.0
    epochs: list[float] = field(default_factory=list)
    latencies: dict[int, list[float]] = field(default_factory=lambda: defaultdict(list))
    trained: nn.Module = field(default_factory=nn.Identity)

    def train(self, sample: tuple[int, ...], steps: int, epochs: int) -> float:
        """Train a copy, and record its epochs after the first, which ends with masking; return their median."""
        network, clock = copy.deepcopy(self.start), Clock()
        callbacks: list[L.Callback] = [] if self.mask is None else [masks(network, self.mask, self.share)]
        trainer(epochs, clock.around(callbacks)).fit(Classifier(network), batches(steps, (64, *sample)))
        self.epochs += clock.epochs[1:]
        self.trained = network.eval().to(DEVICE)  # Lightning has moved it back to the CPU
        return median(clock.epochs[1:])

    @torch.no_grad()
    def infer(self, size: int, sample: tuple[int, ...], calls: int) -> float:
        """Record the median of some calls."""
        call = partial(self.trained, torch.randn(size, *sample, device=DEVICE))
        call()
        self.latencies[size].append(median(seconds(call) for _ in range(calls)))
        return self.latencies[size][-1]


def contenders(case: Case, share: float) -> dict[str, Contender]:
    """All contenders, with random weights."""
    torch.manual_seed(0)
    whole = case.build()
    pruned = copy.deepcopy(whole)
    prune(pruned, torch.randn(2, *case.sample), share, unit="macs", self_check=False)
    made = {WHOLE: Contender(whole), PRUNED: Contender(pruned), SCRATCH: Contender(rebuilt(pruned))}
    return made | {name: Contender(whole, kind, share) for name, kind in MASKS.items()}


def measure(case: Case, share: float, repeats: int, steps: int, calls: int) -> dict[str, Contender]:
    """Alternating trainings, then alternating inferences."""
    found = contenders(case, share)
    with warnings.catch_warnings():
        warnings.filterwarnings(
            "ignore", message=".*do not have a.*val_dataloader|.*no `val_dataloader`|.*validation_step"
        )
        interleaved({name: partial(one.train, case.sample, steps, 5) for name, one in found.items()}, repeats)
    for size in LATENCIES:
        interleaved({name: partial(one.infer, size, case.sample, calls) for name, one in found.items()}, 3 * repeats)
    return found


def rows(name: str, case: Case, share: float, found: dict[str, Contender]) -> Iterable[list[str]]:
    """A row of sizes and times for each contender; times relative to the unpruned network."""
    whole = found[WHOLE]
    for contender, one in found.items():
        parameters = list(one.trained.parameters())
        stored, left = sum(p.numel() for p in parameters), sum(int(p.count_nonzero()) for p in parameters)
        yield [
            name,
            f"{share:.0%}",
            contender,
            f"{stored:,}",
            f"{left:,}",
            f"{median(one.epochs) / median(whole.epochs):.2f}",
            *(f"{median(one.latencies[size]) / median(whole.latencies[size]):.2f}" for size in LATENCIES),
            f"{training_peak(one.trained, torch.randn(64, *case.sample)) / 2**20:.1f}",
            f"{onnx_bytes(one.trained, torch.randn(2, *case.sample)) / 2**20:.2f}",
        ]


def beside_scratch(name: str, share: float, found: dict[str, Contender]) -> list[str]:
    """Times of the pruned network relative to the one built small."""
    one, other = found[PRUNED], found[SCRATCH]
    ratios = [median(one.epochs) / median(other.epochs)]
    ratios += [median(one.latencies[size]) / median(other.latencies[size]) for size in LATENCIES]
    return [name, f"{share:.0%}", *(f"{ratio:.3f}" for ratio in ratios)]


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5, help="number of trainings of every contender")
    parser.add_argument("--steps", type=int, default=10, help="training steps per epoch, of 64 samples")
    parser.add_argument("--calls", type=int, default=20, help="number of inferences per median")
    parser.add_argument("--shares", type=float, nargs="+", default=list(SHARES), help="fractions of the MACs to remove")
    parser.add_argument("--cases", type=int, nargs="+", default=list(range(len(CASES))), help="networks by number")
    given = parser.parse_args(arguments)
    table, beside = [], []
    for number, (name, case) in enumerate(CASES.items()):
        for share in given.shares if number in given.cases else ():
            found = measure(case, share, given.repeats, given.steps, given.calls)
            table += rows(name, case, share, found)
            beside.append(beside_scratch(name, share, found))
    print(setting("lightning", "onnx"))
    print(f"Times are relative to the unpruned network: medians of {given.repeats} trainings and inferences.\n")
    batch = [f"latency, batch {size}" for size in LATENCIES]
    head = ["network", "MACs gone", "contender", "parameters", "not zero", "epoch", *batch]
    print(markdown([*head, "peak of training, MiB", "ONNX, MiB"], table))
    print("\nTime of the pruned network / time of a network built with the same widths.\n")
    print(markdown(["network", "MACs gone", "epoch", *batch], beside))


if __name__ == "__main__":
    main()
