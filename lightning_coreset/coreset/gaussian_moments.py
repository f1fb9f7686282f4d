r"""Second moments of activations under a Gaussian, in closed form: the Gram matrix that reconstruction minimises.

Shapes: N channels, d inputs of their producer, C input channels with T positions each (d = C T for a convolution).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_coreset.coreset.activations import Activation
from lightning_coreset.coreset.hermite import hermite_coefficients

# Matrices of up to this many channels are computed in float64, larger ones in float32 for time and memory.
_FLOAT64_CHANNELS = 2048


def matrix_dtype(channels: int) -> torch.dtype:
    """The dtype in which matrices over this many channels are computed: float64 up to 2048, float32 above."""
    return torch.float64 if channels <= _FLOAT64_CHANNELS else torch.float32


@dataclass(frozen=True, eq=False)
class Gaussian:
    r"""The distribution :math:`z \sim N(m, \mathrm{diag}(s) R \, \mathrm{diag}(s))` of the pre-activations.

    Attributes:
        mean: The means :math:`m`, float64 ``(N,)``.
        scale: The standard deviations :math:`s`, float64 ``(N,)``.
        correlation: The correlations :math:`R`, ``(N, N)``, float64 up to N = 2048 and float32 above.
    """

    mean: Tensor
    scale: Tensor
    correlation: Tensor


@dataclass(frozen=True, eq=False)
class Moments:
    r"""The first two moments of the activations :math:`h = \phi(z)`.

    Attributes:
        mean: :math:`\mu = E[h]`, float64 ``(N,)``.
        second: :math:`K = E[h h^T]`, uncentred, ``(N, N)``.
    """

    mean: Tensor
    second: Tensor

    @property
    def covariance(self) -> Tensor:
        r"""The centred :math:`C = K - \mu \mu^T`."""
        mean = self.mean.to(self.second.dtype)
        return torch.addr(self.second, mean, mean, alpha=-1)


def activation_moments(activation: Activation, gaussian: Gaussian, *, terms: int = 13) -> Moments:
    r"""The moments :math:`E[\phi(z_p) \phi(z_q)]` by Mehler's expansion.

    .. math:: K = \sum_{k \le n} a_k a_k^T \circ R^{\circ k} + t t^T \circ R^{\circ (n + 1)},
        \qquad t^2 = E[\phi^2] - \sum_{k \le n} a_k^2

    with the Hermite coefficients :math:`a_k` of :math:`\phi(m_p + s_p g)`. Every term is positive semi-definite when
    :math:`R` is, and the diagonal is exact whatever the number of terms.

    Args:
        activation: The function :math:`\phi`.
        gaussian: The distribution of the pre-activations.
        terms: The highest power :math:`n` before the remainder. At 13 ReLU is within 7e-5 of the arc-cosine kernel.

    Returns:
        The moments, the matrix in the dtype of ``gaussian.correlation``.

    Example:
        >>> from lightning_coreset.coreset import find_activation
        >>> gaussian = linear_preactivations(torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]]))
        >>> activation_moments(find_activation("relu"), gaussian).second * 2 * torch.pi
        tensor([[3.1416, 1.0000],
                [1.0000, 3.1416]], dtype=torch.float64)

    """
    a, second = hermite_coefficients(activation, gaussian.mean, gaussian.scale, terms)
    remainder = (second - a.square().sum(dim=0)).clamp_min(0).sqrt()
    R = gaussian.correlation
    # Horner's scheme: one N x N buffer, two passes a term.
    columns = [remainder, *a.flip(0)]
    K = torch.zeros_like(R)
    for column in columns:
        K.mul_(R).addr_(column.to(R.dtype), column.to(R.dtype))
    return Moments(mean=a[0], second=K)


def linear_preactivations(
    producers: Tensor,
    mean: Tensor | None = None,
    covariance: float | Tensor | tuple[Tensor, Tensor] = 1.0,
) -> Gaussian:
    r"""The distribution of :math:`z = A x + b` for an input :math:`x` with the given mean and covariance.

    Args:
        producers: The rows ``(N, d + 1)`` of :math:`A` with :math:`b` last.
        mean: The input's mean, ``(d,)``, or ``(C,)`` for the same mean at all ``d / C`` positions; zero by default.
        covariance: The input's covariance: one variance for all, a matrix ``(d, d)``, or a pair of a channel
            covariance ``(C, C)`` and a spatial correlation ``(T, T)`` whose Kronecker product it is (never formed).

    Returns:
        The distribution of the pre-activations.

    Raises:
        ValueError: If the shapes do not fit.

    Example:
        >>> gaussian = linear_preactivations(torch.tensor([[3.0, 4.0, 1.0]]), torch.tensor([1.0, 0.0]), 4.0)
        >>> gaussian.mean, gaussian.scale
        (tensor([4.], dtype=torch.float64), tensor([10.], dtype=torch.float64))

    """
    weights, bias = producers[:, :-1], producers[:, -1].double()
    centre = bias
    if mean is not None:
        centre = bias + weights.double() @ _over_positions(mean.double(), weights.shape[1])
    scale, correlation = _normalised(_covariance(weights.to(matrix_dtype(len(producers))), covariance))
    return Gaussian(mean=centre, scale=scale, correlation=correlation)


def batchnorm_preactivations(
    producers: Tensor,
    shift: Tensor,
    scale: Tensor,
    covariance: float | Tensor | tuple[Tensor, Tensor] = 1.0,
) -> Gaussian:
    r"""The distribution that a BatchNorm leaves in the model: mean :math:`\beta_p`, deviation :math:`|\gamma_p|`.

    Args:
        producers: The rows ``(N, d + 1)`` with the BatchNorm folded in. Only their directions count.
        shift: The BatchNorm's bias :math:`\beta`, ``(N,)``.
        scale: The BatchNorm's weight :math:`\gamma`, ``(N,)``; its sign is in the folded rows already.
        covariance: The input's covariance as in :func:`linear_preactivations`.

    Returns:
        The distribution of the pre-activations.

    Example:
        >>> folded = torch.tensor([[2.0, 0.0, 0.1], [-0.5, 0.0, 0.2]])
        >>> gaussian = batchnorm_preactivations(folded, torch.tensor([0.1, 0.2]), torch.tensor([1.5, -0.7]))
        >>> gaussian.scale, gaussian.correlation[0, 1]
        (tensor([1.5000, 0.7000], dtype=torch.float64), tensor(-1., dtype=torch.float64))

    """
    weights = producers[:, :-1].to(matrix_dtype(len(producers)))
    correlation = _normalised(_covariance(weights, covariance))[1]
    return Gaussian(mean=shift.double(), scale=scale.double().abs(), correlation=correlation)


def spatial_correlation(kernel_size: tuple[int, ...], decay: float) -> Tensor:
    r"""The correlations :math:`\rho^{\|k - l\|_2}` between the positions of a kernel.

    Args:
        kernel_size: The kernel's size in each dimension.
        decay: The correlation :math:`\rho` of neighbours: 0.8 suits input patches, 0.7 the variance repair.

    Returns:
        The correlations, float64 ``(T, T)``, positions in row-major order as in a flattened kernel.

    Example:
        >>> spatial_correlation((3,), 0.5)
        tensor([[1.0000, 0.5000, 0.2500],
                [0.5000, 1.0000, 0.5000],
                [0.2500, 0.5000, 1.0000]], dtype=torch.float64)

    """
    axes = [torch.arange(size, dtype=torch.float64) for size in kernel_size]
    grid = torch.stack([axis.flatten() for axis in torch.meshgrid(*axes, indexing="ij")], dim=1)
    distance = (grid[:, None] - grid[None]).square().sum(dim=2).sqrt()
    return decay**distance


def _over_positions(mean: Tensor, inputs: int) -> Tensor:
    if len(mean) == 0 or inputs % len(mean):
        raise ValueError(
            f"Expected a mean for {inputs} inputs, or one for each of their channels, but got {len(mean)}."
        )
    return mean.repeat_interleave(inputs // len(mean))


def _covariance(weights: Tensor, covariance: float | Tensor | tuple[Tensor, Tensor]) -> Tensor:
    if isinstance(covariance, tuple):
        channels, positions = (part.to(weights) for part in covariance)
        if weights.shape[1] != len(channels) * len(positions):
            raise ValueError(
                f"Expected channels times positions to be {weights.shape[1]} inputs but got "
                f"{len(channels)} times {len(positions)}."
            )
        patches = weights.view(len(weights), len(channels), len(positions))
        return torch.einsum("nct,ce,tu->neu", patches, channels, positions).flatten(1) @ weights.T
    if isinstance(covariance, Tensor):
        if covariance.shape != (weights.shape[1], weights.shape[1]):
            raise ValueError(f"Expected a covariance of {weights.shape[1]} inputs but got {tuple(covariance.shape)}.")
        return weights @ covariance.to(weights) @ weights.T
    return covariance * (weights @ weights.T)


def _normalised(covariance: Tensor) -> tuple[Tensor, Tensor]:
    scale = covariance.diagonal().clamp_min(0).sqrt()
    # A channel with no incoming weights has no direction: correlation zero with all others.
    inverse = torch.where(scale > 0, 1 / scale, 0.0)
    correlation = (covariance * inverse[:, None] * inverse).clamp_(-1, 1)
    correlation = (correlation + correlation.T).div_(2)  # a matrix product is symmetric only up to rounding
    correlation.fill_diagonal_(1)
    return scale.double(), correlation
