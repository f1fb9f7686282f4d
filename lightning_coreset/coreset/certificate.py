r"""Proven bounds on the worst-case error of the coreset at hand; what an attack finds is in ``worst_input``.

They are about :math:`e_j(x) = \sum_p \Delta_{jp} \phi(P_p \cdot (x, 1))` over *all* inputs with
:math:`\|x\| \le \beta`, adversarial ones included, where :math:`\Delta` is old weights minus new ones. Their limits:
one layer at a time, before fine-tuning, and for deeper layers the radius is itself a bound (:func:`output_radius`,
loose) or a measured number, which makes the result a statement about inputs of that size only.

Shapes: J rows of the consumers, N channels, d inputs.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from lightning_coreset.coreset.absolute_sum import largest_absolute_sum
from lightning_coreset.coreset.activations import Activation, largest_magnitude, value_range
from lightning_coreset.coreset.ball import Ball
from lightning_coreset.coreset.branching import largest_sum
from lightning_coreset.coreset.product_bound import MOST_CHANNELS, worst_with_products

AT_ONCE = 2**20
"""Rows times channels times points of a search that are bounded together."""


@dataclass(frozen=True, eq=False)
class Certificate:
    r"""Proven bounds on :math:`\sup_x |e_j(x)|`, each valid on its own.

    Attributes:
        bound: The least of the others, float64 ``(J,)``.
        triangle: Each channel at the end of its own range, ``(J,)``.
        spectral: :math:`\|\Delta_j\| L \|P\|_2 \tilde\beta` plus the constant part, ``(J,)``.
        sharp: The bound that takes all channels together, ``(J,)``; ``None`` unless it was asked for.
        products: The bound that knows of products of channels, too, ``(J,)``, infinite for rows that have none;
            ``None`` unless it was asked for.
    """

    bound: Tensor
    triangle: Tensor
    spectral: Tensor
    sharp: Tensor | None
    products: Tensor | None = None


def certify(
    change: Tensor,
    producers: Tensor,
    activation: Activation,
    *,
    input_radius: float,
    steps: int = 60,
    splits: int = 0,
    enough: float = 0.0,
    sharpen: bool = True,
    products: int = 0,
) -> Certificate:
    r"""Bound the error of any coreset over the whole ball of inputs.

    The sharp bound puts a parabola above :math:`\Delta_p \phi` for every channel and bounds the sum of the parabolas
    over the ball at once (``joint_bound``), for any activation whose turning points are known; it may be repeated on
    parts of the ball (``branching``). For a :math:`\phi` with slopes :math:`l, r` left and right of zero (ReLU,
    LeakyReLU, the identity), it is not above

    .. math:: |e(x)| \le \tfrac{|r + l|}{2} \Big(\beta \big\|\sum_p \Delta_p a_p\big\|
        + \big|\sum_p \Delta_p b_p\big|\Big) + \tfrac{|r - l|}{2} \max_\pm \sup_x \sum_p \Delta_p^\pm |z_p|

    either, since :math:`\phi(z) = \frac{r + l}{2} z + \frac{r - l}{2} |z|`, with the last factor from
    :func:`largest_absolute_sum`. Beside it stand the triangle inequality with each channel's exact range and the
    Lipschitz bound; the least of all counts.

    Args:
        change: Old weights minus new ones on all channels, ``(J, N)``; pass some rows only to save time.
        producers: The channels' rows, ``(N, d + 1)``, the bias last.
        activation: The activation.
        input_radius: The radius :math:`\beta` of the ball.
        steps: Steps of the descents that tighten the sharp bound, which is valid after any number. After 60 it is
            within 2% of where it ends.
        splits: How often the worst part of the ball is split in two for each row. For a dozen channels 16 splits halve
            what is left to the truth and take ten times as long; for hundreds they gain nothing.
        enough: Rows need not be bounded more tightly than this, which ends their descent earlier.
        sharpen: Whether to compute the sharp bound at all, which is nearly all of the cost.
        products: How many rows at most, the worst first, are bounded once more with products of pairs of channels
            (``product_bound``), where the activation is zero at zero and linear on either side of it (others have no
            such bound). It takes most of what the sharp bound leaves to the truth: on LeNet-300-100 that one is 1.4
            to 1.8 times what an attack finds, this one 1.1 to 1.3 times. It ends sooner once the largest bound is one
            of these, so that ``len(change)`` gives the best for the layer; but a row of 100 channels takes some ten
            seconds, one of 300 minutes and 2 GB. Hence none by default. At most 1000 channels.

    Returns:
        The bounds. Time grows as ``J * N * min(N, d + 1) * steps`` multiplications in float64 and a few factorisations
        of size ``min(N, d + 1)`` for every row and sign: about a fifth of a second for a row of LeNet-300-100's first
        layer, and for thousands of channels a matter of choosing a few rows.

    Raises:
        ValueError: If the shapes do not fit, a number is not finite, the radius is not positive, or there are more than
            1000 channels and ``products``.

    Example:
        >>> from lightning_coreset.coreset import find_activation
        >>> certify(
        ...     torch.tensor([[1.0]]), torch.tensor([[3.0, 4.0, 1.0]]), find_activation("relu"), input_radius=2.0
        ... ).bound
        tensor([11.], dtype=torch.float64)

    """
    delta, P = checked_problem(change, producers, input_radius)
    check_products(products, len(P))
    ball = math.sqrt(input_radius**2 + 1)
    reach, bias = input_radius * P[:, :-1].norm(dim=1), P[:, -1]
    low, high = value_range(activation, bias - reach, bias + reach)
    plus, minus = delta.clamp_min(0), (-delta).clamp_min(0)
    triangle = torch.maximum((plus @ high - minus @ low).abs(), (plus @ low - minus @ high).abs())

    at_zero = float(activation.function(torch.zeros((), dtype=torch.float64)))
    spectral = delta.norm(dim=1) * (activation.lipschitz * spectral_norm(P) * ball) + (delta.sum(dim=1) * at_zero).abs()

    sharp = None
    bound = torch.fmin(triangle, spectral)  # fmin: an infinite Lipschitz constant times no change is NaN
    if sharpen:
        space = Ball.of(input_radius, (P, activation))
        parts = [
            largest_sum(space, some, steps=steps, splits=splits, enough=enough)
            for some in delta.split(max(1, AT_ONCE // (128 * len(P))))
        ]
        sharp = torch.cat(parts)
        above = ~(sharp <= enough)
        if activation.half_slopes is not None and above.any():
            apart = _signs_apart(delta[above], P, activation.half_slopes, input_radius, steps)
            sharp = sharp.masked_scatter(above, torch.minimum(sharp[above], apart))
        bound = torch.fmin(bound, sharp)
    certificate = Certificate(bound=bound, triangle=triangle, spectral=spectral, sharp=sharp)
    return with_products(certificate, delta, P, activation, input_radius, products, enough)


def check_products(products: int, channels: int) -> None:
    """Refuse what memory would not hold.

    Raises:
        ValueError: If there are more channels than products are for.
    """
    if products and channels > MOST_CHANNELS:
        raise ValueError(
            f"Expected at most {MOST_CHANNELS} channels with `products={products}` but got {channels}, which would "
            "take tens of gigabytes. Leave `products` out."
        )


def with_products(
    certificate: Certificate,
    delta: Tensor,
    P: Tensor,
    activation: Activation,
    radius: float,
    rows: int,
    enough: float,
) -> Certificate:
    """With the bound of products for some rows, where the activation has one."""
    if not rows or activation.half_slopes is None:
        return certificate
    ball = Ball.of(radius, (P, activation))
    found = worst_with_products(ball, delta, activation.half_slopes, certificate.bound, rows, enough)
    return replace(certificate, bound=torch.minimum(certificate.bound, found), products=found)


def _signs_apart(delta: Tensor, P: Tensor, slopes: tuple[float, float], radius: float, steps: int) -> Tensor:
    """The linear part and the kinks of either sign, bounded apart, (J,)."""
    left, right = slopes
    linear = radius * (delta @ P[:, :-1]).norm(dim=1) + (delta @ P[:, -1]).abs()
    bound = abs(right + left) / 2 * linear
    if right == left:
        return bound
    kinked = [largest_absolute_sum(part, P, steps=steps) for part in (delta.clamp_min(0), (-delta).clamp_min(0))]
    return bound + abs(right - left) / 2 * math.sqrt(radius**2 + 1) * torch.maximum(*kinked)


def output_radius(producers: Tensor, activation: Activation, *, input_radius: float) -> float:
    r"""A radius that the activations of a layer cannot leave: the input radius of the layer above.

    Args:
        producers: The layer's rows, ``(N, d + 1)``, the bias last.
        activation: The activation after it.
        input_radius: The radius of the layer's own inputs.

    Returns:
        The lesser of :math:`L \|P\|_2 \tilde\beta + |\phi(0)| \sqrt N` and the norm of all channels' largest
        magnitudes.

    Example:
        >>> from lightning_coreset.coreset import find_activation
        >>> round(output_radius(torch.eye(2, 3), find_activation("relu"), input_radius=1.0), 3)
        1.414

    """
    _, P = checked_problem(producers.new_zeros(1, len(producers)), producers, input_radius)
    ball = math.sqrt(input_radius**2 + 1)
    at_zero = abs(float(activation.function(torch.zeros((), dtype=torch.float64))))
    lipschitz = activation.lipschitz * spectral_norm(P) * ball + at_zero * math.sqrt(len(P))
    return min(lipschitz, float(largest_magnitude(activation, P.norm(dim=1) * ball).norm()))


def spectral_norm(P: Tensor) -> float:
    """The largest singular value, or a hair more."""
    square = P @ P.T if P.shape[0] <= P.shape[1] else P.T @ P
    return math.sqrt(max(float(torch.linalg.eigvalsh(square)[-1]), 0.0) * (1 + 1e-9))


def checked_problem(change: Tensor, producers: Tensor, input_radius: float) -> tuple[Tensor, Tensor]:
    """Both in float64.

    Raises:
        ValueError: If the shapes do not fit, a number is not finite, or the radius is not positive.
    """
    if change.ndim != 2 or producers.ndim != 2 or change.shape[1] != len(producers):
        raise ValueError(
            "Expected `change` of shape (J, N) and `producers` of shape (N, d + 1) but got "
            f"{tuple(change.shape)} and {tuple(producers.shape)}."
        )
    if not (math.isfinite(input_radius) and input_radius > 0):
        raise ValueError(f"Expected `input_radius` to be a positive number but got {input_radius}.")
    delta, P = change.detach().double(), producers.detach().double()
    for name, weights in (("change", delta), ("producers", P)):
        if not bool(weights.isfinite().all()):
            raise ValueError(f"Expected finite weights but `{name}` holds NaN or infinity.")
    return delta, P
