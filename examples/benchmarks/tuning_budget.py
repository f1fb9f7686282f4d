"""Accuracy of trained networks that are pruned while they are tuned, by how long they are tuned.

    pip install ".[benchmarks]"
    python examples/benchmarks/tuning_budget.py --mnist mnist.npz --cifar cifar10.npz --results results.jsonl

The networks are those of ``one_shot.py``, from the same ``--cache`` or trained on first use: a small VGG and a small
ResNet (inside its blocks) on 25000 images of CIFAR-10, and a ViT on MNIST (heads, and hidden channels of its MLPs).
They lose 50%, 75% and 90% of their multiply-accumulates, with the same fraction of the channels of every layer, to the
same widths for all methods, with one of three budgets:

- none: pruned in one step, not tuned;
- a tenth of the usual tuning: fewer than a hundred steps;
- all of it: ``--tuning-epochs``.

Tuned networks are pruned by ``CoresetPruningCallback`` in five events in the first half of the tuning. The learning
rate falls by a cosine, from 0.01 for SGD, and from 5e-4 for the ViT's AdamW. "reconstruction, batches" sees 512
training images: without tuning they are given to it, in the Trainer they are the first ones of the epoch. Torch-Pruning
prunes to the same widths at the same steps, but not the ViT, whose heads it would have to be told of.

``--results`` names a file to which every result is appended at once, and whose results are not computed again. So
several processes can share the work, each with other ``--networks`` or ``--only-seed`` and a file of its own; a last
call reads all of them (``--results a.jsonl b.jsonl``) and prints the tables. With ``--device cuda`` images and networks
are on the GPU all the time.

Prints a Markdown table for every network, with means and standard deviations over seeds.
"""

from __future__ import annotations

import argparse
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import product
from pathlib import Path

import contenders
import torch
from contenders import TORCH_PRUNING, Shapes, has_torch_pruning, selected
from images import Images, is_jpeg, mnist, prepared
from kept_results import Outcome, Results, Run
from one_shot import spread
from one_shot_methods import CALIBRATION
from reporting import markdown, setting
from scheduled import Course
from small_transformers import image_transformer
from small_transformers import train as train_transformer
from torch import Tensor, nn
from trained import RESNET, VGG, Recipe, cached
from trainings import quiet
from tuning import Build, accuracy, seeded, sgd

from lightning_coreset import Magnitude, PruningSchedule, Reconstruction, count_macs, plan_pruning, prune
from lightning_coreset.methods import Method

BATCHES = "reconstruction, batches"
GROUP_NORM = TORCH_PRUNING[2]
METHODS: Mapping[str, Method | None] = {
    "L1 norm": Magnitude(1),
    "L2 norm": Magnitude(2),
    GROUP_NORM: None,
    "reconstruction, closed form": Reconstruction(moments="closed_form"),
    "reconstruction, default": Reconstruction(),
    BATCHES: Reconstruction(moments="batches", samples=CALIBRATION),
}
SHARES = {"none": 0.0, "a tenth": 0.1, "all": 1.0}
"""The budgets, as parts of the usual tuning."""
EVENTS = 5
BATCH = 128
FIRST = CALIBRATION // BATCH - 1
"""The step of the first event: its own batch counts, so that ``CALIBRATION`` images have passed by."""


def main(argv: Sequence[str] | None = None) -> None:
    """Prune and tune what is not known yet, and print."""
    given = command_line().parse_args(argv)
    torch.set_num_threads(1)
    quiet()
    print(setting("lightning", "torch-pruning" if has_torch_pruning() else "transformers"), flush=True)
    if given.cifar and is_jpeg(given.cifar):
        print("The images of CIFAR-10 come from JPEG files: published figures are of the originals.")
    if not has_torch_pruning():
        print(contenders.ABSENT)
    results, failures = Results(given.results), 0
    for subject in subjects(given):
        failures += complete(subject, given, results)
        report(subject, given, results)
    if failures:
        raise SystemExit(f"{failures} runs failed; their errors are above.")


def command_line() -> argparse.ArgumentParser:
    """The options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mnist", type=Path, help="an .npz file, or a folder for torchvision")
    parser.add_argument("--cifar", type=Path, help="likewise")
    parser.add_argument("--cache", type=Path, default=Path(tempfile.gettempdir()) / "one_shot_networks")
    parser.add_argument("--results", type=Path, nargs="+", default=[], help="JSON lines; the first one is appended to")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"], help="where everything is")
    parser.add_argument("--networks", default="*", help="shell patterns of names, with | between them")
    parser.add_argument("--contenders", default="*", help="likewise")
    parser.add_argument("--ratios", type=float, nargs="+", default=[0.5, 0.75, 0.9], help="fractions of MACs to remove")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--only-seed", type=int, help="run no other seed; tables show all that are known")
    parser.add_argument("--images", type=int, default=25000, help="training images")
    parser.add_argument("--test-images", type=int, default=5000)
    parser.add_argument("--tuning-epochs", type=float, default=4.0, help="epochs of the usual tuning")
    parser.add_argument("--epochs", type=int, help="epochs of training, instead of the usual number")
    return parser


# ---- what is pruned


@dataclass(frozen=True)
class Subject:
    """A trained network for every seed, and how it is tuned.

    Attributes:
        name: The network, its data and its training.
        images: On the device of all work.
        trained: Gives the network of a seed, on the CPU.
        optimizer: Makes the optimizer of tuning.
        augment: Whether training images are shifted and mirrored.
        has_heads: Whether attention heads are pruned.
    """

    name: str
    images: Images
    trained: Callable[[int], nn.Module]
    optimizer: Build
    augment: bool
    has_heads: bool = False

    def network(self, seed: int) -> nn.Module:
        """A network of its own for every run."""
        return self.trained(seed).to(self.images.example.device)

    def methods(self, patterns: str) -> list[str]:
        """The names of the methods that can prune it, of those that are wanted."""
        absent = self.has_heads or not has_torch_pruning()
        return [name for name in METHODS if selected(name, patterns) and not (absent and name == GROUP_NORM)]


class Logits(nn.Module):
    """A model of transformers as a function from images to logits."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        return self.network(pixel_values=images).logits


def subjects(given: argparse.Namespace) -> Iterator[Subject]:
    """The chosen networks whose data are given."""
    recipes = [recipe.with_epochs(given.epochs) for recipe in (VGG, RESNET) if selected(recipe.name, given.networks)]
    if given.cifar and recipes:
        images = prepared(given.cifar, given.images, given.test_images, pixels=32, device=given.device)
        yield from (convolutional(recipe, images, given) for recipe in recipes)
    if given.mnist and selected("ViT", given.networks):
        counts = (given.images, given.test_images)
        parts = zip(mnist(given.mnist), counts, strict=True)
        yield transformer(Images(*((x[:n].to(given.device), y[:n].to(given.device)) for (x, y), n in parts)), given)


def convolutional(recipe: Recipe, images: Images, given: argparse.Namespace) -> Subject:
    """A network of ``trained.py`` on CIFAR-10."""
    inside = ", inside its blocks" if recipe.name == RESNET.name else ""
    name = f"{recipe.name}{inside}, CIFAR-10 ({counts_of(images)}, {recipe.epochs} epochs)"
    trained = partial(recipe.trained, images, cache=given.cache, device=given.device)
    return Subject(name, images, trained, sgd(0.01), recipe.augment)


def transformer(images: Images, given: argparse.Namespace) -> Subject:
    """The ViT of ``small_transformers.py`` on MNIST."""
    epochs = given.epochs or 8
    task = image_transformer("MNIST", images, epochs, augment=False)

    def trained(seed: int) -> nn.Module:
        fit = partial(train_transformer, task, seed=seed, device=given.device)
        of_seed = f"{task.name}, {task.steps} steps, seed {seed}"
        return Logits(cached(given.cache, of_seed, partial(seeded, task.build, seed), fit))

    name = f"ViT, MNIST ({counts_of(images)}, {epochs} epochs)"
    return Subject(name, images, trained, partial(torch.optim.AdamW, lr=5e-4), augment=False, has_heads=True)


def counts_of(images: Images) -> str:
    return f"{len(images.train[1])} training and {len(images.test[1])} test images"


# ---- how far


@dataclass(frozen=True)
class Goal:
    """The widths that every method reaches.

    Attributes:
        gone: The fraction of its channels that each layer loses, by name.
        shapes: The shapes of all tensors afterwards.
    """

    gone: Mapping[str, float]
    shapes: Shapes

    @classmethod
    def of(cls, network: nn.Module, example: Tensor, ratio: float) -> Goal | None:
        """As a ratio of the multiply-accumulates gives them; ``None``, and a line that says why, if it cannot."""
        try:
            plan = plan_pruning(network, example, ratio, unit="macs", method="magnitude", self_check=False)
        except ValueError as error:
            print(f"\nWithout {ratio:.0%}: {error}", flush=True)
            return None
        losing = [one for one in plan.groups if one.channels_after < one.channels_before]
        gone = {one.name: 1 - one.channels_after / one.channels_before for one in losing}
        return cls(gone, contenders.shapes_after(plan, contenders.shapes(network)))


# ---- runs


def complete(subject: Subject, given: argparse.Namespace, results: Results) -> int:
    """Make all runs that are not known; return how many failed, which do not keep the others from being made."""
    failures = 0
    goals = {ratio: Goal.of(subject.network(0), subject.images.example, ratio) for ratio in given.ratios}
    seeds = range(given.seeds) if given.only_seed is None else [given.only_seed]
    for seed in seeds:
        whole = unpruned(subject, seed)
        if whole not in results:
            results.add(whole, outcome(subject.network(seed), subject.images, 0.0))
        for ratio, share, name in product(given.ratios, SHARES.values(), subject.methods(given.contenders)):
            run, goal = Run(subject.name, name, ratio, share * given.tuning_epochs, seed), goals[ratio]
            if goal is None or run in results:
                continue
            try:
                results.add(run, made(subject, goal, run))
            except Exception:  # whatever it is, the other runs are worth their time
                failures += 1
                print(f"\n{run} failed:\n{traceback.format_exc()}", flush=True)
    return failures


def unpruned(subject: Subject, seed: int) -> Run:
    return Run(subject.name, "unpruned", 0.0, 0.0, seed)


def made(subject: Subject, goal: Goal, run: Run) -> Outcome:
    """Prune one network, and tune it meanwhile if there is a budget."""
    network, images = subject.network(run.seed), subject.images
    start = time.perf_counter()
    if run.budget:
        tune(subject, goal, run, network)
    else:
        prune_at_once(goal, run, network, images)
    contenders.check_shapes(run.method, network, goal.shapes)
    return outcome(network, images, time.perf_counter() - start)


def prune_at_once(goal: Goal, run: Run, network: nn.Module, images: Images) -> None:
    """Prune in one step."""
    method = METHODS[run.method]
    if method is None:
        contenders.prune_to_shapes(run.method, network, images.example, goal.shapes)
        return
    data = images.train[0][:CALIBRATION].split(BATCH) if run.method == BATCHES else None
    prune(network, images.example, goal.gone, method=method, data=data, seed=run.seed, self_check=False, verbose=False)


def tune(subject: Subject, goal: Goal, run: Run, network: nn.Module) -> None:
    """Prune in the first half of the tuning."""
    images, method = subject.images, METHODS[run.method]
    steps = max(round(run.budget * -(-len(images.train[1]) // BATCH)), 2 * EVENTS)
    course = Course(
        epochs=-1,
        ratio={f"network.{name}": gone for name, gone in goal.gone.items()},
        steps=steps,
        schedule=early(steps),
        optimizer=subject.optimizer,
        warm_up=0.0,
        augment=subject.augment,
    )
    if method is None:
        callback = course.torch_pruning(run.method, course.events(network, images))
    else:
        callback = course.callback(method, run.seed)
    course.train(network, images, run.seed, [callback])


def early(steps: int) -> PruningSchedule:
    """Five events, or fewer in very few steps, of which the last is in the middle."""
    last = max(steps // 2, FIRST + 1)
    every = max(-(-(last - FIRST) // (EVENTS - 1)), 1)
    return PruningSchedule("cubic", start=FIRST, end=last, every=every, interval="step")


def outcome(network: nn.Module, images: Images, seconds: float) -> Outcome:
    """The accuracy and the size of a network."""
    parameters = sum(parameter.numel() for parameter in network.parameters())
    return Outcome(accuracy(network, images.test), parameters, count_macs(network, images.example), seconds)


# ---- tables


def report(subject: Subject, given: argparse.Namespace, results: Results) -> None:
    """Print the table of one network: a row for every method, a column for every ratio and budget."""
    known = {run.seed: one.accuracy for run, one in results.items() if run == unpruned(subject, run.seed)}
    print(
        f"\n{subject.name}, {spread(known.values())}% unpruned; test accuracy, by the fraction of multiply-accumulates "
        f"removed and the epochs of tuning; {len(known)} seed{'s' if len(known) > 1 else ''}.\n"
    )
    columns = [(ratio, share * given.tuning_epochs) for ratio, share in product(given.ratios, SHARES.values())]
    rows = [
        (name, *(cell(subject, name, ratio, budget, results) for ratio, budget in columns))
        for name in subject.methods(given.contenders)
    ]
    print(markdown(("method", *(f"-{ratio:.0%}, {budget:g}" for ratio, budget in columns)), rows), flush=True)


def cell(subject: Subject, method: str, ratio: float, budget: float, results: Results) -> str:
    """The mean and the standard deviation over the seeds that are known; a dash if there are none."""
    found = [one.accuracy for run, one in results.items() if run == Run(subject.name, method, ratio, budget, run.seed)]
    return spread(found) if found else "-"


if __name__ == "__main__":
    main()
