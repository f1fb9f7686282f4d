"""The methods compared by the accuracy benchmarks, and the shapes that all of them have to reach.

The shapes are fixed before pruning: a :class:`Target` contains the shape of every parameter and buffer. Our methods
reach them with one ratio, Torch-Pruning with a ratio for each layer. :meth:`Target.check` checks the result.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatch
from functools import partial
from importlib.util import find_spec
from math import prod

from torch import Tensor, nn

from lightning_coreset import Magnitude, PruningPlan, Random, Reconstruction, Sensitivity, plan_pruning, prune
from lightning_coreset.methods import Method

Shapes = Mapping[str, tuple[int, ...]]

METHODS: dict[str, Method] = {
    "random": Random(),
    "L1 norm": Magnitude(1),
    "L2 norm": Magnitude(2),
    "sensitivity (paper, m distinct)": Sensitivity(),
    "sensitivity, pps": Sensitivity("pps"),
    "reconstruction": Reconstruction(),
}
TORCH_PRUNING = ("Torch-Pruning, magnitude", "Torch-Pruning, BN scale", "Torch-Pruning, group norm")
ABSENT = "Torch-Pruning is not installed, so its rows are left out: pip install torch-pruning==1.6.1"
TOLERANCE = 0.01
"""How far numbers of parameters may lie apart where a method keeps fewer channels than it may."""


@dataclass(frozen=True)
class Target:
    """The shapes that pruning has to reach, and the settings for it.

    Attributes:
        example: A small batch of images, only used to read the structure.
        keep: The fraction of the removable channels that is kept in every layer.
        include_residual: Whether channels coupled by additions are removable.
        shapes: The shapes of the parameters and buffers of the pruned network, by name.
        sizes: Parameters and MACs before and after, as text.
    """

    example: Tensor
    keep: float
    include_residual: bool
    shapes: Shapes
    sizes: str

    @classmethod
    def of(cls, model: nn.Module, example: Tensor, keep: float, include_residual: bool = False) -> Target:
        """Remove the same fraction from all layers."""
        plan = plan_pruning(
            model, example, 1 - keep, unit="channels", method="magnitude", include_residual=include_residual
        )
        sizes = (
            f"{plan.params_after / plan.params_before:.0%} of {plan.params_before:,} parameters, "
            f"{plan.macs_after / plan.macs_before:.0%} of {plan.macs_before:,} MACs"
        )
        return cls(example, keep, include_residual, shapes_after(plan, shapes(model)), sizes)

    def check(self, name: str, model: nn.Module) -> None:
        """Check that no tensor is larger and the network hardly smaller: dead channels may be removed in addition."""
        check_shapes(name, model, self.shapes)


Prune = Callable[[nn.Module, Target, int], None]
"""Prunes a network in place, to a target, with a seed."""


def contenders(patterns: str = "*", norms: bool = True) -> dict[str, Prune]:
    """The methods whose names match one of the patterns, including those of Torch-Pruning if it is installed.

    Args:
        patterns: Shell patterns, with ``|`` between them.
        norms: Whether the network has BatchNorms, whose scales Torch-Pruning can use for ranking.
    """
    found: dict[str, Prune] = {name: partial(prune_by, method) for name, method in METHODS.items()}
    if has_torch_pruning():
        found |= {name: partial(prune_with_torch_pruning, name) for name in torch_pruning_names(norms)}
    return {name: one for name, one in found.items() if selected(name, patterns)}


def selected(name: str, patterns: str) -> bool:
    """Whether one of the patterns matches, ignoring case."""
    return any(fnmatch(name.lower(), pattern.strip().lower()) for pattern in patterns.split("|"))


def has_torch_pruning() -> bool:
    """Whether Torch-Pruning is installed."""
    return find_spec("torch_pruning") is not None


def torch_pruning_names(norms: bool = True) -> tuple[str, ...]:
    """The names of its importances; BatchNorm scale only if the network has BatchNorms."""
    return tuple(name for name in TORCH_PRUNING if norms or "BN" not in name)


def prune_by(method: Method, model: nn.Module, target: Target, seed: int) -> None:
    """Prune with one of our methods."""
    prune(
        model,
        target.example,
        1 - target.keep,
        unit="channels",
        method=method,
        include_residual=target.include_residual,
        seed=seed,
        self_check=False,
    )


def prune_with_torch_pruning(name: str, model: nn.Module, target: Target, seed: int) -> None:
    """Prune with one of Torch-Pruning's importances, which are deterministic."""
    prune_to_shapes(name, model, target.example, target.shapes)


def prune_to_shapes(name: str, model: nn.Module, example: Tensor, wanted: Shapes) -> None:
    """Prune exactly the layers that have to shrink, with Torch-Pruning."""
    import torch_pruning as tp

    makers = {key: module for key, module in model.named_modules() if isinstance(module, (nn.Conv2d, nn.Linear))}
    widths = {module: (wanted[f"{key}.weight"][0], len(module.weight)) for key, module in makers.items()}
    ignored = [module for module, (kept, width) in widths.items() if kept == width]
    # It keeps int(width * (1 - ratio)) channels; the half avoids rounding errors.
    ratios = {module: 1 - (kept + 0.5) / width for module, (kept, width) in widths.items() if kept < width}
    pruner = tp.pruner.BasePruner(
        model, example, torch_pruning_importance(name), pruning_ratio_dict=ratios, ignored_layers=ignored
    )
    pruner.step()


def torch_pruning_importance(name: str) -> Callable:
    """The L1 norm of filters, BatchNorm scales, or the L2 norm of all weights that produce or read a channel."""
    from torch_pruning import importance

    if name == TORCH_PRUNING[0]:
        return importance.MagnitudeImportance(p=1, group_reduction="first", normalizer=None)
    return importance.BNScaleImportance() if name == TORCH_PRUNING[1] else importance.GroupMagnitudeImportance(p=2)


def shapes(model: nn.Module) -> Shapes:
    """The shapes of all parameters and buffers with channels."""
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items() if tensor.dim()}


def shapes_after(plan: PruningPlan, before: Shapes) -> Shapes:
    """The shapes after a plan; buffers that no state dict has, such as tables of rotations, are not among them."""
    return {**before, **{change.name: change.new_shape for change in plan.changes if change.name in before}}


def check_shapes(name: str, model: nn.Module, wanted: Shapes) -> None:
    """Raise an error unless a pruned network has the required shapes.

    Raises:
        AssertionError: If a tensor is larger, or the network smaller by more than ``TOLERANCE``.
    """
    found = shapes(model)
    assert found.keys() == wanted.keys(), f"{name}: other tensors than wanted"
    larger = {key: (found[key], wanted[key]) for key in wanted if any(map(int.__gt__, found[key], wanted[key]))}
    assert not larger, f"{name}: more than the wanted channels stayed: {larger}"
    size, aim = (sum(map(prod, one.values())) for one in (found, wanted))
    assert size >= (1 - TOLERANCE) * aim, f"{name}: {size:,} numbers stayed where {aim:,} were wanted"
