"""Where the main process spawns or forks the ones that train, what they made comes back to it."""

import pytest
import torch
from training.launching import HERE, finish, start

pytestmark = pytest.mark.slow
STRATEGIES = ["ddp_fork", "ddp_spawn", "ddp_notebook"]


@pytest.fixture(scope="module")
def seen(tmp_path_factory):
    file = tmp_path_factory.mktemp("spawn") / "seen.pt"
    finish(start(file.parent, HERE / "spawn_script.py", file, *STRATEGIES))
    return torch.load(file, weights_only=False)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_the_pruned_model_comes_back(seen, strategy):
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
