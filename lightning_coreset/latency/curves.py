"""The times of one layer at a grid of widths."""

from __future__ import annotations

import math
from bisect import bisect_left
from dataclasses import dataclass

_LINES = 6
"""At least so many widths of a dimension are measured, as multiples of a power of two."""


@dataclass(frozen=True)
class Curve:
    """Seconds of one call of a layer, at widths that were measured.

    Attributes:
        inputs: The numbers of channels read, ascending.
        outputs: The numbers of channels made, ascending; empty where they are those read.
        seconds: For each of ``inputs`` the times for all of ``outputs``; for each of ``inputs`` one, without.
    """

    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    seconds: tuple[float, ...]

    def at(self, in_channels: int, out_channels: int) -> float:
        """The time at some widths: that of the next larger ones that were measured.

        Not interpolated: times are steps where kernels work on blocks of 8 or 16 channels, and between two measured
        widths nothing says where a step is. Beyond the largest width the time grows in proportion.
        """
        row, beyond = _at_least(self.inputs, in_channels)
        if not self.outputs:
            return self.seconds[row] * beyond
        column, more = _at_least(self.outputs, out_channels)
        return self.seconds[row * len(self.outputs) + column] * beyond * more


def _at_least(widths: tuple[int, ...], width: int) -> tuple[int, float]:
    place = bisect_left(widths, width)
    return (place, 1.0) if place < len(widths) else (len(widths) - 1, width / widths[-1])


def grid(width: int, *, multiple: int = 1, coarser: int = 0) -> tuple[int, ...]:
    """The widths at which a dimension is measured: multiples of a power of two, six to eleven, and the whole.

    Kernels work on blocks of a power of two channels, so that steps lie there.

    Args:
        width: The whole width.
        multiple: What every width is a multiple of, as the groups of a grouped convolution.
        coarser: How often to double the distance.

    Example:
        >>> grid(64), grid(20)
        ((8, 16, 24, 32, 40, 48, 56, 64), (2, 4, 6, 8, 10, 12, 14, 16, 18, 20))
    """
    if multiple > 1:
        return tuple(units * multiple for units in grid(width // multiple, coarser=coarser))
    step = 2 ** (int(math.log2(max(width / _LINES, 1))) + coarser)
    return (*range(step, width, step), width)
