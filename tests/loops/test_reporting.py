"""Nothing that is printed, drawn or logged ends training."""

import io
import signal
import sys
import warnings

import pytest
from breadth import thinned
from fitting import Classifier, MemoryLogger, Validated, count_params, make_loader, make_trainer
from lightning.pytorch.callbacks import ProgressBar, TQDMProgressBar
from lightning.pytorch.loggers import TensorBoardLogger

from lightning_coreset import CoresetPruningCallback
from lightning_coreset.training.report import Guarded, console, pages, reporter, summary
from lightning_coreset.training.report.console import pretty_table, printable

LOADER = make_loader(8, samples=16, batch_size=8)


class Bar(ProgressBar):
    """A bar that prints as Lightning's rich one does."""

    def disable(self):
        pass

    def enable(self):
        pass


def fit(*callbacks, module=None, epochs=3, **options):
    """Train with two events; return the callback, and what was warned of that was not done."""
    module = module or Classifier()
    pruning = CoresetPruningCallback(schedule={1: 0.2, 2: 0.5})
    trainer = make_trainer(pruning, *callbacks, max_epochs=epochs, **options)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trainer.fit(module, LOADER, LOADER if isinstance(module, Validated) else None)
    assert len(pruning.plans) == len(pruning.history) == 2
    assert count_params(module) == pruning.plans[-1].params_after
    assert trainer.current_epoch == epochs
    return pruning, [str(each.message) for each in caught if str(each.message).startswith("Could not")]


class Failing(io.TextIOBase):
    """A stream that raises an error where something is written to it."""

    encoding = "utf-8"

    def __init__(self, error):
        self.error = error

    def write(self, text):
        raise self.error


@pytest.mark.parametrize(
    "error",
    thinned(
        [
            BrokenPipeError(32, "Broken pipe"),
            OSError(28, "No space left on device"),
            ValueError("I/O operation on closed file."),
            RecursionError("maximum recursion depth exceeded"),
            UnicodeEncodeError("charmap", "\u2500", 0, 1, "character maps to <undefined>"),
        ],
        4,
    ),
    ids=lambda error: type(error).__name__,
)
def test_a_console_that_fails(monkeypatch, error):
    monkeypatch.setattr(sys, "stdout", Failing(error))
    _, told = fit(Bar(), enable_progress_bar=True)
    assert len(told) == 1
    assert told[0].startswith(f"Could not print what was pruned: {error!r}")


class OneLine(io.StringIO):
    """Output in a notebook under rich: several lines in one write end in a RecursionError."""

    def write(self, text):
        if "\n" in text.rstrip("\n"):
            raise RecursionError("maximum recursion depth exceeded")
        return super().write(text)


@pytest.mark.parametrize("bar", [Bar, TQDMProgressBar])
@pytest.mark.slow
def test_lines_go_one_by_one(monkeypatch, bar):
    stream = OneLine()
    monkeypatch.setattr(sys, "stdout", stream)
    _, told = fit(bar(), enable_progress_bar=True)
    assert told == []
    assert "Pruned at epoch 1:" in stream.getvalue()
    assert "net.0" in stream.getvalue()
    assert "Pruning is over" in stream.getvalue()


@pytest.mark.parametrize("encoding", ["ascii", "cp1252", "utf-8"])
def test_consoles_without_some_characters(monkeypatch, encoding):
    stream = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    stream.isatty = lambda: True
    monkeypatch.setattr(sys, "stdout", stream)
    table = pretty_table([("\u043d\u0430\u0437\u0432\u0430\u043d\u0438\u0435", "n"), ("a", "1")])
    print(printable(table), file=stream)
    stream.flush()
    assert ("\u2500" in stream.buffer.getvalue().decode(encoding)) == (encoding == "utf-8")


@pytest.mark.parametrize("stream", [None, Failing(OSError())], ids=["none", "no encoding"])
def test_there_may_be_no_console(monkeypatch, stream):
    monkeypatch.setattr(sys, "stdout", stream)
    assert pretty_table([("a",), ("1",)]) == "a\n-\n1"
    closed = io.StringIO()
    closed.close()
    monkeypatch.setattr(sys, "stdout", closed)
    assert pretty_table([("a",), ("1",)]) == "a\n-\n1"


class FailingLogger(MemoryLogger):
    def log_metrics(self, metrics, step=None):
        if any(tag.startswith("coreset") for tag in metrics):
            raise ConnectionError("no network")
        super().log_metrics(metrics, step)


def test_a_logger_that_fails_does_not_keep_others_from_logging():
    other = MemoryLogger()
    _, told = fit(module=Validated(), logger=[FailingLogger(), other])
    assert len(told) == 1
    assert told[0].startswith("Could not log scalars with FailingLogger: ConnectionError('no network')")
    assert len(other.of("coreset/reached")) == 2


class NoExperiment(TensorBoardLogger):
    @property
    def experiment(self):
        raise AttributeError("no experiment")  # Lightning itself does without

    def log_metrics(self, metrics, step=None):
        pass

    def log_hyperparams(self, *args, **kwargs):
        pass

    def finalize(self, status):
        pass

    def log_graph(self, model, input_array=None):
        pass

    def save(self):
        pass


def test_tensorboard_that_cannot_write(tmp_path):
    fit(logger=NoExperiment(tmp_path))  # has a warning of its own


@pytest.mark.parametrize(
    ("where", "name"),
    thinned(
        {
            "report": (reporter, "event_report"),
            "scalars": (reporter, "event_scalars"),
            "table": (console, "text_table"),
            "hyperparameters": (pages, "trainers_hyperparameters"),
            "step": (pages, "logged_step"),
        },
        4,
    ),
)
def test_whatever_raises(monkeypatch, tmp_path, where, name):
    def fails(*args, **kwargs):
        raise RuntimeError("on purpose")

    monkeypatch.setattr(where, name, fails)
    _, told = fit(Bar(), enable_progress_bar=True, logger=TensorBoardLogger(tmp_path))
    assert len(told) == 1
    assert "on purpose" in told[0]


def test_ctrl_c_is_not_swallowed(monkeypatch):
    class Interrupts(MemoryLogger):
        def log_metrics(self, metrics, step=None):
            if "coreset/reached" in metrics:
                raise KeyboardInterrupt

    monkeypatch.setattr(signal, "signal", lambda *_: None)
    pruning = CoresetPruningCallback(schedule={1: 0.5}, verbose=False)
    trainer = make_trainer(pruning, max_epochs=3, logger=Interrupts())
    with pytest.raises(SystemExit):
        trainer.fit(Classifier(), LOADER)
    assert len(pruning.history) == 1


def test_one_warning_for_each_kind_and_fit():
    guarded = Guarded()

    def fails(*kinds):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            for kind in kinds:
                with guarded(kind):
                    raise ValueError
        return len(caught)

    assert fails("a", "b", "a") == 2
    assert fails("a") == 0
    guarded.reset()
    assert fails("a") == 1


def test_a_warning_that_cannot_be_written(monkeypatch):
    closed = io.StringIO()
    closed.close()
    monkeypatch.setattr(sys, "stderr", closed)
    monkeypatch.setattr(sys, "stdout", Failing(OSError()))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.filterwarnings("always", "Could not")
        pruning = CoresetPruningCallback(schedule={1: 0.5})
        make_trainer(pruning, Bar(), enable_progress_bar=True, max_epochs=2).fit(Classifier(), LOADER)
    assert len(pruning.history) == 1
    assert "epoch" in summary(pruning.history)
