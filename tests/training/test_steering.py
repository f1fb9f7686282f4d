"""Two processes judge, go back and recompute statistics as one."""

from __future__ import annotations

import copy

import pytest
import torch
from fitting import assert_same
from torch.optim.swa_utils import update_bn
from torchmetrics.classification import MulticlassF1Score
from training.launching import HERE, TORCHRUN, finish, seen_by_ranks, start
from training.steering_script import KEPT, shares

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    directory = tmp_path_factory.mktemp("steering")
    finish(start(directory, *TORCHRUN, HERE / "steering_script.py", directory))
    return seen_by_ranks(directory)


@pytest.mark.parametrize(("name", "reverted"), [("guarded", [True]), ("halved", [True, True, True])])
def test_the_value_of_rank_zero_decides_for_all(ranks, name, reverted):
    first, second = (seen[name] for seen in ranks)

    assert [record["reverted"] for record in first["history"]] == reverted
    assert first["history"] == second["history"]
    assert first["plans"] == second["plans"] == 0
    for one, other in zip(first["weights"], second["weights"], strict=True):
        parameters = [{k: v for k, v in state.items() if "running" not in k} for state in (one, other)]
        assert_same(*parameters)
    assert first["weights"][-1]["net.0.weight"].shape[0] == 12


def test_statistics_are_those_of_all_ranks(ranks):
    first, second = (seen["metric"]["net"] for seen in ranks)

    assert_same(first.state_dict(), second.state_dict())
    expected = copy.deepcopy(first)
    batches = [batch for share in shares() for batch, _ in list(share)[:KEPT]]
    update_bn(batches, expected)
    for name, buffer in expected.named_buffers():
        if "tracked" not in name:
            torch.testing.assert_close(first.get_buffer(name), buffer)
    assert first[1].num_batches_tracked == KEPT


def test_a_metric_is_reduced_over_ranks(ranks):
    first, second = (seen["metric"] for seen in ranks)

    assert [len(seen["accuracy"]) for seen in (first, second)] == [4, 0]
    assert first["history"] == second["history"]
    (event,) = first["history"]
    inputs, targets = (torch.cat(parts) for parts in zip(*(b for share in shares() for b in share), strict=True))
    with torch.no_grad():
        expected = MulticlassF1Score(3)(first["net"].eval()(inputs), targets)
    assert event["accuracy_after"] == pytest.approx(float(expected))
