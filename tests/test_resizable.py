"""`resizable()`: models that others build and load in one call follow the sizes of what they load."""

from __future__ import annotations

import copy
import threading
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from fitting import Classifier, assert_same, make_loader, make_trainer, mlp
from torch import Tensor, nn

from lightning_coreset import CoresetPruningCallback, make_resizable, prune, resizable
from lightning_coreset.checkpoint import is_resizable

TORCHS_OWN = nn.Module.load_state_dict


@pytest.fixture(autouse=True)
def nothing_stays():
    yield
    assert nn.Module.load_state_dict is TORCHS_OWN


class Model(Classifier):
    """What a framework trains: it takes the object that its network is as an argument, and saves none of it."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__(net)


class Forecaster:
    """A framework around Lightning, which builds the model within its own `load`."""

    def __init__(self) -> None:
        self.model = Model(mlp(8, 32, 24, 3))

    def fit(self, *callbacks: pl.Callback) -> Forecaster:
        make_trainer(*callbacks, max_epochs=3).fit(self.model, make_loader(8))
        return self

    def save(self, path: Path) -> None:
        trainer = make_trainer()
        trainer.strategy.connect(self.model)
        trainer.save_checkpoint(path, weights_only=True)

    def save_network(self, path: Path) -> None:
        torch.save({"network": self.model.net.state_dict()}, path)

    @classmethod
    def load(cls, path: Path) -> Forecaster:
        self = cls()
        self.model = Model.load_from_checkpoint(path, net=mlp(8, 32, 24, 3))
        return self

    @classmethod
    def load_network(cls, path: Path) -> Forecaster:
        self = cls()
        self.model.net.load_state_dict(torch.load(path, weights_only=True)["network"])
        return self

    def predict(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            return self.model.eval()(x)


@pytest.fixture(scope="module")
def trained() -> Forecaster:
    pruning = CoresetPruningCallback(0.5, schedule={1: 0.5}, verbose=False, eval_batches=0)
    trained = Forecaster().fit(pruning)
    assert trained.model.net[0].out_features < 32
    return trained


@pytest.mark.parametrize("part", ["", "_network"])
@pytest.mark.slow
def test_a_framework_loads_what_it_saved(trained, part, tmp_path):
    path, x = tmp_path / "saved.ckpt", torch.randn(5, 8)
    getattr(trained, f"save{part}")(path)
    load = getattr(Forecaster, f"load{part}")
    with pytest.raises(RuntimeError, match="size mismatch"):
        load(path)

    with resizable():
        loaded = load(path)

    assert_same({"": loaded.predict(x)}, {"": trained.predict(x)})
    getattr(loaded, f"save{part}")(tmp_path / "again.ckpt")
    with resizable():
        again = load(tmp_path / "again.ckpt")
    assert_same(again.model.state_dict(), trained.model.state_dict())


def test_a_trainer_without_the_callback_reads_the_checkpoint(trained, tmp_path):
    path = tmp_path / "saved.ckpt"
    trained.save(path)
    module = Model(mlp(8, 32, 24, 3))
    module.test_step = lambda batch, batch_idx: None
    with resizable():
        make_trainer().test(module, make_loader(8), ckpt_path=str(path), verbose=False)
    assert module.net[0].out_features == trained.model.net[0].out_features


def test_numbers_that_shapes_do_not_tell_come_from_the_metadata():
    class Attention(nn.Sequential):
        def __init__(self) -> None:
            super().__init__(nn.Linear(8, 16), Heads(), nn.Linear(16, 3))

    class Heads(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention = nn.MultiheadAttention(16, 4, batch_first=True)

        def forward(self, x: Tensor) -> Tensor:
            return x + self.attention(x, x, x, need_weights=False)[0]

    pruned, x = make_resizable(Attention()), torch.randn(2, 5, 8)
    prune(pruned, x, 0.5)
    with resizable():
        (fresh := Attention()).load_state_dict(pruned.state_dict())
    assert fresh[1].attention.num_heads == pruned[1].attention.num_heads < 4
    assert torch.equal(fresh.eval()(x), pruned.eval()(x))


def test_what_cannot_be_it_is_refused_and_changes_nothing():
    model = mlp(8, 16, 3)
    before = copy.deepcopy(model.state_dict())
    with resizable(), pytest.raises(ValueError, match="is not a part of the original model's"):
        model.load_state_dict(mlp(8, 20, 3).state_dict())
    assert_same(model.state_dict(), before)


@pytest.mark.parametrize("strict", [True, False])
def test_strictness_is_passed_on(strict):
    pruned = mlp(8, 16, 3)
    prune(pruned, torch.randn(2, 8), 0.5)
    state: dict[str, Any] = {**pruned.state_dict(), "other": torch.ones(1)}
    model = mlp(8, 16, 3)
    with resizable():
        if strict:
            with pytest.raises(ValueError, match="'other' is not one of the model's"):
                model.load_state_dict(state)
        else:
            model.load_state_dict(state, strict=False)
            assert_same(model.state_dict(), pruned.state_dict())


def test_an_error_of_names_says_how_to_be_lenient_where_torch_does_not_tell():
    pruned, model = mlp(8, 16, 3), make_resizable(mlp(8, 16, 3))
    prune(pruned, torch.randn(2, 8), 0.5)
    state: dict[str, Any] = {**pruned.state_dict(), "other": torch.ones(1)}

    with pytest.raises(ValueError, match=r"set `model\.strict_loading = False` first"):
        model.load_state_dict(state, strict=False)

    model.strict_loading = False
    model.load_state_dict(state, strict=False)
    assert_same(model.state_dict(), pruned.state_dict())


def test_equal_sizes_are_loaded_as_ever_and_what_loaded_stays_resizable():
    model, other = mlp(8, 16, 3), mlp(8, 16, 3)
    with resizable():
        assert not is_resizable(model)
        model.load_state_dict(other.state_dict())
        assert is_resizable(model)
        with pytest.raises(RuntimeError, match="Missing key"):
            model.load_state_dict({})
    assert not is_resizable(other)


class Filters(nn.Sequential):
    """Leaves out what does not fit, as segmentation_models_pytorch does."""

    def load_state_dict(self, state_dict: Any, strict: bool = True, **options: Any) -> Any:
        sizes = {name: tensor.shape for name, tensor in self.state_dict().items()}
        fitting = {name: tensor for name, tensor in state_dict.items() if sizes.get(name) == tensor.shape}
        return super().load_state_dict(fitting, strict=False, **options)


class Renames(nn.Sequential):
    """Knows older names of its tensors, as backbones do."""

    def load_state_dict(self, state_dict: Any, strict: bool = True, **options: Any) -> Any:
        renamed = {name.removeprefix("old."): tensor for name, tensor in state_dict.items()}
        return super().load_state_dict(renamed, strict, **options)


def test_classes_that_load_in_their_own_way():
    pruned, own = mlp(8, 16, 3), Filters.load_state_dict
    prune(pruned, torch.randn(2, 8), 0.5)
    state = pruned.state_dict()
    (filters := Filters(*mlp(8, 16, 3))).load_state_dict(state)
    assert filters[0].out_features == 16
    with resizable():
        filters.load_state_dict(state)
        (renames := Renames(*mlp(8, 16, 3))).load_state_dict({f"old.{name}": state[name] for name in state})
    assert_same(filters.state_dict(), state)
    assert_same(renames.state_dict(), state)
    assert Filters.load_state_dict is own


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
def test_scripted_modules_are_left_alone():
    scripted = torch.jit.trace(mlp(8, 16, 3), torch.randn(2, 8))
    with resizable():
        scripted.load_state_dict(mlp(8, 16, 3).state_dict())


def test_blocks_within_blocks_and_errors_leave_torchs_method():
    def fail() -> None:
        with resizable():
            with resizable():
                pass
            assert nn.Module.load_state_dict is not TORCHS_OWN
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert nn.Module.load_state_dict is TORCHS_OWN


def test_threads_share_the_blocks(trained, tmp_path):
    trained.save(tmp_path / "saved.ckpt")
    failures: list[BaseException] = []

    def load() -> None:
        try:
            for _ in range(10):
                with resizable():
                    Forecaster.load(tmp_path / "saved.ckpt")
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=load) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures


def test_another_library_that_wraps_the_method_within_a_block():
    def wrap() -> None:
        inner = nn.Module.load_state_dict
        nn.Module.load_state_dict = lambda self, *args, **options: inner(self, *args, **options)

    pruned = mlp(8, 16, 3)
    prune(pruned, torch.randn(2, 8), 0.5)
    try:
        with resizable():
            wrap()
        with pytest.raises(RuntimeError, match="size mismatch"):
            mlp(8, 16, 3).load_state_dict(pruned.state_dict())
        with resizable():
            (model := mlp(8, 16, 3)).load_state_dict(pruned.state_dict())
        assert_same(model.state_dict(), pruned.state_dict())
        mlp(8, 16, 3).load_state_dict(mlp(8, 16, 3).state_dict())
    finally:
        nn.Module.load_state_dict = TORCHS_OWN


@pytest.mark.parametrize("saves", ["network", "module"])
@pytest.mark.slow
def test_a_network_within_a_module_says_itself_how_it_was_pruned(saves):
    """As scvi-tools saves it: the LightningModule is one of the framework's own, which nobody keeps."""

    class Attends(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last, self.heads = nn.Linear(8, 32), nn.Linear(32, 3), 4
            self.q, self.k, self.v = (nn.Linear(32, 32) for _ in range(3))

        def forward(self, x: Tensor) -> Tensor:
            y = self.first(x).unsqueeze(1)
            q, k, v = (layer(y).unflatten(2, (self.heads, -1)).transpose(1, 2) for layer in (self.q, self.k, self.v))
            return self.last(nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(1))

    module, x = Model(Attends()), torch.randn(5, 8)
    callback = CoresetPruningCallback(schedule={1: 0.5}, verbose=False, eval_batches=0)
    make_trainer(callback, max_epochs=2).fit(module, make_loader(8))
    assert module.net.heads < 4
    with resizable():
        if saves == "network":
            (loaded := Attends()).load_state_dict(module.net.state_dict())
        else:
            (whole := Model(loaded := Attends())).load_state_dict(module.state_dict())
            assert whole.net.heads == module.net.heads
    assert torch.equal(loaded.eval()(x), module.net.eval()(x))
