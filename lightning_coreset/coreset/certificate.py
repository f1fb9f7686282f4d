r"""Worst-case errors of the coreset at hand, bracketed: a proven bound above, the worst input found below.

Both are about :math:`e_j(x) = \sum_p \Delta_{jp} \phi(P_p \cdot (x, 1))` over *all* inputs with
:math:`\|x\| \le \beta`, adversarial ones included, where :math:`\Delta` is old weights minus new ones. Their limits:
one layer at a time, before fine-tuning, and for deeper layers the radius is itself a bound (:func:`output_radius`,
loose) or a measured number, which makes the result a statement about inputs of that size only.

Shapes: J rows of the consumers, N channels, d inputs.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_coreset.coreset.absolute_sum import largest_absolute_sum
from lightning_coreset.coreset.activations import Activation, largest_magnitude, value_range

# Rows times channels (or inputs) handled at once: 2^22 numbers of float64 are 32 MB.
_BATCH = 2**22


@dataclass(frozen=True, eq=False)
class Certificate:
    r"""Proven bounds on :math:`\sup_x |e_j(x)|`, each valid on its own.

    Attributes:
        bound: The least of the others, float64 ``(J,)``.
        triangle: Each channel at the end of its own range, ``(J,)``.
        spectral: :math:`\|\Delta_j\| L \|P\|_2 \tilde\beta` plus the constant part, ``(J,)``.
        sharp: The bound by the relaxation of signs, ``(J,)``; ``None`` unless it was asked for and the
            activation is linear on either side of zero.
    """

    bound: Tensor
    triangle: Tensor
    spectral: Tensor
    sharp: Tensor | None


def certify(
    change: Tensor,
    producers: Tensor,
    activation: Activation,
    *,
    input_radius: float,
    steps: int = 30,
    sharpen: bool = True,
) -> Certificate:
    r"""Bound the error of any coreset over the whole ball of inputs.

    For a :math:`\phi` with slopes :math:`l, r` left and right of zero (ReLU, LeakyReLU, the identity)

    .. math:: |e(x)| \le \tfrac{|r + l|}{2} \Big(\beta \big\|\sum_p \Delta_p a_p\big\|
        + \big|\sum_p \Delta_p b_p\big|\Big) + \tfrac{|r - l|}{2} \max_\pm \sup_x \sum_p \Delta_p^\pm |z_p|

    because :math:`\phi(z) = \frac{r + l}{2} z + \frac{r - l}{2} |z|`; the last factor comes from
    :func:`largest_absolute_sum`. Beside it stand the triangle inequality with each channel's exact range, which any
    activation has, and the Lipschitz bound; the least of all three counts.

    Args:
        change: Old weights minus new ones on all channels, ``(J, N)``; pass some rows only to save time.
        producers: The channels' rows, ``(N, d + 1)``, the bias last.
        activation: The activation.
        input_radius: The radius :math:`\beta` of the ball.
        steps: Steps of the descent that tightens the sharp bound; the bound is valid after any number.
        sharpen: Whether to compute the sharp bound at all, which is nearly all of the cost.

    Returns:
        The bounds. Time grows as ``J * N * min(N, d + 1) * steps`` multiplications in float64 and a Cholesky
        factorisation of size ``min(N, d + 1)`` for every row and sign: seconds for LeNet-300-100, and for thousands of
        channels a matter of choosing a few rows.

    Raises:
        ValueError: If the shapes do not fit, a number is not finite, or the radius is not positive.

    Example:
        >>> from lightning_coreset.coreset import find_activation
        >>> certify(
        ...     torch.tensor([[1.0]]), torch.tensor([[3.0, 4.0, 1.0]]), find_activation("relu"), input_radius=2.0
        ... ).bound
        tensor([11.], dtype=torch.float64)

    """
    delta, P = _checked(change, producers, input_radius)
    ball = math.sqrt(input_radius**2 + 1)
    reach, bias = input_radius * P[:, :-1].norm(dim=1), P[:, -1]
    low, high = value_range(activation, bias - reach, bias + reach)
    plus, minus = delta.clamp_min(0), (-delta).clamp_min(0)
    triangle = torch.maximum((plus @ high - minus @ low).abs(), (plus @ low - minus @ high).abs())

    at_zero = float(activation.function(torch.zeros((), dtype=torch.float64)))
    spectral = (
        delta.norm(dim=1) * (activation.lipschitz * _spectral_norm(P) * ball) + (delta.sum(dim=1) * at_zero).abs()
    )

    sharp = None
    bound = torch.fmin(triangle, spectral)  # fmin: an infinite Lipschitz constant times no change is NaN
    if sharpen and activation.half_slopes is not None:
        left, right = activation.half_slopes
        linear = input_radius * (delta @ P[:, :-1]).norm(dim=1) + (delta @ bias).abs()
        sharp = abs(right + left) / 2 * linear
        if right != left:
            kinked = [ball * largest_absolute_sum(part, P, steps=steps) for part in (plus, minus)]
            sharp = sharp + abs(right - left) / 2 * torch.maximum(*kinked)
        bound = torch.fmin(bound, sharp)
    return Certificate(bound=bound, triangle=triangle, spectral=spectral, sharp=sharp)


def largest_found_error(
    change: Tensor,
    producers: Tensor,
    activation: Activation,
    *,
    input_radius: float,
    generator: torch.Generator,
    starts: int = 16,
    steps: int = 60,
) -> Tensor:
    r"""The largest :math:`|e_j(x)|` that ascent over the ball finds from many starts: a lower bound on the truth.

    Steps of Frank and Wolfe: towards the end of the ball in the direction of the gradient. Half of the starts are kept
    on the sphere, where the largest error of a ReLU layer mostly lies, the others may end inside.

    Args:
        change: As in :func:`certify`, ``(J, N)``.
        producers: As there, ``(N, d + 1)``.
        activation: As there.
        input_radius: As there.
        generator: The source of the random starts, on the CPU.
        starts: Starting points for each row and sign, besides the gradient of the linear part.
        steps: Steps from each.

    Returns:
        The errors found, float64 ``(J,)``: the value at an input of the ball, whatever the quality of the ascent.

    Raises:
        ValueError: As in :func:`certify`.

    Example:
        >>> from lightning_coreset.coreset import find_activation
        >>> change, producers = torch.tensor([[1.0]]), torch.tensor([[3.0, 4.0, 1.0]])
        >>> relu, generator = find_activation("relu"), torch.Generator().manual_seed(0)
        >>> found = largest_found_error(change, producers, relu, input_radius=2.0, generator=generator)
        >>> found.round(decimals=6)
        tensor([11.], dtype=torch.float64)

    """
    delta, P = _checked(change, producers, input_radius)
    A = P[:, :-1]
    directions = torch.randn(starts, A.shape[1], generator=generator, dtype=torch.float64).to(A.device)
    rows = max(1, _BATCH // ((starts + 1) * max(A.shape)))
    found = []
    for part in delta.split(rows):
        for signed in (part, -part):
            first = torch.cat([(signed @ A)[:, None], directions.expand(len(part), -1, -1)], dim=1)
            found.append(_ascend(signed, A, P[:, -1], activation, input_radius * _unit(first), input_radius, steps))
    both = torch.stack([torch.cat(found[0::2]), torch.cat(found[1::2])])
    return both.amax(dim=0).clamp_min(0)


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
    _, P = _checked(producers.new_zeros(1, len(producers)), producers, input_radius)
    ball = math.sqrt(input_radius**2 + 1)
    at_zero = abs(float(activation.function(torch.zeros((), dtype=torch.float64))))
    lipschitz = activation.lipschitz * _spectral_norm(P) * ball + at_zero * math.sqrt(len(P))
    return min(lipschitz, float(largest_magnitude(activation, P.norm(dim=1) * ball).norm()))


def _ascend(
    delta: Tensor, A: Tensor, bias: Tensor, activation: Activation, X: Tensor, radius: float, steps: int
) -> Tensor:
    """Maximise ``delta @ phi(A x + bias)`` for each row from its own starts ``(rows, starts, d)``."""
    best = torch.full((len(delta),), -torch.inf, dtype=torch.float64, device=delta.device)
    on_sphere = (torch.arange(X.shape[1], device=X.device) % 2 == 0)[:, None]
    step = 1e-6
    for i in range(steps + 1):
        z = X @ A.T + bias
        best = torch.maximum(best, torch.einsum("jn,jsn->js", delta, activation.function(z)).amax(dim=1))
        # A central difference gives the slope of any activation and needs no autograd, which inference mode forbids.
        slope = (activation.function(z + step) - activation.function(z - step)) / (2 * step)
        target = radius * _unit((slope * delta[:, None]) @ A)
        length = 1.0 if i < 6 else 2 / (2 + 0.3 * i)
        X = (1 - length) * X + length * target
        X = torch.where(on_sphere, radius * _unit(X), X)
    return best


def _unit(vectors: Tensor) -> Tensor:
    # A hair inside, so that rounding does not carry a point out of the ball and its error over the certificate.
    return vectors / vectors.norm(dim=-1, keepdim=True).clamp_min(1e-300) * (1 - 1e-12)


def _spectral_norm(P: Tensor) -> float:
    square = P @ P.T if P.shape[0] <= P.shape[1] else P.T @ P
    return math.sqrt(max(float(torch.linalg.eigvalsh(square)[-1]), 0.0) * (1 + 1e-9))


def _checked(change: Tensor, producers: Tensor, input_radius: float) -> tuple[Tensor, Tensor]:
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
