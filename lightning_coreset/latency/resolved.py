"""From what a user gives as ``latency`` to the cost of a network."""

from __future__ import annotations

from os import PathLike
from typing import Any, TypeAlias, cast

import torch
from torch import nn

from lightning_coreset.latency.environment import Environment
from lightning_coreset.latency.layers import Latency, called_layers
from lightning_coreset.latency.measure import measured, no_layers
from lightning_coreset.latency.network import NetworkLatency
from lightning_coreset.latency.table import LatencyTable
from lightning_coreset.nested import tensors_in
from lightning_coreset.structure import Example, Structure

LatencyLike: TypeAlias = LatencyTable | Latency | str
"""A table that was measured, a function of a layer at some widths, or the path of a file with a table."""


def as_latency(latency: Any, unit: str) -> LatencyTable | Latency | None:
    """What a user gave, a table read from its file.

    Raises:
        ValueError: If it is neither a table nor a function, the file cannot be read, or another unit is counted.
    """
    if latency is None:
        return None
    if isinstance(latency, str | PathLike):
        latency = LatencyTable.load(latency)
    if not isinstance(latency, LatencyTable) and (not callable(latency) or isinstance(latency, nn.Module | type)):
        raise ValueError(
            "Expected latency to be a LatencyTable, the path of a file with one, or a function of a LayerShape that "
            f"returns seconds, but got {latency!r}."
        )
    if unit != "latency":
        raise ValueError(f"Expected latency only with unit='latency', which counts it, but got unit={unit!r}.")
    return cast("LatencyTable | Latency", latency)


def network_latency(
    model: nn.Module, structure: Structure, example: Example, latency: LatencyTable | Latency | None, *, verbose: bool
) -> NetworkLatency:
    """What a network costs: by a function, by a table, or by measuring.

    Args:
        model: The network, only read and run.
        structure: What ``analyse`` found in it.
        example: How it is run.
        latency: What the user gave.
        verbose: Whether to show a progress bar while measuring.

    Raises:
        ValueError: If a table is of another device or network, or the network calls no layer that is known.
    """
    if latency is None:
        return NetworkLatency.measured(measured(model, example, structure, verbose=verbose))
    if isinstance(latency, LatencyTable):
        device = next((tensor.device for tensor in tensors_in(example.inputs)), torch.device("cpu"))
        latency.check_fits(model, Environment.now(device))
        return NetworkLatency.measured(latency)
    calls = called_layers(model, example)
    if not calls:
        raise no_layers(model)
    return NetworkLatency.told(latency, calls, model)
