"""Two processes agree on the best model, and keep the same files as one."""

from __future__ import annotations

from pathlib import Path

import pytest
from training.best_checkpoint.best_ddp_script import OPTIONS, train
from training.best_checkpoint.scripted import names
from training.launching import TORCHRUN, finish, seen_by_ranks, start

SCRIPT = Path(__file__).with_name("best_ddp_script.py")


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    directory = tmp_path_factory.mktemp("ranks")
    finish(start(directory, *TORCHRUN, SCRIPT, directory))
    return directory


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", OPTIONS)
def test_ranks_agree(directory, tmp_path, kind):
    first, second = (seen[kind] for seen in seen_by_ranks(directory))
    alone = train(tmp_path, kind)

    assert (first.pop("rank"), second.pop("rank"), alone.pop("rank")) == (0, 1, 0)
    assert first == second
    if kind != "steps":  # two processes take half as many steps
        assert first == alone
        assert names(directory / kind) == names(tmp_path / kind)
    assert sorted(first["scores"]) == names(directory / kind)
