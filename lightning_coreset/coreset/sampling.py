"""Draw a coreset of channels with probabilities proportional to their sensitivities.

All three samplers are importance sampling: a kept channel's outgoing weights are multiplied by one number that makes up
for the channels that were not drawn. Random numbers are drawn on the CPU whatever the device, so that a seed gives the
same coreset everywhere.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

# Keeps arrival times finite beside a channel 1e300 times likelier; below it a channel is never drawn in practice.
_LEAST_PROBABILITY = 1e-300
# Above this mean a Poisson count no longer fits the 64-bit integers in which PyTorch draws it.
_LARGEST_POISSON = 1e15


@dataclass(frozen=True, eq=False)
class Sample:
    """Channels to keep and what to multiply their outgoing weights by.

    Attributes:
        kept: Positions of the channels that stay, int64 ``(m,)``, ascending.
        weights: One multiplier for each of them, float64 ``(m,)``.
    """

    kept: Tensor
    weights: Tensor


def draw_distinct(sensitivity: Tensor, size: int, generator: torch.Generator) -> Sample:
    r"""Draw with replacement until ``size`` distinct channels have come up: the rule for a target size.

    With :math:`n_q` the times channel :math:`q` came up in :math:`M` draws and :math:`pr = s / \sum s`, the weights are
    :math:`n_q / (M pr_q)` (arXiv 2008.08316, algorithm 1, as the authors' code stops it). Stopping on a new channel
    makes the weights slightly biased; :func:`draw_pps` has the same exact size without that.

    The loop is not run. Let every channel arrive by a Poisson process of rate :math:`pr_p`: the sequence of arrivals
    is then the sequence of draws. First arrivals are exponential, the ``size`` earliest are the coreset, and between
    its first arrival and the last one's a channel comes up a Poisson number of times more. So one dominating channel
    costs no time.

    Args:
        sensitivity: The sensitivities, ``(N,)``, finite and not negative.
        size: How many channels to keep, at least 1.
        generator: The source of random numbers, on the CPU.

    Returns:
        The coreset. Channels of sensitivity zero are never drawn. When no more than ``size`` others exist, they are
        all kept as they are, with weights of one (nothing is left to estimate). When all sensitivities are zero the
        channels contribute nothing, and the first one stays because a layer cannot be empty.

    Raises:
        ValueError: If a sensitivity is negative or not finite, or ``size`` is below 1.

    Example:
        >>> generator = torch.Generator().manual_seed(0)
        >>> draw_distinct(torch.tensor([0.0, 1.0, 2.0]), 2, generator).kept
        tensor([1, 2])

    """
    scores = _checked(sensitivity, size, "size", generator)
    positive = scores.nonzero().flatten()
    if len(positive) <= size:
        return _all_of(positive, sensitivity)
    drawn = scores if len(positive) == len(scores) else scores[positive]
    probability = (drawn / drawn.sum()).clamp_min(_LEAST_PROBABILITY)
    arrival = torch.empty_like(probability).exponential_(generator=generator) / probability
    first, order = arrival.topk(size, largest=False)
    rate = probability[order]
    counts = 1 + _poisson(rate * (first[-1] - first), generator)
    return _sorted(positive[order], counts / (counts.sum() * rate), sensitivity)


def draw_fixed(sensitivity: Tensor, draws: int, generator: torch.Generator) -> Sample:
    r"""Draw exactly ``draws`` times with replacement: the rule that the paper's theorem is about.

    The weights :math:`n_q / (M pr_q)` are unbiased, and :func:`lightning_coreset.coreset.error_bound` holds for them.
    How many distinct channels come out is random.

    Args:
        sensitivity: The sensitivities, ``(N,)``, finite and not negative.
        draws: The number of draws :math:`M`, at least 1. Time and memory do not depend on it.
        generator: The source of random numbers, on the CPU.

    Returns:
        The coreset; only the first channel, as it is, when all sensitivities are zero.

    Raises:
        ValueError: If a sensitivity is negative or not finite, or ``draws`` is below 1.

    Example:
        >>> sample = draw_fixed(torch.tensor([0.0, 1.0, 0.0]), 10, torch.Generator().manual_seed(0))
        >>> sample.kept, sample.weights
        (tensor([1]), tensor([1.], dtype=torch.float64))

    """
    scores = _checked(sensitivity, draws, "draws", generator)
    if not scores.any():
        return _all_of(scores.nonzero().flatten(), sensitivity)
    probability = scores / scores.sum()
    counts = _multinomial(probability, draws, generator)
    kept = counts.nonzero().flatten()
    return _sorted(kept, counts[kept] / (draws * probability[kept]), sensitivity)


def inclusion_probabilities(sensitivity: Tensor, size: int) -> Tensor:
    r"""Inclusion probabilities proportional to the sensitivities, with expected size exactly ``size``.

    Proportional probabilities can exceed one; those channels are kept for certain and the rest of the size is shared
    out again, until none does.

    Args:
        sensitivity: The sensitivities, ``(N,)``, finite and not negative.
        size: The sum of the probabilities, at least 1.

    Returns:
        The probabilities, float64 ``(N,)`` on the device of ``sensitivity``: one for every channel of positive
        sensitivity where there are no more than ``size`` of them, zero for the others.

    Raises:
        ValueError: If a sensitivity is negative or not finite, or ``size`` is below 1.

    Example:
        >>> inclusion_probabilities(torch.tensor([1.0, 1.0, 2.0, 100.0]), 3)
        tensor([0.5000, 0.5000, 1.0000, 1.0000], dtype=torch.float64)

    """
    scores = _checked(sensitivity, size, "size")
    if int((scores > 0).sum()) <= size:
        return (scores > 0).double().to(sensitivity.device)
    ordered = scores.sort(descending=True, stable=True).values
    # Sums of what is left once the k largest are certain, added from the smallest up so that they are accurate.
    left = ordered.flip(0).cumsum(0).flip(0)
    certain = torch.arange(len(scores))
    # Certain units are always the largest, so the first k at which the next one fits is where re-normalising ends.
    fits = (size - certain) * ordered <= left
    k = int(fits.int().argmax())
    probability = ((size - k) * scores / left[k]).clamp(max=1)
    return torch.where(scores > ordered[k], 1.0, probability).to(sensitivity.device)


def draw_pps(sensitivity: Tensor, size: int, generator: torch.Generator) -> Sample:
    r"""Draw exactly ``size`` distinct channels, each with its inclusion probability: unbiased and of low variance.

    The random-order pivotal method (Deville and Tille, 1998): two undecided channels at a time compete for their joint
    probability until one of them is decided. The weights are :math:`1 / \pi_q`.

    Args:
        sensitivity: The sensitivities, ``(N,)``, finite and not negative.
        size: How many channels to keep, at least 1.
        generator: The source of random numbers, on the CPU.

    Returns:
        The coreset, with the exceptions of :func:`draw_distinct`.

    Raises:
        ValueError: If a sensitivity is negative or not finite, or ``size`` is below 1.

    Example:
        >>> sample = draw_pps(torch.tensor([1.0, 1.0, 2.0, 100.0]), 3, torch.Generator().manual_seed(0))
        >>> sample.weights
        tensor([2., 1., 1.], dtype=torch.float64)

    """
    scores = _checked(sensitivity, size, "size", generator)
    if int((scores > 0).sum()) <= size:
        return _all_of(scores.nonzero().flatten(), sensitivity)
    probability = inclusion_probabilities(scores, size)
    chosen = torch.tensor(_pivotal(probability, generator))
    kept = (chosen > 0.5).nonzero().flatten()
    return _sorted(kept, 1 / probability[kept], sensitivity)


def _pivotal(probability: Tensor, generator: torch.Generator) -> list[float]:
    values = probability.tolist()
    order = torch.randperm(len(values), generator=generator).tolist()
    coins = torch.rand(len(values), generator=generator, dtype=torch.float64).tolist()
    undecided = [p for p in order if 0 < values[p] < 1]
    if not undecided:
        return values
    holder = undecided[0]
    for other, coin in zip(undecided[1:], coins, strict=False):
        a, b = values[holder], values[other]
        if a + b < 1:  # one goes out, the other takes both shares
            loser, winner = (holder, other) if coin * (a + b) < b else (other, holder)
            values[loser], values[winner], holder = 0.0, a + b, winner
        else:  # one comes in, the other keeps what exceeds one
            # Of a sum of one, as the last two have, rounding makes this case or the other: both let the same one in.
            winner, loser = (other, holder) if coin * (2 - a - b) < 1 - a else (holder, other)
            values[winner], values[loser], holder = 1.0, a + b - 1, loser
    values[holder] = float(round(values[holder]))  # the probabilities sum to an integer, up to rounding
    return values


def _multinomial(probability: Tensor, draws: int, generator: torch.Generator) -> Tensor:
    """Split the draws down a binary tree by binomials, so that nothing grows with their number."""
    width = 1 << max(len(probability) - 1, 0).bit_length()
    sums = [torch.nn.functional.pad(probability, (0, width - len(probability)))]
    while len(sums[-1]) > 1:
        sums.append(sums[-1].view(-1, 2).sum(dim=1))
    counts = torch.tensor([float(draws)], dtype=torch.float64)
    for level in reversed(sums[:-1]):
        left, right = level.view(-1, 2).unbind(dim=1)
        share = torch.where(left + right > 0, left / (left + right), 0.0)
        taken = torch.binomial(counts, share, generator=generator)
        counts = torch.stack([taken, counts - taken], dim=1).flatten()
    return counts[: len(probability)]


def _poisson(mean: Tensor, generator: torch.Generator) -> Tensor:
    counts = torch.poisson(mean.clamp(max=_LARGEST_POISSON), generator=generator)
    # Up there a count is its mean to within a relative 1e-7, which no weight shows.
    return torch.where(mean > _LARGEST_POISSON, mean, counts)


def _checked(sensitivity: Tensor, count: int, name: str, generator: torch.Generator | None = None) -> Tensor:
    scores = sensitivity.detach().to("cpu", torch.float64)
    if scores.ndim != 1 or len(scores) == 0:
        raise ValueError(f"Expected `sensitivity` of shape (N,) with N > 0 but got {tuple(scores.shape)}.")
    least, most = map(float, scores.aminmax())  # NaN if any is
    if not 0 <= least <= most < math.inf:
        wrong = int((~((scores >= 0) & (scores < math.inf))).nonzero()[0])
        value = float(scores[wrong])
        raise ValueError(f"Expected every sensitivity to be finite and not negative but got {value} at {wrong}.")
    if count < 1:
        raise ValueError(f"Expected `{name}` to be at least 1 but got {count}.")
    if generator is not None and generator.device.type != "cpu":
        raise ValueError(f"Expected a generator on the CPU but got one on {generator.device}.")
    # A common factor changes nothing, and without it the sum of huge sensitivities would overflow.
    return scores / max(most, torch.finfo(torch.float64).tiny)


def _all_of(kept: Tensor, like: Tensor) -> Sample:
    if len(kept) == 0:
        kept = torch.zeros(1, dtype=torch.int64)
    return _sorted(kept, torch.ones(len(kept), dtype=torch.float64), like)


def _sorted(kept: Tensor, weights: Tensor, like: Tensor) -> Sample:
    kept, order = kept.sort()
    return Sample(kept=kept.to(like.device), weights=weights[order].to(like.device))
