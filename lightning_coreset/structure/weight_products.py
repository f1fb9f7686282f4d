"""Weights that are products of other weights: ``B @ A``, ``W + B @ A``, and what DoRA divides by the norm of.

A product of two parameters may be a layer that reads learned queries, or the weight of a layer that is yet to come.
What it is used for tells. As a weight its rows and columns are those of its factors; what the factors are multiplied
over, the rank, is made by one of them and read by the other.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from lightning_coreset.structure.labels import TensorInfo

if TYPE_CHECKING:
    from lightning_coreset.structure.propagation import Propagation

Dims = frozenset[tuple[str, int]]


class WeightProducts:
    """The products of weights of a network.

    Args:
        propagation: What follows the network.
    """

    def __init__(self, propagation: Propagation) -> None:
        self._propagation = propagation
        self._inner: dict[str, Dims] = {}  # what makes the ranks, by the layer that the product would be

    def note(self, layers: Iterable[str], other: Tensor, dim: int) -> None:
        """Note a product of weights, which would be a call of ``layers`` that read ``other`` along ``dim``."""
        info = self._propagation.info(other)
        axis = info.along(dim)
        inner = axis.sources if axis is not None else frozenset()
        for name in (*layers, *info.producer_paths):
            inner |= self._inner.get(name, frozenset())
        self._inner |= dict.fromkeys(layers, inner)

    def is_weight(self, tensor: Tensor) -> bool:
        """Whether a tensor is made of parameters, and of products of these if of any products."""
        info = self._propagation.info(tensor)
        return info.constant and info.producer_paths.keys() <= self._inner.keys()

    def use(self, weight: Tensor) -> None:
        """Say that a product of weights is the weight of a layer: its ranks are channels that one factor makes."""
        records = self._propagation.records
        for name in self._propagation.info(weight).producer_paths:
            for source in self._inner[name]:
                records.producers.setdefault(source, len(records.layers))


def scales_rows(propagation: Propagation, operands: Iterable[Tensor]) -> bool:
    """Whether numbers for the rows of a weight, such as their norms, meet channels that these rows make.

    So DoRA divides each output by the norm of the weights that make it. Of the columns that stay, that is the norm as
    it is: the others are zero.
    """
    infos = [propagation.info(tensor) for tensor in operands]
    rows = [axis.labels for info in infos if info.constant for axis in info.channel_labels]
    made = [axis.labels for info in infos if not info.constant for axis in info.channel_labels]
    roots = propagation.union_find.roots
    known = [roots(labels).unique() for labels in made]
    return any(torch.equal(roots(labels).unique(), other) for labels in rows for other in known)


def vanishes(infos: Iterable[TensorInfo], name: str) -> bool:
    """Whether what an element-wise operator makes of weights is zero where they are."""
    infos = list(infos)
    if name in _ZERO_IF_ANY:
        return infos[0].vanishes
    return name in _ZERO_IF_ALL and all(info.vanishes for info in infos)


_ZERO_IF_ANY = frozenset({"mul", "div"})
_ZERO_IF_ALL = frozenset("add sub rsub neg abs square sqrt relu".split())
