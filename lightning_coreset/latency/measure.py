"""Measure the times of a network's layers on the device that it is on."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import product

import torch
from torch import Tensor, nn

from lightning_coreset._arguments import check_is_module, is_number, is_whole_number
from lightning_coreset.latency.curves import Curve, grid
from lightning_coreset.latency.environment import Environment
from lightning_coreset.latency.layers import LayerCall, called_layers, evaluated
from lightning_coreset.latency.narrowing import at_widths, random_input, settings_of
from lightning_coreset.latency.progress import progress_bar
from lightning_coreset.latency.table import LatencyTable
from lightning_coreset.latency.timing import Task, fastest, time_of
from lightning_coreset.latency.whole import WholeTime, run_alternately
from lightning_coreset.nested import map_tensors, tensors_in
from lightning_coreset.structure import Example, ExampleInputs, Structure, analyse
from lightning_coreset.surgery import registered_tensors

_SECONDS = 4.0
_WHOLE = 0.25
"""Of the time, for runs of the whole network."""
_PASSES = 4
_CALLS = 3
"""In a pass a layer is made and called twice, which takes as long as about so many calls."""
_COARSEST = 2

_KNOWN: dict[str, Curve] = {}
"""Curves that this process has measured, by what they are of."""


def measure_latency(
    model: nn.Module,
    example_inputs: ExampleInputs,
    *,
    batch_size: int | None = None,
    seconds: float = _SECONDS,
    verbose: bool = True,
) -> LatencyTable:
    """Measure how long each layer of a network takes, by its widths, on the device that the network is on.

    Each layer that can be narrowed is timed alone, with a random input of its real shape, type and memory format, in
    evaluation mode, for a grid of widths read and made. All take turns, and the shortest time of each counts, so that
    other load on the machine does little harm. What is not in such a layer (activations, pooling, additions, attention
    products, modules of other types, operators of your own) counts as a constant: the time of the whole network without
    that of the layers.

    Args:
        model: Any network; it is run and not changed.
        example_inputs: As for :func:`lightning_coreset.prune`. Times depend on their shapes: give a batch of the size
            that the network will be used with.
        batch_size: Another number of samples: the example inputs are repeated or cut to it, along the first dimension.
        seconds: About how long to measure. Large networks take longer, on a coarser grid: there are at least three
            passes.
        verbose: Whether to show a progress bar.

    Returns:
        A table for ``prune(..., unit="latency", latency=table)``; ``table.save(path)`` keeps it.

    Raises:
        ValueError: If an argument has the wrong type or is out of range, or no layer with a known width is called.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from lightning_coreset import measure_latency
        >>> model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 8))
        >>> table = measure_latency(model, torch.randn(1, 64), batch_size=32, seconds=0.05, verbose=False)
        >>> sorted(table.layer_seconds())
        ['0', '2']
    """
    check_is_module(model)
    if not is_number(seconds) or seconds <= 0:
        raise ValueError(f"Expected seconds to be a positive number but got {seconds!r}.")
    if batch_size is not None and (not is_whole_number(batch_size) or batch_size < 1):
        raise ValueError(f"Expected batch_size to be a positive integer but got {batch_size!r}.")
    example = Example.of(example_inputs)
    if batch_size is not None:
        example = _with_samples(example, batch_size)
    return measured(model, example, analyse(model, example), seconds=seconds, verbose=verbose, again=True)


def measured(
    model: nn.Module,
    example: Example,
    structure: Structure,
    *,
    seconds: float = _SECONDS,
    verbose: bool = True,
    again: bool = False,
) -> LatencyTable:
    """:func:`measure_latency` for a network whose structure is known.

    Args:
        model: The network, in any mode.
        example: How it is run.
        structure: What ``analyse`` found in it: the widths that its groups do not change are not varied.
        seconds: About how long to measure.
        verbose: Whether to show a progress bar.
        again: Whether to measure what this process has measured already.
    """
    calls = called_layers(model, example)
    if not calls:
        raise no_layers(model)
    vary = {(member.name, member.dim) for group in structure.groups for member in group.members}
    device = next((tensor.device for tensor in tensors_in(example.inputs)), torch.device("cpu"))
    environment = Environment.now(device)
    with evaluated(model), progress_bar(shown=verbose) as report:
        jobs = [_Job.of(model, call, vary, environment) for call in calls]
        new = {job.key: job for job in jobs if again or job.key not in _KNOWN}
        new = dict(zip(new, _affordable(list(new.values()), device, seconds), strict=True))
        makers = [maker for job in new.values() for maker in job.makers()]
        whole = WholeTime(model, example, list(dict.fromkeys(call.layer for call in calls)), device)
        times = fastest(makers, device, seconds=seconds, report=report) if makers else []
        run_alternately([whole], _WHOLE * seconds)
    for key, job in new.items():
        own, times = times[: len(job.points)], times[len(job.points) :]
        _KNOWN[key] = Curve(job.inputs, job.outputs, tuple(own))
    curves = tuple(_KNOWN[job.key] for job in jobs)
    return LatencyTable(environment, calls, curves, whole.seconds, whole.outside)


def no_layers(model: nn.Module) -> ValueError:
    """The error for a network without layers of known widths."""
    return ValueError(
        "Expected a network that calls layers whose time can be told (convolutions, Linear, normalisations) but "
        f"{type(model).__name__} calls none. Count another unit, such as 'macs'."
    )


@dataclass(frozen=True, eq=False)
class _Job:
    """One layer that is to be timed at a grid of widths.

    Attributes:
        key: What the times are of; equal for layers that take the same time.
        module: The layer.
        call: How it is called.
        like: A tensor of the layer, on its device.
        varies: Whether the width read, and the one made, may change.
        coarser: How often the distances of the grid are doubled.
    """

    key: str
    module: nn.Module
    call: LayerCall
    like: Tensor
    varies: tuple[bool, bool]
    coarser: int = 0

    @classmethod
    def of(cls, model: nn.Module, call: LayerCall, vary: Collection[tuple[str, int]], environment: Environment) -> _Job:
        module = model.get_submodule(call.layer)
        like = registered_tensors(module)[call.weight.rpartition(".")[2]]
        varies = (call.weight, call.reads.dim) in vary, (call.weight, call.makes.dim) in vary
        alike = replace(call, layer="", weight="", count=1)
        autocast = torch.is_autocast_enabled(like.device.type)
        key = repr((environment, settings_of(module), alike, varies, autocast))
        return cls(key, module, call, like, varies)

    @property
    def inputs(self) -> tuple[int, ...]:
        return self._grid(self.call.in_channels, self.call.reads.multiple, self.varies[0])

    @property
    def outputs(self) -> tuple[int, ...]:
        if self.call.reads.dim == self.call.makes.dim:
            return ()
        return self._grid(self.call.out_channels, self.call.makes.multiple, self.varies[1])

    def _grid(self, width: int, multiple: int, varies: bool) -> tuple[int, ...]:
        return grid(width, multiple=multiple, coarser=self.coarser) if varies else (width,)

    @property
    def points(self) -> list[tuple[int, int]]:
        """The widths read and made of each time."""
        if self.call.reads.dim == self.call.makes.dim:
            ratio = self.call.out_channels // self.call.in_channels  # of a depthwise convolution
            return [(width, width * ratio) for width in self.inputs]
        return list(product(self.inputs, self.outputs))

    def makers(self) -> list[Callable[[], Task]]:
        return [partial(self._task, *widths) for widths in self.points]

    def _task(self, in_channels: int, out_channels: int) -> Task:
        with torch.inference_mode(False), torch.no_grad():  # surgery takes ordinary tensors
            layer = at_widths(self.module, self.call, in_channels, out_channels)
            return partial(layer, random_input(self.call, in_channels, self.like))


def _affordable(jobs: Sequence[_Job], device: torch.device, seconds: float) -> list[_Job]:
    """The jobs, on coarser grids where several passes over all points would take too long."""
    tasks = [job.makers()[-1]() for job in jobs]
    whole = [min(time_of(task, device) for _ in range(3)) for task in tasks]
    for coarser in range(_COARSEST + 1):
        jobs = [replace(job, coarser=coarser) for job in jobs]
        # A layer takes half as long on the average over the widths.
        estimate = sum(len(job.points) * time for job, time in zip(jobs, whole, strict=True)) / 2
        if _PASSES * _CALLS * estimate <= seconds:
            break
    return list(jobs)


def _with_samples(example: Example, count: int) -> Example:
    """The example with another number of samples, of all tensors that have as many as it has."""

    def cut(tensor: Tensor) -> Tensor:
        if tensor.dim() == 0 or tensor.shape[0] != example.batch_size:
            return tensor
        return tensor[torch.arange(count, device=tensor.device) % example.batch_size]

    return replace(example, inputs=map_tensors(cut, example.inputs), batch_size=count)
