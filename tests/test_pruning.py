"""`prune`: it prunes a network in one call, or raises and changes nothing."""

from __future__ import annotations

import copy
import dataclasses
import inspect
import warnings
from typing import Any

import pytest
import torch
from breadth import crossed
from networks import NETWORKS, assert_same_random, assert_untouched, make, random_states, snapshot
from torch import Tensor, nn

from lightning_coreset import (
    load_pruned,
    make_plain,
    make_resizable,
    measure_latency,
    plan_pruning,
    prune,
    sensitivity_scan,
)
from lightning_coreset.methods import Magnitude, Random, Reconstruction, Sensitivity
from lightning_coreset.planning import Request
from lightning_coreset.pruning import count_macs
from lightning_coreset.structure import find_groups

METHODS = ["reconstruction", "sensitivity", "magnitude", "random", Sensitivity("pps"), Sensitivity("draws")]


@pytest.mark.parametrize(("name", "method"), crossed(NETWORKS, METHODS))
def test_networks_shrink_and_go_on_training(name, method):
    model, x = make(name)
    whole = sum(parameter.numel() for parameter in model.parameters())
    before = random_states()
    plan = prune(model, x, 0.4, method=method, include_residual=True)
    assert_same_random(before)
    left = sum(parameter.numel() for parameter in model.parameters())
    assert (plan.params_before, plan.params_after) == (whole, left)
    assert left < whole
    assert 0.2 < plan.sparsity < 0.75
    optimizer = torch.optim.SGD(model.parameters(), 1e-3)
    target = torch.zeros_like(model.train()(x))
    losses = []
    for _ in range(4):
        loss = (model(x) - target).pow(2).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]


@pytest.mark.parametrize(
    ("name", "dtype"), crossed(["mlp", "vgg", "mobilenet", "unet"], [torch.bfloat16, torch.float32, torch.float64])
)
def test_precisions(name, dtype):
    model, x = make(name, dtype)
    prune(model, x, 0.5)
    assert {tensor.dtype for tensor in model.state_dict().values() if tensor.is_floating_point()} == {dtype}
    assert model(x).dtype == dtype
    assert model(x).isfinite().all()


def test_flags_and_statistics_stay():
    model, x = make("vgg")
    model.train()
    model[1].eval()
    flags = [module.training for module in model.modules()]
    model(x)
    statistics = {name: buffer.clone() for name, buffer in model.named_buffers()}
    plan = prune(model, x, 0.5, method="magnitude")
    assert [module.training for module in model.modules()] == flags
    kept = {change.name: change.kept for change in plan.changes}
    for name, buffer in model.named_buffers():
        expected = statistics[name].index_select(0, kept[name][0]) if name in kept else statistics[name]
        torch.testing.assert_close(buffer, expected, rtol=0, atol=0)


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode, torch.enable_grad])
@pytest.mark.parametrize("made_inside", [False, True])
def test_any_gradient_mode(context, made_inside):
    model, x = make("vgg")
    expected, _ = make("vgg")
    prune(expected, x, 0.5)
    with context():
        prune(model, torch.randn_like(x) if made_inside else x, 0.5)
    for (name, one), other in zip(model.named_parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0, msg=name)
        assert one.requires_grad
        assert not one.is_inference()
    model.train()(x).sum().backward()
    torch.optim.Adam(model.parameters()).step()


def test_frozen_layers_stay_frozen_and_shrink():
    model, x = make("vgg")
    model[:3].requires_grad_(False)
    frozen = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    prune(model, x, 0.5)
    assert {name: parameter.requires_grad for name, parameter in model.named_parameters()} == frozen
    assert model[0].out_channels < 6


def test_a_frozen_network_run_without_gradients():
    """A feature extractor under no_grad is pruned like any other."""

    class Extractor(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.head = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 5)), nn.Linear(5, 2)

        def forward(self, x: Tensor) -> Tensor:
            with torch.no_grad():
                x = self.body(x)
            return self.head(x)

    model = Extractor()
    plan = prune(model, torch.randn(3, 6), 0.5)
    assert [group.name for group in plan.groups] == ["body.0", "body.2"]
    assert model.body[0].out_features < 8


def test_tied_weights_stay_tied():
    model, x = make("autoencoder")
    weight = model.encoder.weight
    plan = prune(model, x, 0.5)
    assert model.encoder.weight is weight
    assert weight.shape == (plan.groups[0].channels_after, 6)

    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = nn.Linear(6, 8), nn.Linear(8, 8), nn.Linear(8, 8)
            self.c.weight = self.b.weight
            self.d = nn.Linear(8, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.d(self.c(self.b(self.a(x).relu()).relu()).relu())

    model = Twice()
    prune(model, torch.randn(3, 6), 0.5)
    assert model.c.weight is model.b.weight
    assert model.b.in_features == model.b.out_features == model.c.in_features == model.c.out_features < 8
    model(torch.randn(3, 6))


class TwoInputs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(6, 8), nn.Linear(5, 8), nn.Linear(16, 2)

    def forward(self, x: Tensor, y: Tensor, scale: float = 1.0) -> dict[str, Tensor]:
        return {"out": self.c(torch.cat([self.a(x).relu(), scale * self.b(y).relu()], 1))}


@pytest.mark.parametrize(
    "inputs",
    [
        (torch.randn(3, 6), torch.randn(3, 5)),
        [torch.randn(3, 6), torch.randn(3, 5)],
        (torch.randn(3, 6), torch.randn(3, 5), 2.0),
        {"x": torch.randn(3, 6), "y": torch.randn(3, 5)},
        {"y": torch.randn(3, 5), "x": torch.randn(3, 6), "scale": 0.5},
    ],
)
def test_inputs_by_position_and_by_keyword(inputs):
    model = TwoInputs()
    plan = prune(model, inputs, 0.5)
    assert [group.name for group in plan.groups] == ["a", "b"]
    assert model.c.in_features == model.a.out_features + model.b.out_features == 8
    assert plan.macs_after == count_macs(model, inputs) == plan.params_after - 8 - 2


def test_macs_are_of_one_sample():
    model, _ = make("vgg")
    one, four = (count_macs(model, torch.randn(batch, 2, 8, 8, dtype=torch.float64)) for batch in (1, 4))
    assert one == four == 64 * 9 * (2 * 6 + 6 * 8 + 8 * 10) + 30


# ---- errors leave the model alone

BAD: dict[str, dict[str, Any]] = {
    "ratio": {"pruning_ratio": 1.0},
    "ratio of another type": {"pruning_ratio": "half"},
    "pattern": {"ignore": ("nowhere",)},
    # Taken as a sequence of letters it would protect other layers than the one that was named.
    "pattern as a string": {"ignore": "0"},
    "everything ignored": {"ignore": ("*",)},
    "method": {"method": "magic"},
    "class as method": {"method": Sensitivity},
    "list as method": {"method": ["magnitude"]},
    "unit": {"unit": "flops"},
    "inputs": {"example_inputs": "picture"},
    "no inputs": {"example_inputs": None},
}


@pytest.mark.parametrize("self_check", [False, True])
@pytest.mark.parametrize("bad", BAD)
def test_bad_requests_leave_the_model_alone(bad, self_check):
    model, x = make("vgg")
    model.train()
    before, randomness = snapshot(model), random_states()
    with pytest.raises(ValueError, match="Expected"):
        prune(model, **({"example_inputs": x, "self_check": self_check} | BAD[bad]))
    assert_untouched(model, before)
    assert_same_random(randomness)


@pytest.mark.parametrize("inputs", [torch.randn(2, 5, 8, 8).double(), torch.randn(3).double(), ()])
def test_inputs_that_the_network_does_not_take(inputs):
    model, _ = make("vgg")
    model.train()
    before, randomness = snapshot(model), random_states()
    with pytest.raises((RuntimeError, TypeError, ValueError)):
        prune(model, inputs)
    assert_untouched(model, before)
    assert_same_random(randomness)


def test_a_lazy_network():
    model = nn.Sequential(nn.LazyLinear(8), nn.ReLU(), nn.Linear(8, 2))
    with pytest.raises(ValueError, match=r"'0.weight' is lazy"):
        prune(model, torch.randn(2, 4))


# ---- plan_pruning


@pytest.mark.parametrize("name", ["mlp", "vgg", "resnet", "attention"])
def test_the_plan_beforehand_is_what_pruning_does(name):
    model, x = make(name)
    asked: dict[str, Any] = {"pruning_ratio": 0.4, "unit": "macs", "include_residual": True, "seed": 3}
    asked |= {"method": Sensitivity("pps"), "round_to": 2, "max_layer_ratio": 0.8, "allocation": "error"}
    model.train()
    before, randomness = snapshot(model), random_states()
    planned = plan_pruning(model, x, **asked)
    assert_untouched(model, before)
    assert_same_random(randomness)
    assert planned.channels_removed > 0
    assert str(prune(model, x, **asked)) == str(planned)


def test_pruning_and_planning_take_the_same_arguments():
    assert inspect.signature(plan_pruning) == inspect.signature(prune)
    given = {field.name: field.default for field in dataclasses.fields(Request)}
    for name, parameter in inspect.signature(prune).parameters.items():
        if name in given and name not in ("method", "pruning_ratio"):
            assert parameter.default == given[name], name


@pytest.mark.parametrize("ask", [prune, plan_pruning])
@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        ({"pruning_ratio": 0.0001}, r"^No channel is removed: 0\.01% of 1,341 params is 0\.1"),
        ({"pruning_ratio": {"*": 0.01}}, "^No channel is removed"),
        ({"pruning_ratio": 0.2, "only": ["0", "11"]}, "^The rule '11' of only .* 11 makes outputs of the network"),
        ({"pruning_ratio": 0.2, "ignore": ["1"]}, "^The rule '1' of ignore .* 1 makes no channels itself"),
    ],
)
def test_rules_without_effect_are_warned_of(ask, asked, expected):
    model, x = make("vgg")
    with pytest.warns(UserWarning, match=expected) as caught:
        ask(model, x, **asked)
    assert [warning.filename for warning in caught] == [__file__]


@pytest.mark.parametrize("asked", [{"pruning_ratio": 0.0}, {"pruning_ratio": {"0": 0.0}}, {"ignore": ["0"]}])
def test_rules_with_an_effect_are_not_warned_of(asked):
    model, x = make("vgg")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        plan_pruning(model, x, **asked)


def test_asking_for_too_much_leaves_the_model_alone():
    model, x = make("resnet")
    before = snapshot(model)
    with pytest.raises(ValueError, match=r"(?s)to be at most 0\..*max_layer_ratio=1.0 \(up to 0\."):
        prune(model, x, 0.9, max_layer_ratio=0.5)
    assert_untouched(model, before)


# ---- the self-check


class HardCoded(nn.Module):
    """The width of ``b`` is written as a number; ``a`` is free."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(6, 10), nn.Linear(10, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.b(self.a(x).relu()).relu()
        return self.c(x.view(-1, 8))


class Divided(HardCoded):
    """Runs at any width of ``b``, but computes something else."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.b(self.a(x).relu()).relu()
        return self.c(x / x.shape[1])


@pytest.mark.parametrize("network", [HardCoded, Divided])
def test_a_width_that_is_a_number_in_the_code_stays(network):
    model = network()
    with pytest.warns(UserWarning, match=r"(?s)not pruned.*  b: ") as caught:
        plan = prune(model, torch.randn(4, 6), 0.4)
    assert len(caught) == 1
    assert caught[0].filename == __file__
    assert [group.name for group in plan.groups] == ["a"]
    assert model.b.out_features == 8
    assert model.a.out_features == model.b.in_features < 10
    assert "b" in plan.skipped
    assert f"not pruned: b {plan.skipped['b']}" in str(plan)
    model(torch.randn(4, 6))


def test_without_the_check_the_width_goes():
    """``self_check=False`` trusts the structure: what the code computes of a width is the user's risk."""
    model = HardCoded()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        plan = prune(model, torch.randn(4, 6), 0.4, self_check=False)
    assert [group.name for group in plan.groups] == ["a", "b"]
    assert model.b.out_features < 8
    with pytest.raises(RuntimeError):
        model(torch.randn(4, 6))


class OnlyHardCoded(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(6, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.a(x).relu().view(-1, 8))


def test_where_every_group_fails_there_is_nothing_to_prune():
    model = OnlyHardCoded()
    before = snapshot(model)
    with pytest.warns(UserWarning, match="  a: "), pytest.raises(ValueError, match=r"(?s)no layer has any:.*a: "):
        prune(model, torch.randn(4, 6), 0.4)
    assert_untouched(model, before)


@pytest.mark.parametrize("name", ["mlp", "vgg", "attention"])
def test_the_check_changes_nothing_where_it_passes(name):
    model, x = make(name)
    unchecked = copy.deepcopy(model)
    plans = [prune(model, x, 0.5), prune(unchecked, x, 0.5, self_check=False)]
    assert str(plans[0]) == str(plans[1])
    for one, other in zip(model.state_dict().values(), unchecked.state_dict().values(), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)


# ---- the arguments have the effect that is documented


@pytest.mark.parametrize("unit", ["params", "macs", "channels"])
def test_units(unit):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(20, 100), nn.ReLU(), nn.Linear(100, 100), nn.ReLU(), nn.Linear(100, 5))
    before = {"params": sum(p.numel() for p in model.parameters()), "channels": 200}
    before["macs"] = count_macs(model, torch.randn(1, 20))
    plan = prune(model, torch.randn(1, 20), 0.6, unit=unit, method="magnitude")
    after = {"params": sum(p.numel() for p in model.parameters()), "macs": count_macs(model, torch.randn(1, 20))}
    after["channels"] = sum(group.channels_after for group in plan.groups)
    assert plan.reached == pytest.approx(1 - after[unit] / before[unit])
    assert plan.reached == pytest.approx(0.6, abs=0.02)


@pytest.mark.parametrize(
    ("method", "named"),
    [
        ("reconstruction", "reconstruction (probes)"),
        (Reconstruction(rounds=2), "reconstruction (probes)"),
        (Reconstruction(moments="closed_form"), "reconstruction"),
        ("sensitivity", "sensitivity (distinct)"),
        (Sensitivity("pps"), "sensitivity (pps)"),
        ("magnitude", "magnitude (L2)"),
        (Magnitude(1), "magnitude (L1)"),
        (Random(), "random"),
    ],
)
def test_methods_by_name_and_by_instance(method, named):
    model, x = make("mlp")
    plan = prune(model, x, 0.5, method=method)
    assert {group.method for group in plan.groups} == {named}


def test_reconstruction_keeps_more_than_chance():
    """On a network with many more channels than it needs, the default is far nearer to the whole one."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 64), nn.ReLU(), nn.Linear(64, 48), nn.ReLU(), nn.Linear(48, 3))
    x = torch.randn(256, 4)
    errors = {}
    with torch.no_grad():
        expected = model(x)
        for method in ("reconstruction", "magnitude", "random"):
            cut = copy.deepcopy(model)
            prune(cut, x[:1], 0.6, method=method)
            errors[method] = float((cut(x) - expected).pow(2).mean() / expected.var())
    assert errors["reconstruction"] < 0.2 * min(errors["magnitude"], errors["random"])


def test_a_ratio_of_zero():
    model, x = make("vgg")
    before = snapshot(model)
    assert prune(model, x, 0.0).channels_removed == 0
    assert_untouched(model, before)


def test_computed_weights_of_older_utilities():
    """Masks keep a computed tensor as an attribute; a module may keep its last activation. Neither can be copied."""

    class Remembers(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = nn.Linear(6, 8), nn.Linear(8, 8), nn.Linear(8, 3)
            self.last: dict[str, Tensor] = {}

        def forward(self, x: Tensor) -> Tensor:
            self.hidden = self.a(x).relu()
            self.last["b"] = self.b(self.hidden).relu()
            return self.c(self.last["b"])

    model = Remembers()
    nn.utils.prune.l1_unstructured(model.c, "weight", 0.3)
    model(torch.randn(2, 6))
    prune(model, torch.randn(2, 6), 0.3)
    assert model.a.out_features < 8
    model(torch.randn(2, 6)).sum().backward()


def test_channels_last_stays():
    model, x = make("unet", torch.float32)
    model = model.to(memory_format=torch.channels_last)
    prune(model, x.contiguous(memory_format=torch.channels_last), 0.4)
    for parameter in model.parameters():
        assert parameter.dim() != 4 or parameter.is_contiguous(memory_format=torch.channels_last)


def test_an_optimizer_keeps_its_references():
    model, x = make("mlp")
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    held = [id(parameter) for parameter in optimizer.param_groups[0]["params"]]
    prune(model, x, 0.5)
    assert [id(parameter) for parameter in model.parameters()] == held
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    model(x).pow(2).sum().backward()
    optimizer.step()
    assert all(not torch.equal(before[name], parameter) for name, parameter in model.named_parameters())


@pytest.mark.parametrize("rule", [3, 5])
def test_one_channel_of_each_group_always_stays(rule):
    """Also if slightly more is asked for than can be removed."""
    model = nn.Sequential(nn.Linear(rule, 6), nn.ReLU(), nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 2))
    left = rule + 1 + 2 + 4
    whole = sum(parameter.numel() for parameter in model.parameters())
    with pytest.warns(UserWarning, match=r"leaves next to nothing of these layers.*:\n  0: 1 of 6 channels\n"):
        plan = prune(model, torch.randn(2, rule), 1 - (left - 1) / whole)
    assert [group.channels_after for group in plan.groups] == [1, 1]
    assert plan.params_after == left
    assert plan.reached < plan.requested
    with pytest.raises(ValueError, match="Expected a model with channels"):
        prune(model, torch.randn(2, rule), 0.5)
    assert find_groups(model, torch.randn(2, rule)) == []


@pytest.mark.parametrize("name", [name for name in NETWORKS if name != "grouped"])
def test_pruning_again(name):
    model, x = make(name)
    first = prune(model, x, 0.2, include_residual=True)
    second = prune(model, x, 0.2, include_residual=True)
    assert second.params_before == second.params_original == first.params_after
    assert second.params_after == sum(parameter.numel() for parameter in model.parameters()) < first.params_after
    assert model(x).isfinite().all()


@pytest.mark.parametrize(
    "call",
    [
        lambda model: prune(model, torch.ones(1, 3), 0.5),
        lambda model: count_macs(model, torch.ones(1, 3)),
        lambda model: sensitivity_scan(model, torch.ones(1, 3), lambda network: 1.0),
        lambda model: measure_latency(model, torch.ones(1, 3)),
        make_resizable,
        make_plain,
    ],
)
def test_a_class_in_place_of_a_model_is_told_by_its_name(call):
    with pytest.raises(ValueError, match=r"got the class Identity\. Make one: Identity\(\.\.\.\)\."):
        call(nn.Identity)
    with pytest.raises(ValueError, match=r"Expected model to be an nn\.Module but got str"):
        call("model")


@pytest.mark.parametrize("arguments", [("file.pt", nn.Identity), (nn.Identity(), "file.pt")])
def test_load_pruned_wants_the_class_first(arguments):
    with pytest.raises(ValueError, match=r"Expected the class of the model, then the file, but got (str|Identity)"):
        load_pruned(*arguments)
