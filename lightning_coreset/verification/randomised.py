"""Random parameters and statistics for a model, and the same random numbers in every run."""

from __future__ import annotations

import math
import random
import sys

import torch
from torch import Tensor, nn

from lightning_coreset._compat import own_buffers, own_parameters
from lightning_coreset.module_specs import module_spec

_ENOUGH = 1 << 16
"""Elements of a tensor whose mean and spread are taken; of a larger one, those of as many, from every so many rows."""


@torch.no_grad()
def randomise_(model: nn.Module, generator: torch.Generator) -> None:
    """Change statistics and constant parameters, such as fresh biases, which would hide a wrong index.

    Small weights are made larger: with those of some fresh networks, attention takes the mean of all tokens whichever
    way its heads are cut, and a wrong head would not show.
    """
    for parameter in model.parameters():
        # What lies around another number than 0 is no weight: a magnitude, a scale.
        rows = _some_rows(parameter)
        if _is_weight(rows):
            spread = math.sqrt(2 / parameter[0].numel())
            parameter.mul_((spread / rows.std(correction=0).clamp_min(1e-12)).clamp_min(1.0))
    for module in model.modules():
        for tensor in own_parameters(module).values():
            if tensor.is_floating_point() and (tensor.dim() < 2 or _is_constant(tensor)):
                tensor.add_(0.1 * noise(tensor, generator))
        mean, variance = (own_buffers(module).get(name) for name in module_spec(module).running_stats or ("", ""))
        if mean is not None:
            mean.add_(0.1 * noise(mean, generator))
        if variance is not None:
            variance.mul_((0.3 * noise(variance, generator)).exp())


def noise(tensor: Tensor, generator: torch.Generator) -> Tensor:
    """Standard normal numbers like a tensor, the same on every device."""
    return torch.randn(tensor.shape, generator=generator).to(tensor.device, tensor.dtype)


def seed_everything(model: nn.Module) -> None:
    """Seed the generators that ``preserved_random`` restores, and no others."""
    random.seed(0)
    if "numpy" in sys.modules:
        sys.modules["numpy"].random.seed(0)
    torch.default_generator.manual_seed(0)
    for device in {parameter.device for parameter in model.parameters() if parameter.is_cuda}:
        torch.cuda.default_generators[device.index].manual_seed(0)


def _some_rows(tensor: Tensor) -> Tensor:
    """As many rows as tell how large the numbers of a tensor are."""
    return tensor[:: max(tensor.numel() // _ENOUGH, 1)] if tensor.dim() else tensor


def _is_weight(tensor: Tensor) -> bool:
    if not tensor.is_floating_point() or tensor.dim() < 2 or tensor.numel() < 2:
        return False
    return bool(tensor.mean().abs() < tensor.std(correction=0))


def _is_constant(tensor: Tensor) -> bool:
    first = tensor.reshape(-1)[:1]
    return all(bool((each == first).all()) for each in (_some_rows(tensor), tensor)) and tensor.numel() > 0
