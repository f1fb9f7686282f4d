"""Shadow weights and the like: tensors that mirror weights and are no module, wherever they are kept."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from breadth import thinned
from fitting import Classifier, make_loader, make_trainer, mlp, widths
from lightning.fabric.utilities.exceptions import MisconfigurationException
from torch import Tensor, nn
from torch.nn.utils import parameters_to_vector

from lightning_coreset import CoresetPruningCallback
from lightning_coreset.plan import PruningPlan

Pruning = partial(CoresetPruningCallback, 0.4, schedule="one_shot", start=1, verbose=False, eval_batches=0)
RATE = 0.2


class LitEma(nn.Module):
    """A buffer for each parameter, named without dots."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.register_buffer("decay", torch.tensor(1 - RATE))
        self.names = {name: name.replace(".", "") for name, _ in net.named_parameters()}
        for name, one in net.named_parameters():
            self.register_buffer(self.names[name], one.detach().clone())


class Ema:
    """An object of its own with a list of tensors."""

    def __init__(self, net: nn.Module) -> None:
        self.shadow_params = clones(net)


def clones(net: nn.Module) -> list[Tensor]:
    return [one.detach().clone() for one in net.parameters()]


class Shadowed(Classifier):
    """Keeps an average of its network, as ``make`` and ``shadow`` say."""

    def __init__(self, make: Callable[[Any], None], shadow: Callable[[Any], list[Tensor]]) -> None:
        super().__init__(mlp(8, 16, 12, 3))
        make(self)
        self.shadow = shadow

    @torch.no_grad()
    def on_train_batch_end(self, *_: Any) -> None:
        for one, weights in zip(self.shadow(self), self.net.parameters(), strict=True):
            one.lerp_(weights, RATE)

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.net.parameters(), 1e-2)


def _make_buffers(module: Any) -> None:
    for name, one in module.net.named_parameters():
        module.register_buffer("shadow_" + name.replace(".", "_"), one.detach().clone())


def _make_attributes(module: Any) -> None:
    for number, one in enumerate(module.net.parameters()):
        setattr(module, f"average_{number}", one.detach().clone())


KINDS: dict[str, tuple[Callable[[Any], None], Callable[[Any], list[Tensor]]]] = {
    "list": (lambda m: setattr(m, "average", clones(m.net)), lambda m: m.average),
    "tuple": (lambda m: setattr(m, "average", tuple(clones(m.net))), lambda m: list(m.average)),
    "dict": (
        lambda m: setattr(m, "average", {name: one.detach().clone() for name, one in m.net.named_parameters()}),
        lambda m: list(m.average.values()),
    ),
    "within": (lambda m: setattr(m, "state", {"average": [clones(m.net)]}), lambda m: m.state["average"][0]),
    "object": (lambda m: setattr(m, "ema", Ema(m.net)), lambda m: m.ema.shadow_params),
    "buffers": (_make_buffers, lambda m: [one for name, one in m.named_buffers() if name.startswith("shadow_")]),
    "module of buffers": (
        lambda m: setattr(m, "ema", LitEma(m.net)),
        lambda m: [getattr(m.ema, name) for name in m.ema.names.values()],
    ),
    "parameters": (
        lambda m: setattr(m, "average", nn.ParameterList(clones(m.net)).requires_grad_(False)),
        lambda m: list(m.average),
    ),
    "hidden module": (
        lambda m: setattr(m, "hidden", [copy.deepcopy(m.net)]),
        lambda m: list(m.hidden[0].parameters()),
    ),
}


class Average(pl.Callback):
    """Keeps an average in the callback itself."""

    def __init__(self, make: Callable[[nn.Module], Any], shadow: Callable[[Any], list[Tensor]]) -> None:
        self.make, self.shadow = make, shadow

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        self.average = self.make(pl_module)

    @torch.no_grad()
    def on_train_batch_end(self, trainer: Any, pl_module: Any, *_: Any) -> None:
        for one, weights in zip(self.shadow(self.average), pl_module.net.parameters(), strict=True):
            one.lerp_(weights, RATE)


IN_CALLBACKS: dict[str, tuple[Callable[[Any], Any], Callable[[Any], list[Tensor]]]] = {
    "dict": (
        lambda m: {name: one.detach().clone() for name, one in m.named_parameters()},
        lambda average: list(average.values()),
    ),
    "state": (lambda m: copy.deepcopy(m.net.state_dict()), lambda average: list(average.values())),
    "network": (lambda m: copy.deepcopy(m.net), lambda average: list(average.parameters())),
    "module": (copy.deepcopy, lambda average: list(average.parameters())),
}


class Watch(CoresetPruningCallback):
    """Keeps tensors before and after an event; one that is ``failing`` raises at its end."""

    shadow: Callable[[], list[Tensor]]
    failing = False

    def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
        self.before = [one.clone() for one in self.shadow()]
        self.weights = clones(pl_module.net)
        super().on_train_epoch_start(trainer, pl_module)

    def on_prune(self, plan: PruningPlan, trainer: Any, pl_module: Any) -> None:
        self.after, self.objects = [one.clone() for one in self.shadow()], self.shadow()
        self.kept = {change.name: change.kept for change in plan.changes}
        if self.failing:
            raise RuntimeError("no")

    def sliced(self, tensors: list[Tensor], net: nn.Module) -> list[Tensor]:
        """Tensors cut as the network was."""
        result = []
        for (name, _), tensor in zip(net.named_parameters(), tensors, strict=True):
            for dim, kept in self.kept.get(f"net.{name}", {}).items():
                tensor = tensor.index_select(dim, kept)
            result.append(tensor)
        return result


def fit(module: pl.LightningModule, *callbacks: pl.Callback, **options: Any) -> pl.Trainer:
    trainer = make_trainer(*callbacks, **{"max_epochs": 2, **options})
    trainer.fit(module, make_loader(8))
    return trainer


def assert_all_equal(one: list[Tensor], other: list[Tensor]) -> None:
    assert [tensor.shape for tensor in one] == [tensor.shape for tensor in other]
    assert all(torch.equal(tensor, its) for tensor, its in zip(one, other, strict=True))


def watch(method: str = "magnitude", **options: Any) -> Watch:
    return Watch(**{"pruning_ratio": 0.4, **Pruning.keywords, "method": method, **options})


@pytest.mark.parametrize("kind", thinned(list(KINDS), 3))
def test_shadows_of_a_module_are_cut_with_the_weights(kind):
    module, callback = Shadowed(*KINDS[kind]), watch()
    callback.shadow = partial(module.shadow, module)
    objects = callback.shadow()

    fit(module, callback)

    assert widths(module.net)["0"][1] < 16
    assert_all_equal(callback.after, callback.sliced(callback.before, module.net))
    assert all(one is other for one, other in zip(objects, callback.shadow(), strict=True))


@pytest.mark.parametrize("kind", IN_CALLBACKS)
def test_shadows_of_a_callback_are_cut_with_the_weights(kind):
    module, average, callback = Classifier(mlp(8, 16, 12, 3)), Average(*IN_CALLBACKS[kind]), watch()
    callback.shadow = lambda: average.shadow(average.average)

    fit(module, callback, average)

    assert_all_equal(callback.after, callback.sliced(callback.before, module.net))
    if isinstance(average.average, nn.Module):
        assert widths(average.average) == widths(module if kind == "module" else module.net)


@pytest.mark.parametrize("kind", ["list", "module of buffers", "hidden module"])
@pytest.mark.slow
def test_shadows_move_with_the_weights(kind):
    """What the plan adds to the weights is added to their average."""
    module, callback = Shadowed(*KINDS[kind]), watch("reconstruction")
    callback.shadow = partial(module.shadow, module)

    class Check(pl.Callback):
        def on_train_batch_start(self, trainer: Any, pl_module: Any, *_: Any) -> None:
            if callback.plans and not hasattr(self, "moved"):
                self.moved = clones(pl_module.net)

    check = Check()
    fit(module, callback, check)

    weights = callback.sliced(callback.weights, module.net)
    averages = callback.sliced(callback.before, module.net)
    expected = [new + (one - old) for new, one, old in zip(check.moved, averages, weights, strict=True)]
    assert any(not torch.equal(new, old) for new, old in zip(check.moved, weights, strict=True))
    assert all(torch.allclose(one, its, atol=1e-6) for one, its in zip(callback.after, expected, strict=True))


class Penalty(pl.Callback):
    """Holds weights and their Fisher information."""

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        self.means = {name: one.detach().clone() for name, one in pl_module.net.named_parameters()}
        self.fisher = {name: torch.rand_like(one) for name, one in self.means.items()}


def test_fisher_information_is_cut_and_not_moved():
    module, penalty, callback = Classifier(mlp(8, 16, 12, 3)), Penalty(), watch("reconstruction")
    callback.shadow = lambda: list(penalty.fisher.values())

    fit(module, callback, penalty)

    assert_all_equal(callback.after, callback.sliced(callback.before, module.net))
    assert widths(module.net)["2"] == tuple(reversed(penalty.means["2.weight"].shape))


def test_data_that_looks_like_nothing_is_left_alone():
    module, callback = Classifier(mlp(8, 16, 12, 3)), watch()
    module.memory = [torch.randn(8, 8) for _ in range(3)]
    module.register_buffer("centre", torch.randn(3))
    callback.shadow = lambda: [*module.memory, module.centre]

    fit(module, callback)

    assert_all_equal(callback.after, callback.before)


def test_a_frozen_layer_is_no_shadow_of_a_trained_one():
    module, callback = Classifier(mlp(8, 16, 12, 3)), watch()
    module.other = nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16)).requires_grad_(False)
    callback.shadow = lambda: list(module.other.parameters())

    fit(module, callback)

    assert_all_equal(callback.after, callback.before)


@pytest.mark.parametrize("kind", ["list", "buffers", "hidden module"])
@pytest.mark.slow
def test_a_failed_event_leaves_shadows_as_they_were(kind):
    module, callback = Shadowed(*KINDS[kind]), watch()
    callback.shadow, callback.failing = partial(module.shadow, module), True

    with pytest.raises(RuntimeError, match="no"):
        fit(module, callback)

    assert callback.after[0].shape != callback.before[0].shape
    assert_all_equal(callback.shadow(), callback.before)


@pytest.mark.filterwarnings("ignore:The pruning event of")
@pytest.mark.parametrize("kind", ["list", "hidden module", "callback"])
@pytest.mark.slow
def test_an_event_that_is_taken_back_takes_shadows_back(kind):
    if kind == "callback":
        module, average = Classifier(mlp(8, 16, 12, 3)), Average(*IN_CALLBACKS["network"])
    else:
        module, average = Shadowed(*KINDS[kind]), pl.Callback()
    shadow = (lambda: average.shadow(average.average)) if kind == "callback" else partial(module.shadow, module)
    seen: list[list[Tensor]] = []

    class See(pl.Callback):
        def on_train_epoch_start(self, *_: Any) -> None:
            seen.append([one.clone() for one in shadow()])

    # As good as it is wide.
    module.validation_step = lambda batch, batch_idx: module.log("val_acc", module.net[0].out_features / 16)
    pruning = Pruning(max_drop=0.01, recover_epochs=1, monitor="val_acc")
    trainer = make_trainer(average, See(), pruning, See(), max_epochs=3)
    trainer.fit(module, make_loader(8), make_loader(8))

    before, after, at_end, restored = seen[2], seen[3], seen[4], seen[5]
    assert after[0].shape != before[0].shape
    assert at_end[0].shape == after[0].shape
    assert_all_equal(restored, before)


@pytest.mark.filterwarnings("ignore:Training (has|ended)")
@pytest.mark.parametrize("kind", ["list", "hidden module", "buffers"])
@pytest.mark.slow
def test_a_resumed_run_has_shadows_of_the_right_size(kind, tmp_path):
    """A list is in no checkpoint: it starts anew, as it would in the unpruned run."""
    first = Shadowed(*KINDS[kind])
    fit(first, Pruning(), max_steps=8).save_checkpoint(tmp_path / "pruned.ckpt")
    second, seen = Shadowed(*KINDS[kind]), []

    class See(pl.Callback):
        def on_train_start(self, *_: Any) -> None:
            seen.extend(one.clone() for one in second.shadow(second))

    def resume() -> None:
        make_trainer(Pruning(), See(), max_epochs=4).fit(second, make_loader(8), ckpt_path=tmp_path / "pruned.ckpt")

    if kind == "buffers":
        resume()
        assert_all_equal(seen, first.shadow(first))
    else:
        with pytest.warns(UserWarning, match="They start anew: averages from the weights of the checkpoint"):
            resume()
        assert_all_equal(seen, clones(first.net))
    assert [one.shape for one in second.shadow(second)] == [one.shape for one in second.net.parameters()]


def test_a_teacher_in_a_callback_is_not_overwritten(tmp_path):
    class Teacher(pl.Callback):
        def __init__(self) -> None:
            self.teacher = mlp(8, 16, 12, 3)

    fit(Classifier(mlp(8, 16, 12, 3)), Pruning()).save_checkpoint(tmp_path / "pruned.ckpt")
    teacher = Teacher()
    before = clones(teacher.teacher)
    trainer = make_trainer(Pruning(), teacher, max_epochs=3)
    trainer.fit(Classifier(mlp(8, 16, 12, 3)), make_loader(8), ckpt_path=tmp_path / "pruned.ckpt")

    assert_all_equal(clones(teacher.teacher), before)


def test_a_record_of_training_is_left_alone():
    class Record(pl.Callback):
        def __init__(self) -> None:
            self.states: list[dict[str, Tensor]] = []

        def on_train_batch_end(self, trainer: Any, pl_module: Any, *_: Any) -> None:
            self.states.append(copy.deepcopy(pl_module.state_dict()))

    record = Record()
    fit(Classifier(mlp(8, 16, 3)), record, Pruning())

    assert [len(state["net.0.bias"]) == 16 for state in record.states] == [True] * 4 + [False] * 4


class Flat(Classifier):
    """An average of all weights in one vector."""

    def __init__(self) -> None:
        super().__init__(mlp(8, 16, 12, 3))
        self.average = parameters_to_vector(self.parameters()).detach().clone()

    def on_train_batch_end(self, *_: Any) -> None:
        if len(self.average) == sum(one.numel() for one in self.parameters()):
            self.average.lerp_(parameters_to_vector(self.parameters()).detach(), 0.1)


class AsABuffer(Flat):
    def __init__(self) -> None:
        super().__init__()
        average = self.average
        del self.average
        self.register_buffer("average", average)


class InACallback(pl.Callback):
    def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
        self.kept = {"average": parameters_to_vector(pl_module.parameters()).detach().clone()}


@pytest.mark.parametrize(
    ("module", "callbacks", "name"),
    [(Flat, [], "average"), (AsABuffer, [], "average"), (Classifier, [InACallback()], r"kept\['average'\]")],
)
def test_a_vector_of_all_weights_is_refused_before_anything_is_pruned(module, callbacks, name):
    model = module()
    before = widths(model)
    with pytest.raises(MisconfigurationException, match=f"{name} is a vector of all .* numbers of the module's"):
        fit(model, *callbacks, Pruning())
    assert widths(model) == before


def test_a_vector_of_that_length_may_be_something_else():
    model = Flat()
    model.average.normal_()
    fit(model, Pruning())
    assert widths(model)["net.0"][1] < 16
    model = Flat()
    fit(model, Pruning(copies="none"))
    assert widths(model)["net.0"][1] < 16
