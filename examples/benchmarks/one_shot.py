"""Networks pruned in one step without tuning: this package beside the methods that others published for it.

    pip install ".[benchmarks]"
    python examples/benchmarks/one_shot.py --mnist mnist.npz --cifar cifar10.npz

MNIST and CIFAR-10 are ``.npz`` files, or folders that torchvision downloads into; what is not given is left out. Some
networks are trained, or read from ``--cache``, where every trained network is kept: training is most of the time, an
hour or two on one CPU core, some minutes with ``--device cuda``. Every method prunes copies of them to the same widths.

- LeNet-300-100 on MNIST; a small VGG and a small ResNet on 25000 images of CIFAR-10: test accuracy right after pruning,
  and with the statistics of BatchNorms recomputed on 500 training images.
- The ResNet once inside its blocks only, and once with its residual channels.
- A ViT on MNIST and a Llama on the docstrings of Python's standard library: half of the hidden channels of their MLPs,
  of their heads, of the dimensions within all heads, or of the width of their stream. Accuracy, and cross entropy in
  nats.

Methods that see inputs get 512 training images or windows of text, without labels. ``rivals/`` has what others
published. Prints Markdown tables with means and standard deviations over networks of different seeds.
"""

from __future__ import annotations

import argparse
import copy
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from contenders import selected
from images import Images, is_jpeg, mnist
from one_shot_methods import CALIBRATION, Inputs, Job, contenders
from reporting import markdown, setting
from small_transformers import Task, image_transformer, language_model
from small_transformers import train as train_transformer
from torch import nn
from trained import LENET, RESNET, VGG, Recipe, cached, cifar, flat_mnist
from tuning import accuracy, recalibrate, seeded

RECOMPUTED = 500
PARTS = {"hidden channels": "*.mlp.*", "heads": "*att*", "within heads": "*att*", "width": "*embed*"}
"""What is halved in transformers, by the layers that make it."""
Scores = Callable[[nn.Module], Sequence[float]]
Results = Mapping[tuple[str, str], Sequence[Sequence[Sequence[float]]]]
"""By the name of the method and the inputs that it sees: for every job, for every seed, the scores and the seconds."""


def main(argv: Sequence[str] | None = None) -> None:
    """Train or load, prune with every method, and print."""
    given = command_line().parse_args(argv)
    torch.set_num_threads(1)
    print(setting("transformers"), flush=True)
    if given.cifar and is_jpeg(given.cifar):
        print(
            "The images of CIFAR-10 come from JPEG files, which lose a little: published figures are of the originals."
        )
    if given.mnist and selected(LENET.name, given.networks):
        compare_images(LENET, "MNIST", flat_mnist(given.mnist), given, keeps=(0.1, 0.05))
    if given.cifar and any(selected(one.name, given.networks) for one in (VGG, RESNET)):
        images = cifar(given.cifar, given.images, given.test_images)
        compare_images(VGG, "CIFAR-10", images, given, keeps=(0.5, 0.25))
        compare_images(RESNET, "CIFAR-10", images, given, keeps=(0.5, 0.25))
        compare_images(RESNET, "CIFAR-10", images, given, keeps=(0.75,), include_residual=True)
    if given.mnist and selected("ViT", given.networks):
        whole = mnist(given.mnist)
        images = Images(*((x[:n], y[:n]) for (x, y), n in zip(whole, (given.images, given.test_images), strict=True)))
        compare_parts(image_transformer("MNIST", images, given.epochs or 8, augment=False), given)
    if selected("Llama", given.networks):
        compare_parts(language_model(given.characters, given.steps), given)


def command_line() -> argparse.ArgumentParser:
    """The options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mnist", type=Path, help="an .npz file, or a folder for torchvision")
    parser.add_argument("--cifar", type=Path, help="likewise")
    parser.add_argument("--cache", type=Path, default=Path(tempfile.gettempdir()) / "one_shot_networks")
    parser.add_argument("--device", default="cpu", help="where networks are trained; they are pruned on the CPU")
    parser.add_argument("--networks", default="*", help="shell patterns of names, with | between them")
    parser.add_argument("--contenders", default="*", help="likewise")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--images", type=int, default=25000, help="training images, except of LeNet")
    parser.add_argument("--test-images", type=int, default=5000, help="test images, likewise")
    parser.add_argument("--epochs", type=int, help="epochs of training, instead of the usual number")
    parser.add_argument("--characters", type=int, default=1_000_000, help="length of the language model's text")
    parser.add_argument("--steps", type=int, default=2000, help="steps of the language model's training")
    return parser


# ---- networks of images


def compare_images(
    recipe: Recipe,
    data: str,
    images: Images,
    given: argparse.Namespace,
    *,
    keeps: Sequence[float],
    include_residual: bool = False,
) -> None:
    """Print the table of one network, with a column or two for every fraction of channels kept."""
    if not selected(recipe.name, given.networks):
        return
    recipe = recipe.with_epochs(given.epochs)
    networks = [recipe.trained(images, seed, given.cache, given.device) for seed in range(given.seeds)]
    jobs = [
        Job.of(
            networks[0],
            images.train[0][:2],
            images.train[0][:CALIBRATION].split(128),
            keep,
            include_residual=include_residual,
            chains=not include_residual,
        )
        for keep in keeps
    ]
    has_norms = any(isinstance(one, nn.BatchNorm2d) for one in networks[0].modules())
    whole = [accuracy(model, images.test) for model in networks]
    inside = ", inside its blocks" if recipe.name == RESNET.name else ""
    where = ", with residual channels" if include_residual else inside
    stages = "untuned -> with BatchNorms recomputed" if has_norms else "untuned"
    print(
        f"\n{recipe.name}{where}, {data} ({len(images.train[1])} training and {len(images.test[1])} test images, "
        f"{recipe.epochs} epochs), {spread(whole)}% unpruned ({', '.join(f'{one:.1f}' for one in whole)}); test "
        f"accuracy {stages}, by the fraction of channels kept.\n"
    )
    results = compare(networks, jobs, partial(image_scores, images, has_norms), given.contenders)
    report(results, [f"{keep:.0%}" for keep in keeps], [".1f", ".1f"] if has_norms else [".1f"])


def image_scores(images: Images, has_norms: bool, pruned: nn.Module) -> list[float]:
    """Test accuracy, and with recomputed BatchNorms if there are any."""
    found = [accuracy(pruned, images.test)]
    if has_norms:
        recalibrate(pruned, images.train, RECOMPUTED, 125)
        found.append(accuracy(pruned, images.test))
    return found


# ---- transformers


def compare_parts(task: Task, given: argparse.Namespace) -> None:
    """Print the table of one transformer, with a column for every part of it that is halved."""
    networks = [
        cached(
            given.cache,
            f"{task.name}, {task.steps} steps, seed {seed}",
            partial(seeded, task.build, seed),
            partial(train_transformer, task, seed=seed, device=given.device),
        )
        for seed in range(given.seeds)
    ]
    batches = calibration(task)
    jobs = [
        Job.of(
            networks[0],
            task.inputs,
            batches,
            0.5,
            rule=rule,
            include_residual=part == "width",
            hidden="mlp" in rule,
            heads="within" if part == "within heads" else "whole",
        )
        for part, rule in PARTS.items()
    ]
    whole = np.array([task.scores(model) for model in networks])
    print(
        f"\n{task.name}: accuracy {spread(whole[:, 0])}%, cross entropy {spread(whole[:, 1], '.3f')} unpruned; "
        "accuracy and cross entropy untuned, with half of one part.\n"
    )
    report(compare(networks, jobs, task.scores, given.contenders), [*PARTS], [".1f", ".3f"])


def calibration(task: Task) -> list[Inputs]:
    """Inputs from training."""
    batches = task.batches(torch.Generator().manual_seed(1))
    size = len(next(batches)[1])
    return [inputs for inputs, _ in islice(batches, max(CALIBRATION // size, 1))]


# ---- all


def compare(networks: Sequence[nn.Module], jobs: Sequence[Job], scores: Scores, patterns: str) -> Results:
    """The scores of every method for every job and network, followed by the seconds that pruning took."""
    results: dict[tuple[str, str], list[list[list[float]]]] = defaultdict(lambda: [[] for _ in jobs])
    for column, job in enumerate(jobs):
        for name, contender in contenders(job).items():
            if not selected(name, patterns):
                continue
            row = name, str(CALIBRATION) if contender.sees_inputs else "none"
            for seed, model in enumerate(networks):
                pruned = copy.deepcopy(model)
                start = time.perf_counter()
                contender.prune(pruned, job, seed)
                seconds = time.perf_counter() - start
                job.check(name, pruned)
                results[row][column].append([*scores(pruned), seconds])
    return results


def report(results: Results, columns: Sequence[str], forms: Sequence[str]) -> None:
    """Print one table: for every column the scores, in these formats, and the seconds."""
    rows = [(*row, *(text for found in columns for text in cells(found, forms))) for row, columns in results.items()]
    head = [text for column in columns for text in (column, "s")]
    print(markdown(("method", "inputs", *head), rows), flush=True)


def cells(found: Sequence[Sequence[float]], forms: Sequence[str]) -> tuple[str, str]:
    """The scores and the seconds of one method for one job; dashes where it does not apply."""
    if not found:
        return "-", "-"
    *scores, seconds = zip(*found, strict=True)
    means = [spread(score, form) for score, form in zip(scores, forms, strict=True)]
    return " -> ".join(means) if len(set(forms)) == 1 else ", ".join(means), f"{np.mean(seconds):.1f}"


def spread(values: Iterable[float], form: str = ".1f") -> str:
    """The mean and the standard deviation, as text; of one value only that."""
    found = np.array([*values])
    return f"{found.mean():{form}} ± {found.std(ddof=1):{form}}" if len(found) > 1 else f"{found.mean():{form}}"


if __name__ == "__main__":
    main()
