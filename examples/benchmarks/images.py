"""Images as tensors on one device: reading, downscaling, normalisation, and augmentation by batch."""

from __future__ import annotations

import io
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[1]))
from data import Images, Split, cifar10, mnist

__all__ = ["Batches", "Images", "Split", "augmented", "is_jpeg", "mnist", "prepared"]


def prepared(path: Path, count: int, test_count: int, *, pixels: int, device: torch.device | str = "cpu") -> Images:
    """CIFAR-10 or a part of it, averaged down to ``pixels`` x ``pixels``, with each colour normalised.

    Args:
        path: As for :func:`data.cifar10`, or an ``.npz`` file of concatenated JPEG files: ``train_jpeg`` and
            ``test_jpeg`` (bytes), ``train_end`` and ``test_end`` (the end of each image), ``train_y`` and ``test_y``.
        count: The number of training images, taken from the start of the file.
        test_count: The number of test images, likewise.
        pixels: Height and width, at most 32.
        device: The device of all images.
    """
    images = jpegs(path, count, test_count) if is_jpeg(path) else cifar10(path)
    (train, labels), (test, test_labels) = images
    train, labels = train[:count], labels[:count]
    mean, deviation = train.mean((0, 2, 3), keepdim=True), train.std((0, 2, 3), keepdim=True)

    def ready(x: Tensor, y: Tensor) -> Split:
        normal = (x - mean) / deviation
        if pixels < x.shape[-1]:
            normal = F.interpolate(normal, size=pixels, mode="area")
        return normal.contiguous().to(device), y.to(device)

    return Images(ready(train, labels), ready(test[:test_count], test_labels[:test_count]))


def is_jpeg(path: Path) -> bool:
    """Whether a file contains JPEG files."""
    if path.suffix != ".npz":
        return False
    with np.load(path) as file:
        return "train_jpeg" in file


def jpegs(path: Path, count: int, test_count: int) -> Images:
    """Decode the first ``count`` training images and ``test_count`` test images."""
    from PIL import Image

    def decoded(part: str, limit: int) -> Split:
        content, ends = file[f"{part}_jpeg"].tobytes(), file[f"{part}_end"][:limit]
        starts = [0, *ends[:-1]]
        stored = (Image.open(io.BytesIO(content[start:end])) for start, end in zip(starts, ends, strict=True))
        x = torch.from_numpy(np.stack([np.asarray(image.convert("RGB")) for image in stored]))
        return x.permute(0, 3, 1, 2).float() / 255, torch.from_numpy(file[f"{part}_y"][:limit]).long()

    with np.load(path) as file:
        return Images(decoded("train", count), decoded("test", test_count))


class Batches:
    """Batches of a split, in a new random order every time, on the device of the split.

    Args:
        split: Images and labels.
        generator: On the CPU, so that the batches are the same for every device.
        size: Images in a batch; the last batch may be smaller.
        augment: Whether to shift images by up to an eighth of their size and to mirror half of them.
    """

    def __init__(self, split: Split, generator: torch.Generator, size: int = 128, augment: bool = False) -> None:
        self.images, self.labels = split
        self.generator, self.size, self.augment = generator, size, augment

    def __len__(self) -> int:
        return -(-len(self.images) // self.size)

    def __iter__(self) -> Iterator[Split]:
        for chosen in torch.randperm(len(self.images), generator=self.generator).split(self.size):
            chosen = chosen.to(self.images.device)
            batch = self.images[chosen]
            yield augmented(batch, self.generator) if self.augment else batch, self.labels[chosen]


def augmented(batch: Tensor, generator: torch.Generator) -> Tensor:
    """Crops of the zero-padded images (by 4 pixels for 32 x 32), half of them mirrored, (N, C, H, W)."""
    count, _, height, width = batch.shape
    pad = width // 8
    top, left = torch.randint(2 * pad + 1, (2, count, 1), generator=generator)
    mirrored = torch.rand(count, 1, generator=generator) < 0.5
    rows, columns = top + torch.arange(height), torch.arange(width)
    columns = left + torch.where(mirrored, columns.flip(0), columns)
    rows, columns = rows.to(batch.device), columns.to(batch.device)
    places = torch.arange(count, device=batch.device)[:, None, None], rows[:, :, None], columns[:, None, :]
    # Colours last while indexing, so that whole pixels are gathered; the result is in channels-last memory format.
    return F.pad(batch, [pad] * 4).permute(0, 2, 3, 1)[places].permute(0, 3, 1, 2)
