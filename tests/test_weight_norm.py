"""Weight-normed networks are cut like the networks with the weights themselves; compared with these in float64."""

from __future__ import annotations

import copy
import warnings

import lightning.pytorch as pl
import pytest
import torch
from breadth import crossed, some_of
from fitting import Classifier, make_loader, make_trainer
from lightning.pytorch import callbacks
from torch import Tensor, nn
from weight_norms import DIMS, NETWORKS, STYLES, baked, duplicate, with_plain_weights

from lightning_coreset import CoresetPruningCallback, Reconstruction, make_resizable, plan_pruning, prune
from lightning_coreset.plan import PruningPlan
from lightning_coreset.structure import ChannelGroup, find_groups
from lightning_coreset.surgery import (
    Snapshot,
    apply_changes,
    named_tensors,
    remove_channels,
    scale_counts,
    slice_members,
)
from lightning_coreset.training.averaged_models import shrink_copy

METHODS = ["reconstruction", "sensitivity", "magnitude"]
CASES = [(network, style, dim) for network in NETWORKS for style in STYLES for dim in DIMS]
FAST = [case for case in CASES if case[0] == "wave" or case in (("image", "new", 1), ("volume", "old", 2))]
WITH_METHODS = [(*case, method) for case in CASES for method in METHODS]
FAST_WITH_METHODS = [
    *(("linear", style, dim, method) for style, dim in (("new", 0), ("old", 1)) for method in METHODS),
    *(("wave", style, dim, method) for style, dim, method in zip(STYLES, (2, None), METHODS, strict=False)),
    ("image", "new", 1, "reconstruction"),
]


def build(network: str, style: str, dim: int | None) -> tuple[nn.Module, Tensor]:
    """The same in every call."""
    torch.manual_seed(1)
    return NETWORKS[network](STYLES[style], dim)


def half(groups: list[ChannelGroup]) -> list[tuple[ChannelGroup, list[int]]]:
    return [(group, list(range(0, group.size, 2))) for group in groups]


def cut(model: nn.Module, inputs: Tensor) -> list[tuple[ChannelGroup, list[int]]]:
    """Keep every second class of every group."""
    kept = half(find_groups(model, inputs))
    apply_changes(model, slice_members(named_tensors(model), kept), scale_counts(model, kept))
    return kept


@torch.no_grad()
def without_effect(model: nn.Module, kept: list[tuple[ChannelGroup, list[int]]]) -> nn.Module:
    """A copy in which weights that read removed classes are zero: the weights, not their directions."""
    result = with_plain_weights(model)
    tensors = named_tensors(result)
    for group, classes in kept:
        for member in group.by_role("consumer"):
            gone = [place for number in set(range(group.size)) - set(classes) for place in member.index[number]]
            tensors[member.name].index_fill_(member.dim, torch.tensor(gone), 0.0)
    return result


def assert_alike(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10 * float(expected.detach().abs().max()))


@pytest.mark.parametrize("case", some_of(CASES, *FAST), ids=str)
def test_what_is_left_of_the_weights_is_what_it_was(case):
    model, inputs = build(*case)
    kept = half(find_groups(model, inputs))
    expected = without_effect(model, kept)(inputs)
    assert not torch.allclose(expected, model(inputs), atol=1e-3)
    cut(model, inputs)
    assert_alike(model(inputs), expected)
    assert_alike(duplicate(model)(inputs), expected)
    assert_alike(baked(model)(inputs), expected)
    for module in model.modules():
        if isinstance(module, nn.Linear):
            assert (module.out_features, module.in_features) == tuple(module.weight.shape)
        elif isinstance(module, nn.modules.conv._ConvNd):
            channels = [module.out_channels, module.in_channels]
            made, read = channels[::-1] if module.transposed else channels
            assert tuple(module.weight.shape[:2]) == (made, read // module.groups)


@pytest.mark.parametrize("style", STYLES)
def test_single_groups_twice(style):
    model, inputs = build("wave", style, 2)
    for _ in range(2):
        for name in ("0", "2", "4", "7"):
            (group,) = (group for group in find_groups(model, inputs) if group.name == name)
            expected = without_effect(model, [(group, list(range(1, group.size)))])(inputs)
            remove_channels(model, group, [0])
            assert_alike(model(inputs), expected)


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("dim", [0, 1])
def test_a_part_of_a_direction_that_is_all_zero_is_a_weight_of_zero(style, dim):
    norm = STYLES[style]
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), norm(nn.Linear(6, 6), dim), nn.ReLU(), nn.Linear(6, 2)).double()
    inputs = torch.randn(3, 4).double()
    direction = named_tensors(model)["2.weight_v" if style == "old" else "2.parametrizations.weight.original1"]
    with torch.no_grad():  # one row, and one column, is left with zeros
        direction[1, 0::2] = 0.0
        direction[0::2, 3] = 0.0
    kept = half(find_groups(model, inputs))
    kept = [(group, [*range(0, group.size, 2)] if number == 0 else [1, 2, 3]) for number, (group, _) in enumerate(kept)]
    expected = without_effect(model, kept)(inputs)
    apply_changes(model, slice_members(named_tensors(model), kept))
    assert_alike(model(inputs), expected)


@pytest.mark.parametrize("case", some_of(WITH_METHODS, *FAST_WITH_METHODS), ids=str)
def test_methods_see_the_weights(case):
    *network, method = case
    if method == "reconstruction":
        # Rows of normalised weights do not move; and norms along other dimensions are several operators to a run.
        is_seen = network[0] != "image" and network[2] == 0
        method = Reconstruction(refine=False) if is_seen else Reconstruction(moments="closed_form")
    model, inputs = build(*network)
    other = baked(build(*network)[0])
    ratios = {group.name: 0.5 for group in find_groups(model, inputs)}
    plan = prune(model, inputs, ratios, method=method)
    expected = prune(other, inputs, ratios, method=method)
    assert [group.kept for group in plan.groups] == [group.kept for group in expected.groups]
    assert [group.method for group in plan.groups] == [group.method for group in expected.groups]
    assert plan.macs_after == expected.macs_after
    assert plan.params_after == sum(parameter.numel() for parameter in model.parameters())
    torch.testing.assert_close(model(inputs), other(inputs), rtol=1e-7, atol=1e-9)  # which adds up in another order


def test_a_direction_keeps_its_length():
    """A new direction as long as the weight would be learnt at another pace."""
    model, inputs = build("linear", "new", 0)
    direction = model[2].parametrizations.weight.original1
    with torch.no_grad():
        direction.mul_(100.0)
    before = float(direction.detach().norm())
    prune(model, inputs, {"0": 0.25}, method="reconstruction")
    assert float(direction.detach().norm()) > before / 2


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("style", STYLES)
def test_certificates_are_those_of_the_weights(style, method):
    model, inputs = build("linear", style, 0)
    other = baked(build("linear", style, 0)[0])
    ratios = {"0": 0.25, "2": 0.25}
    plans = [plan_pruning(each, inputs, ratios, method=method, certify=True) for each in (model, other)]
    for one, expected in zip(*(plan.groups for plan in plans), strict=True):
        assert one.radius_source == expected.radius_source
        assert one.certified_error == pytest.approx(expected.certified_error, rel=1e-6)
        assert one.input_radius == pytest.approx(expected.input_radius, rel=1e-6)


def test_rules_name_the_layers():
    model, inputs = build("wave", "new", 0)
    plan = plan_pruning(model, inputs, {"0": 0.5, nn.ConvTranspose1d: 0.5})
    assert [group.name for group in plan.groups] == ["0", "4"]
    assert plan.skipped["2"] == "is named by no rule of pruning_ratio"


class Sum(nn.Module):
    """Two weight-normed layers whose channels go together."""

    def __init__(self) -> None:
        super().__init__()
        norm = STYLES["new"]
        self.one, self.other, self.last = norm(nn.Linear(4, 6)), norm(nn.Linear(4, 6)), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.one(x).relu() + self.other(x).tanh())


def test_a_rule_names_any_layer_that_makes_the_channels():
    plan = plan_pruning(Sum(), torch.randn(2, 4), {"other": 0.5}, include_residual=True)
    assert [(group.name, group.channels_after) for group in plan.groups] == [("one", 3)]


@pytest.mark.parametrize("style", STYLES)
def test_a_plan_as_plain_data_is_the_same_plan(style):
    model, inputs = build("linear", style, 1)
    twin = duplicate(model)
    plan = plan_pruning(model, inputs, 0.4)
    again = PruningPlan.from_dict(plan.to_dict())
    apply_changes(model, plan.changes, plan.attributes)
    apply_changes(twin, again.changes, again.attributes)
    assert torch.equal(model(inputs), twin(inputs))
    assert any(change.norm_of for change in again.changes)


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("dim", DIMS)
def test_an_average_is_scaled_by_its_own_norms(style, dim):
    model, inputs = build("wave", style, dim)
    average = duplicate(model)
    with torch.no_grad():
        for parameter in average.parameters():
            parameter.mul_(1 + torch.rand_like(parameter))
    plan = plan_pruning(model, inputs, 0.4, method="magnitude")
    groups = {group.name: group for group in find_groups(model, inputs)}
    expected = without_effect(average, [(groups[one.name], list(one.kept)) for one in plan.groups])(inputs)
    shrink_copy(average, model, plan)
    assert_alike(average(inputs), expected)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("style", STYLES)
def test_an_average_that_equals_the_model_equals_it_afterwards(style, method):
    model, inputs = build("linear", style, 0)
    average, plan = duplicate(model), plan_pruning(model, inputs, 0.4, method=method)
    shrink_copy(average, model, plan)
    apply_changes(model, plan.changes, plan.attributes)
    assert all(torch.equal(one, named_tensors(model)[name]) for name, one in named_tensors(average).items())


@pytest.mark.parametrize("style", STYLES)
def test_undone(style):
    model, inputs = build("image", style, 1)
    before, expected = Snapshot(model), model(inputs)
    prune(model, inputs, 0.4)
    before.restore()
    assert model[7].weight.shape == (10, 32)
    assert torch.equal(model(inputs), expected)


@pytest.mark.parametrize("style", STYLES)
def test_a_copy_right_after_surgery(style):
    """The old style keeps the weight as an attribute, which cannot be copied with a graph and is out of date."""
    model, inputs = build("linear", style, 0)
    model(inputs)
    cut(model, inputs)
    twin = copy.deepcopy(model)
    assert twin[2].weight.shape == (5, 6)
    assert torch.equal(twin(inputs), model(inputs))


@pytest.mark.parametrize(("network", "style"), crossed(NETWORKS, STYLES))
def test_a_fresh_model_loads_a_pruned_one(network, style):
    model, inputs = build(network, style, 0)
    fresh = make_resizable(build(network, style, 0)[0])
    prune(make_resizable(model), inputs, 0.4)
    with torch.no_grad():
        for parameter in fresh.parameters():
            parameter.normal_()
    fresh.load_state_dict(model.state_dict())
    assert torch.equal(fresh(inputs), model(inputs))
    assert torch.equal(baked(fresh)(inputs), baked(model)(inputs))


@pytest.mark.parametrize("style", STYLES)
def test_half_precision(style):
    model, inputs = build("linear", style, 1)
    model = model.to(torch.bfloat16)
    expected = duplicate(model).double()
    kept = half(find_groups(model, inputs.bfloat16()))
    expected = without_effect(expected, kept)(inputs)
    cut(model, inputs.bfloat16())
    assert model[2].weight.dtype == torch.bfloat16
    error = (model(inputs.bfloat16()) - expected).detach()
    assert float(error.abs().max() / expected.detach().abs().max()) < 0.05


class Normed(Classifier):
    """A classifier with weight-normed layers."""

    def __init__(self, style: str) -> None:
        norm = STYLES[style]
        layers = [norm(nn.Linear(8, 24)), nn.ReLU(), norm(nn.Linear(24, 20), 1), nn.ReLU(), norm(nn.Linear(20, 3))]
        super().__init__(nn.Sequential(*layers))


class Watcher(pl.Callback):
    """Sees that magnitudes and directions are trained before and after an event."""

    def __init__(self) -> None:
        self.moved: list[set[str]] = []

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.before = {name: one.detach().clone() for name, one in pl_module.named_parameters()}

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        now = dict(pl_module.named_parameters())
        self.moved.append({name for name, one in self.before.items() if not torch.equal(one, now[name])})


@pytest.mark.parametrize("style", STYLES)
def test_training_goes_on(style):
    module, watcher = Normed(style), Watcher()
    average = getattr(callbacks, "EMAWeightAveraging", None) if style == "new" else None  # which cannot copy old ones
    pruning = CoresetPruningCallback(0.5, start=1, end=2, verbose=False)
    trainer = make_trainer(pruning, watcher, *([average(decay=0.8)] if average else []), max_epochs=4)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        warnings.filterwarnings("ignore", ".*num_workers.*|.*GPU.*|.*logging interval.*")
        trainer.fit(module, make_loader(8))
    assert module.net[2].in_features < 24
    names = {name for name, _ in module.named_parameters()}
    assert watcher.moved[-1] == names
    for parameter, state in trainer.optimizers[0].state.items():
        assert state["exp_avg"].shape == parameter.shape
    assert sum(module.losses[-4:]) < sum(module.losses[:4])
