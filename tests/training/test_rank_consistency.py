"""Plans and weights are compared by fingerprints; what happens on real processes is in test_failures.py."""

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from fitting import Classifier, make_trainer

from lightning_coreset import plan_pruning
from lightning_coreset.plan import PruningPlan
from lightning_coreset.training import rank_consistency
from lightning_coreset.training.rank_consistency import check_agreement, fingerprint, fingerprints


@pytest.fixture
def plan():
    return plan_pruning(Classifier().net, torch.randn(2, 8), 0.5)


@pytest.fixture
def ranks(monkeypatch):
    """Make this process rank zero of two; what the other one has is put into the list, one item for every exchange."""
    theirs: list[Any] = []
    monkeypatch.setattr(rank_consistency, "gathered", lambda trainer, mine: [mine, theirs.pop(0)])
    return theirs


TWO: Any = SimpleNamespace(world_size=2)


def hashed(model, plan, monkeypatch):
    """What another rank would send first."""
    sent: list[Any] = []
    with monkeypatch.context() as patch:
        patch.setattr(rank_consistency, "gathered", lambda trainer, mine: sent.append(mine) or [mine, mine])
        check_agreement(TWO, model, plan)
    return sent[0]


def test_a_plan_has_the_same_fingerprint_after_a_journey(plan):
    assert fingerprint(PruningPlan.from_dict(plan.to_dict())) == fingerprint(plan)


def changed(plan, **fields):
    first, *rest = plan.changes
    return replace(plan, changes=(replace(first, **fields), *rest))


@pytest.mark.parametrize(
    "change",
    [
        lambda plan: replace(plan, reached=plan.reached + 1e-9),
        lambda plan: replace(plan, skipped={"net.9": "why not"}),
        lambda plan: replace(plan, groups=plan.groups[:1]),
        lambda plan: changed(plan, new_shape=(1, 8)),
        lambda plan: changed(plan, kept={0: torch.arange(3)}),
        lambda plan: changed(plan, value=torch.ones(3)),
        lambda plan: changed(plan, factors={0: torch.ones(3)}),
    ],
    ids=["number", "reason", "group", "shape", "kept", "value", "factors"],
)
def test_any_other_plan_has_another(plan, change):
    assert fingerprint(change(plan)) != fingerprint(plan)


@pytest.mark.filterwarnings("ignore:Complex modules")
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.complex128])
def test_a_single_bit_of_a_parameter_changes_the_fingerprint(dtype):
    model = Classifier().to(dtype)
    before = fingerprints(model)
    bits = model.net[0].weight.data.view(-1).view(torch.uint8)
    bits[0] ^= 1

    after = fingerprints(model)

    assert {name for name in before if before[name] != after[name]} == {"net.0.weight"}


def test_the_memory_format_does_not_change_the_fingerprint():
    model = Classifier(torch.nn.Conv2d(4, 6, 3))
    before = fingerprints(model)

    assert fingerprints(model.to(memory_format=torch.channels_last)) == before


def test_one_process_compares_nothing(plan):
    check_agreement(make_trainer(max_epochs=1), Classifier(), plan)


def test_another_plan_is_an_error_that_names_the_ranks(plan, ranks, monkeypatch):
    model = Classifier()
    ranks.append(hashed(model, replace(plan, requested=0.4), monkeypatch))

    with pytest.raises(RuntimeError, match=r"plan of rank 0 but got another one on ranks \[1\]"):
        check_agreement(TWO, model, plan)


def test_ranks_with_different_weights_cause_a_warning(plan, ranks, monkeypatch):
    model, drifted = Classifier(), Classifier()
    drifted.load_state_dict(model.state_dict())
    with torch.no_grad():
        drifted.net[2].bias[0] += 1e-6
    ranks += [hashed(drifted, plan, monkeypatch), fingerprints(drifted)]

    with pytest.warns(UserWarning, match=r"those of rank 1 differ from rank 0's in net\.2\.bias\. "):
        check_agreement(TWO, model, plan)


def test_what_ddp_ignores_may_differ(plan, ranks, monkeypatch):
    model, drifted = Classifier(), Classifier()
    drifted.load_state_dict(model.state_dict())
    for each in (model, drifted):
        each._ddp_params_and_buffers_to_ignore = ["net.2.bias"]
    with torch.no_grad():
        drifted.net[2].bias[0] += 1e-6
    ranks.append(hashed(drifted, plan, monkeypatch))

    check_agreement(TWO, model, plan)
