"""Prune a network with ``prune()`` in plain PyTorch: train, prune once, continue training, save and load.

    python examples/plain_pytorch.py

It needs no GPU and no download: the digits are part of scikit-learn. Lightning is not used.

What to expect: the plan as a table, with the reason for every layer that is not pruned. Directly after half of the
parameters have been removed, the accuracy is 15 to 20 points lower, because nothing has been retrained yet. In the end
it is within about one point of the value before, also for the network that was saved and loaded.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import torch
import torch.nn.functional as F
from data import Split, digits, loaders
from networks import resnet
from report import Result, show
from torch import nn
from torch.utils.data import DataLoader

from lightning_coreset import make_resizable, prune
from lightning_coreset.optimizers import slice_optimizer_state


def train(network: nn.Module, loader: DataLoader, optimizer: torch.optim.Optimizer, epochs: int) -> None:
    """An ordinary training loop."""
    network.train()
    for _ in range(epochs):
        for images, labels in loader:
            loss = F.cross_entropy(network(images), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()


@torch.no_grad()
def accuracy(network: nn.Module, split: Split) -> float:
    """The fraction of images that are classified correctly."""
    images, labels = split
    return (network.eval()(images).argmax(1) == labels).float().mean().item()


def main() -> None:
    """Train, prune, train, save, load."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--epochs", type=int, default=10, help="epochs before pruning, and after it (default: %(default)s)"
    )
    parser.add_argument(
        "--ratio", type=float, default=0.5, help="fraction of the parameters to remove (default: %(default)s)"
    )
    parser.add_argument("--save", type=Path, help="file for the pruned network (default: a temporary one)")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.manual_seed(args.seed)
    torch.set_num_threads(1)  # the network is too small to gain from more threads
    images = digits()
    train_loader, _ = loaders(images, batch_size=64)

    network = resnet(colours=1, depth=8)
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-3)
    train(network, train_loader, optimizer, args.epochs)
    before = Result.of(network, images.example, accuracy(network, images.test))

    plan = prune(network, images.example, args.ratio)  # in place
    print(plan)
    print(f"accuracy right after pruning: {accuracy(network, images.test):.1%}")

    # The optimizer still holds the parameters, which are the same objects, now smaller. Its state has to be sliced in
    # the same way. A new optimizer would work as well, but start without momenta.
    parameters = dict(network.named_parameters())
    slice_optimizer_state(optimizer, {parameters[c.name]: c for c in plan.changes if c.name in parameters})
    train(network, train_loader, optimizer, args.epochs)
    after = Result.of(network, images.example, accuracy(network, images.test))
    show(f"ResNet-8, {args.epochs} + {args.epochs} epochs", before, after)

    with tempfile.TemporaryDirectory() as folder:
        path = args.save or Path(folder) / "pruned.pt"
        torch.save(make_resizable(network).state_dict(), path)  # the state dict now contains how it was pruned
        loaded = make_resizable(resnet(colours=1, depth=8))  # built with the original size
        loaded.load_state_dict(torch.load(path, weights_only=True))
        print(f"saved, and loaded again: test accuracy {accuracy(loaded, images.test):.1%}")


if __name__ == "__main__":
    main()
