"""Overhead of the callback in epochs without an event: time of an epoch with it / without it.

Four trainings of the same network alternate in one process, on the same random batches:

- *without* the callback;
- *empty*: with a callback without hooks, which measures the time that Lightning needs for any callback;
- *to come*: with our callback, whose only event is in the last epoch, which is not timed;
- *over*: with our callback, whose only event is in the first epoch, which is not timed either. This event asks for so
  little that no channel is removed: the networks stay the same, so their times can be compared.

All other options are the defaults; so accuracy is measured during validation. The second table shows the time of each
hook of the callback (in a separate training, in the state *to come*). It does not include the forward hooks with which
accuracy is measured in validation; these run inside the forward pass of the network.

    python examples/benchmarks/overhead.py

Some minutes on two cores. Prints two Markdown tables: ratios of medians over all epochs, and microseconds.
"""

from __future__ import annotations

import argparse
import sys
import time
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

import lightning as L
import torch
from measuring import interleaved
from reporting import markdown, setting
from torch import nn
from trainings import Classifier, Clock, batches, trainer

from lightning_coreset import CoresetPruningCallback

sys.path.insert(0, str(Path(__file__).parents[1]))
from networks import vgg

STATES = ("to come", "over")
CONTENDERS = ("empty", *STATES)
HOOKS = (
    "on_train_epoch_start",
    "on_train_batch_start",
    "on_train_batch_end",
    "on_train_epoch_end",
    "on_validation_start",
    "on_validation_batch_start",
    "on_validation_batch_end",
    "on_validation_end",
)


@dataclass(frozen=True)
class Case:
    """A network and the length of its epochs.

    Attributes:
        build: Builds the network.
        shape: The shape of a batch.
        steps: Training steps per epoch.
        validation: Validation steps per epoch.
    """

    build: Callable[[], nn.Module]
    shape: tuple[int, ...]
    steps: int
    validation: int


def mlp(*widths: int) -> nn.Sequential:
    """Linear layers with ReLUs between them."""
    layers: list[nn.Module] = []
    for before, after in pairwise(widths):
        layers += [nn.Linear(before, after), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


CASES = {
    "tiny MLP 64-32-10, batches of 32": Case(partial(mlp, 64, 32, 10), (32, 64), 200, 50),
    "MLP 784-512-512-10, batches of 64": Case(partial(mlp, 784, 512, 512, 10), (64, 784), 100, 25),
    "VGG-11 of a quarter's width, 32 x 32, batches of 32": Case(
        partial(vgg, depth=11, width=0.25), (32, 3, 32, 32), 30, 8
    ),
}


def callback(state: str, epochs: int) -> CoresetPruningCallback:
    """Our callback with one event, in the last or in the first of ``epochs``."""
    if state == "to come":
        return CoresetPruningCallback(0.5, schedule="one_shot", start=epochs - 1, verbose=False)
    return CoresetPruningCallback(1e-9, schedule="one_shot", start=0, verbose=False)


def callbacks(contender: str, epochs: int) -> list[L.Callback]:
    """The callbacks of a contender."""
    if contender == "without":
        return []
    return [L.Callback() if contender == "empty" else callback(contender, epochs)]


def train(case: Case, epochs: int, callbacks: Sequence[L.Callback]) -> Clock:
    """Train a new network, always from the same initial weights."""
    torch.manual_seed(0)
    clock = Clock()
    training, validation = batches(case.steps, case.shape), batches(case.validation, case.shape)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*removed no channel")
        trainer(epochs, clock.around(callbacks)).fit(Classifier(case.build()), training, validation)
    return clock


@dataclass
class Times:
    """Seconds of epochs and validations, of all trainings of one contender."""

    epochs: list[float] = field(default_factory=list)
    validations: list[float] = field(default_factory=list)

    def training(self, case: Case, epochs: int, contender: str) -> float:
        """Train once more, record the epochs without an event, and return the seconds of an epoch."""
        clock = train(case, epochs, callbacks(contender, epochs))
        self.epochs += clock.epochs[1:]
        self.validations += clock.validations[1:-1]
        return median(clock.epochs[1:])


def compare(case: Case, epochs: int, repeats: int) -> dict[str, Times]:
    """Epochs with and without a callback, in alternating trainings."""
    times = {name: Times() for name in ("without", *CONTENDERS)}
    interleaved({name: partial(one.training, case, epochs, name) for name, one in times.items()}, repeats)
    return times


def ratios(name: str, case: Case, times: dict[str, Times]) -> list[str]:
    """A row: the time of a step, and the ratios with / without a callback for an epoch and a validation."""
    epoch, validation = (median(part) for part in (times["without"].epochs, times["without"].validations))
    cells = [name, f"{1000 * (epoch - validation) / case.steps:.2f}", f"{len(times['without'].epochs)}"]
    for contender in CONTENDERS:
        mine = times[contender]
        cells.append(f"{median(mine.epochs) / epoch:.3f}")
        cells.append(f"{median(mine.validations) / validation:.3f}")
        cells.append(f"{1e6 * (median(mine.epochs) - epoch) / case.steps:+.0f}")
    return cells


class HookTimes:
    """Seconds of every call of a callback's hooks in epochs without an event.

    Args:
        watched: The callback.
        last: Calls in the first epoch, and from this epoch on, are not recorded.
    """

    def __init__(self, watched: CoresetPruningCallback, last: int) -> None:
        self.calls: dict[str, list[float]] = defaultdict(list)
        for name in HOOKS:
            setattr(watched, name, partial(self._timed, name, getattr(watched, name), last))

    def _timed(self, name: str, hook: Callable[..., None], last: int, trainer: L.Trainer, *arguments: Any) -> None:
        start = time.perf_counter()
        hook(trainer, *arguments)
        if 0 < trainer.current_epoch < last:
            self.calls[name].append(time.perf_counter() - start)


def hook_rows(name: str, case: Case, epochs: int) -> Iterable[list[str]]:
    """The time of each hook."""
    watched = callback("to come", epochs)
    hooks = HookTimes(watched, epochs - 1)
    clock = train(case, epochs, [watched])
    for hook in HOOKS:
        calls = hooks.calls[hook]
        share = sum(calls) / sum(clock.epochs[1:])
        yield [name, hook, f"{len(calls) / (epochs - 2):.0f}", f"{1e6 * median(calls):.1f}", f"{share:.2%}"]


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=6, help="number of trainings of every contender")
    parser.add_argument("--epochs", type=int, default=7, help="epochs of every training; all but two are timed")
    parser.add_argument("--cases", type=int, nargs="+", default=list(range(len(CASES))), help="networks by number")
    given = parser.parse_args(arguments)
    cases = {name: case for number, (name, case) in enumerate(CASES.items()) if number in given.cases}
    print(setting("lightning"))
    print(f"Time of an epoch with a callback / without it: medians of {given.repeats} trainings each, alternating.\n")
    head = ["network", "ms of a step", "epochs timed"]
    for contender in CONTENDERS:
        head += [f"{contender}: epoch", f"{contender}: validation", f"{contender}: microseconds more for a step"]
    compared = [ratios(name, case, compare(case, given.epochs, given.repeats)) for name, case in cases.items()]
    print(markdown(head, compared))
    print("\nThe hooks of the callback before its event.\n")
    rows = [row for name, case in cases.items() for row in hook_rows(name, case, given.epochs)]
    print(markdown(["network", "hook", "calls an epoch", "microseconds of a call", "of the epoch"], rows))


if __name__ == "__main__":
    main()
