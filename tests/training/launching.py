"""Start scripts that train in several processes."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Any

import processes
import torch
from processes import finish

__all__ = ["HERE", "TORCHRUN", "finish", "seen_by_ranks", "start"]

HERE = Path(__file__).parent
TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")


def start(directory: Path, *command: str | Path, **environment: str) -> subprocess.Popen[str]:
    """Start Python with a command in a directory; scripts find this package and what tests share."""
    places = [str(HERE.parents[1]), str(HERE.parent)]
    inherited = os.environ | {"PYTHONPATH": os.pathsep.join(places), "OMP_NUM_THREADS": "1"} | environment
    return processes.start(*command, cwd=directory, env=inherited)


def seen_by_ranks(directory: Path) -> list[dict[str, Any]]:
    """What each of two ranks has left in a directory."""
    return [torch.load(directory / f"{rank}.pt", weights_only=False) for rank in (0, 1)]
