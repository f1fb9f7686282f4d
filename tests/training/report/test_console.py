"""What is said in the terminal, and where."""

import builtins
import logging
import re
import sys

import pytest
from breadth import some_of
from fitting import Validated, make_loader
from lightning.pytorch.callbacks import RichProgressBar, TQDMProgressBar

from lightning_coreset import CoresetPruningCallback
from lightning_coreset.tables import text_table
from lightning_coreset.training.report import History, console, summary
from lightning_coreset.training.report.console import PlanningProgress, pretty_table

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


@pytest.mark.parametrize("rich", [True, False])
def test_numbers_are_aligned_and_names_fit_the_terminal(terminal, monkeypatch, rich):
    if rich:
        pytest.importorskip("rich")
    monkeypatch.setattr(console, "find_spec", lambda name: rich or None)
    monkeypatch.setenv("COLUMNS", "40")
    long = "net.encoder.layer.11.attention.self.query"
    table = pretty_table([("group", "channels", "params"), (long, "1,024 -> 8", "-1,234"), ("b", "64 -> 48", "-3")])

    lines = re.sub(r"\x1b\[[0-9;]*m", "", table).rstrip().splitlines()

    first, second = lines[-2:]
    assert max(map(len, lines)) <= 40
    assert first.startswith("net.en...")
    assert first.index("-1,234") + len("-1,234") == second.index("-3") + len("-3") == len(first)
    assert first.index("1,024 -> 8") + len("1,024 -> 8") == second.index("64 -> 48") + len("64 -> 48")


def test_no_escape_codes_where_no_terminal_is():
    assert "\x1b" not in pretty_table(ROWS)


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
        pruning = CoresetPruningCallback(schedule={1: 0.3, 2: 0.5}, verbose=verbose, self_check=False)
        trainer = make_trainer(pruning, *callbacks, max_epochs=3, **options)
        trainer.fit(Validated(), make_loader(8), make_loader(8))
        return pruning

    return run


def reports(text):
    return [line.partition(" at ")[2][:8] for line in text.splitlines() if "Pruned at" in line]


@pytest.mark.slow
def test_without_a_progress_bar_events_are_logged(fit, caplog):
    pruning = fit()

    assert reports(caplog.text) == ["epoch 1:", "epoch 2:"]
    assert f"{pruning.plans[1].reached:.2%} of the parameters are removed" in caplog.text


@pytest.mark.parametrize("bar", [TQDMProgressBar, RichProgressBar])
@pytest.mark.slow
def test_with_a_progress_bar_events_are_printed_above_it(fit, bar, caplog, capsys):
    if bar is RichProgressBar:
        pytest.importorskip("rich")

    fit(bar(), enable_progress_bar=True)

    out, _ = capsys.readouterr()
    assert reports(caplog.text) == []
    assert reports(out) == ["epoch 1:", "epoch 2:"]


@pytest.mark.parametrize("bar", some_of([False, True], False))
def test_not_verbose_says_nothing(fit, bar, caplog, capsys):
    fit(verbose=False, enable_progress_bar=bar)

    assert not re.search("prun", caplog.text + capsys.readouterr().out, re.I)


@pytest.mark.slow
def test_a_higher_level_of_lightnings_logger_hides_events(fit, capsys, monkeypatch):
    monkeypatch.setattr(logging.getLogger("lightning.pytorch"), "level", logging.WARNING)
    logging.getLogger("lightning.pytorch").manager._clear_cache()

    fit(TQDMProgressBar(), enable_progress_bar=True)
    logging.getLogger("lightning.pytorch").manager._clear_cache()

    assert "Pruned" not in capsys.readouterr().out


@pytest.mark.slow
def test_rich_is_no_dependency(fit, monkeypatch, caplog):
    real = builtins.__import__

    def no_rich(name, *arguments, **options):
        if name.partition(".")[0] == "rich":
            raise ImportError(name)
        return real(name, *arguments, **options)

    monkeypatch.setattr(builtins, "__import__", no_rich)

    fit()

    assert reports(caplog.text) == ["epoch 1:", "epoch 2:"]
