"""What may be asked, and what is refused before a model is looked at."""

from __future__ import annotations

import re
from fractions import Fraction

import numpy as np
import pytest
import torch
from torch import nn

from lightning_coreset import CoresetPruningCallback, prune
from lightning_coreset.methods import Magnitude, Random, Reconstruction, Sensitivity
from lightning_coreset.planning import Request

RATIO = r"Expected pruning_ratio to be a number in \[0, 1\), the fraction of the original model that goes"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"pruning_ratio": True}, RATIO),
        ({"pruning_ratio": "half"}, RATIO),
        ({"pruning_ratio": 1.0}, RATIO),
        ({"pruning_ratio": {}}, "at least one rule but got an empty mapping"),
        ({"pruning_ratio": {"a": 1.0}}, r"pruning_ratio\['a'\] to be a number in \[0, 1\), the fraction of each group"),
        ({"pruning_ratio": {nn.Linear: None}}, r"pruning_ratio\[Linear\] to be a number"),
        ({"pruning_ratio": {3: 0.5}}, "every rule of pruning_ratio to be a shell pattern .* but got 3"),
        ({"pruning_ratio": {"a": 0.5}, "allocation": "error"}, "a number with allocation='error' but got a mapping"),
        ({"unit": "flops"}, "unit to be 'params', 'macs', 'channels' or 'latency' but got 'flops'"),
        ({"allocation": "layer"}, "allocation to be 'uniform', 'error' or 'global' but got 'layer'"),
        ({"allocation": "global"}, "'magnitude' or 'random', with allocation='global' but got Reconstruction"),
        ({"allocation": "global", "method": Sensitivity()}, "but got Sensitivity"),
        ({"ignore": "conv*"}, r"single rule 'conv\*'. Write ignore=\['conv\*'\]"),
        ({"only": re.compile("a")}, r"single rule re.compile\('a'\). Write only=\[re.compile\('a'\)\]"),
        ({"only": nn.Linear}, r"single rule Linear. Write only=\[Linear\]"),
        ({"ignore": [3]}, "every rule of ignore to be a shell pattern .* but got 3"),
        ({"only": [nn.Linear(2, 2)]}, r"every rule of only .* but got Linear\("),
        ({"only": [int]}, "every rule of only .* but got <class 'int'>"),
        ({"only": [re.compile(b"a")]}, "every rule of only"),
        ({"only": 3}, "only to be a sequence of rules but got 3"),
        ({"round_to": 0}, "round_to to be a positive integer, of channels, but got 0"),
        ({"round_to": 8.0}, "round_to to be a positive integer"),
        ({"round_to": True}, "round_to to be a positive integer"),
        ({"min_channels": 0}, "min_channels to be a positive integer"),
        ({"min_channels": "4"}, "min_channels to be a positive integer"),
        ({"max_layer_ratio": 0.0}, r"max_layer_ratio to be a number in \(0, 1\] but got 0.0"),
        ({"max_layer_ratio": 1.1}, "max_layer_ratio to be"),
        ({"max_layer_ratio": True}, "max_layer_ratio to be"),
        ({"max_layer_ratio": float("nan")}, "max_layer_ratio to be"),
        ({"input_radius": True}, "input_radius to be a positive number but got True"),
        ({"input_radius": float("inf")}, "input_radius to be a positive number"),
        ({"method": Sensitivity(epsilon=1.0), "round_to": 8}, "round_to to be left alone with Sensitivity"),
        ({"method": Sensitivity(epsilon=1.0), "allocation": "error"}, "allocation to be left alone"),
        (
            {"method": Sensitivity(epsilon=1.0), "min_channels": 2, "max_layer_ratio": 0.5},
            "min_channels, max_layer_ratio to be left",
        ),
    ],
)
def test_bad_requests(options, message):
    with pytest.raises(ValueError, match=message):
        Request(**{"pruning_ratio": 0.5} | options)


@pytest.mark.parametrize("method", [Magnitude(), Magnitude(1), Random()], ids=str)
def test_methods_that_rank_have_a_global_ranking(method):
    assert Request(0.5, method=method, allocation="global").allocation == "global"


def test_numbers_of_numpy_are_numbers():
    request = Request(np.float32(0.5), round_to=np.int64(8), min_channels=np.int32(2), max_layer_ratio=np.float64(0.5))
    assert request.pruning_ratio == 0.5
    assert Request(Fraction(1, 4)).pruning_ratio == 0.25


@pytest.mark.parametrize(
    ("ratio", "target", "scaled"),
    [(0.6, 0.6, 0.15), ({"a": 0.4, nn.Linear: 0.8}, 0.8, {"a": 0.1, nn.Linear: 0.2})],
    ids=["number", "rules"],
)
def test_a_request_on_its_way(ratio, target, scaled):
    request = Request(ratio, method=Reconstruction(rounds=3), ignore=["b"], seed=4, max_layer_ratio=0.9)
    assert request.target == target
    part = request.scaled(0.25)
    assert part.pruning_ratio == pytest.approx(scaled)
    assert (part.method, part.ignore, part.seed, part.max_layer_ratio) == (Reconstruction(rounds=3), ("b",), 4, 0.9)
    assert request.scaled(1.0) == request
    assert request.scaled(0.5, seed=0).seed == 0


def test_a_request_does_not_follow_what_it_was_made_of():
    ratios, ignored = {"a": 0.4}, ["b"]
    request = Request(ratios, ignore=ignored)
    ratios["a"], ignored[0] = 0.9, "c"
    assert (request.pruning_ratio, request.ignore) == ({"a": 0.4}, ("b",))


@pytest.mark.parametrize("flag", ["self_check", "change_attributes", "certify", "include_residual"])
def test_flags_are_true_or_false(flag):
    model, x = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)), torch.randn(2, 4)
    with pytest.raises(ValueError, match=f"Expected {flag} to be True or False but got 'no'"):
        prune(model, x, 0.5, **{flag: "no"})
    with pytest.raises(ValueError, match=f"Expected {flag} to be True or False but got 'no'"):
        CoresetPruningCallback(**{flag: "no"})
