"""How long the layers of a network take on a device, by their widths."""

from __future__ import annotations

from lightning_coreset.latency.comparison import compared, is_doubtful, why_doubtful
from lightning_coreset.latency.curves import Curve
from lightning_coreset.latency.environment import Environment
from lightning_coreset.latency.layers import Latency, LayerCall, LayerShape, Width, called_layers
from lightning_coreset.latency.measure import measure_latency, measured
from lightning_coreset.latency.network import REST, NetworkLatency
from lightning_coreset.latency.resolved import LatencyLike, as_latency, network_latency
from lightning_coreset.latency.table import LatencyTable

__all__ = [
    "REST",
    "Curve",
    "Environment",
    "Latency",
    "LatencyLike",
    "LatencyTable",
    "LayerCall",
    "LayerShape",
    "NetworkLatency",
    "Width",
    "as_latency",
    "called_layers",
    "compared",
    "is_doubtful",
    "measure_latency",
    "measured",
    "network_latency",
    "why_doubtful",
]
