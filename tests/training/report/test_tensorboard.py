"""TensorBoard's pages, read back from event files by TensorBoard's own reader."""

import io
import re

import pytest
from fitting import MemoryLogger, Validated, make_loader
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.custom_scalar.layout_pb2 import Layout
from tensorboard.plugins.hparams import metadata
from torch.utils.tensorboard import SummaryWriter

from lightning_coreset import CoresetPruningCallback

SETTINGS = {"coreset/pruning_ratio", "coreset/method", "coreset/schedule"}
SCHEDULE = {1: 0.3, 3: 0.5}  # of four batches an epoch: events at steps 4 and 12, the end at 20


class ScalarsOnly(MemoryLogger):
    """A logger of another make: its experiment knows no pictures, tables and layouts."""

    @property
    def experiment(self):
        return object()


@pytest.fixture
def fit(make_trainer, tmp_path):
    """Train with events, and open what was written."""

    def run(module=None, callbacks=(), pruning=(), **logger):
        board = TensorBoardLogger(tmp_path, **logger)
        callback = CoresetPruningCallback(schedule=SCHEDULE, verbose=False, self_check=False, **dict(pruning))
        trainer = make_trainer(callback, *callbacks, max_epochs=5, logger=[board, CSVLogger(tmp_path), ScalarsOnly()])
        trainer.fit(module or Validated(), make_loader(8), make_loader(8))
        everything = {"images": 0, "tensors": 0, "scalars": 0}
        return callback, EventAccumulator(board.log_dir, size_guidance=everything).Reload()

    return run


class WithHyperparameters(Validated):
    def __init__(self, rate=0.25, sizes=(1, 2)):
        super().__init__()
        self.save_hyperparameters()


def texts(events, tag):
    return [(event.step, event.tensor_proto.string_val[0].decode()) for event in events.Tensors(f"{tag}/text_summary")]


def hyperparameters(events):
    """Names, values and metrics as TensorBoard's page of hyperparameters takes them."""
    start = events.SummaryMetadata(metadata.SESSION_START_INFO_TAG).plugin_data.content
    experiment = events.SummaryMetadata(metadata.EXPERIMENT_TAG).plugin_data.content
    values = metadata.parse_session_start_info_plugin_data(start).hparams
    found = {name: getattr(value, value.WhichOneof("kind")) for name, value in values.items()}
    return found, [info.name.tag for info in metadata.parse_experiment_plugin_data(experiment).metric_infos]


def layout(events):
    *_, last = events.Tensors("custom_scalars__config__")
    return Layout.FromString(last.tensor_proto.string_val[0])


@pytest.mark.slow
def test_pictures_of_every_event_and_of_the_end(fit):
    _, events = fit()

    widths, accuracy = events.Images("coreset/channels_left"), events.Images("coreset/accuracy_against_sparsity")

    assert [image.step for image in widths] == [4, 12]
    assert [image.step for image in accuracy] == [4, 12, 20]
    sizes = {Image.open(io.BytesIO(image.encoded_image_string)).size for image in (*widths, *accuracy)}
    assert len(sizes) == 2
    assert {width for width, _ in sizes} == {1000}
    assert widths[0].encoded_image_string != widths[1].encoded_image_string


@pytest.mark.slow
def test_the_plans_table_is_markdown(fit):
    callback, events = fit()

    found = texts(events, "coreset/plan")

    assert [step for step, _ in found] == [4, 12]
    for (_, text), plan in zip(found, callback.plans, strict=True):
        lines = text.splitlines()
        assert lines[0] == f"- {plan.totals()[0]}"
        table = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("|")]
        assert table[0] == list(plan.rows()[0])
        assert table[2:] == [[f"`{name}`", *cells] for name, *cells in plan.rows()[1:]]
    reason = callback.plans[0].skipped["net.4"]
    table = f"| layer | why its channels stay |\n| --- | --- |\n| `net.4` | {reason} |"
    assert texts(events, "coreset/not_pruned") == [(4, table)]


@pytest.mark.parametrize("certify", [False, True])
@pytest.mark.slow
def test_every_chart_of_the_layout_finds_its_curves(fit, certify):
    _, events = fit(pruning={"certify": certify}, prefix="mine")

    found, tags = layout(events), events.Tags()["scalars"]

    titles = [category.title for category in found.category]
    assert titles == ["Pruning", "Groups of channels", *["Certificates"] * certify]
    for category in found.category:
        for chart in category.chart:
            for pattern in chart.multiline.tag:
                assert any(re.match(pattern, tag) for tag in tags), pattern  # as TensorBoard matches
    assert found.category[0].chart[0].title == "accuracy"


def test_a_layout_of_the_users_own_counts(fit):
    class Own(Callback):
        def on_train_start(self, trainer, pl_module):
            trainer.loggers[0].experiment.add_custom_scalars({"mine": {"loss": ["Multiline", ["loss"]]}})

    _, events = fit(callbacks=[Own()])

    assert [category.title for category in layout(events).category] == ["mine"]


def test_settings_are_written_with_the_users_hyperparameters(fit, tmp_path):
    _, events = fit(WithHyperparameters(), pruning={"ignore": ["net.0"], "round_to": 2})

    values, metrics = hyperparameters(events)

    assert {name: value for name, value in values.items() if not name.startswith("coreset/")} == {
        "rate": 0.25,
        "sizes": "(1, 2)",
    }
    assert {name: value for name, value in values.items() if name.startswith("coreset/")} == {
        "coreset/pruning_ratio": 0.5,
        "coreset/method": "reconstruction",
        "coreset/schedule": "1: 0.3, 3: 0.5",
        "coreset/ignore": "net.0",
        "coreset/round_to": 2.0,
        "coreset/self_check": 0.0,
    }
    assert metrics == ["hp_metric", "coreset/accuracy", "coreset/sparsity", "coreset/params", "coreset/macs"]
    assert set(metrics) <= set(events.Tags()["scalars"])
    # A model can be made from this file.
    assert "coreset" not in next(tmp_path.glob("**/hparams.yaml")).read_text()


class WithoutArguments(Validated):
    def __init__(self):
        super().__init__()
        self.save_hyperparameters()


@pytest.mark.slow
def test_settings_are_written_where_the_trainer_writes_an_empty_set(fit):
    _, events = fit(WithoutArguments())

    values, metrics = hyperparameters(events)

    assert {name for name in values if name in SETTINGS} == SETTINGS
    assert metrics == ["hp_metric", "coreset/accuracy", "coreset/sparsity", "coreset/params", "coreset/macs"]


class Fails(Callback):
    def on_train_epoch_end(self, trainer, pl_module):
        if trainer.current_epoch == 2:
            raise RuntimeError("on purpose")


@pytest.mark.parametrize("module", [Validated, WithoutArguments, WithHyperparameters])
@pytest.mark.slow
def test_settings_of_a_run_that_an_exception_ended(tmp_path, make_trainer, module):
    board = TensorBoardLogger(tmp_path)
    callback = CoresetPruningCallback(schedule=SCHEDULE, verbose=False, self_check=False)

    with pytest.raises(RuntimeError, match="on purpose"):
        make_trainer(callback, Fails(), max_epochs=5, logger=board).fit(module(), make_loader(8), make_loader(8))

    values, _ = hyperparameters(EventAccumulator(board.log_dir).Reload())
    assert {name for name in values if name in SETTINGS} == SETTINGS


@pytest.mark.parametrize(
    ("module", "logger", "users"),
    [
        pytest.param(Validated, {}, {}, id="no hyperparameters"),
        pytest.param(WithoutArguments, {"default_hp_metric": False}, {}, id="none and unlogged"),
        pytest.param(
            WithHyperparameters, {"default_hp_metric": False}, {"rate": 0.25, "sizes": "(1, 2)"}, id="unlogged"
        ),
    ],
)
@pytest.mark.slow
def test_settings_are_written_where_the_trainer_writes_nothing(fit, module, logger, users):
    _, events = fit(module(), prefix="mine", **logger)

    values, metrics = hyperparameters(events)

    assert values["coreset/pruning_ratio"] == 0.5
    assert {name: value for name, value in values.items() if not name.startswith("coreset/")} == users
    assert metrics == ["mine-coreset/accuracy", "mine-coreset/sparsity", "mine-coreset/params", "mine-coreset/macs"]


def test_hyperparameters_that_the_user_writes_by_hand_come_first(fit):
    class Own(Callback):
        def on_train_end(self, trainer, pl_module):
            trainer.loggers[0].log_hyperparams({"rate": 0.5}, {"val_acc": 1.0})

    _, events = fit(callbacks=[Own()], default_hp_metric=False)

    assert hyperparameters(events) == ({"rate": 0.5}, ["val_acc"])


@pytest.mark.parametrize(
    ("broken", "kind"),
    [("add_image", "log pictures"), ("add_text", "log tables"), ("add_custom_scalars", "arrange charts")],
)
@pytest.mark.slow
def test_a_page_that_fails_warns_once_and_the_others_are_written(fit, monkeypatch, broken, kind):
    def fail(*arguments, **options):
        raise OSError("the disk is full")

    monkeypatch.setattr(SummaryWriter, broken, fail)

    with pytest.warns(UserWarning, match=f"Could not {kind} with TensorBoardLogger.*the disk is full") as warned:
        callback, events = fit()

    assert len([warning for warning in warned if "TensorBoard" in str(warning.message)]) == 1
    assert [event.step for event in events.Scalars("coreset/reached")] == [4, 12]
    assert len(callback.history) == 2
    tags = events.Tags()
    assert ("coreset/channels_left" in tags["images"]) == (broken != "add_image")
    assert ("coreset/plan/text_summary" in tags["tensors"]) == (broken != "add_text")
    assert hyperparameters(events)[0]["coreset/pruning_ratio"] == 0.5


def test_events_that_remove_nothing_show_nothing(fit, monkeypatch):
    monkeypatch.setitem(SCHEDULE, 4, 0.5001)  # less than a channel more
    callback, events = fit()

    assert [plan.channels_removed > 0 for plan in callback.plans] == [True, True, False]
    assert [step for step, _ in texts(events, "coreset/plan")] == [4, 12]
    assert [image.step for image in events.Images("coreset/channels_left")] == [4, 12]
