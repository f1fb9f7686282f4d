"""Prune a network with ``prune()`` in plain PyTorch: train, prune once, go on training, save, and load again.

    python examples/plain_pytorch.py

It needs no GPU and no download: the digits ship with scikit-learn. Lightning is not used.

What to expect: the plan of what goes, as a table, and why the rest stays. Right after half of the parameters is gone
the accuracy is some 15 to 20 points lower, for nothing has healed yet. In the end it is within about a point of that
before, and so is that of the network that was saved and loaded again.
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
    """A loop like any other."""
    network.train()
    for _ in range(epochs):
        for images, labels in loader:
            loss = F.cross_entropy(network(images), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()


@torch.no_grad()
def accuracy(network: nn.Module, split: Split) -> float:
    """The fraction of images whose label the network tells."""
    images, labels = split
    return (network.eval()(images).argmax(1) == labels).float().mean().item()


def main() -> None:
    """Train, prune, train, save, load."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=10, help="before pruning, and after (default: %(default)s)")
    parser.add_argument("--ratio", type=float, default=0.5, help="of the parameters that go (default: %(default)s)")
    parser.add_argument("--save", type=Path, help="file for the pruned network (default: a temporary one)")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.manual_seed(args.seed)
    torch.set_num_threads(1)  # the network is so small that more threads mostly wait for each other
    images = digits()
    train_loader, _ = loaders(images, batch_size=64)

    network = resnet(colours=1, depth=8)
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-3)
    train(network, train_loader, optimizer, args.epochs)
    before = Result.of(network, images.example, accuracy(network, images.test))

    plan = prune(network, images.example, args.ratio)  # in place
    print(plan)
    print(f"accuracy right after pruning: {accuracy(network, images.test):.1%}")

    # The optimizer still holds the parameters, which are the same objects, now smaller. Cut its momenta along; a new
    # optimizer would do as well, and begin without any.
    parameters = dict(network.named_parameters())
    slice_optimizer_state(optimizer, {parameters[c.name]: c for c in plan.changes if c.name in parameters})
    train(network, train_loader, optimizer, args.epochs)
    after = Result.of(network, images.example, accuracy(network, images.test))
    show(f"ResNet-8, {args.epochs} + {args.epochs} epochs", before, after)

    with tempfile.TemporaryDirectory() as folder:
        path = args.save or Path(folder) / "pruned.pt"
        torch.save(make_resizable(network).state_dict(), path)  # the state dict now tells how it was pruned
        loaded = make_resizable(resnet(colours=1, depth=8))  # built at its original size
        loaded.load_state_dict(torch.load(path, weights_only=True))
        print(f"saved, and loaded again: test accuracy {accuracy(loaded, images.test):.1%}")


if __name__ == "__main__":
    main()
