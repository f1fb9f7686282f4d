"""Streams of normalised channels shrink during training as other channels do, with all that a Trainer carries along."""

from __future__ import annotations

import copy
import math
from functools import partial
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from fitting import Validated, assert_same, count_params, make_loader, make_trainer
from lightning.pytorch import callbacks
from lightning.pytorch.callbacks import ModelCheckpoint, StochasticWeightAveraging
from lightning.pytorch.loggers import TensorBoardLogger
from streams import NETWORKS, LanguageModel, VisionTransformer
from torch import Tensor, nn, optim
from torch.utils.data import DataLoader, TensorDataset

from lightning_coreset import CoresetPruningCallback, PrunedCheckpointMixin, load_pruned
from lightning_coreset.surgery import index_dims
from lightning_coreset.training.averaged_models import averaged_copies

Pruning = partial(CoresetPruningCallback, verbose=False, include_residual=True)
THREE_EVENTS = {1: 0.2, 2: 0.35, 3: 0.5}


class Tokens(Validated):
    """Predicts the first token from the last position."""

    def __init__(self, net: nn.Module | None = None) -> None:
        super().__init__(LanguageModel(tied=True) if net is None else net)

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)[:, -1]


class Images(PrunedCheckpointMixin, Validated):
    """A vision transformer by default, which checkpoints of any size fit."""

    def __init__(self, net: nn.Module | None = None, optimizer: Any = None) -> None:
        super().__init__(VisionTransformer() if net is None else net)
        self.optimizer = partial(optim.AdamW, lr=3e-3) if optimizer is None else optimizer

    def configure_optimizers(self) -> Any:
        return self.optimizer([p for p in self.parameters() if p.requires_grad])


def token_loader() -> DataLoader:
    tokens = torch.randint(0, 30, (64, 12), generator=torch.Generator().manual_seed(0))
    return DataLoader(TensorDataset(tokens, tokens[:, 0] % 3), batch_size=16)


def build(name: str, **options: Any) -> tuple[pl.LightningModule, DataLoader]:
    make, inputs = NETWORKS[name]
    if inputs().is_floating_point():
        return Images(make(), **options), make_loader(1, 8, 8)
    return Tokens(make()), token_loader()


def fit(module: pl.LightningModule, *others: pl.Callback, loader: DataLoader | None = None, **options: Any) -> Any:
    ckpt_path = options.pop("ckpt_path", None)
    trainer = make_trainer(*others, **({"max_epochs": 5} | options))
    loader = make_loader(1, 8, 8) if loader is None else loader
    trainer.fit(module, loader, loader, ckpt_path=ckpt_path)
    return trainer


def normalised_shapes(module: nn.Module) -> dict[str, int]:
    """The widths of all norms, which must be those of their weights."""
    norms = {name: one for name, one in module.named_modules() if isinstance(one, (nn.LayerNorm, nn.RMSNorm))}
    for one in norms.values():
        assert one.normalized_shape == tuple(one.weight.shape)
    return {name: len(one.weight) for name, one in norms.items()}


class Epochs(pl.Callback):
    """Copies the model and its optimizer's state at the starts of epochs."""

    def __init__(self) -> None:
        self.seen: dict[int, tuple[dict[str, Tensor], dict[str, dict[str, Any]]]] = {}

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        names = {parameter: name for name, parameter in pl_module.named_parameters()}
        state = trainer.optimizers[0].state if trainer.optimizers else {}
        named = {names[parameter]: copy.deepcopy(dict(one)) for parameter, one in state.items()}
        self.seen[trainer.current_epoch] = dict(copy.deepcopy(pl_module.state_dict())), named


def muon(parameters: list[nn.Parameter]) -> Any:
    """Muon takes matrices only."""
    return optim.Muon([p for p in parameters if p.dim() == 2], lr=1e-3)


OPTIMIZERS: dict[str, Any] = {
    "AdamW": partial(optim.AdamW, lr=3e-3),
    "momentum": partial(optim.SGD, lr=1e-2, momentum=0.9),
    "Adafactor": partial(optim.Adafactor, lr=1e-2),
    "Adagrad": partial(optim.Adagrad, lr=1e-2),
    "RMSprop": partial(optim.RMSprop, lr=1e-3, centered=True),
}
if hasattr(optim, "Muon"):
    OPTIMIZERS["Muon"] = muon


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.slow
def test_several_events(name):
    module, loader = build(name)
    widths = normalised_shapes(module)
    pruning = Pruning(schedule=THREE_EVENTS)

    fit(module, pruning, loader=loader)

    assert [plan.reached for plan in pruning.plans] == pytest.approx([0.2, 0.35, 0.5], abs=0.06)
    assert pruning.plans[-1].params_after == count_params(module)
    after = normalised_shapes(module)
    assert all(after[one] < widths[one] for one in widths)
    assert all(map(math.isfinite, module.losses))


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.slow
def test_state_is_sliced(name):
    """What the optimizer knew of the channels that stay, it knows afterwards."""
    module = Images(optimizer=OPTIMIZERS[name])
    kept = {}

    class Keeps(Pruning.func):
        def on_prune(self, plan, trainer, pl_module):
            kept.update({change.name: change.kept for change in plan.changes})

    shapes = {name: tensor.shape for name, tensor in module.state_dict().items()}
    before, after = Epochs(), Epochs()

    fit(module, before, Keeps(0.4, schedule="one_shot", start=2, **Pruning.keywords), after, max_epochs=3)

    assert {"net.patches.weight", "net.positions", "net.blocks.0.norm1.bias"} <= kept.keys()
    known, carried = before.seen[2][1], after.seen[2][1]
    assert known.keys() == carried.keys() != set()
    compared = 0
    for parameter, state in known.items():
        for key, value in state.items():
            if isinstance(value, Tensor) and value.shape == shapes[parameter]:
                assert torch.equal(carried[parameter][key], index_dims(value, kept.get(parameter, {})))
                compared += 1
    assert compared


EMA = getattr(callbacks, "EMAWeightAveraging", None)
AVERAGING: dict[str, Any] = {"SWA": partial(StochasticWeightAveraging, swa_lrs=0.01, swa_epoch_start=2)}
if EMA is not None:
    AVERAGING |= {"EMA": partial(EMA, decay=0.8), "WeightAveraging": callbacks.WeightAveraging}


@pytest.mark.parametrize("name", AVERAGING)
@pytest.mark.slow
def test_averages_shrink_too(name):
    module, averaging = Images(), AVERAGING[name]()
    shapes: list[dict[str, int]] = []

    class Look(pl.Callback):
        def on_train_epoch_end(self, trainer, pl_module):
            for one in averaged_copies(trainer):
                if trainer.current_epoch >= 3:
                    assert normalised_shapes(one) == normalised_shapes(pl_module)
                    shapes.append(normalised_shapes(one))

    fit(module, Pruning(schedule=THREE_EVENTS), averaging, Look(), max_epochs=6)

    assert shapes
    assert all(max(one.values()) < 16 for one in shapes)


class Scripted(Images):
    """Logs a score that an event ruins."""

    def on_validation_epoch_end(self) -> None:
        self.log("score", 0.9 if self.net.patches.out_channels == 16 else 0.1)


@pytest.mark.slow
def test_an_event_is_taken_back():
    module, before, after = Scripted(), Epochs(), Epochs()
    pruning = Pruning(schedule={1: 0.5}, monitor="score", max_drop=0.1, recover_epochs=1, self_check=False)
    norm, weight = module.net.norm, module.net.norm.weight
    text = str(module)

    with pytest.warns(UserWarning, match="is taken back"):
        fit(module, before, pruning, after, max_epochs=4)

    assert [record.reverted for record in pruning.history] == [True]
    assert len(after.seen[1][0]["net.norm.weight"]) < 16
    assert str(module) == text
    assert (norm.normalized_shape, norm.weight is weight) == ((16,), True)
    model, state = before.seen[1]
    assert_same(after.seen[2][0], model)
    assert after.seen[2][1].keys() == state.keys()
    for name, own in state.items():
        torch.testing.assert_close(after.seen[2][1][name], own, rtol=0, atol=0)


@pytest.mark.parametrize("epoch", [0, 1, 2])
@pytest.mark.filterwarnings("ignore:The dirpath has changed")
@pytest.mark.slow
def test_a_resumed_run_ends_as_the_whole_one(epoch, tmp_path):
    def run(name: str, **options: Any) -> tuple[pl.LightningModule, Any]:
        torch.manual_seed(0)
        module = Images()
        saved = ModelCheckpoint(tmp_path / name, "{epoch}", save_top_k=-1, save_on_train_epoch_end=True)
        pruning = Pruning(schedule=THREE_EVENTS)
        trainer = fit(module, pruning, saved, max_epochs=5, enable_checkpointing=True, **options)
        return module, trainer.optimizers[0].state_dict()

    module, optimizer = run("whole")
    again, optimizer_again = run("again", ckpt_path=tmp_path / "whole" / f"epoch={epoch}.ckpt")

    assert_same(dict(again.state_dict()), dict(module.state_dict()))
    torch.testing.assert_close(optimizer_again, optimizer, rtol=0, atol=0)
    loaded = Images.load_from_checkpoint(tmp_path / "whole" / "epoch=4.ckpt")
    assert normalised_shapes(loaded) == normalised_shapes(module)
    assert_same(dict(loaded.state_dict()), dict(module.state_dict()))


@pytest.mark.slow
def test_a_tied_head_is_loaded(tmp_path):
    module = Tokens()
    saved = ModelCheckpoint(tmp_path, "{epoch}", save_top_k=-1)
    fit(module, Pruning(schedule=THREE_EVENTS), saved, loader=token_loader(), enable_checkpointing=True)

    loaded = load_pruned(Tokens, tmp_path / "epoch=4.ckpt")

    assert loaded.net.head.weight is loaded.net.embed.weight
    assert normalised_shapes(loaded) == normalised_shapes(module)
    tokens = next(iter(token_loader()))[0]
    torch.testing.assert_close(loaded.eval()(tokens), module.eval()(tokens), rtol=0, atol=0)


OPTIONS: dict[str, dict[str, Any]] = {
    "accumulation": {"accumulate_grad_batches": 3},
    "bfloat16 mixed": {"precision": "bf16-mixed"},
    "bfloat16": {"precision": "bf16-true"},
    "double precision": {"precision": "64-true"},
    "clipping": {"gradient_clip_val": 0.5},
}


@pytest.mark.parametrize("name", OPTIONS)
@pytest.mark.slow
def test_options(name):
    module, pruning = Images(), Pruning(schedule=THREE_EVENTS, recalibrate_batches=2, certify=True)

    fit(module, pruning, **OPTIONS[name])

    assert pruning.plans[-1].reached == pytest.approx(0.5, abs=0.06)
    assert max(normalised_shapes(module).values()) < 16
    assert all(map(math.isfinite, module.losses))


@pytest.mark.slow
def test_the_report(tmp_path):
    pytest.importorskip("tensorboard")
    module, pruning = Images(), Pruning(schedule=THREE_EVENTS)

    fit(module, pruning, logger=TensorBoardLogger(tmp_path))

    assert list(tmp_path.rglob("events.out.tfevents*"))


@pytest.mark.slow
def test_layer_by_layer():
    """The order of the paper: the stream is one group, and comes first."""
    module = Images()
    pruning = Pruning(schedule={1: 0.2, 2: 0.35, 3: 0.5}, order="bottom_up")

    fit(module, pruning)

    assert pruning.plans[-1].reached == pytest.approx(0.5, abs=0.06)
    assert pruning.plans[0].groups[0].channels_after < 16
