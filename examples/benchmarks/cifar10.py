"""Accuracy on CIFAR-10 after pruning in one step: VGG and ResNet-56, our methods and those of Torch-Pruning.

    pip install ".[benchmarks]"
    python examples/benchmarks/cifar10.py --data cifar10.npz

CIFAR-10 is an ``.npz`` file, or a folder that torchvision downloads into; ``examples/data.py`` describes the file. A
network is trained, every method prunes a copy of it to the same widths, and the test accuracy is measured

- without fine-tuning,
- with the statistics of BatchNorms recomputed on 512 training images,
- after a tenth of an epoch and after one epoch of fine-tuning (from the network without recomputed statistics).

ResNet-56 is pruned once inside its blocks only, and once including residual channels.

The default setting is small and takes a quarter of an hour on one CPU core: a narrow VGG-11 on 10000 training images,
ResNet-56 on 8000 images averaged down to 16 x 16, a part of the test images, one seed. ``--full`` trains VGG-19 and
ResNet-56 on all of CIFAR-10 for 160 epochs and needs a GPU. Prints a Markdown table for every network and fraction of
channels kept.
"""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Sequence
from functools import partial

import numpy as np
import torch
from contenders import Prune, Target, contenders
from images import Batches, Images
from networks import resnet, vgg
from reporting import markdown
from studies import Study, averaged, begin, chosen, command_line
from torch import nn
from tuning import accuracy, recalibrate, sgd, train

STAGES = ("no tuning", "BN recomputed", "0.1 epoch", "1 epoch")
INSIDE_AND_EVERYWHERE = (False, True)
SMALL = (
    Study("VGG-11, a quarter as wide", partial(vgg, depth=11, width=0.25), 10000, 5000, 32, 12, keeps=(0.5, 0.25)),
    Study("ResNet-56", partial(resnet, depth=56), 8000, 2000, 16, 10, INSIDE_AND_EVERYWHERE),
)
FULL = (
    Study("VGG-19", partial(vgg, depth=19), 50000, 10000, 32, 160, keeps=(0.5, 0.25)),
    Study("ResNet-56", partial(resnet, depth=56), 50000, 10000, 32, 160, INSIDE_AND_EVERYWHERE),
)
Accuracies = dict[str, list[list[float]]]


def main(argv: Sequence[str] | None = None) -> None:
    """Train, prune with every method, and print."""
    arguments = command_line(__doc__).parse_args(argv)
    begin(arguments.data)
    for study in chosen(arguments, SMALL, FULL):
        images = study.images(arguments.data)
        trained = [trained_network(study, images, seed) for seed in range(arguments.seeds)]
        dense = float(np.mean([accuracy(model, images.test) for model in trained]))
        for keep in study.keeps:
            for include_residual in study.include_residual:
                targets = [Target.of(model, images.example, keep, include_residual) for model in trained]
                print(
                    f"\n{study.title(images, include_residual)}, {dense:.1f}% unpruned; {keep:.0%} of the channels "
                    f"kept in every layer that is pruned: {targets[0].sizes}; test accuracy, "
                    f"{averaged(arguments.seeds)}.\n"
                )
                report(compare(trained, targets, images, contenders(study.contenders)))


def trained_network(study: Study, images: Images, seed: int) -> nn.Sequential:
    """Train the network that is pruned."""
    model = study.network(images, seed)
    train(model, batches(images, seed), study.epochs, sgd(0.1), warm_up=0.05)
    return model


def batches(images: Images, seed: int) -> Batches:
    """Batches of training images, shifted and mirrored."""
    return Batches(images.train, torch.Generator().manual_seed(seed), augment=True)


def compare(
    trained: Sequence[nn.Sequential], targets: Sequence[Target], images: Images, methods: dict[str, Prune]
) -> Accuracies:
    """The accuracies at all stages, for every method and seed."""
    results: Accuracies = defaultdict(list)
    for seed, (model, target) in enumerate(zip(trained, targets, strict=True)):
        for name, prune in methods.items():
            pruned = copy.deepcopy(model).eval()
            prune(pruned, target, seed)
            target.check(name, pruned)
            results[name].append(stages(pruned, images, seed))
    return results


def stages(pruned: nn.Module, images: Images, seed: int) -> list[float]:
    """The test accuracy at each of ``STAGES``."""
    recomputed = copy.deepcopy(pruned)
    recalibrate(recomputed, images.train)
    found = [accuracy(pruned, images.test), accuracy(recomputed, images.test)]
    for epochs in (0.1, 1.0):
        tuned = copy.deepcopy(pruned)
        train(tuned, batches(images, seed), epochs, sgd(0.01))
        found.append(accuracy(tuned, images.test))
    return found


def report(results: Accuracies) -> None:
    """Print the means over seeds as one table."""
    rows = [(name, *(f"{cell:.1f}" for cell in np.mean(found, axis=0))) for name, found in results.items()]
    print(markdown(("method", *STAGES), rows), flush=True)


if __name__ == "__main__":
    main()
