"""Norms over the channels of each position, LayerNorm and RMSNorm: which modules are such norms."""

from __future__ import annotations

import torch
from torch import Generator, Tensor, nn

from lightning_coreset.structure import preserved


def modules_of_norms(model: nn.Module) -> list[nn.Module]:
    """The modules that normalise the channels of each position, by what they do, whatever they are called.

    To multiply every position by a number of its own changes nothing of what they make, along the last dimension or
    along the second.
    """
    return [module for module in model.modules() if _is_norm(module)]


def has_channel_norms(model: nn.Module) -> bool:
    """Whether any module of a network is such a norm."""
    return any(_is_norm(module) for module in model.modules())


def _is_norm(module: nn.Module) -> bool:
    shape = getattr(module, "normalized_shape", None)  # as torch's own norms have it, also without weights
    if isinstance(shape, tuple):
        return len(shape) == 1
    own = [*module.parameters()]
    if not 1 <= len(own) <= 2 or any(True for _ in module.children()) or any(True for _ in module.buffers()):
        return False
    sizes = {tuple(one.shape) for one in own}
    if len(sizes) != 1 or own[0].dim() != 1:
        return False
    return any(_ignores_scale(module, own[0], *shapes) for shapes in _layouts(len(own[0])))


def _layouts(channels: int) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
    """Shapes of inputs, and of a number for each of their positions."""
    return [((2, 3, channels), (2, 3, 1)), ((2, channels, 3, 3), (2, 1, 3, 3))]


def _ignores_scale(module: nn.Module, like: Tensor, shape: tuple[int, ...], positions: tuple[int, ...]) -> bool:
    generator = Generator().manual_seed(0)
    inputs = torch.randn(shape, generator=generator).to(like)
    factors = (1 + torch.rand(positions, generator=generator)).to(like)
    try:
        with preserved(module), torch.no_grad():
            # Not the module itself: hooks of a user's do not concern a trial.
            made, scaled = module.forward(inputs), module.forward(inputs * factors)
    except Exception:
        return False
    if not isinstance(made, Tensor) or made.shape != inputs.shape:
        return False
    return bool(torch.allclose(made, scaled, rtol=1e-2, atol=1e-2 * float(made.abs().mean())))
