"""What is learnt of layers when a network is followed: which weights make and read channels, paths, MACs."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from fractions import Fraction

from torch import Tensor

from lightning_coreset.structure.labels import ChannelLabels, TensorInfo
from lightning_coreset.structure.records import Layer
from lightning_coreset.structure.steps import Norm, Step, StepKind

Paths = dict[str, tuple[Step, ...]]
"""The steps since every producer that reaches a tensor, by the name of its weight."""


@dataclass
class LayerRecord:
    """A layer, and when it ran first."""

    layer: Layer
    order: int


class LayerRecords:
    """The layers that ran.

    Attributes:
        layers: By the name of the weight.
        producers: The dimensions of weights that make channels, each with the order in which its layer ran.
        consumers: Those that read channels.
        paths: Producer, steps, consumer, in the order of execution.
        macs: Multiply-accumulates by the name of the weight, ``""`` for products without one.
        products: What products without a weight cost, each with the labels that this goes with, such as heads.
        samples: Of how many samples these are.
        multiplied: Labels that a product of two activations sums over: those of queries and keys.
    """

    def __init__(self) -> None:
        self.layers: dict[str, LayerRecord] = {}
        self.producers: dict[tuple[str, int], int] = {}
        self.consumers: dict[tuple[str, int], int] = {}
        self.paths: list[tuple[str, tuple[Step, ...], str]] = []
        self.macs: dict[str, int] = defaultdict(int)
        self.products: list[tuple[tuple[ChannelLabels, ...], int]] = []
        self.uncounted: set[str] = set()
        self.samples = 1
        self.multiplied: list[Tensor] = []
        self._records = False
        self._times = Fraction(1)
        self._counted: Collection[str] = ()
        self._served_by: dict[Norm, set[str]] = {}

    @contextmanager
    def recording(self, samples: int) -> Iterator[None]:
        """Record paths, and multiply-accumulates of weights that no example before has shown; none if the block raises.

        For one run of every example: others of it would show the same again. Products without a weight are those of
        the first example that has any.

        Args:
            samples: How many the example has.
        """
        before, paths, products = dict(self.macs), len(self.paths), len(self.products)
        self._records, self._counted = True, before.keys()
        try:
            yield
            if not before:
                self.samples = max(samples, 1)
            for name in self.macs.keys() - before.keys():
                self.macs[name] = self._per_sample(self.macs[name], samples)
            self.products[products:] = [
                (axes, self._per_sample(macs, samples)) for axes, macs in self.products[products:]
            ]
        except Exception:
            del self.paths[paths:], self.products[products:]
            self.macs.clear()
            self.macs.update(before)
            raise
        finally:
            self._records = False

    @contextmanager
    def counting(self, times: Fraction) -> Iterator[None]:
        """Count multiply-accumulates in the block as many times as a recurrent layer repeats what it does there."""
        before, self._times = self._times, self._times * times
        try:
            yield
        finally:
            self._times = before

    def _per_sample(self, macs: int, samples: int) -> int:
        """What an example of some samples counts, for as many samples as the first example has."""
        return macs if samples == self.samples else round(macs * self.samples / max(samples, 1))

    def add_layer(
        self,
        weight: TensorInfo,
        in_dim: int | None,
        out_dim: int | None,
        inputs: TensorInfo | None,
        bias: TensorInfo | None,
        groups: int,
        scaled: bool,
    ) -> Paths:
        """A layer contracts ``inputs`` with ``weight``; returns the paths of its result.

        Args:
            weight: What is known of the weight as it is used, which may be a transposed view.
            in_dim: The dimension of that view which is contracted.
            out_dim: The one that labels the result.
            inputs: What is known of the input; ``None`` for indices.
            bias: What is known of a bias; ``None`` without one.
            groups: Convolution groups.
            scaled: Whether the product is multiplied by a number, of which the records have no place.
        """
        order = len(self.layers)
        into = weight.along(in_dim) if in_dim is not None else None
        out = weight.along(out_dim) if out_dim is not None else None
        for axis, roles in ((into, self.consumers), (out, self.producers)):
            for source in axis.sources if axis is not None else ():
                roles.setdefault(source, order)
        name = _name(weight, out or into)
        if name is None:
            return {}
        if name not in self.layers:
            made, read = _own_dim(out, name), _own_dim(into, name)
            if made is None:
                made = 0 if read is None else 1 - min(read, 1)  # a single channel has no labels
            if read is None and in_dim is not None:
                read = 1 - min(made, 1)
            layer = Layer(name, bias.direct if bias is not None else None, in_dim=read, out_dim=made, groups=groups)
            self.layers[name] = LayerRecord(layer, order)
        derived = (Step(StepKind.DERIVED_WEIGHT),)
        reads_as_is = weight.direct is not None and not scaled
        if self._records and inputs is not None:
            before = () if reads_as_is else derived
            self.paths += [(producer, steps + before, name) for producer, steps in inputs.producer_paths.items()]
        # A bias that is computed, and not a parameter, is missing in ``Layer.bias``.
        makes_as_is = reads_as_is and (bias is None or bias.direct is not None)
        return {name: () if makes_as_is else derived}

    def add_batch_norm(self, inputs: TensorInfo, norm: Norm) -> None:
        """A BatchNorm directly follows the layer that made ``inputs``, if one did."""
        for producer, steps in inputs.producer_paths.items():
            if not steps and producer in self.layers:
                served = self._served_by.setdefault(norm, set())
                served.add(producer)
                # What is right for one of several layers that a BatchNorm serves would be wrong for the others.
                for name in served:
                    layer = self.layers[name].layer
                    self.layers[name].layer = replace(layer, norm=norm if len(served) == 1 else None)

    def add_macs(self, weight: TensorInfo, macs: int, axes: Sequence[ChannelLabels]) -> None:
        """Multiply-accumulates of a weight, or of a product without one, whose result is labelled with ``axes``."""
        name = _name(weight, next(iter(weight.channel_labels), None)) or ""
        macs = round(macs * self._times)
        if self._records and name not in self._counted and macs:
            self.macs[name] += macs
            if not name and axes:
                self.products.append((tuple(axes), macs))

    def without(self, copied: Collection[str], uncounted: Collection[str] = ()) -> LayerRecords:
        """The records without what copies do, which is not theirs to tell.

        Args:
            copied: Names of the copies' tensors.
            uncounted: Names of tensors whose products do not count as multiply-accumulates either.
        """
        left = LayerRecords()
        left.layers = {name: record for name, record in self.layers.items() if name not in copied}
        left.producers = {where: order for where, order in self.producers.items() if where[0] not in copied}
        left.consumers = {where: order for where, order in self.consumers.items() if where[0] not in copied}
        left.paths = [(made, steps, read) for made, steps, read in self.paths if not {made, read} & {*copied}]
        left.multiplied, left.samples, left.uncounted = self.multiplied, self.samples, self.uncounted
        left.macs.update({name: macs for name, macs in self.macs.items() if name not in copied})
        for axes, macs in self.products:
            makers = {name for axis in axes for name, _ in axis.sources}
            if makers and all(name in copied or name in uncounted for name in makers):
                left.macs[""] -= macs
            else:
                left.products.append((axes, macs))
        return left


def _name(weight: TensorInfo, axis: ChannelLabels | None) -> str | None:
    """The parameter that a weight is or is made of."""
    if weight.direct is not None:
        return weight.direct
    return min(axis.sources)[0] if axis is not None and axis.sources else None


def _own_dim(axis: ChannelLabels | None, name: str) -> int | None:
    return next((dim for source, dim in axis.sources if source == name), None) if axis is not None else None
