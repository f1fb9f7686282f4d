"""Joint bounds on parts of the ball: where the majorant of a channel is loose, its two sides are bounded apart."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from lightning_coreset.coreset.ball import Ball
from lightning_coreset.coreset.joint_bound import Choice, JointBound

_STEPS = 25
"""Of descent for a part, which starts from the majorants of the whole."""


def largest_sum(ball: Ball, change: Tensor, *, steps: int, splits: int, enough: float = 0.0) -> Tensor:
    r"""Bound :math:`|\sum_p \Delta_{jp} \phi(z_p)|` over the ball.

    Args:
        ball: The channels.
        change: :math:`\Delta`, float64 ``(J, N)``.
        steps: Of descent.
        splits: How often the worst part of the ball is split for each row.
        enough: Rows need not be bounded more tightly.

    Returns:
        The bounds, ``(J,)``.
    """
    signed = torch.cat([change, -change])
    found = JointBound(ball, signed).proven(steps, enough=enough)
    everything = torch.arange(len(signed), device=change.device)
    parts = _Parts(
        everything, ball.low.expand_as(signed), ball.high.expand_as(signed), found.bound, found.slack, *found.choice
    )
    for _ in range(splits):
        worst = parts.worst_of_each(len(change))
        worst = worst[parts.bound[worst] > enough]
        if not len(worst):
            break
        stays = torch.ones_like(parts.problem, dtype=torch.bool).index_fill_(0, worst, False)
        halves = parts.at(worst).halved()
        start = Choice(halves.square, halves.tilt, halves.log_k)
        found = JointBound(ball, signed[halves.problem], halves.low, halves.high).proven(
            _STEPS, enough=enough, start=start
        )
        bound = torch.minimum(found.bound, halves.bound)
        new = _Parts(halves.problem, halves.low, halves.high, bound, found.slack, *found.choice)
        parts = parts.at(stays).and_others(new)
    return parts.bound.new_zeros(len(change)).scatter_reduce_(0, parts.problem % len(change), parts.bound, "amax")


class _Parts(NamedTuple):
    """Parts of the ball, each for one row and sign, with what was found for them."""

    problem: Tensor  # row, or rows + row for the other sign
    low: Tensor
    high: Tensor
    bound: Tensor
    slack: Tensor
    square: Tensor
    tilt: Tensor
    log_k: Tensor

    def at(self, which: Tensor) -> _Parts:
        return _Parts(*(one[which] for one in self))

    def and_others(self, others: _Parts) -> _Parts:
        return _Parts(*(torch.cat(both) for both in zip(self, others, strict=True)))

    def worst_of_each(self, rows: int) -> Tensor:
        """Of every row the part with the largest bound, of either sign."""
        row, order = self.problem % rows, self.bound.argsort(stable=True)
        return torch.zeros(rows, dtype=torch.long, device=order.device).index_put_((row[order],), order)

    def halved(self) -> _Parts:
        """Both sides of the channel whose majorant is loosest, at zero or, if that lies outside, in the middle."""
        at = self.slack.argmax(dim=1, keepdim=True)
        low, high = self.low.gather(1, at), self.high.gather(1, at)
        middle = torch.where((low < 0) & (high > 0), 0.0, (low + high) / 2)
        left = self._replace(high=self.high.scatter(1, at, middle))
        return left.and_others(self._replace(low=self.low.scatter(1, at, middle)))
