"""Every example as a user runs it, in small settings: it prunes, still classifies, and leaves nothing behind."""

from __future__ import annotations

import csv
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import torch
from pages import ROOT
from scripts import load_script
from training.launching import finish, start

from lightning_coreset import make_resizable, prune

pytest.importorskip("rich", reason="the examples print their tables with rich")
load_digits = pytest.importorskip("sklearn.datasets", reason="the examples train on scikit-learn's digits").load_digits

EXAMPLES = ROOT / "examples"
ELSEWHERE = {"cli": "test_cli.py", "ddp": "test_ddp_page.py", "quickstart": "test_quickstart.py"}


@dataclass(frozen=True)
class Case:
    """A command and what its table has to show.

    Attributes:
        command: The script, without its suffix, and its options.
        left: The row of the table that was asked to fall, and the fraction that was to be left.
        floor: Percent of accuracy, well above chance, that both networks reach.
        lost: Points of accuracy that may be lost.
    """

    command: str
    left: tuple[str, float]
    floor: float
    lost: float = 5


SMALL = [
    Case("plain_pytorch --epochs 4", ("parameters", 0.5), 85, 10),
    Case("mnist_lenet --epochs 8", ("parameters", 0.1), 80, 10),
    Case("cifar --epochs 5 --depth 8", ("MACs", 0.5), 80, 10),
    Case("cifar --epochs 6 --network vgg --width 0.15 --ratio 0.3", ("MACs", 0.7), 70, 15),
    Case("huggingface --epochs 3 --limit 250", ("MACs", 0.5), 40, 20),
]
WHOLE = [
    Case("mnist_lenet", ("parameters", 0.1), 94),
    Case("cifar", ("MACs", 0.5), 96),
    Case("cifar --residual", ("MACs", 0.5), 96),
    Case("cifar --network vgg", ("MACs", 0.5), 95),
    Case("plain_pytorch", ("parameters", 0.5), 95),
    Case("huggingface", ("MACs", 0.5), 60, 8),
]


def run(folder: Path, command: str) -> str:
    """What the example prints; it may leave no file beside itself, and none where it is run."""
    script, *options = command.split()
    before = files(folder)
    (output,) = finish(
        start(folder, EXAMPLES / f"{script}.py", *options, PYTHONDONTWRITEBYTECODE="1", HF_HUB_OFFLINE="1")
    )
    assert files(folder) == before
    return output


def files(folder: Path) -> set[Path]:
    """Without Python's cache, since tests that import examples may run at the same time."""
    return {*EXAMPLES.glob("*"), *folder.rglob("*")} - {EXAMPLES / "__pycache__"}


def warnings_in(output: str) -> list[str]:
    return re.findall(r"^.*(?:\.py:\d+: |Warning).*$", output, re.MULTILINE)


def figures(output: str) -> dict[str, tuple[float, float]]:
    """The rows of the table, before and after pruning."""
    rows = re.findall(r"^│ (parameters|MACs|accuracy) +│ +([\d.,]+)%? │ +([\d.,]+)%? │", output, re.MULTILINE)
    assert [what for what, *_ in rows] == ["parameters", "MACs", "accuracy"], output
    return {what: (float(old.replace(",", "")), float(new.replace(",", ""))) for what, old, new in rows}


def check(case: Case, output: str) -> None:
    shown = figures(output)
    unit, left = case.left
    before, after = shown[unit]
    assert after / before == pytest.approx(left, abs=0.02)
    for before, after in (shown["parameters"], shown["MACs"]):
        assert after < before
    before, after = shown["accuracy"]
    assert min(before, after) > case.floor
    assert after > before - case.lost
    assert not warnings_in(output)
    if "plain_pytorch" in case.command:
        assert f"saved, and loaded again: test accuracy {after}%" in output
    if "huggingface" in case.command:
        assert re.search(r"attention\.q_lin: 3 of 4 left$", output, re.MULTILINE)
        assert "saved, and loaded again: the same answers" in output


@pytest.mark.slow
@pytest.mark.parametrize("case", SMALL, ids=lambda case: case.command)
def test_example_prunes_and_still_classifies(case: Case, tmp_path: Path) -> None:
    check(case, run(tmp_path, case.command))


@pytest.mark.slow
@pytest.mark.parametrize("case", WHOLE, ids=lambda case: case.command)
def test_example_does_what_its_docstring_says(case: Case, tmp_path: Path) -> None:
    check(case, run(tmp_path, case.command))


@pytest.mark.parametrize(
    ("options", "left", "tries"),
    [
        pytest.param("--epochs 14 --start 4", (0.05, 0.8), 1, marks=pytest.mark.slow),
        pytest.param("", (0.08, 0.2), 2, marks=pytest.mark.slow),
        pytest.param("--on-failure stop", (0.4, 0.6), 1, marks=pytest.mark.slow),
    ],
    ids=["small", "whole", "stop"],
)
def test_iterative_goes_as_far_as_the_guard_lets_it(
    options: str, left: tuple[float, float], tries: int, tmp_path: Path
) -> None:
    output = run(tmp_path, f"iterative {options}")
    shown = figures(output)
    before, after = shown["parameters"]
    assert left[0] * before < after < left[1] * before
    before, after = shown["accuracy"]
    assert after > before - 1.5 > 90
    events = re.findall(r"^ *\d+ +\d+ .*$", output, re.MULTILINE)
    taken_back = [event for event in events if event.endswith("taken back")]
    assert tries <= len(taken_back) < len(events)
    assert all("is taken back" in line or "Training ended before" in line for line in warnings_in(output))
    assert len(warnings_in(output)) >= len(taken_back)


@dataclass(frozen=True)
class Hour:
    """A script of a newcomer's first hour, and what its account has to show.

    Attributes:
        command: The script, without its suffix, and its options.
        asked: The line of what was asked to fall, and the fraction that was to be left.
        measured: The line of the accuracy or error.
        bounds: What the pruned network's accuracy or error has to lie between.
        lost: By how much it may be worse than without pruning.
    """

    command: str
    asked: tuple[str, float]
    measured: str
    bounds: tuple[float, float]
    lost: float


HOURS = [
    Hour("first_hour_images", ("parameters", 0.3), "test accuracy", (95, 100), 3),
    Hour("first_hour_transformer", ("MACs", 0.5), "test accuracy", (45, 100), 10),
    Hour("first_hour_forecasting", ("parameters", 0.4), "test error", (0, 0.4), 0.05),
]


@pytest.mark.slow
@pytest.mark.parametrize("hour", HOURS, ids=lambda hour: hour.command)
def test_a_first_hour_ends_with_a_pruned_model_that_is_loaded_and_saved(hour: Hour, tmp_path: Path) -> None:
    if "transformer" in hour.command:
        pytest.importorskip("transformers")
    output = run(tmp_path, hour.command)
    rows = re.findall(r"^([A-Za-z ]+): +([\d.,]+)%? -> ([\d.,]+)", output, re.MULTILINE)
    account = {what: (float(old.replace(",", "")), float(new.replace(",", ""))) for what, old, new in rows}
    what, left = hour.asked
    before, after = account[what]
    assert after / before == pytest.approx(left, abs=0.02)
    before, after = account[hour.measured]
    assert hour.bounds[0] < after < hour.bounds[1]
    assert (after - before if "error" in hour.measured else before - after) < hour.lost
    assert re.search(r"the same (answers|forecasts)$", output, re.MULTILINE)
    assert output.count("Training ") == 2
    assert not warnings_in(output)


# ---- the user's own data


def load(name: str, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """A module of the examples."""
    monkeypatch.syspath_prepend(str(EXAMPLES))
    return load_script(f"examples/{name}.py")


def few_digits(size: int) -> dict[str, np.ndarray]:
    """Digits as grey images of bytes, as MNIST is stored."""
    x, y = load_digits(return_X_y=True)
    x = (x.reshape(-1, 8, 8) * 15).astype(np.uint8).repeat(size // 8, 1).repeat(size // 8, 2)
    return {"train_x": x[:600], "train_y": y[:600], "test_x": x[600:800], "test_y": y[600:800]}


@pytest.mark.parametrize("keras", [False, True])
def test_images_come_from_npz_files(keras: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arrays = few_digits(16)
    stored = {"_".join(name.split("_")[::-1]) if keras else name: array for name, array in arrays.items()}
    np.savez(tmp_path / "mnist.npz", **stored)
    images = load("data", monkeypatch).mnist(tmp_path / "mnist.npz")
    for part in ("train", "test"):
        x, y = getattr(images, part)
        assert torch.equal(x, torch.from_numpy(arrays[f"{part}_x"]).float()[:, None] / 255)
        assert y.tolist() == arrays[f"{part}_y"].tolist()


@pytest.mark.parametrize("last", [False, True])
def test_colours_may_come_first_or_last(last: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arrays = few_digits(16)
    colours = {name: np.stack([x, x // 2, x // 4], -1 if last else 1) for name, x in arrays.items() if "x" in name}
    np.savez(tmp_path / "cifar.npz", **(arrays | colours))
    (x, _), _ = load("data", monkeypatch).cifar10(tmp_path / "cifar.npz")
    assert x.shape == (600, 3, 16, 16)
    assert torch.equal(x[:, 2], torch.from_numpy(arrays["train_x"] // 4).float() / 255)


def test_torchvision_downloads_into_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def stored(root: Path, train: bool, download: bool) -> SimpleNamespace:
        asked.append((root, train, download))
        return SimpleNamespace(data=np.full((4, 32, 32, 3), 255 * train, np.uint8), targets=[0, 1, 2, 3])

    fake = SimpleNamespace(datasets=SimpleNamespace(CIFAR10=stored))
    monkeypatch.setitem(sys.modules, "torchvision", fake)
    (train_x, train_y), (test_x, _) = load("data", monkeypatch).cifar10(tmp_path)
    assert asked == [(tmp_path, True, True), (tmp_path, False, True)]
    assert train_x.unique().tolist() == [1]
    assert test_x.unique().tolist() == [0]
    assert train_y.tolist() == [0, 1, 2, 3]


def test_what_is_not_installed_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchvision", None)
    with pytest.raises(SystemExit, match="pip install torchvision"):
        load("data", monkeypatch).mnist(tmp_path)
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(SystemExit, match="pip install datasets"):
        load("texts", monkeypatch).dataset("imdb")


@pytest.mark.slow
def test_example_trains_on_a_file(tmp_path: Path) -> None:
    arrays = few_digits(32)
    np.savez(tmp_path / "images.npz", **{k: np.stack([x] * 3, -1) if k.endswith("x") else x for k, x in arrays.items()})
    command = "cifar --data images.npz --epochs 2 --depth 8 --width 0.5 --residual"
    shown = figures(run(tmp_path, command))
    assert shown["MACs"][1] == pytest.approx(shown["MACs"][0] / 2, rel=0.05)
    assert shown["MACs"][0] > 10**6  # of larger images


def tiny_bert(texts: list[str], folder: Path) -> None:
    """Save a BERT as users have it in a folder, with two labels."""
    transformers = pytest.importorskip("transformers")
    words = sorted({word for text in texts for word in re.findall(r"[a-z]+", text.lower())})
    (folder / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *words]))
    tokenizer = transformers.BertTokenizerFast(str(folder / "vocab.txt"))
    config = transformers.BertConfig(
        vocab_size=len(words) + 5, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64
    )
    transformers.BertForSequenceClassification(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


@pytest.mark.slow
def test_huggingface_takes_the_users_model_and_texts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("datasets", reason="--dataset loads with it")
    texts = load("texts", monkeypatch).docstrings(40)
    tiny_bert(texts.train[0], tmp_path)
    with (tmp_path / "texts.csv").open("w", newline="", encoding="utf-8") as file:
        names = [f"library {label}" for label in texts.train[1]]
        csv.writer(file).writerows([("text", "label"), *zip(texts.train[0], names, strict=True)])
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path.with_name("cache")))
    output = run(tmp_path, "huggingface --model . --dataset texts.csv --epochs 2")
    before, after = figures(output)["MACs"]
    assert after / before == pytest.approx(0.5, abs=0.03)
    assert "attention.self.query: 3 of 4 left" in output
    assert "the same answers" in output


@pytest.mark.filterwarnings("ignore")  # those of transformers
@pytest.mark.slow
def test_from_pretrained_refuses_a_pruned_model_and_make_resizable_takes_it(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.DistilBertConfig(vocab_size=60, dim=24, n_layers=2, n_heads=4, hidden_dim=36)
    network = make_resizable(transformers.DistilBertForSequenceClassification(config).eval())
    tokens = {"input_ids": torch.randint(60, (2, 7)), "attention_mask": torch.ones(2, 7, dtype=torch.long)}
    prune(network, tokens, 0.5, unit="macs")
    network.save_pretrained(tmp_path)
    torch.save(network.state_dict(), tmp_path / "weights.pt")
    with pytest.raises(RuntimeError, match="mismatch"):
        transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path)

    config = transformers.AutoConfig.from_pretrained(tmp_path)
    fresh = make_resizable(transformers.AutoModelForSequenceClassification.from_config(config).eval())
    fresh.load_state_dict(torch.load(tmp_path / "weights.pt", weights_only=True))
    assert torch.equal(fresh(**tokens).logits, network(**tokens).logits)


# ---- the list of examples is complete


def test_every_example_is_tested_and_stands_in_the_table() -> None:
    modules = {path.stem: path.read_text(encoding="utf-8") for path in EXAMPLES.glob("*.py")}
    scripts = {name for name, code in modules.items() if '__name__ == "__main__"' in code}
    tested_here = {case.command.split()[0] for case in (*SMALL, *WHOLE, *HOURS)} | {"iterative"}
    assert scripts == tested_here | ELSEWHERE.keys()
    for name, test in ELSEWHERE.items():
        assert name in (ROOT / "tests" / test).read_text(encoding="utf-8")

    readme = (EXAMPLES / "README.md").read_text(encoding="utf-8")
    rows = dict(re.findall(r"^\| \[(\w+)\.py\]\(\1\.py\) \| (.*) \|$", readme, re.MULTILINE))
    assert rows.keys() == modules.keys()
    for name in scripts:
        assert f"{name}.py" in re.findall(r"`([^`]*python [^`]*)`", rows[name])[-1]
        assert "What to expect" in modules[name]
