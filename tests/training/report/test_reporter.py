"""The reporter in real training: records, the progress bar, and what survives a restart."""

import lightning.pytorch as pl
import pytest
import torch
from fitting import MemoryLogger, Validated, count_params, make_loader
from lightning.pytorch.callbacks import Callback, ModelCheckpoint, RichProgressBar, TQDMProgressBar
from lightning.pytorch.loggers import TensorBoardLogger

from lightning_coreset import CoresetPruningCallback
from lightning_coreset.training import report

SCHEDULE = {1: 0.3, 3: 0.5}


@pytest.fixture
def fit(make_trainer):
    def run(pruning, *callbacks, module=None, ckpt_path=None, **options):
        module = Validated() if module is None else module
        trainer = make_trainer(pruning, *callbacks, **({"max_epochs": 5} | options))
        trainer.fit(module, make_loader(8), make_loader(8), ckpt_path=ckpt_path)
        return trainer

    return run


def pruning(**options):
    return CoresetPruningCallback(**({"schedule": SCHEDULE, "verbose": False, "self_check": False} | options))


def test_history_has_a_record_of_every_event(fit):
    module, callback, logger = Validated(), pruning(), MemoryLogger()
    original = count_params(module)

    fit(callback, module=module, logger=logger)

    assert [(record.epoch, record.step) for record in callback.history] == [(1, 4), (3, 12)]
    assert [record.requested for record in callback.history] == [0.3, 0.5]
    for record, plan in zip(callback.history, callback.plans, strict=True):
        assert (record.params, record.macs, record.params_original) == (plan.params_after, plan.macs_after, original)
        assert [group.channels for group in record.groups] == [group.channels_after for group in plan.groups]
        assert [group.channels_original for group in record.groups] == [32, 24]
        assert [group.expected_error for group in record.groups] == [group.expected_error for group in plan.groups]
    for name in ("accuracy_before", "accuracy_after"):
        assert [value for _, value in logger.of(f"coreset/{name}")] == [getattr(r, name) for r in callback.history]
    validations = dict(logger.of("coreset/accuracy"))
    assert [record.accuracy_recovered for record in callback.history] == [validations[11], validations[19]]
    assert callback.history[-1].params == count_params(module)


def test_history_survives_a_restart(fit, tmp_path):
    class Save(Callback):
        def on_train_epoch_end(self, trainer, pl_module):
            trainer.save_checkpoint(tmp_path / f"{trainer.current_epoch}.ckpt")

    first, again = pruning(), pruning()
    fit(first, Save())

    fit(again, ckpt_path=tmp_path / "2.ckpt")

    assert [record.epoch for record in again.history] == [1, 3]
    assert again.history[0] == first.history[0]
    assert again.history[1].groups[0].channels == first.history[1].groups[0].channels


def test_summary_prints_and_to_csv_writes(fit, tmp_path, capsys):
    callback = pruning()
    fit(callback)
    capsys.readouterr()

    assert callback.summary() is None

    assert capsys.readouterr().out.rstrip() == str(callback.history)
    callback.to_csv(tmp_path / "events.csv")
    assert len((tmp_path / "events.csv").read_text().splitlines()) == 3


@pytest.mark.parametrize("bar", [TQDMProgressBar, RichProgressBar, None])
@pytest.mark.slow
def test_sparsity_is_in_the_progress_bar_from_the_first_batch_on(fit, bar):
    if bar is RichProgressBar:
        pytest.importorskip("rich")

    class Look(Callback):
        def on_train_batch_end(self, trainer, *_):
            shown.append(trainer.progress_bar_metrics["sparsity"])
            assert not any("sparsity" in logged for logged in trainer._results)  # it costs something at every step

    shown, callback, bars = [], pruning(), [] if bar is None else [bar()]
    trainer = fit(callback, Look(), *bars, enable_progress_bar=bar is not None)

    one, two = (record.sparsity for record in callback.history)
    assert shown == pytest.approx([0.0] * 4 + [one] * 8 + [two] * 8)
    assert trainer.callback_metrics["sparsity"] == pytest.approx(two)
    assert "sparsity" not in trainer.logged_metrics


def test_sparsity_is_in_the_progress_bar_of_every_fit(fit):
    class Look(Callback):
        def on_train_batch_end(self, trainer, *_):
            shown.append(trainer.progress_bar_metrics["sparsity"])

    shown, callback = [], pruning(schedule={1: 0.3})
    for _ in range(2):
        fit(callback, Look(), max_epochs=2, limit_train_batches=1)

    assert shown == [0.0, callback.history[-1].sparsity] * 2


def test_sparsity_can_name_checkpoints(fit, tmp_path):
    save, callback = ModelCheckpoint(tmp_path, filename="{epoch}-{sparsity:.2f}", save_top_k=-1), pruning()

    fit(callback, save, enable_checkpointing=True)

    last = f"epoch=4-sparsity={callback.history[-1].sparsity:.2f}"
    assert {path.stem for path in tmp_path.glob("*.ckpt")} >= {"epoch=0-sparsity=0.00", last}


@pytest.mark.parametrize("options", [{"fast_dev_run": True}, {"logger": False}])
def test_trainers_that_log_nothing(fit, options):
    callback = pruning(schedule="one_shot", start=0)

    fit(callback, max_epochs=1, **options)

    assert [record.epoch for record in callback.history] == [0]


def test_a_barebones_trainer_gets_no_metrics():
    """``log`` would warn at every call."""
    module, callback, logged = Validated(), pruning(schedule="one_shot", start=0), []
    module.log = lambda name, *values, **options: logged.append(name)
    trainer = pl.Trainer(barebones=True, max_epochs=1, accelerator="cpu", callbacks=[callback])

    trainer.fit(module, make_loader(8), make_loader(8))

    assert set(logged) == {"loss", "val_acc"}
    assert len(callback.history) == 1


def test_on_prune_sees_the_pruned_model_at_every_event(fit):
    class Sees(CoresetPruningCallback):
        def on_prune(self, plan, trainer, pl_module):
            seen.append((plan, trainer.current_epoch, count_params(pl_module)))

    seen = []
    callback = Sees(schedule=SCHEDULE, verbose=False, self_check=False)

    fit(callback)

    assert [str(plan) for plan, _, _ in seen] == [str(plan) for plan in callback.plans]
    assert all(plan.changes for plan, _, _ in seen)
    assert [(epoch, params) for _, epoch, params in seen] == [(r.epoch, r.params) for r in callback.history]


def test_an_event_undone_by_on_prune_leaves_no_record(fit, tmp_path):
    class Refuses(CoresetPruningCallback):
        def on_prune(self, plan, trainer, pl_module):
            raise RuntimeError("no")

    callback, logger = Refuses(schedule=SCHEDULE, verbose=False, self_check=False), TensorBoardLogger(tmp_path)

    with pytest.raises(RuntimeError, match="no"):
        fit(callback, logger=logger)

    assert callback.history == []
    assert callback.plans == []


def test_progress_of_a_long_plan_is_printed(fit, caplog, monkeypatch):
    class Impatient(report.console.PlanningProgress):
        def __init__(self, tell):
            super().__init__(tell, patience=0.0)

    monkeypatch.setattr(report.reporter, "PlanningProgress", Impatient)

    fit(pruning(verbose=True, schedule={1: 0.5}))

    said = [line for line in caplog.messages if line.startswith("Planning")]
    assert [line.partition(",")[0] for line in said] == [
        "Planning a pruning event: group 1 of 2 (net.0)",
        "Planning a pruning event: group 2 of 2 (net.2)",
    ]


@pytest.mark.slow
def test_the_global_random_state_is_left_alone(fit, tmp_path):
    """With all pages on, training sees the same random numbers as with none."""
    drawn = []
    for logger in (False, TensorBoardLogger(tmp_path)):
        torch.manual_seed(0)
        fit(pruning(), logger=logger)
        drawn.append(torch.rand(3))

    assert torch.equal(*drawn)
