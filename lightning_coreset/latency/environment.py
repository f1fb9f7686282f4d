"""What measured times hold for: a device, a version of torch and a number of threads."""

from __future__ import annotations

import platform
from dataclasses import dataclass, fields
from pathlib import Path

import torch


@dataclass(frozen=True)
class Environment:
    """What measured times hold for.

    Attributes:
        device: The name of the processor or the GPU.
        torch: The version of torch.
        threads: Threads of torch on the CPU; 0 on a GPU.
    """

    device: str
    torch: str
    threads: int

    @classmethod
    def now(cls, device: torch.device) -> Environment:
        """That of this process, for networks on a device."""
        version = str(torch.__version__)  # plain data: it is of a class of its own
        if device.type == "cuda":
            return cls(torch.cuda.get_device_name(device), version, 0)
        if device.type == "cpu":
            return cls(_processor(), version, torch.get_num_threads())
        return cls(f"{device.type} ({platform.machine()})", version, 0)

    def difference(self, other: Environment) -> str:
        """What another one has otherwise, in words."""
        differs = [one.name for one in fields(self) if getattr(self, one.name) != getattr(other, one.name)]
        return ", ".join(f"{name}={getattr(other, name)!r} instead of {getattr(self, name)!r}" for name in differs)


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, "") or platform.processor() or platform.machine()
