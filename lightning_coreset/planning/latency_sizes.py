"""Sizes of groups where time is counted: it falls in steps, and narrower is not always faster.

Kernels work on blocks of channels, so that a layer of 48 channels may take as long as one of 33, and one of 20 longer
than one of 32. Only sizes that take less time than all larger ones are steps of an allocation, and in the end every
group gets the channels that cost no time.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from torch import Tensor

from lightning_coreset.planning.allowed_sizes import AllowedSizes
from lightning_coreset.planning.cost_model import CostModel

_MOVES = 4
"""How many groups may go one size up or down to come nearer to a ratio."""
_ROUNDING = 1e-9


def worthwhile(allowed: Sequence[AllowedSizes], cost_model: CostModel) -> list[AllowedSizes]:
    """Of the sizes of every group those that take less time than all larger ones.

    Whether they do may depend on the sizes of other groups: it is enough if they do with these as they are, or as small
    as they may be.
    """
    present = {group.name: group.sizes[0] for group in allowed}
    smallest = {group.name: group.smallest for group in allowed}
    found = []
    for group in allowed:
        faster = {size for others in (present, smallest) for size in _faster(group, others, cost_model)}
        found.append(group.only([size for size in group.sizes if size in faster]))
    return found


def _faster(group: AllowedSizes, others: Mapping[str, int], cost_model: CostModel) -> list[int]:
    kept, best = [], None
    for size in group.sizes:
        seconds = cost_model.seconds_around(group.name, {**others, group.name: size})
        least = _ROUNDING if best is None else max(cost_model.noise, _ROUNDING) * best
        if best is None or seconds < best - least:
            kept.append(size)
            best = seconds
    return kept


def hull(allowed: Sequence[AllowedSizes], curves: Mapping[str, Tensor], cost_model: CostModel) -> list[AllowedSizes]:
    """Of the sizes of every group with an error curve the lower convex hull of its error over the time saved.

    So each further step of a group costs more error for the time that it saves, as
    :func:`~lightning_coreset.planning.allocation.error_steps` expects; a step that saves nothing by itself does not
    hide one behind it that saves much.
    """
    present = {group.name: group.sizes[0] for group in allowed}
    return [
        _hull(group, curves[group.name], present, cost_model) if group.name in curves else group for group in allowed
    ]


def _hull(group: AllowedSizes, curve: Tensor, present: Mapping[str, int], cost_model: CostModel) -> AllowedSizes:
    errors, whole = curve.tolist(), group.sizes[0]
    seconds = {size: cost_model.seconds_around(group.name, {**present, group.name: size}) for size in group.sizes}
    points: list[tuple[float, float, int]] = []  # time saved, error, size
    for size in group.sizes:
        saved, error = seconds[whole] - seconds[size], errors[whole - size]
        if points and saved <= points[-1][0]:
            continue
        while len(points) > 1 and _is_above(points[-1], points[-2], (saved, error)):
            points.pop()
        points.append((saved, error, size))
    return group.only([size for _, _, size in points])


def _is_above(point: tuple[float, ...], before: tuple[float, ...], after: tuple[float, ...]) -> bool:
    """Whether a point lies on or above the line from one to another."""
    return (point[1] - before[1]) * (after[0] - before[0]) >= (after[1] - before[1]) * (point[0] - before[0])


def nearer(
    sizes: Mapping[str, int], allowed: Sequence[AllowedSizes], distance: Callable[[Mapping[str, int]], float]
) -> dict[str, int]:
    """Let a few groups go one size up or down, as long as that comes nearer to a ratio.

    Args:
        sizes: Classes by group name.
        allowed: The sizes that save time.
        distance: How far sizes are from the ratio.
    """
    best, found = dict(sizes), distance(sizes)
    for _ in range(_MOVES):
        moved = [{**best, group.name: size} for group in allowed for size in _neighbours(group, best[group.name])]
        other = min(moved, key=distance, default=best)
        if distance(other) >= found - _ROUNDING:
            break
        best, found = other, distance(other)
    return best


def _neighbours(group: AllowedSizes, size: int) -> list[int]:
    place = group.sizes.index(size)
    return [group.sizes[other] for other in (place - 1, place + 1) if 0 <= other < len(group.sizes)]


def free_widths(sizes: Mapping[str, int], allowed: Sequence[AllowedSizes], cost_model: CostModel) -> dict[str, int]:
    """Give every group the most classes that take no more time than those it has, all other groups as they are.

    Args:
        sizes: Classes by group name.
        allowed: All sizes that each may have.
        cost_model: Tells the times.
    """
    result = dict(sizes)
    for group in allowed:
        most = cost_model.seconds_around(group.name, result) * (1 + _ROUNDING)
        for size in group.sizes:
            if size <= result[group.name]:
                break
            if cost_model.seconds_around(group.name, {**result, group.name: size}) <= most:
                result[group.name] = size
                break
    return result
