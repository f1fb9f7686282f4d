"""Adapters: which one a logger gets, and what it asks of packages that need not be installed."""

from __future__ import annotations

import importlib.util
import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from lightning_coreset.training.packages import kinds
from lightning_coreset.training.report.sinks import Sink, Table, sink_of
from lightning_coreset.training.report.sinks.aim_sink import AimSink
from lightning_coreset.training.report.sinks.allowed_names import AllowedNames
from lightning_coreset.training.report.sinks.comet_sink import CometSink
from lightning_coreset.training.report.sinks.csv_sink import CSVSink
from lightning_coreset.training.report.sinks.mlflow_sink import MLFlowSink
from lightning_coreset.training.report.sinks.tensorboard_sink import TensorBoardSink

TABLE = Table(("group", "kept"), [("fc1", "50%"), ('a,"b', "25%")], notes=["params 8 -> 4"])
PICTURE = Image.new("RGB", (4, 4))
EXPECTED = {
    "TensorBoardLogger": TensorBoardSink,
    "CSVLogger": CSVSink,
    "MLFlowLogger": MLFlowSink,
    "CometLogger": CometSink,
    "WandbLogger": Sink,
}


@pytest.mark.parametrize(("name", "expected"), EXPECTED.items())
def test_the_adapter_of_a_class_of_both_packages_and_of_one_derived_from_it(name, expected):
    found = kinds(f"loggers.{name}")
    assert len(found) == 1 + bool(importlib.util.find_spec("pytorch_lightning"))
    for kind in found:
        derived = type("Derived", (kind,), {"__del__": lambda self: None})
        for one in (kind, derived):
            assert type(sink_of(object.__new__(one))) is expected


class Recorder:
    """Keeps how it was called."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, tuple[Any, ...], dict[str, Any]]] = []

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return lambda *args, **options: self.calls.append((name, args, options))


def test_aims_logger_is_known_by_its_name(monkeypatch):
    fake: Any = ModuleType("aim")
    fake.Image, fake.Text = (lambda image: ("image", image)), (lambda text: ("text", text))
    monkeypatch.setitem(sys.modules, "aim", fake)
    logger_class = type("AimLogger", (), {"__module__": "aim.sdk.adapters.pytorch_lightning"})
    logger: Any = type("Mine", (logger_class,), {})()
    logger.experiment = Recorder()

    sink = sink_of(logger)
    sink.picture("p", lambda: PICTURE, 3)
    sink.picture("p", lambda: None, 4)
    sink.table("t", TABLE, 5)

    assert type(sink) is AimSink
    assert logger.experiment.calls == [
        ("track", (("image", PICTURE),), {"name": "p", "step": 3}),
        ("track", (("text", TABLE.as_text()),), {"name": "t", "step": 5}),
    ]
    assert type(sink_of(type("AimLogger", (), {})())) is Sink  # of another package


def test_comet():
    logger = SimpleNamespace(experiment=Recorder())
    sink = CometSink(logger)

    sink.picture("coreset/p", lambda: PICTURE, 3)
    sink.picture("coreset/p", lambda: None, 4)
    sink.table("coreset/t", TABLE, 5)

    data = {"tabular_data": [["fc1", "50%"], ['a,"b', "25%"]], "headers": ["group", "kept"]}
    assert logger.experiment.calls == [
        ("log_image", (PICTURE,), {"name": "coreset/p", "step": 3}),
        ("log_table", ("coreset_t_step_00000005.csv",), data),
    ]


LONG = ", ".join(f"layer{number}" for number in range(100))  # cut off by Lightning


class Client(Recorder):
    def log_image(self, run_id, image, artifact_file=None, *, key=None, step=None):
        self.calls.append(("log_image", (run_id, image), {"key": key, "step": step}))

    def get_run(self, run_id):
        return SimpleNamespace(
            data=SimpleNamespace(
                params={"coreset/ignore": LONG[:250], "coreset/schedule": "cubic", "coreset/method": "coreset"}
            )
        )


class OldClient(Recorder):
    def log_image(self, run_id, image, artifact_file):
        self.calls.append(("log_image", (run_id, image), {"artifact_file": artifact_file}))


class MLflow(Recorder):
    run_id = "run"

    def __init__(self, client: Any) -> None:
        super().__init__()
        self.experiment = client


def test_mlflow_of_any_age():
    new, old = MLflow(Client()), MLflow(OldClient())
    for logger in (new, old):
        sink = MLFlowSink(logger)
        sink.picture("coreset/p", lambda: PICTURE, 3)
        sink.picture("coreset/p", lambda: None, 4)
        sink.table("coreset/t", TABLE, 5)

    text = 'group,kept\r\nfc1,50%\r\n"a,""b",25%\r\n'
    for logger, where in (
        (new, {"key": "coreset/p", "step": 3}),
        (old, {"artifact_file": "coreset/p/step_00000003.png"}),
    ):
        assert logger.experiment.calls == [
            ("log_image", ("run", PICTURE), where),
            ("log_text", ("run", text, "coreset/t/step_00000005.csv"), {}),
        ]


def test_mlflow_keeps_its_parameters_and_gets_scalars_in_parts():
    logger = MLflow(Client())
    sink = MLFlowSink(logger)
    ours = {"coreset/ignore": LONG, "coreset/schedule": "cubic in steps", "coreset/method": "coreset", "coreset/new": 1}

    with pytest.warns(UserWarning, match="so that coreset/schedule keep what was logged first"):
        sink.settings(ours, None, over=False)
    sink.settings(ours, None, over=True)
    sink.scalars({f"coreset_channels/é{number}": float(number) for number in range(1001)}, 7)

    assert logger.calls[0] == ("log_hyperparams", ({"coreset/new": 1},), {})
    parts = [(args[0], options) for name, args, options in logger.calls if name == "log_metrics"]
    assert [len(values) for values, _ in parts] == [500, 500, 1]
    assert all(options == {"step": 7} for _, options in parts)
    assert {name: value for values, _ in parts for name, value in values.items()} == {
        f"coreset_channels/_{number}": number for number in range(1001)
    }


NAMES = st.text(st.characters(exclude_categories=()), max_size=300)


@given(st.lists(NAMES, unique=True))
def test_allowed_names(modules):
    names = AllowedNames()
    given = [names(f"coreset_channels/{module}") for module in modules]

    assert len(set(given)) == len(given)
    assert all(set(name) <= set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-./") for name in given)
    assert all(len(name) <= 210 and name.count("/") == 1 for name in given)
    assert given == [names(f"coreset_channels/{module}") for module in modules]
    for module, name in zip(modules, given, strict=True):
        if module.isascii() and module.replace("_", "").isalnum() and len(module) < 100:
            assert name.startswith(f"coreset_channels/{module}")
