"""What loggers of other packages are given, read back from what they wrote, without any server.

Run by ``pytest -m clients tests/clients/test_loggers.py`` with the extra ``clients``; a logger whose package is missing
is skipped.
"""

from __future__ import annotations

import csv
import io
import json
import struct
import time
import warnings
import zipfile
from collections.abc import Iterator
from typing import Any

import pytest
from fitting import Validated, make_loader, make_trainer
from lightning.pytorch.loggers import CometLogger, MLFlowLogger, WandbLogger
from PIL import Image
from torch import nn

from lightning_coreset import CoresetPruningCallback

pytestmark = [pytest.mark.clients, pytest.mark.filterwarnings("default")]  # warnings of other packages are theirs

ONE, OTHER = "conv 3×3/left|a", "conv:3:3:left%a"  # alike once all but letters and digits are underscores
EVENTS = {1: 0.3, 3: 0.5}  # of four batches an epoch: at steps 4 and 12, the end at 20
SETTINGS = {"coreset/pruning_ratio": 0.5, "coreset/method": "reconstruction", "coreset/schedule": "1: 0.3, 3: 0.5"}
COLUMNS = ["group", "channels", "kept", "params", "MACs", "error", "method"]


class Named(Validated):
    """A network whose modules have names that some loggers forbid."""

    def __init__(self, rate: float = 0.25) -> None:
        net = nn.Sequential()
        for name, layer in {ONE: nn.Linear(8, 32), "a": nn.ReLU(), OTHER: nn.Linear(32, 24), "b": nn.ReLU()}.items():
            net.add_module(name, layer)
        net.add_module("head", nn.Linear(24, 3))
        super().__init__(net)
        self.save_hyperparameters()


@pytest.fixture
def fit(monkeypatch, tmp_path):
    """Train with two events, and see that our part warns of nothing."""
    monkeypatch.chdir(tmp_path)

    def run(logger: Any, **options: Any) -> CoresetPruningCallback:
        callback = CoresetPruningCallback(schedule=EVENTS, verbose=False, **options)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            make_trainer(callback, max_epochs=5, logger=logger).fit(Named(), make_loader(8), make_loader(8))
        ours = [str(each.message) for each in caught if str(each.message).startswith(("Could not", "MLF"))]
        assert ours == []
        return callback

    return run


def expected_scalars(callback: CoresetPruningCallback, one: str = ONE, other: str = OTHER) -> dict[str, Any]:
    """Steps and values by tag: the model's size also at the end of every epoch."""
    first, second = callback.history
    size = [(3, 0.0), *((step, first.sparsity) for step in (4, 7, 11)), *((s, second.sparsity) for s in (12, 15, 19))]
    expected: dict[str, Any] = {
        "coreset/sparsity": size,
        "coreset/reached": [(4, first.reached), (12, second.reached)],
        "coreset/accuracy_after": [(4, first.accuracy_after), (12, second.accuracy_after)],
    }
    for index, name in enumerate((one, other)):
        before, then = (32, 24)[index], [record.groups[index].channels for record in (first, second)]
        expected[f"coreset_channels/net.{name}"] = [
            (3, before),
            *((step, then[0]) for step in (4, 7, 11)),
            *((step, then[1]) for step in (12, 15, 19)),
        ]
    return expected


def assert_scalars(found: dict[str, list[tuple[int, float]]], expected: dict[str, Any]) -> None:
    for tag, points in expected.items():
        assert found[tag] == points, tag
    assert [step for step, _ in found["coreset/accuracy"]] == [3, 7, 11, 15, 19]


def rows_of(callback: CoresetPruningCallback) -> list[list[list[str]]]:
    return [[list(row) for row in plan.rows()[1:]] for plan in callback.plans]


# ---- Weights & Biases


def wandb_records(path: Any) -> Iterator[Any]:
    """The records of a run's file: the log format of LevelDB, with messages of wandb's own protocol."""
    from wandb.proto.wandb_internal_pb2 import Record

    data, position, message = path.read_bytes(), 7, b""
    assert data[:4] == b":W&B"
    while position + 7 <= len(data):
        left = 32768 - position % 32768
        if left < 7:
            position += left
            continue
        _, length, kind = struct.unpack("<IHB", data[position : position + 7])
        if position + 7 + length > len(data):
            return  # being written
        message += data[position + 7 : position + 7 + length]
        position += 7 + length
        if kind in (1, 4):  # whole, or its last part
            yield Record.FromString(message)
            message = b""


def finished_records(path: Any) -> list[Any]:
    """The records once the last one is there: ``wandb.finish`` does not wait for its service to write the file."""
    for _ in range(600):
        records = list(wandb_records(path))
        if records and records[-1].WhichOneof("record_type") == "exit":
            return records
        time.sleep(0.1)
    raise AssertionError(f"{path} is not finished")


def test_wandb_offline(fit, monkeypatch, tmp_path):
    wandb = pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.setenv("WANDB_MODE", "offline")
    logger = WandbLogger(save_dir=str(tmp_path), offline=True, anonymous=None)

    callback = fit(logger)
    wandb.finish()

    (file,) = tmp_path.glob("wandb/offline-run-*/*.wandb")
    scalars: dict[str, list[tuple[int, float]]] = {}
    media: dict[str, list[int]] = {}
    config: dict[str, Any] = {}
    for record in finished_records(file):
        for item in record.run.config.update if record.WhichOneof("record_type") == "run" else record.config.update:
            config[item.key or "/".join(item.nested_key)] = json.loads(item.value_json)
        row = {tuple(item.nested_key) or (item.key,): json.loads(item.value_json) for item in record.history.item}
        for (tag, *rest), value in row.items():
            if not rest:
                scalars.setdefault(tag, []).append((row.get(("trainer/global_step",)), value))
            elif rest == ["_type"]:
                media.setdefault(tag, []).append(row["trainer/global_step",])
    assert_scalars(scalars, expected_scalars(callback))
    assert media == {
        "coreset/plan": [4, 12],
        "coreset/not_pruned": [4],
        "coreset/channels_left": [4, 12],
        "coreset/accuracy_against_sparsity": [4, 12, 20],
    }
    assert SETTINGS.items() <= config.items()
    assert config["rate"] == 0.25
    files = file.parent / "files" / "media"
    tables = sorted(files.glob("table/coreset/plan_*"), key=lambda path: int(path.name.split("_")[1]))
    assert [json.loads(path.read_text("utf-8")) for path in tables] == [
        {"columns": COLUMNS, "data": rows} for rows in rows_of(callback)
    ]
    assert {Image.open(path).width for path in files.glob("images/coreset/*.png")} == {1000}
    assert len(list(files.glob("images/coreset/*.png"))) == 5


# ---- MLflow


@pytest.fixture(params=["files", "sqlite"])
def mlflow_logger(request, monkeypatch, tmp_path):
    """A logger, of MLflow's folder of files, which it takes only if allowed, and of its database."""
    pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    if request.param == "files":
        return lambda **options: MLFlowLogger(save_dir=str(tmp_path / "mlruns"), **options)
    pytest.importorskip("sqlalchemy")
    uri, artifacts = f"sqlite:///{tmp_path}/mlflow.db", str(tmp_path / "artifacts")
    return lambda **options: MLFlowLogger(tracking_uri=uri, artifact_location=artifacts, **options)


def test_mlflow(fit, mlflow_logger, tmp_path):
    logger = mlflow_logger()

    callback = fit(logger)

    client, run = logger.experiment, logger.run_id
    data = client.get_run(run).data
    (second,) = (
        tag.removeprefix("coreset_channels/net.")
        for tag in data.metrics
        if tag.startswith("coreset_channels/net.conv_3_3_left_a_")
    )
    found = {
        tag: [(metric.step, metric.value) for metric in client.get_metric_history(run, tag)] for tag in data.metrics
    }
    assert_scalars(found, expected_scalars(callback, "conv_3_3_left_a", second))
    assert f"coreset_keep_ratio/net.{second}" in found  # the same name everywhere
    assert data.params == {"rate": "0.25", **{name: str(value) for name, value in SETTINGS.items()}}

    def read(path: str) -> str:
        return open(client.download_artifacts(run, path, str(tmp_path)), encoding="utf-8", newline="").read()

    for step, rows in zip((4, 12), rows_of(callback), strict=True):
        assert list(csv.reader(io.StringIO(read(f"coreset/plan/step_{step:08d}.csv")))) == [COLUMNS, *rows]
    assert [file.path for file in client.list_artifacts(run, "coreset/not_pruned")] == [
        "coreset/not_pruned/step_00000004.csv"
    ]
    pictures = [file.path for file in client.list_artifacts(run, "images") if file.path.endswith(".png")]
    assert sorted(tuple(path.split("+")[:3]) for path in pictures) == [
        ("images/coreset~accuracy_against_sparsity", "step", step) for step in ("12", "20", "4")
    ] + [("images/coreset~channels_left", "step", step) for step in ("12", "4")]
    assert Image.open(client.download_artifacts(run, pictures[0], str(tmp_path))).width == 1000


def test_parameters_that_an_mlflow_run_has_already(mlflow_logger):
    logger = mlflow_logger()

    def fit(ratio: float) -> None:
        callback = CoresetPruningCallback(ratio, schedule="one_shot", start=0, verbose=False)
        trainer = make_trainer(callback, max_epochs=1, logger=logger)
        trainer.fit(Named(), make_loader(8))

    fit(0.5)
    with pytest.warns(UserWarning, match=r"MLflow does not change a parameter of a run, so that coreset/pruning_ratio"):
        fit(0.3)

    params = logger.experiment.get_run(logger.run_id).data.params
    assert params["coreset/pruning_ratio"] == "0.5"
    assert params["coreset/schedule"] == "one_shot"


def test_more_scalars_than_mlflow_takes_at_once(mlflow_logger):
    from lightning_coreset.training.report.sinks import sink_of

    logger = mlflow_logger(prefix="run")
    sink_of(logger).scalars({f"coreset_channels/{'deep.' * 60}{index}": float(index) for index in range(1200)}, step=2)

    metrics = logger.experiment.get_run(logger.run_id).data.metrics
    assert len(metrics) == 1200
    assert sorted(metrics.values()) == list(range(1200))


# ---- Comet


def test_comet_offline(fit, monkeypatch, tmp_path):
    pytest.importorskip("comet_ml")
    monkeypatch.setenv("COMET_START_ONLINE", "false")  # CometLogger(online=False) writes nothing at all
    logger = CometLogger(api_key="none", project="none", offline_directory=str(tmp_path))

    callback = fit(logger)
    logger.experiment.end()

    (path,) = tmp_path.glob("*.zip")
    archive = zipfile.ZipFile(path)
    messages = [json.loads(line) for line in archive.read("messages.json").decode("utf-8").splitlines()]
    scalars: dict[str, list[tuple[int, float]]] = {}
    params: dict[str, Any] = {}
    assets: dict[str, list[Any]] = {}
    for kind, payload in ((message["type"], message["payload"]) for message in messages):
        if kind == "metric_msg":
            metric = payload["metric"]
            scalars.setdefault(metric["metricName"], []).append((metric["step"], metric["metricValue"]))
        elif kind == "parameter_msg":
            params[payload["param"]["paramName"]] = payload["param"]["paramValue"]
        elif "additional_params" in payload:
            details = payload["additional_params"]
            name = details.get("fileName") or details.get("figName")
            assets.setdefault(str(name), []).append((details.get("step"), payload.get("file_path")))
    assert_scalars(scalars, expected_scalars(callback))
    assert SETTINGS.items() <= params.items()
    for step, rows in zip((4, 12), rows_of(callback), strict=True):
        ((_, file),) = assets[f"coreset_plan_step_{step:08d}.csv"]
        assert list(csv.reader(io.StringIO(archive.read(file).decode("utf-8")))) == [COLUMNS, *rows]
    assert "coreset_not_pruned_step_00000004.csv" in assets
    pictures = {name: found for name, found in assets.items() if name.startswith("coreset/")}
    assert {name: [step for step, _ in found] for name, found in pictures.items()} == {
        "coreset/channels_left": [4, 12],
        "coreset/accuracy_against_sparsity": [4, 12, 20],
    }
    assert Image.open(io.BytesIO(archive.read(pictures["coreset/channels_left"][0][1]))).width == 1000


# ---- Aim


def test_aim(fit, tmp_path):
    AimLogger = pytest.importorskip("aim.pytorch_lightning").AimLogger  # noqa: N806
    from aim.sdk.sequences.sequence_type_map import SEQUENCE_TYPE_MAP  # noqa: F401 - has types registered
    from aim.storage.context import Context

    logger = AimLogger(
        repo=str(tmp_path), system_tracking_interval=None, log_system_params=False, capture_terminal_logs=False
    )

    callback = fit(logger)

    run, nowhere = logger.experiment, Context({})  # opened anew: it was closed after the fit

    def points(sequence: Any) -> list[tuple[int, Any]]:
        steps, values = sequence.data.items_list()
        return list(zip(steps, values[0], strict=True))

    found = {sequence.name: points(sequence) for sequence in run.metrics()}
    assert_scalars(found, expected_scalars(callback))
    assert SETTINGS.items() <= run["hparams"].items()
    for tag, steps in {"coreset/channels_left": [4, 12], "coreset/accuracy_against_sparsity": [4, 12, 20]}.items():
        pictures = points(run.get_image_sequence(tag, nowhere))
        assert [step for step, _ in pictures] == steps
        assert {picture.to_pil_image().width for _, picture in pictures} == {1000}
    texts = points(run.get_text_sequence("coreset/plan", nowhere))
    assert [step for step, _ in texts] == [4, 12]
    for (_, text), plan in zip(texts, callback.plans, strict=True):
        assert text.data.splitlines()[: len(plan.totals())] == plan.totals()
        assert all(f"net.{name}" in text.data for name in (ONE, OTHER))
