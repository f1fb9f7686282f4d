"""How much room a network takes: the peak of a training in memory, and its ONNX file."""

from __future__ import annotations

import copy
import logging
import os
import warnings
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import Tensor, nn

os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # the profiler would say that it starts and stops

from torch.profiler import ProfilerActivity, profile


def training_peak(model: nn.Module, x: Tensor) -> int:
    """Bytes that the network, its AdamW and two training steps take at most together, as torch's allocator counts."""
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
    # Private, but all that tells of every allocation on a CPU: a process's resident set holds the libraries as well.
    events = [event for event in profiler.profiler.kineto_results.events() if event.name() == "[memory]"]
    current = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        current += event.nbytes()
        peak = max(peak, current)
    return own + peak


def _two_steps(model: nn.Module, x: Tensor) -> None:
    optimizer = torch.optim.AdamW(model.parameters())
    for _ in range(2):  # the second one has the optimizer's state and gradients from the start
        model(x).square().mean().backward()
        optimizer.step()


def onnx_bytes(model: nn.Module, x: Tensor) -> int:
    """The size of the ONNX file, weights included."""
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # it tells of packages that are not there
    with TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        path = Path(folder, "model.onnx")
        inputs = x.to(next(model.parameters()).device)
        torch.onnx.export(model.eval(), (inputs,), str(path), dynamo=True, verbose=False, external_data=False)
        return path.stat().st_size
