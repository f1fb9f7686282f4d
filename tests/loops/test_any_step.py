"""Any step as it is: networks that work in one mode only, steps that cannot be repeated, steps that call no module."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from breadth import thinned
from fitting import Classifier, Validated, hooks_of, make_loader, make_trainer, mlp, widths
from lightning.fabric.utilities.exceptions import MisconfigurationException
from torch import nn
from torch.nn import functional as F

from lightning_coreset import CoresetPruningCallback

AT_ONCE: dict[str, Any] = {"schedule": "one_shot", "start": 0, "unit": "channels", "verbose": False}
SMALLER = {"net.0": (8, 16), "net.2": (16, 12), "net.4": (12, 3)}


class WithAuxiliaryHead(nn.Module):
    """Returns a pair in training, and probabilities in evaluation."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(8, 32), nn.Linear(32, 24)
        self.head, self.auxiliary = nn.Linear(24, 3), nn.Linear(32, 3)

    def forward(self, x):
        hidden = self.first(x).relu()
        outputs = self.head(self.second(hidden).relu())
        return (outputs, self.auxiliary(hidden)) if self.training else outputs.softmax(1)


class Auxiliary(Validated):
    def __init__(self) -> None:
        super().__init__(WithAuxiliaryHead())

    def training_step(self, batch, batch_idx):
        outputs, auxiliary = self(batch[0])
        return F.cross_entropy(outputs, batch[1]) + F.cross_entropy(auxiliary, batch[1])


@pytest.mark.parametrize("example_inputs", [None, torch.randn(2, 8)], ids=["its own step", "given"])
@pytest.mark.slow
def test_a_step_that_works_in_training_mode_only(example_inputs):
    module, loader = Auxiliary(), make_loader(8)
    callback = CoresetPruningCallback(0.5, example_inputs=example_inputs, **AT_ONCE)

    make_trainer(callback, max_epochs=1, num_sanity_val_steps=1).fit(module, loader, loader)

    expected = {"net.first": (8, 16), "net.second": (16, 12), "net.head": (12, 3), "net.auxiliary": (16, 3)}
    assert widths(module) == expected


class Sizes(pl.Callback):
    """Keeps the width of the first layer after every step."""

    def __init__(self) -> None:
        self.sizes: list[int] = []

    def on_train_batch_end(self, trainer, pl_module, *_):
        self.sizes.append(len(pl_module.net[0].bias))


class Detector(nn.Module):
    """Returns losses in training, where it needs targets, and what it has found in evaluation."""

    def __init__(self) -> None:
        super().__init__()
        self.net = mlp(8, 32, 24, 3)

    def forward(self, x, targets=None):
        if self.training and targets is None:
            raise ValueError("targets should not be none in training mode")
        outputs = self.net(x)
        if self.training:
            return {"loss": F.cross_entropy(outputs, targets)}
        return [{"labels": row.argmax(), "scores": row.amax()} for row in outputs]


class Detects(Classifier):
    def __init__(self) -> None:
        super().__init__(Detector())

    def training_step(self, batch, batch_idx):
        return sum(self.net(*batch).values())


@pytest.mark.slow
def test_losses_in_training_and_findings_in_evaluation():
    module = Detects()

    make_trainer(CoresetPruningCallback(0.5, **AT_ONCE), max_epochs=1).fit(module, make_loader(8))

    assert widths(module) == {f"net.{name}": shape for name, shape in SMALLER.items()}


class NeedsWhatComesLater(Classifier):
    """Reads what a hook makes after the first look at the batch."""

    def on_train_batch_start(self, batch, batch_idx):
        self.temperature = 1.0

    def training_step(self, batch, batch_idx):
        return F.cross_entropy(self.net(batch[0]) / self.temperature, batch[1])


@pytest.mark.slow
def test_a_step_that_cannot_be_run_before_its_time_is_recorded():
    module, watcher = NeedsWhatComesLater(), Sizes()

    with pytest.warns(UserWarning, match=r"read from the modules that it calls: training_step raised AttributeError"):
        make_trainer(CoresetPruningCallback(0.5, **AT_ONCE), watcher, max_epochs=1).fit(module, make_loader(8))

    assert widths(module) == SMALLER
    assert watcher.sizes == [16] * 4  # right after the first step
    assert hooks_of(module) == 0


class SkipsTheFirst(Classifier):
    def training_step(self, batch, batch_idx):
        return super().training_step(batch, batch_idx) if batch_idx > 1 else None


@pytest.mark.filterwarnings("ignore:`training_step` returned `None`")
@pytest.mark.slow
def test_a_first_step_that_returns_none():
    module, watcher = SkipsTheFirst(), Sizes()

    make_trainer(CoresetPruningCallback(0.5, **AT_ONCE), watcher, max_epochs=1).fit(module, make_loader(8))

    assert widths(module) == SMALLER
    assert watcher.sizes == [32, 32, 16, 16]


class Functional(pl.LightningModule):
    """A step that uses weights and calls no module."""

    by_hand = False

    def __init__(self) -> None:
        super().__init__()
        self.net = mlp(8, 32, 24, 3)
        self.automatic_optimization = not self.by_hand

    configure_optimizers = Classifier.configure_optimizers

    def training_step(self, batch, batch_idx):
        loss = F.cross_entropy(self.functional(batch[0]), batch[1])
        if self.by_hand:
            optimizer = self.optimizers()
            optimizer.zero_grad()
            self.manual_backward(loss)
            optimizer.step()
        return loss

    def functional(self, x):
        first, _, second, _, third = self.net
        for layer in (first, second):
            x = F.linear(x, layer.weight, layer.bias).relu()
        return F.linear(x, third.weight, third.bias)


class FunctionalByHand(Functional):
    by_hand = True


class WithForward(FunctionalByHand):
    def forward(self, x):
        return self.functional(x)


@pytest.mark.slow
def test_a_step_that_calls_no_module_is_followed_or_refused():
    module = Functional()
    make_trainer(CoresetPruningCallback(0.5, **AT_ONCE), max_epochs=1).fit(module, make_loader(8))
    assert widths(module) == SMALLER

    watcher = Sizes()
    callback = CoresetPruningCallback(0.5, **AT_ONCE)
    with pytest.raises(MisconfigurationException, match=r"it calls none that can be seen.*example_inputs"):
        make_trainer(callback, watcher, max_epochs=1).fit(FunctionalByHand(), make_loader(8))
    assert watcher.sizes == []  # ours is called first, after the first step

    module = WithForward()
    callback = CoresetPruningCallback(0.5, example_inputs=torch.randn(2, 8), **AT_ONCE)
    make_trainer(callback, max_epochs=1).fit(module, make_loader(8))
    assert widths(module) == SMALLER


def test_example_inputs_that_do_not_fit():
    callback = CoresetPruningCallback(0.5, example_inputs=torch.randn(2, 5), **AT_ONCE)
    with pytest.raises(MisconfigurationException, match=r"Expected example_inputs to be inputs .* raised RuntimeError"):
        make_trainer(callback, max_epochs=1).fit(Classifier(), make_loader(8))


class Alternates(Classifier):
    """Runs another head in every other epoch: the first batch of the present epoch shows one of them only."""

    def __init__(self) -> None:
        super().__init__(nn.Sequential(nn.Linear(8, 16), nn.ReLU()))
        self.a, self.b = nn.Linear(16, 3), nn.Linear(16, 3)

    def training_step(self, batch, batch_idx):
        head = self.a if self.current_epoch % 2 == 0 else self.b
        return F.cross_entropy(head(self.net(batch[0])), batch[1])

    def forward(self, x):
        return self.a(self.net(x))


@pytest.mark.slow
def test_a_step_is_run_again_as_it_was():
    module = Alternates()
    options = {name: value for name, value in AT_ONCE.items() if name != "start"}
    callback = CoresetPruningCallback(0.5, **options | {"schedule": {2: 0.25, 3: 0.5}})

    make_trainer(callback, max_epochs=5).fit(module, make_loader(8))

    assert widths(module) == {"net.0": (8, 8), "a": (8, 3), "b": (8, 3)}


DRAWS = {
    "noise": lambda hidden: hidden + 0.1 * torch.randn_like(hidden),
    "dropout": lambda hidden: F.dropout(hidden, 0.3, True),
    "mask": lambda hidden: hidden * torch.bernoulli(torch.full_like(hidden, 0.7)),
    "uniform": lambda hidden: hidden * torch.rand_like(hidden),
    "normal in place": lambda hidden: hidden * torch.empty_like(hidden).normal_(1.0, 0.1),
}


@pytest.mark.parametrize("name", thinned(list(DRAWS), 3))
def test_random_numbers_of_the_hidden_width_hold_nothing(name):
    """Also in evaluation mode; others are drawn once channels are gone, so that their means are compared."""

    class Noisy(Classifier):
        def forward(self, x):
            return self.net[4:](DRAWS[name](self.net[2:4](DRAWS[name](self.net[:2](x)))))

    module = Noisy()
    make_trainer(CoresetPruningCallback(0.5, **AT_ONCE), max_epochs=1).fit(module, make_loader(8))
    assert widths(module) == SMALLER


@pytest.mark.slow
def test_random_numbers_do_not_hide_what_is_wrong():
    """A width that the code remembers, beside noise."""

    class Remembers(Classifier):
        def forward(self, x):
            hidden = self.net[:2](x)
            hidden = (hidden + torch.randn_like(hidden)).reshape(-1, 32)
            return self.net[2:](hidden)

    module = Remembers()
    with pytest.warns(UserWarning, match="net.0: .* does not run"):
        make_trainer(CoresetPruningCallback(0.3, **AT_ONCE), max_epochs=1).fit(module, make_loader(8))
    assert module.net[0].out_features == 32
    assert module.net[2].out_features < 24


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning", "ignore:Found .* in eval mode at the start")
@pytest.mark.parametrize("self_check", [True, False])
@pytest.mark.slow
def test_torchscript_modules_are_left_alone(self_check):
    class Taught(Classifier):
        def __init__(self):
            super().__init__()
            self.net[1] = torch.jit.script(nn.SiLU())
            teacher = nn.Sequential(nn.Linear(8, 40), nn.ReLU(), nn.Linear(40, 3)).requires_grad_(False)
            self.teacher = torch.jit.script(teacher.eval())

        def training_step(self, batch, batch_idx):
            return super().training_step(batch, batch_idx) + F.mse_loss(self.net(batch[0]), self.teacher(batch[0]))

    module = Taught()
    make_trainer(CoresetPruningCallback(0.5, self_check=self_check, **AT_ONCE), max_epochs=1).fit(
        module, make_loader(8)
    )
    assert {name: size for name, size in widths(module).items() if name.startswith("net.")} == SMALLER
    assert module.teacher.state_dict()["0.weight"].shape == (40, 8)
