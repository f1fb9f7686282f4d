"""Processes with a 1/f spectrum: series, sound and sequences of features."""

from __future__ import annotations

import math

import torch
from torch import Generator, Tensor

SHARED = 0.3
"""Correlation of any two features of a sample."""


def pink_noise(samples: int, features: int, length: int, generator: Generator) -> Tensor:
    """Draw series whose power falls as ``1 / f`` over time.

    Between white noise and a random walk, this is what loudness and pitch of speech and music, physiological and many
    other measured series have (Voss and Clarke, "1/f noise in music and speech", 1975). They are made in the spectrum:
    white noise times ``f^-1/2``. Features move together mildly, with correlation 0.3, as those of one recording do.

    Args:
        samples: Number of series.
        features: Features of each.
        length: Points in time.
        generator: Source of random numbers, on the CPU.

    Returns:
        ``(samples, features, length)`` in float32, Gaussian, with mean 0 and variance 1 (of the law, not of what was
        drawn: over one long series, the level is a matter of chance).

    Example:
        >>> series = pink_noise(256, 4, 64, torch.Generator().manual_seed(0))
        >>> bool((series.std() - 1).abs() < 0.05)
        True
    """
    own = _independent((samples, features), length, generator)
    shared = _independent((samples, 1), length, generator)
    return math.sqrt(1 - SHARED) * own + math.sqrt(SHARED) * shared


def _independent(shape: tuple[int, int], length: int, generator: Generator) -> Tensor:
    """Independent series, ``(*shape, length)``, each with variance 1 under the law."""
    # The spectrum belongs to a periodic series; the half of one that is twice as long has no end that meets its start.
    period = 2 * length
    frequencies = torch.arange(length + 1).clamp_min(1)  # the level varies as the slowest wave does
    amplitude = frequencies.rsqrt()
    spectrum = torch.fft.rfft(torch.randn(*shape, period, generator=generator))
    # All frequencies but the first and the last stand for two waves, of f and of -f.
    power = 2 * amplitude.square().sum() - amplitude[0] ** 2 - amplitude[-1] ** 2
    return torch.fft.irfft(spectrum * amplitude, n=period)[..., :length] * torch.rsqrt(power / period)
