from __future__ import annotations

from typing import Any

import lightning.pytorch as pl
import pytest


@pytest.fixture
def make_trainer(tmp_path):
    """A Trainer on CPU that writes and prints nothing unless told to."""

    def make(*callbacks: pl.Callback, **options: Any) -> pl.Trainer:
        quiet = {
            "accelerator": "cpu",
            "devices": 1,
            "default_root_dir": tmp_path,
            "logger": False,
            "enable_checkpointing": False,
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "num_sanity_val_steps": 0,
            "log_every_n_steps": 1,
        }
        return pl.Trainer(**(quiet | options), callbacks=list(callbacks))

    return make
