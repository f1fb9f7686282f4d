"""How much memory a trial may take: an operating system mostly grants more than there is, and then ends the process."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch
from torch import nn

PRECISIONS = (torch.float64, torch.float32)
"""Those in which a network may be tried, the preferred one first."""
_COPIES = 2.0
"""What a trial takes of memory, in copies of the network: one, and what is left of another without some channels."""


def precisions_that_fit(model: nn.Module) -> tuple[torch.dtype, ...]:
    """The precisions in which copies of a network fit into memory.

    Raises:
        MemoryError: If there are none.
    """
    numbers = sum(parameter.numel() for parameter in model.parameters())
    device = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
    free = available_memory(device)
    found = tuple(dtype for dtype in PRECISIONS if _COPIES * numbers * dtype.itemsize < free)
    if not found:
        raise MemoryError(f"{free / 1e9:.1f} GB are too little to try {numbers:,} parameters in single precision")
    return found


def available_memory(device: torch.device) -> float:
    """Bytes that can be had on a device without taking them from others; infinity where nobody tells."""
    if device.type == "cuda":
        cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return float(torch.cuda.mem_get_info(device)[0] + cached)
    return min(_told_by_linux(), default=float("inf"))


def _told_by_linux() -> Iterator[float]:
    """What the machine has left, and the container."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        yield 1024.0 * next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration, ValueError, IndexError):
        pass  # another operating system
    try:
        group = Path("/sys/fs/cgroup")
        yield float(int((group / "memory.max").read_text()) - int((group / "memory.current").read_text()))
    except (OSError, ValueError):
        pass  # no container, or one without a limit ("max")
