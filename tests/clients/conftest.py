"""For tests with packages of others: torchvision without its compiled operators, and a table in the end."""

from __future__ import annotations

import re
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch


def _define_torchvision_operators() -> None:
    """Let torchvision be imported beside a torch that its compiled operators were not built for, as on a CPU.

    What torchvision's wheel on PyPI has compiled needs CUDA's libraries. Without it, its Python code cannot be imported
    either, only because it describes operators (``nms``, ``roi_align``) that nobody has defined. They are defined here,
    without any code; no model in these tests calls them.
    """
    spec = find_spec("torchvision")
    if spec is None or spec.origin is None or hasattr(torch.ops.torchvision, "nms"):
        return
    text = Path(spec.origin).with_name("_meta_registrations.py").read_text()
    names = re.findall(r'register_meta\("(\w+)"\)|register_fake\("torchvision::(\w+)"\)', text)
    for name in sorted({one or other for one, other in names}):
        torch.library.define(f"torchvision::{name}", "(Tensor x) -> Tensor")


if torch.version.cuda is None:
    _define_torchvision_operators()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print the rows of the table in ``docs/projects.md``."""
    passed = terminalreporter.stats.get("passed", [])
    rows = [row for report in passed for name, row in report.user_properties if name == "client"]
    if rows:
        terminalreporter.write_line("| project | model | pruned | own load works | notes |")
        terminalreporter.write_line("| --- | --- | --- | --- | --- |")
        for row in sorted(rows):
            terminalreporter.write_line(row)
