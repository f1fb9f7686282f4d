r"""Whether a coreset keeps an error: the claim that it does, refuted by an input or proven by a certificate.

Cheaper than the certificate itself. An attack on the likeliest coordinates refutes most wrong claims in a moment, and
descents end once the bound is small enough. Shapes: J coordinates, N channels, d inputs.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from lightning_coreset.coreset.activations import Activation, largest_magnitude
from lightning_coreset.coreset.certificate import certify
from lightning_coreset.coreset.worst_input import largest_found_error

_ATTACKED = 8
_STARTS, _STEPS = 1, 10
"""Of the attack: on layers of LeNet-300-100 it finds nine tenths of what sixteen starts of sixty steps find."""
_ROOM = 0.95
"""Descents go on until bounds seem to be below this part of what would do."""
_FIRST, _MOST = 4, 64
"""Rows that are bounded together: the worst first, since one that is above the limit ends it."""


@dataclass(frozen=True, eq=False)
class ErrorClaim:
    r"""The claim that :math:`|\sum_p \Delta_{jp} \phi(P_p \cdot (x, 1)) + c_j| \le \epsilon` for all j and a ball of x.

    Attributes:
        change: :math:`\Delta`, old weights minus new ones, float64 ``(J, N)``.
        constant: :math:`c`, ``(J,)``.
        rounded: How far the constants, as they are given, may be from the true ones, ``(J,)``.
        producers: The channels' rows, float64 ``(N, d + 1)``, the bias last.
        activation: The activation.
        input_radius: The radius of the ball.
        limit: :math:`\epsilon`.
    """

    change: Tensor
    constant: Tensor
    rounded: Tensor
    producers: Tensor
    activation: Activation
    input_radius: float
    limit: float

    def found(self, generator: torch.Generator) -> float:
        """The largest error that an attack finds in the coordinates with the largest cheap bounds."""
        rows = (self._cheap + self.constant.abs()).topk(min(_ATTACKED, len(self.change))).indices
        return float(self._attacked(rows, generator).max())

    @property
    def undecided(self) -> int:
        """The number of coordinates that need the sharp bound."""
        return len(self._waiting)

    def proven(self, generator: torch.Generator) -> tuple[bool, int]:
        """Whether the claim is proven, and for how many coordinates that took the sharp bound.

        Args:
            generator: For the attack that finds the order in which coordinates are looked at.
        """
        rows = self._waiting
        if not len(rows):
            return True, 0
        found, spent = self._attacked(rows, generator), 0
        if bool((found > self.limit).any()):
            return False, spent
        for some in _growing(rows[(found + self.rounded[rows]).argsort(descending=True)]):
            spent += len(some)
            if not self._bounded(some):
                return False, spent
        return True, spent

    def _bounded(self, rows: Tensor) -> bool:
        """Whether the sharp bounds of these coordinates prove the claim."""
        left = self._left[rows]
        enough = _ROOM * float(left.min())
        if not enough > 0:
            return False
        bound = self._sharp(rows, enough)
        failed = ~(bound <= left)
        # A descent ends by estimates, which lie below the bound: those that ended too early go on.
        if failed.any() and bool((bound <= left / _ROOM).all()):
            return bool((self._sharp(rows[failed], 0.0) <= left[failed]).all())
        return not failed.any()

    def _sharp(self, rows: Tensor, enough: float) -> Tensor:
        return certify(
            self.change[rows], self.producers, self.activation, input_radius=self.input_radius, enough=enough
        ).bound

    @cached_property
    def _cheap(self) -> Tensor:
        return certify(
            self.change, self.producers, self.activation, input_radius=self.input_radius, sharpen=False
        ).bound

    @cached_property
    def _left(self) -> Tensor:
        """What is left of the limit for the sum over the channels, (J,)."""
        # Sums of N terms in float64 err by less than this part of the sum of their magnitudes, the triangle bound of
        # the magnitudes of the changes.
        part = 4 * len(self.producers) * torch.finfo(torch.float64).eps
        reach = self.input_radius * self.producers[:, :-1].norm(dim=1) + self.producers[:, -1].abs()
        most = self.change.abs() @ largest_magnitude(self.activation, reach)
        return self.limit - self.constant.abs() - self.rounded - part * most

    @cached_property
    def _waiting(self) -> Tensor:
        return (~(self._cheap <= self._left)).nonzero().flatten()

    def _attacked(self, rows: Tensor, generator: torch.Generator) -> Tensor:
        return largest_found_error(
            self.change[rows],
            self.producers,
            self.activation,
            input_radius=self.input_radius,
            generator=generator,
            constant=self.constant[rows],
            starts=_STARTS,
            steps=_STEPS,
        )


def _growing(rows: Tensor) -> Iterator[Tensor]:
    """Few rows first, then twice as many each time."""
    size = _FIRST
    while len(rows):
        yield rows[:size]
        rows, size = rows[size:], min(2 * size, _MOST)
