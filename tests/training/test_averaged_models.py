"""Callbacks that keep a copy of the model, or watch its score, follow every event."""

from __future__ import annotations

import copy
import math
from functools import partial
from types import SimpleNamespace
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from breadth import crossed
from fitting import (
    Classifier,
    Validated,
    assert_same,
    convnet,
    count_params,
    make_loader,
    make_trainer,
    mlp,
    widths,
)
from lightning.pytorch import callbacks
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint, StochasticWeightAveraging
from torch import Tensor, nn

from lightning_coreset import CoresetPruningCallback, plan_pruning
from lightning_coreset.surgery import apply_changes
from lightning_coreset.training.averaged_models import averaged_copies, shrink_copy
from lightning_coreset.training.early_stopping import restart_patience

Pruning = partial(CoresetPruningCallback, verbose=False)

AVERAGING: dict[str, Any] = {
    "SWA": partial(StochasticWeightAveraging, swa_lrs=0.01, swa_epoch_start=2, annealing_epochs=2),
}
EMA: Any = getattr(callbacks, "EMAWeightAveraging", None)
if EMA is not None:
    AVERAGING |= {
        "EMA": partial(EMA, decay=0.8),
        "EMA without buffers": partial(EMA, decay=0.8, use_buffers=False),
        "WeightAveraging": callbacks.WeightAveraging,
    }
needs_ema = pytest.mark.skipif(EMA is None, reason="EMAWeightAveraging came with Lightning 2.6")
ORDERS = {"before the pruning callback": 1, "after the pruning callback": -1}


def fit(module: pl.LightningModule, *callbacks: pl.Callback, shape: tuple[int, ...] = (8,), **options: Any) -> Any:
    ckpt_path = options.pop("ckpt_path", None)
    trainer = make_trainer(*callbacks, **({"max_epochs": 6} | options))
    loaders = [make_loader(*shape)] * (1 + isinstance(module, Validated))
    trainer.fit(module, *loaders, ckpt_path=ckpt_path)
    return trainer


def averaged(callback: Any) -> pl.LightningModule:
    model = callback._average_model
    return model if isinstance(model, pl.LightningModule) else model.module


# ---- one event of a copy


def pruned_pair(dtype: torch.dtype, method: Any = "reconstruction") -> tuple[Any, Any, Any]:
    """A network with BatchNorm, a copy of it of some dtype, and a plan that reweights its consumers and statistics."""
    torch.manual_seed(1)
    model = convnet()
    for _ in range(3):
        model(torch.randn(16, 1, 6, 6))  # statistics at no special value
    model.eval()
    plan = plan_pruning(model, torch.randn(2, 1, 6, 6), 0.4, method=method)
    assert any(change.value is not None for change in plan.changes) == (method == "reconstruction")
    return model, copy.deepcopy(model).to(dtype), plan


@pytest.mark.parametrize("method", ["reconstruction", "sensitivity", "magnitude"])
def test_a_copy_that_equals_the_model_equals_the_pruned_model(method):
    model, twin, plan = pruned_pair(torch.float32, method)

    shrink_copy(twin, model, plan)
    apply_changes(model, plan.changes, plan.attributes)

    assert_same(dict(twin.state_dict()), dict(model.state_dict()))
    assert widths(twin) == widths(model)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_a_copy_keeps_its_dtype(dtype):
    model, twin, plan = pruned_pair(dtype)

    shrink_copy(twin, model, plan)
    apply_changes(model, plan.changes, plan.attributes)

    for name, tensor in twin.state_dict().items():
        if tensor.is_floating_point():
            assert tensor.dtype == dtype
            torch.testing.assert_close(tensor.float(), model.state_dict()[name], rtol=1e-2, atol=1e-2)


def test_a_copy_keeps_how_far_it_is_from_the_model():
    model, twin, plan = pruned_pair(torch.float64)
    with torch.no_grad():
        for tensor in twin.state_dict().values():
            if tensor.is_floating_point():
                tensor *= 1.0 + 0.1 * torch.rand(tensor.shape, dtype=tensor.dtype)
    before, own = ({k: v.clone() for k, v in each.state_dict().items()} for each in (twin, model))

    shrink_copy(twin, model, plan)
    apply_changes(model, plan.changes, plan.attributes)

    for change in plan.changes:
        (average, old), now = (each[change.name] for each in (before, own)), model.state_dict()[change.name]
        for dim, kept in change.kept.items():
            average, old = average.index_select(dim, kept), old.index_select(dim, kept)
        found = twin.state_dict()[change.name]
        if change.name.endswith("running_var"):
            torch.testing.assert_close(found / now, average / old, rtol=1e-5, atol=0)
        elif change.name.endswith("num_batches_tracked"):
            assert torch.equal(found, average)
        else:
            torch.testing.assert_close(found - now, average - old, rtol=0, atol=1e-6)


def test_a_variance_of_zero_gives_finite_numbers():
    model, twin, plan = pruned_pair(torch.float32)
    for each in (model, twin):
        each[1].running_var.zero_()
        each[4].running_var.zero_()

    shrink_copy(twin, model, plan)

    assert all(torch.isfinite(tensor).all() for tensor in twin.state_dict().values())


def test_a_copy_of_other_shapes_is_refused_and_left_alone():
    model, twin, plan = pruned_pair(torch.float32)
    apply_changes(twin, plan.changes, plan.attributes)
    before = copy.deepcopy(twin.state_dict())

    with pytest.raises(ValueError, match="The plan was made for another model, or for this one before it was pruned"):
        shrink_copy(twin, model, plan)

    assert_same(dict(twin.state_dict()), dict(before))


def test_only_copies_of_the_whole_module_are_found():
    class Other(pl.Callback):
        def setup(self, trainer, pl_module, stage):
            self._average_model = copy.deepcopy(pl_module.net)

        def on_fit_end(self, trainer, pl_module):
            self.found = averaged_copies(trainer)

    swa, other = AVERAGING["SWA"](), Other()

    fit(Classifier(), swa, other, max_epochs=1)

    assert other.found == [averaged(swa)]


# ---- in a fit


class Twins(Pruning.func):  # type: ignore[name-defined]
    """Compares the model with its averaged copy right after every event."""

    def on_prune(self, plan, trainer, pl_module):
        self.events = getattr(self, "events", 0) + 1
        (twin,) = averaged_copies(trainer)
        assert_same(dict(twin.state_dict()), dict(pl_module.state_dict()))


@needs_ema
@pytest.mark.parametrize("order", ORDERS.values(), ids=ORDERS)
@pytest.mark.parametrize("kind", [mlp, convnet])
def test_a_copy_without_memory_is_the_model_at_every_event(kind, order):
    """With decay 0 the average is the model after every step, and so it is after every event."""
    module, shape = (Classifier(mlp(8, 32, 24, 3)), (8,)) if kind is mlp else (Classifier(convnet()), (1, 6, 6))
    pruning = Twins(0.5, verbose=False)

    fit(module, *[EMA(decay=0.0), pruning][::order], shape=shape)

    assert pruning.events == len(pruning.plans) == 4
    assert pruning.plans[-1].reached == pytest.approx(0.5, abs=0.05)


class Cut(pl.Callback):
    """What the averaged copy is after every step, and what an event keeps of it."""

    def __init__(self, averaging: Any) -> None:
        self.averaging = averaging
        self.weights: list[dict[str, Tensor]] = []

    def on_train_batch_end(self, *_: Any) -> None:
        self.weights.append(copy.deepcopy(averaged(self.averaging).state_dict()))


@needs_ema
@pytest.mark.parametrize("order", ORDERS.values(), ids=ORDERS)
@pytest.mark.parametrize("name", ["EMA", "WeightAveraging"])
def test_an_average_of_survivors_is_the_survivors_of_the_average(name, order):
    """Units that are off from the start never matter: the average goes on as that of the unpruned run."""
    dead = list(range(0, 16, 2))
    alive = list(range(1, 16, 2))

    class Off(Classifier):
        def __init__(self):
            super().__init__(mlp(8, 16, 3))
            with torch.no_grad():
                for tensor in (self.net[0].weight, self.net[0].bias, self.net[2].weight.T):
                    tensor[dead] = 0

    def run(*callbacks):
        torch.manual_seed(0)
        averaging = AVERAGING[name]()
        watch = Cut(averaging)
        fit(Off(), *[averaging, *callbacks][::order], watch, max_epochs=4, precision="64-true")
        return watch.weights

    dense = run()
    pruned = run(Pruning(0.5, schedule="one_shot", start=2, unit="channels", method="magnitude"))

    for before, same in zip(dense[:8], pruned[:8], strict=True):
        assert_same(before, same)
    for expected, found in zip(dense[8:], pruned[8:], strict=True):
        kept = torch.tensor(alive)
        cut = {
            "net.0.weight": expected["net.0.weight"][kept],
            "net.0.bias": expected["net.0.bias"][kept],
            "net.2.weight": expected["net.2.weight"][:, kept],
            "net.2.bias": expected["net.2.bias"],
        }
        torch.testing.assert_close(found, cut, rtol=0, atol=1e-10)


class Swaps(pl.Callback):
    """Whether the model's own weights come back after validation."""

    def on_train_epoch_end(self, trainer, pl_module):
        self.before = copy.deepcopy(pl_module.state_dict())

    def on_train_epoch_start(self, trainer, pl_module):
        if trainer.current_epoch == 5:  # before, events change them
            self.compared = True
            assert_same(dict(self.before), dict(pl_module.state_dict()))


@pytest.mark.parametrize(("name", "order", "kind"), crossed(AVERAGING, ORDERS.values(), [mlp, convnet]))
def test_averages_follow_to_the_end(kind, name, order):
    module, shape = (Validated(), (8,)) if kind is mlp else (Validated(convnet()), (1, 6, 6))
    averaging, swaps = AVERAGING[name](), Swaps()
    pruning = Pruning(0.5, end=0.7)

    trainer = fit(module, *[averaging, pruning][::order], swaps, shape=shape)

    assert swaps.compared
    assert trainer.max_epochs == 6
    assert pruning.plans[-1].reached == pytest.approx(0.5, abs=0.05)
    final = averaged(averaging)
    assert widths(final) == widths(module)
    assert count_params(final) == pruning.plans[-1].params_after
    parameters = dict(final.named_parameters())
    assert all(torch.equal(tensor, parameters[name]) for name, tensor in module.named_parameters())
    assert all(map(math.isfinite, module.losses))
    assert sum(module.losses[-4:]) < 0.7 * sum(module.losses[:4])


@pytest.mark.slow
def test_no_event_comes_in_the_epoch_that_swa_adds_for_batch_statistics():
    class Epochs(Pruning.func):  # type: ignore[name-defined]
        def on_prune(self, plan, trainer, pl_module):
            self.epochs = [*getattr(self, "epochs", []), trainer.current_epoch]

    module, pruning = Classifier(convnet()), Epochs(schedule="linear", start=0.0, end=1.0, every=1, verbose=False)

    fit(module, pruning, AVERAGING["SWA"](), shape=(1, 6, 6), max_epochs=4)

    assert len(module.losses) == 4 * 5  # the last only runs the data through
    assert pruning.epochs == [0, 1, 2, 3]


def run_and_save(build, shape, name, order, folder, ckpt_path=None):
    torch.manual_seed(0)
    module, averaging = Validated(build()), AVERAGING[name]()
    pruning = Pruning(0.5, schedule="linear", start=1, end=4)
    saved = ModelCheckpoint(folder, "{epoch}", save_top_k=-1, save_on_train_epoch_end=True)
    options = {"shape": shape, "ckpt_path": ckpt_path, "enable_checkpointing": True}
    trainer = fit(module, *[averaging, pruning][::order], saved, **options)
    return module, averaged(averaging), trainer.optimizers[0].state_dict(), pruning


@pytest.mark.parametrize(("name", "order", "epoch"), crossed(AVERAGING, ORDERS.values(), [0, 2, 3, 4]))
@pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty")
def test_a_run_that_resumes_has_the_average_of_the_uninterrupted_one(name, order, epoch, tmp_path):
    """From files of every size: before the first event, between events, on the epoch of the last, after it."""
    run = partial(run_and_save, convnet, (1, 6, 6), name, order, tmp_path)
    module, average, optimizer, pruning = run()

    again, average_again, optimizer_again, pruning_again = run(tmp_path / f"epoch={epoch}.ckpt")

    # SWA averages when an epoch starts, events wait for the first batch after a resume: listed after the pruning
    # callback, it takes in the weights before the event, not after it. That is the same but for rounding.
    tolerance = 1e-6 if (name, order) == ("SWA", -1) else 0.0
    for one, other in ((again, module), (average_again, average)):
        torch.testing.assert_close(dict(one.state_dict()), dict(other.state_dict()), rtol=0, atol=tolerance)
    torch.testing.assert_close(optimizer_again, optimizer, rtol=0, atol=tolerance)
    before, after = pruning.state_dict(), pruning_again.state_dict()
    assert {key: after[key] for key in ("plans", "done")} == {key: before[key] for key in ("plans", "done")}


@pytest.mark.parametrize(("name", "order"), crossed(AVERAGING, ORDERS.values()))
@pytest.mark.filterwarnings("ignore:The checkpoint was not created with WeightAveraging")
@pytest.mark.filterwarnings("ignore:SWA is initializing after swa_start without any checkpoint data")
def test_averaging_may_begin_with_a_checkpoint_of_a_pruned_model(name, order, tmp_path):
    """The copy is made from the model as it was built; no state in the checkpoint gives it another size."""

    class Look(pl.Callback):
        def on_train_start(self, trainer, pl_module):
            assert_same(dict(averaged_copies(trainer)[0].state_dict()), dict(pl_module.state_dict()))
            self.seen = widths(pl_module)

    saved = ModelCheckpoint(tmp_path, "{epoch}", save_top_k=-1)
    fit(Classifier(), Pruning(0.5), saved, max_epochs=3, enable_checkpointing=True)
    module, averaging, look = Classifier(), AVERAGING[name](), Look()
    again = ModelCheckpoint(tmp_path / "again")
    with pytest.warns(UserWarning, match="The dirpath has changed"):
        fit(
            module,
            *[averaging, Pruning(0.5)][::order],
            look,
            again,
            enable_checkpointing=True,
            ckpt_path=tmp_path / "epoch=2.ckpt",
        )

    assert look.seen["net.0"][1] < 32
    assert widths(averaged(averaging)) == widths(module)


class Heads(nn.Module):
    """Attention, whose number of heads no shape tells."""

    def __init__(self) -> None:
        super().__init__()
        self.num_heads = 4
        self.q, self.k, self.v = (nn.Linear(4, 12) for _ in range(3))
        self.out, self.head = nn.Linear(12, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = x.view(-1, 2, 4)
        q, k, v = (f(x).view(*x.shape[:2], self.num_heads, 3).transpose(1, 2) for f in (self.q, self.k, self.v))
        mixed = (q @ k.transpose(-1, -2)).softmax(-1) @ v
        return self.head(self.out(mixed.transpose(1, 2).flatten(2)).relu().mean(1))


@pytest.mark.parametrize(
    ("name", "order"), crossed([name for name in ("EMA", "SWA") if name in AVERAGING], ORDERS.values())
)
@pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty")
@pytest.mark.slow
def test_a_resumed_average_has_the_heads_that_are_left(name, order, tmp_path):
    """EMA writes its average as a plain dict, without the metadata in which the model tells of them."""
    run = partial(run_and_save, Heads, (8,), name, order, tmp_path)
    module, average, _, _ = run()

    again, average_again, _, _ = run(tmp_path / "epoch=2.ckpt")

    assert again.net.num_heads == average_again.net.num_heads == average.net.num_heads == module.net.num_heads < 4
    tolerance = 1e-6 if name == "SWA" else 0.0
    torch.testing.assert_close(dict(again.state_dict()), dict(module.state_dict()), rtol=0, atol=tolerance)


# ---- early stopping


class Still(Validated):
    """Its score never changes."""

    def __init__(self, score: float = 1.0) -> None:
        super().__init__()
        self.score = score

    def training_step(self, batch, batch_idx):
        self.log("score", self.score)
        return super().training_step(batch, batch_idx)

    def validation_step(self, batch, batch_idx):
        self.log("val_score", self.score)


class Quick(EarlyStopping):
    """A subclass, as users have them."""


@pytest.mark.parametrize(
    ("kind", "mode", "monitor"), crossed([EarlyStopping, Quick], ["min", "max"], ["score", "val_score"])
)
@pytest.mark.parametrize(("restart", "stopped"), [(True, 5), (False, 3)])
def test_patience_restarts_with_an_event(kind, mode, monitor, restart, stopped):
    """The first score is the best: patience ends three epochs later, and three after the first one past an event."""
    stop = kind(monitor, patience=3, mode=mode)
    pruning = Pruning(0.4, schedule="one_shot", start=2, restart_patience=restart)

    fit(Still(), stop, pruning, max_epochs=9)

    assert stop.stopped_epoch == stopped
    assert len(pruning.plans) == 1


@pytest.mark.parametrize(("mode", "worst"), [("min", math.inf), ("max", -math.inf)])
def test_patience_is_as_in_the_beginning(mode, worst):
    stop = EarlyStopping("score", mode=mode)
    beginning = copy.deepcopy(stop.state_dict())
    stop.wait_count, stop.best_score = 2, torch.tensor(3)
    trainer: Any = SimpleNamespace(early_stopping_callbacks=[stop])

    restart_patience(trainer)

    assert stop.state_dict() == beginning
    assert stop.best_score == worst


@pytest.mark.parametrize("mode", ["min", "max"])
def test_what_comes_after_an_event_may_be_worse_than_what_was_before(mode):
    class Worse(Still):
        def on_train_epoch_start(self):
            worse = self.trainer.current_epoch >= 2
            self.score = 1.0 + (worse if mode == "min" else -worse)

    stop = EarlyStopping("score", patience=3, mode=mode)

    fit(Worse(), stop, Pruning(0.4, schedule="one_shot", start=2), max_epochs=9)

    assert stop.best_score == (2.0 if mode == "min" else 0.0)
    assert stop.stopped_epoch == 5


def test_an_event_that_removes_nothing_restarts_no_patience():
    stop = EarlyStopping("score", patience=3)
    pruning = Pruning(schedule={0: 0.4, 2: 0.4001})

    fit(Still(), stop, pruning, max_epochs=9)

    assert [plan.channels_removed > 0 for plan in pruning.plans] == [True, False]
    assert stop.stopped_epoch == 3
