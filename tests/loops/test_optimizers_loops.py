"""Optimizers as people write them, in training with an event."""

import warnings
from functools import partial

import pytest
import torch
from fitting import Classifier, count_params, make_loader, make_trainer, mlp
from torch import nn

from lightning_coreset import CoresetPruningCallback, prune

HALF = torch.tensor(0.5)
LOADER = make_loader(8, samples=32, batch_size=8)


class Trained(Classifier):
    def __init__(self, build, net=None):
        super().__init__(net)
        self.build = build

    def configure_optimizers(self):
        return self.build(list(self.parameters()))


def pruning(**options):
    return CoresetPruningCallback(**({"schedule": {1: 0.5}, "verbose": False, "eval_batches": 0} | options))


def fit(module, *callbacks, epochs=2, **options):
    trainer = make_trainer(*callbacks, max_epochs=epochs, **options)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trainer.fit(module, LOADER)
    return trainer, [str(each.message) for each in caught if "could not be pruned" in str(each.message)]


class Quantized(torch.Tensor):
    """State of a class of its own, which has few operations, as of 8-bit optimizers."""

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        if func is torch.Tensor.index_select:
            raise NotImplementedError("index_select")
        return super().__torch_function__(func, types, args, kwargs or {})


class Own(torch.optim.Optimizer):
    """An optimizer that keeps what a function makes."""

    def __init__(self, params, update):
        super().__init__(params, {})
        self.update = update

    @torch.no_grad()
    def step(self, closure=None):
        loss = torch.enable_grad()(closure)()
        for parameter in self.param_groups[0]["params"]:
            self.update(self.state[parameter], parameter)
        return loss


def quantized(state, parameter):
    momentum = state.setdefault("m", torch.zeros_like(parameter).as_subclass(Quantized))
    momentum.mul_(0.9).add_(parameter.grad)
    parameter.sub_(0.01 * momentum.as_subclass(torch.Tensor))


def preconditioned(state, parameter):
    gradient = parameter.grad.flatten(1) if parameter.dim() > 1 else parameter.grad[:, None]
    rows = state.setdefault("rows", torch.eye(len(parameter)))
    rows.add_(gradient @ gradient.t())
    torch.testing.assert_close(rows, rows.t())
    parameter.sub_(0.01 * (torch.linalg.inv(rows) @ gradient).reshape(parameter.shape))


@pytest.mark.parametrize("update", [quantized, preconditioned])
@pytest.mark.parametrize("widths", [(8, 32, 32, 3), (8, 8, 8)], ids=["one square", "all square"])
def test_state_that_cannot_be_cut_starts_anew_with_one_warning(update, widths):
    module = Trained(partial(Own, update=update), mlp(*widths))
    original = count_params(module)

    trainer, told = fit(module, pruning(schedule={1: 0.3}))

    assert len(told) == 1
    assert count_params(module) < original
    state = trainer.optimizers[0].state
    assert all(state[p][key].shape[0] == p.shape[0] for p in module.parameters() for key in state[p])


@pytest.mark.slow  # compiles its step
def test_torchao_starts_anew_with_one_warning():
    optim = pytest.importorskip("torchao.optim")
    module = Trained(optim.AdamW8bit, mlp(8, 512, 64, 3))
    trainer, _ = fit(module, epochs=1, max_steps=1)
    quantized = [type(value) for state in trainer.optimizers[0].state.values() for value in state.values()]
    assert any("8bit" in kind.__name__ for kind in quantized), "nothing is quantized"

    module = Trained(optim.AdamW8bit, mlp(8, 512, 64, 3))
    _, told = fit(module, pruning(), limit_train_batches=1)

    assert len(told) == 1
    assert "net.2.weight" in told[0]


class Sharp(torch.optim.Optimizer):
    """SAM, by the usual recipe."""

    def __init__(self, params, name="base_optimizer", wrap=lambda optimizer: optimizer):
        super().__init__(params, {"lr": 1e-2})
        self.inner = torch.optim.Adam(self.param_groups, 1e-2)
        vars(self)[name] = wrap(vars(self).pop("inner"))
        self.base = [self.__dict__[name]]
        self.param_groups = self._unwrapped().param_groups

    def _unwrapped(self):
        held = self.base[0]
        while not isinstance(held, torch.optim.Optimizer):
            held = next(iter(held.values())) if isinstance(held, dict) else held[0]
        return held

    @torch.no_grad()
    def step(self, closure=None):
        closure = torch.enable_grad()(closure)
        loss = closure()
        for group in self.param_groups:
            for p in group["params"]:
                self.state[p]["old_p"] = p.data.clone()
                p.add_(0.01 * p.grad)
        closure()
        for group in self.param_groups:
            for p in group["params"]:
                p.data = self.state[p]["old_p"]
        self._unwrapped().step()
        return loss


@pytest.mark.parametrize(
    "wrap", [lambda held: held, lambda held: [held], lambda held: {"all": (held,)}], ids=["plain", "list", "nested"]
)
@pytest.mark.parametrize("name", ["base_optimizer", "anything"])
def test_inner_optimizers_are_found_by_what_they_are(name, wrap):
    module = Trained(partial(Sharp, name=name, wrap=wrap))

    trainer, told = fit(module, pruning())

    assert told == []
    inner = trainer.optimizers[0]._unwrapped()
    assert all(inner.state[p]["exp_avg"].shape == p.shape for p in module.parameters())
    assert all(inner.state[p]["step"] == 8 for p in module.parameters())  # went on counting


class SlowInList(torch.optim.Adam):
    """Keeps slow weights in a list, as Lookahead does, and other numbers where it likes."""

    def __init__(self, params):
        super().__init__(params, 1e-2)
        self.slow = [p.detach().clone() for group in self.param_groups for p in group["params"]]
        self.by_parameter = {p: torch.zeros_like(p) for group in self.param_groups for p in group["params"]}
        self.by_name = {"constants": torch.tensor([3.4445, -4.775, 2.0315])}

    def step(self, closure=None):
        loss = super().step(closure)
        with torch.no_grad():
            for p, slow in zip(self.param_groups[0]["params"], self.slow, strict=True):
                self.by_parameter[p].add_(p)
                slow.lerp_(p, 0.5)
        return loss


def test_tensors_in_lists_and_dicts_are_cut_as_well_and_come_back():
    module = Trained(SlowInList)
    trainer, told = fit(module, pruning())

    optimizer = trainer.optimizers[0]
    assert told == []
    assert [each.shape for each in optimizer.slow] == [p.shape for p in module.parameters()]
    assert all(optimizer.by_parameter[p].shape == p.shape for p in module.parameters())
    assert len(optimizer.by_name["constants"]) == 3


class Fails(CoresetPruningCallback):
    def on_prune(self, plan, trainer, pl_module):
        raise RuntimeError("no")


def test_a_failed_event_gives_the_lists_back():
    module = Trained(SlowInList)
    trainer = make_trainer(Fails(schedule={1: 0.5}, verbose=False, eval_batches=0), max_epochs=2)
    with pytest.raises(RuntimeError, match="no"):
        trainer.fit(module, LOADER)
    optimizer = trainer.optimizers[0]
    assert [each.shape for each in optimizer.slow] == [p.shape for p in module.parameters()]


class Averaged(torch.optim.Adam):
    """Keeps averaged weights in its state, as ASGD, schedule-free optimizers and Lookahead do."""

    def step(self, closure=None):
        loss = super().step(closure)
        with torch.no_grad():
            for p in self.param_groups[0]["params"]:
                self.state[p].setdefault("z", p.clone()).lerp_(p, 0.5)
        return loss


@pytest.mark.parametrize(
    ("build", "read"),
    [
        (Averaged, lambda optimizer, p: optimizer.state[p]["z"]),
        (lambda params: torch.optim.ASGD(params, 1e-2, t0=4), lambda optimizer, p: optimizer.state[p]["ax"]),
        (
            SlowInList,
            lambda optimizer, p: optimizer.slow[[q is p for q in optimizer.param_groups[0]["params"]].index(True)],
        ),
    ],
    ids=["state", "ASGD", "list"],
)
def test_slow_weights_move_with_the_weights(build, read):
    seen = {}

    def look(optimizer, module):
        return {n: (p.detach().clone(), read(optimizer, p).clone()) for n, p in module.named_parameters()}

    class Looks(CoresetPruningCallback):
        def on_train_epoch_start(self, trainer, pl_module):
            if trainer.current_epoch == 1:
                seen["before"] = look(trainer.optimizers[0], pl_module)
            super().on_train_epoch_start(trainer, pl_module)

        def on_prune(self, plan, trainer, pl_module):
            seen["after"], seen["plan"] = look(trainer.optimizers[0], pl_module), plan

    fit(Trained(build), Looks(schedule={1: 0.5}, verbose=False, eval_batches=0))

    moved = 0
    for change in seen["plan"].changes:
        (old, old_slow), (new, new_slow) = seen["before"][change.name], seen["after"][change.name]
        distance = old_slow - old
        for dim, kept in change.kept.items():
            distance, old = distance.index_select(dim, kept), old.index_select(dim, kept)
        torch.testing.assert_close(new_slow - new, distance, rtol=0, atol=1e-6)
        moved += not torch.equal(new, old)
    assert moved, "nothing was reweighted"


class Prepared(torch.optim.Optimizer):
    """Makes its state with its parameter groups, with a matrix that cannot be cut."""

    def add_param_group(self, group):
        super().add_param_group(group)
        for p in self.param_groups[-1]["params"]:
            self.state[p]["rows"] = torch.eye(len(p))

    @torch.no_grad()
    def step(self, closure=None):
        loss = torch.enable_grad()(closure)()
        for p in self.param_groups[0]["params"]:
            gradient = p.grad if p.dim() > 1 else p.grad[:, None]
            p.sub_(0.01 * (self.state[p]["rows"] @ gradient).reshape(p.shape))
        return loss


def test_state_that_is_made_with_the_groups_is_made_again():
    module = Trained(partial(Prepared, defaults={}))
    trainer, told = fit(module, pruning())
    assert len(told) == 1
    assert all(trainer.optimizers[0].state[p]["rows"].shape == (len(p), len(p)) for p in module.parameters())


class Flat(torch.optim.SGD):
    """Keeps its momentum in one vector."""

    def __init__(self, params):
        super().__init__(params, 1e-2)
        self.flat = torch.zeros(sum(map(torch.numel, params)))


def flat_parameters(params):
    vector = nn.Parameter(torch.cat([p.detach().flatten() for p in params]))
    for p, part in zip(params, vector.detach().split([p.numel() for p in params]), strict=True):
        p.data = part.view_as(p)
    return torch.optim.SGD([vector], 1e-2)


def copies(params):
    return torch.optim.SGD([nn.Parameter(p.detach().clone()) for p in params], 1e-2)


@pytest.mark.parametrize(
    ("build", "why"),
    [
        (Flat, "`flat` of shape .* the elements of all"),
        (flat_parameters, "the model's own"),
        (copies, "the model's own"),
    ],
)
def test_what_cannot_follow_is_refused_before_anything_is_changed(build, why):
    module = Trained(build)
    original = count_params(module)
    with pytest.raises(ValueError, match=why):
        fit(module, pruning())
    assert count_params(module) == original


class InBackward(Classifier):
    """Steps every parameter within the backward pass, with an optimizer of its own that the Trainer never sees."""

    def __init__(self, net=None):
        super().__init__(net)
        self.automatic_optimization = False

    def on_fit_start(self):
        optimizers = {p: torch.optim.Adam([p], 1e-2) for p in self.parameters()}
        self.kept = lambda p: optimizers[p]

        def hook(parameter):
            optimizers[parameter].step()
            optimizers[parameter].zero_grad()

        for parameter in self.parameters():
            parameter.register_post_accumulate_grad_hook(hook)

    def training_step(self, batch, batch_idx):
        x, y = batch
        self.manual_backward(nn.functional.cross_entropy(self(x), y))

    def configure_optimizers(self):
        return None


def test_optimizers_in_the_backward_pass_are_found():
    module = InBackward()
    original = count_params(module)
    fit(module, pruning())
    assert count_params(module) < original
    assert all(module.kept(p).state[p]["exp_avg"].shape == p.shape for p in module.parameters())
    assert all(module.kept(p).state[p]["step"] == 8 for p in module.parameters())


class Masked(Classifier):
    """Masks gradients in hooks, as for lottery tickets; the masks are kept where nothing finds them by itself."""

    def __init__(self, way):
        super().__init__()
        masks = {name: torch.ones_like(p) for name, p in self.named_parameters()}
        for name, p in self.named_parameters():
            p.register_hook(way(masks, name))


WAYS = {
    "closure": lambda masks, name: lambda g, mask=masks[name]: g * mask,
    "partial": lambda masks, name: partial(torch.mul, masks[name]),
    "container": lambda masks, name: lambda g: g * masks[name],
}


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
def test_masks_of_gradients_are_refused_and_the_event_is_undone(way):
    module = Masked(way)
    original = count_params(module)
    with pytest.raises(ValueError, match=r"gradient of 'net\.\d\.(weight|bias)'.*which uses a tensor of shape"):
        fit(module, pruning())
    assert count_params(module) == original


def test_masks_that_on_prune_cuts_and_hooks_that_fit_any_shape_are_fine():
    module = Classifier()
    masks = {name: torch.ones_like(p) for name, p in module.named_parameters()}

    class Cuts(CoresetPruningCallback):
        def on_prune(self, plan, trainer, pl_module):
            for change in plan.changes:
                for dim, kept in change.kept.items():
                    masks[change.name] = masks[change.name].index_select(dim, kept)

    for name, p in module.named_parameters():
        p.register_hook(lambda gradient, name=name: gradient * masks[name])
        p.register_hook(lambda gradient, p=p: gradient * (p != 0))
        p.register_hook(lambda gradient: gradient * HALF)
    original = count_params(module)
    fit(module, Cuts(schedule={1: 0.5}, verbose=False, eval_batches=0))
    assert count_params(module) < original


def test_masks_that_the_module_keeps_are_cut():
    module = Classifier()
    module.masks = {name: torch.ones_like(p) for name, p in module.named_parameters()}
    for name, p in module.named_parameters():
        p.register_hook(lambda g, name=name: g * module.masks[name])
    original = count_params(module)
    fit(module, pruning())
    assert count_params(module) < original
    assert {name: mask.shape for name, mask in module.masks.items()} == {
        n: p.shape for n, p in module.named_parameters()
    }


def test_the_guard_gives_back_what_optimizers_keep_elsewhere():
    class Validated(Trained):
        def validation_step(self, batch, batch_idx):
            self.log("val_acc", 1.0 if count_params(self) == 1155 else 0.0)

    module = Validated(SlowInList)
    assert count_params(module) == 1155
    callback = pruning(monitor="val_acc", max_drop=0.1, recover_epochs=1, eval_batches=1)
    trainer = make_trainer(callback, max_epochs=4)
    with pytest.warns(UserWarning, match="is taken back"):
        trainer.fit(module, LOADER, LOADER)
    optimizer = trainer.optimizers[0]
    assert count_params(module) == 1155
    assert [each.shape for each in optimizer.slow] == [p.shape for p in module.parameters()]
    assert all(torch.isfinite(each).all() for each in optimizer.slow)


# ---- optimizers that the Trainer does not know


class LowRank(torch.optim.Optimizer):
    """Keeps its momentum of matrices in a space of rank 2, as GaLore does."""

    def __init__(self, params, lr=1e-2):
        super().__init__(params, {"lr": lr})

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for parameter in group["params"]:
                state, is_low = self.state[parameter], parameter.dim() == 2
                if not state and is_low:
                    state["projection"] = torch.randn(2, parameter.shape[0])
                grad = state["projection"] @ parameter.grad if is_low else parameter.grad
                momentum = state.setdefault("exp_avg", torch.zeros_like(grad)).lerp_(grad, 0.1)
                parameter.sub_((state["projection"].T @ momentum if is_low else momentum) * group["lr"])


class StepsItself(Classifier):
    """Keeps its optimizer to itself."""

    def __init__(self, build, scores=()):
        super().__init__()
        self.automatic_optimization = False
        self.own = [build(self.net.parameters())]
        self.scores = scores

    def configure_optimizers(self):
        return None

    def training_step(self, batch, batch_idx):
        self.own[0].zero_grad()
        super().training_step(batch, batch_idx).backward()
        self.own[0].step()

    def validation_step(self, batch, batch_idx):
        self.log("score", self.scores[self.current_epoch])


@pytest.mark.filterwarnings("ignore:.*configure_optimizers` returned `None`")
@pytest.mark.parametrize(("scores", "events"), [((1, 0, 0), {1: 0.3}), ((1, 1, 0, 0), {1: 0.2, 2: 0.4})], ids=str)
@pytest.mark.parametrize("build", [torch.optim.Adam, LowRank])
def test_an_optimizer_that_the_module_steps_itself_is_taken_back_as_well(build, scores, events):
    module = StepsItself(build, scores)
    callback = pruning(schedule=events, monitor="score", max_drop=0.1, recover_epochs=1)
    trainer = make_trainer(callback, max_epochs=len(scores))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trainer.fit(module, LOADER, LOADER)

    assert [record.reverted for record in callback.history] == [False] * (len(events) - 1) + [True]
    assert any("is taken back" in str(each.message) for each in caught)
    if build is torch.optim.Adam:
        state = module.own[0].state
        assert all(state[parameter]["exp_avg"].shape == parameter.shape for parameter in module.parameters())


def test_an_optimizer_of_a_run_before_is_let_alone():
    module = Trained(partial(torch.optim.Adam, lr=1e-2), mlp(8, 32, 3).requires_grad_())
    for layer in (module.net[0], module.net[2]):
        layer.bias = None  # then no state has the shape of its parameter
    first, _ = fit(module, epochs=1)
    prune(module.net, torch.randn(4, 8), pruning_ratio=0.2)

    _, warned = fit(module, pruning(schedule={1: 0.4}))

    assert not warned
    [weight, *_] = first.optimizers[0].state.values()
    assert weight["exp_avg"].shape == (32, 8)
