"""What the state of an elimination says of the channels alive is what an inverse of their own block says."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from lightning_coreset.coreset.elimination_state import Solution, costs_of_classes

AMOUNT = 0.05


def problem(channels: int = 24) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    factor = torch.randn(channels, channels, generator=generator, dtype=torch.float64)
    return factor @ factor.T / channels, torch.randn(5, channels, generator=generator, dtype=torch.float64)


def direct(moment: Tensor, consumers: Tensor, alive: Tensor) -> tuple[Tensor, Tensor]:
    """The precision and the coefficients on some channels alone, by the definition."""
    within = moment[alive][:, alive] + AMOUNT * torch.eye(len(alive), dtype=torch.float64)
    precision = torch.linalg.inv(within)
    whole = moment + AMOUNT * torch.eye(len(moment), dtype=torch.float64)
    # W C Q of all channels, downdated: the best weights where the ridge counts on what is dropped as well.
    return precision, (consumers @ (torch.eye(len(moment)) - AMOUNT * torch.linalg.inv(whole)) @ whole)[
        :, alive
    ] @ precision


@pytest.mark.parametrize("goes", [[2, 3, 2], [4, 5, 6], [1] * 20, [13, 4]])
def test_downdates_are_what_an_inverse_says(goes):
    moment, consumers = problem()
    solution, alive = Solution.of(moment, consumers, AMOUNT), torch.arange(24)
    generator = torch.Generator().manual_seed(1)
    for count in goes:
        order = torch.randperm(len(alive), generator=generator)
        dropped, kept = order[:count].sort().values, order[count:].sort().values
        solution, alive = solution.without(dropped, kept), alive[kept]
        precision, coefficients = direct(moment, consumers, alive)
        some = torch.randperm(len(alive), generator=generator)[:3]
        at = solution.at(some)
        assert torch.allclose(solution.diagonal, precision.diagonal())
        assert torch.allclose(solution.coefficients, coefficients)
        assert torch.allclose(at.precision, precision[some][:, some])
        assert torch.allclose(at.squares, (coefficients.T @ coefficients)[some][:, some])
        pairs = torch.arange(len(alive) // 2 * 2).reshape(-1, 2)
        assert torch.allclose(solution.blocks(pairs), precision[pairs[:, :, None], pairs[:, None, :]])
        labels = torch.arange(len(alive)) // 2
        costs = [
            float((coefficients[:, p] @ precision[p][:, p].inverse() @ coefficients[:, p].T).trace()) for p in pairs
        ]
        assert torch.allclose(costs_of_classes(solution, labels)[: len(pairs)], torch.tensor(costs).double())


def test_few_that_are_left_do_not_hold_what_all_took():
    moment, consumers = problem()
    solution = Solution.of(moment, consumers, AMOUNT)
    half = solution.without(torch.arange(8), torch.arange(8, 24))
    assert len(half.precision) == 24
    few = half.without(torch.arange(8), torch.arange(8, 16))
    assert len(few.precision) == 8
    assert len(few.rows) == 0
