"""Norms over the channels of each position, LayerNorm and RMSNorm: what they make by law, whatever goes in.

Such a norm gives its channels mean 0 and deviation 1 at every position before it scales them. A network on made-up
inputs has other correlations there than on the data that it was trained on, the more the deeper; the law that uses
none, independent standard normal numbers, is nearer to the truth.
"""

from __future__ import annotations

from collections.abc import Collection
from types import TracebackType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn
from torch.overrides import TorchFunctionMode

from lightning_coreset.structure import preserved

_FUNCTIONS = (F.layer_norm, torch.layer_norm, F.rms_norm, torch.rms_norm)


class NormsByLaw(TorchFunctionMode):
    """Replaces what norms over channels read by independent standard normal numbers, the same in every run.

    Args:
        modules: Those that write such a norm out, as :func:`modules_of_norms` finds them. The functions of torch are
            known.
        seed: Of the numbers.
    """

    def __init__(self, modules: Collection[nn.Module], seed: int) -> None:
        super().__init__()
        self._modules = list(modules)
        self._generator = Generator().manual_seed(seed)

    def __enter__(self) -> NormsByLaw:
        self._hooks = [module.register_forward_pre_hook(self._before) for module in self._modules]
        super().__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for hook in self._hooks:
            hook.remove()
        super().__exit__(kind, error, trace)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in _FUNCTIONS and args and len(_shape_of(args, kwargs)) == 1:
            args = (self._normal(args[0]), *args[1:])
        return func(*args, **kwargs)

    def _before(self, module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
        if not args or not isinstance(args[0], Tensor):
            return None
        return (self._normal(args[0]), *args[1:])

    def _normal(self, like: Tensor) -> Tensor:
        return torch.randn(like.shape, generator=self._generator).to(like)


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


def _shape_of(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[int, ...]:
    shape = kwargs.get("normalized_shape", args[1] if len(args) > 1 else ())
    return (shape,) if isinstance(shape, int) else tuple(shape)
