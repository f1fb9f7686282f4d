from types import SimpleNamespace
from typing import Any

import pytest
import torch
from fitting import Classifier, assert_same, make_loader, make_trainer
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

from lightning_coreset import CoresetPruningCallback
from lightning_coreset.plan import AttributeChange, GroupPlan, ParameterChange, PruningPlan
from lightning_coreset.training.strategies import agreed, check_strategy, unwrapped

UNABLE = [DeepSpeedStrategy, FSDPStrategy, ModelParallelStrategy, SingleDeviceXLAStrategy, XLAStrategy]


class OwnDDP(DDPStrategy):
    """A user's own."""


def bare(kind: type) -> Any:
    """A strategy of a kind whose libraries are not here, as far as its class can tell."""
    return SimpleNamespace(strategy=object.__new__(kind))


@pytest.mark.parametrize("kind", [SingleDeviceStrategy, DDPStrategy, OwnDDP])
def test_what_can_follow_a_change_of_shapes_passes(kind):
    check_strategy(bare(kind))


@pytest.mark.parametrize("kind", UNABLE)
def test_what_cannot_is_refused_with_the_way_out(kind):
    with pytest.raises(MisconfigurationException, match=rf"but got {kind.__name__}, .*lightning_coreset\.prune"):
        check_strategy(bare(kind))


@pytest.mark.parametrize("kind", UNABLE)
def test_refused_in_setup_with_the_model_as_it_was(kind):
    model = Classifier()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    callback = CoresetPruningCallback()

    with pytest.raises(MisconfigurationException, match=kind.__name__):
        callback.setup(bare(kind), model, "fit")

    assert_same(model.state_dict(), before)


@pytest.mark.parametrize("stage", ["validate", "test", "predict"])
def test_whatever_does_not_train_is_not_refused(stage):
    CoresetPruningCallback().setup(bare(FSDPStrategy), Classifier(), stage)


def test_one_process_is_left_alone():
    trainer = make_trainer(max_epochs=1)
    model = Classifier()
    trainer.fit(model, make_loader(8))
    plan: Any = object()

    with unwrapped(trainer):
        assert trainer.strategy.model is model
    assert trainer.strategy.model is model
    assert agreed(trainer, plan) is plan


@pytest.mark.parametrize("rank", [0, 1])
def test_every_rank_gets_the_plan_of_rank_zero(rank):
    kept = torch.tensor([0, 2])
    plan = PruningPlan(
        groups=(GroupPlan("net.0", 3, 2, (0, 2), "random"),),
        changes=(ParameterChange("net.0.weight", (3, 4), (2, 4), {0: kept}, value=torch.ones(2, 4)),),
        skipped={"net.2": "reaches the output"},
        requested=0.5,
        reached=0.4,
        unit="params",
        params_original=20,
        params_before=20,
        params_after=12,
        macs_before=18,
        macs_after=10,
        attributes=(AttributeChange("net", "heads", 3, 2),),
    )
    sent: list[Any] = []

    def broadcast(value: Any) -> Any:
        sent.append(value)
        return plan.to_dict()

    trainer: Any = SimpleNamespace(world_size=2, global_rank=rank, strategy=SimpleNamespace(broadcast=broadcast))
    found = agreed(trainer, plan)

    assert (sent[0] is None) == (rank == 1)
    assert (found.groups, found.skipped, found.attributes) == (plan.groups, plan.skipped, plan.attributes)
    (change,) = found.changes
    assert (change.name, change.old_shape, change.new_shape) == ("net.0.weight", (3, 4), (2, 4))
    assert torch.equal(change.kept[0], kept)
    assert torch.equal(change.value, torch.ones(2, 4))
