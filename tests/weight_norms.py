"""Networks whose weights are made by ``weight_norm``, and the same networks with the weights as they are."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize

Norm = Callable[..., nn.Module]


def new_style(module: nn.Module, dim: int | None = 0, name: str = "weight") -> nn.Module:
    return parametrizations.weight_norm(module, name, dim)  # type: ignore[arg-type]


def old_style(module: nn.Module, dim: int | None = 0, name: str = "weight") -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        return nn.utils.weight_norm(module, name, dim)  # type: ignore[arg-type]


STYLES: dict[str, Norm] = {"new": new_style, "old": old_style}


class _Direction(nn.Module):
    """Stands in for ``weight_norm``: the direction is the weight, and the magnitude is without effect."""

    def forward(self, magnitude: Tensor, direction: Tensor) -> Tensor:
        return direction


class _OldDirection:
    def __init__(self, name: str) -> None:
        self.name = name

    def __call__(self, module: nn.Module, inputs: object) -> None:
        vars(module)[self.name] = getattr(module, f"{self.name}_v")


def duplicate(model: nn.Module) -> nn.Module:
    """A deep copy, also of weights that old modules keep as computed attributes."""
    computed = {
        id(value): value.detach().clone()
        for module in model.modules()
        for value in vars(module).values()
        if isinstance(value, Tensor) and not value.is_leaf
    }
    return copy.deepcopy(model, computed)


def baked(model: nn.Module) -> nn.Module:
    """The model as users bake the weights in; copies made before break, for torch shares classes among them."""
    for module in list(model.modules()):
        if parametrize.is_parametrized(module, "weight"):
            parametrize.remove_parametrizations(module, "weight")
        elif hasattr(module, "weight_g"):
            nn.utils.remove_weight_norm(module)
    return model


def is_weight_normed(model: nn.Module) -> bool:
    """Whether a weight is made by ``weight_norm``, in either style."""
    return any(name.endswith(("weight.original1", "weight_v")) for name, _ in model.named_parameters())


@torch.no_grad()
def with_plain_weights(model: nn.Module) -> nn.Module:
    """A copy in which the tensors named directions hold the weights themselves: what is zero there is zero, no more."""
    result = duplicate(model)
    for module in result.modules():
        for name, chain in getattr(module, "parametrizations", {}).items():
            if len(chain) == 1 and type(chain[0]).__name__ == "_WeightNorm":
                weight = getattr(module, name).clone()
                chain[0] = _Direction()
                chain.original1.copy_(weight)
        for number, hook in list(module._forward_pre_hooks.items()):
            if type(hook).__name__ == "WeightNorm":
                getattr(module, f"{hook.name}_v").copy_(hook.compute_weight(module))
                module._forward_pre_hooks[number] = _OldDirection(hook.name)
    return result


@torch.no_grad()
def scrambled(model: nn.Module) -> nn.Module:
    """The model in double precision with magnitudes that are not the norms, some of them negative."""
    for name, parameter in model.double().named_parameters():
        if name.endswith(("original0", "_g")):
            parameter.mul_(torch.rand_like(parameter) + 0.5)
            if parameter.numel() > 1:
                parameter.view(-1)[::3].neg_()
        elif name.endswith("bias"):
            parameter.normal_()
    return model.eval()


def wave(norm: Norm, dim: int | None) -> tuple[nn.Module, Tensor]:
    """1d: dense, grouped, transposed and depthwise convolutions."""
    layers = [
        norm(nn.Conv1d(4, 8, 3), dim),
        nn.LeakyReLU(0.2),
        norm(nn.Conv1d(8, 6, 3, groups=2), dim),
        nn.ReLU(),
        norm(nn.ConvTranspose1d(6, 9, 4, stride=2), dim),
        nn.ReLU(),
        norm(nn.Conv1d(9, 9, 3, groups=9), dim),
        norm(nn.Conv1d(9, 5, 1), dim),
        nn.Tanh(),
        norm(nn.Conv1d(5, 2, 3), dim),
    ]
    return scrambled(nn.Sequential(*layers)), torch.randn(2, 4, 20).double()


def image(norm: Norm, dim: int | None) -> tuple[nn.Module, Tensor]:
    """2d and linear: a BatchNorm, a Flatten."""
    layers = [
        norm(nn.Conv2d(2, 6, 3), dim),
        nn.BatchNorm2d(6),
        nn.ReLU(),
        norm(nn.ConvTranspose2d(6, 8, 2, groups=2), dim),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        norm(nn.Linear(32, 10), None if dim is None or dim > 1 else dim),
        nn.ReLU(),
        norm(nn.Linear(10, 3), None if dim is None or dim > 1 else dim),
    ]
    return scrambled(nn.Sequential(*layers)), torch.randn(2, 2, 6, 6).double()


def volume(norm: Norm, dim: int | None) -> tuple[nn.Module, Tensor]:
    """3d."""
    layers = [norm(nn.Conv3d(2, 6, 2), dim), nn.ReLU(), norm(nn.ConvTranspose3d(6, 4, 2), dim), nn.ReLU()]
    return scrambled(nn.Sequential(*layers, norm(nn.Conv3d(4, 2, 1), dim))), torch.randn(2, 2, 3, 3, 3).double()


def linear(norm: Norm, dim: int | None) -> tuple[nn.Module, Tensor]:
    """What a coreset has a closed form for; ``dim`` 2 is that of a convolution, so none."""
    own = None if dim is None or dim > 1 else dim
    layers = [norm(nn.Linear(5, 12), own), nn.ReLU(), norm(nn.Linear(12, 10), own), nn.ReLU()]
    return scrambled(nn.Sequential(*layers, norm(nn.Linear(10, 3), own))), torch.randn(4, 5).double()


NETWORKS = {"wave": wave, "image": image, "volume": volume, "linear": linear}
DIMS = (0, 1, 2, None)
