"""The fit of a consumer to what was measured."""

from __future__ import annotations

import torch

from lightning_coreset.layers import MeasuredReader
from lightning_coreset.moments import LayerInput
from lightning_coreset.structure import Layer, Member


def reader(channels: int, outputs: int) -> MeasuredReader:
    """A Linear that reads correlated channels of equal size."""
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(400, channels, generator=generator) + torch.randn(400, 1, generator=generator)
    weights = torch.randn(outputs, channels, 1, 1, generator=generator, dtype=torch.float64)
    return MeasuredReader(
        layer=Layer("w", None, in_dim=1, out_dim=0),
        columns=Member("w", 1, "consumer", tuple((place,) for place in range(channels))),
        outputs=slice(0, outputs),
        inputs=torch.arange(channels)[:, None],
        weights=weights,
        output_scale=torch.ones(outputs, dtype=torch.float64),
        constant=None,
        read=LayerInput(rows[:, :, None]),
    )


def test_the_size_of_what_moved_changes_nothing():
    """Ridge and start are in units of the channels as they were."""
    one = reader(6, 3)
    kept = torch.tensor([0, 2, 5])
    moved = one.samples()[:, kept] + 0.1 * torch.randn(400, 3, 1, 1)
    factors = torch.tensor([1e-3, 1.0, 1e4])

    plain, scaled = (one.fit(kept, ridge=1e-1, new=new) for new in (moved, moved * factors[:, None, None]))

    torch.testing.assert_close(scaled.weights * factors, plain.weights, rtol=1e-4, atol=1e-6)
    assert abs(scaled.error - plain.error) < 1e-4 * plain.error


def test_what_did_not_move_is_fitted_as_it_is():
    one = reader(6, 3)
    kept = torch.tensor([0, 2, 5])

    given, own = (one.fit(kept, ridge=1e-3, new=new) for new in (one.samples()[:, kept], None))

    torch.testing.assert_close(given.weights, own.weights)
