"""The planned reconstruction of a group against naive references, in float64."""

from __future__ import annotations

import copy
import random
from collections.abc import Mapping

import pytest
import torch
from networks import NETWORKS, assert_untouched, make, randomised, snapshot, structure_of
from torch import Tensor, nn

from lightning_coreset import Reconstruction, prune
from lightning_coreset.coreset import (
    Gaussian,
    activation_moments,
    batchnorm_preactivations,
    find_activation,
    linear_preactivations,
    spatial_correlation,
)
from lightning_coreset.layers import GroupView, PlanState
from lightning_coreset.methods import Selection
from lightning_coreset.planning import Request, make_plan
from lightning_coreset.structure import ChannelGroup, analyse
from lightning_coreset.surgery import apply_changes, named_tensors

RELU = find_activation("relu")
assert RELU is not None


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def setting(model: nn.Module, x: Tensor) -> tuple[dict[str, ChannelGroup], dict[str, Tensor]]:
    groups = {group.name: group for group in analyse(model, x).groups}
    return groups, {name: tensor.detach().clone() for name, tensor in named_tensors(model).items()}


def reconstructed(
    group: ChannelGroup, size: int, tensors: Mapping[str, Tensor], state: PlanState | None = None
) -> Selection:
    return Reconstruction().select(GroupView(group, tensors, state or PlanState()), size)


def mix_by_hand(moment: Tensor, kept: Tensor, ridge: float = 1e-3) -> Tensor:
    """Ridge regression of every channel on those kept; a kept channel stays itself."""
    within = moment[kept][:, kept] + ridge * moment.diagonal().mean() * torch.eye(len(kept))
    mix = moment[:, kept] @ torch.linalg.inv(within)
    mix[kept] = torch.eye(len(kept), dtype=mix.dtype)
    return mix


def rows_of(tensors: Mapping[str, Tensor], name: str) -> Tensor:
    weight = tensors[f"{name}.weight"].flatten(1)
    bias = tensors.get(f"{name}.bias", weight.new_zeros(len(weight)))
    return torch.cat([weight, bias[:, None]], dim=1)


def folded(tensors: Mapping[str, Tensor], conv: str, norm: str) -> Tensor:
    rows = rows_of(tensors, conv)
    scale = tensors[f"{norm}.weight"] / (tensors[f"{norm}.running_var"] + 1e-5).sqrt()
    rows = rows * scale[:, None]
    rows[:, -1] += tensors[f"{norm}.bias"] - scale * tensors[f"{norm}.running_mean"]
    return rows


def sampled(law: Gaussian, count: int) -> Tensor:
    """Pre-activations of a law, (count, N)."""
    values, vectors = torch.linalg.eigh(law.correlation)
    root = vectors * values.clamp_min(0).sqrt()
    noise = torch.randn(count, len(root), dtype=torch.float64, generator=generator(7))
    return law.mean + law.scale * (noise @ root.T)


# ---- new consumers


@pytest.mark.parametrize("size", [3, 8, 15])
def test_linear_layers(size):
    groups, tensors = setting(*make("mlp"))
    selection = reconstructed(groups["0"], size, tensors)
    moment = activation_moments(RELU, linear_preactivations(rows_of(tensors, "0"))).second
    expected = torch.zeros(12, 16, dtype=torch.float64)
    expected[:, selection.kept] = tensors["2.weight"] @ mix_by_hand(moment, selection.kept)
    assert selection.updates.keys() == {"2.weight"}
    torch.testing.assert_close(selection.updates["2.weight"], expected, rtol=1e-6, atol=1e-9)


def test_a_chain_carries_the_law_of_the_layer_below():
    groups, tensors = setting(*make("mlp"))
    state = PlanState()
    first = reconstructed(groups["0"], 10, tensors, state)
    after = {**tensors, **first.updates}
    second = reconstructed(groups["2"], 6, after, state)
    below = activation_moments(RELU, linear_preactivations(rows_of(tensors, "0")))
    law = linear_preactivations(rows_of(after, "2"), below.mean, below.covariance)
    expected = tensors["4.weight"] @ mix_by_hand(activation_moments(RELU, law).second, second.kept)
    torch.testing.assert_close(second.updates["4.weight"][:, second.kept], expected, rtol=1e-6, atol=1e-9)

    alone = reconstructed(groups["2"], 6, after)  # nothing is known below: a standard Gaussian
    expected = tensors["4.weight"] @ mix_by_hand(
        activation_moments(RELU, linear_preactivations(rows_of(after, "2"))).second, alone.kept
    )
    torch.testing.assert_close(alone.updates["4.weight"][:, alone.kept], expected, rtol=1e-6, atol=1e-9)
    assert not torch.allclose(alone.updates["4.weight"], second.updates["4.weight"], rtol=1e-2)


def test_a_norm_tells_the_law_and_the_next_one_takes_the_constant():
    groups, tensors = setting(*make("vgg"))
    selection = reconstructed(groups["0"], 4, tensors)
    kept = selection.kept
    patches = (torch.eye(2, dtype=torch.float64), spatial_correlation((3, 3), 0.8))
    law = batchnorm_preactivations(folded(tensors, "0", "1"), tensors["1.bias"], tensors["1.weight"], patches)
    moments = activation_moments(RELU, law)
    mix = mix_by_hand(moments.covariance, kept)
    new = torch.einsum("onij,nm->omij", tensors["3.weight"], mix)
    torch.testing.assert_close(selection.updates["3.weight"][:, kept], new, rtol=1e-6, atol=1e-9)

    offset = moments.mean - mix @ moments.mean[kept]
    constant = tensors["3.weight"].sum((2, 3)) @ offset
    assert constant.abs().max() > 1e-2
    moved = tensors["4.running_mean"] - constant
    torch.testing.assert_close(selection.updates["4.running_mean"], moved, rtol=1e-6, atol=1e-9)

    spread = spatial_correlation((3, 3), 0.7)
    variances = [
        torch.einsum("onk,kl,opl,np->o", weight.flatten(2), spread, weight.flatten(2), covariance)
        for weight, covariance in (
            (tensors["3.weight"], moments.covariance),
            (new, moments.covariance[kept][:, kept]),
        )
    ]
    repaired = tensors["4.running_var"] * variances[1] / variances[0]
    torch.testing.assert_close(selection.updates["4.running_var"], repaired, rtol=1e-6, atol=1e-9)
    assert selection.updates.keys() == {"3.weight", "4.running_mean", "4.running_var"}


def test_a_bias_takes_the_constant():
    groups, tensors = setting(*make("vgg"))
    selection = reconstructed(groups["6"], 6, tensors)
    patches = (torch.eye(8, dtype=torch.float64), spatial_correlation((3, 3), 0.8))
    law = batchnorm_preactivations(folded(tensors, "6", "7"), tensors["7.bias"], tensors["7.weight"], patches)
    moments = activation_moments(RELU, law)
    mix = mix_by_hand(moments.covariance, selection.kept)
    constant = tensors["11.weight"] @ (moments.mean - mix @ moments.mean[selection.kept])
    assert selection.updates.keys() == {"11.weight", "11.bias"}
    torch.testing.assert_close(selection.updates["11.bias"], tensors["11.bias"] + constant, rtol=1e-6, atol=1e-9)


def test_a_flatten_repeats_the_mix_at_every_position():
    groups, tensors = setting(*make("lenet"))
    selection = reconstructed(groups["3"], 5, tensors)
    tanh = find_activation("tanh")
    assert tanh is not None
    patches = (torch.eye(6, dtype=torch.float64), spatial_correlation((3, 3), 0.8))
    mix = mix_by_hand(
        activation_moments(tanh, linear_preactivations(rows_of(tensors, "3"), None, patches)).second, selection.kept
    )
    expected = torch.zeros(10, 8, 4, dtype=torch.float64)
    expected[:, selection.kept] = torch.einsum("onq,nm->omq", tensors["6.weight"].unflatten(1, (8, 4)), mix)
    torch.testing.assert_close(selection.updates["6.weight"], expected.flatten(1), rtol=1e-6, atol=1e-9)


class Branches(nn.Module):
    """One layer read three times, twice behind the same activation."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c, self.d = nn.Linear(6, 12), nn.Linear(12, 3), nn.Linear(12, 4), nn.Linear(12, 5)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        z = self.a(x)
        return self.b(z.relu()), self.c(z.relu()), self.d(z.tanh())


def test_every_consumer_gets_the_mix_of_its_own_activation():
    groups, tensors = setting(Branches().double(), torch.randn(2, 6).double())
    selection = reconstructed(groups["a"], 7, tensors)
    law = linear_preactivations(rows_of(tensors, "a"))
    assert selection.updates.keys() == {"b.weight", "c.weight", "d.weight"}
    for name, op in {"b": "relu", "c": "relu", "d": "tanh"}.items():
        activation = find_activation(op)
        assert activation is not None
        expected = tensors[f"{name}.weight"] @ mix_by_hand(activation_moments(activation, law).second, selection.kept)
        found = selection.updates[f"{name}.weight"][:, selection.kept]
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-9)


# ---- the expected error


@pytest.mark.parametrize("size", [4, 8, 12])
def test_the_expected_error_of_linear_layers_by_monte_carlo(size):
    groups, tensors = setting(*make("mlp"))
    selection = reconstructed(groups["0"], size, tensors)
    x = torch.randn(100_000, 6, dtype=torch.float64)
    hidden = (x @ tensors["0.weight"].T + tensors["0.bias"]).relu()
    target = hidden @ tensors["2.weight"].T
    error = (hidden @ selection.updates["2.weight"].T - target).square().sum() / target.square().sum()
    assert selection.expected_error == pytest.approx(float(error), rel=0.05)


@pytest.mark.parametrize("size", [4, 8])
def test_the_expected_error_behind_a_norm_by_monte_carlo(size):
    layers = [nn.Conv2d(3, 12, 1, bias=False), nn.BatchNorm2d(12), nn.ReLU(), nn.Conv2d(12, 5, 1)]
    model = randomised(nn.Sequential(*layers).double().eval(), generator(2))
    groups, tensors = setting(model, torch.randn(2, 3, 4, 4).double())
    selection = reconstructed(groups["0"], size, tensors)
    law = batchnorm_preactivations(folded(tensors, "0", "1"), tensors["1.bias"], tensors["1.weight"])
    hidden = sampled(law, 100_000).relu()
    old, new = tensors["3.weight"][:, :, 0, 0], selection.updates["3.weight"][:, :, 0, 0]
    change = hidden @ (old - new).T + tensors["3.bias"] - selection.updates["3.bias"]
    variance = (hidden @ old.T).var(dim=0).sum()
    assert change.mean(dim=0).abs().max() < 0.02 * variance.sqrt()  # the constant makes it right on average
    error = change.square().sum(dim=1).mean() / variance
    assert selection.expected_error == pytest.approx(float(error), rel=0.05)


# ---- what must not change


@pytest.mark.parametrize("name", NETWORKS)
def test_full_size_leaves_the_network_as_it_is(name):
    model, x = make(name)
    before = snapshot(model)
    plan = prune(model, x, 0.0, include_residual=True)
    assert_untouched(model, before)
    assert {group.expected_error for group in plan.groups} == {0.0}


TWINS: Mapping[str, tuple[list[nn.Module], tuple[int, ...]]] = {
    "conv1d": ([nn.Conv1d(2, 8, 3), nn.ReLU(), nn.Conv1d(8, 3, 2)], (2, 2, 9)),
    "conv3d": ([nn.Conv3d(2, 8, 2), nn.GELU(), nn.Conv3d(8, 3, 2)], (2, 2, 4, 5, 4)),
    "strided": ([nn.Conv2d(2, 8, 3, stride=2), nn.ReLU(), nn.Conv2d(8, 3, 2, stride=2)], (2, 2, 9, 9)),
    "dilated": ([nn.Conv2d(2, 8, 3, dilation=2), nn.SiLU(), nn.Conv2d(8, 3, 2, dilation=3)], (2, 2, 9, 9)),
    "transposed": ([nn.ConvTranspose2d(2, 8, 2), nn.ReLU(), nn.ConvTranspose2d(8, 3, 2, stride=2)], (2, 2, 4, 4)),
    "flatten": ([nn.Conv2d(2, 8, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(32, 3)], (2, 2, 6, 6)),
    "norms": (
        [
            *(nn.Conv2d(2, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU()),
            *(nn.Conv2d(8, 3, 3, bias=False), nn.BatchNorm2d(3)),
        ],
        (2, 2, 6, 6),
    ),
    "norm behind": ([nn.Linear(4, 8), nn.Sigmoid(), nn.BatchNorm1d(8), nn.Linear(8, 3)], (5, 4)),
}


@pytest.mark.parametrize("name", TWINS)
def test_twins_merge_without_loss(name):
    layers, shape = TWINS[name]
    model = randomised(nn.Sequential(*copy.deepcopy(layers)).double().eval(), generator(1))
    with torch.no_grad():
        for layer in model[:3]:
            for tensor in (*layer.parameters(), *layer.buffers()):
                dim = 1 if isinstance(layer, nn.ConvTranspose2d) and tensor.dim() > 1 else 0
                if tensor.dim() and tensor.shape[dim] == 8 and layer is not model[-1]:
                    tensor.copy_(tensor.narrow(dim, 0, 4).repeat_interleave(2, dim))
    x = torch.randn(shape, dtype=torch.float64)
    expected = model(x).detach()
    plan = prune(model, x, 0.5, unit="channels", method=Reconstruction(ridge=1e-11, refine=False))
    assert [channel // 2 for channel in plan.groups[0].kept] == [0, 1, 2, 3]
    assert plan.groups[0].expected_error == pytest.approx(0, abs=1e-9)
    torch.testing.assert_close(model(x).detach(), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["mlp", "vgg", "densenet", "resnet"])
def test_no_seed_matters_and_no_global_state_is_touched(name):
    model, structure = make(name)[0], structure_of(name)
    plans = []
    for seed in (0, 0, 123):
        torch.manual_seed(seed)
        random.seed(seed)
        states = torch.get_rng_state(), random.getstate()
        plans.append(make_plan(model, structure, Request(0.5, seed=seed)))
        assert torch.equal(states[0], torch.get_rng_state())
        assert states[1] == random.getstate()
    for other in plans[1:]:
        assert other.groups == plans[0].groups
        for one, two in zip(plans[0].changes, other.changes, strict=True):
            assert one.value is None or torch.equal(one.value, two.value)


# ---- norms that are not what they seem


def test_a_norm_behind_a_concatenation_is_not_the_consumers():
    """It has more channels than the layer before it, and is left as it is but for what is cut."""
    model, x = make("densenet")
    groups, tensors = setting(model, x)
    for group in groups.values():
        selection = reconstructed(group, group.size - 1, tensors)
        assert not any("running" in name for name in selection.updates)
    apply_changes(model, (plan := make_plan(model, structure_of("densenet"), Request(0.4))).changes)
    assert plan.channels_removed > 0
    assert model(x).isfinite().all()


def test_a_norm_behind_a_flatten_is_no_affine_map_of_channels():
    layers = [nn.Conv2d(2, 6, 3), nn.ReLU(), nn.Flatten(), nn.BatchNorm1d(24), nn.Linear(24, 3)]
    model = randomised(nn.Sequential(*layers).double().eval(), generator())
    groups, tensors = setting(model, torch.randn(4, 2, 4, 4).double())
    selection = reconstructed(groups["0"], 3, tensors)
    assert selection.method.startswith("rank (a BatchNorm behind its activation treats the positions")


# ---- what is carried, and what takes a constant


class Flattened(nn.Module):
    """Positions of one channel side by side, or with ``last`` channels of one position."""

    def __init__(self, last: bool) -> None:
        super().__init__()
        self.a, self.b, self.c, self.last = nn.Conv2d(2, 4, 1), nn.Linear(36, 8), nn.Linear(8, 2), last

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x).relu()
        return self.c(self.b((x.permute(0, 2, 3, 1) if self.last else x).flatten(1)).relu())


@pytest.mark.parametrize("last", [True, False])
def test_moments_are_carried_only_where_a_channel_lies_in_one_piece(last):
    groups, tensors = setting(Flattened(last).double(), torch.randn(2, 2, 3, 3, dtype=torch.float64))
    state = PlanState()
    reconstructed(groups["a"], 2, tensors, state)
    assert set(state.input_moments) == (set() if last else {"b.weight"})


class TiedBias(nn.Module):
    """Two consumers of one group, with a bias each or the same one."""

    def __init__(self, tied: bool) -> None:
        super().__init__()
        self.a, self.norm, self.b, self.c = nn.Linear(3, 8), nn.BatchNorm1d(8), nn.Linear(8, 2), nn.Linear(8, 2)
        if tied:
            self.c.bias = self.b.bias

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.a(x)).relu()
        return torch.cat([self.b(x), self.c(x)], dim=1)


@pytest.mark.parametrize("tied", [True, False])
def test_a_bias_of_two_consumers_takes_no_constant(tied):
    groups, tensors = setting(randomised(TiedBias(tied).eval(), generator()).double(), torch.randn(2, 3).double())
    updates = reconstructed(groups["a"], 4, tensors).updates
    assert set(updates) == {"b.weight", "c.weight"} | (set() if tied else {"b.bias", "c.bias"})


class ReadTwice(nn.Module):
    """One layer reads the channels behind two activations."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(3, 8), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x)
        return self.b(x.relu()) + self.b(x.tanh())


def test_a_weight_that_reads_in_two_ways_gets_no_new_content():
    groups, tensors = setting(ReadTwice().double(), torch.randn(2, 3).double())
    selection = reconstructed(groups["a"], 4, tensors)
    assert (selection.method, dict(selection.updates)) == ("rank (one weight reads its channels in two ways)", {})
