"""Copies of parts of a module that nothing trains: they lose the channels of their originals."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from breadth import thinned
from fitting import assert_same, convnet, count_params, make_loader, make_trainer, mlp, widths
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from lightning_coreset import CoresetPruningCallback
from lightning_coreset.plan import PruningPlan
from lightning_coreset.structure import Copy, Untrained, analyse

Pruning = partial(
    CoresetPruningCallback, pruning_ratio=0.4, schedule="one_shot", start=1, end=1, verbose=False, eval_batches=0
)


class Byol(pl.LightningModule):
    """An online network with a predictor, and an averaged copy of it that the step runs."""

    def __init__(self, net: Callable[[], nn.Module] | None = None, rate: float = 0.1) -> None:
        super().__init__()
        self.target: nn.Module
        self.online = mlp(8, 16, 12, 6) if net is None else net()
        self.predictor, self.rate = mlp(6, 8, 6), rate
        self.make()

    def make(self) -> None:
        self.target = copy.deepcopy(self.online).requires_grad_(False)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        with torch.no_grad():
            wanted = self.target(batch[0] + 0.1 * torch.randn_like(batch[0]))
        return F.mse_loss(self.predictor(self.online(batch[0])), wanted)

    def copies(self) -> list[tuple[nn.Module, nn.Module]]:
        return [(self.target, self.online)]

    @torch.no_grad()
    def on_train_batch_end(self, *_: Any) -> None:
        for target, online in self.copies():
            for one, other in zip(target.state_dict().values(), online.state_dict().values(), strict=True):
                if one.is_floating_point():
                    one.lerp_(other, self.rate)

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), 0.1, momentum=0.9)


class NotRun(Byol):
    """An average that the step does not run."""

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return self.predictor(self.online(batch[0])).square().mean()


class OfAPart(Byol):
    """A copy of the first layers, and one of the whole, neither of them with ``requires_grad=False``."""

    def make(self) -> None:
        self.part, self.target = copy.deepcopy(self.online[:2]), copy.deepcopy(self.online)

    def copies(self) -> list[tuple[nn.Module, nn.Module]]:
        return [(self.part, self.online[:2]), (self.target, self.online)]

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam([*self.online.parameters(), *self.predictor.parameters()], 0.01)


class Averaged(NotRun):
    """torch's own average, in a module of its own."""

    def make(self) -> None:
        self.target = AveragedModel(self.online, multi_avg_fn=get_ema_multi_avg_fn(0.9), use_buffers=True)

    def copies(self) -> list[tuple[nn.Module, nn.Module]]:
        return [(self.target.module, self.online)]

    def on_train_batch_end(self, *_: Any) -> None:
        self.target.update_parameters(self.online)


class OfItself(NotRun):
    """A copy of the whole module inside of it."""

    def make(self) -> None:
        self.target = copy.deepcopy(self)

    def copies(self) -> list[tuple[nn.Module, nn.Module]]:
        return [(self.target.online, self.online), (self.target.predictor, self.predictor)]

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD([*self.online.parameters(), *self.predictor.parameters()], 0.1)


class Foreach(Byol):
    """Averaged with fused operators, as some libraries do."""

    @torch.no_grad()
    def on_train_batch_end(self, *_: Any) -> None:
        targets, online = list(self.target.parameters()), list(self.online.parameters())
        torch._foreach_mul_(targets, 1 - self.rate)
        torch._foreach_add_(targets, online, alpha=self.rate)


class Replaced(Byol):
    """Averaged by new data."""

    def on_train_batch_end(self, *_: Any) -> None:
        for target, online in zip(self.target.parameters(), self.online.parameters(), strict=True):
            target.data = target.data * (1 - self.rate) + online.data * self.rate


class Keep(CoresetPruningCallback):
    """Keeps the copies before and after an event."""

    before: list[dict[str, Tensor]]

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        if not self.plans:
            self.before = [copy.deepcopy(one.state_dict()) for one, _ in pl_module.copies()]
        super().on_train_batch_start(trainer, pl_module, batch, batch_idx)

    def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
        if not self.plans:
            self.before = [copy.deepcopy(one.state_dict()) for one, _ in pl_module.copies()]
        super().on_train_epoch_start(trainer, pl_module)

    def on_prune(self, plan: PruningPlan, trainer: Any, pl_module: Any) -> None:
        self.plan = plan
        self.after = [copy.deepcopy(one.state_dict()) for one, _ in pl_module.copies()]


def fit(module: pl.LightningModule, *callbacks: pl.Callback, shape: tuple[int, ...] = (8,), **options: Any) -> Any:
    trainer = make_trainer(*callbacks, **{"max_epochs": 2, **options})
    trainer.fit(module, make_loader(*shape))
    return trainer


def sliced(module: pl.LightningModule, callback: Keep) -> None:
    """The copies are what the originals' slices make of them, and as large as the originals."""
    changes = {change.name: change for change in callback.plan.changes}
    assert sum(len(change.kept) for change in changes.values())
    names = {id(tensor): name for name, tensor in (*module.named_parameters(), *module.named_buffers())}
    for (mirror, original), before, after in zip(module.copies(), callback.before, callback.after, strict=True):
        assert widths(mirror) == widths(original)
        originals = {**dict(original.named_parameters()), **dict(original.named_buffers())}
        for name, tensor in before.items():
            full = names[id(originals[name])]
            for dim, kept in changes[full].kept.items() if full in changes else ():
                tensor = tensor.index_select(dim, kept)
            assert torch.equal(tensor, after[name]), name


@pytest.mark.parametrize("kind", thinned([Byol, NotRun, OfAPart, Averaged, OfItself, Foreach, Replaced], 3))
def test_a_copy_loses_the_channels_of_its_original(kind):
    module = kind()
    callback = Keep(**{**Pruning.keywords, "method": "magnitude"})

    fit(module, callback)

    assert {group.name for group in callback.plan.groups} - {"online.4"} == {"online.0", "online.2", "predictor.0"}
    sliced(module, callback)


def test_batchnorms_of_a_copy_are_cut_as_well():
    module = Byol(lambda: nn.Sequential(*convnet(), nn.Linear(3, 6)))
    callback = Keep(**{**Pruning.keywords, "method": "magnitude"})

    fit(module, callback, shape=(1, 6, 6))

    assert widths(module.target)["0"][1] < 12
    sliced(module, callback)


@pytest.mark.parametrize("kind", [Byol, NotRun, OfAPart])
@pytest.mark.slow
def test_a_copy_that_equals_its_original_equals_the_pruned_one(kind):
    """Though the plan reweights the original."""
    module, checked = kind(rate=1.0), []

    class Check(CoresetPruningCallback):
        def on_prune(self, plan: PruningPlan, trainer: Any, pl_module: Any) -> None:
            checked.append(any(change.follows for change in plan.changes))
            for one, other in pl_module.copies():
                assert_same(one.state_dict(), other.state_dict())

    fit(module, Check(0.4, start=1, verbose=False, eval_batches=0), max_epochs=4)

    assert checked == [True, True]


def test_a_copy_counts_for_nothing():
    module = Byol()
    counted = count_params(module.online) + count_params(module.predictor)
    macs = 8 * 16 + 16 * 12 + 12 * 6 + 6 * 8 + 8 * 6
    callback = Pruning()

    fit(module, callback)

    (plan,) = callback.plans
    assert (plan.params_original, plan.macs_before) == (counted, macs)
    assert plan.params_after == count_params(module.online) + count_params(module.predictor)


class Critics(pl.LightningModule):
    """Two critics with a target each, all equal at first."""

    def __init__(self) -> None:
        super().__init__()
        self.critic1 = mlp(8, 16, 1)
        self.critic2, self.critic1_target, self.critic2_target = (copy.deepcopy(self.critic1) for _ in range(3))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x = batch[0]
        with torch.no_grad():
            wanted = torch.minimum(self.critic1_target(x), self.critic2_target(x)) + x.sum(1, keepdim=True)
        return F.mse_loss(self.critic1(x), wanted) + F.mse_loss(self.critic2(x[:8]), wanted[:8])

    def copies(self) -> list[tuple[nn.Module, nn.Module]]:
        return [(self.critic1_target, self.critic1), (self.critic2_target, self.critic2)]

    on_train_batch_end = Byol.on_train_batch_end
    rate = 0.05

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam([*self.critic1.parameters(), *self.critic2.parameters()], 0.01)


def test_each_of_two_critics_has_its_own_target():
    module = Critics()
    callback = Keep(**{**Pruning.keywords, "method": "magnitude"})

    fit(module, callback)

    kept = {group.name: group.kept for group in callback.plan.groups}
    assert kept.keys() == {"critic1.0", "critic2.0"}
    assert kept["critic1.0"] != kept["critic2.0"]
    sliced(module, callback)


def test_what_moves_towards_a_part_is_its_copy_even_from_another_start():
    module = Byol()
    module.target = mlp(8, 16, 12, 6).requires_grad_(False)
    callback = Keep(**{**Pruning.keywords, "method": "magnitude"})

    fit(module, callback)

    assert callback._run.progress.untrained.copies == {"target": "online"}
    sliced(module, callback)


def test_what_is_trained_is_no_copy():
    """Two towers that were equal once."""

    class Siamese(Byol):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            return F.mse_loss(self.online(batch[0]), self.target(batch[0] + 1)) + self.online(batch[0]).mean()

        def copies(self) -> list[tuple[nn.Module, nn.Module]]:
            return []

    module = Siamese()
    module.target.requires_grad_(True)
    callback = Pruning()

    fit(module, callback)

    assert not callback._run.progress.untrained.copies
    assert {group.name for group in callback.plans[0].groups} >= {"online.0", "target.0"}


def test_a_copy_that_is_made_later_follows_as_well():
    class Late(NotRun):
        def make(self) -> None:
            pass

        def on_train_epoch_start(self) -> None:
            if self.current_epoch == 2:
                self.target = copy.deepcopy(self.online).requires_grad_(False)

        def copies(self) -> list[tuple[nn.Module, nn.Module]]:
            return [(self.target, self.online)] if hasattr(self, "target") else []

    module = Late()

    fit(module, CoresetPruningCallback(0.5, schedule={1: 0.2, 3: 0.5}, verbose=False, eval_batches=0), max_epochs=5)

    assert widths(module.target) == widths(module.online)
    assert widths(module.online)["0"][1] < 14


def test_where_a_copy_has_another_shape_the_channels_stay():
    module = Byol()
    module.target = nn.Sequential(*copy.deepcopy(module.online)[:4], nn.Linear(12, 7)).requires_grad_(False)
    module.copies = lambda: [(module.target[:4], module.online[:4])]
    module.training_step = partial(NotRun.training_step, module)
    callback = Keep(**{**Pruning.keywords, "pruning_ratio": 0.2, "method": "magnitude"})

    fit(module, callback)

    assert {group.name for group in callback.plan.groups} == {"online.0", "predictor.0"}
    assert "differs in shape between online and its copy target" in callback.plan.skipped["online.2"]
    sliced(module, callback)


# ---- the option


def test_copies_may_be_named():
    module = Byol()
    module.target.load_state_dict(mlp(8, 16, 12, 6).state_dict())
    callback = Keep(**{**Pruning.keywords, "method": "magnitude"}, copies={"target": "online"})

    fit(module, callback)

    sliced(module, callback)


def test_without_copies_what_looks_like_one_is_frozen():
    class Distilled(Byol):
        def copies(self) -> list[tuple[nn.Module, nn.Module]]:
            return []

    module = Distilled()
    before = copy.deepcopy(module.target.state_dict())
    callback = Pruning(copies="none")

    fit(module, callback)

    assert_same(module.target.state_dict(), before)
    assert "is frozen" in callback.plans[0].skipped["target.0"]


@pytest.mark.parametrize(
    ("copies", "message"),
    [
        ("all", "copies to be 'find', 'none' or a mapping"),
        ({"target": nn.Linear(2, 2)}, "copies to be 'find', 'none' or a mapping"),
        ({"teacher": "online"}, "copies to name modules but got 'teacher'"),
        ({"target": "target"}, "a copy and its original but got 'target' for both"),
        ({"target": "predictor"}, "'target' to be a copy of 'predictor' but its '0.weight' has shape"),
    ],
)
def test_copies_are_checked(copies, message):
    with pytest.raises(ValueError, match=message):
        fit(Byol(), Pruning(copies=copies))


def test_ignoring_a_copy_holds_its_original():
    module = Byol()
    callback = Pruning(ignore=["target.0"])

    fit(module, callback)

    assert callback.plans[0].skipped["online.0"] == "is ignored by 'target.0'"
    assert widths(module.target) == widths(module.online)


# ---- undone, and resumed


def test_a_failed_event_leaves_copies_as_they_were():
    module, before = Byol(), {}

    class Fails(CoresetPruningCallback):
        def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
            before.update(copy.deepcopy(pl_module.state_dict()))
            super().on_train_epoch_start(trainer, pl_module)

        def on_prune(self, plan: PruningPlan, trainer: Any, pl_module: Any) -> None:
            raise RuntimeError("no")

    with pytest.raises(RuntimeError, match="no"):
        fit(module, Fails(0.4, start=1, verbose=False, eval_batches=0))

    assert_same(module.state_dict(), before)
    assert widths(module.target)["0"] == (8, 16)


@pytest.mark.filterwarnings("ignore:Training (has|ended)")
@pytest.mark.slow
def test_a_run_with_a_copy_resumes_as_it_was(tmp_path):
    def callback() -> CoresetPruningCallback:
        return CoresetPruningCallback(0.5, schedule={1: 0.2, 3: 0.5}, verbose=False, eval_batches=0)

    torch.manual_seed(0)
    start = Byol().state_dict()

    def module() -> Byol:
        made = Byol()
        made.load_state_dict(start)
        made.training_step = partial(NotRun.training_step, made)  # without chance
        return made

    whole, first, second = module(), module(), module()
    fit(whole, callback(), max_epochs=5)
    fit(first, callback(), max_epochs=5, max_steps=8).save_checkpoint(tmp_path / "middle.ckpt")
    resumed = callback()
    trainer = make_trainer(resumed, max_epochs=5)
    trainer.fit(second, make_loader(8), ckpt_path=tmp_path / "middle.ckpt")

    assert_same(second.state_dict(), whole.state_dict())
    assert resumed._run.progress.untrained.copies == {"target": "online"}


# ---- updated in the step


def _foreach(targets: list[Tensor], online: list[Tensor]) -> None:
    torch._foreach_mul_(targets, 0.9)
    torch._foreach_add_(targets, online, alpha=0.1)


def _foreach_difference(targets: list[Tensor], online: list[Tensor]) -> None:
    torch._foreach_add_(targets, torch._foreach_mul(torch._foreach_sub(online, targets), torch.tensor(0.1)))


def _each(update: Callable[[Tensor, Tensor], Any]) -> Callable[[list[Tensor], list[Tensor]], None]:
    def run(targets: list[Tensor], online: list[Tensor]) -> None:
        for target, own in zip(targets, online, strict=True):
            update(target, own)

    return run


def _replace(target: Tensor, own: Tensor) -> None:
    target.data = 0.9 * target.data + 0.1 * own.data


UPDATES = {
    "foreach": _foreach,
    "foreach difference": _foreach_difference,
    "foreach lerp": lambda targets, online: torch._foreach_lerp_(targets, online, 0.1),
    "foreach copy": torch._foreach_copy_,
    "mul and add": _each(lambda target, own: target.mul_(0.9).add_(own, alpha=0.1)),
    "copy": _each(lambda target, own: target.copy_(0.9 * target + 0.1 * own)),
    "data": _each(lambda target, own: target.data.mul_(0.9).add_(own.data, alpha=0.1)),
    "new data": _each(_replace),
}


class Updating(nn.Module):
    """Averages its copy before it runs it."""

    def __init__(self, update: Callable[[list[Tensor], list[Tensor]], None]) -> None:
        super().__init__()
        self.online, self.update = mlp(4, 6, 3), update
        self.target = copy.deepcopy(self.online).requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            self.update(list(self.target.parameters()), list(self.online.parameters()))
            wanted = self.target(x)
        return (self.online(x) - wanted).square()


@pytest.mark.parametrize("update", UPDATES)
def test_averages_in_the_step_are_followed(update):
    """They couple what they average; a known copy remains the same layer with other values."""
    model = Updating(UPDATES[update])
    untrained = Untrained((Copy.of_module(model, "target", "online"),))

    (group,) = analyse(model, torch.randn(2, 4), untrained=untrained).groups
    coupled = analyse(model, torch.randn(2, 4)).groups

    assert [member.name for member in group.members] == ["online.0.weight", "online.0.bias", "online.2.weight"]
    assert [len(path.steps) for path in group.paths] == [1]
    assert {member.name for member in group.with_copies.members} >= {"target.0.weight", "target.2.weight"}
    for one in coupled if update != "new data" else ():  # of which no operation writes into the parameter
        assert {member.name for member in one.members} == {member.name for member in group.with_copies.members}


class AssignsData(pl.LightningModule):
    """Updates its momentum encoder in the step by assigning to ``data``, as MoCo's own code does."""

    def __init__(self) -> None:
        super().__init__()
        self.online = mlp(8, 16, 12, 3)
        self.target = copy.deepcopy(self.online).requires_grad_(False)

    def training_step(self, batch, batch_idx):
        for own, average in zip(self.online.parameters(), self.target.parameters(), strict=True):
            average.data = average.data * 0.9 + own.data * 0.1
        return (self.online(batch[0]) - self.target(batch[0])).square().mean()

    def configure_optimizers(self):
        return torch.optim.SGD(self.online.parameters(), 0.01)


def test_an_average_that_is_assigned_to_data_in_the_step():
    module = AssignsData()
    make_trainer(CoresetPruningCallback(0.5, schedule={1: 0.5}, verbose=False), max_epochs=2).fit(
        module, make_loader(8)
    )
    assert module.online[0].out_features < 16
    shapes = [[tuple(one.shape) for one in part.parameters()] for part in (module.online, module.target)]
    assert shapes[0] == shapes[1]
