"""What is known of two networks on balls of inputs: proven bounds, and what an attack found."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class OutputChange:
    """Proven bounds on the outputs of the original network minus those of the pruned one.

    Attributes:
        low: No input of the ball around a sample makes less, float64 ``(n, ...)`` with the shape of outputs.
        high: No input makes more.
        radius: Of the balls.
    """

    low: Tensor
    high: Tensor
    radius: float

    @property
    def largest(self) -> Tensor:
        """A bound on the magnitude, in the same shape."""
        return torch.maximum(self.high, -self.low)


@dataclass(frozen=True, eq=False)
class SampleAgreement:
    """What is proven and found on the ball around every sample, ``(n,)`` each.

    Attributes:
        prediction: The class that the original network gives to the sample itself.
        certified: Whether the pruned network is proven to give this class on the whole ball.
        attacked: Whether no input of the ball was found to which it gives another one.
        original_certified: Whether the original network is proven to give this class on the whole ball.
        original_attacked: Whether no input was found to which it gives another one.
        change: A proven bound on the magnitude of any output's change.
        found_change: The largest change found.
    """

    prediction: Tensor
    certified: Tensor
    attacked: Tensor
    original_certified: Tensor
    original_attacked: Tensor
    change: Tensor
    found_change: Tensor

    @classmethod
    def joined(cls, parts: Sequence[SampleAgreement]) -> SampleAgreement:
        """One of all samples, from those of some samples each."""
        names = [one.name for one in fields(cls)]
        return cls(*(torch.cat([getattr(part, name) for part in parts]) for name in names))


@dataclass(frozen=True, eq=False)
class Agreement:
    """How far two classifiers are proven to agree. The truth lies between what is certified and what is attacked.

    Attributes:
        radius: Of the balls.
        per_sample: What the shares are of.
    """

    radius: float
    per_sample: SampleAgreement

    @property
    def certified(self) -> float:
        """The share of samples to which the pruned network is proven to give the same prediction on the whole ball."""
        return _share(self.per_sample.certified)

    @property
    def attacked(self) -> float:
        """The share of samples for which no input of the ball was found where it does change."""
        return _share(self.per_sample.attacked)

    @property
    def original_certified(self) -> float:
        """The same of the original network, whose predictions change within a ball as well."""
        return _share(self.per_sample.original_certified)

    @property
    def original_attacked(self) -> float:
        """As ``attacked``, of the original network."""
        return _share(self.per_sample.original_attacked)

    @property
    def both_certified(self) -> float:
        """The share of samples for which both are proven, so that the networks agree at every input of the ball."""
        return _share(self.per_sample.certified & self.per_sample.original_certified)

    @property
    def change(self) -> float:
        """A proven bound on the change of any output, on the balls of all samples."""
        return float(self.per_sample.change.max())

    @property
    def found_change(self) -> float:
        """The largest change found."""
        return float(self.per_sample.found_change.max())


def _share(which: Tensor) -> float:
    return float(which.double().mean())
