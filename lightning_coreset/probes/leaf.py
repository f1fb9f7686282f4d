"""What is known of one tensor among the example inputs: its shape, and how the network reads it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor

from lightning_coreset.nested import Path

UseKind: TypeAlias = Literal["convolution", "product", "operator", "index", "other"]


@dataclass(frozen=True)
class Use:
    """How one operator reads a leaf, or elements of it, before any layer has changed them.

    Attributes:
        kind: ``"convolution"``; ``"product"`` with a weight; ``"operator"``, a matrix that multiplies what layers
            computed, as an adjacency does; ``"index"``, places in another tensor; or ``"other"``.
        dims: For each dimension of what the operator reads, the dimension of the leaf that it runs along; ``None``
            where it is none, or several. Batch and channels come first for a convolution, features last for a product.
        kernel: Sizes of the kernel of a convolution.
    """

    kind: UseKind
    dims: tuple[int | None, ...] = ()
    kernel: tuple[int, ...] = ()


@dataclass(frozen=True, eq=False)
class IdRange:
    """Elements of a leaf that are rows of an embedding.

    Attributes:
        end: For each element of the leaf, the first number that is not a row any more: rows of the smallest embedding
            that it enters, less what the network adds to it before. 0 where it enters none. ``(batch, ...)``.
        padding: For each element, the number that stands for padding; -1 where there is none.
    """

    end: Tensor
    padding: Tensor


@dataclass(frozen=True, eq=False)
class Leaf:
    """One tensor among the example inputs.

    Attributes:
        path: Keys and positions that lead to it.
        value: The tensor itself. What is made for it depends on its shape, dtype and device only.
        has_batch: Whether its first dimension counts the samples of the example.
        uses: How operators read it, in the order in which they do; empty if none was seen.
        ids: The elements that are rows of embeddings, if there are any.
    """

    path: Path
    value: Tensor
    has_batch: bool
    uses: tuple[Use, ...] = ()
    ids: IdRange | None = field(default=None, repr=False)

    @property
    def name(self) -> str:
        """The path as messages have it, ``inputs["pixels"][0]``."""
        return name_of_path(self.path)

    @property
    def reader(self) -> Use | None:
        """The first layer that reads it, a convolution or a product with a weight."""
        return next((use for use in self.uses if use.kind in ("convolution", "product")), None)

    @property
    def is_one_sample(self) -> bool:
        """Whether its first dimension is one of features or channels to its first layer: there is no batch."""
        reader = self.reader
        if reader is None:
            return False
        return 0 in (reader.dims[1:2] if reader.kind == "convolution" else reader.dims[-1:])

    @property
    def may_hold_places(self) -> bool:
        """Whether it holds whole numbers that may count samples, as edges do: not one for each sample, and no ids."""
        whole = not self.value.is_floating_point() and not self.value.is_complex() and self.value.dtype != torch.bool
        return whole and self.value.dim() > 0 and not self.has_batch and self.ids is None

    def is_used_as(self, kind: UseKind) -> bool:
        """Whether some operator reads it in this way."""
        return any(use.kind == kind for use in self.uses)


class ProbesUnavailable(ValueError):  # noqa: N818 - a property of the inputs that callers handle, as NoCoresetForm
    """Synthetic inputs cannot be made up for a network; the message says for which input, and the way out."""


WAY_OUT = 'Give probes=function to make them yourself, or use moments="closed_form".'


def name_of_path(path: Path) -> str:
    """Keys that lead to one of the inputs as messages have them, ``inputs['pixels'][0]``."""
    return "inputs" + "".join(f"[{key!r}]" for key in path)


def described(value: Any) -> str:
    """A tensor, or what came in place of one, as messages have it."""
    if not isinstance(value, torch.Tensor):
        return repr(value) if value is None or isinstance(value, int | float | str) else type(value).__name__
    return f"{str(value.dtype).removeprefix('torch.')} of shape {tuple(value.shape)} on {value.device}"
