"""The benchmarks of cost, of what pruning buys, of the worst case and of reliability print what they should."""

from __future__ import annotations

import contextlib
import importlib
import io
import json
import logging
import math
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import nn
from zoo import ZOO

ROOT = Path(__file__).parents[1]
FOLDERS = (ROOT / "examples" / "benchmarks", ROOT / "examples", ROOT / "docs")
LOGGERS = ("lightning.pytorch", "lightning.pytorch.utilities.rank_zero", "lightning.fabric", "torch.onnx")

Rows = list[dict[str, str]]


@pytest.fixture(scope="module")
def load() -> Iterator[Callable[[str], ModuleType]]:
    """Import a script as if it was run from its folder; afterwards the modules beside it are forgotten."""
    pytest.importorskip("tabulate", reason="the benchmarks print their tables with it")
    modules, path = dict(sys.modules), list(sys.path)
    levels = {name: logging.getLogger(name).level for name in LOGGERS}
    sys.modules.pop("networks", None)  # tests/ has another module of that name
    sys.path[:0] = map(str, FOLDERS)
    yield importlib.import_module
    sys.path[:] = path
    for name, module in list(sys.modules.items()):
        if name not in modules and any(
            one in FOLDERS for one in Path(getattr(module, "__file__", None) or "/").parents
        ):
            del sys.modules[name]
    sys.modules |= {name: modules[name] for name in ("networks",) if name in modules}
    for name, level in levels.items():
        logging.getLogger(name).setLevel(level)


def printed(script: ModuleType, *arguments: str) -> tuple[list[Rows], str]:
    """The tables that a script prints, and all that it prints."""
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        script.main(arguments)
    return tables(out.getvalue()), out.getvalue()


def tables(text: str) -> list[Rows]:
    found: list[list[list[str]]] = [[]]
    for line in text.splitlines():
        if line.startswith("|"):
            found[-1].append([cell.strip() for cell in line.strip("|").split("|")])
        elif found[-1]:
            found.append([])
    return [[dict(zip(head, row, strict=True)) for row in rows] for head, _, *rows in filter(None, found)]


# ---- measuring


def test_contenders_take_turns(load):
    calls = []
    contenders = {name: lambda name=name: calls.append(name) or len(calls) for name in "ab"}

    found = load("measuring").interleaved(contenders, 3)

    assert calls == ["a", "b", "b", "a", "a", "b"]
    assert found == {"a": [1, 4, 5], "b": [2, 3, 6]}


def test_a_process_that_fails_says_why(load, tmp_path):
    script = tmp_path / "script.py"
    script.write_text("import sys; print('{\"one\": 1}'); sys.exit('no such thing' if sys.argv[1:] else 0)")
    measuring = load("measuring")

    assert measuring.in_fresh_process(str(script)) == {"one": 1}
    with pytest.raises(RuntimeError, match="no such thing"):
        measuring.in_fresh_process(str(script), "fail")


# ---- event_cost.py


@pytest.mark.slow
@pytest.mark.parametrize("name", ["resnet50", "resnet50-all", "vit", "gpt2", "gpt2-tanh"])
@pytest.mark.filterwarnings("ignore:Unwrapped parameters detected")
def test_both_sides_of_an_event_come_to_the_same_shapes(load, name):
    if not name.startswith("resnet"):
        pytest.importorskip("transformers")
    event_cost = load("event_cost")
    work = event_cost.WORKS[name]
    whole = [tuple(parameter.shape) for parameter in work.build(True)[0].parameters()]
    found = {part: event_cost.measured(work, part, tiny=True) for part in ("sensitivity", "reconstruction")}

    for seconds, shapes in found.values():
        assert seconds.keys() == {*event_cost.STEPS, "groups", "ranked"}
        assert shapes != whole
    assert found["sensitivity"][1] == found["reconstruction"][1]

    pytest.importorskip("torch_pruning", reason="Torch-Pruning is no part of the test extra")
    assert event_cost.measured(work, "torch-pruning", tiny=True)[1] == found["sensitivity"][1]


@pytest.mark.slow
def test_event_cost_prints_a_row_for_every_network_and_method(load, monkeypatch):
    event_cost = load("event_cost")
    asked = []

    def here(script: str, *arguments: str) -> Any:
        asked.append(arguments)
        out = io.StringIO()
        with contextlib.redirect_stdout(out):
            event_cost.main(arguments)
        return json.loads(out.getvalue())

    monkeypatch.setattr(event_cost, "in_fresh_process", here)
    parts = ["sensitivity", "reconstruction", "self-check", "event memory", "step memory"]
    if not Path("/proc/self/clear_refs").exists():
        pytest.skip("memory is read from Linux")
    arguments = ["--tiny", "--repeats", "2", "--model", "resnet50", "resnet50-all", "--parts", *parts]

    (table,), text = printed(event_cost, *arguments)

    assert len(asked) == 2 * (2 + 1 + 1 + 1 + 1)  # the slow parts once
    assert [(row["network"], row["method"]) for row in table] == [
        (f"ResNet-50, {what}", method)
        for what in ("inside the blocks", "all channels")
        for method in ("sensitivity", "reconstruction")
    ]
    assert all(float(row["event"].partition(" / ")[0]) > 0 for row in table)
    assert all(row["self-check"] and not row["Torch-Pruning"] for row in table)
    memory = [row["MiB: event / training step"].split(" / ") for row in table if row["method"] == "reconstruction"]
    assert all(int(event) >= 0 and int(step) >= 0 for event, step in memory)
    assert "thread" in text.splitlines()[0]


@pytest.mark.slow
def test_big_networks_prints_seconds_and_memory_of_every_part(load, monkeypatch):
    pytest.importorskip("transformers")
    big_networks = load("big_networks")
    if not Path("/proc/self/clear_refs").exists():
        pytest.skip("memory is read from Linux")
    monkeypatch.setattr(
        big_networks, "in_fresh_process", lambda script, *arguments: big_networks.measured("llama", tiny=True)
    )
    ((row,),), text = printed(big_networks, "--tiny", "--model", "llama")
    assert row["groups proven"] == "7 of 7"
    assert all(float(row[part].partition(" ")[0]) > 0 for part in ("structure", "self-check", "pruning"))
    assert all(row[f"memory: {part}"] for part in ("structure", "self-check", "pruning"))
    assert "thread" in text.splitlines()[0]


def test_other_shapes_are_no_comparison(load, monkeypatch):
    event_cost = load("event_cost")
    shapes = iter([[[1]], [[2]]])
    monkeypatch.setattr(event_cost, "in_fresh_process", lambda *_: {"seconds": {}, "shapes": next(shapes)})
    with pytest.raises(AssertionError, match="vit: other shapes"):
        event_cost.measure(["vit"], ["sensitivity", "torch-pruning"], 1, 1, True)


# ---- growth.py


@pytest.mark.slow
def test_growth_prints_a_row_for_every_size(load):
    (table,), _ = printed(load("growth"), "--sizes", "16", "32", "--repeats", "1")
    assert [row["N"] for row in table] == ["16", "32"]
    assert all(float(row["sensitivity / pass"]) > 0 and float(row["reconstruction / Cholesky"]) > 0 for row in table)
    assert all(float(row["measured"]) > 0 for row in table)


# ---- overhead.py


@pytest.fixture
def overhead(load, monkeypatch):
    module = load("overhead")
    case = module.Case(partial(module.mlp, 8, 12, 10), (4, 8), steps=5, validation=3)
    monkeypatch.setattr(module, "CASES", {"small": case})
    return module


@pytest.mark.slow
def test_overhead_prints_ratios_and_hooks(overhead):
    (ratios, hooks), _ = printed(overhead, "--repeats", "2", "--epochs", "4")
    (row,) = ratios
    assert row["epochs timed"] == "4"  # of four, without the first and the last, in two trainings
    for contender in ("empty", "to come", "over"):
        assert all(float(row[f"{contender}: {part}"]) > 0 for part in ("epoch", "validation"))
    assert {row["hook"]: float(row["calls an epoch"]) for row in hooks} == {
        "on_train_epoch_start": 1,
        "on_train_batch_start": 5,
        "on_train_batch_end": 5,
        "on_train_epoch_end": 1,
        "on_validation_start": 1,
        "on_validation_batch_start": 3,
        "on_validation_batch_end": 3,
        "on_validation_end": 1,
    }


def test_contenders_train_with_the_callback_or_one_without_hooks(overhead):
    assert overhead.callbacks("without", 3) == []
    kinds = [type(each).__name__ for name in overhead.CONTENDERS for each in overhead.callbacks(name, 3)]
    assert kinds == ["Callback", "CoresetPruningCallback", "CoresetPruningCallback"]


@pytest.mark.slow
def test_the_epochs_that_are_timed_have_no_event_and_the_same_network(overhead):
    (case,) = overhead.CASES.values()
    over, to_come = (overhead.callback(state, 3) for state in ("over", "to come"))
    for callback in (over, to_come):
        overhead.train(case, 3, [callback])

    assert [(event.epoch, event.params) for event in over.history] == [(0, sum(map(torch.numel, parameters(case))))]
    assert [event.epoch for event in to_come.history] == [2]


def parameters(case: Any) -> list[nn.Parameter]:
    return list(case.build().parameters())


# ---- what_it_buys.py


@pytest.fixture
def what_it_buys(load, monkeypatch):
    for name in ("onnx", "onnxscript"):
        pytest.importorskip(name)
    module = load("what_it_buys")
    case = module.Case(partial(module.mlp, 16, 64, 64, 10), (16,))
    monkeypatch.setattr(module, "CASES", {"small": case})
    return module


@pytest.mark.slow
def test_what_it_buys_prints_all_contenders(what_it_buys):
    (table, beside), _ = printed(what_it_buys, "--repeats=1", "--steps=2", "--calls=1", "--shares", "0.5")
    rows = {row["contender"]: row for row in table}
    stored = {name: int(row["parameters"].replace(",", "")) for name, row in rows.items()}
    left = {name: int(row["not zero"].replace(",", "")) for name, row in rows.items()}

    assert list(rows) == ["whole", "pruned", "built from scratch", "masks on weights", "masks on filters"]
    assert stored["pruned"] == stored["built from scratch"] < 0.6 * stored["whole"]
    for name in what_it_buys.MASKS:
        assert stored[name] == stored["whole"] == left["whole"]
        assert left[name] < 0.6 * left["whole"]
    peaks = {name: float(row["peak of training, MiB"]) for name, row in rows.items()}
    assert peaks["whole"] == peaks["masks on weights"] > peaks["pruned"] == peaks["built from scratch"]
    assert float(rows["whole"]["ONNX, MiB"]) > float(rows["pruned"]["ONNX, MiB"]) > 0
    assert len(beside) == 1


def test_what_is_built_from_scratch_has_the_same_shapes_and_other_weights(what_it_buys):
    model = nn.Sequential(nn.Conv2d(3, 5, 3, 2, 1, bias=False), nn.BatchNorm2d(5), nn.ReLU(), nn.Conv2d(5, 4, 1))
    fresh = what_it_buys.rebuilt(model)

    assert [tuple(p.shape) for p in fresh.parameters()] == [tuple(p.shape) for p in model.parameters()]
    assert fresh(torch.randn(2, 3, 8, 8)).shape == model(torch.randn(2, 3, 8, 8)).shape
    assert not torch.equal(fresh[0].weight, model[0].weight)
    with pytest.raises(AssertionError, match="do not know how to build it"):
        what_it_buys.rebuilt(nn.Sequential(nn.PReLU()))


def test_the_peak_of_training_counts_all_that_a_step_needs(load):
    model = nn.Linear(512, 512, bias=False)  # 1 MiB: its weight, its gradient and two moments
    peak = load("footprint").training_peak(model, torch.randn(1, 512)) / 2**20
    assert 4 <= peak < 7  # and what AdamW needs in between


# ---- agreement.py


def test_agreement_prints_what_is_proven_beside_what_is_found(load, monkeypatch):
    module = load("agreement")
    small = {"LeNet-300-100": lambda: nn.Sequential(nn.Linear(784, 12), nn.ReLU(), nn.Linear(12, 10))}
    monkeypatch.setattr(module, "NETWORKS", small)
    monkeypatch.setattr(module, "RADII", {"LeNet-300-100": (0.0, 0.2)})
    (table,), _ = printed(module, "--networks", "LeNet-300-100", "--keep", "0.5", "--count", "8", "--epochs", "3")
    assert [row["keep"] for row in table] == ["original", "50%"]
    for row in table:
        for radius in ("r = 0", "r = 0.2"):
            shares, _, changes = row[radius].partition("; ")
            certified, attacked = (int(one.rstrip("%")) for one in shares.split(" / "))
            assert 0 <= certified <= attacked <= 100
            if changes:
                proven, found = map(float, changes.split(" / "))
                assert found <= proven


def test_the_convolutional_network_of_agreement_is_one_of_digits(load):
    module = load("agreement")
    assert module.convolutional().eval()(module.images(None, flat=False).test[0][:2]).shape == (2, 10)


# ---- worst_case.py


@pytest.fixture
def worst_case(load, monkeypatch):
    pytest.importorskip("sklearn")
    module = load("worst_case")

    def small(training: Any, epochs: int, seed: int) -> nn.Sequential:
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(784, 24), nn.ReLU(), nn.Linear(24, 16), nn.ReLU(), nn.Linear(16, 10))

    monkeypatch.setattr(module, "trained_network", small)
    return module


@pytest.mark.slow
def test_worst_case_prints_brackets_in_order(worst_case):
    (table,), _ = printed(worst_case, "--seeds", "2", "--keep", "0.75", "0.25")
    assert [row["keep"] for row in table] == ["75%", "25%"]
    for row in table:
        for name in worst_case.METHODS:
            found, certified, triangle = (float(row[f"{name}: {kind}"]) for kind in ("found", "certified", "triangle"))
            assert 0 < found <= certified <= triangle
        assert int(row["draws M"]) > 24 * float(row["keep"].rstrip("%")) / 100
        assert 0 < float(row["Hoeffding, one input"]) < float(row["theorem, all inputs"])


@pytest.mark.slow
def test_products_of_channels_make_certificates_tighter(load, worst_case, monkeypatch):
    script = load("tight_certificates")
    monkeypatch.setattr(script, "trained_network", worst_case.trained_network)
    tables, _ = printed(script, "--keep", "0.5")
    assert [[row["layer"] for row in table] for table in tables] == [["2", "2"], ["1", "1"]]
    for row in (row for table in tables for row in table):
        found, sharp, products = (float(row[name].split()[0]) for name in list(row)[3:6])
        assert found * 0.99 <= products <= sharp


@pytest.mark.slow
def test_promises_need_fewer_neurons_by_what_knows_more(load, worst_case, monkeypatch):
    script = load("promised_error")
    monkeypatch.setattr(script, "trained_network", worst_case.trained_network)
    (table,), _ = printed(script, "--parts", "1", "3")
    for row in table:
        theorem, refined = (int(row[name].split()[0]) for name in ("theorem", "refined theorem"))
        draws, pps = (int(row[f"certificate, {sampler}"]) for sampler in script.SAMPLERS)
        assert max(draws, pps) <= refined <= theorem <= 24


@pytest.mark.slow
def test_the_picture_is_the_same_whenever_it_is_drawn(worst_case, tmp_path):
    pytest.importorskip("matplotlib")
    found = [worst_case.Worst(keep, 3.0, {"sensitivity": (1, 2, 9), "reconstruction": (1, 2, 4)}, 9, 20, 30)
             for keep in (0.5, 0.25)]  # fmt: skip
    for name in ("one.svg", "two.svg"):
        worst_case.draw(found, tmp_path / name)
    one, two = ((tmp_path / name).read_bytes() for name in ("one.svg", "two.svg"))
    assert one == two
    assert b"theorem, all inputs" in one


def test_draws_that_show_so_many_neurons(worst_case):
    probabilities = torch.tensor([0.4, 0.3, 0.2, 0.1], dtype=torch.float64)
    draws = worst_case.draws_for(3, probabilities)
    seen = [torch.multinomial(probabilities, draws, replacement=True).unique().numel() for _ in range(4000)]
    assert sum(seen) / len(seen) == pytest.approx(float((1 - (1 - probabilities) ** draws).sum()), abs=0.05)
    assert worst_case.draws_for(3, probabilities) == 6


def test_hoeffding_holds_at_an_input(worst_case):
    """The bound at one input, against coresets drawn with replacement."""
    from lightning_coreset.coreset import draw_fixed, find_activation, sensitivities

    generator = torch.Generator().manual_seed(0)
    rows, weight = torch.randn(40, 9, generator=generator), torch.randn(5, 40, generator=generator)
    relu = find_activation("relu")
    scores = sensitivities(rows, weight[:, :, None], relu, input_radius=2.0)
    x = torch.randn(8, generator=generator)
    hidden = relu.function(rows.double() @ torch.cat([2 * x / x.norm(), torch.ones(1)]).double())
    bound, _ = worst_case.bounds_beforehand(float(scores.sum()), 30, len(weight))

    errors = []
    for _ in range(300):
        sample = draw_fixed(scores, 30, generator=generator)
        approximation = (weight[:, sample.kept] * sample.weights) @ hidden[sample.kept]
        errors.append(float((weight.double() @ hidden - approximation).abs().max()))
    assert sum(error > bound for error in errors) <= math.ceil(worst_case.DELTA * len(errors))
    assert max(errors) > bound / 10  # loose, but not by orders of magnitude


# ---- reliability.py


@pytest.mark.slow
def test_reliability_counts_networks_and_tests(load, monkeypatch):
    pytest.importorskip("transformers")
    reliability = load("reliability")
    monkeypatch.setattr(reliability, "QUICK_STRIDE", 150)
    some = len(range(0, len(ZOO), 150))

    (table,), _ = printed(reliability, "--quick")

    counts = {row["what"]: (int(row["how many"]), int(row["passed"])) for row in table}
    networks, removals, others, faults = counts.values()
    assert networks == (some, some) > (2, 2)
    assert removals[0] >= removals[1] > 0
    assert others == (removals[0] - removals[1],) * 2
    assert faults == (1, 1)


@pytest.mark.slow
def test_tests_that_fail_or_are_not_there_are_not_counted_as_passed(load, tmp_path, monkeypatch):
    reliability = load("reliability")
    (tmp_path / "test_some.py").write_text(
        "import pytest\ndef test_good(): pass\ndef test_bad(): assert False\ndef test_skipped(): pytest.skip()\n"
    )
    monkeypatch.setattr(reliability, "ROOT", tmp_path)

    assert reliability.run(reliability.Tests("", "test_some.py", "good or bad or skipped"), False) == (
        3,
        ["test_some.py::test_bad", "test_some.py::test_skipped"],
    )
    with pytest.raises(RuntimeError, match="cannot be run"):
        reliability.run(reliability.Tests("", "test_some.py", "nothing"), False)
