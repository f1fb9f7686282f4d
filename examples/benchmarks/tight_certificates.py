r"""How near to the truth a certificate gets: the sharp bound, and the one that knows of products of channels.

Each of the two hidden layers of LeNet-300-100 is pruned alone. For the outputs of the next layer whose sharp bounds are
the largest, and all inputs of norm at most that of the largest image (layer 2: of the largest output of layer 1):

- *found*: the largest error that gradient ascent finds, so the truth is not smaller;
- *sharp*: the bound that plans report, ``certify(...)``;
- *products*: ``certify(..., products=rows)``.

All are the largest over these outputs. In layer 2 that is the whole layer, where all its ten outputs are meant.

    python examples/benchmarks/tight_certificates.py --data mnist.npz

Prints a Markdown table after each layer. About an hour on one core, nearly all for layer 1, where an output takes
minutes; ``--layers 2`` takes a few minutes. Without ``--data`` it uses the digits of scikit-learn, enlarged to 28 x 28.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from lenet_mnist import pruned_alone, rows_of, trained_network
from reporting import markdown, setting
from torch import Tensor, nn
from worst_case import images

from lightning_coreset import Reconstruction, Sensitivity
from lightning_coreset.coreset import certify, find_activation, largest_found_error
from lightning_coreset.methods import Method

KEEP = (0.5, 0.25, 0.1)
METHODS: dict[str, Method] = {
    "sensitivity": Sensitivity(),
    "reconstruction, rows stay": Reconstruction(moments="closed_form", refine=False),
}
ROWS = {1: 1, 2: 10}
"""Outputs by layer that are bounded with products."""


@dataclass(frozen=True)
class Layer:
    """A hidden layer of LeNet: modules in front of it and behind it, and the norm of its largest input."""

    number: int
    ignored: str
    front: int
    behind: int
    radius: float


def layers_of(model: nn.Sequential, inputs: Tensor) -> tuple[Layer, Layer]:
    """Both."""
    with torch.no_grad():
        first, second = (float(part.norm(dim=1).max()) for part in (inputs, model[:2](inputs)))
    return Layer(1, "2", 0, 2, first), Layer(2, "0", 2, 4, second)


def change_of(model: nn.Sequential, layer: Layer, method: Method, keep: float) -> tuple[Tensor, Tensor, Tensor]:
    """What pruning changes: weights (J, N), constants (J,); and the rows that make the channels, (N, d + 1)."""
    pruned, group = pruned_alone(model, method, keep, layer.ignored, seed=0)
    before, after = rows_of(model[layer.behind]).double(), rows_of(pruned[layer.behind]).double()
    change = before[:, :-1].index_add(1, torch.tensor(group.kept), -after[:, :-1])
    return change, before[:, -1] - after[:, -1], rows_of(model[layer.front]).double()


def measured(model: nn.Sequential, layer: Layer, methods: Sequence[str], keeps: Sequence[float]) -> Iterator[list[str]]:
    """A row of the table for each method and fraction."""
    for name in methods:
        for keep in keeps:
            change, constant, producers = change_of(model, layer, METHODS[name], keep)
            yield [f"{layer.number}", name, f"{keep:.0%}", *bounds_of(change, constant, producers, layer)]


def bounds_of(change: Tensor, constant: Tensor, producers: Tensor, layer: Layer) -> list[str]:
    """Found, sharp and with products, of the outputs with the largest sharp bounds; and seconds."""
    relu, radius = find_activation("relu"), layer.radius
    assert relu is not None
    sharp = certify(change, producers, relu, input_radius=radius).bound
    rows = sharp.topk(min(ROWS[layer.number], len(change))).indices
    some, generator = change[rows], torch.Generator().manual_seed(0)
    begun = time.process_time()
    certify(some, producers, relu, input_radius=radius)
    between = time.process_time()
    tight = certify(some, producers, relu, input_radius=radius, products=len(rows))
    ended = time.process_time()
    found = largest_found_error(
        some, producers, relu, input_radius=radius, generator=generator, constant=constant[rows]
    ).max()
    ratios = []
    for bound in (sharp[rows], tight.bound):
        largest = float((bound + constant[rows].abs()).max())
        ratios.append(f"{largest:.1f} ({largest / float(found):.2f})")
    assert tight.products is not None
    done = int(tight.products.isfinite().sum())
    return [f"{found:.1f}", *ratios, f"{between - begun:.1f}", f"{ended - between:.0f} ({done} of {len(rows)})"]


def main(arguments: Sequence[str] | None = None) -> None:
    """Train, prune, bound and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="MNIST: an .npz file or a folder (default: scikit-learn's digits)")
    parser.add_argument("--layers", type=int, nargs="+", choices=(1, 2), default=[2, 1])
    parser.add_argument("--keep", type=float, nargs="+", default=list(KEEP), help="fractions of the neurons kept")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--epochs", type=int, default=8, help="epochs of training before pruning")
    given = parser.parse_args(arguments)
    torch.set_num_threads(1)
    training = images(given.data)
    model = trained_network(training, given.epochs, 0)
    print(setting())
    print("LeNet-300-100: the largest error in the outputs of the next layer with the largest bounds.\n")
    head = [
        "layer",
        "method",
        "keep",
        "found",
        "sharp (/ found)",
        "products (/ found)",
        "sharp: s",
        "products: s (rows)",
    ]
    layers = layers_of(model, training[0])
    for number in given.layers:
        print(markdown(head, measured(model, layers[number - 1], given.methods, given.keep)), end="\n\n", flush=True)


if __name__ == "__main__":
    main()
