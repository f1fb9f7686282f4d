r"""The theorem of ``sampling_bounds`` with the layer's own numbers in place of the worst: far fewer draws, no data.

A draw of channel :math:`p` contributes :math:`X_p(x) = \frac{S}{s_p} W_{jp} h_p(x)` to coordinate :math:`j`, with
:math:`h_p = a_p \phi(A_p x + b_p) + t_p`; the error is :math:`e_j = E X - \frac1M \sum_i X_{p_i}`. Each coordinate and
each sign :math:`F = \sup_x \pm e_j(x)` gets numbers of its own:

1. *Mean.* With :math:`\phi(z) = \kappa z + \psi(z)` and :math:`\psi` :math:`\rho`-Lipschitz, :math:`E F \le m_j / \sqrt
   M` for :math:`m_j = |\kappa| V'_j + 2 \rho V_j`,

   .. math:: V_j^2 = S \sum_p \frac{(W_{jp} a_p \beta \|A_p\|)^2}{s_p}, \qquad
       V_j'^2 = V_j^2 - \Big\| \beta \sum_p W_{jp} a_p A_p \Big\|^2 .

   Only the nonlinear part needs symmetrisation, with its factor 2, and the contraction principle; what is left of it is
   the supremum over x of :math:`\sum_i \sigma_i c_i (A_i x + b_i)`, whose constant has mean zero: a norm of a sum with
   random signs, so at most the root of the sum of squares. The linear part is such a norm as it stands, of centred
   vectors. For ReLU :math:`\kappa = \rho = \frac12`.
2. *McDiarmid* with the coordinate's own range: exchanging a draw moves F by at most :math:`R_j / M`, where all
   :math:`X_p(x)` lie in an interval of length :math:`R_j \le 2 S`. So
   :math:`P(F \ge E F + g) \le e^{-2 M g^2 / R_j^2}`.
3. *Bousquet* (2002, theorem 2.3), the inequality of Talagrand with explicit constants: terms that are never above
   :math:`b_j`, whose variance is at no x above :math:`\sigma_j^2`, have
   :math:`P(F \ge E F + \sqrt{2 t (\sigma_j^2 + 2 b_j E F) / M} + b_j t / (3 M)) \le e^{-t}`. For all :math:`x`

   .. math:: \sigma_j \le \mathrm{std}_p X_p(0) + \beta L \, \lambda_{\max}\Big(
       \sum_p \tfrac{S}{s_p} (W_{jp} a_p)^2 A_p A_p^T \Big)^{1/2},

   since :math:`X_p(x)` is within :math:`\frac{S}{s_p} |W_{jp} a_p| L |A_p x|` of :math:`X_p(0)`; or the mean square of
   the largest magnitudes, or :math:`R_j / 2`.

The lesser probability counts, and those of all coordinates and signs are added up: that is the union bound with the
best division of :math:`\delta` among them. It falls in M, so that the least M is found by bisection. The theorem is a
valid bound, too, and the lesser number of draws counts.
"""

from __future__ import annotations

import math

import torch

from lightning_coreset.coreset.draw_law import DrawLaw
from lightning_coreset.coreset.sampling_bounds import error_bound, sample_size

_NEVER = 2**62


def failure_probability(law: DrawLaw, draws: float, epsilon: float) -> float:
    r"""A bound on the probability that any coordinate errs by more than :math:`\epsilon` for any input of the ball.

    Args:
        law: From :func:`draw_law`.
        draws: M.
        epsilon: The error, in the units of the consumer's outputs.

    Returns:
        The sum over coordinates and signs of the lesser of McDiarmid's and Bousquet's probability, at most 1.

    """
    mean = law.mean / math.sqrt(draws)
    gap = epsilon - mean
    bounded = torch.exp(-2 * draws * (gap / law.spread).square())
    # The root u of b u^2 / 3 + (2 v)^(1/2) u = gap, where M u^2 is Bousquet's t.
    twice = 2 * (law.deviation.square() + 2 * law.above * mean)
    root = 2 * gap / (twice.sqrt() + (twice + 4 * law.above * gap.clamp_min(0) / 3).sqrt())
    sharp = torch.exp(-draws * root.square())
    each = torch.where(gap > 0, torch.fmin(bounded, sharp).nan_to_num(1.0), 1.0)
    return min(1.0, float(each.sum()) * (1 + 1e-9))


def refined_sample_size(law: DrawLaw, epsilon: float, delta: float) -> int:
    r"""The number of draws that guarantees an error of at most :math:`\epsilon`; never more than the theorem's.

    Args:
        law: From :func:`draw_law`.
        epsilon: The error to guarantee, in units of the consumers' outputs.
        delta: The probability :math:`\delta` with which the bound may fail, in (0, 1).

    Returns:
        The draws M, at least 1; ``2**62`` where no number of draws is known to do.

    Raises:
        ValueError: If an argument is out of range.

    Example:
        >>> from lightning_coreset.coreset import draw_law, find_activation, sensitivities
        >>> producers, consumers, relu = torch.eye(2, 3), torch.ones(1, 2), find_activation("relu")
        >>> law = draw_law(producers, consumers, relu, sensitivities(producers, consumers[..., None], relu))
        >>> refined_sample_size(law, 0.5, 0.05), sample_size(law.total, 0.5, 1, 0.05)
        (118, 712)

    """
    low, high = 0, _NEVER
    if math.isfinite(law.complexity):
        high = sample_size(law.total, epsilon, len(law.mean), delta, complexity=law.complexity)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if failure_probability(law, middle, epsilon) <= delta else (middle, high)
    return high


def refined_error_bound(law: DrawLaw, draws: int, delta: float) -> float:
    r"""The error that :math:`M` draws stay below: the inverse of :func:`refined_sample_size`.

    Args:
        law: From :func:`draw_law`.
        draws: M, counted with repetitions.
        delta: The probability :math:`\delta` with which the bound may fail, in (0, 1).

    Returns:
        The bound, in units of the consumers' outputs, never above the theorem's.

    Raises:
        ValueError: If an argument is out of range.

    Example:
        >>> from lightning_coreset.coreset import draw_law, find_activation, sensitivities
        >>> producers, consumers, relu = torch.eye(2, 3), torch.ones(1, 2), find_activation("relu")
        >>> law = draw_law(producers, consumers, relu, sensitivities(producers, consumers[..., None], relu))
        >>> error_bound(law.total, 100, 1, 0.05) / refined_error_bound(law, 100, 0.05) > 2
        True

    """
    low, high = 0.0, error_bound(law.total, draws, len(law.mean), delta, complexity=law.complexity)
    if not math.isfinite(high):
        high = float((law.mean / math.sqrt(draws) + law.spread).max())  # no error is larger than the spread
    while high - low > 1e-9 * high:
        middle = (low + high) / 2
        low, high = (low, middle) if failure_probability(law, draws, middle) <= delta else (middle, high)
    return high
