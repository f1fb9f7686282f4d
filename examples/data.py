"""Images for the examples and benchmarks: a small data set without download, MNIST and CIFAR-10.

``digits()`` needs no download: its 1797 handwritten digits are part of scikit-learn. ``mnist(path)`` and
``cifar10(path)`` read an ``.npz`` file, or let torchvision download into a folder.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

Split = tuple[Tensor, Tensor]


class Images(NamedTuple):
    """Training and test images ``(N, C, H, W)``, float32 in [0, 1], with labels ``(N,)``, int64."""

    train: Split
    test: Split

    @property
    def example(self) -> Tensor:
        """One image as a batch ``(1, C, H, W)``."""
        return self.test[0][:1]


def digits() -> Images:
    """The digits of scikit-learn, ``(N, 1, 8, 8)``: 1437 training images and 360 test images."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    x, y = load_digits(return_X_y=True)
    parts = train_test_split(x.reshape(-1, 1, 8, 8) / 16, y, test_size=0.2, stratify=y, random_state=0)
    train_x, test_x, train_y, test_y = parts
    return Images(_split(train_x, train_y), _split(test_x, test_y))


def mnist(path: str | Path) -> Images:
    """MNIST, ``(N, 1, 28, 28)``: 60000 training images and 10000 test images.

    Args:
        path: An ``.npz`` file with ``train_x``, ``train_y``, ``test_x`` and ``test_y`` (or the names that Keras uses,
            ``x_train`` and so on); or a folder, into which torchvision downloads the data if they are missing.
    """
    return _read(Path(path), "MNIST")


def cifar10(path: str | Path) -> Images:
    """CIFAR-10, ``(N, 3, 32, 32)``: 50000 training images and 10000 test images, 740 MB in memory.

    Args:
        path: As for :func:`mnist`; in an ``.npz`` file the colour dimension may be first or last.
    """
    return _read(Path(path), "CIFAR10")


def loaders(images: Images, batch_size: int) -> tuple[DataLoader, DataLoader]:
    """A shuffled loader for training, and one for testing."""
    train = DataLoader(TensorDataset(*images.train), batch_size, shuffle=True)
    return train, DataLoader(TensorDataset(*images.test), batch_size=1024)


def _read(path: Path, name: str) -> Images:
    if path.suffix == ".npz":
        with np.load(path) as file:
            return _from_arrays(file)
    try:
        from torchvision import datasets  # type: ignore[import-not-found]
    except ImportError:
        raise SystemExit(
            f"{path} is taken for a folder into which torchvision downloads {name}, and torchvision is not installed: "
            "pip install torchvision, or give an .npz file."
        ) from None
    arrays = {}
    for part in ("train", "test"):
        stored = getattr(datasets, name)(path, train=part == "train", download=True)
        arrays |= {f"{part}_x": np.asarray(stored.data), f"{part}_y": np.asarray(stored.targets)}
    return _from_arrays(arrays)


def _from_arrays(arrays: Mapping[str, Any]) -> Images:
    if "x_train" in arrays:  # the names of Keras
        return Images(*(_split(arrays[f"x_{part}"], arrays[f"y_{part}"]) for part in ("train", "test")))
    return Images(*(_split(arrays[f"{part}_x"], arrays[f"{part}_y"]) for part in ("train", "test")))


def _split(x: np.ndarray, y: np.ndarray) -> Split:
    images = torch.from_numpy(x)
    if images.ndim == 3:  # grey
        images = images.unsqueeze(1)
    elif images.shape[-1] == 3:  # colours last
        images = images.permute(0, 3, 1, 2)
    scale = 255 if images.dtype == torch.uint8 else 1
    return images.float().div_(scale).contiguous(), torch.from_numpy(y).long().flatten()
