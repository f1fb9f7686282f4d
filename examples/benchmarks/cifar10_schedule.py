"""Accuracy on CIFAR-10 of networks pruned during training, compared with the same training without pruning.

    pip install ".[benchmarks]"
    python examples/benchmarks/cifar10_schedule.py --data cifar10.npz

CIFAR-10 is an ``.npz`` file, or a folder that torchvision downloads into; ``examples/data.py`` describes the file.
``CoresetPruningCallback`` removes channels between 10% and 70% of the training, most of them early; the rest of the
training is for recovery. Torch-Pruning prunes the same layers to the same widths at the same epochs. Its pruner
replaces the parameters, so the optimizer gets the new parameters, and their momentum starts at zero.

All networks are pruned to half of their multiply-accumulates, with the same fraction of channels in every layer:
ResNet-56 once inside its blocks only, and once including residual channels.

The default setting is small and takes about 25 minutes on one CPU core: a narrow VGG-11 on 10000 training images,
ResNet-56 on 6000 images averaged down to 16 x 16, few epochs, a part of the test images, one seed. For ResNet-56 only
some methods run by default; ``--contenders "*"`` runs all of them.

``--full`` trains ResNet-56, VGG-16 and VGG-19 on all of CIFAR-10 for 200 epochs with all methods. It needs a GPU and
some hours; ``--networks "ResNet*" --contenders reconstruction`` and ``--precision bf16-mixed`` take less. The goal is a
ResNet-56 with half of the cost that is no worse than the unpruned one. The best published method reaches it with
group-sparse training (Fang et al., arXiv 2301.12900: 93.5 unpruned, 93.8 pruned), which this package does not have.

Prints a Markdown table for every network.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import numpy as np
from contenders import check_shapes, contenders
from images import Images
from networks import resnet, vgg
from reporting import markdown
from scheduled import PRUNED_EARLY, Course
from studies import Study, averaged, begin, chosen, command_line
from torch import nn
from trainings import quiet
from tuning import sgd

from lightning_coreset import PruningSchedule, count_macs

INSIDE_AND_EVERYWHERE = (False, True)
SOME = "L2 norm|reconstruction|*group norm"
SMALL = (
    Study("VGG-11, a quarter as wide", partial(vgg, depth=11, width=0.25), 10000, 5000, 32, 8),
    Study("ResNet-56", partial(resnet, depth=56), 6000, 5000, 16, 8, INSIDE_AND_EVERYWHERE, contenders=SOME),
)
FULL = (
    Study("ResNet-56", partial(resnet, depth=56), 50000, 10000, 32, 200, INSIDE_AND_EVERYWHERE),
    Study("VGG-16", partial(vgg, depth=16), 50000, 10000, 32, 200),
    Study("VGG-19", partial(vgg, depth=19), 50000, 10000, 32, 200),
)


def main(argv: Sequence[str] | None = None) -> None:
    """Train with and without pruning, and print."""
    parser = command_line(__doc__)
    parser.add_argument("--ratio", type=float, default=0.5, help="fraction of the multiply-accumulates to remove")
    parser.add_argument("--batch", type=int, default=128, help="images in a batch; the learning rate grows with it")
    parser.add_argument("--events", type=int, help="pruning events, instead of one an epoch")
    parser.add_argument("--precision", default="32-true", help="precision of training, an argument of the Trainer")
    arguments = parser.parse_args(argv)
    quiet()
    begin(arguments.data)
    for study in chosen(arguments, SMALL, FULL):
        images, seeds = study.images(arguments.data), range(arguments.seeds)
        course = course_of(study, arguments)
        dense = [course.train(study.network(images, seed), images, seed) for seed in seeds]
        for include_residual in study.include_residual:
            course = replace(course_of(study, arguments), include_residual=include_residual)
            rows = [("unpruned", f"{np.mean(dense):.1f}", *cost(study.network(images, 0), images))]
            for name in contenders(study.contenders):
                runs = [pruned_accuracy(study, course, images, name, seed) for seed in seeds]
                rows.append((name, f"{np.mean([run[0] for run in runs]):.1f}", *runs[0][1:]))
            print(f"\n{study.title(images, include_residual)}; test accuracy, {averaged(arguments.seeds)}.\n")
            print(markdown(("method", "accuracy", "parameters", "MACs"), rows), flush=True)


def course_of(study: Study, arguments: argparse.Namespace) -> Course:
    """The training of a network, as the options say."""
    schedule = PRUNED_EARLY
    if arguments.events is not None:
        every = max(round(0.6 * study.epochs / arguments.events), 1)  # from 10% to 70% of the epochs
        schedule = PruningSchedule(every=every)
    return Course(
        study.epochs,
        arguments.ratio,
        precision=arguments.precision,
        schedule=schedule,
        optimizer=sgd(0.1 * arguments.batch / 128),
        batch=arguments.batch,
    )


def pruned_accuracy(study: Study, course: Course, images: Images, name: str, seed: int) -> tuple[float, str, str]:
    """Train once with pruning; return the test accuracy and the cost of the pruned network."""
    network = study.network(images, seed)
    events = course.events(network, images)
    reached = course.train(network, images, seed, [course.pruner(name, seed, events)])
    check_shapes(name, network, events[max(events)])
    return reached, *cost(network, images)


def cost(network: nn.Module, images: Images) -> tuple[str, str]:
    """Parameters and multiply-accumulates."""
    parameters = sum(parameter.numel() for parameter in network.parameters())
    return f"{parameters:,}", f"{count_macs(network, images.example):,}"


if __name__ == "__main__":
    main()
