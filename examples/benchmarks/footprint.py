"""Memory and file size: the peak of a process or of training, and the ONNX file of a network."""

from __future__ import annotations

import copy
import logging
import os
import warnings
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import Tensor, nn

os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # the profiler reports that it starts and stops

from torch.profiler import ProfilerActivity, profile


class Memory:
    """The most memory that this process held since the last look, beyond what it held at first; of Linux."""

    def __init__(self) -> None:
        self._base = self._read("VmRSS")

    def lap(self) -> int:
        """Bytes at the highest point since the last call."""
        highest = self._read("VmHWM")
        Path("/proc/self/clear_refs").write_text("5")
        return highest - self._base

    @staticmethod
    def _read(field: str) -> int:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))


def training_peak(model: nn.Module, x: Tensor) -> int:
    """Peak bytes of the network, its AdamW and two training steps, as counted by torch's allocator."""
    model = copy.deepcopy(model).train()
    device = next(model.parameters()).device
    x = x.to(device)
    own = sum(tensor.untyped_storage().nbytes() for tensor in (*model.parameters(), *model.buffers()))
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        _two_steps(model, x)
        return own + torch.cuda.max_memory_allocated() - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        _two_steps(model, x)
    # Private, but the only record of every allocation on a CPU: the resident set of the process includes the libraries.
    events = [event for event in profiler.profiler.kineto_results.events() if event.name() == "[memory]"]
    current = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        current += event.nbytes()
        peak = max(peak, current)
    return own + peak


def _two_steps(model: nn.Module, x: Tensor) -> None:
    optimizer = torch.optim.AdamW(model.parameters())
    for _ in range(2):  # from the second step on, optimizer state and gradients exist
        model(x).square().mean().backward()
        optimizer.step()


def onnx_bytes(model: nn.Module, x: Tensor) -> int:
    """The size of the ONNX file, weights included."""
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # it reports missing optional packages
    with TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        path = Path(folder, "model.onnx")
        inputs = x.to(next(model.parameters()).device)
        torch.onnx.export(model.eval(), (inputs,), str(path), dynamo=True, verbose=False, external_data=False)
        return path.stat().st_size
