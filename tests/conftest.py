"""What every test starts from: one thread, a fixed seed, no clock for hypothesis."""

from __future__ import annotations

import os

# One worker a core already fills the machine. Set before torch is imported, so that processes a test starts inherit it.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch
from hypothesis import settings

torch.set_num_threads(1)

# A deadline measures how busy the machine is; a derandomized run gives everyone the same examples.
settings.register_profile("lightning_coreset", deadline=None, derandomize=True)
settings.load_profile("lightning_coreset")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip tests marked ``gpu`` where there is no CUDA device."""
    if torch.cuda.is_available():
        return
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


@pytest.fixture(autouse=True)
def seed() -> None:
    """Make a test's random numbers the same in every run, alone or among others."""
    torch.manual_seed(0)
