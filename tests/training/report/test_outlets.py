"""Loggers of all kinds beside TensorBoard's: what they are given, and that none of them can end training."""

from __future__ import annotations

import copy
import csv
import pickle
import re
import warnings
from pathlib import Path

import pytest
from fitting import MemoryLogger, Validated, make_loader, make_trainer
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from lightning.pytorch.loggers.logger import Logger
from PIL import Image
from torch import nn

from lightning_coreset import CoresetPruningCallback
from lightning_coreset.tables import text_table

SCHEDULE = {1: 0.3, 3: 0.5}  # of four batches an epoch: events at steps 4 and 12, the end at 20
SETTINGS = {"coreset/pruning_ratio": 0.5, "coreset/method": "reconstruction", "coreset/schedule": "1: 0.3, 3: 0.5"}


def fit(*loggers, module=None):
    """Train with two events; return the callback, and what was warned of that could not be done."""
    callback = CoresetPruningCallback(schedule=SCHEDULE, verbose=False)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trainer = make_trainer(callback, max_epochs=5, logger=list(loggers))
        trainer.fit(module or Validated(), make_loader(8), make_loader(8))
    assert len(callback.plans) == len(callback.history) == 2
    assert trainer.current_epoch == 5
    return callback, [str(each.message) for each in caught if str(each.message).startswith("Could not")]


class Plain(Logger):
    """A logger as users write them: what is abstract, and nothing else."""

    name = version = "mine"

    def __init__(self):
        self.calls = []

    def log_metrics(self, metrics, step=None):
        self.calls.append(("metrics", step, dict(metrics)))

    def log_hyperparams(self, params, *args, **kwargs):
        self.calls.append(("params", None, dict(params)))

    def of(self, kind):
        return [(step, what) for found, step, what in self.calls if found == kind]


class WithText(Plain):
    def log_text(self, key, text, step=None):
        self.calls.append((key, step, text))


class WithAll(WithText):
    def log_image(self, key, images, step=None):
        self.calls.append((key, step, images))

    def log_table(self, key, columns=None, data=None, step=None):
        self.calls.append((key, step, [columns, *data]))


def test_a_logger_of_the_users_own_gets_what_it_has_methods_for():
    plain, text, everything = Plain(), WithText(), WithAll()
    callback, told = fit(plain, text, everything)

    assert told == []
    for logger in (plain, text, everything):
        assert logger.of("params")[0] == (None, SETTINGS)
        sizes = [(step, row["coreset/sparsity"]) for step, row in logger.of("metrics") if "coreset/sparsity" in row]
        assert [step for step, _ in sizes] == [3, 4, 7, 11, 12, 15, 19]
        assert sizes[-1][1] == callback.history[-1].sparsity
    tables = [plan.rows() for plan in callback.plans]
    assert {kind for kind, _, _ in plain.calls} == {"metrics", "params"}
    assert [step for step, _ in text.of("coreset/plan")] == [4, 12]
    for (_, shown), table in zip(text.of("coreset/plan"), tables, strict=True):
        assert shown.endswith(text_table(table))
    assert everything.of("coreset/plan") == [
        (step, [list(row) for row in table]) for step, table in zip((4, 12), tables, strict=True)
    ]
    assert [step for step, _ in everything.of("coreset/not_pruned")] == [4]
    for tag, steps in {"coreset/channels_left": [4, 12], "coreset/accuracy_against_sparsity": [4, 12, 20]}.items():
        assert [step for step, _ in everything.of(tag)] == steps
        assert all(isinstance(image, Image.Image) for _, images in everything.of(tag) for image in images)
    assert text.of("coreset/channels_left") == []


class Fails(WithAll):
    def __init__(self, method):
        super().__init__()
        self.method = method

    def __getattribute__(self, name):
        if name == object.__getattribute__(self, "method"):

            def fails(*args, **kwargs):
                if any("coreset" in str(arg) for arg in args):
                    raise ConnectionError("no network")

            return fails
        return super().__getattribute__(name)


@pytest.mark.parametrize(
    ("method", "kind"),
    {
        "log_metrics": "log scalars",
        "log_hyperparams": "log settings",
        "log_image": "log pictures",
        "log_table": "log tables",
    }.items(),
)
def test_a_logger_that_fails_has_one_warning_and_the_others_get_all(method, kind):
    whole = WithAll()
    loggers = [Fails(method), Fails(method), whole, Fails("nothing")]

    _, told = fit(*loggers)

    expected = f"Could not {kind} with Fails: ConnectionError('no network')"
    assert [message.partition(". Training")[0] for message in told] == [expected] * 2  # one each
    assert sorted(kind for kind, _, _ in loggers[-1].calls) == sorted(kind for kind, _, _ in whole.calls)
    rest = {found for found, _, _ in loggers[0].calls}
    assert len(rest) == len({found for found, _, _ in whole.calls}) - {"log_image": 2, "log_table": 2}.get(method, 1)


def odd_names():
    """A network whose modules have names that many loggers forbid, alike once these characters are replaced."""
    net = nn.Sequential()
    for name, layer in {"3×3/a": nn.Linear(8, 32), "r": nn.ReLU(), "3:3 a": nn.Linear(32, 24), "s": nn.ReLU()}.items():
        net.add_module(name, layer)
    net.add_module("head", nn.Linear(24, 3))
    return Validated(net)


class Strict(Plain):
    tries = 0

    def log_metrics(self, metrics, step=None):
        self.tries += 1
        for name in metrics:
            if not re.fullmatch(r"[\w./-]+", name, re.ASCII) or name.count("/") > 1:
                raise ValueError(f"bad name {name}")
        super().log_metrics(metrics, step)


def test_names_that_a_logger_forbids_are_made_allowed():
    strict, free = Strict(), Plain()

    _, told = fit(strict, free, module=odd_names())

    assert told == []
    assert strict.tries == len(strict.of("metrics")) + 1  # the first failed; from then on it was known
    values = [[(step, list(row.values())) for step, row in logger.of("metrics")] for logger in (strict, free)]
    assert values[0] == values[1]
    rows = [set(row) for _, row in strict.of("metrics")]
    widths = {name for row in rows for name in row if name.startswith("coreset_channels/")}
    assert len(widths) == 2
    assert "coreset_channels/net.3_3_a" in widths


def test_a_logger_that_fails_for_another_reason_is_not_asked_twice():
    class Down(Plain):
        tries = 0

        def log_metrics(self, metrics, step=None):
            if any(name.startswith("coreset") for name in metrics):
                self.tries += 1
                raise ConnectionError("no network")

    down = Down()
    fit(down)
    assert down.tries == 12  # five validations, five ends of epochs, two events


def test_csv_read_back(tmp_path):
    logger = CSVLogger(tmp_path)
    callback, told = fit(logger, module=odd_names())

    assert told == []
    with (Path(logger.log_dir) / "metrics.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    # Columns that came late are in the header, and the rows before them are there as well.
    assert [int(row["step"]) for row in rows if row["loss"]] == list(range(20))
    assert [int(row["step"]) for row in rows if row["coreset/reached"]] == [4, 12]
    first, second = (record.groups[1].channels for record in callback.history)
    widths = [(int(row["step"]), float(row["coreset_channels/net.3:3 a"])) for row in rows if row["coreset/macs"]]
    assert widths == [(3, 24), (4, first), (7, first), (11, first), (12, second), (15, second), (19, second)]
    written = list(
        Path(logger.log_dir).glob("hparams.yaml")
    )  # modules are built from it; Lightning 2.5 makes it anyway
    assert not any("coreset" in path.read_text("utf-8") for path in written)


def test_the_callback_forgets_its_loggers(tmp_path):
    class Unpicklable(Plain):
        def __reduce__(self):
            raise TypeError("cannot be pickled")

    callback, _ = fit(Unpicklable(), TensorBoardLogger(tmp_path))
    assert len(copy.deepcopy(callback).history) == len(pickle.loads(pickle.dumps(callback)).history) == 2


def test_loggers_that_are_equal_are_two():
    class Alike(MemoryLogger):
        __hash__ = None

        def __eq__(self, other):
            return True

    one, two = Alike(), Alike()
    fit(one, two)
    assert len(one.rows) == len(two.rows) > 0
