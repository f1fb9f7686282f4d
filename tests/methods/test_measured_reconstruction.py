"""Reconstruction from measured moments: it is the direct least squares on what layers read, for groups of any form."""

from __future__ import annotations

import copy
from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_coreset import Magnitude, Reconstruction, plan_pruning, prune

SAMPLES = 512


def smooth(*shape: int, seed: int = 0) -> Tensor:
    """Images whose pixels go with their neighbours."""
    noise = torch.randn(shape[0], shape[1], shape[2] + 4, shape[3] + 4, generator=torch.Generator().manual_seed(seed))
    return F.avg_pool2d(noise, 5, 1) * 5


def settled(model: nn.Module, x: Tensor) -> nn.Module:
    """In evaluation mode, with running statistics of these inputs."""
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.reset_running_stats()
            module.momentum = None
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.uniform_(module.bias, -0.5, 0.5)
    model.train()
    with torch.no_grad():
        model(x)
    return model.eval()


class Convolutions(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(3, 12, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(12)
        self.b = nn.Conv2d(12, 10, 3, padding=1)
        self.norm_b = nn.BatchNorm2d(10)
        self.end = nn.Linear(10, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm_b(self.b(F.relu(self.norm(self.a(x))))))
        return self.end(x.mean((2, 3)))


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.a = nn.Conv2d(8, 8, 3, padding=1)
        self.b = nn.Conv2d(8, 8, 3, padding=1)
        self.end = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = x + F.relu(self.a(x))
        x = x + F.relu(self.b(x))
        return self.end(x.mean((2, 3)))


class Gated(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.gate, self.down = nn.Linear(6, 16), nn.Linear(6, 16), nn.Linear(16, 6)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(F.silu(self.gate(x)) * self.up(x))


class Depthwise(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.dw, self.b = nn.Conv2d(3, 12, 1), nn.Conv2d(12, 12, 3, groups=12), nn.Conv2d(12, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(F.hardswish(self.dw(F.relu6(self.a(x)))))


class Heads(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(12, 36), nn.Linear(12, 12)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (part.unflatten(-1, (-1, 3)).transpose(1, 2) for part in self.qkv(x).chunk(3, -1))
        return self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


def images() -> Tensor:
    return smooth(64, 3, 9, 9)


def vectors() -> Tensor:
    return torch.randn(SAMPLES, 6, generator=torch.Generator().manual_seed(0)).abs()


def tokens() -> Tensor:
    return torch.randn(64, 7, 12, generator=torch.Generator().manual_seed(0)).cumsum(1)


class NormedHeads(Heads):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.RMSNorm(12)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(self.norm(x))


NETWORKS = {
    "convolutions": (Convolutions, images, {}),
    "residual": (Residual, images, {"include_residual": True, "only": ["stem"]}),
    "gated": (Gated, vectors, {}),
    "depthwise": (Depthwise, images, {}),
    "heads": (Heads, tokens, {}),
    "normed heads": (NormedHeads, tokens, {}),
}


def made(name: str) -> tuple[nn.Module, Tensor, dict]:
    build, inputs, options = NETWORKS[name]
    x = inputs()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return settled(build(), x), x, options


def error(model: nn.Module, pruned: nn.Module, x: Tensor) -> float:
    with torch.no_grad():
        wanted, found = model(x), pruned(x)
    return float((wanted - found).square().sum() / (wanted - wanted.mean(0)).square().sum())


def pruned_by(model: nn.Module, x: Tensor, method, options: dict) -> nn.Module:
    pruned = copy.deepcopy(model)
    reads = isinstance(method, Reconstruction) and method.moments == "batches"
    prune(pruned, x[:2], {"*": 0.5}, method=method, data=x.split(64) if reads else None, **options)
    return pruned


@pytest.mark.parametrize("name", NETWORKS)
def test_networks_of_any_form_lose_less_than_by_norms(name):
    model, x, options = made(name)
    plain = Reconstruction(moments="batches", samples=SAMPLES, refine=False)
    errors = [error(model, pruned_by(model, x, method, options), x) for method in (Magnitude(), plain)]
    assert errors[1] < 0.7 * errors[0]


@pytest.mark.parametrize("name", NETWORKS)
def test_plans_say_what_moments_were_measured_on(name):
    model, x, options = made(name)
    method = Reconstruction(moments="batches", samples=64)
    plan = plan_pruning(model, x[:2], {"*": 0.5}, method=method, data=[x], **options)
    assert {group.method for group in plan.groups} == {"reconstruction (batches)"}
    assert all(group.expected_error is not None for group in plan.groups)


def test_new_weights_are_the_direct_least_squares():
    """Of a convolution: all kernel positions together, on the patches that it reads, with a constant."""
    model, x, _ = made("convolutions")
    method = Reconstruction(moments="batches", samples=64, refine=False, sequential=False, ridge=1e-9)
    pruned = copy.deepcopy(model)
    plan = prune(pruned, x[:2], {"a": 0.5}, method=method, data=[x])
    kept = list(plan.groups[0].kept)
    with torch.no_grad():
        hidden = F.relu(model.norm(model.a(x))).double()
    patches = F.unfold(hidden, 3, padding=1).transpose(1, 2).reshape(-1, 12, 9)
    targets = patches.flatten(1) @ model.b.weight.detach().double().flatten(1).T
    read = torch.cat([patches[:, kept].flatten(1), torch.ones(len(patches), 1)], dim=1)
    solution = torch.linalg.lstsq(read, targets).solution.T
    # The same error on all patches, though only some of them were sampled.
    found = torch.cat([pruned.b.weight.flatten(1), (pruned.b.bias - model.b.bias)[:, None]], dim=1).double()
    errors = [float((read @ one.detach().T - targets).square().sum()) for one in (solution, found)]
    assert errors[0] <= errors[1] < 1.05 * errors[0]
    assert plan.groups[0].expected_error is not None


def test_what_is_fitted_in_turn_is_nearer_in_the_end():
    model, x, _ = made("residual")
    options = {"include_residual": True}
    errors = []
    for sequential in (False, True):
        method = Reconstruction(moments="batches", samples=64, refine=False, sequential=sequential)
        errors.append(error(model, pruned_by(model, x, method, options), x))
    assert errors[1] < errors[0]


def test_producers_that_move_come_nearer():
    model, x, _ = made("convolutions")
    errors = [
        plan_pruning(
            model,
            x[:2],
            {"a": 0.7},
            method=Reconstruction(moments="batches", samples=64, refine=refine, sequential=False),
            data=[x],
        )
        .groups[0]
        .expected_error
        for refine in (False, True)
    ]
    assert errors[1] < 0.95 * errors[0]


@pytest.mark.parametrize("seed", [2, 3])
def test_weights_stay_of_their_size_where_producers_move(seed):
    """Inputs of three directions: the size of a row is then nothing to the error, and was once over a hundred."""
    generator = torch.Generator().manual_seed(seed)
    x = (torch.randn(1024, 3, generator=generator) @ torch.randn(3, 40, generator=generator)).relu() / 3
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(40, 200), nn.ReLU(), nn.Linear(200, 100), nn.ReLU(), nn.Linear(100, 5))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(3)
    prune(model, x[:2], 0.95, unit="channels", method=Reconstruction(moments="batches", refine=True), data=x.split(256))

    assert max(float(parameter.detach().abs().max()) for parameter in model.parameters()) < 30


def test_the_expected_error_of_moved_producers_is_the_error_that_the_network_makes():
    """The second run shows what the rows really become: through BatchNorm, activation and padding."""
    model, x, _ = made("convolutions")
    method = Reconstruction(moments="batches", samples=64, ridge=1e-6, sequential=False)
    pruned = copy.deepcopy(model)
    plan = prune(pruned, x[:2], {"a": 0.5}, method=method, data=[x])
    with torch.no_grad():
        before = model.b(F.relu(model.norm(model.a(x))))
        after = pruned.b(F.relu(pruned.norm(pruned.a(x)))) - pruned.norm_b.running_mean[:, None, None]
        before = before - model.norm_b.running_mean[:, None, None]
    spread = (before - before.mean((0, 2, 3), keepdim=True)).square().sum()
    found = float((before - after).square().sum() / spread)
    assert abs(found - plan.groups[0].expected_error) < 0.15 * found


def test_a_vector_network_gains_without_data_too():
    generator = torch.Generator().manual_seed(0)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(10, 40), nn.ReLU(), nn.Linear(40, 40), nn.ReLU(), nn.Linear(40, 3))
    x = torch.randn(1000, 10, generator=generator)
    errors = [
        error(model, pruned_by(model, x, Reconstruction(moments=moments), {}), x)
        for moments in ("closed_form", "synthetic")
    ]
    assert errors[1] < 0.85 * errors[0]


@pytest.mark.parametrize("name", ["convolutions", "heads"])
def test_it_is_deterministic_and_disturbs_nothing(name):
    model, x, _ = made(name)
    model.train()
    state, random = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    plans = [plan_pruning(model, x[:2], {"*": 0.5}, method=Reconstruction(moments="synthetic")) for _ in range(2)]
    assert torch.equal(torch.get_rng_state(), random)
    assert all(module.training for module in model.modules())
    assert all(torch.equal(state[key], value) for key, value in model.state_dict().items())
    for one, other in zip(*(plan.changes for plan in plans), strict=True):
        assert one.name == other.name
        assert one.value is None or torch.equal(one.value, other.value)


def test_auto_measures_where_norms_or_vectors_make_it_right():
    wanted = {"convolutions": "probes", "gated": "probes", "heads": None, "normed heads": "probes"}
    for name, source in wanted.items():
        model, x, options = made(name)
        plan = plan_pruning(model, x[:2], {"*": 0.5}, method=Reconstruction(moments="auto"), **options)
        assert all((f"({source})" in group.method) == (source is not None) for group in plan.groups), name


def test_what_a_norm_s_law_gives_in_closed_form_is_derived():
    """The same law either way, so that samples of it are only taken where they are needed."""
    torch.manual_seed(0)
    block = nn.Sequential(nn.LayerNorm(12), NormedHeads(), nn.LayerNorm(12), nn.Linear(12, 40), nn.GELU())
    model, x = nn.Sequential(*block, nn.Linear(40, 12)).eval(), tokens()
    plan = plan_pruning(model, x[:2], {"*": 0.5})
    methods = {group.name: group.method for group in plan.groups}
    assert methods["3"] == "reconstruction"
    assert {name for name, method in methods.items() if method == "reconstruction (probes)"} == {"1.qkv"}
    errors = []
    for moments in ("auto", "synthetic"):
        pruned = copy.deepcopy(model)
        prune(pruned, x[:2], {"3": 0.5}, method=Reconstruction(moments=moments, refine=False))
        errors.append(error(model, pruned, x))
    assert 0.8 < errors[0] / errors[1] < 1.25


def test_several_events_go_on_from_each_other():
    model, x, _ = made("convolutions")
    errors, pruned = [], model
    for _ in range(3):
        pruned = pruned_by(pruned, x, Reconstruction(moments="batches", samples=64), {})
        errors.append(error(model, pruned, x))
    assert all(one < other for one, other in pairwise(errors))


class TestBadInput:
    def test_batches_without_data(self):
        model, x, _ = made("gated")
        with pytest.raises(ValueError, match="Expected data=, an iterable of batches"):
            prune(model, x, method=Reconstruction(moments="batches"))

    def test_data_that_nothing_reads(self):
        model, x, _ = made("gated")
        with pytest.raises(ValueError, match=r"with data= but got .*which does not read data"):
            prune(model, x, data=[x])

    @pytest.mark.parametrize("data", [torch.zeros(4, 6), 3, {"x": torch.zeros(4, 6)}])
    def test_data_that_is_no_iterable_of_batches(self, data):
        model, x, _ = made("gated")
        with pytest.raises(ValueError, match="Expected data to be an iterable of batches"):
            prune(model, x, method=Reconstruction(moments="batches"), data=data)

    def test_an_empty_loader(self):
        model, x, _ = made("gated")
        state = copy.deepcopy(model.state_dict())
        with pytest.raises(ValueError, match="Expected data to give at least one batch"):
            prune(model, x, 0.3, method=Reconstruction(moments="batches"), data=iter(()))
        assert all(torch.equal(state[key], value) for key, value in model.state_dict().items())

    def test_batches_that_the_network_cannot_take(self):
        model, x, _ = made("gated")
        with pytest.warns(UserWarning, match="derived in closed form instead of measured: it cannot be run on batches"):
            plan = prune(model, x, 0.3, method=Reconstruction(moments="batches"), data=[torch.zeros(4, 7)])
        assert all("batches" not in group.method for group in plan.groups)

    def test_nan_among_the_batches(self):
        model, x, _ = made("gated")
        with pytest.warns(UserWarning, match="make NaN or infinity where down.weight reads"):
            prune(model, x, 0.3, method=Reconstruction(moments="batches"), data=[x * float("nan")])
        assert all(bool(one.isfinite().all()) for one in model.state_dict().values())

    def test_probes_that_cannot_be_made_up(self):
        class Complex(nn.Module):
            def __init__(self):
                super().__init__()
                self.a, self.b = nn.Linear(4, 8), nn.Linear(8, 2)

            def forward(self, x):
                return self.b(self.a(x.real).relu())

        x = torch.randn(2, 4, dtype=torch.complex64)
        with pytest.warns(UserWarning, match="derived in closed form instead of measured"):
            plan = prune(Complex(), x, 0.3, method=Reconstruction(moments="synthetic"))
        assert plan.groups[0].method == "reconstruction"

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"moments": "data"}, "Expected moments to be one of 'auto', 'closed_form', 'synthetic', 'batches'"),
            ({"samples": 1}, "Expected samples to be an integer of at least 2 but got 1"),
            ({"refine": 1}, "Expected refine to be True, False or None but got 1"),
            ({"sequential": "yes"}, "Expected sequential to be True, False or None but got 'yes'"),
            ({"probes": 3}, "Expected probes to be a function"),
        ],
    )
    def test_options(self, options, message):
        with pytest.raises(ValueError, match=message):
            Reconstruction(**options)
