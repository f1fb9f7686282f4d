"""Module types that a third party describes to the package."""

from __future__ import annotations

import ast
import copy
import inspect
import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from networks import assert_untouched, snapshot
from pages import ROOT, blocks_of
from torch import Tensor, nn
from torch.nn import functional

from lightning_coreset import make_resizable, prune
from lightning_coreset.checkpoint.consistency import mismatches
from lightning_coreset.module_specs import new_sizes
from lightning_coreset.planning.input_norms import measure_input_norms
from lightning_coreset.structure import (
    Example,
    ModuleSpec,
    analyse,
    find_groups,
    module_spec,
    register_module,
)
from lightning_coreset.surgery import ModelShapes, Snapshot, remove_channels, resize
from lightning_coreset.verification import failing_groups


class MyLinear(nn.Module):
    """A layer whose own width stands in an attribute, which ``forward`` reads."""

    def __init__(self, inputs: int, width: int) -> None:
        super().__init__()
        self.width, self.fours = width, 4 * inputs
        self.weight, self.shift = nn.Parameter(torch.randn(width, inputs)), nn.Parameter(torch.randn(width))

    def forward(self, x: Tensor) -> Tensor:
        return (x @ self.weight.T + self.shift).view(*x.shape[:-1], self.width)


SPEC = ModuleSpec(
    sizes={"width": 0, "fours": (1, 4)}, width="width", vectors=("shift",), is_layer=True, head_counts=("width",)
)


def network() -> nn.Sequential:
    return nn.Sequential(nn.Linear(8, 12), nn.ReLU(), MyLinear(12, 16), nn.ReLU(), nn.Linear(16, 2))


@pytest.fixture
def registered():
    with register_module(MyLinear, SPEC):
        yield


# ---- what a spec does


def test_without_a_spec_the_self_check_keeps_the_layer_whole():
    model, x = network(), torch.randn(4, 8)
    assert list(failing_groups(model, find_groups(model, x), Example.of(x))) == ["2"]
    with register_module(MyLinear, SPEC):
        assert failing_groups(model, find_groups(model, x), Example.of(x)) == {}


@pytest.mark.usefixtures("registered")
def test_attributes_follow_surgery():
    model = network()
    prune(model, torch.randn(4, 8), {"0": 0.5, "2": 0.25})
    assert (model[2].width, model[2].fours) == (12, 24)
    assert model[2].weight.shape == (12, 6)
    assert model(torch.randn(4, 8)).shape == (4, 2)


def test_a_function_of_sizes():
    def sizes(attributes, shape):
        per_row = attributes["fours"] // attributes["weight_inputs"]
        return {"width": shape[0], "weight_inputs": shape[1], "fours": per_row * shape[1]}

    model = network()
    model[2].weight_inputs = 12
    with register_module(MyLinear, ModuleSpec(sizes=sizes)):
        prune(model, torch.randn(4, 8), {"0": 0.5, "2": 0.25})
    assert (model[2].width, model[2].weight_inputs, model[2].fours) == (12, 6, 24)


class Container(nn.Module):
    """Remembers the width of a layer inside it."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.first, self.second = 10, nn.Linear(8, 10), nn.Linear(10, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.first(x).relu().view(-1, self.inner))


def test_sizes_may_follow_a_tensor_of_a_submodule():
    model = Container()
    with register_module(Container, ModuleSpec(tensor="first.weight", sizes={"inner": 0})):
        prune(model, torch.randn(4, 8), 0.5)
        fresh = make_resizable(Container())
        fresh.load_state_dict(dict(model.state_dict()))
    assert (model.inner, model.first.out_features) == (5, 5)
    assert (fresh.inner, fresh.first.out_features) == (5, 5)


class Normed(nn.Module):
    """A group norm of another name, whose number of groups is its own attribute."""

    def __init__(self, channels: int, parts: int) -> None:
        super().__init__()
        self.channels, self.parts = channels, parts
        self.scale, self.shift = nn.Parameter(torch.rand(channels)), nn.Parameter(torch.rand(channels))

    def forward(self, x: Tensor) -> Tensor:
        return functional.group_norm(x, self.parts, self.scale, self.shift)


def test_groups_of_a_norm_follow():
    model = nn.Sequential(nn.Conv2d(3, 8, 3), Normed(8, 4), nn.ReLU(), nn.Conv2d(8, 2, 3))
    x = torch.randn(2, 3, 8, 8)
    assert find_groups(model, x) == []
    with register_module(Normed, ModuleSpec(tensor="scale", sizes={"channels": 0}, groups="parts")):
        prune(model, x, 0.5)
    assert (model[1].channels, model[1].parts, model[0].out_channels) == (4, 2, 4)


class Depthwise(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.channels, self.weight = channels, nn.Parameter(torch.randn(channels, 1, 3, 3))

    def forward(self, x: Tensor) -> Tensor:
        return functional.conv2d(x, self.weight, groups=self.channels)


@pytest.mark.parametrize(
    ("spec", "kept"),
    [
        (ModuleSpec(sizes={"channels": 0}, groups="channels"), 4),
        (ModuleSpec(groups="channels"), 8),  # nothing would update it
        (ModuleSpec(sizes={"channels": 0}), 8),
    ],
)
def test_groups_of_a_depthwise_convolution_follow_if_something_updates_them(spec, kept):
    model = nn.Sequential(nn.Conv2d(3, 8, 3), Depthwise(8), nn.ReLU(), nn.Conv2d(8, 2, 3))
    x = torch.randn(2, 3, 8, 8)
    with register_module(Depthwise, spec):
        groups = find_groups(model, x)
        for group in groups:
            remove_channels(model, group, range(4))
    assert (model[1].channels, model[0].out_channels) == (kept, kept)
    assert model(x).shape[1] == 2


class Attention(nn.Module):
    """Queries, keys and values of some heads, whose number has a name of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.number_of_parts = 4
        self.q, self.k, self.v, self.out = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (
            y.unflatten(-1, (self.number_of_parts, 2)).transpose(1, 2) for y in (self.q(x), self.k(x), self.v(x))
        )
        return self.out(((q @ k.mT).softmax(-1) @ v).transpose(1, 2).flatten(2))


def test_heads_under_another_name_follow():
    with register_module(Attention, ModuleSpec(head_counts=("number_of_parts",))):
        model = Attention()
        prune(model, torch.randn(2, 5, 8), 0.5)
    assert (model.number_of_parts, model.q.out_features) == (2, 4)


@pytest.mark.parametrize("reason", ["belongs to something fixed", lambda module: "belongs to something fixed"])
def test_unsupported_holds_for_all_tensors_inside(reason):
    model = nn.Sequential(Container(), nn.Linear(3, 4))
    with register_module(Container, ModuleSpec(unsupported=reason)):
        structure = analyse(model, torch.randn(2, 8))
    assert structure.groups == ()
    assert structure.refused["0.first"] == structure.refused["0.second"] == "belongs to something fixed"


def test_a_function_may_find_no_reason():
    with register_module(Container, ModuleSpec(unsupported=lambda module: None)):
        assert find_groups(Container(), torch.randn(2, 8))


@pytest.mark.parametrize(("is_layer", "reported"), [(True, ["1"]), (False, [])])
def test_a_layer_that_is_not_run_is_reported(is_layer, reported):
    class Unused(nn.Sequential):
        def forward(self, x: Tensor) -> Tensor:
            return self[0](x)

    model = Unused(nn.Linear(4, 3), MyLinear(4, 3))
    with register_module(MyLinear, ModuleSpec(is_layer=is_layer)):
        refused = analyse(model, torch.randn(2, 4)).refused
    assert [name for name in refused if refused[name] == "is not run by the example inputs"] == reported


def test_settle_follows_every_surgery():
    class Cached(nn.Linear):
        pass

    seen = []

    def settle(module, original):
        seen.append((module.out_features, original["out_features"], tuple(module.weight.shape)))

    x = torch.randn(2, 4)
    model = nn.Sequential(Cached(4, 8), nn.ReLU(), nn.Sequential(Cached(8, 2)))
    fresh, before = copy.deepcopy(model), Snapshot(model)
    with register_module(Cached, replace(module_spec(nn.Linear), settle=settle)):
        prune(model, x, 0.5)
        assert seen[-2:] == [(4, 8, (4, 4)), (2, 2, (2, 4))]
        seen.clear()
        resize(fresh, ModelShapes.of(model))
        assert seen == [(4, 8, (4, 4)), (2, 2, (2, 4))]
        seen.clear()
        before.restore()
        assert seen == [(8, 8, (8, 4)), (2, 2, (2, 8))]
        seen.clear()
        before.restore()  # nothing to undo
        assert seen == []


@pytest.mark.parametrize(("always_eval", "modes"), [(True, {"False"}), (False, {"False", "True"})])
def test_always_eval(always_eval, modes, capsys):
    class Moody(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            print(self.training)  # what forward changes in Python's objects is put back
            return x

    with register_module(Moody, ModuleSpec(always_eval=always_eval)):
        find_groups(nn.Sequential(nn.Linear(4, 6), Moody(), nn.Linear(6, 2)), torch.randn(2, 4))
    assert set(capsys.readouterr().out.split()) == modes


def test_subclasses_of_dropout_and_norms_stay_in_eval_mode():
    class Mine(nn.Dropout2d):
        pass

    assert module_spec(Mine).always_eval
    assert module_spec(nn.SyncBatchNorm(4)).always_eval
    assert not module_spec(nn.LayerNorm(4)).always_eval


class Centred(nn.Module):
    """Subtracts statistics, whose positions a self-check can only see if they are not all alike."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.register_buffer("average", torch.zeros(channels))
        self.register_buffer("spread", torch.ones(channels))

    def forward(self, x: Tensor) -> Tensor:
        return (x - self.average) / self.spread


@pytest.mark.parametrize("stats", [None, ("average", "spread")])
def test_running_statistics_are_randomised_by_the_self_check(stats):
    from lightning_coreset.verification.randomised import randomise_

    model = Centred(6)
    with register_module(Centred, ModuleSpec(running_stats=stats)):
        randomise_(model, torch.Generator().manual_seed(0))
    assert (len(set(model.average.tolist())) > 1) == (stats is not None)
    assert (len(set(model.spread.tolist())) > 1) == (stats is not None)
    assert bool((model.spread > 0).all())


@pytest.mark.parametrize(("reads", "measured"), [("rows", True), ("indices", False)])
def test_what_a_weight_reads(reads, measured):
    model, x = network(), torch.randn(4, 8)
    with register_module(MyLinear, ModuleSpec(reads=reads)):
        assert ("2.weight" in measure_input_norms(model, Example.of(x)).norms) == measured


def test_patches_are_measured_as_torch_convolves_them():
    class Mine(nn.Module):
        def __init__(self, convolution: nn.Conv2d) -> None:
            super().__init__()
            vars(self).update({name: value for name, value in vars(convolution).items() if name[0] != "_"})
            self.weight, self.inner = convolution.weight, convolution

        def forward(self, x: Tensor) -> Tensor:
            return functional.conv2d(x, self.weight, stride=self.stride, padding=self.padding)

    convolution, x = nn.Conv2d(3, 4, 3, stride=2, padding=1, bias=False), torch.randn(1, 3, 7, 7)
    with register_module(Mine, ModuleSpec(reads="patches")):
        found = measure_input_norms(nn.Sequential(Mine(convolution)), Example.of(x)).norms
    expected = functional.unfold(x.double(), 3, stride=2, padding=1).norm(dim=1).max()
    assert found == {"0.weight": pytest.approx(float(expected))}


@pytest.mark.parametrize("batched", [True, False])
def test_an_instance_norm_without_tensors_follows_its_input(batched):
    model = nn.Sequential(nn.Conv1d(3, 6, 3), nn.InstanceNorm1d(6), nn.ReLU(), nn.Conv1d(6, 2, 3))
    x = torch.randn(3, 9)
    (group,) = find_groups(model, x[None] if batched else x)
    remove_channels(model, group, [1, 4])
    assert model[1].num_features == 4
    assert model(x).shape == (2, 5)


@pytest.mark.parametrize(("affine", "counted"), [(True, []), (False, ["num_features"])])
def test_only_a_module_without_tensors_follows_its_input(affine, counted):
    model = nn.Sequential(nn.Conv2d(3, 6, 3), nn.InstanceNorm2d(6, affine=affine), nn.ReLU(), nn.Conv2d(6, 2, 3))
    (group,) = find_groups(model, torch.randn(1, 3, 9, 9))
    assert [count.name for count in group.counts] == counted


def test_a_norm_without_a_weight_follows_its_statistics():
    model = nn.Sequential(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6, affine=False), nn.ReLU(), nn.Conv2d(6, 2, 3))
    remove_channels(model, find_groups(model, torch.randn(1, 3, 9, 9))[0], [0, 2])
    assert model[1].num_features == 4


class Conv1D(nn.Module):
    """As in transformers: a linear layer with a transposed weight."""

    def __init__(self, nf: int, nx: int) -> None:
        super().__init__()
        self.nf, self.nx, self.weight = nf, nx, nn.Parameter(torch.randn(nx, nf))

    def forward(self, x: Tensor) -> Tensor:
        return (x.view(-1, x.size(-1)) @ self.weight).view(*x.shape[:-1], self.nf)


def test_the_linear_layers_of_gpt_2_have_both_sizes_updated():
    model = nn.Sequential(Conv1D(8, 4), nn.GELU(), Conv1D(3, 8))
    remove_channels(model, find_groups(model, torch.randn(2, 4))[0], [0, 2])
    assert (model[0].nf, model[0].nx, model[2].nf, model[2].nx) == (6, 4, 3, 6)


# ---- checkpoints


@pytest.mark.usefixtures("registered")
@pytest.mark.parametrize("with_metadata", [True, False])
def test_checkpoints_resize_the_attributes(with_metadata):
    model = make_resizable(network())
    prune(model, torch.randn(4, 8), {"0": 0.5, "2": 0.25})
    state = model.state_dict()
    fresh = make_resizable(network())
    fresh.load_state_dict(state if with_metadata else dict(state))
    assert (fresh[2].width, fresh[2].fours) == (12, 24)
    x = torch.randn(4, 8)
    torch.testing.assert_close(fresh(x), model(x), rtol=0, atol=0)
    model.load_state_dict(network().state_dict())  # and back to the original size
    assert (model[2].width, model[2].fours) == (16, 48)


@pytest.mark.usefixtures("registered")
@pytest.mark.parametrize(
    ("name", "keep", "message"),
    [
        ("2.shift", 5, r"'2.shift' has shape \(5,\) where its module has 16 channels"),
        ("2.weight", 5, r"'2.shift' has shape \(16,\) where its module has 5 channels"),
    ],
)
def test_tensors_of_one_module_that_disagree_are_rejected(name, keep, message):
    state, fresh = dict(network().state_dict()), make_resizable(network())
    state[name] = state[name][:keep]
    before = snapshot(fresh)
    with pytest.raises(ValueError, match=message):
        fresh.load_state_dict(state)
    assert_untouched(fresh, before)
    assert (fresh[2].width, fresh[2].fours) == (16, 48)


@pytest.mark.usefixtures("registered")
def test_recorded_sizes_that_do_not_fit_the_tensor_are_rejected():
    model = make_resizable(network())
    prune(model, torch.randn(4, 8), {"2": 0.25})
    state = model.state_dict()
    state._metadata[""]["lightning_coreset"]["pruned"]["sizes"]["2.fours"] = 7
    with pytest.raises(ValueError, match=r"'2.weight' has shape \(12, 12\), which does not fit fours=7, width=12"):
        make_resizable(network()).load_state_dict(state)


def test_a_shape_for_which_the_function_of_sizes_raises_is_rejected():
    def sizes(attributes, shape):
        if shape[0] % 4:
            raise ValueError("fours only")
        return {"width": shape[0]}

    state = dict(network().state_dict())
    state["2.weight"], state["2.shift"] = state["2.weight"][:6], state["2.shift"][:6]
    state["4.weight"] = state["4.weight"][:, :6]
    with register_module(MyLinear, ModuleSpec(sizes=sizes)):
        with pytest.raises(ValueError, match=r"'2.weight' has shape \(6, 12\), which does not fit its module"):
            make_resizable(network()).load_state_dict(state)
        model = network()
        before = snapshot(model)
        group = find_groups(model, torch.randn(4, 8))[-1]
        with pytest.raises(ValueError, match=r"module '2' for a tensor of shape \(6, 12\).*ValueError: fours only"):
            remove_channels(model, group, range(10))
        assert_untouched(model, before)


@pytest.mark.parametrize(
    ("module", "sizes", "shape", "fits"),
    [
        (nn.Conv2d(8, 12, 3), {}, (12, 8, 3, 3), True),
        (nn.Conv2d(8, 12, 3), {}, (12, 8, 2, 3), False),  # another kernel
        (nn.Conv2d(8, 12, (3, 5)), {}, (12, 8, 3, 5), True),
        (nn.Conv2d(8, 12, 3, groups=4), {}, (12, 2, 3, 3), True),
        (nn.Conv2d(8, 12, 3, groups=4), {"out_channels": 10}, (10, 2, 3, 3), False),  # outputs are no 4 groups
        (nn.Conv2d(8, 12, 3, groups=4), {"in_channels": 9}, (12, 2, 3, 3), False),  # nor inputs
        (nn.Conv2d(8, 12, 3, groups=4), {"groups": 0}, (12, 2, 3, 3), False),
        (nn.Conv2d(8, 16, 3, groups=8), {"groups": 7, "in_channels": 7, "out_channels": 14}, (14, 1, 3, 3), True),
        (nn.Conv2d(8, 16, 3, groups=8), {"groups": 7, "in_channels": 7, "out_channels": 14}, (15, 1, 3, 3), False),
        (nn.ConvTranspose2d(8, 12, 3, groups=4), {}, (8, 3, 3, 3), True),
        (nn.ConvTranspose2d(8, 12, 3, groups=4), {"out_channels": 14}, (8, 3, 3, 3), False),
        (nn.GroupNorm(4, 8), {}, (8,), True),
        (nn.GroupNorm(4, 8), {"num_channels": 6, "num_groups": 3}, (6,), True),
        (nn.GroupNorm(4, 8), {"num_channels": 7, "num_groups": 3}, (7,), False),
        (nn.GroupNorm(4, 8), {"num_groups": 0}, (8,), False),
        (nn.Linear(8, 12), {"in_features": 7}, (12, 8), False),
    ],
)
def test_which_shapes_a_module_of_torch_can_have(module, sizes, shape, fits):
    assert module_spec(module).fits({**vars(module), **sizes}, shape) == fits


def test_a_size_that_a_module_does_not_have_is_no_contradiction():
    model, fresh = (make_resizable(nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))) for _ in range(2))
    del model[2].in_features, fresh[2].in_features
    remove_channels(model, find_groups(model, torch.randn(1, 4))[0], [0])
    fresh.load_state_dict(dict(model.state_dict()))
    assert fresh[2].weight.shape == (2, 7)
    assert not hasattr(fresh[2], "in_features")


def test_recorded_sizes_must_fit_the_tensor_of_a_submodule():
    with register_module(Container, ModuleSpec(tensor="first.weight", sizes={"inner": 0})):
        model = make_resizable(Container())
        prune(model, torch.randn(4, 8), 0.5)
        state = model.state_dict()
        state._metadata[""]["lightning_coreset"]["pruned"]["sizes"]["inner"] = 7
        with pytest.raises(ValueError, match=r"'first\.weight' has shape \(5, 8\), which does not fit inner=7"):
            make_resizable(Container()).load_state_dict(state)


class LoadsItself(nn.Linear):
    def _load_from_state_dict(self, *arguments: object) -> None:
        super()._load_from_state_dict(*arguments)


def test_a_module_that_loads_itself_is_resized_as_well():
    model, fresh = (make_resizable(nn.Sequential(LoadsItself(4, 8), nn.ReLU(), nn.Linear(8, 3))) for _ in range(2))
    remove_channels(model, find_groups(model, torch.randn(1, 4))[0], [0])
    fresh.load_state_dict(dict(model.state_dict()))
    assert fresh[0].out_features == 7


class Packed(nn.Linear):
    """Its weight has another shape than its sizes say, as quantised layers of other packages have."""

    def __init__(self) -> None:
        super().__init__(3, 2)
        self.weight = nn.Parameter(torch.randn(6, 1))

    def forward(self, x: Tensor) -> Tensor:
        return functional.linear(x, self.weight.view(2, 3), self.bias)


@pytest.mark.parametrize("with_metadata", [True, False])
def test_loading_keeps_the_sizes_of_modules_that_do_not_change(with_metadata):
    model, fresh = (
        make_resizable(nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3), Packed())) for _ in range(2)
    )
    remove_channels(model, find_groups(model, torch.randn(1, 4))[0], [0])
    state = model.state_dict()
    fresh.load_state_dict(state if with_metadata else dict(state))
    assert (fresh[0].out_features, fresh[3].in_features, fresh[3].out_features) == (7, 3, 2)


# ---- numpy integers


def test_sizes_may_be_integers_of_numpy():
    model = make_resizable(nn.Sequential(nn.Linear(np.int64(8), np.int64(6)), nn.ReLU(), nn.Linear(6, 2)))
    fresh, before = copy.deepcopy(model), Snapshot(model)
    (group,) = find_groups(model, torch.randn(2, 8))
    remove_channels(model, group, [0, 1])
    state = model.state_dict()
    before.restore()
    assert model[0].out_features == 6
    fresh.load_state_dict(state)
    assert fresh[0].out_features == 4
    assert type(state._metadata[""]["lightning_coreset"]["original"]["sizes"]["0.out_features"]) is int


# ---- which spec a module has


class Derived(MyLinear):
    pass


def test_a_subclass_has_the_spec_of_its_base_unless_it_has_its_own():
    own = ModuleSpec(is_layer=True)
    with register_module(MyLinear, SPEC):
        assert module_spec(Derived) is SPEC
        with register_module(Derived, own):
            assert module_spec(Derived(2, 2)) is own
            assert module_spec(MyLinear) is SPEC
        assert module_spec(Derived) is SPEC
    assert module_spec(Derived) is module_spec(nn.Module) is not SPEC


def test_a_base_of_torch_counts_as_well():
    class Mine(nn.Conv2d):
        pass

    assert module_spec(Mine) is module_spec(nn.Conv3d)
    assert module_spec(Mine).groups == "groups"


@pytest.mark.parametrize("name", [f"{MyLinear.__module__}.MyLinear", "*.MyLinear", f"{MyLinear.__module__}.*"])
def test_a_class_may_be_given_by_its_qualified_name(name):
    with register_module(name, SPEC):
        assert module_spec(MyLinear) is SPEC
        assert module_spec(nn.ReLU) is not SPEC
    assert module_spec(MyLinear) is not SPEC


def test_a_bare_name_of_another_package_is_not_taken_for_ours():
    with register_module("elsewhere.MyLinear", SPEC):
        assert module_spec(MyLinear) is not SPEC


def test_override_and_removal_in_any_order():
    first, second = ModuleSpec(is_layer=True), ModuleSpec(width="x", sizes={"x": 0})
    original = module_spec(nn.Linear)
    with pytest.raises(ValueError, match="has a ModuleSpec already"):
        register_module(nn.Linear, first)
    one = register_module(nn.Linear, first, override=True)
    two = register_module(nn.Linear, second, override=True)
    assert module_spec(nn.Linear) is second
    one.remove()
    assert module_spec(nn.Linear) is second
    two.remove()
    two.remove()
    assert module_spec(nn.Linear) is original


KNOWN_TYPES = {"Convolution", "TransposedConvolution", "BatchNorm", "BatchOrInstanceNorm", "InstanceNorm", "Dropout"}


CONTAINERS = {"nn.Sequential", "nn.ParameterList", "nn.ParameterDict"}
"""They hold layers or tensors, and compute nothing of their own."""


def module_types(tree: ast.AST) -> set[str]:
    """The types of modules that a file names in its code; containers are none."""
    names = {
        f"{node.value.id}.{node.attr}"
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name)
    }
    of_torch = {
        name
        for name in names
        if name.startswith("nn.")
        and inspect.isclass(getattr(nn, name[3:], None))
        and issubclass(getattr(nn, name[3:]), nn.Module)
        and name not in {"nn.Module", *CONTAINERS}
    }
    imported = {alias.name for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) for alias in node.names}
    return of_torch | imported & KNOWN_TYPES


def test_no_other_file_knows_types_of_modules():
    package = ROOT / "lightning_coreset"
    found = {
        path.relative_to(package).as_posix(): types
        for path in sorted(package.rglob("*.py"))
        if path.name != "_compat.py" and (types := module_types(ast.parse(path.read_text(encoding="utf-8"))))
    }
    assert "nn.Linear" in found.pop("module_specs/table.py")
    # The one type that becomes another, and that is followed as that other one.
    for path in ("module_specs/attention.py", "structure/attention.py"):
        assert found.pop(path) == {"nn.MultiheadAttention"}
    assert "nn.Linear" in found.pop("latency/layers.py")  # those that it can time alone
    # What it does with a BatchNorm, torch's `update_bn` does: it sets the momentum and resets the statistics.
    assert found == {"training/recalibration.py": {"BatchNorm"}}


# ---- what is wrong


@pytest.mark.parametrize(
    ("kind", "spec", "error", "message"),
    [
        (3, SPEC, TypeError, "class of modules or its qualified name but got 3"),
        (dict, SPEC, TypeError, "class of modules or its qualified name"),
        ("MyLinear", SPEC, ValueError, "qualified name such as"),
        (nn.Module, SPEC, ValueError, "from which every module derives"),
        (MyLinear, {"width": 0}, TypeError, "Expected a ModuleSpec but got"),
    ],
)
def test_wrong_registrations(kind, spec, error, message):
    with pytest.raises(error, match=message):
        register_module(kind, spec)


@pytest.mark.parametrize(
    ("values", "error", "message"),
    [
        ({"sizes": {"width": "0"}}, TypeError, "to map attributes to a dimension"),
        ({"sizes": {"width": True}}, TypeError, "to map attributes to a dimension"),
        ({"sizes": {"width": (0, 1, 2)}}, TypeError, "to map attributes to a dimension"),
        ({"sizes": {0: 0}}, TypeError, "to map attributes to a dimension"),
        ({"sizes": {"width": (0, 0)}}, ValueError, "multiple of 'width' in `sizes` to be positive but got 0"),
        ({"sizes": ["width"]}, TypeError, "a dict or a function"),
        ({"sizes": {"width": 0}, "width": "depth"}, ValueError, r"width='depth' .* these are \['width'\]"),
        ({"tensor": 3}, TypeError, "`tensor` to be names"),
        ({"tensor": None}, TypeError, "`tensor` to be names"),
        ({"head_counts": ["heads"]}, TypeError, "`head_counts` to be names"),
        ({"groups": 2}, TypeError, "`groups` to be names"),
        ({"vectors": (1,)}, TypeError, "`vectors` to be names"),
        ({"running_stats": ("mean",)}, ValueError, r"\(mean, variance\)"),
        ({"input_sizes": ("width",)}, TypeError, "`input_sizes` to be a dict"),
        ({"input_sizes": {"width": None}}, TypeError, "`input_sizes` to map"),
        ({"other_sizes": {"width": 0}}, TypeError, "`other_sizes` to map"),
        ({"other_sizes": ("width",)}, TypeError, "`other_sizes` to map"),
        ({"expected_shape": tuple}, TypeError, "comes with a function"),
        ({"reads": "pixels"}, ValueError, "`reads` to be one of"),
        ({"is_layer": "yes"}, TypeError, "`is_layer` to be a bool"),
        ({"head_widths": (0,)}, TypeError, r"`head_widths` to be a function of shapes but got \(0,\)"),
        ({"settle": 1}, TypeError, "`settle` to be a function of a module and its sizes but got 1"),
        ({"always_eval": 1}, TypeError, "`always_eval` to be a bool"),
        ({"unsupported": " "}, TypeError, "a reason in words"),
        ({"unsupported": 1}, TypeError, "a reason in words"),
    ],
)
def test_wrong_specs(values, error, message):
    with pytest.raises(error, match=message):
        ModuleSpec(**values)


class Bottleneck(nn.Module):
    """Remembers the size of each of its weights, and its code reads both."""

    def __init__(self, inputs: int, inner: int, outputs: int) -> None:
        super().__init__()
        self.inner, self.width = inner, outputs
        self.down, self.weight = nn.Parameter(torch.randn(inner, inputs)), nn.Parameter(torch.randn(outputs, inner))

    def forward(self, x: Tensor) -> Tensor:
        return functional.linear(functional.linear(x, self.down).view(-1, self.inner).relu(), self.weight).view(
            -1, self.width
        )


def test_attributes_that_follow_another_tensor():
    def build() -> nn.Module:
        return nn.Sequential(Bottleneck(6, 12, 10), nn.ReLU(), nn.Linear(10, 3))

    x = torch.randn(4, 6)
    spec = ModuleSpec(sizes={"width": 0}, other_sizes={"inner": ("down", 0)}, width="width", is_layer=True)
    with register_module(Bottleneck, spec):
        model, fresh = build(), make_resizable(build())
        plan = prune(model, x, {"0": 0.5}, change_attributes=False)
        assert (model[0].inner, model[0].width) == (6, 5), plan
        fresh.load_state_dict({name: tensor.clone() for name, tensor in model.state_dict().items()})
        assert (fresh[0].inner, fresh[0].width) == (6, 5)
        torch.testing.assert_close(fresh(x), model(x), rtol=0, atol=0)
        original, now = ModelShapes.of(build()), ModelShapes.of(model)
        wrong = replace(now, sizes={**now.sizes, "0.inner": 7})
        assert [*mismatches(build(), original, now)] == []
        assert [*mismatches(build(), original, wrong)] == ["'0.down' has shape (6, 6), which does not fit inner=7"]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"sizes": {"wdth": 0}}, "module '2' (MyLinear) to have the integer attribute 'wdth', which"),
        ({"sizes": {"weight": 0}}, "to have the integer attribute 'weight'"),
        ({"sizes": {"training": 0}}, "to have the integer attribute 'training'"),
        ({"head_counts": ("parts",)}, "to have the integer attribute 'parts'"),
        ({"groups": "parts"}, "to have the integer attribute 'parts'"),
        ({"input_sizes": {"parts": 1}}, "to have the integer attribute 'parts'"),
        ({"running_stats": ("mean", "variance")}, "to have the buffer 'mean'"),
        ({"tensor": "weigth", "sizes": {"width": 0}}, "to have a parameter or buffer 'weigth'"),
        ({"tensor": ("a", "b.c"), "sizes": {"width": 0}}, "to have a parameter or buffer 'a' or 'b.c'"),
        (
            {"sizes": {"width": 1}},
            "'width' of module '2' (MyLinear) to be 12, by its ModuleSpec and the shape (16, 12)",
        ),
        ({"sizes": {"width": (0, 2)}}, "to be 32"),
        ({"sizes": {"width": 2}}, "module '2' for a tensor of shape (16, 12) but it raised IndexError"),
        ({"sizes": lambda attributes, shape: {"width": 1 + shape[0]}}, "to be 17"),
        ({"sizes": lambda attributes, shape: {"missing": shape[0]}}, "'missing' of module '2' (MyLinear) to be 16"),
        (
            {"sizes": lambda attributes, shape: {"width": 0.5}},
            "integers or tuples of integers as sizes of module '2' but got {'width': 0.5}",
        ),
        ({"sizes": lambda attributes, shape: None}, "but it raised TypeError"),
        ({"other_sizes": {"width": ("weight", 1)}}, "'width' of module '2' (MyLinear) to be 12, by its ModuleSpec and"),
    ],
)
def test_a_spec_that_does_not_describe_its_module_changes_nothing(values, message):
    model, x = network(), torch.randn(4, 8)
    group = find_groups(model, x)[-1]
    before = snapshot(model)
    with register_module(MyLinear, ModuleSpec(**values)):
        with pytest.raises(ValueError, match=re.escape(message)):
            prune(model, x, 0.5)
        if "sizes" in values and "tensor" not in values:
            with pytest.raises(ValueError, match=re.escape(message)):
                remove_channels(model, group, [0])
        pruned = {name: tensor[:1] if name.startswith("4") else tensor for name, tensor in model.state_dict().items()}
        with pytest.raises(ValueError, match=re.escape(message)):
            make_resizable(copy.deepcopy(model)).load_state_dict(pruned)
    assert_untouched(model, before)


@pytest.mark.parametrize("absent", ["registered as none", "parametrized"])
def test_a_tensor_that_a_module_lacks_for_a_reason_is_no_error(absent):
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.channels = 8
            self.register_parameter("weight", None if absent == "registered as none" else nn.Parameter(torch.ones(8)))

        def forward(self, x: Tensor) -> Tensor:
            return x

    model = nn.Sequential(nn.Linear(4, 6), Scaled(), nn.Linear(6, 2))
    computed = []

    class Once(nn.Module):
        def forward(self, weight: Tensor) -> Tensor:
            computed.append(weight)
            return weight

    if absent == "parametrized":
        nn.utils.parametrize.register_parametrization(model[1], "weight", Once())
        computed.clear()
    with register_module(Scaled, ModuleSpec(sizes={"channels": 0})):
        assert find_groups(model, torch.randn(2, 4))
    assert computed == [], "a parametrized weight was computed, which may have side effects"


def test_what_has_no_shape_yet_cannot_disagree():
    class Lazy(nn.LazyLinear):
        pass

    model = make_resizable(nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2), Lazy(2)))
    small = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2))
    with (
        register_module(Lazy, module_spec(nn.Linear)),
        pytest.raises(ValueError, match=r"'3\.weight' is missing"),
    ):
        model.load_state_dict(small.state_dict())


def test_torch_modules_that_are_wrong_about_themselves_are_corrected():
    """As after weights were sliced by hand: only what users register is held to its word."""
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    model[0].out_features = 99
    (group,) = find_groups(model, torch.randn(1, 4))
    remove_channels(model, group, [0])
    assert model[0].out_features == 7
    del model[2].in_features
    assert new_sizes("2", model[2], (2, 5)) == {"out_features": 2}


def test_the_guide_runs():
    code = [block.code for block in blocks_of("extending.md") if block.section == "Module types"]
    names: dict[str, object] = {}
    try:
        for each in code:
            exec(each, names)
        assert module_spec(names["ScaledLinear"]) is module_spec(nn.Module), "the handle was removed"
        assert module_spec(names["OwnConv2d"]) is module_spec(nn.Conv2d)
    finally:
        names["handle"].remove()
