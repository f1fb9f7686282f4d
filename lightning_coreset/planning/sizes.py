"""How many channels stay in which group, so that the requested share of the original model goes."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

from torch import Tensor, nn

from lightning_coreset.plan import ParameterChange
from lightning_coreset.structure import ChannelGroup

Unit: TypeAlias = Literal["params", "macs", "channels"]


@dataclass(frozen=True)
class Totals:
    """Sizes of a model: parameters, multiply-accumulates of one sample, and removable channels."""

    params: int
    macs: int
    channels: int


class Meter:
    """Counts what a model comes to when each group has so many channels, from shapes alone."""

    def __init__(self, tensors: Mapping[str, Tensor], groups: Sequence[ChannelGroup], macs: Mapping[str, int]) -> None:
        self._shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
        self._parameters = [name for name, tensor in tensors.items() if isinstance(tensor, nn.Parameter)]
        self._groups = groups
        self._macs = macs
        # What one class of each group takes away from each dimension; the average where classes differ.
        self._loss: dict[str, list[tuple[int, str, float]]] = {}
        for group in groups:
            for member in group.members:
                share = sum(len(places) for places in member.index) / group.size
                self._loss.setdefault(member.name, []).append((member.dim, group.name, share))

    def totals(self, sizes: Mapping[str, int] | None = None) -> Totals:
        """The model's totals with these group sizes; as it is without them."""
        removed = {group.name: group.size - (sizes or {}).get(group.name, group.size) for group in self._groups}
        numel = {name: self._numel(name, removed) for name in self._shapes}
        return self._count(numel, sum(group.size - removed[group.name] for group in self._groups))

    def after(self, changes: Iterable[ParameterChange], channels: int) -> Totals:
        """The totals that the shapes in a plan's changes lead to, exactly."""
        numel: dict[str, float] = {name: math.prod(shape) for name, shape in self._shapes.items()}
        return self._count(numel | {change.name: math.prod(change.new_shape) for change in changes}, channels)

    def _count(self, numel: Mapping[str, float], channels: int) -> Totals:
        macs = sum(
            count * numel[name] / max(math.prod(self._shapes[name]), 1) if name in numel else count
            for name, count in self._macs.items()
        )
        return Totals(round(sum(numel[name] for name in self._parameters)), round(macs), channels)

    def _numel(self, name: str, removed: Mapping[str, int]) -> float:
        shape: list[float] = list(self._shapes[name])
        for dim, group, share in self._loss.get(name, ()):
            shape[dim] -= removed[group] * share
        return math.prod(shape)


def uniform_sizes(
    groups: Sequence[ChannelGroup], meter: Meter, ratio: float, unit: Unit, original: Totals
) -> dict[str, int]:
    """The same keep ratio in every group, solved to the nearest whole channel.

    Channels are taken one at a time, from all groups at the same pace; how many are taken is found by bisection, since
    every one taken makes the model smaller.

    Args:
        groups: The groups that may shrink.
        meter: Counts the model.
        ratio: The fraction of ``original`` that shall be gone.
        unit: What is counted.
        original: The totals of the original model.

    Returns:
        Classes that stay, by group name.
    """
    steps = sorted(
        ((taken - 0.5) / group.size, number, group.name)
        for number, group in enumerate(groups)
        for taken in range(1, group.size)
    )

    def sizes(count: int) -> dict[str, int]:
        left = {group.name: group.size for group in groups}
        for _, _, name in steps[:count]:
            left[name] -= 1
        return left

    def gone(count: int) -> float:
        return reached(meter.totals(sizes(count)), original, unit)

    count = bisect_left(range(len(steps)), ratio, key=gone)
    if count > 0 and abs(gone(count - 1) - ratio) <= abs(gone(count) - ratio):
        count -= 1
    return sizes(count)


def reached(now: Totals, original: Totals, unit: Unit) -> float:
    """The fraction of the original model that is gone."""
    whole = getattr(original, unit)
    return 1.0 - getattr(now, unit) / whole if whole else 0.0
