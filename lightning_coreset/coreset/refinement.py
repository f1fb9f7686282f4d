r"""Producers that move: kept rows within the span of all rows, so that their activations replace the others best.

With pre-activations :math:`z \sim N(m, C)` of all N channels, the kept ones become :math:`z' = B z + t`. The expected
squared error of the consumers' outputs, with the best consumers :math:`U` for every :math:`B` and :math:`t`, is

.. math:: \mathrm{tr}(W K_{hh} W^T) - \mathrm{tr}(W K_{hh'} (K_{h'h'} + \lambda I)^{-1} K_{h'h} W^T)

in the moments of :math:`h = \phi(z)` and :math:`h' = \phi(z')`, which Mehler's expansion gives in closed form and
differentiably. Model folding (Wang et al., ICLR 2025), which averages rows, is a special case of B.

Shapes: N channels, m kept, J rows of the consumers.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from lightning_coreset.coreset.activations import Activation
from lightning_coreset.coreset.elimination import regularisation
from lightning_coreset.coreset.hermite import hermite_coefficients
from lightning_coreset.coreset.precision import compress_rows

_TERMS = 13
_AT_ONCE = 2**14
"""Entries of a matrix all of whose powers are computed together."""
_ENOUGH = 1e-5
"""Part of the consumers' energy below which a step of L-BFGS is the last."""
_TINY = 1e-12


@dataclass(frozen=True, eq=False)
class Refinement:
    """Where the kept producers moved.

    Attributes:
        combination: :math:`B`, float64 ``(m, N)``.
        shift: :math:`t`, float64 ``(m,)``.
        mix: The best replacement of the old activations, ``h ~ mix @ h'`` around the means, float64 ``(N, m)``.
        means: The means of :math:`h` and of :math:`h'`, float64 ``(N,)`` and ``(m,)``.
        moment: The moments of :math:`h'`, centred or not as asked for, float64 ``(m, m)``.
        error: The expected squared error of the consumers' outputs.
        error_before: The same if the rows had stayed.
    """

    combination: Tensor
    shift: Tensor
    mix: Tensor
    means: tuple[Tensor, Tensor]
    moment: Tensor
    error: float
    error_before: float


def refine_producers(
    activation: Activation,
    mean: Tensor,
    covariance: Tensor,
    consumers: Tensor,
    kept: Tensor,
    *,
    centred: bool,
    steps: int = 40,
    ridge: float = 1e-3,
) -> Refinement:
    r"""Move the kept rows to where the expected error is least; deterministic, by L-BFGS from the rows as they are.

    Args:
        activation: :math:`\phi`.
        mean: :math:`m`, ``(N,)``.
        covariance: :math:`C` of the pre-activations, ``(N, N)``.
        consumers: The consumers' weights, ``(J, N)``.
        kept: The channels that stay, ``(m,)``.
        centred: Whether the consumers can take a constant, so that errors count around the mean.
        steps: Of L-BFGS. After 40 the error has fallen by 30 to 75%; more gains little.
        ridge: :math:`\lambda` as a part of the mean diagonal of the moments.

    Returns:
        The refinement; with the rows as they were if no step helps.

    Example:
        Two rows that are nearly equal: their mean, which is nearly as large as one of them, stands for both.

        >>> from lightning_coreset.coreset import find_activation
        >>> covariance = torch.tensor([[1.0, 0.9], [0.9, 1.0]])
        >>> found = refine_producers(
        ...     find_activation("relu"), torch.zeros(2), covariance, torch.ones(1, 2), torch.tensor([0]), centred=True
        ... )
        >>> found.error < 0.1 * found.error_before, found.combination.round(decimals=1)
        (True, tensor([[0.5000, 0.5000]], dtype=torch.float64))

    """
    with torch.inference_mode(False), torch.no_grad():
        # Copies, since tensors of inference mode cannot be differentiated through.
        mean, covariance, consumers = (one.detach().clone().double() for one in (mean, covariance, consumers))
        problem = _Problem(activation, mean, covariance, compress_rows(consumers), kept.clone(), centred, ridge)
        with torch.enable_grad():
            combination, shift = problem.minimised(steps)
        return problem.result(combination, shift)


@dataclass(frozen=True, eq=False)
class _Problem:
    activation: Activation
    mean: Tensor
    covariance: Tensor
    consumers: Tensor
    kept: Tensor
    centred: bool
    ridge: float

    @cached_property
    def scale(self) -> Tensor:
        """The deviations of the pre-activations, (N,)."""
        return self.covariance.diagonal().clamp_min(_TINY).sqrt()

    @cached_property
    def expansion(self) -> tuple[Tensor, Tensor]:
        """That of the channels as they are."""
        return _expanded(self.activation, self.mean, self.scale)

    @cached_property
    def energy(self) -> float:
        """The expected square of the consumers' outputs."""
        moment = _moments(*self.expansion, _correlation(self.covariance, self.scale, self.scale), *self.expansion)
        if self.centred:
            moment = moment - torch.outer(self.expansion[0][0], self.expansion[0][0])
        return float(((self.consumers @ moment) * self.consumers).sum())

    @cached_property
    def start(self) -> Tensor:
        """The rows as they are."""
        start = torch.zeros(len(self.kept), len(self.mean), dtype=torch.float64)
        start[torch.arange(len(self.kept)), self.kept] = 1.0
        return start

    def minimised(self, steps: int) -> tuple[Tensor, Tensor]:
        """The best combination and shift that L-BFGS finds."""
        own = self.scale[self.kept]
        # In units of the channels' deviations, in which all entries matter alike.
        moved = torch.zeros_like(self.start).requires_grad_()
        shifted = torch.zeros_like(own).requires_grad_()
        best: tuple[float, Tensor, Tensor] = (float("inf"), self.start, torch.zeros_like(own))
        optimizer = torch.optim.LBFGS(
            [moved, shifted], max_iter=steps, history_size=15, line_search_fn="strong_wolfe", tolerance_change=_ENOUGH
        )

        def closure() -> Tensor:
            nonlocal best
            optimizer.zero_grad()
            combination, shift = self.start + moved / self.scale * own[:, None], shifted * own
            error = self._error(combination, shift)
            if float(error.detach()) < best[0]:
                best = (float(error.detach()), combination.detach(), shift.detach())
            (error / self.energy).backward()
            return error / self.energy

        if steps > 0 and self.energy > 0:
            optimizer.step(closure)
        return best[1], best[2]

    def result(self, combination: Tensor, shift: Tensor) -> Refinement:
        if self.activation.half_slopes is not None:  # its size is free, and steps may have taken it anywhere
            new = ((combination @ self.covariance) * combination).sum(dim=1).clamp_min(_TINY).sqrt()
            factor = self.scale[self.kept] / new
            combination, shift = factor[:, None] * combination, factor * shift
        across, within, mean = self._new_moments(combination, shift)
        return Refinement(
            combination=combination,
            shift=shift,
            mix=torch.linalg.solve(self._shifted(within), across.T).T,
            means=(self.expansion[0][0], mean),
            moment=within,
            error=float(self._error(combination, shift)),
            error_before=float(self._error(self.start, torch.zeros_like(shift))),
        )

    def _error(self, combination: Tensor, shift: Tensor) -> Tensor:
        across, within, _ = self._new_moments(combination, shift)
        seen = self.consumers @ across
        return self.energy - (torch.linalg.solve(self._shifted(within), seen.T).T * seen).sum()

    def _shifted(self, within: Tensor) -> Tensor:
        eye = torch.eye(len(within), dtype=within.dtype)
        return within + regularisation(within.detach(), self.ridge) * eye

    def _new_moments(self, combination: Tensor, shift: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The moments of old with new activations, and of new ones with each other, and the new means."""
        between = combination @ self.covariance
        new_covariance = between @ combination.T
        new_scale = new_covariance.diagonal().clamp_min(_TINY).sqrt()
        coefficients, remainder = _expanded(self.activation, combination @ self.mean + shift, new_scale)
        first = 1 if self.centred else 0
        across = _moments(
            *self.expansion, _correlation(between.T, self.scale, new_scale), coefficients, remainder, first
        )
        within = _moments(
            coefficients, remainder, _correlation(new_covariance, new_scale, new_scale), coefficients, remainder, first
        )
        return across, within, coefficients[0]


def _expanded(activation: Activation, mean: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
    """Hermite coefficients, and the root of what they leave of the second moment."""
    coefficients, second = hermite_coefficients(activation, mean, scale, _TERMS)
    return coefficients, (second - coefficients.square().sum(dim=0)).clamp_min(1e-18).sqrt()


def _correlation(covariance: Tensor, scale: Tensor, other: Tensor) -> Tensor:
    return (covariance / scale[:, None] / other).clamp(-1, 1)


def _moments(
    left: Tensor, left_rest: Tensor, correlation: Tensor, right: Tensor, right_rest: Tensor, first: int = 0
) -> Tensor:
    """Mehler's expansion between two sets of channels, from one power on: 1 for centred moments."""
    left, right = torch.cat([left[first:], left_rest[None]]), torch.cat([right[first:], right_rest[None]])
    if correlation.numel() <= _AT_ONCE:  # few operators: for small matrices they are what takes time
        exponents = torch.arange(first, first + len(left))
        powers = correlation ** exponents[:, None, None]
        return torch.einsum("kn,km,knm->nm", left, right, powers)
    total = torch.outer(left[-1], right[-1])
    for k in range(len(left) - 2, -1, -1):
        total = torch.addcmul(torch.outer(left[k], right[k]), total, correlation)
    return total * correlation if first else total
