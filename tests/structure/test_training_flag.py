"""The second run, in training mode, is spared just where nothing depends on the mode."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_coreset.structure import analyse
from lightning_coreset.structure.training_flag import watched_training_flag


class Counting(nn.Module):
    """Two layers with ``between`` them; counts its runs."""

    def __init__(self, between: nn.Module) -> None:
        super().__init__()
        self.a, self.between, self.b = nn.Linear(4, 6), between, nn.Linear(6, 2)
        self.runs: list[bool] = []

    def forward(self, x: Tensor) -> Tensor:
        self.runs.append(vars(self)["training"])
        return self.b(self.between(self.a(x)))


class FunctionalDropout(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return F.dropout(x, 0.1, training=self.training)


class AsksAnother(nn.Module):
    """Asks a module that is not its child, by name."""

    def __init__(self) -> None:
        super().__init__()
        self.other = [nn.ReLU()]

    def forward(self, x: Tensor) -> Tensor:
        return x * 2 if getattr(self.other[0], "training", False) else x


class OwnTrain(nn.Module):
    """Its mode is more than the flag."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = 1.0

    def train(self, mode: bool = True) -> OwnTrain:
        self.scale = 2.0 if mode else 1.0
        return super().train(mode)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scale


class OwnEval(nn.ReLU):
    def eval(self) -> OwnEval:
        return super().eval()


class OwnFlag(nn.Module):
    """Keeps the flag elsewhere, where no one can watch it."""

    @property
    def training(self) -> bool:
        return bool(vars(self).get("mode", True))

    @training.setter
    def training(self, mode: bool) -> None:
        vars(self)["mode"] = mode

    def forward(self, x: Tensor) -> Tensor:
        return x * 2 if self.training else x


class Hooked(nn.ReLU):
    def __init__(self) -> None:
        super().__init__()
        self.register_forward_hook(lambda module, _, out: out * 2 if module.training else out)


@pytest.mark.parametrize(
    "between",
    [FunctionalDropout(), AsksAnother(), OwnTrain(), OwnEval(), OwnFlag(), Hooked(), nn.RReLU(), nn.ReLU().train],
    ids=lambda one: type(one).__name__,
)
def test_run_twice(between):
    if not isinstance(between, nn.Module):  # replaced on the instance
        between, train = nn.ReLU(), between
        between.train = lambda mode=True: train(mode)  # type: ignore[method-assign]
    model = Counting(between)
    analyse(model, torch.randn(3, 4))
    assert model.runs == [False, True]


@pytest.mark.parametrize("between", [nn.ReLU(), nn.BatchNorm1d(6), nn.Dropout(), nn.Sequential(nn.GELU(), nn.Tanh())])
def test_run_once(between):
    model = Counting(between)
    analyse(model, torch.randn(3, 4))
    assert model.runs == [False]


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
def test_scripted_modules_ask_where_no_one_can_watch():
    scripted = torch.jit.trace(nn.ReLU(), torch.randn(3, 6))
    with watched_training_flag(Counting(scripted)) as flag:
        pass
    assert flag.matters


def test_the_flag_works_as_ever_while_it_is_watched():
    model = Counting(nn.ReLU())
    with watched_training_flag(model) as flag:
        model.train()
        assert not flag.matters
        assert vars(model)["training"]
        made, copied = nn.Linear(2, 2), copy.deepcopy(model)
        assert made.training
        assert copied.a.training
        made.eval()
        assert not made.training
        assert flag.matters
    assert "training" not in vars(nn.Module)
    assert model.training
    assert not made.training


def test_a_network_that_analyses_another():
    class Outer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer, self.last = nn.Linear(4, 6), nn.Linear(6, 2)
            self.inner = [Counting(nn.ReLU())]

        def forward(self, x: Tensor) -> Tensor:
            analyse(self.inner[0], torch.randn(3, 4))
            return self.last(self.layer(x) * (2 if self.training else 1))

    with watched_training_flag(outer := Outer()) as flag:
        outer(torch.randn(3, 4))
        assert flag.matters
    assert "training" not in vars(nn.Module)


def test_an_error_takes_the_watch_off():
    with pytest.raises(RuntimeError, match="in the middle"), watched_training_flag(nn.ReLU()):
        raise RuntimeError("in the middle")
    assert "training" not in vars(nn.Module)
