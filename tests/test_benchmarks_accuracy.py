"""The benchmarks of accuracy run from end to end, and compare networks of the same widths."""

# ruff: noqa: F811 - pytest hands the imported fixture to arguments of its name

from __future__ import annotations

import io
import json
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from test_benchmarks_cost import load, printed  # noqa: F401 - load is a fixture
from torch import nn

from lightning_coreset import Magnitude, count_macs, prune
from lightning_coreset.schedule import pruning_events

Load = Callable[[str], ModuleType]

OURS = ["random", "L1 norm", "L2 norm", "sensitivity (paper, m distinct)", "sensitivity, pps", "reconstruction"]
THEIRS = ["Torch-Pruning, magnitude", "Torch-Pruning, BN scale", "Torch-Pruning, group norm"]
TINY = ["--epochs", "1", "--images", "24", "--test-images", "10"]


@pytest.fixture
def theirs() -> list[str]:
    """The rows of Torch-Pruning, where it is installed."""
    pytest.importorskip("torch_pruning", reason="Torch-Pruning is no part of the test extra")
    return THEIRS


@pytest.fixture
def alone(load: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    """Hides Torch-Pruning if it is installed."""
    monkeypatch.setattr(load("contenders"), "find_spec", lambda name: None)


def arrays(count: int, *shape: int) -> dict[str, np.ndarray]:
    """Random images and labels under the names of the files that the scripts read."""
    random = np.random.default_rng(0)
    images = {f"{part}_x": random.integers(0, 256, (count, *shape), np.uint8) for part in ("train", "test")}
    return images | {f"{part}_y": np.arange(count) % 10 for part in ("train", "test")}


@pytest.fixture
def cifar(tmp_path: Path) -> str:
    path = tmp_path / "cifar10.npz"
    np.savez(path, **arrays(30, 32, 32, 3))
    return str(path)


@pytest.fixture
def jpegs(tmp_path: Path) -> Path:
    """The same kind of file with JPEG files end to end; every image is of one grey, its number times four."""
    from PIL import Image

    content = {}
    for part in ("train", "test"):
        files = []
        for number in range(20):
            file = io.BytesIO()
            Image.fromarray(np.full((32, 32, 3), 4 * number, np.uint8)).save(file, "JPEG")
            files.append(file.getvalue())
        content[f"{part}_jpeg"] = np.frombuffer(b"".join(files), np.uint8)
        content[f"{part}_end"] = np.cumsum([len(file) for file in files])
        content[f"{part}_y"] = np.arange(20) % 10
    path = tmp_path / "jpegs.npz"
    np.savez(path, **content)
    return path


# ---- the scripts


@pytest.mark.slow
def test_lenet_prints_every_method_at_every_width(load, tmp_path, monkeypatch):
    lenet_mnist, path = load("lenet_mnist"), tmp_path / "mnist.npz"
    np.savez(path, **arrays(20, 28, 28))
    monkeypatch.setattr(lenet_mnist, "CERTIFIED", ("reconstruction",))
    monkeypatch.setattr(lenet_mnist, "CERTIFIED_KEEP", (0.1,))

    (accuracies, brackets), _ = printed(lenet_mnist, "--data", str(path), "--seeds", "1", "--epochs", "1")

    rows = [row["method"] for row in accuracies]
    assert rows[: len(OURS)] == OURS
    assert set(rows[len(OURS) :]) <= {THEIRS[0], THEIRS[2]}  # there is no BatchNorm
    assert all(row[keep].count(" -> ") == 2 for row in accuracies for keep in ("50%", "25%", "10%", "5%"))
    (bracket,) = brackets
    assert float(bracket["largest error found"]) <= float(bracket["certified"]) <= float(bracket["triangle bound"])


@pytest.mark.slow
def test_cifar10_prints_every_method_at_every_stage(load, cifar, theirs):
    tables, text = printed(load("cifar10"), "--data", cifar, *TINY, "--networks", "VGG*")

    assert "24 training and 10 test images of 32 x 32, 1 epochs" in text
    assert [row["method"] for row in tables[0]] == [row["method"] for row in tables[1]] == OURS + theirs
    for table in tables:
        for row in table:
            assert [0 <= float(row[stage]) <= 100 for stage in load("cifar10").STAGES] == [True] * 4


@pytest.mark.slow
def test_residual_channels_go_in_a_table_of_their_own(load, cifar):
    some = ["--networks", "ResNet*", "--contenders", "reconstruction|*group norm"]

    tables, text = printed(load("cifar10"), "--data", cifar, *TINY, *some)

    assert len(tables) == 2
    assert "inside its blocks" in text
    assert "50% of 855,770 parameters, 50% of 31,437,440 MACs" in text
    assert "everywhere" in text
    assert "25% of 855,770 parameters, 25% of 31,437,440 MACs" in text


@pytest.mark.slow
def test_schedule_compares_with_the_unpruned_network(load, cifar):
    some = ["--networks", "VGG*", "--contenders", "L2 norm|reconstruction|*BN scale"]

    (table,), _ = printed(load("cifar10_schedule"), "--data", cifar, *TINY, "--epochs", "3", *some)

    rows = {row["method"]: row for row in table}
    assert [*rows][:3] == ["unpruned", "L2 norm", "reconstruction"]
    whole = int(rows.pop("unpruned")["MACs"].replace(",", ""))
    left = {row["MACs"] for row in rows.values()}
    assert len(left) == 1
    assert int(left.pop().replace(",", "")) == pytest.approx(whole / 2, rel=0.01)


@pytest.mark.slow
def test_full_schedule_is_one_flag_away(load, cifar):
    some = ["--full", "--networks", "ResNet*", "--contenders", "L2 norm"]

    tables, text = printed(load("cifar10_schedule"), "--data", cifar, *TINY, *some)

    assert "32 x 32" in text
    assert [[row["method"] for row in table] for table in tables] == [["unpruned", "L2 norm"]] * 2
    assert {row["MACs"] for table in tables for row in table[:1]} == {"125,747,840"}


@pytest.mark.slow
def test_tuning_budget_prints_every_budget_and_goes_on_where_it_ended(load, cifar, tmp_path):
    budget, results = load("tuning_budget"), tmp_path / "results.jsonl"
    some = ["--cifar", cifar, "--cache", str(tmp_path / "cache"), *TINY, "--seeds", "2", "--networks", "*VGG"]
    some += ["--ratios", "0.5", "--tuning-epochs", "12", "--contenders", "L2 norm|*batches"]

    (alone,), _ = printed(budget, *some, "--only-seed", "0", "--results", str(results))
    (both,), _ = printed(budget, *some, "--results", str(results))
    (again,), text = printed(budget, *some, "--results", str(tmp_path / "new.jsonl"), str(results))

    columns = ["-50%, 0", "-50%, 1.2", "-50%, 12"]
    for table in (alone, both):
        assert [row["method"] for row in table] == ["L2 norm", "reconstruction, batches"]
        assert all([*row] == ["method", *columns] for row in table)
    assert all(0 <= float(row[column]) <= 100 for row in alone for column in columns)
    assert all(" ± " in row[column] for row in both for column in columns)
    assert again == both
    assert not (tmp_path / "new.jsonl").exists()  # all was known
    runs = [json.loads(line) for line in results.read_text().splitlines()]
    assert len(runs) == 2 * (1 + len(both) * len(columns))  # each once, and the unpruned networks
    assert len({run["parameters"] for run in runs}) == 2
    assert "24 training and 10 test images, 1 epochs" in text


@pytest.mark.slow
def test_tuning_budget_says_how_far_a_transformer_can_go(load, tmp_path):
    pytest.importorskip("transformers")
    np.savez(tmp_path / "mnist.npz", **arrays(30, 28, 28))
    some = ["--mnist", tmp_path / "mnist.npz", "--cache", tmp_path / "cache", *TINY, "--seeds", 1]
    some = [*some, "--networks", "ViT", "--contenders", "L2 norm|*default", "--ratios", 0.5, 0.9, "--tuning-epochs", 1]

    (table,), text = printed(load("tuning_budget"), *map(str, some))

    assert [row["method"] for row in table] == ["L2 norm", "reconstruction, default"]
    assert all(0 <= float(row[f"-50%, {epochs}"]) <= 100 for row in table for epochs in ("0", "0.1", "1"))
    assert {row[f"-90%, {epochs}"] for row in table for epochs in ("0", "0.1", "1")} == {"-"}
    assert "Without 90%: Expected pruning_ratio to be at most 0.85" in text


@pytest.mark.parametrize("steps", [10, 20, 78, 784])
def test_tuning_budget_prunes_in_the_first_half(load, steps):
    budget = load("tuning_budget")

    events = [*pruning_events(budget.early(steps), 0.5, length=steps)]

    assert events[0] == budget.FIRST
    assert events[-1] == steps // 2
    assert len(events) == (3 if steps == 10 else budget.EVENTS)


@pytest.mark.slow
def test_latency_is_compared_with_macs_at_equal_time(load, cifar, monkeypatch):
    latency = load("latency")
    small = replace(latency.STUDY, build=partial(load("networks").resnet, depth=8), count=24, test_count=10)
    monkeypatch.setattr(latency, "STUDY", small)
    monkeypatch.setattr(latency, "measure_latency", partial(latency.measure_latency, seconds=0.1))
    # As long as it has multiply-accumulates: nothing depends on the machine.
    monkeypatch.setattr(
        latency, "compared", lambda one, other, example: tuple(count_macs(net, example.inputs) for net in (one, other))
    )
    some = ["--epochs", "1", "--batches", "2", "--targets", "0.1", "--allocations", "uniform", "--seeds", "2"]

    (table, ahead), _ = printed(latency, "--data", cifar, *some)

    assert [row["unit"] for row in table] == ["latency", "macs"]
    ours, theirs = (int(row["MACs"].replace(",", "")) for row in table)
    assert theirs <= 1.01 * ours
    assert [(row["target"], row["allocation"]) for row in ahead] == [("-10%", "uniform")]


@pytest.mark.slow
def test_without_torch_pruning_its_rows_are_left_out_with_a_note(load, cifar, alone):
    some = ["--networks", "VGG*", "--contenders", "*norm"]

    tables, text = printed(load("cifar10"), "--data", cifar, *TINY, *some)

    assert [row["method"] for row in tables[0]] == ["L1 norm", "L2 norm"]
    assert "Torch-Pruning is not installed" in text
    assert "pip install torch-pruning==1.6.1" in text


# ---- the same widths


def network() -> nn.Sequential:
    return nn.Sequential(
        *(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 12, 3), nn.BatchNorm2d(12), nn.ReLU()),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(12, 10)),
    )


@pytest.mark.parametrize("include_residual", [False, True])
def test_torch_pruning_reaches_the_same_widths(load, theirs, include_residual):
    contenders, networks = load("contenders"), load("networks")
    example = torch.randn(2, 3, 8, 8)
    whole = networks.resnet(depth=8)
    target = contenders.Target.of(whole, example, 0.45, include_residual)

    found = {}
    for name in theirs:
        model = networks.resnet(depth=8)
        contenders.contenders()[name](model, target, 0)
        found[name] = contenders.shapes(model)
        assert model(example).shape == (2, 10)

    assert all(one == target.shapes for one in found.values())
    inner, outer = (target.shapes[f"2.{conv}.0.weight"] for conv in ("conv1", "conv2"))
    assert inner[0] == 7
    assert outer[0] == (7 if include_residual else 16)


def test_magnitude_of_torch_pruning_ranks_by_the_filters(load, theirs):
    contenders, example = load("contenders"), torch.randn(2, 3, 8, 8)
    torch.manual_seed(0)
    model = network()
    target = contenders.Target.of(model, example, 0.5)
    largest = model[0].weight.detach().abs().sum((1, 2, 3)).topk(4).indices.sort().values
    filters = model[0].weight.detach()[largest]

    contenders.contenders()[theirs[0]](model, target, 0)

    torch.testing.assert_close(model[0].weight.detach(), filters)


def test_networks_of_other_widths_are_not_compared(load):
    contenders, example = load("contenders"), torch.randn(2, 3, 8, 8)
    target = contenders.Target.of(network(), example, 0.5)
    wider, narrower, as_wanted = network(), network(), network()
    prune(wider, example, 0.4, unit="channels", method=Magnitude())
    prune(narrower, example, 0.6, unit="channels", method=Magnitude())
    prune(as_wanted, example, 0.5, unit="channels", method=Magnitude())

    with pytest.raises(AssertionError, match="one: more than the wanted channels stayed"):
        target.check("one", wider)
    with pytest.raises(AssertionError, match=r"one: .* numbers stayed where"):
        target.check("one", narrower)
    target.check("one", as_wanted)


def test_an_optimizer_goes_on_with_new_parameters(load):
    layer = nn.Linear(2, 2)
    optimizer = torch.optim.SGD(layer.parameters(), 0.1, momentum=0.9)
    layer(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    before = dict(layer.named_parameters())
    layer.weight = nn.Parameter(torch.zeros(1, 2))

    load("scheduled").replace_parameters(optimizer, before, dict(layer.named_parameters()))

    (group,) = optimizer.param_groups
    assert group["params"][0] is layer.weight
    assert group["params"][1] is layer.bias
    assert [*optimizer.state] == [layer.bias]


# ---- images


def test_jpegs_are_announced(load, cifar, jpegs, capsys):
    for path in (Path(cifar), jpegs):
        load("studies").begin(path)

    assert capsys.readouterr().out.count("JPEG") == 1


def test_jpegs_are_read_and_made_smaller(load, jpegs):
    images = load("images").prepared(jpegs, 16, 8, pixels=16)

    (train, labels), (test, test_labels) = images
    assert (train.shape, test.shape) == ((16, 3, 16, 16), (8, 3, 16, 16))
    assert labels.tolist() == [number % 10 for number in range(16)]
    assert test_labels.tolist() == [*range(8)]
    assert train.mean((2, 3)).diff(dim=0).min() > 0  # each image is lighter than the one before
    torch.testing.assert_close(train.mean((0, 2, 3)), torch.zeros(3), atol=1e-5, rtol=0)
    assert train.is_contiguous()


def test_images_are_shifted_and_mirrored(load):
    batch = torch.arange(64.0).reshape(1, 1, 8, 8).repeat(500, 1, 1, 1) + 1

    moved = load("images").augmented(batch, torch.Generator().manual_seed(0))

    padded = nn.functional.pad(batch[:1], [1] * 4)
    crops = padded.unfold(2, 8, 1).unfold(3, 8, 1).reshape(9, 8, 8)
    possible = {tuple(one.flatten().tolist()) for one in [*crops, *crops.flip(2)]}
    assert {tuple(one.flatten().tolist()) for one in moved} == possible
    torch.testing.assert_close(load("images").augmented(batch, torch.Generator().manual_seed(0)), moved)


def test_batches_of_a_part_of_an_epoch(load):
    images = torch.arange(10.0)[:, None], torch.arange(10)
    batches = load("images").Batches(images, torch.Generator().manual_seed(0), size=4)
    seen = []

    class Model(nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            seen.extend(x.flatten().tolist())
            return super().forward(x)

    tuning = load("tuning")
    assert len(batches) == 3
    tuning.train(Model(1, 10), batches, 1 / 3, tuning.sgd(0.1))
    assert len(seen) == 4
    tuning.train(Model(1, 10), batches, 1, tuning.sgd(0.1))
    assert sorted(seen[4:]) == [*range(10)]


# ---- transformers


@pytest.mark.slow
def test_transformers_beside_torch_pruning(load, cifar, theirs):
    pytest.importorskip("transformers")
    tiny = ["--images", "24", "--test-images", "10", "--epochs", "1", "--characters", "5000", "--steps", "4"]

    tables, text = printed(load("narrow_transformers"), "--data", cifar, "--networks", "bert|gpt2", *tiny)

    (bert, gpt2), *accuracies = tables
    assert (bert["lightning_coreset"], gpt2["lightning_coreset"]) == ("right", "right")
    assert int(bert["lightning_coreset: gone"].rstrip("%")) > 60
    assert (bert["Torch-Pruning"], gpt2["Torch-Pruning"]) == ("right", "left whole")
    assert "ViT, CIFAR-10 (24 training images" in text
    assert "Llama, docstrings (4,500 characters" in text
    for table in accuracies:
        assert [row["pruned"] for row in table] == ["inside"] * 4 + ["everywhere"] * 4
        for where in ("inside", "everywhere"):
            assert len({row["parameters"] for row in table if row["pruned"] == where}) == 1  # of the same widths
        for row in table:
            assert all(0 <= float(row[stage]) <= 100 for stage in ("right after", "after a tenth of the training"))


def test_wrongly_pruned_networks_are_found_out(load):
    """Each fault gets its name: nothing is asked of the library that pruned."""
    kept_channels = load("kept_channels")

    def made() -> nn.Sequential:
        torch.manual_seed(0)
        layers = nn.Linear(6, 8), nn.LayerNorm(8), nn.Linear(8, 3)
        return nn.Sequential(*layers).double()

    def cut(producer: list[int], norm: list[int], consumer: list[int]) -> nn.Sequential:
        model = made()
        model[0].weight, model[0].bias = (nn.Parameter(one[producer]) for one in model[0].parameters())
        model[1].weight, model[1].bias = (nn.Parameter(one[norm]) for one in model[1].parameters())
        model[1].normalized_shape = (len(norm),)
        model[2].weight = nn.Parameter(model[2].weight[:, consumer])
        return model

    with torch.random.fork_rng():
        whole, inputs = made(), [(torch.randn(4, 6),)]
        for parameter in whole[1].parameters():
            nn.init.normal_(parameter)
        norm = whole[1].state_dict()

        def verdict(*kept: list[int]) -> str:
            pruned = cut(*kept)
            pruned[1].weight, pruned[1].bias = (nn.Parameter(one[kept[1]]) for one in norm.values())
            return kept_channels.verdict(whole, pruned, inputs)

        first, others = [0, 2, 3, 5, 6], [0, 1, 3, 5, 6]
        assert verdict(first, first, first) == "right"
        assert verdict(first, first, others) == "**wrong: removed channels are still read**"
        assert verdict(first, others, first) == "**wrong: removed channels are still read**"
        assert verdict(first, first, first[1:]) == "**a network that does not run**"
        assert verdict(*[list(range(8))] * 3) == "left whole"
        scaled = cut(first, first, first)
        scaled[0].weight.data *= 2
        assert kept_channels.verdict(whole, scaled, inputs) == "**other weights**"
