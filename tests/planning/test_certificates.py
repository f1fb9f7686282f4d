"""Certificates in a plan: never below what any input does, equal to those made by hand, of the right ball."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable, Mapping
from itertools import pairwise

import pytest
import torch
from breadth import crossed
from fitting import Classifier, MemoryLogger, make_loader, make_trainer
from networks import NETWORKS, assert_untouched, make, randomised, snapshot, structure_of
from torch import Tensor, nn
from torch.nn import functional

from lightning_coreset import CoresetPruningCallback, plan_pruning, prune
from lightning_coreset.coreset import certify, find_activation, output_radius
from lightning_coreset.layers import GroupView
from lightning_coreset.methods import Magnitude, Method, Random, Reconstruction, Sensitivity
from lightning_coreset.plan import GroupPlan, PruningPlan
from lightning_coreset.planning import InputNorms, Request, make_plan, measure_input_norms
from lightning_coreset.planning.certificates import Certifier
from lightning_coreset.structure import Example, analyse, register_activation
from lightning_coreset.surgery import apply_changes, named_tensors

METHODS = [Reconstruction(), Sensitivity(), Sensitivity("pps"), Magnitude(), Random()]
RELU = find_activation("relu")


def planned(
    model: nn.Module, x: Tensor, sizes: Mapping[str, int], radius: float | None = None, method: Method | None = None
) -> PruningPlan:
    request = Request(0.5, method=method or Reconstruction(), input_radius=radius)
    inputs = measure_input_norms(model, Example.of(x))
    return make_plan(model, analyse(model, x), request, sizes=sizes, inputs=inputs)


def applied(model: nn.Module, plan: PruningPlan) -> nn.Module:
    pruned = copy.deepcopy(model)
    apply_changes(pruned, plan.changes, plan.attributes)
    return pruned


def certificate(plan: PruningPlan, name: str) -> tuple[float, float, float]:
    group = next(group for group in plan.groups if group.name == name)
    assert group.certified_error is not None
    assert group.found_error is not None
    assert group.input_radius is not None
    return group.certified_error, group.found_error, group.input_radius


# ---- the truth lies between the two numbers


def small(*between: nn.Module, bias: bool = True, norm: bool = False) -> nn.Sequential:
    """Two inputs, so that a grid sees the whole ball; the consumer is the last Linear."""
    layers = [nn.Linear(2, 8), *between, nn.Linear(8, 3, bias=bias), *([nn.BatchNorm1d(3)] if norm else [])]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        for layer in layers:
            getattr(layer, "reset_parameters", lambda: None)()
    return randomised(nn.Sequential(*layers).double().eval(), torch.Generator().manual_seed(4))  # type: ignore


class QuickGelu(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(1.702 * x)


class Hat(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(1 - (x - 0.2).abs())


SMALL: Mapping[str, Callable[[], nn.Sequential]] = {
    "relu": lambda: small(nn.ReLU()),
    "leaky": lambda: small(nn.LeakyReLU(0.3)),
    "tanh": lambda: small(nn.Tanh()),
    "gelu": lambda: small(nn.GELU()),
    "sigmoid": lambda: small(nn.Sigmoid()),
    "written out": lambda: small(QuickGelu()),
    "written out, in pieces": lambda: small(Hat()),
    "linear": lambda: small(),
    "intercept in the bias": lambda: small(nn.BatchNorm1d(8), nn.ReLU()),
    "intercept in a running mean": lambda: small(nn.BatchNorm1d(8), nn.ReLU(), bias=False, norm=True),
    "norm behind": lambda: small(nn.ReLU(), nn.BatchNorm1d(8)),
    "norms on both sides": lambda: small(nn.BatchNorm1d(8), nn.Sigmoid(), nn.BatchNorm1d(8)),
    "norm behind the consumer": lambda: small(nn.ReLU(), norm=True),
    "dropout": lambda: small(nn.ReLU(), nn.Dropout(0.5)),
}


def consumed(model: nn.Module, x: Tensor, before: nn.Module) -> Tensor:
    """What the consumer gives to what follows, with a BatchNorm's running mean, in units of what its scale was."""
    layers = list(model)  # type: ignore[arg-type]
    norm = layers.pop() if isinstance(layers[-1], nn.BatchNorm1d) else None
    with torch.no_grad():
        y = nn.Sequential(*layers)(x)
    return y if norm is None else (y - norm.running_mean) * rescaled(norm, before[-1])  # type: ignore[index]


def rescaled(norm: nn.BatchNorm1d | nn.BatchNorm2d, before: nn.BatchNorm1d | nn.BatchNorm2d) -> Tensor:
    """By how much more a BatchNorm scales than before."""
    assert norm.running_var is not None
    assert before.running_var is not None
    return ((before.running_var + before.eps) / (norm.running_var + norm.eps)).sqrt()


@pytest.mark.parametrize(("name", "method", "radius"), crossed(SMALL, METHODS, [0.5, 4.0]))
def test_the_truth_lies_between_found_and_certified(name, method, radius):
    model = SMALL[name]()
    plan = planned(model, torch.randn(4, 2).double(), {"0": 5}, radius, method)
    certified, found, used = certificate(plan, "0")
    assert used == radius
    angle = torch.linspace(0, 2 * torch.pi, 601, dtype=torch.float64)
    length = torch.linspace(0, radius, 101, dtype=torch.float64)
    ball = (length[:, None, None] * torch.stack([angle.cos(), angle.sin()], dim=1)).reshape(-1, 2)
    truth = float((consumed(model, ball, model) - consumed(applied(model, plan), ball, model)).abs().max())
    assert truth <= certified * (1 + 1e-9)
    assert found <= certified * (1 + 1e-9)
    assert 0 < found <= truth * 1.01
    if name != "written out, in pieces":  # which is flat in places, so that the ascent may stop short
        assert truth * 0.9 <= found


@pytest.mark.parametrize(("name", "radius", "method"), crossed(NETWORKS, [None, 3.0], METHODS))
def test_found_is_never_above_certified(name, radius, method):
    model, x = make(name)
    request = Request(0.4, method=method, input_radius=radius, include_residual=True)
    plan = make_plan(model, structure_of(name), request, inputs=measure_input_norms(model, Example.of(x)))
    for group in plan.groups:
        if group.certified_error is None:
            assert (group.found_error, group.input_radius) == (None, None)
            assert group.radius_source is not None
            assert group.radius_source.startswith("none: ")
        else:
            assert group.found_error is not None
            assert 0 < group.found_error <= group.certified_error * (1 + 1e-9)
            assert group.radius_source in ("measured",) if radius is None else ("given", "propagated", "measured")


def test_random_inputs_of_the_first_two_layers_never_break_it():
    model, x = make("mlp")
    plan = planned(model, x, {"0": 8}, 2.0)
    certified, found, _ = certificate(plan, "0")
    pruned = applied(model, plan)
    points = torch.randn(100_000, 6, dtype=torch.float64)
    points *= 2.0 / points.norm(dim=1, keepdim=True) * torch.rand(100_000, 1).double() ** 0.1
    with torch.no_grad():
        worst = float((model[:3](points) - pruned[:3](points)).abs().max())  # type: ignore[index]
    assert worst <= found <= certified
    assert certified < 5 * found


# ---- it is the certificate that one would make by hand


@pytest.mark.parametrize("method", METHODS, ids=str)
def test_equals_the_certificate_by_hand(method):
    model, x = make("mlp")
    plan = planned(model, x, {"0": 8}, 2.0, method)
    pruned = applied(model, plan)
    change = model[2].weight.detach().clone()  # type: ignore[index]
    change[:, list(plan.groups[0].kept)] -= pruned[2].weight.detach()  # type: ignore[index]
    rows = torch.cat([model[0].weight, model[0].bias[:, None]], 1).detach()  # type: ignore[index]
    certified, found, _ = certificate(plan, "0")
    sharp, tight = (
        max(float(certify(row[None], rows, RELU, input_radius=2.0, products=n).bound) for row in change) for n in (0, 1)
    )
    if sharp <= 1.05 * found:  # near enough to the truth
        assert certified == pytest.approx(sharp, rel=1e-3)
    else:
        assert tight * (1 - 1e-3) <= certified <= max(tight * 1.03, 1.05 * found)
        assert certified < sharp


def folded(conv: nn.Conv2d, norm: nn.BatchNorm2d) -> Tensor:
    assert norm.running_var is not None
    assert norm.running_mean is not None
    scale = norm.weight / (norm.running_var + norm.eps).sqrt()
    weight = conv.weight.flatten(1) * scale[:, None]
    return torch.cat([weight, (norm.bias - scale * norm.running_mean)[:, None]], dim=1).detach()


def test_a_convolution_by_hand():
    """Coordinates are outputs and kernel positions; the intercept in the next norm is shared among the positions."""
    model, x = make("vgg")
    plan = planned(model, x, {"3": 5})
    pruned = applied(model, plan)
    change = model[6].weight.detach().clone()  # type: ignore[index]
    ratio = rescaled(pruned[7], model[7])  # type: ignore[index]
    assert (ratio - 1).abs().max() > 1e-3
    change[:, list(plan.groups[1].kept)] -= pruned[6].weight.detach() * ratio[:, None, None, None]  # type: ignore[index]
    constant = (pruned[7].running_mean * ratio - model[7].running_mean) / 9  # type: ignore[index]
    assert constant.abs().max() > 1e-3
    rows = folded(model[3], model[4])  # type: ignore[index]
    with torch.no_grad():
        patches = functional.unfold(model[:3](x), 3, padding=1)  # type: ignore[index]
    radius = float(patches.norm(dim=1).max())
    naive = max(
        float(certify(change[:, :, i, j], rows, RELU, input_radius=radius).bound.add(constant.abs()).max())
        for i in range(3)
        for j in range(3)
    )
    certified, _, used = certificate(plan, "3")
    assert used == pytest.approx(radius)
    assert certified == pytest.approx(naive, rel=1e-3)
    with torch.no_grad():
        before = model[:7](x) - model[7].running_mean[:, None, None]  # type: ignore[index]
        after = pruned[:7](x) - pruned[7].running_mean[:, None, None]  # type: ignore[index]
    assert float((before - after * ratio[:, None, None]).abs().max()) <= 9 * certified


def test_behind_max_pooling_only_the_triangle_counts():
    model = randomised(
        nn.Sequential(nn.Conv2d(1, 40, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(40, 4, 3)).double(),
        torch.Generator().manual_seed(1),
    )
    x = torch.randn(5, 1, 12, 12, dtype=torch.float64)
    plan = planned(model, x, {"0": 3}, method=Magnitude())
    pruned = applied(model, plan)
    change = model[3].weight.detach().clone()  # type: ignore[index]
    change[:, list(plan.groups[0].kept)] = 0
    rows = torch.cat([model[0].weight.flatten(1), model[0].bias[:, None]], 1).detach()  # type: ignore[index]
    certified, _, radius = certificate(plan, "0")
    flat = change.permute(0, 2, 3, 1).reshape(-1, 40)
    by_hand = certify(flat, rows, RELU, input_radius=radius)
    assert certified == pytest.approx(float(by_hand.triangle.max()))
    assert certified > 1.1 * float(by_hand.bound.max())
    with torch.no_grad():
        assert float((model(x) - pruned(x)).abs().max()) <= 9 * certified


def test_several_consumers_the_worst_counts():
    model = nn.ModuleDict({"a": nn.Linear(4, 9), "b": nn.Linear(9, 3), "c": nn.Linear(9, 5)}).double()

    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.parts = model

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            h = self.parts["a"](x)
            return self.parts["b"](h.relu()), self.parts["c"](h.tanh())

    network, x = Two(), torch.randn(3, 4, dtype=torch.float64)
    plan = planned(network, x, {"parts.a": 5}, 2.0)
    certified, found, _ = certificate(plan, "parts.a")
    pruned = applied(network, plan)
    points = 2 * functional.normalize(torch.randn(20_000, 4, dtype=torch.float64), dim=1)
    with torch.no_grad():
        errors = [float((one - two).abs().max()) for one, two in zip(network(points), pruned(points), strict=True)]
    assert max(errors) <= found * 1.01 <= certified * 1.02
    assert found <= 1.5 * max(errors)


# ---- the cost limit


@pytest.mark.parametrize(("where", "method"), crossed([("mlp", 0), ("vgg", 1), ("vgg", 2), ("resnet", 0)], METHODS))
def test_any_number_of_sharp_rows_is_valid(where, method):
    name, number = where
    model, x = make(name)
    view = GroupView(structure_of(name).groups[number], named_tensors(model))
    selection = method.select(view, view.size // 2)
    inputs = measure_input_norms(model, Example.of(x))
    brackets = [Certifier(inputs, rows=rows).certificate(view, selection) for rows in (0, 1, 5, 64, 10_000)]
    bounds = [bracket.certified_error for bracket in brackets]
    assert None not in bounds
    assert all(one >= other * (1 - 1e-9) for one, other in pairwise(bounds))  # type: ignore[operator]
    assert bounds[-1] == pytest.approx(bounds[-2])  # it stops early: the largest is sharp
    assert name != "vgg" or bounds[-1] < bounds[0] * 0.999
    assert all(bracket.found_error <= bounds[-1] for bracket in brackets)  # type: ignore[operator]


# ---- radii


def patches_of(layer: nn.Module, x: Tensor) -> Tensor:
    """Every patch that a convolution reads, by kernels that pick one number each."""
    kernel = layer.kernel_size  # type: ignore[attr-defined]
    channels, places = x.shape[1], int(torch.tensor(kernel).prod())
    picks = torch.eye(channels * places, dtype=x.dtype).reshape(-1, channels, *kernel)  # type: ignore[misc]
    options = {"stride": layer.stride, "padding": layer.padding, "dilation": layer.dilation}
    if layer.transposed:  # type: ignore[attr-defined]
        convolve = getattr(functional, f"conv_transpose{len(kernel)}d")  # type: ignore[arg-type]
        options["output_padding"] = layer.output_padding
        return convolve(x, picks.transpose(0, 1), **options)
    return getattr(functional, f"conv{len(kernel)}d")(x, picks, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (nn.Conv1d(3, 4, 3), (2, 3, 9)),
        (nn.Conv2d(3, 4, (3, 2)), (2, 3, 6, 7)),
        (nn.Conv2d(3, 4, 3, stride=2, padding=1), (2, 3, 6, 7)),
        (nn.Conv2d(3, 4, 3, dilation=2, padding="same"), (2, 3, 6, 7)),
        (nn.Conv3d(2, 4, 2, stride=(1, 2, 1)), (2, 2, 4, 5, 6)),
        (nn.ConvTranspose2d(3, 4, 3, stride=2, output_padding=1), (2, 3, 4, 5)),
        (nn.ConvTranspose1d(3, 4, 4, stride=2, padding=1), (2, 3, 5)),
    ],
    ids=str,
)
def test_measured_radii_of_convolutions(layer, shape):
    x = torch.randn(shape)
    expected = float(patches_of(layer, x).norm(dim=1).max())
    assert measure_input_norms(layer, Example.of(x)).norms == {"weight": pytest.approx(expected, rel=1e-5)}


def test_measured_radii_of_other_layers():
    x = torch.randn(2, 5, 6)
    assert measure_input_norms(nn.Linear(6, 3), Example.of(x)).norms["weight"] == pytest.approx(
        float(x.norm(dim=2).max())
    )
    grouped, image = nn.Conv2d(4, 6, 3, groups=2), torch.randn(2, 4, 6, 6)
    halves = [functional.unfold(image[:, half], 3).norm(dim=1).max() for half in (slice(0, 2), slice(2, 4))]
    assert measure_input_norms(grouped, Example.of(image)).norms["weight"] == pytest.approx(
        float(max(halves)), rel=1e-5
    )
    mirrored = nn.Conv2d(4, 6, 3, padding=1, padding_mode="reflect")
    expected = functional.unfold(functional.pad(image, (1, 1, 1, 1), "reflect"), 3).norm(dim=1).max()
    assert measure_input_norms(mirrored, Example.of(image)).norms["weight"] == pytest.approx(float(expected), rel=1e-5)
    single = nn.Conv2d(4, 6, 3)
    alone = measure_input_norms(single, Example.of(image[0])).norms["weight"]
    assert alone == pytest.approx(float(functional.unfold(image[:1], 3).norm(dim=1).max()), rel=1e-5)


def test_a_layer_that_is_called_twice_counts_its_largest_input():
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.layer(10 * self.layer(input=x))

    model, x = Twice(), torch.randn(3, 4)
    found = measure_input_norms(model, Example.of(x))
    expected = max(x.norm(dim=1).max(), (10 * model.layer(x)).detach().norm(dim=1).max())
    assert found == InputNorms(
        {"layer.weight": pytest.approx(float(expected))}, frozenset(), frozenset({"layer.weight"})
    )


def sources(plan: PruningPlan) -> list[str | None]:
    return [group.radius_source for group in plan.groups]


def test_given_propagated_and_measured():
    model, x = make("mlp")
    structure, inputs = structure_of("mlp"), measure_input_norms(model, Example.of(x))
    assert inputs.first == {"0.weight"}
    plan = make_plan(model, structure, Request(0.5, input_radius=7.0), inputs=inputs)
    assert sources(plan) == ["given", "propagated"]
    assert plan.groups[0].input_radius == 7.0
    rows = torch.cat([model[0].weight, model[0].bias[:, None]], 1).detach()  # type: ignore[index]
    kept = rows[list(plan.groups[0].kept)]
    assert plan.groups[1].input_radius == pytest.approx(output_radius(kept, RELU, input_radius=7.0))  # type: ignore
    measured = make_plan(model, structure, Request(0.5), inputs=inputs)
    assert sources(measured) == ["measured", "measured"]
    with torch.no_grad():
        norms = [float(part.norm(dim=1).max()) for part in (x, model[:2](x))]  # type: ignore[index]
    assert [group.input_radius for group in measured.groups] == pytest.approx(norms)
    broken = make_plan(model, structure, Request(0.5, input_radius=7.0, ignore=("0",)), inputs=inputs)
    assert sources(broken) == ["measured"]


@pytest.mark.parametrize("pool", [nn.Identity(), nn.MaxPool2d(2), nn.AvgPool2d(2)], ids=str)
def test_a_propagated_radius_is_never_left(pool):
    """Not by patches of a convolution, nor behind a Flatten, nor after an affine norm behind the activation."""
    layers = [nn.Conv2d(2, 5, 3, padding=1), nn.Sigmoid(), nn.BatchNorm2d(5), pool]
    layers += [nn.Conv2d(5, 6, 3, padding=1), nn.ReLU(), pool, nn.Flatten(), nn.LazyLinear(7), nn.ReLU()]
    model = nn.Sequential(*layers, nn.Linear(7, 2))
    x = torch.randn(8, 2, 8, 8)
    model(x)
    model = randomised(model.eval(), torch.Generator().manual_seed(0)).double()
    x = x.double()
    inputs = measure_input_norms(model, Example.of(x))
    plan = make_plan(model, analyse(model, x), Request(0.4, input_radius=inputs.norms["0.weight"]), inputs=inputs)
    assert sources(plan) == ["given", "propagated", "propagated"]
    seen = measure_input_norms(applied(model, plan), Example.of(x)).norms
    for group in plan.groups:
        assert group.input_radius is not None
        assert seen[f"{group.name}.weight"] <= group.input_radius * (1 + 1e-9)


def test_a_flattened_input_is_the_networks_own():
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 6), nn.ReLU(), nn.Linear(6, 2))
    plan = prune(model, torch.randn(2, 3, 4), 0.3, certify=True, input_radius=2.5)
    assert sources(plan) == ["given"]


def test_what_cannot_be_measured_says_why():
    class Functional(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight, self.head = nn.Parameter(torch.randn(6, 4)), nn.Linear(6, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(functional.linear(x, self.weight).relu())

    holder = nn.Sequential(Functional())
    plan = prune(holder, torch.randn(3, 4), 0.3, certify=True)
    assert sources(plan) == ["measured"]  # its parent is a module with a weight, and runs first
    model, _ = make("mlp")
    zero = prune(model, torch.zeros(2, 6).double(), 0.3, certify=True)
    assert zero.groups[0].radius_source == "none: the inputs measured at 0.weight have norm 0.0"
    inputs = InputNorms({})
    unseen = make_plan(make("mlp")[0], structure_of("mlp"), Request(0.3), inputs=inputs)
    assert sources(unseen) == [f"none: no module that can be watched runs {name}.weight" for name in "02"]


# ---- how they are asked for


@pytest.mark.parametrize(("name", "method"), crossed(["mlp", "vgg", "densenet"], METHODS))
def test_certificates_change_nothing(name, method):
    model, x = make(name)
    model.train()
    before, states = snapshot(model), (random.getstate(), torch.get_rng_state())
    inputs = measure_input_norms(model, Example.of(x))
    request = Request(0.4, method=method)
    plan = make_plan(model, structure_of(name), request, inputs=inputs)
    assert_untouched(model, before)
    assert all(not module._forward_pre_hooks for module in model.modules())
    assert states[0] == random.getstate()
    assert torch.equal(states[1], torch.get_rng_state())
    bare = make_plan(model, structure_of(name), request)
    assert [group.kept for group in bare.groups] == [group.kept for group in plan.groups]
    for one, other in zip(plan.changes, bare.changes, strict=True):
        assert one.name == other.name
        assert (one.value is None) == (other.value is None)
        assert one.value is None or torch.equal(one.value, other.value)  # type: ignore[arg-type]
        assert one.factors.keys() == other.factors.keys()
        assert all(torch.equal(factors, other.factors[dim]) for dim, factors in one.factors.items())
    again = make_plan(model, structure_of(name), request, inputs=inputs)
    assert again.groups == plan.groups


def test_whole_groups_have_no_error():
    model, x = make("mlp")
    plan = planned(model, x, {"2": 4}, 3.0)
    assert (plan.groups[0].certified_error, plan.groups[0].found_error) == (0.0, 0.0)
    assert sources(plan) == ["given", "propagated"]


def test_columns_and_round_trip():
    model, x = make("mlp")
    plan = prune(model, x, 0.4, certify=True, input_radius=3.0)
    heading, _, first, *_ = str(plan).splitlines()
    assert "certified" in heading
    assert "3 given" in first
    assert f"{plan.groups[0].certified_error:.4g}" in first
    assert PruningPlan.from_dict(plan.to_dict()).groups == plan.groups
    bare = prune(make("mlp")[0], x, 0.4)
    assert "certified" not in str(bare)
    assert {bare.groups[0].certified_error, bare.groups[0].radius_source} == {None}
    old = {key: value for key, value in bare.to_dict()["groups"][0].items() if "certified" not in key}
    assert GroupPlan(**{**old, "kept": tuple(old["kept"])}) == bare.groups[0]


@pytest.mark.parametrize("radius", [0, -1.0, float("nan"), float("inf"), "3"])
def test_bad_radii(radius):
    model, x = make("mlp")
    before = snapshot(model)
    for certified in (False, True):
        with pytest.raises(ValueError, match="Expected input_radius to be a positive number"):
            prune(model, x, certify=certified, input_radius=radius)
    with pytest.raises(ValueError, match="Expected input_radius to be a positive number"):
        CoresetPruningCallback(0.5, input_radius=radius)
    assert_untouched(model, before)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_the_certificate_is_about_the_rounded_weights(dtype):
    """A channel and its twin merge without loss: rounding is all that is left."""
    model, x = make("mlp", dtype)
    with torch.no_grad():
        for tensor in (model[0].weight, model[0].bias):  # type: ignore[index]
            tensor[1] = tensor[0]
    plan = planned(model, x, {"0": 15}, 2.0, Reconstruction(ridge=1e-11))
    certified, found, _ = certificate(plan, "0")
    wide, pruned = copy.deepcopy(model).double(), applied(model, plan).double()
    points = 2 * functional.normalize(torch.randn(50_000, 6, dtype=torch.float64), dim=1)
    with torch.no_grad():
        worst = float((wide[:3](points) - pruned[:3](points)).abs().max())  # type: ignore[index]
    assert worst <= found * 1.001 <= certified * 1.002
    assert found <= 1.2 * worst


@pytest.mark.parametrize("radius", [None, 6.0])
def test_the_callback_passes_them_on(radius):
    logger, module = MemoryLogger(), Classifier()
    callback = CoresetPruningCallback(
        schedule={1: 0.3}, certify=True, input_radius=radius, example_inputs=torch.randn(4, 8), verbose=False
    )
    make_trainer(callback, max_epochs=2, logger=[logger]).fit(module, make_loader(8))
    (plan,) = callback.plans
    assert sources(plan) == (["measured"] * 2 if radius is None else ["given", "propagated"])
    for group in plan.groups:
        for error in ("expected_error", "certified_error", "found_error"):
            values = [value for _, value in logger.of(f"coreset_{error}/{group.name}")]
            assert values
            assert set(values) == {getattr(group, error)}


class CalledTwice(nn.Module):
    """A layer that reads the channels of the one below at one position, and with ``again`` their sum as well."""

    def __init__(self, again: bool) -> None:
        super().__init__()
        self.a, self.b, self.c, self.again = nn.Linear(4, 8), nn.Linear(8, 6), nn.Linear(6, 2), again

    def forward(self, x: Tensor) -> Tensor:
        h = self.a(x).relu()
        y = self.c(self.b(h).relu()).sum(1)
        return y + self.c(self.b(h.sum(1)).relu()) if self.again else y


@pytest.mark.parametrize("again", [True, False])
def test_a_layer_that_is_called_twice_gets_no_proven_radius(again):
    """What it reads the second time may be larger than the channels of one position can be."""
    plan = planned(CalledTwice(again).double(), torch.randn(3, 5, 4).double(), {"b": 3}, radius=1.0)
    (group,) = (group for group in plan.groups if group.name == "b")
    assert group.radius_source == ("measured" if again else "propagated")


@pytest.mark.parametrize(("radius", "certified"), [(3.0, True), (300.0, False)])
def test_a_registered_activation_is_certified_where_it_was_checked(radius, certified):
    """Beyond 50 nobody has looked: a sine could be registered with the turning points of there missing."""
    # Torch forgets an operator late, when it is collected, and would take another one of the same name with it.
    name = f"relu2_to_{radius:.0f}"

    @torch.library.custom_op(f"certified::{name}", mutates_args=())
    def relu2(x: Tensor) -> Tensor:
        return torch.relu(x).square()

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(2, 8), nn.Linear(8, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.b(relu2(self.a(x)))

    with register_activation(getattr(torch.ops.certified, name), lambda z: torch.relu(z).square(), turning_points=()):
        plan = plan_pruning(
            Net().double(), torch.randn(3, 2).double(), 0.5, certify=True, input_radius=radius, self_check=False
        )
    (group,) = plan.groups
    assert group.method == "reconstruction (probes)"
    assert (group.certified_error is not None) == certified
    if not certified:
        assert (
            group.radius_source
            == f"none: inputs may leave the range in which its activation certified::{name} was checked"
        )
