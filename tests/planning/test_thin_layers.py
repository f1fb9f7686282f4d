"""The warning about layers of which a ratio leaves one or two channels."""

import pytest
import torch
from torch import nn

from lightning_coreset import Sensitivity, plan_pruning
from lightning_coreset.planning import Request, why_thin
from lightning_coreset.structure import analyse

X = torch.randn(2, 6)


def small_and_large() -> nn.Sequential:
    """A layer that holds next to nothing before two that hold all: one pace for both takes nearly all of the first."""
    return nn.Sequential(
        nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 2)
    )


def warning(ratio, **options) -> str | None:
    model = small_and_large()
    return why_thin(model, analyse(model, X), Request.of({"pruning_ratio": ratio, "method": "magnitude"} | options))


def test_it_names_the_layers_and_what_keeps_more_of_them():
    message = warning(0.97)

    assert message is not None
    assert "pruning_ratio=0.97 leaves next to nothing of these layers" in message
    assert "\n  0: 1 of 8 channels\n" in message
    with pytest.warns(UserWarning, match="leaves next to nothing"):
        plan_pruning(small_and_large(), X, 0.97, method="magnitude")


def test_its_ways_out_reach_what_it_says():
    message = warning(0.97) or ""
    most = float(message.partition("min_channels=4 (up to ")[2][:6])

    assert most > 0.97
    plan = plan_pruning(small_and_large(), X, 0.97, method="magnitude", min_channels=4)
    assert plan.reached == pytest.approx(0.97, abs=0.01)
    assert plan.groups[0].channels_after == 4
    assert warning(0.97, min_channels=4) is None


@pytest.mark.parametrize(
    "options",
    [
        {"ratio": 0.8},
        {"ratio": {"0": 0.9}},  # which says what is wanted of this layer
        {"ratio": 0.97, "max_layer_ratio": 0.7},
    ],
)
def test_it_says_nothing_where_enough_stays_or_that_is_meant(options):
    assert warning(**options) is None


def test_a_method_that_chooses_sizes_means_them():
    model = small_and_large()

    assert why_thin(model, analyse(model, X), Request.of({"method": Sensitivity(epsilon=100.0)})) is None


def test_heads_are_wider_than_a_channel():
    layer = nn.TransformerEncoderLayer(64, 16, 256, batch_first=True)
    model, x = nn.Sequential(nn.Linear(4, 64), layer, nn.Linear(64, 2)).eval(), torch.randn(2, 5, 4)
    structure = analyse(model, x)
    heads = next(group.name for group in structure.groups if group.size == 16)

    request = Request.of({"pruning_ratio": 0.5, "method": "magnitude"})
    sizes = {group.name: group.size for group in structure.groups} | {heads: 1}

    assert why_thin(model, structure, request, sizes=sizes) is None
