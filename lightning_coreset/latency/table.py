"""Measured times of a network's layers, as a file and in memory."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from os import PathLike
from pathlib import Path
from typing import Any

from torch import nn

from lightning_coreset.latency.curves import Curve
from lightning_coreset.latency.environment import Environment
from lightning_coreset.latency.layers import LayerCall, LayerShape, Width
from lightning_coreset.plain_data import as_type, from_plain

_FORMAT = 1


@dataclass(frozen=True)
class LatencyTable:
    """The times of a network's layers on one device, by their widths.

    Made by :func:`lightning_coreset.measure_latency`, for one network and one shape of inputs.

    Attributes:
        environment: The device, version of torch and number of threads that the times hold for.
        calls: How the network calls each of its layers that were measured.
        curves: The times of each, in the same order.
        whole: Seconds of one run of the whole network as it was measured, in evaluation mode.
        outside: Seconds of it outside of these layers; ``None`` where that cannot be told, as on a GPU.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from lightning_coreset import LatencyTable, measure_latency, plan_pruning
        >>> model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 8))
        >>> x = torch.randn(32, 64)
        >>> table = measure_latency(model, x, seconds=0.05, verbose=False)
        >>> [call.layer for call in table.calls]
        ['0', '2']
        >>> plan = plan_pruning(model, x, 0.0, unit="latency", latency=table)
    """

    environment: Environment
    calls: tuple[LayerCall, ...]
    curves: tuple[Curve, ...]
    whole: float
    outside: float | None = None

    @property
    def constant(self) -> float:
        """What no width was measured for takes so many seconds."""
        if self.outside is not None:
            return self.outside
        return max(self.whole - sum(self.layer_seconds().values()), 0.0)

    def layer_seconds(self) -> dict[str, float]:
        """Seconds in each layer at the widths that the network had, by its name."""
        found: dict[str, float] = {}
        for call, curve in zip(self.calls, self.curves, strict=True):
            own = call.count * curve.at(call.in_channels, call.out_channels)
            found[call.layer] = found.get(call.layer, 0.0) + own
        return found

    def lookup(self, shape: LayerShape) -> float:
        """The seconds of one call of a layer at some widths.

        To prune here for the device that the table is of, ``latency=table.lookup``: the ratio then counts the times of
        layers alone, and nothing is measured here.

        Raises:
            ValueError: If the table does not have the layer, or not with such an input.
        """
        for call, curve in zip(self.calls, self.curves, strict=True):
            if call.layer == shape.name and call.shape_at(shape.in_channels) == shape.input_shape:
                return curve.at(shape.in_channels, shape.out_channels)
        raise ValueError(
            f"Expected a layer of the table but got {shape.name!r} with inputs of shape {shape.input_shape}. Measure "
            "the network with the example_inputs that it is pruned with."
        )

    def save(self, path: str | PathLike[str]) -> None:
        """Write the table to a JSON file; an existing one is replaced."""
        Path(path).write_text(json.dumps(self.to_dict()), encoding="utf-8")

    @classmethod
    def load(cls, path: str | PathLike[str]) -> LatencyTable:
        """Read a table that :meth:`save` wrote.

        Raises:
            ValueError: If the file holds something else.
        """
        try:
            return cls.from_dict(json.loads(Path(path).read_text(encoding="utf-8")))
        except (ValueError, OSError) as error:
            raise ValueError(
                f"Expected {str(path)!r} to hold a LatencyTable but cannot read it ({error}). Measure again, with "
                "measure_latency."
            ) from error

    def to_dict(self) -> dict[str, Any]:
        """Numbers, strings, lists and dicts."""
        return {"format": _FORMAT, **asdict(self)}

    @classmethod
    def from_dict(cls, plain: Any) -> LatencyTable:
        """The inverse of :meth:`to_dict`.

        Raises:
            ValueError: If it is something else.
        """
        plain = as_type(plain, dict[str, Any], "a table")
        if plain.get("format") != _FORMAT:
            raise ValueError(f"Expected format {_FORMAT} but got {plain.get('format')!r}.")
        calls = tuple(call_from_dict(one) for one in as_type(plain.get("calls"), list[Any], "calls"))
        curves = tuple(from_plain(Curve, one) for one in as_type(plain.get("curves"), list[Any], "curves"))
        if len(calls) != len(curves) or any(not _is_whole(curve) for curve in curves):
            raise ValueError(f"Expected the times of {len(calls)} layers but got others.")
        environment = from_plain(Environment, plain.get("environment"))
        whole = as_type(plain.get("whole"), float, "whole")
        return cls(environment, calls, curves, whole, as_type(plain.get("outside"), float | None, "outside"))

    def __repr__(self) -> str:
        """Short: what it holds, and for what."""
        where = self.environment
        threads = f", {where.threads} threads" if where.threads else ""
        return f"LatencyTable({len(self.calls)} layers, {1e3 * self.whole:.3g} ms, {where.device}{threads})"

    def check_fits(self, model: nn.Module, environment: Environment) -> None:
        """Refuse a table of another device, or of another network.

        Raises:
            ValueError: With what differs.
        """
        if environment != self.environment:
            raise ValueError(
                "Expected a latency table of this device but got one with "
                f"{environment.difference(self.environment)}. Measure here with measure_latency, or prune for that "
                "device with latency=table.lookup."
            )
        tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
        for call in self.calls:
            tensor = tensors.get(call.weight)
            sizes = None if tensor is None or tensor.dim() <= max(call.reads.dim, call.makes.dim) else tensor.shape
            if sizes is None or call.makes.of(sizes[call.makes.dim]) > call.out_channels:
                raise ValueError(
                    f"Expected a latency table of this network but {call.layer!r} is another layer in it, or wider "
                    "than measured. Measure the module that is pruned, under its own names."
                )


def call_from_dict(plain: Any) -> LayerCall:
    """A call of a layer from plain data.

    Raises:
        ValueError: If it is something else.
    """
    plain = as_type(plain, dict[str, Any], "a layer")
    return from_plain(
        LayerCall, plain, reads=from_plain(Width, plain.get("reads")), makes=from_plain(Width, plain.get("makes"))
    )


def _is_whole(curve: Curve) -> bool:
    points = len(curve.inputs) * max(len(curve.outputs), 1)
    times: Mapping[int, float] = dict(enumerate(curve.seconds))
    return bool(points) and len(times) == points and all(0 < one < float("inf") for one in times.values())
