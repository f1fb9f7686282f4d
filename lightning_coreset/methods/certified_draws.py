"""The smallest coreset of a group that is drawn and certified to keep an error.

A certificate is a proof for the coreset at hand, so that it does not matter how many were drawn and refused before: no
probability is left that could add up.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from lightning_coreset.coreset import Sample, draw_fixed
from lightning_coreset.coreset.error_claim import ErrorClaim
from lightning_coreset.layers import CoordinateChange, GroupView, LayerPair
from lightning_coreset.methods.reweighting import reweighted_consumers
from lightning_coreset.methods.selection import Selection

Draw = Callable[[Tensor, int, torch.Generator], Sample]

_LARGEST = 2**20
"""N times min(N, d + 1) of layers that are looked at: up to 1024 channels that read as much."""
_WORK = 2**25
"""Rows that get the sharp bound times N times min(N, d + 1), of all attempts: 372 rows for 300 channels, in two minutes
at most."""
_TABLE = 2**24
"""Coordinates times channels of layers that are looked at."""
_STEP = 1.05
"""Sizes that are tried differ by this factor: between them, one draw differs as much from the next."""
_DRAWN = 4
"""Samples of each size, of which the one goes on in which an attack finds the least error."""


class CertifiedDraws:
    """Draws samples of one group and certifies them.

    Args:
        group: The group.
        pairs: What reads its channels, each row of one channel and each coordinate of all.
        scores: What draws are proportional to, (N,).
        draw: The sampler.
        input_radius: The radius of the ball of inputs.
        epsilon: The error that no coordinate may exceed.
    """

    def __init__(
        self,
        group: GroupView,
        pairs: Sequence[LayerPair],
        scores: Tensor,
        draw: Draw,
        *,
        input_radius: float,
        epsilon: float,
    ) -> None:
        self.group, self.pairs, self.scores, self.draw = group, pairs, scores, draw
        self.input_radius, self.epsilon = input_radius, epsilon
        # One number, so that what is drawn for the groups above does not depend on how many attempts this one takes.
        seed = int(torch.randint(2**62, (1,), generator=group.generator))
        self.generator = torch.Generator().manual_seed(seed)
        entries = max(len(pair.producers) * min(pair.producers.shape) for pair in pairs)
        table = sum(pair.coordinates for pair in pairs) * group.size
        self.rows_left = _WORK // entries if entries <= _LARGEST and table <= _TABLE else 0
        self.unaffordable = self.rows_left == 0
        self._unrefuted: dict[int, Sample | None] = {}
        self._passed: dict[int, bool] = {}
        self._best: Sample | None = None
        self._below = group.size

    def smallest(self, below: int) -> Sample | None:
        """The smallest sample found with fewer channels than ``below``, or none.

        The least size that an attack does not refute is found by bisection; from there sizes go up until a sample is
        certified, in steps that double, and then down again by bisection. The error need not fall with the size, but
        whatever is certified is valid. ``unaffordable`` tells afterwards whether there was no time to look at more.
        """
        if self.rows_left == 0:
            return None
        sizes = _sizes(_draws_for(below, self.scores) if self.draw is draw_fixed else below)
        self._below = below
        first = _first(0, len(sizes), lambda at: self._drawn(sizes[at]) is not None)
        refused, at, step = first - 1, first, 1
        while at < len(sizes) and not self._certified(sizes[at]):
            refused, at, step = at, min(at + step, max(len(sizes) - 1, at + 1)), 2 * step
        _first(refused + 1, at, lambda at: self._certified(sizes[at]))
        return self._best

    def _drawn(self, size: int) -> Sample | None:
        """Of some samples of a size the one with the least error that an attack finds; none if it is too large."""
        if size not in self._unrefuted:
            least = self.epsilon
            self._unrefuted[size] = None
            for _ in range(_DRAWN):
                sample = self.draw(self.scores, size, self.generator)
                if len(sample.kept) >= self._below:
                    continue
                found = max(claim.found(self.generator) for claim in self._claims(sample))
                if found <= least:
                    self._unrefuted[size], least = sample, found
        return self._unrefuted[size]

    def _certified(self, size: int) -> bool:
        """Whether the sample of a size is proven to keep the error; it is noted if it is the smallest then."""
        if size not in self._passed:
            sample = self._drawn(size)
            if sample is None or not self._proven(sample):
                self._passed[size] = False
                return False
            self._passed[size] = True
            if self._best is None or len(sample.kept) < len(self._best.kept):
                self._best = sample
        return self._passed[size]

    def _proven(self, sample: Sample) -> bool:
        for claim in self._claims(sample):
            if claim.undecided > self.rows_left:
                self.unaffordable = True
                return False
            proven, rows = claim.proven(self.generator)
            self.rows_left -= rows
            if not proven:
                return False
        return True

    def _claims(self, sample: Sample) -> Iterator[ErrorClaim]:
        """What is to be proven: an error for every coordinate of the weights as the model will hold them."""
        view = self.group
        new = reweighted_consumers(view.group, Selection(sample.kept, weights=sample.weights), view.tensors)
        for pair in self.pairs:
            change = CoordinateChange.of(pair, new, sample.kept)
            rounded = 4 * view.size * torch.finfo(torch.float64).eps * change.magnitude
            yield ErrorClaim(
                change.weights,
                change.constant,
                rounded,
                pair.producers,
                pair.activation,
                self.input_radius,
                self.epsilon,
            )


def _sizes(below: int) -> list[int]:
    """Numbers below this one, with about the same factor between neighbours."""
    sizes, size = [], 1
    while size < below:
        sizes.append(size)
        size = max(size + 1, round(size * _STEP))
    return sizes if not sizes or sizes[-1] == below - 1 else [*sizes, below - 1]


def _draws_for(distinct: int, scores: Tensor) -> int:
    """The most draws with replacement of which, on average, fewer channels are distinct."""
    missed = torch.log1p(-(scores / scores.sum()).clamp(max=1 - 1e-12))
    draws = distinct
    while draws < 64 * distinct and float(-torch.expm1(draws * missed).sum()) < distinct - 1:
        draws = draws + draws // 8 + 1
    return draws


def _first(low: int, high: int, passes: Callable[[int], bool]) -> int:
    """The first number from low that passes, if all above one that passes do; high if none below it does."""
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if passes(middle) else (middle + 1, high)
    return low
