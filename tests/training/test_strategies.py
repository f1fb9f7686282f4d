import pickle
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from fitting import Classifier, assert_same, make_loader, make_trainer, mlp
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.strategies import (
    DDPStrategy,
    DeepSpeedStrategy,
    FSDPStrategy,
    ModelParallelStrategy,
    SingleDeviceStrategy,
    SingleDeviceXLAStrategy,
    XLAStrategy,
)
from torch import nn
from torch.distributed.algorithms.ddp_comm_hooks.post_localSGD_hook import PostLocalSGDState
from torch.distributed.algorithms.ddp_comm_hooks.powerSGD_hook import PowerSGDState
from torch.nn.parallel import DistributedDataParallel

from lightning_coreset import CoresetPruningCallback, PrunedCheckpointMixin, make_resizable, prune
from lightning_coreset.training.requirements import check_strategy
from lightning_coreset.training.strategies import from_rank_zero, run_on_all_ranks, unwrapped

UNABLE = [DeepSpeedStrategy, FSDPStrategy, ModelParallelStrategy, SingleDeviceXLAStrategy, XLAStrategy]


class OwnDDP(DDPStrategy):
    """A user's own."""


class Resizable(PrunedCheckpointMixin, Classifier):
    pass


def having(strategy: Any) -> Any:
    return SimpleNamespace(strategy=strategy, callbacks=[])


@pytest.mark.parametrize(
    "strategy", [SingleDeviceStrategy("cpu"), DDPStrategy(), OwnDDP()], ids=lambda s: type(s).__name__
)
def test_supported_strategies_are_accepted(strategy):
    check_strategy(having(strategy), Classifier())


def refuse(strategy, model, match):
    """A callback refuses a strategy, and leaves the model as it was."""
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(MisconfigurationException, match=match):
        CoresetPruningCallback().setup(having(strategy), model, "fit")
    assert_same(model.state_dict(), before)
    assert not model._state_dict_hooks


@pytest.mark.parametrize("kind", UNABLE)
def test_unsupported_strategies_are_refused_with_the_way_out(kind):
    # As far as its class can tell: the libraries of some are not here.
    refuse(object.__new__(kind), Classifier(), rf"but got {kind.__name__}, .*lightning_coreset\.prune")


def test_ranks_with_different_weights_are_refused():
    state = PostLocalSGDState(process_group=None, subgroup=None, start_localSGD_iter=4)

    refuse(DDPStrategy(ddp_comm_state=state, model_averaging_period=4), Classifier(), "post-local SGD.*or none")


def test_a_static_graph_by_hand_is_refused_where_lightning_does_not_reduce_its_first_gradients():
    module = Classifier()
    module.automatic_optimization = False
    strategy = DDPStrategy(static_graph=True)
    vars(strategy).pop("_pl_static_graph_delay_done", None)  # as before Lightning 2.6

    refuse(strategy, module, "Lightning 2.6 or newer.*without static_graph=True")

    check_strategy(having(strategy), Classifier())
    strategy._pl_static_graph_delay_done = False
    check_strategy(having(strategy), module)


@pytest.mark.parametrize("stage", ["validate", "test", "predict"])
def test_whatever_does_not_train_is_not_refused(stage):
    CoresetPruningCallback().setup(having(object.__new__(FSDPStrategy)), Classifier(), stage)


@pytest.mark.parametrize("strategy", ["ddp_spawn", "ddp_fork", "ddp_notebook", "ddp_spawn_find_unused_parameters_true"])
class TestProcessesOfTheirOwn:
    """Copies of the module are trained; the main process has to load the result into the module that it has."""

    @pytest.fixture
    def launched(self, strategy):
        return make_trainer(max_epochs=1, strategy=strategy, devices=2).strategy

    def test_a_module_as_built_is_refused(self, launched):
        refuse(launched, Classifier(), r"lightning_coreset\.make_resizable\(model\) before trainer\.fit")

    @pytest.mark.parametrize("model", [make_resizable(Classifier()), Resizable()], ids=["made", "mixin"])
    def test_a_resizable_one_passes_also_as_a_pickled_copy(self, launched, model):
        check_strategy(having(launched), pickle.loads(pickle.dumps(model)))


def test_the_callback_itself_can_be_sent_to_another_process():
    callback = CoresetPruningCallback({"net.0": 0.25, nn.Linear: 0.25}, schedule="cubic", order="bottom_up", seed=3)

    copy = pickle.loads(pickle.dumps(callback))

    assert copy.state_key == callback.state_key
    assert copy.request == callback.request


def test_one_process_does_not_communicate():
    trainer = make_trainer(max_epochs=1)
    model = Classifier()
    trainer.fit(model, make_loader(8))
    result: Any = object()

    with unwrapped(trainer):
        assert trainer.strategy.model is model
    assert trainer.strategy.model is model
    assert run_on_all_ranks(trainer, lambda: result) is result
    assert from_rank_zero(trainer, lambda: result) is result


@pytest.mark.parametrize("work", [run_on_all_ranks, from_rank_zero])
def test_one_process_raises_as_it_is(work):
    def fail() -> None:
        raise LookupError("mine")

    with pytest.raises(LookupError, match="mine"):
        work(make_trainer(max_epochs=1), fail)


@pytest.mark.parametrize(("start", "before", "after"), [(2, 50, 0), (10, 50, 8), (10, 3, 3)])
def test_power_sgd_is_reset_and_waits_for_the_new_buckets(start, before, after, monkeypatch):
    state = PowerSGDState(None, start_powerSGD_iter=start)
    state.iter = before
    memories = state.error_dict, state.p_memory_dict, state.q_memory_dict
    for memory in memories:
        memory[0] = torch.ones(3)
    strategy = DDPStrategy(ddp_comm_state=state)
    strategy.model = object.__new__(DistributedDataParallel)
    monkeypatch.setattr(strategy, "configure_ddp", lambda: None)

    with unwrapped(having(strategy)):
        assert [len(memory) for memory in memories] == [1, 1, 1]

    assert [len(memory) for memory in memories] == [0, 0, 0]
    assert state.iter == after


def test_synchronised_batch_norm_is_pruned_like_any_other():
    """Where it trains it needs GPUs; names, structure and sizes are the same on the CPU."""
    torch.manual_seed(0)
    plain = nn.Sequential(
        *(nn.Conv2d(1, 12, 3), nn.BatchNorm2d(12), nn.ReLU(), nn.Conv2d(12, 16, 3), nn.BatchNorm2d(16), nn.ReLU()),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), mlp(16, 3)),
    )
    synchronised = nn.SyncBatchNorm.convert_sync_batchnorm(pickle.loads(pickle.dumps(plain)))
    x = torch.randn(4, 1, 8, 8)

    plans = [prune(model, x, 0.5) for model in (plain, synchronised)]

    assert plans[0].groups == plans[1].groups
    assert isinstance(synchronised[1], nn.SyncBatchNorm)
    assert synchronised[1].num_features == len(synchronised[1].weight) == plain[1].num_features < 12
    assert torch.equal(plain.eval()(x), synchronised.eval()(x))
