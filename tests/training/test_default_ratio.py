"""Where no ratio is given, half of the model goes, or as far as is sensible: it never ends a fit."""

from __future__ import annotations

import warnings

import lightning.pytorch as pl
import pytest
import torch
from fitting import Classifier, assert_same, make_loader, make_trainer, mlp
from torch import Tensor, nn

from lightning_coreset import CoresetPruningCallback, plan_pruning, prune
from lightning_coreset.training.report import History

INNER = 16
HALF_OF_IT = INNER // 2 * (64 + 1 + 64) / (8 * 64 + 64 + 64 * 3 + 3 + INNER * (64 + 1 + 64) + 64)
"""Of the parameters of ``Residual``."""
TOLD = r"No pruning_ratio was given, and half of the params of this model cannot go .*: 35\.6% will go\."


class Residual(nn.Module):
    """Holds most of its parameters in a stream that is not pruned by default."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.inner, self.last = nn.Linear(8, 64), mlp(64, INNER, 64), nn.Linear(64, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        return self.last(x + self.inner(x))


class Saves(pl.Callback):
    """Writes a checkpoint at the end of an epoch."""

    def __init__(self, path: str, epoch: int) -> None:
        self.path, self.epoch = path, epoch

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.current_epoch == self.epoch:
            trainer.save_checkpoint(self.path)


def fitted(module: pl.LightningModule, *callbacks: pl.Callback, epochs: int = 6, **options) -> pl.LightningModule:
    make_trainer(*callbacks, max_epochs=epochs).fit(module, make_loader(8), **options)
    return module


def default(**options) -> CoresetPruningCallback:
    return CoresetPruningCallback(schedule="linear", verbose=False, eval_batches=0, **options)


def requested(history: History) -> list[float]:
    return [record.requested for record in history]


def test_as_much_goes_as_leaves_every_layer_half():
    callback = default()
    with pytest.warns(UserWarning, match=TOLD) as told:
        module = fitted(Classifier(Residual()), callback)
    [message] = [str(one.message) for one in told if "No pruning_ratio" in str(one.message)]
    assert "net.first" in message
    assert "include_residual=True (up to" in message
    assert module.net.inner[0].out_features == INNER // 2
    last = requested(callback.history)[-1]
    assert last == pytest.approx(callback.plans[-1].reached)
    assert last == pytest.approx(HALF_OF_IT)
    assert requested(callback.history) == pytest.approx([last * part / 4 for part in (1, 2, 3, 4)])


def test_a_ratio_that_was_given_is_an_error():
    with pytest.raises(ValueError, match=r"Expected pruning_ratio to be at most .* but got 0\.8"):
        fitted(Classifier(Residual()), default(pruning_ratio=0.8))


def test_half_goes_without_a_word_where_it_can():
    callback = default()
    fitted(Classifier(), callback)  # a warning would be an error here
    assert requested(callback.history)[-1] == 0.5


def test_other_units_have_their_own_half():
    callback = default(unit="channels")
    fitted(Classifier(Residual()), callback)
    assert callback.plans[-1].reached == 0.5


@pytest.mark.filterwarnings("ignore:No pruning_ratio was given")
@pytest.mark.parametrize("order", ["together", "bottom_up"])
@pytest.mark.slow
def test_a_resumed_run_goes_on_towards_the_same(order, tmp_path):
    path = str(tmp_path / "second.ckpt")
    torch.manual_seed(0)
    whole, callback = Classifier(Residual()), default(order=order)
    state = {name: tensor.clone() for name, tensor in whole.state_dict().items()}
    fitted(whole, callback, Saves(path, 2))
    resumed, again = Classifier(Residual()), default(order=order)
    resumed.load_state_dict(state)
    fitted(resumed, again, ckpt_path=path)
    assert requested(again.history) == requested(callback.history)
    assert_same(whole.state_dict(), resumed.state_dict())


@pytest.mark.filterwarnings("ignore:No pruning_ratio was given")
@pytest.mark.slow
def test_a_second_run_of_a_callback_begins_with_half_again():
    callback = default()
    fitted(Classifier(Residual()), callback)
    fitted(Classifier(), callback)
    assert requested(callback.history)[-1] == 0.5


def test_a_dry_run_shows_the_same():
    callback, module = default(example_inputs=torch.randn(2, 8)), Classifier(Residual())
    with pytest.warns(UserWarning, match=TOLD):
        plans = callback.dry_run(make_trainer(max_epochs=6), module).plans
    fitted(module, callback)  # it is said once
    assert [plan.requested for plan in plans.values()] == requested(callback.history)


def test_where_nothing_can_go_training_goes_on():
    callback, module = default(), Classifier(nn.Linear(8, 3))
    with pytest.warns(
        UserWarning, match="Nothing is pruned, and training goes on .*\n  net: makes outputs of the network"
    ):
        fitted(module, callback)
    assert len(module.losses) == 6 * 4
    assert len(callback.history) == 0


def test_functions_have_the_same_default():
    with pytest.warns(UserWarning, match=TOLD) as told:
        plan = plan_pruning(Residual(), torch.randn(2, 8))
    assert told[0].filename == __file__
    assert plan.reached == plan.requested == pytest.approx(HALF_OF_IT)
    with pytest.raises(ValueError, match="no layer has any"):
        prune(nn.Linear(8, 3), torch.randn(2, 8))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert prune(mlp(8, 32, 3), torch.randn(2, 8)).requested == 0.5
