"""What runs on the CPU runs on a GPU, and comes to the same.

On a machine with a GPU: ``pytest -m gpu tests/test_gpu.py``. In float64 a run there has to equal the run on the CPU,
event by event and weight by weight. Where no GPU is at hand most tests can take the CPU in its place, so that they
themselves are known to be right; those that are tested on the CPU elsewhere are then marked slow.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from fitting import Classifier, Validated, Watcher, convnet, make_loader, make_trainer, mlp, widths
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import callbacks
from lightning.pytorch.plugins.precision import MixedPrecision
from lightning.pytorch.strategies import DDPStrategy
from networks import NETWORKS, make
from torch import Tensor, nn
from torch.distributed.algorithms.ddp_comm_hooks import default_hooks
from torch.distributed.algorithms.ddp_comm_hooks.powerSGD_hook import PowerSGDState, powerSGD_hook

from lightning_coreset import CoresetPruningCallback, prune
from lightning_coreset.training.requirements import check_not_captured

EVENTS = {1: 0.3, 2: 0.5}
Pruning = partial(CoresetPruningCallback, schedule=EVENTS, verbose=False)
ON_GPU = pytest.param("cuda", marks=pytest.mark.gpu)


@pytest.fixture(params=["cpu", ON_GPU])
def device(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(params=[pytest.param("cpu", marks=pytest.mark.slow), ON_GPU])
def gpu_or_slow(request: pytest.FixtureRequest) -> str:
    return request.param


def named(name: str) -> str:
    """What a name in a compiled network is in the network itself."""
    return name.replace("_orig_mod.", "")


def chosen(plans: list[Any]) -> list[Any]:
    """What the plans keep; errors are rounded differently on every device."""
    return [[(named(group.name), group.kept, group.method) for group in plan.groups] for plan in plans]


def on_cpu(weights: list[dict[str, Tensor]]) -> list[dict[str, Tensor]]:
    """Weights after every step, under the names of the network itself."""
    return [{named(name): tensor.cpu() for name, tensor in each.items()} for each in weights]


def fit(
    device: str,
    module: pl.LightningModule,
    *others: pl.Callback,
    shape: tuple[int, ...] = (8,),
    ckpt_path: Any = None,
    **options: Any,
) -> pl.Trainer:
    """Train for three epochs of four steps."""
    accelerator = "gpu" if device == "cuda" else device
    trainer = make_trainer(*others, **{"max_epochs": 3, "accelerator": accelerator} | options)
    trainer.fit(module, *[make_loader(*shape)] * (2 if isinstance(module, Validated) else 1), ckpt_path=ckpt_path)
    return trainer


# ---- without a Trainer


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("method", ["reconstruction", "sensitivity"])
def test_prune_does_what_it_does_on_the_cpu(name, method, gpu_or_slow):
    model, x = make(name)
    there = copy.deepcopy(model).to(gpu_or_slow)
    # CUDA's hardswish multiplies by a sixth in single precision, in float64 as well.
    rounding = float((there(x.to(gpu_or_slow)).cpu() - model(x)).detach().abs().max())

    ours, theirs = (prune(m, x.to(d), 0.3, method=method) for m, d in ((model, "cpu"), (there, gpu_or_slow)))

    assert chosen([theirs]) == chosen([ours])
    assert {tensor.device.type for tensor in there.state_dict().values()} == {gpu_or_slow}
    torch.testing.assert_close(there(x.to(gpu_or_slow)).cpu(), model(x), rtol=1e-9, atol=1e-9 + 10 * rounding)


def test_certificates_are_those_of_the_cpu(device):
    model, x = make("mlp")
    there = copy.deepcopy(model).to(device)

    ours, theirs = (prune(m, x.to(d), 0.3, certify=True) for m, d in ((model, "cpu"), (there, device)))

    for group, expected in zip(theirs.groups, ours.groups, strict=True):
        assert group.certified_error == pytest.approx(expected.certified_error)
        assert 0 < group.found_error <= group.certified_error


# ---- in training, in float64


class Chosen(Validated):
    """A classifier with an optimizer of choice."""

    def __init__(self, optimizer: Callable[..., Any], net: nn.Module | None = None) -> None:
        super().__init__(net)
        self.optimizer = optimizer

    def configure_optimizers(self) -> Any:
        return self.optimizer(self.parameters())


ADAM = partial(torch.optim.Adam, lr=1e-2)
MLP = partial(mlp, 8, 32, 24, 3)


@dataclass(frozen=True)
class Scenario:
    """How to train."""

    net: Callable[[], nn.Module] = MLP
    optimizer: Callable[..., Any] = ADAM
    pruning: Mapping[str, Any] = field(default_factory=dict)
    others: Callable[[], list[pl.Callback]] = list
    options: Mapping[str, Any] = field(default_factory=dict)
    memory_format: torch.memory_format = torch.contiguous_format


def ema() -> list[pl.Callback]:
    kind = getattr(callbacks, "EMAWeightAveraging", None)
    if kind is None:
        pytest.skip("this Lightning has no EMAWeightAveraging yet")
    return [kind(decay=0.5)]


SCENARIOS = {
    "plain": Scenario(),
    "convolutions": Scenario(convnet),
    "channels_last": Scenario(convnet, memory_format=torch.channels_last),
    "fused": Scenario(optimizer=partial(ADAM, fused=True, amsgrad=True)),
    "foreach": Scenario(optimizer=partial(ADAM, foreach=True)),
    "fused sgd": Scenario(optimizer=partial(torch.optim.SGD, lr=0.1, momentum=0.9, fused=True)),
    "accumulating": Scenario(options={"accumulate_grad_batches": 2, "gradient_clip_val": 0.5}),
    "bottom_up": Scenario(pruning={"order": "bottom_up", "method": "sensitivity"}),
    "certified": Scenario(pruning={"certify": True}),
    "by steps": Scenario(pruning={"schedule": {3: 0.3, 6: 0.5}, "interval": "step"}),
    "averaged": Scenario(others=ema),
    "recalibrated": Scenario(convnet, pruning={"recalibrate_batches": 2}),
    "guarded": Scenario(pruning={"max_drop": 0.0, "recover_epochs": 1}),
}


def run(scenario: Scenario, device: str) -> tuple[Chosen, list[dict[str, Tensor]], list[Any]]:
    """Train; the module, its weights after every step and at the end, and what every event kept."""
    torch.manual_seed(0)
    module = Chosen(scenario.optimizer, scenario.net()).to(memory_format=scenario.memory_format)
    pruning, watcher = Pruning(**scenario.pruning), Watcher()
    shape = (1, 6, 6) if scenario.net is convnet else (8,)
    fit(device, module, pruning, watcher, *scenario.others(), shape=shape, precision="64-true", **scenario.options)
    return module, on_cpu([*watcher.weights, module.state_dict()]), chosen(pruning.plans)


def check(scenario: Scenario, device: str, like: Scenario, tolerance: float = 1e-8) -> None:
    """A run equals another one on the CPU."""
    module, weights, kept = run(scenario, device)
    _, expected, expected_kept = run(like, "cpu")

    assert kept == expected_kept
    assert len(weights) == 13
    torch.testing.assert_close(weights, expected, rtol=0, atol=tolerance)
    assert min(len(each["net.0.bias"]) for each in weights) < len(weights[0]["net.0.bias"])
    kernels = [each for each in module.parameters() if each.dim() == 4 and min(each.shape[:2]) > 1]
    assert all(kernel.is_contiguous(memory_format=scenario.memory_format) for kernel in kernels)


@pytest.mark.parametrize("name", SCENARIOS)
def test_a_run_is_that_of_the_cpu(name, gpu_or_slow):
    check(SCENARIOS[name], gpu_or_slow, like=SCENARIOS[name])


@pytest.mark.gpu
def test_a_capturable_optimizer_goes_on():
    def adam(parameters: Any) -> torch.optim.Optimizer:
        return torch.optim.Adam(parameters, lr=torch.tensor(1e-2, dtype=torch.float64, device="cuda"), capturable=True)

    # Its number of steps is a tensor in single precision, of which it takes powers.
    check(Scenario(optimizer=adam), "cuda", like=Scenario(), tolerance=1e-6)


class Saver(pl.Callback):
    """Saves a checkpoint after the first event."""

    def __init__(self, path: Any) -> None:
        self.path = path

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.current_epoch == 1:
            trainer.save_checkpoint(self.path)


@pytest.mark.parametrize("saved_on", ["cpu", ON_GPU])
def test_a_run_resumes_wherever_its_checkpoint_was_made(saved_on, device, tmp_path):
    watchers, modules = [Watcher(), Watcher()], []
    for where, watcher, resume in ((saved_on, watchers[0], None), (device, watchers[1], tmp_path / "1.ckpt")):
        torch.manual_seed(0)
        modules.append(Classifier().double())  # Lightning loads a checkpoint before it converts the module
        others = [Saver(tmp_path / "1.ckpt")] if resume is None else []
        fit(where, modules[-1], Pruning(), watcher, *others, precision="64-true", ckpt_path=resume)

    assert widths(modules[1]) == widths(modules[0])
    assert len(watchers[1].weights) == 4
    whole, rest = (on_cpu(watcher.weights) for watcher in watchers)
    torch.testing.assert_close(rest, whole[8:], rtol=0, atol=1e-8)


@pytest.mark.gpu
def test_the_memory_of_what_is_gone_is_given_back():
    held: list[int] = []

    class Measure(pl.Callback):
        def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
            pl_module.zero_grad(set_to_none=True)
            torch._C._cuda_clearCublasWorkspaces()  # of tens of megabytes for each way of multiplying
            held.append(torch.cuda.memory_allocated())

    fit(
        "cuda",
        Classifier(mlp(8, 2048, 2048, 3)),
        CoresetPruningCallback(schedule={1: 0.75}, method="magnitude"),
        Measure(),
    )

    assert held[1] < 0.5 * held[0]


# ---- in training, in mixed precision


class Scales(pl.Callback):
    """Keeps how the loss was scaled in every epoch."""

    def __init__(self) -> None:
        self.seen: list[float] = []

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        scaler = trainer.precision_plugin.scaler
        self.seen.append(0.0 if scaler is None else scaler.get_scale())


@pytest.mark.parametrize("precision", ["16-mixed", "bf16-mixed"])
def test_mixed_precision_goes_on(precision, device):
    torch.manual_seed(0)
    # Not by its name: on the CPU Lightning takes bf16 for 16. A low scale, so that no step overflows and is left out.
    scaler = torch.amp.GradScaler(device, init_scale=1024.0, growth_interval=4) if precision == "16-mixed" else None
    plugin = MixedPrecision(precision, device, scaler)
    module, pruning, scales = Classifier(mlp(8, 64, 48, 3)), Pruning(), Scales()

    trainer = fit(device, module, pruning, scales, plugins=[plugin])

    assert [plan.reached for plan in pruning.plans] == pytest.approx([0.3, 0.5], abs=0.03)
    assert sum(module.losses[-4:]) < 0.8 * sum(module.losses[:4])
    assert scales.seen == ([2048.0, 4096.0, 8192.0] if scaler else [0.0] * 3)
    (optimizer,) = trainer.optimizers
    for parameter in module.parameters():
        state = optimizer.state[parameter]
        assert parameter.dtype == state["exp_avg"].dtype == torch.float32
        assert parameter.shape == state["exp_avg"].shape
        assert parameter.device == state["exp_avg"].device  # after a fit Lightning moves both to the CPU
        assert state["step"].item() == 12


# ---- compiled and captured


@pytest.mark.gpu
@pytest.mark.filterwarnings("ignore")  # what the compiler says of itself differs from version to version
@pytest.mark.parametrize("mode", [None, "reduce-overhead"])
def test_compiled_networks_are_compiled_anew(mode):
    """In the second mode CUDA graphs are captured, and have to be captured anew."""
    check(Scenario(lambda: torch.compile(MLP(), mode=mode)), "cuda", like=Scenario())


@pytest.mark.gpu
@pytest.mark.filterwarnings("ignore:The AccumulateGrad node's stream")  # of torch's own function
def test_what_torch_captured_is_refused():
    net = torch.cuda.make_graphed_callables(mlp(8, 32, 3).cuda(), (torch.randn(4, 8, device="cuda"),))

    with pytest.raises(MisconfigurationException, match="make_graphed_callables"):
        check_not_captured(nn.ModuleList([net]))


# ---- DDP of one process: a GPU is enough to build its buckets anew, and only there Lightning takes its hooks


@pytest.fixture
def alone_in_a_group(monkeypatch: pytest.MonkeyPatch):
    for name in ("MASTER_ADDR", "MASTER_PORT", "NODE_RANK", "LOCAL_RANK", "WORLD_SIZE"):
        monkeypatch.setenv(name, "")  # so that what Lightning sets is undone
        monkeypatch.delenv(name)
    yield
    torch.distributed.destroy_process_group()


def power_sgd(**options: Any) -> DDPStrategy:
    state = PowerSGDState(None, start_powerSGD_iter=2)
    return DDPStrategy(ddp_comm_state=state, ddp_comm_hook=powerSGD_hook, **options)


STRATEGIES = {
    "plain": DDPStrategy,
    "static_graph": partial(DDPStrategy, static_graph=True),
    "bucket_view": partial(DDPStrategy, gradient_as_bucket_view=True),
    "fp16": partial(DDPStrategy, ddp_comm_hook=default_hooks.fp16_compress_hook),
    "bf16": partial(DDPStrategy, ddp_comm_hook=default_hooks.bf16_compress_hook),
    "fp16 of power_sgd": partial(power_sgd, ddp_comm_wrapper=default_hooks.fp16_compress_wrapper),
    "power_sgd": power_sgd,
}


@pytest.mark.usefixtures("alone_in_a_group")
@pytest.mark.parametrize("name", STRATEGIES)
def test_ddp_goes_on(name, gpu_or_slow):
    torch.manual_seed(0)
    module, pruning = Classifier(mlp(8, 64, 48, 3)), Pruning()

    fit(gpu_or_slow, module, pruning, strategy=STRATEGIES[name]())

    assert [plan.reached for plan in pruning.plans] == pytest.approx([0.3, 0.5], abs=0.03)
    assert sum(module.losses[-4:]) < 0.8 * sum(module.losses[:4])


@pytest.mark.gpu
@pytest.mark.usefixtures("alone_in_a_group")
def test_synchronised_batch_norm_is_pruned():
    module, pruning = Classifier(convnet()), Pruning()

    fit("cuda", module, pruning, shape=(1, 6, 6), strategy="ddp", sync_batchnorm=True)

    assert [plan.reached for plan in pruning.plans] == pytest.approx([0.3, 0.5], abs=0.03)
    assert sum(module.losses[-4:]) < 0.8 * sum(module.losses[:4])
    assert module.net[1].num_features == len(module.net[1].weight) < 12
