"""Events in a network under ``torch.compile``, with a backend that needs no compiler."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from breadth import some_of
from fitting import make_loader, make_trainer, mlp
from torch import Tensor, nn

from lightning_coreset import CoresetPruningCallback

Pruning = partial(CoresetPruningCallback, verbose=False)


class Counting:
    """A backend that runs what it is given eagerly, and counts how often."""

    def __init__(self) -> None:
        self.graphs = self.calls = 0

    def __call__(self, graph: torch.fx.GraphModule, inputs: Any) -> Any:
        self.graphs += 1

        def run(*arguments: Any) -> Any:
            self.calls += 1
            return graph(*arguments)

        return run


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = mlp(8, 32, 24, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


class Plain(pl.LightningModule):
    """Logs nothing: Lightning's ``log`` cannot be compiled."""

    def __init__(self) -> None:
        super().__init__()
        self.net: Any = Net()

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return nn.functional.cross_entropy(self.net(batch[0]), batch[1])

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=1e-2)


def compile_submodule(module, backend):
    module.net = torch.compile(module.net, backend=backend)
    return module


def compile_layer(module, backend):
    module.net.layers[0] = torch.compile(module.net.layers[0], backend=backend)
    return module


def compile_in_place(module, backend):
    module.net.compile(backend=backend)
    return module


def compile_whole(module, backend):
    return torch.compile(module, backend=backend)


class Calls(pl.Callback):
    """How often compiled code was run in each epoch."""

    def __init__(self, backend: Counting) -> None:
        self.backend = backend
        self.of_epoch: list[int] = []

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.of_epoch.append(self.backend.calls - sum(self.of_epoch))


def fit(build, pruning, *callbacks, epochs=6):
    torch.manual_seed(0)
    module = build(Plain())
    make_trainer(pruning, *callbacks, max_epochs=epochs, limit_train_batches=2).fit(module, make_loader(8))
    return {name.replace("_orig_mod.", ""): value for name, value in module.state_dict().items()}


@pytest.fixture
def backend():
    """Few versions of a function are kept, so that few events show whether it is given up."""
    torch.compiler.reset()
    with torch._dynamo.config.patch(recompile_limit=4):
        yield Counting()
    torch.compiler.reset()


COMPILED = [compile_submodule, compile_layer, compile_in_place, compile_whole]


@pytest.mark.parametrize("kind", some_of(COMPILED, compile_whole))
def test_a_compiled_network_is_pruned_as_an_eager_one_and_stays_compiled(kind, backend):
    calls = Calls(backend)
    pruning, other = (Pruning(0.5, schedule="linear", start=1, end=4) for _ in range(2))

    compiled = fit(partial(kind, backend=backend), pruning, calls)
    eager = fit(lambda module: module, other)

    torch.testing.assert_close(compiled, eager, rtol=0, atol=1e-6)
    assert [plan.reached for plan in pruning.plans] == [plan.reached for plan in other.plans]
    assert len(pruning.plans) == 4
    assert min(calls.of_epoch) >= 2, calls.of_epoch


@pytest.mark.parametrize("kind", some_of(COMPILED, compile_submodule))
def test_watching_the_steps_does_not_compile_them_anew(kind, backend):
    """Hooks in compiled code would, with every step."""
    calls = Calls(backend)

    fit(partial(kind, backend=backend), Pruning(0.5, schedule="one_shot", start=5), calls, epochs=6)

    assert min(calls.of_epoch) >= 2, calls.of_epoch
    assert backend.graphs <= 4  # two sizes, with and without gradients


def test_an_example_that_calls_a_compiled_module_itself(backend):
    class Called(Plain):
        def forward(self, x):
            return self.net(x)

        def training_step(self, batch, batch_idx):
            return nn.functional.cross_entropy(self(batch[0]), batch[1])

    module = Called()
    pruning = Pruning(0.5, schedule="one_shot", example_inputs=torch.randn(2, 8))

    make_trainer(pruning, max_epochs=2).fit(compile_whole(module, backend), make_loader(8))

    assert pruning.plans[-1].reached == pytest.approx(0.5, abs=0.05)
    assert math.isfinite(sum(p.sum().item() for p in module.parameters()))
    assert backend.graphs > 0
