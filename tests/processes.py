"""Run other processes: one that hangs is ended, and what it printed until then is shown."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

HANG = 1000
"""Seconds after which a process counts as hung, on a machine however slow. Below the limit of pytest itself in
pyproject.toml, which cannot show what the process has printed."""


def start(*command: str | Path, cwd: Path | None = None, env: Mapping[str, str] | None = None) -> subprocess.Popen[str]:
    """Start Python with a command, in a session of its own, so that it can be ended with all that it started."""
    return subprocess.Popen(
        [sys.executable, *map(str, command)],
        cwd=cwd,
        env=dict(os.environ if env is None else env),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def finish(*processes: subprocess.Popen[str], seconds: float = HANG, returncode: int = 0) -> list[str]:
    """Wait for processes that were started, and return what they printed.

    Raises:
        AssertionError: If one ends with another ``returncode`` or is still running after so many ``seconds``, with what
            it has printed.
    """
    try:
        outputs = [_output(process, seconds) for process in processes]
    finally:
        for process in processes:
            end(process)
    for process, output in zip(processes, outputs, strict=True):
        assert process.returncode == returncode, f"ended with {process.returncode}:\n{output[-12000:]}"
    return outputs


def _output(process: subprocess.Popen[str], seconds: float) -> str:
    try:
        return process.communicate(timeout=seconds)[0]
    except subprocess.TimeoutExpired:
        output = _last_output(process)
        raise AssertionError(f"still running after {seconds} s, having printed:\n{output[-12000:]}") from None


def _last_output(process: subprocess.Popen[str]) -> str:
    process.terminate()  # torchrun passes it on to the processes that it started, which are in sessions of their own
    try:
        return process.communicate(timeout=60)[0]
    except subprocess.TimeoutExpired:
        end(process)
        return process.communicate()[0]


def end(process: subprocess.Popen[str]) -> None:
    """Kill a process and all that it started, if it is still there."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        process.kill()
