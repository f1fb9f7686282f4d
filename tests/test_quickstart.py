"""The example of the README: it prunes, logs what it did, and the pruned network still classifies."""

from __future__ import annotations

import builtins
import re
import sys
from pathlib import Path

import pytest
from breadth import some_of
from scripts import load_script
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

pytest.importorskip("sklearn", reason="the quickstart trains on scikit-learn's digits")

EPOCHS = 6
UNPRUNED_ACCURACY = {"MLP": 0.90, "ConvNet": 0.95}  # after EPOCHS; the test checks that the margin below is real
MARGIN = 0.10


quickstart = load_script("examples/quickstart.py")


def scalars(folder: Path) -> dict[str, list[float]]:
    """Return every scalar series in the event files of ``folder``."""
    events = EventAccumulator(str(folder))
    events.Reload()
    return {tag: [event.value for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def parameters(trained) -> int:
    return sum(p.numel() for p in trained.network.parameters())


@pytest.mark.parametrize("name", some_of(sorted(quickstart.NETWORKS), "MLP"))
def test_quickstart_prunes_logs_and_still_classifies(name: str, tmp_path: Path) -> None:
    before = quickstart.train(name, prune=False, epochs=EPOCHS, logdir=tmp_path)
    after = quickstart.train(name, prune=True, epochs=EPOCHS, logdir=tmp_path)

    assert before.accuracy > UNPRUNED_ACCURACY[name]
    assert after.accuracy > UNPRUNED_ACCURACY[name] - MARGIN
    assert 0.4 * parameters(before) < parameters(after) < 0.6 * parameters(before)

    assert not any(tag.startswith("coreset/") for tag in scalars(tmp_path / name / "dense"))
    logged = scalars(tmp_path / name / "pruned")
    assert {"coreset/sparsity", "coreset/params", "coreset/macs", "coreset/accuracy"} <= logged.keys()
    assert any(tag.startswith("coreset_channels/") for tag in logged)
    assert logged["coreset/params"][-1] == parameters(after)
    assert logged["coreset/sparsity"][-1] == pytest.approx(1 - parameters(after) / parameters(before), abs=1e-6)
    assert logged["coreset/macs"][-1] < logged["coreset/macs"][0]


@pytest.mark.parametrize("rich", some_of([True, False], True), ids=["rich", "plain"])
def test_quickstart_prints_what_it_does_and_a_table_for_each_network_and_nothing_else(
    rich: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    if rich:
        pytest.importorskip("rich")
    else:
        imported = builtins.__import__

        def without_rich(name: str, *args, **kwargs):
            if name.partition(".")[0] == "rich":
                raise ImportError(name)
            return imported(name, *args, **kwargs)

        monkeypatch.setattr(builtins, "__import__", without_rich)
    monkeypatch.setattr(sys, "argv", ["quickstart.py", "--epochs=3", f"--logdir={tmp_path}"])

    quickstart.main()

    out, err = capfd.readouterr()
    assert err == ""
    for name in quickstart.NETWORKS:
        assert f"{name}, 3 epochs" in out
        assert len(re.findall(rf"^{name}: .* \.\.\. \d+ s$", out, re.MULTILINE)) == 3
    for row in ("parameters", "MACs per image", "validation accuracy", "file size", "latency"):
        assert out.count(row) == len(quickstart.NETWORKS)
    assert f"tensorboard --logdir {tmp_path}" in out.replace("\n", " ")
