"""Common parts of the benchmarks on CIFAR-10: networks with their settings, the command line, and table headings."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from contenders import ABSENT, has_torch_pruning, selected
from images import Images, is_jpeg, prepared
from reporting import setting
from torch import nn
from tuning import seeded


@dataclass(frozen=True)
class Study:
    """One network, how it is trained, and how it is pruned.

    Attributes:
        name: Its name in tables.
        build: Builds it.
        count: Number of training images.
        test_count: Number of test images.
        pixels: Height and width of the images.
        epochs: Epochs of training.
        include_residual: Whether residual channels are pruned; one run for each value.
        keeps: The fractions of channels kept, one run for each, if they do not follow from a cost.
        contenders: Patterns of the methods that run by default.
    """

    name: str
    build: Callable[[], nn.Sequential]
    count: int
    test_count: int
    pixels: int
    epochs: int
    include_residual: tuple[bool, ...] = (False,)
    keeps: tuple[float, ...] = (0.5,)
    contenders: str = "*"

    def images(self, path: Path) -> Images:
        """The images, on the GPU if there is one."""
        device = "cuda" if torch.cuda.is_available() else "cpu"
        return prepared(path, self.count, self.test_count, pixels=self.pixels, device=device)

    def network(self, images: Images, seed: int) -> nn.Sequential:
        """A new network, on the device of the images."""
        return seeded(self.build, seed).to(images.example.device)

    def title(self, images: Images, include_residual: bool) -> str:
        """The network, the part of it that is pruned, and the data, in words."""
        where = ", everywhere" if include_residual else ", inside its blocks"
        return (
            f"{self.name}{where if len(self.include_residual) > 1 else ''}, CIFAR-10 ({len(images.train[1])} training "
            f"and {len(images.test[1])} test images of {self.pixels} x {self.pixels}, {self.epochs} epochs)"
        )


def command_line(description: str | None) -> argparse.ArgumentParser:
    """The options of both scripts."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="an .npz file, or a folder for torchvision")
    parser.add_argument("--full", action="store_true", help="full size, for a GPU")
    parser.add_argument("--networks", default="*", help="shell patterns of names, with | between them")
    parser.add_argument("--contenders", help="shell patterns of names, with | between them")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--images", type=int, dest="count", help="training images, instead of the usual number")
    parser.add_argument("--test-images", type=int, dest="test_count", help="test images, likewise")
    parser.add_argument("--epochs", type=int, help="epochs of training, likewise")
    return parser


def chosen(arguments: argparse.Namespace, small: Sequence[Study], full: Sequence[Study]) -> list[Study]:
    """The selected studies, with the selected sizes."""
    given = {name: getattr(arguments, name) for name in ("count", "test_count", "epochs", "contenders")}
    changes = {name: value for name, value in given.items() if value is not None}
    studies = [one for one in (full if arguments.full else small) if selected(one.name, arguments.networks)]
    return [replace(one, **changes) for one in studies]


def begin(path: Path) -> None:
    """Use one thread, since small networks do not gain from more, and print versions and machine."""
    torch.set_num_threads(1)
    print(setting("torch-pruning") if has_torch_pruning() else f"{setting()}\n{ABSENT}", flush=True)
    if is_jpeg(path):
        print("The images come from JPEG files, which lose a little: published figures are of the originals.")


def averaged(seeds: int) -> str:
    """The number of seeds, as text."""
    return "one seed" if seeds == 1 else f"mean of {seeds} seeds"
