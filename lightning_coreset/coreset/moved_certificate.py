r"""Proven bounds on the worst-case error where the rows that make the channels move, too.

Old weights :math:`W` and new ones :math:`U` of the next layer, old rows :math:`P` and moved ones :math:`P'`: with
:math:`z_p = P_p \cdot (x, 1)`, :math:`z'_p` likewise, and the channels :math:`S` that stay,

.. math:: e_j(x) = \sum_{p \notin S} W_{jp} \phi(z_p) + \sum_{p \in S} (W_{jp} - U_{jp}) \phi(z'_p)
    + \sum_{p \in S} W_{jp} \big( \phi(z_p) - \phi(z'_p) \big) .

Bounded as two sets of channels with opposite signs, the old rows and the moved ones, a sum of large terms would have to
cancel, and parabolas above single channels do not. So what the moves change is a channel of its own: with the slopes of
:math:`\phi` in :math:`[m_p, M_p]` wherever :math:`z_p` and :math:`z'_p` can be, and :math:`u_p = z_p - z'_p`, whose row
is as small as the move,

.. math:: W_{jp} \big( \phi(z_p) - \phi(z'_p) \big) \le |W_{jp}| (M_p - m_p) \max(u_p, 0)
    + W_{jp} u_p \begin{cases} m_p & W_{jp} \ge 0 \\ M_p & W_{jp} < 0 \end{cases}

which is the larger one of :math:`m W u` and :math:`M W u`: a ReLU and a linear part. It is not symmetric, so that the
two signs of :math:`e_j` are bounded apart.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_coreset.coreset.activation_table import RELU
from lightning_coreset.coreset.activations import Activation
from lightning_coreset.coreset.ball import Ball
from lightning_coreset.coreset.certificate import (
    AT_ONCE,
    Certificate,
    certify,
    check_products,
    checked_problem,
    spectral_norm,
    with_products,
)
from lightning_coreset.coreset.joint_bound import JointBound
from lightning_coreset.coreset.slopes import slope_range


def certify_moved(
    before: Tensor,
    after: Tensor,
    producers: Tensor,
    moved: Tensor,
    kept: Tensor,
    activation: Activation,
    *,
    input_radius: float,
    steps: int = 60,
    enough: float = 0.0,
    sharpen: bool = True,
    products: int = 0,
) -> Certificate:
    r"""Bound the error of a coreset whose channels are made by other rows than before.

    As :func:`certify` with the old rows and the moved ones side by side, and the nearer to the truth the less the rows
    moved: a layer of LeNet-300-100 whose rows move by a fifth of their length has half of that bound. Where rows move
    far, that bound may be the lesser one; both are made, and the lesser counts.

    Args:
        before: :math:`W`, the weights of the next layer before, ``(J, N)``; pass some rows only to save time.
        after: :math:`U`, those of the channels that stay, ``(J, S)``.
        producers: The rows of all channels before, ``(N, d + 1)``, the bias last.
        moved: Those of the channels that stay, afterwards, ``(S, d + 1)``.
        kept: The channels that stay, ``(S,)``.
        activation: The activation.
        input_radius: The radius :math:`\beta` of the ball.
        steps: As in :func:`certify`.
        enough: As there.
        sharpen: As there.
        products: As there, with the old rows and the moved ones side by side.

    Returns:
        The bounds. All terms of ``triangle`` are channels at the ends of their own ranges; ``spectral`` adds the
        Lipschitz bounds of the weights' change and of the moves; ``bound`` is the least, those of :func:`certify` that
        cost little included. Where the activation has no Lipschitz constant, exactly what :func:`certify` gives.

    Raises:
        ValueError: If the shapes do not fit, a number is not finite, or the radius is not positive.

    Example:
        A neuron that moves a little, with the same weight:

        >>> from lightning_coreset.coreset import find_activation
        >>> weight, kept, relu = torch.tensor([[1.0]]), torch.tensor([0]), find_activation("relu")
        >>> rows, moved = torch.tensor([[3.0, 4.0, 1.0]]), torch.tensor([[3.0, 3.9, 1.0]])
        >>> certify_moved(weight, weight, rows, moved, kept, relu, input_radius=2.0).bound.round(decimals=3)
        tensor([0.2000], dtype=torch.float64)
        >>> certify(torch.tensor([[1.0, -1.0]]), torch.cat([rows, moved]), relu, input_radius=2.0, sharpen=False).bound
        tensor([11.], dtype=torch.float64)

    """
    moves = _Moves.of(before, after, producers, moved, kept, input_radius)
    check_products(products, len(producers) + len(moved))
    change, both = checked_problem(torch.cat([before, -after], dim=1), torch.cat([producers, moved]), input_radius)
    apart = certify(
        change,
        both,
        activation,
        input_radius=input_radius,
        steps=steps,
        enough=enough,
        sharpen=sharpen,
    )
    least, most = slopes = moves.slopes(activation, input_radius)
    if not bool((least.isfinite() & most.isfinite()).all()):
        return apart  # such an activation has no bound of products, either
    weights = certify(moves.change, moves.rows, activation, input_radius=input_radius, sharpen=False)
    steepest = torch.maximum(least.abs(), most.abs())
    reach = input_radius * moves.shift[:, :-1].norm(dim=1) + moves.shift[:, -1].abs()
    triangle = torch.minimum(apart.triangle, weights.triangle + moves.weight.abs() @ (steepest * reach))
    lipschitz = spectral_norm(moves.shift) * math.sqrt(input_radius**2 + 1)
    spectral = torch.fmin(apart.spectral, weights.spectral + lipschitz * (moves.weight * steepest).norm(dim=1))
    bound, sharp = torch.fmin(triangle, spectral), None
    if apart.sharp is not None:  # the lesser one where rows move far
        sharp = torch.minimum(moves.jointly(activation, slopes, input_radius, steps, enough), apart.sharp)
        bound = torch.fmin(bound, sharp)
    certificate = Certificate(bound=bound, triangle=triangle, spectral=spectral, sharp=sharp)
    return with_products(certificate, change, both, activation, input_radius, products, enough)


@dataclass(frozen=True, eq=False)
class _Moves:
    """What changes, in parts that are small where little moves.

    Attributes:
        change: Old weights minus new ones, of all channels, (J, N).
        rows: The rows of all channels, of those that stay the moved ones, (N, d + 1).
        weight: The old weights of the channels that stay, (J, S).
        shift: Their old rows minus the moved ones, (S, d + 1).
        both: Their rows, the old ones and the moved ones, (2, S, d + 1).
    """

    change: Tensor
    rows: Tensor
    weight: Tensor
    shift: Tensor
    both: Tensor

    @classmethod
    def of(
        cls, before: Tensor, after: Tensor, producers: Tensor, moved: Tensor, kept: Tensor, input_radius: float
    ) -> _Moves:
        """In float64.

        Raises:
            ValueError: If the shapes do not fit, a number is not finite, or the radius is not positive.
        """
        old, rows = checked_problem(before, producers, input_radius)
        new, others = checked_problem(after, moved, input_radius)
        if kept.shape != (len(moved),) or len(after) != len(before) or moved.shape[1] != producers.shape[1]:
            raise ValueError(
                "Expected one index in `kept` for every row of `moved`, as many rows in `after` as in `before`, and "
                f"rows of one length in `producers` and `moved`, but got shapes {tuple(kept.shape)}, "
                f"{tuple(moved.shape)}, {tuple(after.shape)}, {tuple(before.shape)} and {tuple(producers.shape)}."
            )
        both = torch.stack([rows[kept], others])
        changed = old.index_add(1, kept, -new), rows.index_copy(0, kept, others)
        return cls(*changed, old[:, kept], both[0] - both[1], both)

    def slopes(self, activation: Activation, radius: float) -> tuple[Tensor, Tensor]:
        """The least and the largest slope of every channel that stays between what it was and what it becomes, (S,)."""
        reach, bias = radius * self.both[..., :-1].norm(dim=2), self.both[..., -1]
        return slope_range(activation, (bias - reach).amin(dim=0), (bias + reach).amax(dim=0))

    def jointly(
        self, activation: Activation, slopes: tuple[Tensor, Tensor], radius: float, steps: int, enough: float
    ) -> Tensor:
        """All channels of both kinds in one quadratic form, the two signs apart, (J,)."""
        least, most = slopes
        ball = Ball.of(radius, (self.rows, activation), (self.shift, RELU))
        none = torch.zeros_like(self.change)
        bounds = []
        for change, weight in zip(self._some(self.change, ball), self._some(self.weight, ball), strict=True):
            change, weight = torch.cat([change, -change]), torch.cat([weight, -weight])
            linear = torch.cat([none[:1].expand_as(change), weight * torch.where(weight >= 0, least, most)], dim=1)
            together = torch.cat([change, weight.abs() * (most - least)], dim=1)
            bound = JointBound(ball, together, linear=linear).proven(steps, enough=enough).bound
            bounds.append(torch.maximum(*bound.chunk(2)))
        return torch.cat(bounds)

    @staticmethod
    def _some(rows: Tensor, ball: Ball) -> tuple[Tensor, ...]:
        return rows.split(max(1, AT_ONCE // (128 * len(ball.rows))))
