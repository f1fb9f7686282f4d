r"""Lipschitz constant and turning points of a function that a network writes out, proven on an interval.

Cells cover the interval, and where the enclosures of the slope do not decide yet, cells are halved: where the sign of
the slope is open, and where it may be steeper than anywhere else. What is left open are cells over which the function
moves by less than rounding.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_coreset.coreset.enclosure_rules import enclose
from lightning_coreset.coreset.intervals import Enclosure, NoEnclosureError
from lightning_coreset.expressions import Expression

_DENSE = 64.0
"""Up to here from zero cells are first 1/32 wide, further out every one reaches twice as far as the one before."""
_DOUBLINGS = 14
_HALVINGS = 38
_MOST_CELLS = 4_000
"""Cells that are halved at a time; of more, those furthest from zero stay open."""
_SMALL = 1e-11
"""Where the slope's sign is open, cells are this narrow, or the function moves by no more than this in them."""
_FLAT = 1e-14
"""A cell in which a function moves by no more has no sign: in flat tails, rounding is larger than the slope."""
_MOVED = 1e-9
"""What a function may move by in all cells without a sign together, for a slope of one there."""
_STEEPER = 1e-5
"""How far, relatively, the Lipschitz constant may lie above the least one."""
_MOST_TURNS = 64
_LEAST_RANGE = 1.0


@dataclass(frozen=True)
class Proof:
    """What is proven of a function between minus ``checked`` and ``checked``.

    Attributes:
        lipschitz: An upper bound of the slope's magnitude, within 1e-5 of the least one; infinite where the function
            gets steeper and steeper.
        turning_points: Where the function turns, ascending, and its values there.
        checked: How far from zero this holds.
    """

    lipschitz: float
    turning_points: tuple[tuple[float, float], ...]
    checked: float


def prove(expression: Expression) -> Proof | None:
    """Prove what bounds for all inputs need to know of a function; ``None`` if an operation has no enclosure.

    Also ``None`` where no interval around zero of at least one on each side is without a jump, a pole or more turning
    points than can be listed.

    Example:
        >>> from lightning_coreset.expressions import applied
        >>> prove(applied("abs", [Expression()]))
        Proof(lipschitz=1.0, turning_points=((0.0, 0.0),), checked=1048576.0)
    """
    try:
        low, high, found = _refined(expression)
    except NoEnclosureError:
        return None
    order = low.argsort()
    low, high, found = low[order], high[order], _at(found, order)
    open_ = _is_open(found, high - low) | ~_is_sound(found)
    nearest = torch.where((low < 0) & (high > 0), 0.0, torch.minimum(low.abs(), high.abs()))
    checked = float(nearest[open_].min()) if bool(open_.any()) else float(high[-1])
    inside = (low >= -checked) & (high <= checked)
    if checked < _LEAST_RANGE:
        return None
    turns = _turning_points(expression, low[inside], high[inside], _at(found, inside))
    if turns is None:
        return None
    steepest = _steepest(found, inside)
    near = _steepest(found, inside & (torch.maximum(low.abs(), high.abs()) <= _DENSE))
    return Proof(steepest if steepest <= 1.01 * near else math.inf, turns, checked)


def _first_cells() -> Tensor:
    dense = torch.linspace(0, _DENSE, int(32 * _DENSE) + 1, dtype=torch.float64)
    right = torch.cat([dense, _DENSE * 2.0 ** torch.arange(1, _DOUBLINGS + 1, dtype=torch.float64)])
    return torch.cat([-right.flip(0)[:-1], right])


def _refined(expression: Expression) -> tuple[Tensor, Tensor, Enclosure]:
    """Cells that need no further halving, or can have none, with the enclosures over them."""
    edges = _first_cells()
    low, high, floor = edges[:-1], edges[1:], 0.0
    done: list[tuple[Tensor, Tensor, Enclosure]] = []
    for halving in range(_HALVINGS + 1):
        found, width = enclose(expression, low, high), high - low
        sound = _is_sound(found)
        # The slope is at least as steep as this somewhere.
        reached = torch.minimum(found.least.abs(), found.most.abs())[sound & (found.least * found.most > 0)]
        floor = max(floor, float(reached.max()) if len(reached) else 0.0)
        steeper = (_magnitude(found) > floor * (1 + _STEEPER)) & (width > 1e-7)
        pole = ~sound & ~found.jumps & (width <= torch.maximum(low.abs(), high.abs()) / 64)
        again = (~sound | _is_open(found, width) | steeper) & ~pole
        if halving == _HALVINGS:
            again = torch.zeros_like(again)
        elif int(again.sum()) > _MOST_CELLS:
            furthest = torch.where(again, torch.minimum(low.abs(), high.abs()), -1.0).topk(len(again) - _MOST_CELLS)
            again = again.index_fill(0, furthest.indices, False)
        done.append((low[~again], high[~again], _at(found, ~again)))
        if not bool(again.any()):
            break
        middle = (low[again] + high[again]) / 2
        low, high = torch.cat([low[again], middle]), torch.cat([middle, high[again]])
    parts = [one[2] for one in done]
    together = Enclosure(*(torch.cat([getattr(one, name) for one in parts]) for name in Enclosure.__annotations__))
    return torch.cat([one[0] for one in done]), torch.cat([one[1] for one in done]), together


def _at(found: Enclosure, index: Tensor) -> Enclosure:
    return Enclosure(*(getattr(found, name)[index] for name in Enclosure.__annotations__))


def _is_sound(found: Enclosure) -> Tensor:
    finite = found.low.isfinite() & found.high.isfinite() & found.least.isfinite() & found.most.isfinite()
    return finite & ~found.jumps


def _magnitude(found: Enclosure) -> Tensor:
    return torch.maximum(found.least.abs(), found.most.abs())


def _is_open(found: Enclosure, width: Tensor) -> Tensor:
    """Where the function may rise and fall, and by more than nothing."""
    magnitude = _magnitude(found)
    return (found.least < 0) & (found.most > 0) & ~(magnitude * width <= _SMALL * magnitude.clamp_min(1))


def _steepest(found: Enclosure, among: Tensor) -> float:
    magnitude = _magnitude(found)[among & _is_sound(found)]
    return float(magnitude.max()) if len(magnitude) else 0.0


def _turning_points(
    expression: Expression, low: Tensor, high: Tensor, found: Enclosure
) -> tuple[tuple[float, float], ...] | None:
    """Where neighbouring cells with a sign rise and fall; ``None`` if there are too many, or too little is decided."""
    moves = _magnitude(found) * (high - low)
    unsigned = ((found.least < 0) & (found.most > 0)) | (moves <= _FLAT)
    steepest = float(_magnitude(found)[unsigned].max()) if bool(unsigned.any()) else 0.0
    if float(moves[unsigned].sum()) > _MOVED * max(1.0, steepest):
        return None
    falls = (found.most <= 0) & ~unsigned
    rises = (found.least >= 0) & ~unsigned
    signed = (falls | rises).nonzero().squeeze(1)
    turned = (falls[signed][:-1] != falls[signed][1:]).nonzero().squeeze(1)
    if len(turned) > _MOST_TURNS:
        return None
    turns = []
    for at in turned.tolist():
        first, second = int(signed[at]), int(signed[at + 1])
        places = torch.cat([high[first : first + 1], low[first + 1 : second + 1]])
        values = expression(places)
        best = int(values.argmax() if bool(rises[first]) else values.argmin())
        turns.append((float(places[best]), float(values[best])))
    return tuple(turns)
