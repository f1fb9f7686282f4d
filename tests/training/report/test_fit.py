"""What is printed when the structure is known, and when training is over."""

import logging
import sys
from types import SimpleNamespace

import pytest
import torch
from fitting import Classifier, Validated, make_loader
from lightning.pytorch.callbacks import Callback, RichProgressBar, TQDMProgressBar
from torch import nn

from lightning_coreset import CoresetPruningCallback, Sensitivity, prune
from lightning_coreset.training.report import History, Outlook
from lightning_coreset.training.report.file_size import state_sizes
from lightning_coreset.training.report.fit import Outcome


@pytest.fixture
def said(make_trainer, caplog):
    """What a fit says of pruning, by the first word: its lines from there to the next such word."""
    caplog.set_level(logging.INFO, "lightning.pytorch")

    def run(*callbacks, module=None, **options) -> list[str]:
        caplog.clear()
        module = module or Validated()
        loaders = [make_loader(8)] * (2 if isinstance(module, Validated) else 1)
        make_trainer(*callbacks, **({"max_epochs": 4} | options)).fit(module, *loaders)
        return [message for message in caplog.messages if "prun" in message.lower()]

    return run


@pytest.mark.slow
def test_it_says_at_the_start_what_will_be_pruned_and_in_the_end_what_was(said):
    callback = CoresetPruningCallback(schedule={1: 0.3, 2: 0.5}, self_check=False)

    start, *events, end = said(callback)

    first, second = start.splitlines()
    assert first.startswith("Coreset pruning: 2 of 3 groups of layers, 0% -> 50% of ")
    assert first.endswith(" parameters, in 2 events, epochs 1 to 2 (given).")
    assert second == "Not pruned: net.4 makes outputs of the network."
    assert len(events) == 2
    last = callback.history[-1]
    heading, _, _, params, macs, channels, size, accuracy, seconds = end.splitlines()
    assert heading.startswith(f"Pruning is over: {last.reached:.2%} of the parameters are removed (50.00% requested)")
    assert params.split()[:3] == ["parameters", f"{last.params_original:,}", f"{last.params:,}"]
    assert macs.split()[3:5] == [f"{last.macs_original:,}", f"{last.macs:,}"]
    assert channels.split()[1:3] == ["56", str(sum(group.channels for group in last.groups))]
    assert size.split()[2:6] == [f"{last.params_original * 4 / 1e3:.2f}", "kB", f"{last.params * 4 / 1e3:.2f}", "kB"]
    assert accuracy.startswith(f"accuracy: {callback.history[0].accuracy_before:.4f} before the first event, ")
    assert f"{last.accuracy_recovered:.4f} at the end" in accuracy
    assert "s of this fit" in seconds


@pytest.mark.slow
def test_what_the_first_event_finds_anew_is_said_only_if_it_differs(said):
    said_lines = said(CoresetPruningCallback(0.5, self_check=False), max_epochs=6)

    assert sum(line.startswith("Coreset pruning") for line in said_lines) == 1


@pytest.mark.slow
def test_a_run_that_resumes_says_where_it_goes_on(said, tmp_path, make_trainer):
    class Save(Callback):
        def on_train_epoch_end(self, trainer, pl_module):
            trainer.save_checkpoint(tmp_path / f"{trainer.current_epoch}.ckpt")

    def callback():
        return CoresetPruningCallback(schedule={1: 0.3, 3: 0.5}, self_check=False)

    first = callback()
    make_trainer(first, Save(), max_epochs=5).fit(Validated(), make_loader(8), make_loader(8))
    again = callback()
    trainer = make_trainer(again, max_epochs=5)
    lines: list[str] = []
    again._run.reporter.structure_known = lambda trainer, outlook: lines.append(str(outlook()))
    trainer.fit(Validated(), make_loader(8), make_loader(8), ckpt_path=tmp_path / "2.ckpt")

    assert f"{100 * first.plans[0].reached:.4g}% -> 50% of" in lines[-1]
    assert "in 1 event, epoch 3" in lines[-1]


@pytest.mark.parametrize(
    ("schedule", "told", "epochs"),
    [
        ({0: 0.2, 1: 0.3, 3: 0.5}, "2 events, epochs 2 to 3", [2, 3]),
        ({0: 0.2, 1: 0.3}, "1 event, epoch 2", [2]),
    ],
)
def test_events_that_are_overdue_come_now_as_one(make_trainer, schedule, told, epochs, tmp_path):
    """As in a run that goes on from a checkpoint of a run without the callback."""
    trainer = make_trainer(max_epochs=2)
    trainer.fit(Classifier(), make_loader(8))
    trainer.save_checkpoint(tmp_path / "without.ckpt")
    callback = CoresetPruningCallback(schedule=schedule, self_check=False)
    lines: list[str] = []
    callback._run.reporter.structure_known = lambda trainer, outlook: lines.append(str(outlook()))

    trainer = make_trainer(callback, max_epochs=5)
    trainer.fit(Classifier(), make_loader(8), ckpt_path=tmp_path / "without.ckpt")

    assert f"in {told} (given)" in lines[0]
    assert [record.epoch for record in callback.history] == epochs


def test_a_model_that_was_pruned_before_is_the_original_of_a_new_run(said):
    module = Validated()
    prune(module, torch.randn(2, 8), 0.4)
    whole = 4 * sum(parameter.numel() for parameter in module.parameters())

    *_, end = said(CoresetPruningCallback(schedule={1: 0.3}, self_check=False), module=module)

    size = next(line for line in end.splitlines() if line.startswith("file size"))
    assert size.split()[2:4] == [f"{whole / 1e3:.2f}", "kB"]


def test_a_network_of_which_nothing_can_go_gets_no_outlook(said):
    with pytest.warns(UserWarning, match="Nothing is pruned"):
        lines = said(CoresetPruningCallback(), module=Classifier(nn.Linear(8, 3)))

    assert lines == []


@pytest.mark.parametrize("bar", [TQDMProgressBar, RichProgressBar])
@pytest.mark.slow
def test_the_end_is_printed_though_the_bar_is_closed(said, bar, capsys):
    if bar is RichProgressBar:
        pytest.importorskip("rich")

    said(CoresetPruningCallback(schedule={1: 0.3}, self_check=False), bar(), enable_progress_bar=True)

    assert capsys.readouterr().out.count("Pruning is over") == 1


@pytest.mark.slow
def test_a_notebook_gets_one_line_for_an_event(said, monkeypatch):
    shell = SimpleNamespace(kernel=object())
    monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(get_ipython=lambda: shell))

    _, *events, _ = said(CoresetPruningCallback(schedule={1: 0.3, 2: 0.5}, self_check=False))

    assert [len(event.splitlines()) for event in events] == [1, 1]


def outlook(**changes) -> Outlook:
    facts = {
        "unit": "macs",
        "whole": 11173962,
        "reached": 0.0,
        "target": 0.5,
        "rules": False,
        "groups": 24,
        "skipped": {},
        "times": (2, 5, 14),
        "interval": "epoch",
        "curve": "cubic",
    }
    return Outlook(**facts | changes)


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({}, "24 of 24 groups of layers, 0% -> 50% of 11,173,962 MACs, in 3 events, epochs 2 to 14 (cubic)."),
        ({"unit": "latency", "whole": None}, "0% -> 50% of the latency,"),
        ({"unit": "latency", "whole": 6.913628e-05}, "0% -> 50% of 0.06914 ms of latency,"),
        ({"target": None}, "as much of 11,173,962 MACs as the method allows,"),
        ({"rules": True, "target": 0.7}, "up to 70% of a group's channels, by rules,"),
        ({"times": (3,), "interval": "step"}, "in 1 event, step 3 (cubic)."),
        ({"times": (), "reached": 0.7}, " layers, 70% of 11,173,962 MACs removed, no more events (cubic)."),
    ],
)
def test_outlook(changes, text):
    assert text in str(outlook(**changes))


def test_reasons_are_counted_and_the_most_frequent_come_first():
    blocks = {f"layers.{number}.out": "is gated" for number in range(32)}
    others = {name: f"is {name}" for name in "abcd"}

    lines = str(outlook(skipped={"fc": "is a bias", **blocks, **others})).splitlines()

    assert lines[0].startswith("Coreset pruning: 24 of 61 groups of layers")
    assert lines[1] == (
        "Not pruned: layers.0-31.out (32): each is gated; fc is a bias; a is a; b is b; and 2 more reasons (see "
        "callback.dry_run)."
    )


class Worse(Validated):
    """Its metric falls with every channel, so that the guard takes each event back."""

    def validation_step(self, batch, batch_idx):
        self.log("val_acc", self.net[0].out_features / 100)


@pytest.mark.filterwarnings("ignore:.*is taken back", "ignore:Training ended before")
def test_what_will_be_pruned_is_said_once_though_events_are_taken_back_and_come_later(said):
    schedule = {1: 0.3, 4: 0.5}
    guard = {"monitor": "val_acc", "max_drop": 0.01, "recover_epochs": 1, "on_failure": "halve"}
    callback = CoresetPruningCallback(schedule=schedule, self_check=False, **guard)

    lines = said(callback, module=Worse(), max_epochs=5)

    assert sum(record.reverted for record in callback.history) > 1
    assert sum(line.startswith("Coreset pruning") for line in lines) == 1


def test_the_end_of_a_run_whose_events_were_all_taken_back(make_record):
    outcome = Outcome(History([make_record(reverted=True)]), (10, 10), "accuracy", None, 1.0, 2.0)

    assert str(outcome) == "Pruning is over: 1 event, taken back; the model is the original one."


@pytest.mark.slow
def test_a_method_that_chooses_sizes_has_no_ratio(said):
    start, *_ = said(
        CoresetPruningCallback(method=Sensitivity(epsilon=1e9), schedule="one_shot", start=1, self_check=False)
    )

    assert "as much of " in start


def test_sizes_are_those_of_the_file(tmp_path):
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = nn.Linear(16, 512), nn.Linear(512, 16), nn.Linear(16, 512)
            self.d = nn.Linear(512, 4)
            self.c.weight = self.a.weight
            self.register_buffer("kept", torch.ones(1000))
            self.register_buffer("made", torch.ones(100_000), persistent=False)

        def forward(self, x):
            return self.d(self.c(self.b(self.a(x).relu())).relu())

    def file_size(model: nn.Module) -> int:
        torch.save(model.state_dict(), tmp_path / "model.pt")
        return (tmp_path / "model.pt").stat().st_size

    model = Tied()
    before = file_size(model)
    prune(model, torch.randn(2, 16), 0.3, only=["a"], self_check=False)

    original, now = state_sizes(model)

    assert now < original
    assert before - 4000 < original < before
    assert file_size(model) - 4000 < now < file_size(model)
