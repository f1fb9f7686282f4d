"""For all tests: one thread, a fixed seed, no time limits of hypothesis, and a header that says what runs."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator

# One worker a core already fills the machine. Set before torch is imported, so that processes a test starts inherit it.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch
from hypothesis import settings

torch.set_num_threads(1)
torch.manual_seed(0)  # for what test files make when they are imported; `seed` sees to the tests themselves

# A deadline measures how busy the machine is; a derandomized run gives everyone the same examples.
settings.register_profile("lightning_coreset", deadline=None, derandomize=True)
settings.load_profile("lightning_coreset")


FAST = "not slow and not gpu and not clients"  # as in pyproject.toml


def pytest_report_header(config: pytest.Config) -> list[str]:
    """Say what is about to run, and what is not; collecting the tests takes a while."""
    asked = config.getoption("markexpr")
    return [
        f"tests: {asked or 'all'} (-m), in {config.getoption('numprocesses') or 1} processes that first import torch",
        *_the_rest(asked),
    ]


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Say once more what did not run."""
    for line in _the_rest(config.getoption("markexpr")):
        terminalreporter.write_line(line)


def _the_rest(asked: str) -> list[str]:
    if asked != FAST:
        return []
    return [
        "left out: the same on more cases, for `pytest -m slow`; on a GPU, for `pytest -m gpu`; with packages of "
        "others, for `pytest -m clients`"
    ]


def pytest_collection_finish() -> None:
    """Spare the garbage collector, and those who ask it for objects, the half a million objects of libraries."""
    gc.collect()
    gc.freeze()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip tests marked ``gpu`` where there is no CUDA device."""
    if torch.cuda.is_available():
        return
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


@pytest.fixture(autouse=True)
def seed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make a test's random numbers the same in every run, alone or among others."""
    monkeypatch.delenv("PL_GLOBAL_SEED", raising=False)  # Lightning's seed_everything leaves it to later tests
    torch.manual_seed(0)


@pytest.fixture
def double_precision() -> Iterator[None]:
    """Make tensors of 64 bits, so that rounding plays no part."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)
