r"""How many draws for which error, and which error for how many draws, for the coreset drawn with replacement.

The theorem, for :math:`M` draws with replacement from :math:`pr = s / S`, :math:`S = \sum_p s_p`, signed weights and an
:math:`L`-Lipschitz activation: with probability at least :math:`1 - \delta`, for all :math:`J` output coordinates and
*all* inputs of the ball at once,

.. math:: |e_j(x)| \le \frac{2 V + S \sqrt{2 \ln(2 J / \delta)}}{\sqrt{M}},
    \qquad V^2 = S \sum_p \frac{(w_p L \tilde\beta \|P_p\|)^2}{s_p}, \quad w_p = \max_o \|W_{o,p,:}\|

and :math:`V = S` for ReLU and whenever :math:`s_p = w_p L \tilde\beta \|P_p\|`. Proof: changing one draw moves
:math:`\sup_x \pm e_j(x)` by at most :math:`2 S / M` (McDiarmid); its mean is at most twice the Rademacher average, from
which contraction removes the activation, and what is left is the norm of a random sum of the rows :math:`P_p`, at most
:math:`V \sqrt{M} / (L \tilde\beta)`. A coordinate is one output and one kernel position: the output of a convolution
adds K of them, so its error is at most K times the bound.

Unlike the paper's bound it has explicit constants and no dimension. It is a statement about
:func:`lightning_coreset.coreset.draw_fixed`, one layer, before any fine-tuning, and it is loose: a certificate of the
coreset at hand is much nearer to the truth.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from lightning_coreset.coreset.activations import Activation


def error_bound(
    total_sensitivity: float, draws: int, outputs: int, delta: float, *, complexity: float | None = None
) -> float:
    r"""The error that :math:`M` draws stay below.

    Args:
        total_sensitivity: :math:`S = \sum_p s_p`, from :func:`lightning_coreset.coreset.sensitivities`.
        draws: :math:`M`, counted with repetitions.
        outputs: :math:`J`, the number of output coordinates: outputs times kernel positions.
        delta: The probability :math:`\delta` with which the bound may fail, in (0, 1).
        complexity: :math:`V` from :func:`sampling_complexity`; :math:`S` by default, which is right for ReLU.

    Returns:
        The bound, in units of the consumers' outputs.

    Raises:
        ValueError: If an argument is out of range.

    Example:
        >>> round(error_bound(10.0, 400, 10, 0.05), 3)
        2.731

    """
    _check(total_sensitivity, delta, draws=draws, outputs=outputs)
    return _numerator(total_sensitivity, outputs, delta, complexity) / math.sqrt(draws)


def sample_size(
    total_sensitivity: float, epsilon: float, outputs: int, delta: float, *, complexity: float | None = None
) -> int:
    r"""The number of draws that guarantees an error of at most :math:`\epsilon`: the inverse of :func:`error_bound`.

    Args:
        total_sensitivity: :math:`S = \sum_p s_p`.
        epsilon: The error to guarantee, in units of the consumers' outputs.
        outputs: :math:`J`, the number of output coordinates.
        delta: The probability :math:`\delta` with which the bound may fail, in (0, 1).
        complexity: As in :func:`error_bound`.

    Returns:
        The draws :math:`M`, at least 1. The distinct channels among them can be fewer.

    Raises:
        ValueError: If an argument is out of range.

    Example:
        >>> sample_size(10.0, 2.731, 10, 0.05)
        400

    """
    _check(total_sensitivity, delta, epsilon=epsilon, outputs=outputs)
    return max(1, math.ceil((_numerator(total_sensitivity, outputs, delta, complexity) / epsilon) ** 2))


def sampling_complexity(
    producers: Tensor, consumers: Tensor, activation: Activation, sensitivity: Tensor, *, input_radius: float = 1.0
) -> float:
    r"""The :math:`V` of the theorem, for activations whose sensitivities fall short of Lipschitz constant times radius.

    Args:
        producers: As in :func:`lightning_coreset.coreset.sensitivities`, ``(N, d + 1)``.
        consumers: As there, ``(O, N, K)``.
        activation: As there.
        sensitivity: Its result, ``(N,)``.
        input_radius: As there.

    Returns:
        :math:`V`, equal to the total sensitivity for ReLU; infinite without a Lipschitz constant.

    Example:
        >>> from lightning_coreset.coreset import find_activation, sensitivities
        >>> producers, consumers, relu = torch.eye(2, 3), torch.ones(1, 2, 1), find_activation("relu")
        >>> s = sensitivities(producers, consumers, relu)
        >>> sampling_complexity(producers, consumers, relu, s) / float(s.sum())
        1.0

    """
    norms = torch.linalg.vector_norm(producers, dim=1, dtype=torch.float64) * math.sqrt(input_radius**2 + 1)
    weights = torch.linalg.vector_norm(consumers, dim=2, dtype=torch.float64).amax(dim=0)
    drawn = sensitivity > 0  # a channel of sensitivity zero has no error to bound
    linear = (activation.lipschitz * weights * norms)[drawn]
    return math.sqrt(float(sensitivity.sum() * (linear.square() / sensitivity[drawn]).sum()))


def paper_sample_size(
    total_sensitivity: float, epsilon: float, inputs: int, delta: float, *, constant: float = 1.0
) -> int:
    r"""The paper's sample size :math:`c \frac{t}{\epsilon^2} (d \log t + \log \frac{1}{\delta})`.

    Mussay et al., arXiv 2008.08316, from Braverman, Feldman and Lang (2016). The constant is not stated there, so this
    shows how the size scales and guarantees nothing.

    Args:
        total_sensitivity: The paper's :math:`t`. Below 1 its logarithm is taken as zero.
        epsilon: The error :math:`\epsilon`.
        inputs: The dimension :math:`d` of the producer's input.
        delta: The probability of failure, in (0, 1).
        constant: The unstated :math:`c`.

    Returns:
        The draws, at least 1.

    Raises:
        ValueError: If an argument is out of range.

    Example:
        >>> paper_sample_size(10.0, 0.5, 100, 0.05)
        9331

    """
    _check(total_sensitivity, delta, epsilon=epsilon, inputs=inputs, constant=constant)
    return max(1, math.ceil(_paper_numerator(total_sensitivity, inputs, delta, constant) / epsilon**2))


def paper_error_bound(
    total_sensitivity: float, draws: int, inputs: int, delta: float, *, constant: float = 1.0
) -> float:
    """The error at which :func:`paper_sample_size` asks for ``draws``.

    Args:
        total_sensitivity: As in :func:`paper_sample_size`.
        draws: The number of draws.
        inputs: As in :func:`paper_sample_size`.
        delta: As in :func:`paper_sample_size`.
        constant: As in :func:`paper_sample_size`.

    Returns:
        The error.

    Raises:
        ValueError: If an argument is out of range.

    Example:
        >>> round(paper_error_bound(10.0, 9331, 100, 0.05), 3)
        0.5

    """
    _check(total_sensitivity, delta, draws=draws, inputs=inputs, constant=constant)
    return math.sqrt(_paper_numerator(total_sensitivity, inputs, delta, constant) / draws)


def _numerator(total_sensitivity: float, outputs: int, delta: float, complexity: float | None) -> float:
    spread = total_sensitivity if complexity is None else complexity
    return 2 * spread + total_sensitivity * math.sqrt(2 * math.log(2 * outputs / delta))


def _paper_numerator(total_sensitivity: float, inputs: int, delta: float, constant: float) -> float:
    logarithm = math.log(max(total_sensitivity, 1.0))
    return constant * total_sensitivity * (inputs * logarithm - math.log(delta))


def _check(total_sensitivity: float, delta: float, **positive: float) -> None:
    if not (math.isfinite(total_sensitivity) and total_sensitivity >= 0):
        raise ValueError(f"Expected `total_sensitivity` to be finite and not negative but got {total_sensitivity}.")
    if not 0 < delta < 1:
        raise ValueError(f"Expected `delta` to lie between 0 and 1 but got {delta}.")
    for name, value in positive.items():
        if not value > 0:
            raise ValueError(f"Expected `{name}` to be positive but got {value}.")
