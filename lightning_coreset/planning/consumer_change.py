"""What a plan changes in the outputs of one consumer, and how large that can be for any input of a ball.

Shapes as in ``layers.group_view``; J coordinates.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lightning_coreset.coreset import Activation, Certificate, certify, certify_moved, largest_found_error
from lightning_coreset.layers import LayerPair, single_channel_pairs
from lightning_coreset.layers.coordinate_change import coordinate_weights
from lightning_coreset.layers.layer_pair import to_cpu_float64
from lightning_coreset.methods import Selection
from lightning_coreset.methods.reweighting import reweighted_consumers

_ASCENDED = 8
_ENTRIES = 2**24
"""Rows times N times min(N, d + 1) that get the sharp bound: 186 rows for 300 channels, 16 for 1024. Some minutes."""
_LEAST_SHARPENED = 4
_CUBES = 2**20
_WITH_PRODUCTS = 8
"""Rows times N^3, and rows, that are bounded with products of channels: 8 rows for up to 50 channels, one for 100, none
for more, of which one would take longer than all sharp bounds."""
_NEAR = 1.05
"""A certificate this near to the error found is as good as it needs to be."""
_AT_ONCE = 2**20
"""Rows times entries of the producers that are bounded together."""


@dataclass(frozen=True, eq=False)
class ConsumerChange:
    """What a plan changes in one consumer.

    Attributes:
        change: Old weights minus new ones, BatchNorms behind the activation included, (J, N).
        constant: Old constants minus new ones, (J,).
        at_padding: The same where padding takes the place of the channels, (J,).
        producers: The rows that make the channels, (N, d + 1); with those that moved behind them, if any did.
        moved: The channels that those are, (S,); none where no row moves.
        activation: What stands between.
        pooled: Whether a max pooling stands between, too.
    """

    change: Tensor
    constant: Tensor
    at_padding: Tensor
    producers: Tensor
    moved: Tensor
    activation: Activation
    pooled: bool

    @classmethod
    def of(cls, pair: LayerPair, selection: Selection) -> ConsumerChange:
        """What a coreset changes, with the pair as the groups before left it."""
        view, tensors = pair.view, pair.view.tensors
        # In the dtype of the model: the certificate is about the weights that it will have.
        new = reweighted_consumers(view.group, selection, tensors)
        rounded = {name: value.to(tensors[name].dtype) for name, value in new.items()}
        moved = moved_pair(pair, {**tensors, **rounded})
        after = pair.with_tensors({**tensors, **rounded})
        kept = torch.zeros(view.size, dtype=torch.float64).index_fill_(0, selection.kept, 1.0)
        rescaled = _rescaled(pair, after)
        before, left = coordinate_weights(pair), coordinate_weights(after) * kept
        positions = len(before) // pair.outputs
        left *= rescaled.repeat_interleave(positions)[:, None]
        share = (_constants(pair) - rescaled * _constants(after)) / positions
        at_padding = share.repeat_interleave(positions)
        if moved is None:
            scale, offset = pair.affine_behind
            difference, producers, behind = before - left, pair.producers, selection.kept[:0]
        else:  # all neurons as they were, and beside them those that stay as they will be, with opposite signs
            scale, offset = (torch.cat([part, part[selection.kept]]) for part in pair.affine_behind)
            difference = torch.cat([before, -left[:, selection.kept]], dim=1)
            producers, behind = torch.cat([pair.producers, moved.producers[selection.kept]]), selection.kept
        constant = difference @ offset + at_padding
        return cls(
            difference * scale,
            constant,
            at_padding,
            producers,
            behind,
            pair.activation,
            pair.max_pooled,
        )

    def bracket(self, radius: float, rows: int | None, seed: int) -> tuple[float, float]:
        """The certified error and the one found, both the largest over the coordinates.

        Args:
            radius: Of the ball of inputs.
            rows: Coordinates that get the sharp bound, at most; by default as many as fit ``_ENTRIES``.
            seed: Of the starts of the ascent.
        """
        bound = self._certified(radius, rows)
        worst = bound.topk(min(_ASCENDED, len(bound))).indices
        found = self._found(worst, radius, seed)
        if not self.pooled:
            bound = self._with_products(bound, radius, _NEAR * found)
        return float(bound.max()), found

    def _certified(self, radius: float, rows: int | None) -> Tensor:
        """Valid bounds for all coordinates, the largest of them sharp unless the limit of rows comes first."""
        constant = self._largest_constant
        cheap = self._certificate(self.change, radius, sharpen=False)
        bound = (cheap.triangle if self.pooled else cheap.bound) + constant
        if self.pooled:
            return bound
        channels = len(self.producers) - len(self.moved)
        affordable = _ENTRIES // (channels * min(channels, self.producers.shape[1]))
        left = max(_LEAST_SHARPENED, affordable) if rows is None else rows
        waiting, reached = bound.clone(), 0.0  # what is sharp already waits no more
        at_once = max(_LEAST_SHARPENED, min(_AT_ONCE // self.producers.numel(), 64))
        while left > 0 and float(waiting.max()) >= reached:
            some = waiting.topk(min(at_once, left, len(waiting))).indices
            enough = max(reached - float(constant[some].max()), 0.0)
            sharp = self._certificate(self.change[some], radius, enough=enough)
            bound[some] = torch.minimum(bound[some], sharp.bound + constant[some])
            waiting[some] = -math.inf
            reached = max(reached, float(bound[some].max()))
            left -= len(some)
        return bound

    def _with_products(self, bound: Tensor, radius: float, reached: float) -> Tensor:
        """The bounds, those above what is reached anyway tightened once more where that takes only seconds."""
        constant = self._largest_constant
        for _ in range(min(_CUBES // len(self.producers) ** 3, _WITH_PRODUCTS, len(bound))):
            row = int(bound.argmax())
            if float(bound[row]) <= reached:
                break
            enough = max(reached - float(constant[row]), 0.0)
            tight = self._certificate(self.change[row : row + 1], radius, enough=enough, sharpen=False, products=1)
            bound[row] = torch.minimum(bound[row], tight.bound[0] + constant[row])
            reached = max(reached, float(bound[row]))
        return bound

    @property
    def _largest_constant(self) -> Tensor:
        """The largest magnitude of the constant: an average over positions and padding lies between the two, (J,)."""
        return torch.maximum(self.constant.abs(), self.at_padding.abs())

    def _certificate(self, change: Tensor, radius: float, **options: Any) -> Certificate:
        """Bounds for some rows of the change, without the constant; with options of ``certify``."""
        if not len(self.moved):
            return certify(change, self.producers, self.activation, input_radius=radius, **options)
        channels = len(self.producers) - len(self.moved)
        return certify_moved(
            change[:, :channels],
            -change[:, channels:],
            self.producers[:channels],
            self.producers[channels:],
            self.moved,
            self.activation,
            input_radius=radius,
            **options,
        )

    def _found(self, rows: Tensor, radius: float, seed: int) -> float:
        found = largest_found_error(
            self.change[rows],
            self.producers,
            self.activation,
            input_radius=radius,
            generator=torch.Generator().manual_seed(seed),
            constant=self.constant[rows],
        )
        return float(found.max())


def moved_pair(pair: LayerPair, after: Mapping[str, Tensor]) -> LayerPair | None:
    """The pair with the rows that a plan gives its producers; ``None`` if it leaves them as they are."""
    made = [member.name for member in pair.view.group.members if member.role != "consumer"]
    if all(after[name] is pair.view.tensors[name] for name in made):
        return None
    others = single_channel_pairs(pair.view.with_tensors(after))
    return next(one for one in others if one.path is pair.path)


def _rescaled(pair: LayerPair, after: LayerPair) -> Tensor:
    """What a BatchNorm behind the consumer multiplies its outputs by, in units of what it did before, (O,)."""
    norm = pair.output_norm
    if norm is None or norm.running_var is None:
        return torch.ones(pair.outputs, dtype=torch.float64)
    old, new = (to_cpu_float64(one.view.tensors[norm.running_var]) + norm.eps for one in (pair, after))
    return (old / new).sqrt()


def _constants(pair: LayerPair) -> Tensor:
    """The constant added to each output of the consumer, up to one that no plan changes, (O,)."""
    tensors = pair.view.tensors
    constant = torch.zeros(pair.outputs, dtype=torch.float64)
    bias, norm = pair.path.consumer.bias, pair.output_norm
    if bias is not None and tensors[bias].numel() == len(constant):
        constant = constant + to_cpu_float64(tensors[bias]).reshape(-1)
    if norm is not None and norm.running_mean is not None:
        constant = constant - to_cpu_float64(tensors[norm.running_mean])
    return constant
