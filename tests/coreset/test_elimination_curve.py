"""The cost of every number of channels from one elimination, against its definition in float64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from lightning_coreset.coreset import eliminate, elimination_curve


def problem(channels: int, inputs: int = 12, outputs: int = 10) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(channels, inputs, generator=generator, dtype=torch.float64)
    moment = features @ features.T / inputs + 0.3 * torch.eye(channels, dtype=torch.float64)
    return moment, torch.randn(outputs, channels, generator=generator, dtype=torch.float64)


def regularised_error(moment: Tensor, consumers: Tensor, kept: Tensor, ridge: float) -> float:
    """tr(W C W^T) less what the kept channels explain of it."""
    within = moment[kept][:, kept] + ridge * moment.diagonal().mean() * torch.eye(len(kept), dtype=torch.float64)
    across = consumers @ moment[:, kept]
    return float(torch.trace(consumers @ moment @ consumers.T - across @ torch.linalg.solve(within, across.T)))


@pytest.mark.parametrize("ridge", [1e-6, 1e-3])
@pytest.mark.parametrize(("channels", "outputs"), [(12, 3), (12, 30), (60, 10)])
def test_the_curve_is_what_the_channels_left_cannot_explain(channels, outputs, ridge):
    moment, consumers = problem(channels, outputs=outputs)
    whole = regularised_error(moment, consumers, torch.arange(channels), ridge)
    curve = elimination_curve(moment, consumers, ridge=ridge)
    assert curve.shape == (channels,)
    assert curve[0] == 0
    for size in range(1, channels):
        kept = eliminate(moment, consumers, size, rounds=channels, ridge=ridge)
        expected = regularised_error(moment, consumers, kept, ridge) - whole
        assert float(curve[channels - size]) == pytest.approx(expected, rel=0.03, abs=1e-9)


def test_small_rounds_are_exact():
    """Where every round drops one channel, curve and selection go the same way."""
    moment, consumers = problem(10)
    whole = regularised_error(moment, consumers, torch.arange(10), 1e-3)
    curve = elimination_curve(moment, consumers)
    for size in range(1, 10):
        kept = eliminate(moment, consumers, size, rounds=10)
        expected = regularised_error(moment, consumers, kept, 1e-3) - whole
        assert float(curve[10 - size]) == pytest.approx(expected, rel=1e-9)


def test_it_never_falls_and_does_not_depend_on_the_order():
    moment, consumers = problem(40)
    curve = elimination_curve(moment, consumers)
    assert bool((curve.diff() >= 0).all())
    order = torch.randperm(40, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(elimination_curve(moment[order][:, order], consumers[:, order]), curve)
    torch.testing.assert_close(elimination_curve(moment, 3 * consumers), 9 * curve)


def test_stand_ins_cost_nothing_until_the_last_of_them():
    moment = torch.kron(torch.eye(2, dtype=torch.float64), torch.ones(3, 3, dtype=torch.float64))
    consumers = torch.tensor([[1.0] * 3 + [0.1] * 3], dtype=torch.float64)
    curve = elimination_curve(moment, consumers, ridge=1e-9)
    assert curve[:5].tolist() == pytest.approx([0] * 5, abs=1e-6)
    assert float(curve[5]) == pytest.approx(0.09)


def test_a_single_channel():
    assert elimination_curve(torch.eye(1), torch.ones(2, 1)).tolist() == [0.0]


def test_single_precision():
    moment, consumers = problem(60)
    single = elimination_curve(moment.float(), consumers.float())
    assert single.dtype == torch.float64
    torch.testing.assert_close(single, elimination_curve(moment, consumers), rtol=1e-2, atol=1e-3)


def test_shapes_are_checked():
    with pytest.raises(ValueError, match=r"of shape \(N, N\)"):
        elimination_curve(torch.eye(3), torch.ones(2, 4))
