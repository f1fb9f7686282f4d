"""The plan of a pruning event: which groups, what becomes of each tensor, and in which order."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
from breadth import crossed
from networks import NETWORKS, assert_same_random, assert_untouched, make, random_states, snapshot, structure_of
from torch import nn

from lightning_coreset.layers import LayerPair
from lightning_coreset.methods import Magnitude, Method, Random, Reconstruction, Sensitivity
from lightning_coreset.plan import ParameterChange, PruningPlan
from lightning_coreset.planning import Request, bottom_up_sizes, final_sizes, is_residual, make_plan, measure, prunable
from lightning_coreset.structure import analyse
from lightning_coreset.surgery import apply_changes, named_tensors, new_value

METHODS = [Reconstruction(), Sensitivity(), Sensitivity("draws"), Sensitivity("pps"), Magnitude(), Random()]


def same_changes(one: PruningPlan, other: PruningPlan, **tolerance: float) -> bool:
    tolerance = tolerance or {"rtol": 0, "atol": 0}
    left, right = ({change.name: change for change in plan.changes} for plan in (one, other))
    if left.keys() != right.keys() or [g.kept for g in one.groups] != [g.kept for g in other.groups]:
        return False
    pairs = [(numbers(left[name]), numbers(right[name])) for name in left]
    return all(
        a.keys() == b.keys()
        and all(a[key].shape == b[key].shape and torch.allclose(a[key], b[key], **tolerance) for key in a)
        for a, b in pairs
    )


def numbers(change: ParameterChange) -> dict[object, torch.Tensor]:
    """All that a change says of content."""
    return {**change.factors} if change.value is None else {"value": change.value, **change.factors}


@pytest.mark.parametrize(("name", "method"), crossed(NETWORKS, METHODS))
def test_planning_only_reads(name, method):
    model, _ = make(name)
    structure = structure_of(name)
    model.train()
    before, randomness = snapshot(model), random_states()
    plan = make_plan(model, structure, Request(0.4, method=method, include_residual=True))
    assert plan.channels_removed > 0
    assert_untouched(model, before)
    assert_same_random(randomness)


@pytest.mark.parametrize("method", METHODS, ids=str)
def test_changes_fit_together(method):
    """Every change has the shape of what the groups keep, and of its value."""
    model, _ = make("vgg")
    plan = make_plan(model, structure_of("vgg"), Request(0.5, method=method))
    tensors = named_tensors(model)
    for change in plan.changes:
        assert tuple(tensors[change.name].shape) == change.old_shape
        sliced = [len(change.kept[dim]) if dim in change.kept else old for dim, old in enumerate(change.old_shape)]
        assert tuple(sliced) == change.new_shape
        if change.value is not None:
            assert tuple(change.value.shape) == change.new_shape
            assert change.value.dtype == tensors[change.name].dtype
        assert {dim: len(own) for dim, own in change.factors.items()} == {
            dim: change.new_shape[dim] for dim in change.factors
        }
    for group in plan.groups:
        assert group.channels_after == len(group.kept) >= 1
    apply_changes(model, plan.changes, plan.attributes)
    assert [layer.out_channels for layer in model if isinstance(layer, nn.Conv2d)] == [
        group.channels_after for group in plan.groups
    ]


@pytest.mark.parametrize("method", METHODS, ids=str)
def test_a_seed_decides(method):
    model, structure = make("vgg")[0], structure_of("vgg")
    first, again, other = (make_plan(model, structure, Request(0.5, method=method, seed=s)) for s in (3, 3, 4))
    assert same_changes(first, again)
    assert same_changes(first, other) == isinstance(method, Reconstruction | Magnitude)


def test_sensitivity_reweights_the_consumers_alone():
    model, x = make("mlp")
    plan = make_plan(model, analyse(model, x), Request(0.5, method=Sensitivity("pps")))
    assert all(change.value is None for change in plan.changes)
    factors = {(change.name, *change.factors) for change in plan.changes if change.factors}
    assert factors == {("2.weight", 1), ("4.weight", 1)}
    (last,) = [change for change in plan.changes if change.name == "4.weight"]
    assert bool((last.factors[1] >= 1 - 1e-9).all())  # 1 / inclusion probability
    assert bool((last.factors[1] > 1.01).any())
    whole = model[4].weight.detach().clone()
    apply_changes(model, plan.changes)
    torch.testing.assert_close(model[4].weight.detach(), whole[:, last.kept[1]] * last.factors[1])


@pytest.mark.parametrize("method", [Magnitude(), Random()], ids=str)
def test_comparisons_only_slice(method):
    model, x = make("vgg")
    plan = make_plan(model, analyse(model, x), Request(0.5, method=method))
    assert all(change.value is None and not change.factors for change in plan.changes)


@pytest.mark.parametrize("sampler", ["draws", "pps"])
def test_the_pruned_network_is_right_on_average(sampler):
    """One hidden layer: over the draws, the mean of the pruned outputs is the output of the whole network."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 12), nn.ReLU(), nn.Linear(12, 3)).double()
    x = torch.randn(5, 4, dtype=torch.float64)
    structure = analyse(model, x)
    with torch.no_grad():
        hidden, expected = model[:2](x), model(x)
        outputs = []
        for seed in range(300):
            request = Request(0.5, method=Sensitivity(sampler), seed=seed)
            plan = make_plan(model, structure, request, sizes={"0": 5})
            (change,) = [change for change in plan.changes if change.name == "2.weight"]
            outputs.append(hidden[:, change.kept[1]] @ new_value(change, model[2].weight).T + model[2].bias)
    outputs = torch.stack(outputs)
    error = (outputs.mean(0) - expected).abs() / (outputs.std(0) / len(outputs) ** 0.5)
    assert outputs.std(0).min() > 1e-3
    assert error.max() < 4.0
    assert error.pow(2).mean() < 2.5


@pytest.mark.parametrize(
    ("name", "method"),
    crossed(["mlp", "lenet", "vgg"], [Magnitude(), Reconstruction(), Reconstruction(ridge=1e-9)]),
)
def test_every_group_is_planned_from_what_the_earlier_ones_left(name, method):
    """At once equals one group after another, each on a network that is already smaller."""
    at_once, x = make(name)
    step_by_step, _ = make(name)
    request = Request(0.5, method=method)
    sizes = {group.name: group.size // 2 for group in analyse(at_once, x).groups}
    plan = make_plan(at_once, analyse(at_once, x), request, sizes=sizes)
    apply_changes(at_once, plan.changes)
    kept = []
    for group, size in sizes.items():
        step = make_plan(step_by_step, analyse(step_by_step, x), request, sizes={group: size})
        kept += [one.kept for one in step.groups if one.name == group]
        apply_changes(step_by_step, step.changes)
    assert kept == [group.kept for group in plan.groups]
    for key, tensor in named_tensors(at_once).items():
        torch.testing.assert_close(tensor, named_tensors(step_by_step)[key], rtol=1e-9, atol=1e-9, msg=key)


def test_the_second_layer_forgets_what_the_first_lost():
    """A filter that is large only by a channel that has just gone is not large any more."""
    model, x = make("mlp")
    with torch.no_grad():
        model[0].weight[3] *= 1e-3
        model[2].weight[5, 3] = 100.0
        model[2].weight[5, :3] = model[2].weight[5, 4:] = 1e-3 * torch.ones(1, dtype=torch.float64)
    structure = analyse(model, x)
    request = Request(0.5, method=Magnitude())
    alone = make_plan(model, structure, request, sizes={"2": 11})
    after = make_plan(model, structure, request, sizes={"0": 15, "2": 11})
    assert 5 in alone.groups[1].kept
    assert 3 not in after.groups[0].kept
    assert 5 not in after.groups[1].kept


def test_groups_that_keep_all_are_in_the_plan():
    model, x = make("mlp")
    plan = make_plan(model, analyse(model, x), Request(0.5), sizes={"2": 4})
    assert [(g.name, g.channels_before, g.channels_after) for g in plan.groups] == [("0", 16, 16), ("2", 12, 4)]
    assert plan.groups[0].method == "kept whole"
    assert plan.channels_removed == 8


@pytest.mark.parametrize("method", METHODS, ids=str)
def test_a_ratio_of_zero_changes_nothing(method):
    model, x = make("vgg")
    plan = make_plan(model, analyse(model, x), Request(0.0, method=method))
    assert plan.changes == ()
    assert (plan.reached, plan.sparsity, plan.channels_removed) == (0, 0, 0)


def test_channels_that_contribute_nothing_go_as_well():
    """The sampler keeps fewer where the others are dead; the counts are those of what really stays."""
    model, x = make("mlp")
    with torch.no_grad():
        model[0].weight[2:] = 0
        model[0].bias[2:] = 0
    plan = make_plan(model, analyse(model, x), Request(0.1, method=Sensitivity()))
    assert plan.groups[0].kept == (0, 1)
    apply_changes(model, plan.changes)
    assert plan.params_after == sum(parameter.numel() for parameter in model.parameters())


# ---- which groups


def test_residual_streams_are_left_out_unless_wanted():
    model, x = make("resnet")
    structure = analyse(model, x)
    groups, skipped = prunable(model, structure, Request(0.5))
    assert [group.name for group in groups] == ["stem", "conv1"]
    assert "include_residual=True" in skipped["conv2"]
    groups, skipped = prunable(model, structure, Request(0.5, include_residual=True))
    assert [group.name for group in groups] == ["stem", "conv1", "conv2"]
    assert skipped == {"head": "makes outputs of the network"}
    assert [is_residual(group) for group in groups] == [False, False, True]


def test_gates_are_no_residual_streams():
    for name in ("gated", "mobilenet"):
        model, x = make(name)
        assert not any(is_residual(group) for group in analyse(model, x).groups)


@pytest.mark.parametrize(
    ("network", "ignore", "left"),
    [
        ("resnet", ("conv1",), ["stem"]),
        ("resnet", ("conv?",), ["stem"]),
        ("resnet", ("*",), []),
        ("vgg", ("[06]", "3"), []),
        ("vgg", ("0",), ["3", "6"]),
        ("mobilenet", ("excite",), ["squeeze", "project"]),  # coupled with `expand` by its gate
        ("gated", ("gate",), []),
        ("unet", ("u*", "enter"), ["down", "merge"]),
    ],
)
def test_patterns_are_of_shells(network, ignore, left):
    model, x = make(network)
    structure = analyse(model, x)
    groups, skipped = prunable(model, structure, Request(0.5, ignore=ignore))
    assert [group.name for group in groups] == left
    ignored = [name for name, reason in skipped.items() if reason.startswith("is ignored by")]
    assert len(ignored) >= 1
    if left:
        plan = make_plan(model, structure, Request(0.2, ignore=ignore))
        assert [group.name for group in plan.groups] == left
        assert plan.skipped == skipped


def test_ignored_layers_keep_their_outputs_but_not_their_inputs():
    model, x = make("mlp")
    plan = make_plan(model, analyse(model, x), Request(0.3, ignore=("2",)))
    apply_changes(model, plan.changes)
    assert (model[2].in_features, model[2].out_features) == (plan.groups[0].channels_after, 12)


@pytest.mark.parametrize(
    ("pattern", "close"), [("conv3", "'conv1'"), ("hed", "'head'"), ("stem_nrom", "'stem_norm'"), ("head.*", "'head'")]
)
def test_a_pattern_that_matches_nothing_names_what_is_close(pattern, close):
    model, x = make("resnet")
    with pytest.raises(ValueError, match=f"(?s){pattern.replace('*', '.')}.*{close}"):
        make_plan(model, analyse(model, x), Request(0.5, ignore=("conv1", pattern)))


class Nothing(nn.Module):
    """Whatever is inside is mixed, or goes out."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm, self.mixed = nn.Linear(6, 6), nn.LayerNorm(6), nn.Linear(6, 6)
        self.last, self.never = nn.Linear(6, 3), nn.Linear(6, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(self.mixed(self.norm(self.first(x).softmax(-1))).softmax(-1))


def test_nothing_to_prune_tells_why_layer_by_layer():
    model = Nothing()
    structure = analyse(model, torch.randn(4, 6))
    with pytest.raises(ValueError, match="Expected a model with channels that can be pruned") as caught:
        make_plan(model, structure, Request(0.5))
    lines = str(caught.value).splitlines()
    for name, reason in [
        ("first", "softmax"),
        ("last", "makes outputs of the network"),
        ("never", "is not run by the example inputs"),
        ("mixed", "softmax"),
    ]:
        told = [line.strip().partition(": ") for line in lines]
        assert any(name in names and reason in rest for names, _, rest in told), (name, lines)


def test_nothing_to_prune_is_short_for_large_models():
    model = nn.ModuleList(nn.Linear(2, 2) for _ in range(60))
    structure = analyse(nn.Sequential(*[nn.Sequential(layer, nn.LayerNorm(2)) for layer in model]), torch.randn(1, 2))
    with pytest.raises(ValueError, match=r"0-58\.0 \(59\): each is normalised") as caught:
        make_plan(model, structure, Request(0.5))
    assert len(str(caught.value).splitlines()) == 3

    many = replace(structure, groups=(), refused={f"layer{number}": f"is {number}" for number in range(60)})
    with pytest.raises(ValueError, match=r"\.\.\. and 52 more reasons") as caught:
        make_plan(model, many, Request(0.5))
    assert len(str(caught.value).splitlines()) == 10


@pytest.mark.parametrize("ask", [make_plan, measure, final_sizes])
def test_bad_ratios(ask):
    model, x = make("mlp")
    for ratio in [-0.1, 1.0, 1, 1.5, float("nan"), float("inf"), "0.5", None, True, [0.5]]:
        with pytest.raises(ValueError, match=r"Expected pruning_ratio to be a number in \[0, 1\)"):
            ask(model, analyse(model, x), Request(ratio))


# ---- sizes


def test_final_sizes_are_those_of_the_plan():
    model, x = make("vgg")
    structure = analyse(model, x)
    for ratio in (0.2, 0.6):
        plan = make_plan(model, structure, Request(ratio))
        sizes = final_sizes(model, structure, Request(ratio))
        assert list(sizes.items()) == [(group.name, group.channels_after) for group in plan.groups]


@pytest.mark.parametrize(
    ("fraction", "groups"), [(0.0, "a"), (0.1, "a"), (0.5, "ab"), (0.74, "abc"), (0.99, "abcd"), (1.0, "abcd")]
)
def test_bottom_up_takes_the_first_groups(fraction, groups):
    final = {"a": 4, "b": 3, "c": 2, "d": 1}
    assert bottom_up_sizes(final, fraction) == {name: final[name] for name in groups}


def test_bottom_up_ends_where_together_does():
    model, x = make("vgg")
    structure = analyse(model, x)
    final = final_sizes(model, structure, Request(0.5))
    original = measure(model, structure, Request(0.5))
    for fraction in (0.3, 0.6, 1.0):
        sizes = bottom_up_sizes(final, fraction)
        plan = make_plan(model, analyse(model, x), Request(0.5), original=original, sizes=sizes)
        apply_changes(model, plan.changes)
        assert {g.name: g.channels_after for g in plan.groups if g.name in sizes} == sizes
    assert plan.reached == pytest.approx(make_plan(make("vgg")[0], structure, Request(0.5)).reached)


@pytest.mark.parametrize(("method", "dtype"), crossed(METHODS, [torch.float32, torch.bfloat16, torch.float16]))
def test_values_have_the_dtype_of_their_tensors(method: Method, dtype):
    model, _ = make("vgg", dtype)
    plan = make_plan(model, structure_of("vgg"), Request(0.5, method=method))
    assert all(change.value is None or change.value.dtype == dtype for change in plan.changes)
    apply_changes(model, plan.changes)
    assert {parameter.dtype for parameter in model.parameters()} == {dtype}


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("method", METHODS, ids=str)
def test_weights_that_are_not_finite_are_named(method: Method, value: float):
    model, _ = make("mlp")
    before = copy.deepcopy(model)
    with torch.no_grad():
        model[2].weight[3, 5] = before[2].weight[3, 5] = value
    if isinstance(method, Random):
        assert make_plan(model, structure_of("mlp"), Request(0.5, method=method)).channels_removed > 0
        return
    with pytest.raises(ValueError, match=r"but '2.weight' holds NaN or infinity.*checkpoint.*ignore=\['(0|2)'\]"):
        make_plan(model, structure_of("mlp"), Request(0.5, method=method))
    for one, other in zip(model.parameters(), before.parameters(), strict=True):
        assert torch.equal(one.nan_to_num(7.0), other.nan_to_num(7.0))


# ---- norms that need not be read twice


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_filters_known_from_before_are_those_of_the_cut_weight(monkeypatch, dtype):
    """A kernel that reads one group and makes the next is looked at once."""
    model, _ = make("vgg", dtype)
    structure = structure_of("vgg")
    request = Request(0.5, method=Sensitivity("pps"))
    known: list[str] = []
    norms = LayerPair.producer_norms

    def noted(pair: LayerPair) -> torch.Tensor:
        found = norms(pair)
        if pair.view.state.filter_norms.pop(pair.path.producer.weight, None) is not None:
            known.append(pair.path.producer.weight)
            rtol = 1e-2 if dtype == torch.bfloat16 else 1e-5
            torch.testing.assert_close(found, norms(pair), rtol=rtol, atol=0)
        return found

    monkeypatch.setattr(LayerPair, "producer_norms", noted)
    make_plan(model, structure, request)
    convolutions = [f"{number}.weight" for number, layer in enumerate(model) if isinstance(layer, nn.Conv2d)]
    assert known == convolutions[1:]
