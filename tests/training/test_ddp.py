"""Two processes on CPU stay in step with each other, and with one process on the same global batches."""

import pytest
import torch
from breadth import some_of
from fitting import assert_same
from lightning.fabric.plugins.environments.lightning import find_free_network_port
from training.ddp_script import DISPUTED, VARIANTS, train
from training.launching import HERE, TORCHRUN, finish, seen_by_ranks, start

SCRIPT = HERE / "ddp_script.py"
STEPS = 4  # of an epoch
FAST = ("ddp",)


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    return tmp_path_factory.mktemp("ddp")


@pytest.fixture(scope="module")
def alone(directory):
    """One process that saves checkpoints."""
    return train("ddp", checkpoints=directory / "one")


@pytest.fixture(scope="module")
def ranks(directory, alone):
    finish(start(directory, *TORCHRUN, SCRIPT, directory, *FAST, "resumed"))
    return seen_by_ranks(directory)


@pytest.fixture(scope="module")
def more_ranks(tmp_path_factory):
    """The ranks of the variants that are slow."""
    directory = tmp_path_factory.mktemp("more")
    slow = (name for name in VARIANTS if name not in FAST)
    finish(start(directory, *TORCHRUN, SCRIPT, directory, *slow, *DISPUTED))
    return seen_by_ranks(directory)


def check(first, second, alone, *, exact=True):
    """The ranks are bitwise the same after every step; they equal one process, or come out about as accurate."""
    assert first["world"] == second["world"] == 2
    assert len(first["weights"]) == len(alone["weights"])
    assert first["sizes"] == second["sizes"]
    for one, other in zip(first["weights"], second["weights"], strict=True):
        assert_same(one, other)
    assert second["logged"] == []
    assert [step for step, _ in first["logged"]] == [step for step, _ in alone["logged"]]
    if not exact:
        assert any(not torch.equal(first["weights"][-1][name], value) for name, value in alone["weights"][-1].items())
        if accuracies(alone):
            assert accuracies(first)[-1] > accuracies(alone)[-1] - 0.1 > 0.7
        return
    assert first["sizes"] == alone["sizes"]
    for one, expected in zip(first["weights"], alone["weights"], strict=True):
        torch.testing.assert_close(one, expected, rtol=0, atol=1e-12)
    for (_, row), (_, expected) in zip(first["logged"], alone["logged"], strict=True):
        assert row == pytest.approx(expected)


def accuracies(seen):
    return [row["coreset/accuracy"] for _, row in seen["logged"] if "coreset/accuracy" in row]


@pytest.mark.parametrize("variant", some_of(VARIANTS, *FAST))
def test_ranks_are_identical_and_equal_one_process(request, variant):
    ranks = request.getfixturevalue("ranks" if variant in FAST else "more_ranks")
    first, second = (seen[variant] for seen in ranks)

    check(first, second, train(variant), exact=VARIANTS[variant].exact)

    assert len(first["sizes"]) == 2
    hidden = [len(weights["net.0.bias"]) for weights in first["weights"]]
    assert all(
        len(one["teacher.0.bias"]) == len(one["net.0.bias"]) for one in first["weights"] if "teacher.0.bias" in one
    )
    assert hidden == sorted(hidden, reverse=True)
    assert 32 == hidden[STEPS - 1] >= hidden[STEPS] == hidden[2 * STEPS - 1] >= hidden[2 * STEPS] == hidden[-1] < 32
    tags = {tag for _, row in first["logged"] for tag in row}
    assert "coreset/sparsity" in tags
    assert ("coreset/accuracy" in tags) == VARIANTS[variant].is_measured


@pytest.mark.slow
@pytest.mark.parametrize("variant", DISPUTED)
def test_what_another_rank_sees_otherwise_stays(more_ranks, variant):
    """Rank 0 plans for all, and has not seen that its channels are read, or added to others."""
    first, second = (seen[variant] for seen in more_ranks)

    for one, other in zip(first["weights"], second["weights"], strict=True):
        assert_same(one, other)
    assert first["sizes"] == second["sizes"]
    last = "net.4" if variant == "skips_later" else "net.2"
    assert [[name for name, *_ in plan] for plan in first["sizes"]] == [[last], [last]]
    assert {name for name, *_ in train(variant)["sizes"][0]} == {"net.0", last}


@pytest.mark.parametrize("origin", ["two", "one"])
def test_two_processes_resume_what_any_number_began(ranks, alone, origin):
    """From the checkpoint after the first event on, as if they had never stopped."""
    first, second = (seen[f"from_{origin}"] for seen in ranks)
    # Where a run has only just resumed, no batch is at hand to measure the event's effect on.
    unknown = {"coreset/accuracy_before", "coreset/accuracy_after"}
    (step, event), *later = (row for row in alone["logged"] if row[0] >= 2 * STEPS)
    known = {tag: value for tag, value in event.items() if tag not in unknown}
    rest = {"weights": alone["weights"][2 * STEPS :], "sizes": alone["sizes"], "logged": [(step, known), *later]}
    assert len(rest["weights"]) == STEPS

    check(first, second, rest)
    if origin == "two":
        for one, expected in zip(first["weights"], ranks[0]["ddp"]["weights"][2 * STEPS :], strict=True):
            assert_same(one, expected)


def test_one_process_resumes_what_two_began(ranks, alone, directory):
    seen = train("ddp", resume=directory / "two" / "1.ckpt")

    assert seen["sizes"] == alone["sizes"]
    for one, expected in zip(seen["weights"], alone["weights"][2 * STEPS :], strict=True):
        torch.testing.assert_close(one, expected, rtol=0, atol=1e-12)


@pytest.mark.slow
def test_launched_by_lightning(tmp_path):
    finish(start(tmp_path, SCRIPT, tmp_path, "validated"))

    check(*(seen["validated"] for seen in seen_by_ranks(tmp_path)), train("validated"))


@pytest.mark.slow
def test_two_nodes(tmp_path):
    address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(find_free_network_port())}
    finish(*(start(tmp_path, SCRIPT, tmp_path, "nodes", **address, NODE_RANK=node) for node in ("0", "1")))

    check(*(seen["nodes"] for seen in seen_by_ranks(tmp_path)), train("ddp"))
