"""What is said in the terminal, and where."""

import builtins
import logging
import sys

import pytest
from fitting import Validated, make_loader
from lightning.pytorch.callbacks import RichProgressBar, TQDMProgressBar

from lightning_coreset import CoresetPruningCallback
from lightning_coreset.tables import text_table
from lightning_coreset.training.report import History, console, summary
from lightning_coreset.training.report.console import PlanningProgress, event_report, pretty_table

ROWS = [("name", "count"), ("[red]net[/red]", "1,024"), ("b", "-3")]


@pytest.fixture
def terminal(monkeypatch):
    """Output looks like a terminal."""
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)


def test_tables_are_plain_where_no_terminal_is():
    assert pretty_table(ROWS) == text_table(ROWS)


def test_tables_are_plain_without_rich(terminal, monkeypatch):
    monkeypatch.setattr(console, "find_spec", lambda name: None)

    assert pretty_table(ROWS) == text_table(ROWS)


def test_tables_in_a_terminal_have_the_same_cells(terminal):
    pytest.importorskip("rich")

    table = pretty_table(ROWS)

    assert table != text_table(ROWS)
    for cell in sum(ROWS, ()):
        assert cell in table


def test_long_tables_are_cut():
    rows = [("name",), *((f"group{i}",) for i in range(30))]

    lines = pretty_table(rows, most=4).splitlines()

    assert lines == ["name", "------", "group0", "group1", "group2", "group3", "... and 26 more"]


def test_an_events_report_shows_what_changed(make_plan):
    plan = make_plan({"net.0": 8, "net.2": 10})

    first, later = (event_report(plan, "epoch 3", first=first).splitlines() for first in (True, False))

    assert first[:-1] == later
    assert first[-1] == "not pruned: head reaches the output"
    assert later[0] == "Pruned at epoch 3:"
    assert later[1].split()[:2] == ["group", "channels"]
    assert later[3].startswith("net.0")
    assert later[4:] == ["groups that keep all their channels: 1", *plan.totals()]


def test_an_event_that_removed_nothing_takes_one_line(make_plan):
    plan = make_plan({"net.0": 16, "net.2": 10})

    assert event_report(plan, "epoch 3", first=False) == f"Pruned nothing more at epoch 3: {plan.totals()[0]}"


def test_summary(make_record):
    history = History([make_record()])

    assert summary(history) == str(history)
    assert summary(History()) == str(History())


def test_long_planning_prints_its_progress(monkeypatch):
    now, said = [0.0], []
    monkeypatch.setattr(console.time, "monotonic", lambda: now[0])
    progress = PlanningProgress(said.append, patience=5.0)

    for position, now[0] in enumerate([0.0, 4.9, 5.0, 9.9, 12.0], start=1):
        progress(f"net.{position}", position, 5)

    assert said == [
        "Planning a pruning event: group 3 of 5 (net.3), 5 s",
        "Planning a pruning event: group 5 of 5 (net.5), 12 s",
    ]


@pytest.fixture
def fit(make_trainer, caplog):
    caplog.set_level(logging.INFO, "lightning.pytorch")  # the examples, run by other tests, make it quiet

    def run(*callbacks, verbose=True, **options):
        pruning = CoresetPruningCallback(schedule={1: 0.3, 2: 0.5}, verbose=verbose, check=False)
        trainer = make_trainer(pruning, *callbacks, max_epochs=3, **options)
        trainer.fit(Validated(), make_loader(8), make_loader(8))
        return pruning

    return run


def reports(text):
    return [line.partition(" at ")[2] for line in text.splitlines() if "Pruned at" in line]


def test_without_a_progress_bar_events_are_logged(fit, caplog):
    pruning = fit()

    assert reports(caplog.text) == ["epoch 1:", "epoch 2:"]
    assert pruning.plans[1].totals()[0] in caplog.text


@pytest.mark.parametrize("bar", [TQDMProgressBar, RichProgressBar])
def test_with_a_progress_bar_events_are_printed_above_it(fit, bar, caplog, capsys):
    if bar is RichProgressBar:
        pytest.importorskip("rich")

    fit(bar(), enable_progress_bar=True)

    out, _ = capsys.readouterr()
    assert reports(caplog.text) == []
    assert [found[:8] for found in reports(out)] == ["epoch 1:", "epoch 2:"]


@pytest.mark.parametrize("options", [{"verbose": False}, {"enable_progress_bar": True, "verbose": False}])
def test_not_verbose_says_nothing(fit, options, caplog, capsys):
    fit(**options)

    assert "Pruned" not in caplog.text + capsys.readouterr().out


def test_a_higher_level_of_lightnings_logger_hides_events(fit, capsys, monkeypatch):
    monkeypatch.setattr(logging.getLogger("lightning.pytorch"), "level", logging.WARNING)
    logging.getLogger("lightning.pytorch").manager._clear_cache()

    fit(TQDMProgressBar(), enable_progress_bar=True)
    logging.getLogger("lightning.pytorch").manager._clear_cache()

    assert "Pruned" not in capsys.readouterr().out


def test_rich_is_no_dependency(fit, monkeypatch, caplog):
    real = builtins.__import__

    def no_rich(name, *arguments, **options):
        if name.partition(".")[0] == "rich":
            raise ImportError(name)
        return real(name, *arguments, **options)

    monkeypatch.setattr(builtins, "__import__", no_rich)

    fit()

    assert reports(caplog.text) == ["epoch 1:", "epoch 2:"]
