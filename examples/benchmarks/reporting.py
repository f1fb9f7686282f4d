"""Output of the benchmarks: Markdown tables, and the versions and the machine."""

from __future__ import annotations

import platform
from collections.abc import Iterable, Sequence
from datetime import date
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch
from tabulate import tabulate


def markdown(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table; the cells are text, so that every script chooses the number of digits."""
    return tabulate([*rows], [*head], tablefmt="github", disable_numparse=True)


def setting(*packages: str) -> str:
    """One line: date, versions of this package, torch and ``packages``, Python, processor and threads."""
    names = ("lightning-coreset", "torch", *packages)
    versions = ", ".join(f"{name} {package_version(name)}" for name in names)
    return f"{date.today()}; {versions}, Python {platform.python_version()}; {machine()}."


def package_version(name: str) -> str:
    """The version of the installed package; a source tree on the path has none."""
    try:
        return version(name)
    except PackageNotFoundError:
        return "from source"


def machine() -> str:
    """The GPU if there is one, else the processor with the number of threads that torch uses."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    threads = torch.get_num_threads()
    return f"{processor()}, {threads} thread{'s' if threads > 1 else ''}"


def processor() -> str:
    """The name of the processor on Linux, else its architecture."""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
