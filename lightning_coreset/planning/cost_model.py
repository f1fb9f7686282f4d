"""Parameters, MACs, channels and latency of a model for any sizes of its groups, counted from shapes alone."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, TypeAlias

from torch import Tensor, nn

from lightning_coreset.latency import REST, LayerCall, NetworkLatency
from lightning_coreset.plan import ParameterChange
from lightning_coreset.structure import ChannelGroup
from lightning_coreset.structure.records import layer_of

if TYPE_CHECKING:
    from lightning_coreset.planning.allowed_sizes import AllowedSizes

Unit: TypeAlias = Literal["params", "macs", "channels", "latency"]
_COUNTS: tuple[Unit, ...] = ("params", "macs", "channels")


@dataclass(frozen=True)
class ModelCost:
    """Sizes of a model.

    Attributes:
        params: Parameters.
        macs: Multiply-accumulates of one sample.
        channels: Removable channels (classes of groups).
        widths: Classes of every group that may shrink, by its name.
        latency: Seconds of one run; ``None`` where it is not counted.
    """

    params: int
    macs: int
    channels: int
    widths: Mapping[str, int] = field(default_factory=dict)
    latency: float | None = None


class CostModel:
    """Parameters, MACs, channels and latency of a model as a function of how many classes each group has.

    Args:
        tensors: Parameters and buffers by qualified name.
        groups: The groups that may shrink.
        macs: Multiply-accumulates of one sample by qualified name of the weight.
        settled: Channels of the original model that are left outside of these groups: a group that is down to one class
            is no group any more.
        product_macs: Multiply-accumulates of products of activations that shrink with the classes of groups, by their
            names.
        latency: How long the network takes, by the widths of its layers, if that is counted.
    """

    def __init__(
        self,
        tensors: Mapping[str, Tensor],
        groups: Sequence[ChannelGroup],
        macs: Mapping[str, int],
        settled: int = 0,
        product_macs: Mapping[tuple[str, ...], float] | None = None,
        latency: NetworkLatency | None = None,
    ) -> None:
        self._shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
        self._present = {group.name: group.size for group in groups}
        self._settled = settled
        # What one element of each tensor counts for; products of activations belong to no tensor.
        self._per_element: dict[Unit, dict[str, float]] = {
            "params": {name: 1.0 for name, tensor in tensors.items() if isinstance(tensor, nn.Parameter)},
            "macs": {name: macs[name] / max(math.prod(self._shapes[name]), 1) for name in macs if name in tensors},
        }
        self._products = sum(count for name, count in macs.items() if name not in tensors)
        self._shrinking_products: dict[tuple[str, ...], float] = defaultdict(float)
        for names, count in (product_macs or {}).items():
            self._shrinking_products[tuple(name for name in names if name in self._present)] += count
        # What one class of each group takes away from each dimension; the average where classes differ.
        self._loss: dict[str, list[tuple[int, str, float]]] = {}
        for group in groups:
            for member in group.members:
                share = member.total / group.size
                self._loss.setdefault(member.name, []).append((member.dim, group.name, share))
        self._touched = {group.name: sorted({member.name for member in group.members}) for group in groups}
        self._latency = latency
        calls = () if latency is None else latency.calls
        self._calls = {
            group: [number for number, call in enumerate(calls) if call.weight in touched]
            for group, touched in self._touched.items()
        }

    def totals(self, sizes: Mapping[str, int] | None = None) -> ModelCost:
        """The model's totals with these group sizes; as it is without them."""
        sizes = self._present | dict(sizes or {})
        return self._count({name: self._numel(name, sizes) for name in self._shapes}, sizes)

    def totals_of(self, numel: Mapping[str, float], sizes: Mapping[str, int]) -> ModelCost:
        """The totals of the model with so many elements in each tensor, and these group sizes."""
        return self._count(numel, sizes)

    def gone(self, sizes: Mapping[str, float], original: ModelCost, unit: Unit) -> float:
        """The fraction of the original model that is gone with these sizes of all groups, which may be fractional."""
        numel = {name: self._numel(name, sizes) for name in self._per_element.get(unit, ())}
        whole = getattr(original, unit)
        return 1.0 - self._sum(numel, sizes, unit) / whole if whole else 0.0

    def sizes_at_ratio(
        self, order: Tensor, allowed: Sequence[AllowedSizes], ratio: float, unit: Unit, original: ModelCost
    ) -> dict[str, int]:
        """Take so many steps of an order that the fraction removed is nearest to a ratio.

        Args:
            order: The number of the group that shrinks, step by step, (steps,); every step makes the model smaller.
            allowed: The sizes of all groups.
            ratio: The fraction of ``original`` to remove.
            unit: What is counted.
            original: The cost of the original model.

        Returns:
            Classes that stay, by group name.
        """

        def sizes(count: int) -> dict[str, int]:
            taken = order[:count].bincount(minlength=len(allowed)).tolist()
            return {group.name: group.sizes[steps] for group, steps in zip(allowed, taken, strict=True)}

        def gone(count: int) -> float:
            return self.gone(sizes(count), original, unit)

        count = bisect_left(range(len(order)), ratio, key=gone)
        if count > 0 and abs(gone(count - 1) - ratio) <= abs(gone(count) - ratio):
            count -= 1
        return sizes(count)

    def after(self, changes: Iterable[ParameterChange], sizes: Mapping[str, int]) -> ModelCost:
        """The totals that the shapes in a plan's changes lead to, exactly."""
        numel: dict[str, float] = {name: math.prod(shape) for name, shape in self._shapes.items()}
        return self._count(numel | {change.name: math.prod(change.new_shape) for change in changes}, sizes)

    def saved(self, group: str, size: int, sizes: Mapping[str, int], unit: Unit) -> float:
        """What is removed when one group shrinks to ``size``, all other groups having ``sizes``."""
        if unit == "channels":
            return sizes[group] - size
        smaller = {**sizes, group: size}
        if unit == "latency":
            return self.seconds_around(group, sizes) - self.seconds_around(group, smaller)
        per_element = self._per_element[unit]
        products = self._product_macs(sizes) - self._product_macs(smaller) if unit == "macs" else 0.0
        return products + sum(
            per_element[name] * (self._numel(name, sizes) - self._numel(name, smaller))
            for name in self._touched[group]
            if name in per_element
        )

    def seconds_around(self, group: str, sizes: Mapping[str, float]) -> float:
        """The seconds in all layers that one group narrows, with these sizes of all groups."""
        return sum(self._seconds_of(number, sizes) for number in self._calls[group])

    @property
    def noise(self) -> float:
        """The part of a layer's time by which two times have to differ, to be different."""
        return 0.0 if self._latency is None else self._latency.noise

    def holders(self, sizes: Mapping[str, int], unit: Unit) -> dict[str, float]:
        """How much of a unit each module holds, by its name; each group, for channels."""
        sizes = {**self._present, **sizes}
        if unit == "channels":
            return dict(sizes)
        if unit == "latency":
            return self._latency_holders(sizes)
        held = {"products of activations": self._product_macs(sizes)} if unit == "macs" else {}
        for name, count in self._per_element[unit].items():
            module = layer_of(name) or name
            held[module] = held.get(module, 0.0) + count * self._numel(name, sizes)
        return held

    def _count(self, numel: Mapping[str, float], sizes: Mapping[str, int]) -> ModelCost:
        params, macs, channels = (round(self._sum(numel, sizes, unit)) for unit in _COUNTS)
        latency = None if self._latency is None else self._sum(numel, sizes, "latency")
        return ModelCost(params, macs, channels, dict(sizes), latency)

    def _sum(self, numel: Mapping[str, float], sizes: Mapping[str, float], unit: Unit) -> float:
        if unit == "channels":
            return self._settled + sum(sizes.values())
        if unit == "latency":
            assert self._latency is not None, "it is measured before it is counted"
            return self._latency.constant + sum(
                self._seconds_of(number, sizes) for number in range(len(self._latency.calls))
            )
        products = self._product_macs(sizes) if unit == "macs" else 0.0
        return products + sum(count * numel[name] for name, count in self._per_element[unit].items())

    def _product_macs(self, sizes: Mapping[str, float]) -> float:
        """What products of activations cost, such as queries times keys: less where heads are removed."""
        gone = (
            count * (1.0 - math.prod(sizes[name] / self._present[name] for name in names))
            for names, count in self._shrinking_products.items()
        )
        return self._products - sum(gone)

    def _seconds_of(self, number: int, sizes: Mapping[str, float]) -> float:
        """The seconds in one layer."""
        assert self._latency is not None, "it has calls"
        call: LayerCall = self._latency.calls[number]
        if call.weight not in self._shapes:  # of a part that does not count
            return self._latency.seconds(number, call.in_channels, call.out_channels)
        lengths = self._lengths(call.weight, sizes)
        reads, makes = call.reads.of(lengths[call.reads.dim]), call.makes.of(lengths[call.makes.dim])
        return self._latency.seconds(number, max(reads, 1), max(makes, 1))

    def _latency_holders(self, sizes: Mapping[str, float]) -> dict[str, float]:
        assert self._latency is not None, "it is measured before it is counted"
        held = {REST: self._latency.constant} if self._latency.constant else {}
        for number, call in enumerate(self._latency.calls):
            held[call.layer] = held.get(call.layer, 0.0) + self._seconds_of(number, sizes)
        return held

    def _numel(self, name: str, sizes: Mapping[str, float]) -> float:
        return math.prod(self._lengths(name, sizes))

    def _lengths(self, name: str, sizes: Mapping[str, float]) -> list[float]:
        """The shape of a tensor with these sizes of all groups."""
        shape: list[float] = list(self._shapes[name])
        for dim, group, share in self._loss.get(name, ()):
            shape[dim] -= (self._present[group] - sizes[group]) * share
        return shape


def reached(now: ModelCost, original: ModelCost, unit: Unit) -> float:
    """The fraction of the original model that is gone."""
    whole = getattr(original, unit)
    return 1.0 - getattr(now, unit) / whole if whole else 0.0
