"""The benchmark of one-shot pruning: what others published is right where it can be exact, and the tables are whole."""

# ruff: noqa: F811 - pytest hands the imported fixture to arguments of its name

from __future__ import annotations

import copy
from functools import partial

import numpy as np
import pytest
import torch
from test_benchmarks_accuracy import arrays
from test_benchmarks_cost import load, printed  # noqa: F401 - load is a fixture
from torch import Tensor, nn

METHODS = ["random", "L1 norm", "L2 norm"]
WITHOUT_DATA = ["LBYL", "neuron merging", "model folding", "model folding, repaired"]
CALIBRATED = "L2 norm, then ridge (GRAIL)"


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def chain_network(norm: bool, generator: torch.Generator) -> nn.Sequential:
    """Convolutions of which the second half of the first's channels are copies of the first half."""
    layers = [nn.Conv2d(3, 8, 3, bias=not norm), *([nn.BatchNorm2d(8)] if norm else []), nn.ReLU(), nn.Conv2d(8, 5, 3)]
    model = nn.Sequential(*layers).eval()
    for tensor in model.state_dict().values():
        if tensor.is_floating_point():
            tensor.copy_(torch.rand(tensor.shape, generator=generator) + (0.2 if tensor.dim() < 2 else -0.5))
    for layer in model[: 2 if norm else 1]:
        for tensor in layer.state_dict().values():
            if tensor.dim():
                tensor[4:] = tensor[:4]
    return model


def made_smaller(model: nn.Sequential, norm: bool, factors: Tensor) -> None:
    """Multiply the channels of the copies by positive factors, and filters in front of a BatchNorm by one half."""
    layer = model[1] if norm else model[0]
    for tensor in (layer.weight, layer.bias):
        tensor.data[4:] *= factors.view(-1, *[1] * (tensor.dim() - 1))
    if norm:
        model[0].weight.data[4:] *= 0.5
        model[1].running_mean[4:] *= 0.5
        model[1].running_var[4:] = (model[1].running_var[4:] + model[1].eps) / 4 - model[1].eps


def images(generator: torch.Generator) -> Tensor:
    return torch.randn(4, 3, 8, 8, generator=generator)


@pytest.mark.parametrize("norm", [True, False])
@pytest.mark.parametrize("name", ["merge", "spread", "fold", "fold naively"])
def test_copies_can_go(load, generator, name, norm, monkeypatch):
    rivals, lbyl = load("rivals"), load("rivals.lbyl")
    monkeypatch.setattr(lbyl, "RIDGE", 1e-12)
    model, x = chain_network(norm, generator), images(generator)
    if name in ("merge", "spread"):  # these keep the larger of two
        made_smaller(model, norm, torch.tensor([0.01, 0.02, 0.03, 0.04]))
    else:  # what reads the channels counts for clusters, too
        model[-1].weight.data[:, 4:] = model[-1].weight.data[:, :4]
    rival = {"fold naively": partial(rivals.fold, repair=False)}.get(name) or getattr(rivals, name)
    with torch.no_grad():
        before = model(x)

        rivals.prune_chains(rival, model, x[:1], {"0": 4})

        assert model[0].weight.shape == (4, 3, 3, 3)
        assert model[-1].weight.shape == (5, 4, 3, 3)
        torch.testing.assert_close(model(x), before, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("repair", [True, False])
def test_repair_gives_means_their_deviation(load, generator, repair):
    rivals = load("rivals")
    # Two channels of equal means and deviations, whose filters are orthogonal: together they deviate less by sqrt(2).
    model = nn.Sequential(nn.Conv2d(2, 2, 1, bias=False), nn.BatchNorm2d(2), nn.Identity(), nn.Conv2d(2, 1, 1)).eval()
    model[0].weight.data = torch.eye(2).view(2, 2, 1, 1)
    model[1].weight.data[:], model[1].bias.data[:] = 2.0, 3.0
    x = torch.randn(4000, 2, 1, 1, generator=generator)

    rivals.prune_chains(partial(rivals.fold, repair=repair), model, x[:1], {"0": 1})

    with torch.no_grad():
        made = model[:2](x)
        model[:2].train()
        recomputed = model[:2](x)
    assert float(made.mean()) == pytest.approx(3, abs=0.1)
    assert float(made.std()) == pytest.approx(2 if repair else 2**0.5, rel=0.05)
    assert float(recomputed.std()) == pytest.approx(2, rel=0.01)  # recomputed statistics repair either


def test_a_channel_of_the_other_sign_is_not_merged(load):
    merge = load("rivals").merge
    model = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 1))
    model[0].weight.data = torch.tensor([[1.0, 1.0], [-0.5, -0.5]])
    model[0].bias.data.zero_()
    kept = model[2].weight.data[:, :1].clone()

    load("rivals").prune_chains(merge, model, torch.ones(1, 2), {"0": 1})

    torch.testing.assert_close(model[2].weight.data, kept)


def test_ridge_is_least_squares_on_what_the_layer_reads(load, generator):
    rivals, ridge = load("rivals"), load("rivals.ridge")
    model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3))
    x = torch.randn(300, 6, generator=generator)
    with torch.no_grad():
        hidden, wanted = model[:2](x).double(), model(x).double() - model[2].bias
        pruned = copy.deepcopy(model)

        rivals.prune_with_ridge(pruned, x[:2], ["0"], 0.5, x.split(100))

        left = pruned[:2](x).double()
        inside = left.T @ left + ridge.RIDGE * hidden.square().mean() * 300 * torch.eye(4)
        direct = torch.linalg.solve(inside, left.T @ wanted)
        found = pruned[2].weight.double().T
        # Kept channels stand for themselves exactly, so the ridge is only on the others: nearly the same.
        torch.testing.assert_close(found, direct, atol=2e-2, rtol=2e-2)
        errors = [float((left @ weight - wanted).square().mean()) for weight in (found, direct)]
    assert errors[0] < 1.02 * errors[1]


def test_affine_ridge_moves_the_constant_into_the_bias(load, generator):
    model = nn.Sequential(nn.Linear(6, 4), nn.Sigmoid(), nn.Linear(4, 3))
    model[0].weight.data[:2] = 0.0  # constant channels: most energy, since they read as nearly one
    model[0].bias.data[:2] = 5.0
    model[2].weight.data[:, :2] *= 0.01  # but hardly read
    x = torch.randn(300, 6, generator=generator)
    with torch.no_grad():
        before = model(x)

        load("rivals").prune_with_ridge(model, x[:2], ["0"], 0.5, [x], affine=True)

        torch.testing.assert_close(model(x), before, atol=1e-4, rtol=1e-4)


def test_trained_networks_are_kept(load, tmp_path):
    calls = []
    get = partial(load("trained").cached, tmp_path / "cache", "A (1 image), seed 0")

    first = get(partial(nn.Linear, 3, 2), calls.append)
    again = get(partial(nn.Linear, 3, 2), calls.append)
    other = load("trained").cached(tmp_path / "cache", "B", partial(nn.Linear, 3, 2), calls.append)

    assert len(calls) == 2
    assert not again.training
    torch.testing.assert_close(first.weight, again.weight)
    assert not torch.equal(other.weight, first.weight)
    assert sorted(path.name for path in (tmp_path / "cache").iterdir()) == ["a-1-image-seed-0.pt", "b.pt"]


def test_unpruned_networks_are_of_the_documented_size(load):
    trained, x = load("trained"), torch.randn(2, 3, 32, 32)
    sizes = {
        build: sum(one.numel() for one in build().parameters()) for build in (trained.small_vgg, trained.small_resnet)
    }

    assert [*sizes.values()] == [279466, 308650]
    assert all(build()(x).shape == (2, 10) for build in sizes)


def test_one_shot_prints_means_over_networks(load, tmp_path):
    np.savez(tmp_path / "mnist.npz", **arrays(30, 28, 28))
    some = ["--mnist", tmp_path / "mnist.npz", "--cache", tmp_path / "cache", "--epochs", 1, "--seeds", 2]

    (table,), text = printed(load("one_shot"), *map(str, some), "--networks", "LeNet*", "--contenders", "L2*|LBYL")

    assert [(row["method"], row["inputs"]) for row in table] == [
        ("L2 norm", "none"),
        ("LBYL", "none"),
        (CALIBRATED, "512"),
    ]
    assert all(within_bounds(row[keep], stages=1) for row in table for keep in ("10%", "5%"))
    assert "30 training and 30 test images, 1 epochs" in text


def within_bounds(cell: str, stages: int) -> bool:
    """Whether a cell has a percentage and its deviation for every stage."""
    found = [one.split(" ± ") for one in cell.split(" -> ")]
    return len(found) == stages and all(0 <= float(mean) <= 100 and float(deviation) >= 0 for mean, deviation in found)


@pytest.mark.slow
def test_one_shot_prints_every_method_for_every_network(load, tmp_path):
    np.savez(tmp_path / "cifar10.npz", **arrays(30, 32, 32, 3))
    paths = ["--cifar", tmp_path / "cifar10.npz", "--cache", tmp_path / "cache"]
    sizes = ["--images", 24, "--test-images", 10, "--epochs", 1, "--seeds", 2]

    tables, text = printed(load("one_shot"), *map(str, [*paths, *sizes]), "--networks", "*VGG|*ResNet")

    vgg, resnet, residual = tables
    ours = [*load("one_shot_methods").ours()]
    for table in (vgg, resnet):
        assert [row["method"] for row in table] == [*METHODS, *WITHOUT_DATA, CALIBRATED, *ours]
        assert all(within_bounds(row[keep], stages=2) for row in table for keep in ("50%", "25%"))
    assert [row["method"] for row in residual] == [*METHODS, CALIBRATED, *ours]
    assert all(within_bounds(row["75%"], stages=2) for row in residual)
    assert "24 training and 10 test images, 1 epochs" in text


@pytest.mark.slow
def test_one_shot_halves_parts_of_transformers(load, tmp_path):
    pytest.importorskip("transformers")
    np.savez(tmp_path / "mnist.npz", **arrays(30, 28, 28))
    some = ["--mnist", tmp_path / "mnist.npz", "--cache", tmp_path / "cache", "--images", 24, "--test-images", 10]
    small = ["--epochs", 1, "--seeds", 1, "--characters", 5000, "--steps", 4, "--networks", "ViT|Llama"]

    tables, _ = printed(load("one_shot"), *map(str, [*some, *small]))

    ours = [*load("one_shot_methods").ours()]
    assert len(tables) == 2
    for table in tables:
        assert [row["method"] for row in table] == [*METHODS, CALIBRATED, "energy, then affine ridge (CORP)", *ours]
        parts = {row["method"]: [row[part] for part in load("one_shot").PARTS] for row in table}
        assert [cell == "-" for cell in parts["energy, then affine ridge (CORP)"]] == [False, True, True, True]
        assert [cell == "-" for cell in parts[CALIBRATED]] == [False, False, True, False]
        assert all(", " in cell for method in ("L2 norm", *ours) for cell in parts[method])
