"""Fake quantisation, as in quantisation-aware training: element by element, with ranges for all or for each channel."""

from __future__ import annotations

from torch import Tensor

from lightning_coreset.structure.labels import TensorInfo
from lightning_coreset.structure.propagation import OpCall, Propagation, Rule
from lightning_coreset.structure.steps import Step

_OF_CHANNELS = ("scale", "zero_point", "running_min", "running_max")
"""Arguments that have a number for each channel, or one for all."""


def fake_quantize(propagation: Propagation, call: OpCall) -> None:
    """Scales, zero points and observed ranges join the channels along the axis that they lie along."""
    source, out = call.args[0], call.results[0]
    axis = call.arguments.get("axis", call.arguments.get("ch_axis", 0))
    for name in _OF_CHANNELS:
        part = call.arguments.get(name)
        if isinstance(part, Tensor) and part.numel() > 1 and not propagation.is_filled_by_run(part):
            channels = propagation.channel_labels(source, axis % source.dim(), f"is quantised ({call.title})")
            own = propagation.buffer_labels(part)
            propagation.unite(own, channels, "has numbers for its quantisation that cannot be cut")
    info = propagation.info(source)
    paths = propagation.producer_paths([source], Step(call.name, call.numbers))
    result = TensorInfo(info.channel_labels, info.constant, producer_paths=paths)
    for made in call.results:
        if made.shape == out.shape:
            propagation.set_info(made, result)


FAKE_QUANTIZERS = (
    *("_fused_moving_avg_obs_fq_helper", "fake_quantize_per_tensor_affine", "fake_quantize_per_channel_affine"),
    *("fake_quantize_per_tensor_affine_cachemask", "fake_quantize_per_channel_affine_cachemask"),
    *("_fake_quantize_per_tensor_affine_cachemask_tensor_qparams", "_fake_quantize_learnable_per_tensor_affine"),
    "_fake_quantize_learnable_per_channel_affine",
)
RULES: dict[str, Rule] = dict.fromkeys(FAKE_QUANTIZERS, fake_quantize)
