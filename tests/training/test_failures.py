"""A rank that fails in a pruning event takes the others along, and nobody is pruned."""

import pytest
from fitting import assert_same
from training.failing_script import POINTS, SECONDS
from training.launching import HERE, TORCHRUN, finish, seen_by_ranks, start

pytestmark = pytest.mark.slow
SCRIPT = HERE / "failing_script.py"
RAISING = [name for name in POINTS if name != "stuck"]
TIMEOUT = 600  # seconds until a rank that waits for another gives up, with an error that the tests do not expect
UNPRUNED = [(size, size) for size in (32, 32, 24, 24, 3, 3)]


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    directory = tmp_path_factory.mktemp("failures")
    finish(start(directory, *TORCHRUN, SCRIPT, directory, str(TIMEOUT), *RAISING, "survived", "refused"))
    return seen_by_ranks(directory)


@pytest.mark.parametrize("name", RAISING)
def test_where_one_rank_fails_all_raise_and_none_is_pruned(ranks, name):
    seen = [each[name] for each in ranks]

    for rank, each in enumerate(seen):
        if name == "another plan":
            assert each["error"].startswith("RuntimeError: Expected every rank to have the plan of rank 0")
        elif rank == POINTS[name].rank:
            assert each["error"] == "InjectedError: on purpose"
        else:
            assert each["error"].startswith("RuntimeError: A pruning event failed on other ranks")
            assert f"{{{POINTS[name].rank}: \"InjectedError('on purpose')\"}}" in each["error"]
        assert each["sizes"] in (UNPRUNED, [(size, None) for size, _ in UNPRUNED])
    assert len(seen[0]["weights"]) == len(seen[1]["weights"]) < 8
    for one, other in zip(*(each["weights"] for each in seen), strict=True):
        assert_same(one, other)


def test_training_can_go_on_as_if_there_had_been_no_event(ranks):
    for each in ranks:
        assert each["survived"]["error"] is None
        assert len(each["survived"]["weights"]) == len(each["unpruned"]["weights"]) == 8
        for one, other in zip(each["survived"]["weights"], each["unpruned"]["weights"], strict=True):
            assert_same(one, other)


def test_sharded_parameters_are_refused_in_time(ranks):
    for each in ranks:
        assert each["refused"].startswith("MisconfigurationException: Expected a single-device or a DDP strategy but")


def test_a_rank_that_hangs_is_given_up_after_the_timeout(tmp_path):
    timeout = SECONDS / 2
    finish(start(tmp_path, *TORCHRUN, SCRIPT, tmp_path, str(timeout), "stuck"))
    first, _ = (each["stuck"] for each in seen_by_ranks(tmp_path))

    assert "RuntimeError" in first["error"]
    assert first["seconds"] > timeout
    assert first["sizes"] == UNPRUNED
