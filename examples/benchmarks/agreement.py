r"""How far a pruned network provably agrees with the original, through all layers, for all inputs near given images.

LeNet-300-100 and a small convolutional network on MNIST, pruned to several widths by reconstruction, without tuning.
For every radius r, over test images :math:`x_0` (pixels from 0 to 1) and all :math:`x` with :math:`\|x - x_0\| \le r`:

- *certified*: the share of images for which the pruned network is proven to give every such x the class that the
  original gives :math:`x_0`;
- *attacked*: the share for which projected gradient ascent found no x with another class. The truth lies between;
- *change*: a proven bound on the change of any score, and the largest change that ascent found.

The row *original* has the same shares for the network before pruning, whose predictions change within balls as well.

    python examples/benchmarks/agreement.py --data mnist.npz

Some minutes on one core, most of them for the convolutional network. Prints a Markdown table for each. Without
``--data`` it uses the digits of scikit-learn, enlarged to 28 x 28, which need no download.
"""

from __future__ import annotations

import argparse
import copy
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from lenet_mnist import lenet
from reporting import markdown, setting
from torch import Tensor, nn
from tuning import accuracy, adam, seeded, train

from lightning_coreset import Agreement, certified_agreement, prune

sys.path.insert(0, str(Path(__file__).parents[1]))
from data import Images, digits, mnist
from images import Batches

KEEP = (0.9, 0.75, 0.5, 0.25, 0.1)
RADII = {"LeNet-300-100": (0.0, 0.1, 0.3, 0.5, 1.0), "convolutional": (0.0, 0.02, 0.05, 0.1)}
COUNT = {"LeNet-300-100": 100, "convolutional": 20}
EPOCHS = {"LeNet-300-100": 8, "convolutional": 4}


def convolutional() -> nn.Sequential:
    """Two convolutions with BatchNorm, ReLU and average pooling, and a Linear; 3,000 parameters."""
    return nn.Sequential(
        *(nn.Conv2d(1, 8, 5, stride=2, padding=2), nn.BatchNorm2d(8), nn.ReLU(), nn.AvgPool2d(2)),
        *(nn.Conv2d(8, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.AvgPool2d(2)),
        *(nn.Flatten(), nn.Linear(16 * 3 * 3, 10)),
    )


NETWORKS = {"LeNet-300-100": lenet, "convolutional": convolutional}


def images(path: Path | None, flat: bool) -> Images:
    """Images of 28 x 28 with one channel, or as vectors."""
    if path is not None:
        found = mnist(path)
    else:
        found = Images(*((F.interpolate(x, (28, 28), mode="bilinear"), y) for x, y in digits()))
    return Images(*((x.flatten(1), y) for x, y in found)) if flat else found


def trained(name: str, split: Images, epochs: int) -> nn.Sequential:
    """The network before pruning."""
    model = seeded(NETWORKS[name], 0)
    train(
        model, Batches(split.train, torch.Generator().manual_seed(0)), epochs, adam(1e-3 if "LeNet" in name else 2e-3)
    )
    return model.eval()


def measured(name: str, split: Images, epochs: int, count: int, keeps: Sequence[float]) -> Iterator[list[str]]:
    """Rows of the table."""
    model, (x, y) = trained(name, split, epochs), split.test
    x = x[:count]
    for keep in keeps:
        pruned = copy.deepcopy(model)
        prune(pruned, split.train[0][:2], 1 - keep, unit="channels", self_check=False)
        results = [certified_agreement(model, pruned, x, radius=radius, restarts=4, steps=20) for radius in RADII[name]]
        if keep == keeps[0]:
            yield ["original", f"{accuracy(model, (split.test[0], y)):.1f}", *map(_original, results)]
        yield [f"{keep:.0%}", f"{accuracy(pruned, (split.test[0], y)):.1f}", *map(_cell, results)]


def _original(found: Agreement) -> str:
    return f"{found.original_certified:.0%} / {found.original_attacked:.0%}"


def _cell(found: Agreement) -> str:
    return f"{found.certified:.0%} / {found.attacked:.0%}; {found.change:.2g} / {found.found_change:.2g}"


def norm(x: Tensor) -> float:
    """The mean norm of images."""
    return float(x.flatten(1).norm(dim=1).mean())


def main(arguments: Sequence[str] | None = None) -> None:
    """Train, prune, and print a table for each network."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="MNIST: an .npz file or a folder (default: scikit-learn's digits)")
    parser.add_argument("--networks", nargs="+", choices=list(NETWORKS), default=list(NETWORKS))
    parser.add_argument("--keep", type=float, nargs="+", default=list(KEEP), help="fractions of the channels kept")
    parser.add_argument("--count", type=int, help="test images; by default 100 and 20")
    parser.add_argument("--epochs", type=int, help="epochs of training before pruning; by default 8 and 4")
    given = parser.parse_args(arguments)
    torch.set_num_threads(1)
    print(setting())
    for name in given.networks:
        split = images(given.data, flat="LeNet" in name)
        count, epochs = given.count or COUNT[name], given.epochs or EPOCHS[name]
        rows = [*measured(name, split, epochs, count, given.keep)]
        print(
            f"\n{name}, the first {len(split.test[0][:count])} test images, of norm {norm(split.test[0]):.1f} on ",
            end="",
        )
        print("average: certified / attacked agreement; largest change of a score, proven / found.\n")
        print(markdown(["keep", "accuracy (%)", *(f"r = {radius:g}" for radius in RADII[name])], rows), flush=True)


if __name__ == "__main__":
    main()
