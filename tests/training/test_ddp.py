"""Two processes on CPU stay in step with each other, and with one process on the same global batches."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from fitting import assert_same
from training.ddp_script import VARIANTS, train

SCRIPT = Path(__file__).with_name("ddp_script.py")
TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")


def launch(directory, *command):
    """Run the script in two processes, and return what each of them saw."""
    places = [str(SCRIPT.parents[2]), str(SCRIPT.parents[1])]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(places), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, *command], env=environment, cwd=directory, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-6000:]
    return [torch.load(directory / f"{rank}.pt", weights_only=False) for rank in (0, 1)]


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    directory = tmp_path_factory.mktemp("ddp")
    return launch(directory, *TORCHRUN, str(SCRIPT), str(directory), *VARIANTS)


def check(variant, first, second):
    alone = train(variant)
    assert first["world"] == second["world"] == 2
    assert len(first["weights"]) == len(alone["weights"]) == 12
    assert first["sizes"] == second["sizes"] == alone["sizes"]
    assert len(first["sizes"]) == 2
    for one, other, expected in zip(first["weights"], second["weights"], alone["weights"], strict=True):
        assert_same(one, other)
        torch.testing.assert_close(one, expected, rtol=0, atol=1e-12)
    hidden = [len(weights["net.0.bias"]) for weights in first["weights"]]
    assert 32 == hidden[3] >= hidden[4] == hidden[7] >= hidden[8] == hidden[11] < 32  # four steps an epoch
    assert second["logged"] == []
    assert [step for step, _ in first["logged"]] == [step for step, _ in alone["logged"]]
    for (_, row), (_, expected) in zip(first["logged"], alone["logged"], strict=True):
        assert row == pytest.approx(expected)
    assert {"coreset/sparsity", "coreset/accuracy"} <= {tag for _, row in first["logged"] for tag in row}


@pytest.mark.parametrize("variant", VARIANTS)
def test_ranks_are_identical_and_equal_one_process(ranks, variant):
    check(variant, ranks[0][variant], ranks[1][variant])


@pytest.mark.slow
def test_launched_by_lightning(tmp_path):
    ranks = launch(tmp_path, str(SCRIPT), str(tmp_path), "validated")

    check("validated", *(seen["validated"] for seen in ranks))
