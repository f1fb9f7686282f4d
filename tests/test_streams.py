"""What can be asked of any group can be asked of normalised channels and of the heads beside them."""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping

import pytest
import torch
import torch.nn.functional as F
from breadth import crossed, some_of
from streams import NETWORKS
from torch import Tensor, nn

from lightning_coreset import (
    PruningPlan,
    Reconstruction,
    Sensitivity,
    count_macs,
    plan_pruning,
    prune,
    sensitivity_scan,
)
from lightning_coreset.planning import Request, idle_rules
from lightning_coreset.structure import ChannelGroup, analyse


def first_columns(group: ChannelGroup, tensors: Mapping[str, Tensor]) -> Tensor:
    """Keeps the first channels."""
    return -torch.arange(group.size, dtype=torch.float32)


METHODS = {
    "reconstruction": "reconstruction",
    "sensitivity": "sensitivity",
    "systematic": Sensitivity(sampler="pps"),
    "magnitude": "magnitude",
    "random": "random",
    "function": first_columns,
}
RANKING = ("magnitude", "random", "function")
STREAM = {name: ("embed" if name in ("gpt", "post-norm", "llama") else "patches") for name in NETWORKS}
STREAM |= {"convnext": "stem", "mlp": "1"}


def network(name: str) -> tuple[nn.Module, Tensor]:
    make, inputs = NETWORKS[name]
    torch.manual_seed(0)
    return make(), inputs()


def params(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def sizes(plan: PruningPlan) -> dict[str, tuple[int, int]]:
    return {group.name: (group.channels_before, group.channels_after) for group in plan.groups}


def assert_counted(plan: PruningPlan, model: nn.Module, inputs: Tensor) -> None:
    """A plan's totals are those of the pruned network, and its groups add up to what is gone."""
    assert (plan.params_after, plan.macs_after) == (params(model), count_macs(model, inputs))
    assert sum(group.params_removed for group in plan.groups) == plan.params_before - plan.params_after
    assert sum(group.macs_removed for group in plan.groups) == plan.macs_before - plan.macs_after
    assert model(inputs).isfinite().all()


# ---- how much


@pytest.mark.parametrize(
    ("name", "method", "unit", "allocation"),
    [
        case
        for case in crossed(NETWORKS, METHODS, ["params", "macs", "channels"], ["uniform", "error", "global"])
        if case.values[3] != "global" or case.values[1] in RANKING
    ],
)
def test_targets(name, method, unit, allocation):
    model, inputs = network(name)
    options = {"unit": unit, "allocation": allocation, "method": METHODS[method], "include_residual": True}

    plan = prune(model, inputs, 0.4, self_check=False, **options)

    assert plan.reached == pytest.approx(0.4, abs=0.06)
    assert_counted(plan, model, inputs)


def test_a_guaranteed_error_says_nothing_of_a_stream():
    model, inputs = network("vit")
    plan = plan_pruning(model, inputs, method=Sensitivity(epsilon=1e3), include_residual=True, self_check=False)
    stream, heads, *_ = plan.groups
    assert (stream.channels_after, heads.channels_after) == (16, 4)
    assert stream.method == "kept whole (its channels are normalised by their own statistics)"


@pytest.mark.parametrize("name", some_of(NETWORKS, "llama"))
@pytest.mark.parametrize("options", [{"round_to": 4}, {"min_channels": 8}, {"max_layer_ratio": 0.5}], ids=str)
def test_limits(name, options):
    model, inputs = network(name)
    plan = prune(model, inputs, 0.4, include_residual=True, self_check=False, **options)
    before, after = sizes(plan)[STREAM[name]]
    assert before > after >= max(options.get("min_channels", 1), before * (1 - options.get("max_layer_ratio", 1.0)))
    assert after % options.get("round_to", 1) == 0
    assert_counted(plan, model, inputs)


def test_one_prune_after_the_other():
    model, inputs = network("llama")
    for _ in range(2):
        plan = prune(model, inputs, 0.3, include_residual=True)
        assert plan.reached == pytest.approx(0.3, abs=0.08)
        assert_counted(plan, model, inputs)


@pytest.mark.parametrize("name", NETWORKS)
def test_two_channels_stay_of_what_is_normalised(name):
    """Of a single one a LayerNorm makes zero."""
    model, inputs = network(name)
    with pytest.warns(UserWarning, match="leaves next to nothing of these layers"):
        plan = prune(model, inputs, 0.93, unit="channels", include_residual=True, method="magnitude", self_check=False)
    assert sizes(plan)[STREAM[name]][1] == 2


def test_a_ratio_that_would_leave_one_channel_is_refused():
    model, inputs = network("vit")
    reason = "at most 0.875 for group 'patches' but got 0.99: its normalisation, which needs two channels, leaves it 2"
    with pytest.raises(ValueError, match=reason):
        plan_pruning(model, inputs, {"patches": 0.99}, include_residual=True, self_check=False)


def test_nothing_goes_of_two_channels():
    model = nn.Sequential(nn.Linear(3, 2), nn.LayerNorm(2), nn.Linear(2, 4))
    with pytest.warns(UserWarning, match="every group has the two channels that its normalisation needs"):
        plan_pruning(model, torch.randn(2, 3), {"0": 0.3}, include_residual=True, self_check=False)


# ---- where


RULES = {
    "the stream by its first layer": ({"only": ["embed"]}, {"embed"}),
    "the stream by a type": ({"only": [nn.Embedding]}, {"embed"}),
    "the stream by what writes to it": ({"only": ["*.down"]}, {"embed"}),
    "heads": ({"only": ["*.attention.q"]}, {"heads"}),
    "heads by an expression": ({"only": [re.compile(r".*\.[qkv]")]}, {"heads"}),
    "heads and stream": ({"only": ["*.attention.*"]}, {"embed", "heads"}),
    "all but the stream": ({"ignore": [nn.Embedding]}, {"heads", "units"}),
    "all but the heads": ({"ignore": ["*.v"]}, {"embed", "units"}),
}


@pytest.mark.parametrize("name", some_of(["gpt", "post-norm", "llama"], "gpt"))
@pytest.mark.parametrize("rule", RULES)
def test_rules(rule, name):
    """With a tied head, too, whose embedding is a consumer."""
    options, expected = RULES[rule]
    model, inputs = network(name)
    plan = plan_pruning(model, inputs, 0.2, unit="channels", include_residual=True, self_check=False, **options)
    kinds = {"embed": "embed", "q": "heads", "up": "units"}
    assert {kinds[group.name.rpartition(".")[2]] for group in plan.groups} == expected


def test_ratios_by_rules():
    model, inputs = network("gpt")
    ratios = {"embed": 0.25, "*.q": 0.5, re.compile(r".*\.up"): 0.75}
    plan = prune(model, inputs, ratios, include_residual=True)
    assert list(sizes(plan).values()) == [(16, 12), *[(4, 2), (48, 12)] * 2]
    assert_counted(plan, model, inputs)


def test_rules_that_contradict_each_other_on_a_stream():
    model, inputs = network("gpt")
    with pytest.raises(ValueError, match=r"channels of 'embed', which go together, but .* \(through blocks.0.atten"):
        plan_pruning(model, inputs, {"embed": 0.25, "*.attention.*": 0.5}, include_residual=True)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("mlp", r"1 is normalised over all its channels \(include_residual=True prunes it\)"),
        ("vit", r"patches is coupled with other layers by a residual addition \(include_residual=True prunes it\)"),
    ],
)
def test_normalised_channels_stay_by_default(name, reason):
    model, inputs = network(name)
    with (
        pytest.raises(ValueError, match=f"{re.escape(STREAM[name])}: {reason.partition(' ')[2]}"),
        pytest.warns(UserWarning, match=reason),
    ):
        plan_pruning(model, inputs, only=[STREAM[name]])
    (message,) = idle_rules(model, analyse(model, inputs), Request({STREAM[name]: 0.5}))
    assert re.search(reason, message)


# ---- the self-check


@pytest.mark.parametrize("norm", [nn.LayerNorm, nn.RMSNorm])
@pytest.mark.parametrize("activation", [nn.ReLU, nn.ReLU6, nn.GELU, nn.Dropout])
@pytest.mark.parametrize("samples", [1, 2, 5, 64])
def test_channels_that_are_mostly_zero_are_tried(norm, activation, samples):
    """What lies behind a ReLU is zero for half of the inputs, in some channels for all of a few inputs."""
    model = nn.Sequential(nn.Linear(8, 64), activation(), norm(64), nn.Linear(64, 3))
    (group,) = plan_pruning(model, torch.randn(samples, 8), 0.5, include_residual=True).groups
    assert group.channels_after < 64


# ---- what is known of the error


class Between(nn.Module):
    """Two layers with a function between them; the second also reads the channels as they are, if told to."""

    def __init__(self, function, *, also_plain: bool = False) -> None:
        super().__init__()
        self.first, self.function, self.also_plain = nn.Linear(4, 12), function, also_plain
        self.last, self.other = nn.Linear(12, 3), nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.first(x)
        found = self.last(self.function(hidden))
        return found + self.other(hidden) if self.also_plain else found


NORMALISATIONS = {
    "layer norm": lambda x: F.layer_norm(x, x.shape[-1:]),
    "rms norm": lambda x: F.rms_norm(x, x.shape[-1:]),
    "mean": lambda x: x - x.mean(-1, keepdim=True),
    "mean added": lambda x: x + x.mean(-1, keepdim=True),
    "length": lambda x: F.normalize(x, dim=-1),
    "relu, then length": lambda x: F.normalize(x.relu(), dim=-1),
    "written out": lambda x: x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6),
}


@pytest.mark.parametrize("name", NORMALISATIONS)
@pytest.mark.parametrize("also_plain", [False, True])
@pytest.mark.parametrize("method", ["reconstruction", "sensitivity"])
def test_normalised_channels_have_no_coreset_form(name, also_plain, method):
    """Nothing is promised that assumes that a channel depends on its own layer only, and nothing is carried on."""
    model, inputs = Between(NORMALISATIONS[name], also_plain=also_plain), torch.randn(5, 4)
    spare = [] if also_plain else ["other"]
    plan = plan_pruning(
        model, inputs, {"first": 0.5}, method=method, include_residual=True, certify=True, never_run=spare
    )
    (group,) = plan.groups
    reason = "its channels are normalised by their own statistics"
    assert group.method == f"rank ({reason})"
    assert group.expected_error is None
    assert (group.certified_error, group.found_error, group.radius_source) == (None, None, f"none: {reason}")


def test_no_radius_is_proven_through_a_stream():
    model, inputs = network("mlp")
    model[5] = nn.Identity()  # so that the second layer is no stream
    plan = plan_pruning(model, inputs, 0.4, include_residual=True, certify=True, input_radius=1.0)
    first, second = plan.groups
    assert first.radius_source.startswith("none: its channels are normalised")
    assert second.radius_source == "measured"
    assert second.certified_error >= second.found_error > 0


# ---- which channels


def test_the_ranking_of_normalised_channels():
    """By all that writes a channel and all that reads it: small weights of many layers count as a large one of one."""
    model = nn.Sequential(nn.Linear(2, 4, bias=False), nn.LayerNorm(4), nn.Linear(4, 5, bias=False))
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[2.0, 0.0], [1.0, 0.0], [1.0, 0.0], [0.1, 0.0]]))
        model[2].weight.zero_()
        model[2].weight[:, 0] = 0.5  # 2 * 1.1
        model[2].weight[0, 1] = 2.0  # 1 * 2
        model[2].weight[:, 2] = 1.0  # 1 * 2.2, though each is smaller than the one before
        model[2].weight[0, 3] = 9.0  # 0.1 * 9
        model[1].weight.copy_(torch.tensor([1.0, 7.0, 1.0, 7.0]))  # of which no account is taken
    method = Reconstruction(refine=False)  # else the stream rotates
    (group,) = plan_pruning(
        model, torch.randn(3, 2), {"0": 0.5}, method=method, include_residual=True, self_check=False
    ).groups
    assert group.kept == (0, 2)


# ---- the scan


@pytest.mark.parametrize("name", some_of(NETWORKS, "gpt"))
def test_scan(name):
    model, inputs = network(name)
    before, text = copy.deepcopy(model.state_dict()), str(model)

    scan = sensitivity_scan(model, inputs, params, ratios=(0.25, 0.5), include_residual=True)

    assert (str(model), scan[0].group) == (text, STREAM[name])
    assert all(torch.equal(tensor, before[key]) for key, tensor in model.state_dict().items())
    for record in scan:
        assert record.baseline - record.value == record.params_removed
        assert (record.params_removed > 0) == (record.channels_after < record.channels_before)


def test_a_plan_with_streams_is_plain_data():
    model, inputs = network("gpt")
    plan = plan_pruning(model, inputs, 0.4, include_residual=True, self_check=False)
    again = PruningPlan.from_dict(plan.to_dict())
    assert again.groups == plan.groups
    assert again.attributes == plan.attributes
    assert str(again) == str(plan)
