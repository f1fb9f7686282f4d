"""What a request offers where adapters lie beside frozen layers."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from zoo.traps_products import DoraLinear, LoraLinear

from lightning_coreset.planning import Request, prunable
from lightning_coreset.structure import analyse

RANKS = ["0.lora_A.default", "2.lora_A.default"]


def network(layer: type[nn.Module] = LoraLinear) -> nn.Module:
    return nn.Sequential(layer(6, 20), nn.ReLU(), layer(20, 14), nn.ReLU(), nn.Linear(14, 3))


def offered(model: nn.Module, request: Request) -> tuple[list[str], dict[str, str]]:
    groups, skipped = prunable(model, analyse(model, torch.randn(4, 6)), request)
    return [group.name for group in groups], skipped


@pytest.mark.parametrize("layer", [LoraLinear, DoraLinear])
def test_the_rank_of_an_adapter_beside_frozen_layers_stays(layer):
    names, skipped = offered(network(layer), Request(0.5, include_residual=True))
    assert names == ["0.base_layer", "2.base_layer"]
    reason = "is the rank of an adapter beside frozen layers (a rule of only that names it prunes it)"
    assert {name: skipped[name] for name in RANKS} == dict.fromkeys(RANKS, reason)


@pytest.mark.parametrize("request_", [Request(0.5, only=["*.lora_A.*"]), Request({"*.lora_A.*": 0.5})])
def test_a_rule_that_names_it_prunes_it(request_):
    assert offered(network(), request_)[0] == RANKS


def test_the_rank_of_a_layer_that_is_trained_goes_as_any_other_width():
    names, _ = offered(network().requires_grad_(True), Request(0.5))
    assert set(names) == {"0.base_layer", "2.base_layer", *RANKS}


def test_a_frozen_layer_beside_a_hidden_layer_is_no_base_of_an_adapter():
    """A nonlinearity lies between: this is a branch of its own."""

    class Branches(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.base, self.down, self.up = nn.Linear(6, 8), nn.Linear(6, 4), nn.Linear(4, 8)
            self.base.requires_grad_(False)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.base(x) + self.up(self.down(x).relu())

    names, _ = offered(nn.Sequential(Branches(), nn.ReLU(), nn.Linear(8, 3)), Request(0.5))
    assert "0.down" in names
