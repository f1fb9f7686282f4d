"""Where the main process spawns or forks the ones that train, what they made comes back to it."""

import pytest
import torch
from breadth import some_of
from training.launching import HERE, finish, start

SLOW = ["ddp_spawn", "ddp_notebook"]


def seen_after(directory, *strategies):
    file = directory / "seen.pt"
    finish(start(directory, HERE / "spawn_script.py", file, *strategies))
    return torch.load(file, weights_only=False)


@pytest.fixture(scope="module")
def seen(tmp_path_factory):
    return seen_after(tmp_path_factory.mktemp("fork"), "ddp_fork")


@pytest.fixture(scope="module")
def seen_slowly(tmp_path_factory):
    return seen_after(tmp_path_factory.mktemp("spawn"), *SLOW)


@pytest.mark.parametrize("strategy", some_of(["ddp_fork", *SLOW], "ddp_fork"))
def test_the_pruned_model_comes_back(request, strategy):
    seen = request.getfixturevalue("seen_slowly" if strategy in SLOW else "seen")
    back, alone = seen[strategy], seen["alone"]

    assert back["widths"] == alone["widths"]
    assert back["widths"]["net.0"][1] < 32
    torch.testing.assert_close(back["weights"], alone["weights"], rtol=0, atol=1e-12)
    torch.testing.assert_close(back["saved"], alone["saved"], rtol=0, atol=1e-6)
    assert (back["plans"], alone["plans"]) == (0, 2)  # Lightning leaves the callback's state behind


def test_a_module_as_built_is_refused_before_training(seen):
    refused = seen["as built"]

    assert "MisconfigurationException" in refused["error"]
    assert "Call lightning_coreset.make_resizable(model) before trainer.fit(model)" in refused["error"]
    assert refused["widths"]["net.0"] == (8, 32)
