import lightning.pytorch as pl
import pytest
from fitting import Classifier, make_loader, make_trainer
from torch.utils.data import DataLoader, IterableDataset

from lightning_coreset.training.timeline import training_epochs


class Ask(pl.Callback):
    """Asks once training has begun, and says when it really ended."""

    def on_train_start(self, trainer, pl_module):
        self.told = training_epochs(trainer)

    def on_train_end(self, trainer, pl_module):
        self.real = trainer.current_epoch


class Endless(IterableDataset):
    """Batches of which nobody knows how many there are."""

    def __iter__(self):
        return iter(make_loader(8).dataset)


# Four batches an epoch.
@pytest.mark.parametrize(
    ("options", "epochs"),
    [
        ({"max_epochs": 3}, 3),
        ({"max_steps": 8, "max_epochs": -1}, 2),
        ({"max_steps": 9, "max_epochs": -1}, 3),
        ({"max_steps": 9, "max_epochs": 2}, 2),
        ({"max_steps": 5, "max_epochs": 7}, 2),
        ({"max_steps": 5, "max_epochs": -1, "accumulate_grad_batches": 2}, 3),
        ({"max_steps": 5, "max_epochs": -1, "accumulate_grad_batches": 3}, 3),  # the rest of an epoch makes a step
        ({"max_steps": 5, "max_epochs": -1, "limit_train_batches": 2}, 3),
        ({"max_steps": 4, "max_epochs": -1, "limit_train_batches": 0.5}, 2),
        ({"max_epochs": 5, "overfit_batches": 1}, 5),
        ({"fast_dev_run": True}, 1),
        ({"fast_dev_run": 2}, 1),
    ],
)
def test_told_length_is_the_real_one(options, epochs):
    ask = Ask()

    make_trainer(ask, **options).fit(Classifier(), make_loader(8))

    assert ask.told == ask.real == epochs


@pytest.mark.parametrize(
    ("options", "told"),
    [({"max_epochs": 2}, 2), ({"max_epochs": -1, "max_steps": 6}, None), ({"max_epochs": 2, "max_steps": 6}, 2)],
)
def test_steps_say_nothing_where_the_loader_has_no_length(options, told):
    ask = Ask()

    make_trainer(ask, **options).fit(Classifier(), DataLoader(Endless(), batch_size=16))

    assert ask.told == told


def test_training_without_end_has_no_length():
    ask = Ask()

    make_trainer(ask, max_epochs=-1, max_time={"seconds": 1}).fit(Classifier(), make_loader(8))

    assert ask.told is None
