"""A warning about layers of which a request leaves next to nothing, since all of a model shrinks at one pace."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from torch import nn

from lightning_coreset.planning.cost_model import ModelCost
from lightning_coreset.planning.problem import PruningProblem
from lightning_coreset.planning.request import Request
from lightning_coreset.qualified_names import alike
from lightning_coreset.structure import Structure

_FEW_CHANNELS = 2
_SMALL_PART = 0.25
_LIMITS = {"min_channels=4": {"min_channels": 4}, "max_layer_ratio=0.75": {"max_layer_ratio": 0.75}}
_MOST_NAMED = 5


def why_thin(
    model: nn.Module,
    structure: Structure,
    request: Request,
    *,
    original: ModelCost | None = None,
    sizes: Mapping[str, int] | None = None,
) -> str | None:
    """Which layers keep one or two channels of many, and what keeps more of them; ``None`` if there are none.

    A ratio that can only just be reached takes all but the last channels of small layers, though they hold next to
    none of what it counts. Nothing is said where rules or the method choose the sizes: they mean them.

    Args:
        model: The network, only read.
        structure: What ``analyse`` found in it as it is now.
        request: What is asked in the end.
        original: Cost of the model before any pruning; that of ``model`` by default.
        sizes: The classes that stay in each group, if they are known: finding them may take as long as a plan.

    Raises:
        ValueError: If no channels can be pruned, or as :meth:`PruningProblem.of` does.
    """
    if request.method.chooses_sizes:
        return None
    problem = PruningProblem.of(model, structure, request, original)
    thin = {} if problem.ratios else _thin(problem, problem.sizes() if sizes is None else sizes)
    if not thin:
        return None
    by_size: dict[str, list[str]] = {}
    for name, size in thin.items():
        by_size.setdefault(size, []).append(name)
    told = [f"\n  {label}: {size}" for size, names in by_size.items() for label, _ in alike(names)]
    more = f"\n  ... and {len(told) - _MOST_NAMED} more" if len(told) > _MOST_NAMED else ""
    ways = " or ".join(
        f"{text} (up to {share:.4f} can go then)" for text, share in _ways_out(model, problem, structure)
    )
    return (
        f"pruning_ratio={request.target:g} leaves next to nothing of these layers, which may cost more accuracy than "
        f"they save:{''.join(told[:_MOST_NAMED])}{more}\nKeep more of them with {ways}, or ask for less."
    )


def _thin(problem: PruningProblem, sizes: Mapping[str, int]) -> dict[str, str]:
    """The groups that keep few channels, and a small part of those of the original, each with how many."""
    found = {}
    for group, allowed in zip(problem.groups, problem.allowed, strict=True):
        size, width = sizes[allowed.name], allowed.channels_of_a_class
        if size * width <= _FEW_CHANNELS and size < _SMALL_PART * allowed.original and size < group.size:
            found[allowed.name] = f"{size * width:,} of {allowed.original * width:,} channels"
    return found


def _ways_out(model: nn.Module, problem: PruningProblem, structure: Structure) -> list[tuple[str, float]]:
    """Limits that leave layers more, and how much can go with each."""
    found = []
    for text, limit in _LIMITS.items():
        limited = PruningProblem.of(model, structure, replace(problem.request, **limit), problem.original)
        found.append((text, max(limited.gone(limited.smallest()), 0.0)))
    return found
