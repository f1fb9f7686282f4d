"""LeNet-300-100 on MNIST: accuracy of every method at several widths, directly after pruning and after fine-tuning.

Torch-Pruning prunes the same network to the same widths. A second table gives lower and upper bounds of the worst-case
error of a coreset of the first layer, over all inputs.

    pip install ".[benchmarks]"
    python examples/benchmarks/lenet_mnist.py --data mnist.npz

MNIST is an ``.npz`` file, or a folder that torchvision downloads into; ``examples/data.py`` describes the file.

Some minutes on one CPU core with the default three seeds. Prints two Markdown tables; ``--certificates`` prints only
the second one.
"""

from __future__ import annotations

import argparse
import copy
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from contenders import METHODS, Prune, Target, contenders
from images import Batches, Images, Split, mnist
from reporting import markdown
from studies import averaged, begin
from torch import Tensor, nn
from tuning import accuracy, adam, seeded, train

from lightning_coreset import prune
from lightning_coreset.coreset import certify_moved, find_activation, largest_found_error
from lightning_coreset.methods import Method
from lightning_coreset.plan import GroupPlan

KEEP = (0.5, 0.25, 0.1, 0.05)
CERTIFIED_KEEP = (0.5, 0.25)
CERTIFIED = ("sensitivity (paper, m distinct)", "reconstruction")
EPOCHS = (0.1, 1.0)
Accuracies = dict[tuple[str, float], list[list[float]]]
Brackets = dict[tuple[str, float], list[tuple[float, float, float, float]]]


def lenet() -> nn.Sequential:
    """784-300-100-10."""
    return nn.Sequential(nn.Linear(784, 300), nn.ReLU(), nn.Linear(300, 100), nn.ReLU(), nn.Linear(100, 10))


def trained_network(training: Split, epochs: int, seed: int) -> nn.Sequential:
    """Train the network that is pruned."""
    model = seeded(lenet, seed)
    train(model, batches(training, seed), epochs, adam(1e-3))
    return model


def batches(training: Split, seed: int) -> Batches:
    """Batches of training images, without augmentation."""
    return Batches(training, torch.Generator().manual_seed(seed))


def compare(
    model: nn.Sequential, images: Images, methods: dict[str, Prune], seed: int, tune: bool, results: Accuracies
) -> None:
    """Add the accuracies of every method and fraction of neurons to the results."""
    for keep in KEEP:
        target = Target.of(model, images.example, keep)
        for name, prune_in_place in methods.items():
            pruned = copy.deepcopy(model)
            prune_in_place(pruned, target, seed)
            target.check(name, pruned)
            found = [accuracy(pruned, images.test)]
            for epochs in EPOCHS if tune else ():
                tuned = copy.deepcopy(pruned)
                train(tuned, batches(images.train, seed), epochs, adam(1e-3))
                found.append(accuracy(tuned, images.test))
            results[name, keep].append(found)


def certified(
    model: nn.Sequential, method: Method, keep: float, radius: float, seed: int
) -> tuple[float, float, float, float]:
    """Layer 1 alone: the largest output of layer 2, and its largest error: found, certified, by triangle bound."""
    pruned, group = pruned_alone(model, method, keep, "2", seed, radius)
    second, reweighted = model[2], pruned[2]
    assert isinstance(second, nn.Linear)
    assert isinstance(reweighted, nn.Linear)
    rows, moved = rows_of(model[0]), rows_of(pruned[0])
    weight, kept = second.weight.detach(), torch.tensor(group.kept)
    relu = find_activation("relu")
    assert relu is not None
    largest = weight.norm(dim=1).topk(16).indices
    generator = torch.Generator().manual_seed(seed)
    own = largest_found_error(weight[largest], rows, relu, input_radius=radius, generator=generator)
    bounds = certify_moved(
        weight, reweighted.weight.detach(), rows, moved, kept, relu, input_radius=radius, sharpen=False
    )
    assert group.found_error is not None
    assert group.certified_error is not None
    return float(own.max()), group.found_error, group.certified_error, float(bounds.triangle.max())


def pruned_alone(
    model: nn.Sequential, method: Method, keep: float, ignored: str, seed: int, radius: float | None = None
) -> tuple[nn.Sequential, GroupPlan]:
    """A copy of LeNet with one hidden layer pruned, and the plan of it, with a certificate if a radius is given."""
    pruned = copy.deepcopy(model)
    plan = prune(
        pruned,
        torch.zeros(2, 784),
        1 - keep,
        unit="channels",
        method=method,
        ignore=(ignored,),
        seed=seed,
        self_check=False,
        certify=radius is not None,
        input_radius=radius,
    )
    (group,) = plan.groups
    return pruned, group


def rows_of(layer: nn.Module) -> Tensor:
    """The weights of every output and its bias, (N, d + 1)."""
    assert isinstance(layer, nn.Linear)
    return torch.cat([layer.weight, layer.bias[:, None]], dim=1).detach()


def main(argv: Sequence[str] | None = None) -> None:
    """Train, prune with every method, and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="an .npz file, or a folder for torchvision")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=8, help="epochs of training before pruning")
    parser.add_argument("--contenders", default="*", help="shell patterns of names, with | between them")
    parser.add_argument("--untuned", action="store_true", help="skip fine-tuning")
    parser.add_argument("--certificates", action="store_true", help="only print the table of certificates")
    arguments = parser.parse_args(argv)
    begin(arguments.data)
    images = Images(*((x.flatten(1), y) for x, y in mnist(arguments.data)))
    radius = float(images.train[0].norm(dim=1).max())
    methods = contenders(arguments.contenders, norms=False)
    dense: list[float] = []
    results: Accuracies = defaultdict(list)
    brackets: Brackets = defaultdict(list)
    for seed in range(arguments.seeds):
        model = trained_network(images.train, arguments.epochs, seed)
        dense.append(accuracy(model, images.test))
        for name in CERTIFIED:
            for keep in CERTIFIED_KEEP:
                brackets[name, keep].append(certified(model, METHODS[name], keep, radius, seed))
        if not arguments.certificates:
            compare(model, images, methods, seed, not arguments.untuned, results)
    if not arguments.certificates:
        report(dense, results, methods, arguments.seeds)
    report_certificates(brackets, radius, arguments.seeds)


def report(dense: list[float], results: Accuracies, methods: dict[str, Prune], seeds: int) -> None:
    """The means over seeds as a Markdown table."""
    tuned = "" if len(next(iter(results.values()))[0]) == 1 else " -> after 0.1 epoch -> after one epoch"
    print(
        f"\nLeNet-300-100, MNIST, {np.mean(dense):.1f}% unpruned, {averaged(seeds)}: test accuracy without "
        f"fine-tuning{tuned}, by the fraction of neurons kept in each hidden layer.\n"
    )
    rows = []
    for name in methods:
        cells = [np.mean(results[name, keep], axis=0) for keep in KEEP]
        rows.append([name, *(" -> ".join(f"{stage:.1f}" for stage in cell) for cell in cells)])
    print(markdown(("method", *(f"{keep:.0%}" for keep in KEEP)), rows))


def report_certificates(brackets: Brackets, radius: float, seeds: int) -> None:
    """The means over seeds as a Markdown table."""
    print(
        f"\nLayer 1 of LeNet-300-100 alone, all inputs of norm up to {radius:.2f} (the largest image), "
        f"{averaged(seeds)}: what the worst input does to the worst of the next layer's outputs.\n"
    )
    head = ("keep", "method", "largest output found", "largest error found", "certified", "triangle bound")
    rows = [
        [f"{keep:.0%}", name, *(f"{cell:.1f}" for cell in np.mean(brackets[name, keep], axis=0))]
        for keep in CERTIFIED_KEEP
        for name in CERTIFIED
    ]
    print(markdown(head, rows))


if __name__ == "__main__":
    main()
