"""Start scripts that train in several processes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

HERE = Path(__file__).parent
TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")


def start(directory: Path, *command: str | Path, **environment: str) -> subprocess.Popen[str]:
    """Start Python with a command in a directory; scripts find this package and what tests share."""
    places = [str(HERE.parents[1]), str(HERE.parent)]
    inherited = os.environ | {"PYTHONPATH": os.pathsep.join(places), "OMP_NUM_THREADS": "1"} | environment
    return subprocess.Popen(
        [sys.executable, *map(str, command)],
        env=inherited,
        cwd=directory,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finish(*processes: subprocess.Popen[str], seconds: float = 200) -> list[str]:
    """Wait for processes that were started, and return what they printed."""
    try:
        outputs = [process.communicate(timeout=seconds)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    for process, output in zip(processes, outputs, strict=True):
        assert process.returncode == 0, output[-12000:]
    return outputs


def seen_by_ranks(directory: Path) -> list[dict[str, Any]]:
    """What each of two ranks has left in a directory."""
    return [torch.load(directory / f"{rank}.pt", weights_only=False) for rank in (0, 1)]
