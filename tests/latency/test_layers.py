"""How a network calls its layers, and each of them at other widths."""

from __future__ import annotations

import pytest
import torch
from networks import assert_untouched, snapshot
from torch import Tensor, nn

from lightning_coreset.latency.layers import LayerCall, called_layers
from lightning_coreset.latency.narrowing import at_widths, random_input, settings_of
from lightning_coreset.structure import Example

# A layer, the shape of its input, other widths, and the sizes that its module then has.
LAYERS = {
    "linear": (nn.Linear(12, 8), (2, 5, 12), (6, 3), {"in_features": 6, "out_features": 3}),
    "conv": (nn.Conv2d(12, 8, 3, 2, 1), (2, 12, 6, 6), (6, 3), {"in_channels": 6, "out_channels": 3}),
    "transposed": (nn.ConvTranspose1d(12, 8, 3), (2, 12, 6), (6, 3), {"in_channels": 6, "out_channels": 3}),
    "grouped": (
        nn.Conv2d(12, 8, 3, groups=4),
        (2, 12, 6, 6),
        (8, 4),
        {"in_channels": 8, "out_channels": 4, "groups": 4},
    ),
    "depthwise": (nn.Conv2d(12, 24, 3, groups=12), (2, 12, 6, 6), (6, 12), {"groups": 6, "out_channels": 12}),
    "batch norm": (nn.BatchNorm2d(12), (2, 12, 6, 6), (6, 6), {"num_features": 6}),
    "without weight": (nn.BatchNorm1d(12, affine=False), (4, 12), (6, 6), {"num_features": 6}),
    "group norm": (nn.GroupNorm(4, 12), (2, 12, 6), (6, 6), {"num_channels": 6, "num_groups": 2}),
    "layer norm": (nn.LayerNorm(12), (2, 5, 12), (6, 6), {"normalized_shape": (6,)}),
}


def call_of(module: nn.Module, x: Tensor) -> LayerCall:
    (call,) = called_layers(nn.Sequential(module), Example.of(x))
    return call


@pytest.mark.parametrize("name", LAYERS)
def test_a_layer_at_other_widths_runs_on_its_input(name):
    module, shape, (reads, makes), sizes = LAYERS[name]
    call = call_of(module, torch.randn(shape))
    before = snapshot(module)

    narrow = at_widths(module, call, reads, makes)
    x = random_input(call, reads, torch.zeros(1))
    y = narrow(x)

    assert {size: getattr(narrow, size) for size in sizes} == sizes
    assert x.shape[call.channel_dim] == reads
    assert y.shape[call.channel_dim] == makes
    assert_untouched(module, before)


@pytest.mark.parametrize("name", ["linear", "conv", "depthwise", "batch norm"])
def test_it_may_be_wider_than_it_is(name):
    module, shape, *_ = LAYERS[name]
    call = call_of(module, torch.randn(shape))
    reads, makes = 2 * call.in_channels, 2 * call.out_channels

    assert (
        at_widths(module, call, reads, makes)(random_input(call, reads, torch.zeros(1))).shape[call.channel_dim]
        == makes
    )


def test_hooks_are_left_behind():
    module, x = nn.Linear(4, 4), torch.randn(2, 4)
    call = call_of(module, x)
    seen = []
    module.register_forward_hook(lambda *_: seen.append(1))

    at_widths(module, call, 2, 2)(random_input(call, 2, x))

    assert seen == []


def test_calls_are_counted_with_the_names_of_tied_weights():
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.other = nn.Linear(4, 4), nn.Linear(4, 4, bias=False)
            self.other.weight = self.one.weight

        def forward(self, x: Tensor) -> Tensor:
            return self.other(self.one(self.one(x)))

    calls = {call.layer: call for call in called_layers(Twice(), Example.of(torch.randn(2, 4)))}

    assert {name: (call.count, call.weight) for name, call in calls.items()} == {
        "one": (2, "one.weight"),
        "other": (1, "one.weight"),
    }


def test_the_network_is_as_before():
    model = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Dropout()).train()
    x = torch.randn(3, 4)
    before, random = snapshot(model), torch.get_rng_state()

    called_layers(model, Example.of(x))

    assert_untouched(model, before)
    assert model.training
    assert torch.equal(torch.get_rng_state(), random)
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_what_has_no_known_widths_is_left_out():
    model = nn.Sequential(nn.Embedding(9, 4), nn.LSTM(4, 4, batch_first=True))

    assert called_layers(model, Example.of(torch.zeros(2, 3, dtype=torch.int64))) == ()


def test_settings_tell_layers_apart_but_not_by_their_widths():
    def settings(**options: int) -> object:
        return settings_of(nn.Conv2d(options.pop("width", 8), 8, 3, **options))

    assert settings() == settings(width=16)
    assert settings() != settings(stride=2)
    assert settings() != settings(bias=False)


def test_channels_last_is_kept():
    x = torch.randn(2, 8, 5, 5).to(memory_format=torch.channels_last)
    call = call_of(nn.Conv2d(8, 8, 3), x)

    assert random_input(call, 4, x).is_contiguous(memory_format=torch.channels_last)
