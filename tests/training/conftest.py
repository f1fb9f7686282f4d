from __future__ import annotations

from functools import partial

import fitting
import pytest


@pytest.fixture
def make_trainer(tmp_path):
    """A Trainer on CPU that writes and prints nothing unless asked to, and then into a folder of the test."""
    return partial(fitting.make_trainer, default_root_dir=tmp_path)
