"""How long a network takes, for any widths of its layers: the cost that a ratio of ``unit="latency"`` counts."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from torch import nn

from lightning_coreset._arguments import is_number
from lightning_coreset.latency.layers import Latency, LayerCall, LayerShape
from lightning_coreset.latency.table import LatencyTable, call_from_dict
from lightning_coreset.plain_data import as_type

NOISE = 0.03
"""A time that was measured is less than another one if it is less by this part of the layers' own."""

REST = "what is not measured"


@dataclass(frozen=True, eq=False)
class NetworkLatency:
    """The seconds of a network, as a function of the widths of its layers.

    Attributes:
        calls: How it calls its layers.
        layer_seconds: The seconds of one call at some widths, read and made.
        constant: Seconds that depend on no width.
        noise: The part of a layer's time by which two of its times have to differ; 0 where they are exact.
        table: The table, if times were measured.
    """

    calls: Sequence[LayerCall]
    layer_seconds: Callable[[int, int, int], float]
    constant: float = 0.0
    noise: float = 0.0
    table: LatencyTable | None = None
    _known: dict[tuple[int, int, int], float] = field(default_factory=dict)

    @classmethod
    def measured(cls, table: LatencyTable) -> NetworkLatency:
        """By a table."""
        return cls(
            table.calls,
            lambda number, reads, makes: table.curves[number].at(reads, makes),
            table.constant,
            NOISE,
            table,
        )

    @classmethod
    def told(cls, latency: Latency, calls: Sequence[LayerCall], model: nn.Module) -> NetworkLatency:
        """By a function of the user's; what it says is checked whenever it is asked."""
        modules = dict(model.named_modules())

        def ask(number: int, reads: int, makes: int) -> float:
            call = calls[number]
            shape = LayerShape(call.layer, call.kind, reads, makes, call.shape_at(reads), modules[call.layer])
            return checked_seconds(latency(shape), shape)

        return cls(calls, ask)

    def seconds(self, number: int, reads: int, makes: int) -> float:
        """The seconds in all calls like one, at some widths."""
        key = number, reads, makes
        if key not in self._known:
            self._known[key] = self.calls[number].count * self.layer_seconds(*key)
        return self._known[key]

    def to_dict(self) -> dict[str, Any]:
        """Plain data for checkpoints and other ranks; of a function, only what it was asked about."""
        if self.table is not None:
            return {"table": self.table.to_dict()}
        return {"calls": [asdict(call) for call in self.calls]}

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any], latency: Latency | None, model: nn.Module) -> NetworkLatency:
        """The inverse of :meth:`to_dict`; with the function that was given, if one was.

        Raises:
            ValueError: If it is something else.
        """
        if latency is None or "table" in plain:
            return cls.measured(LatencyTable.from_dict(plain.get("table")))
        calls = as_type(plain.get("calls"), list[Any], "calls")
        return cls.told(latency, [call_from_dict(call) for call in calls], model)


def checked_seconds(value: Any, shape: LayerShape) -> float:
    """What a function said about a layer.

    Raises:
        ValueError: If it is no positive number.
    """
    if hasattr(value, "item") and not is_number(value):
        value = value.item()
    if not is_number(value) or value <= 0 or not math.isfinite(value):
        raise ValueError(
            f"Expected latency to return the seconds of a layer, a positive number, but got {value!r} for "
            f"{shape.name!r} with {shape.in_channels} channels in and {shape.out_channels} out."
        )
    return float(value)
