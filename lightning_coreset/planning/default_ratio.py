"""How much goes where nobody has said it: half of the model, or as far as is sensible."""

from __future__ import annotations

from dataclasses import replace

from torch import nn

from lightning_coreset.planning.cost_model import ModelCost
from lightning_coreset.planning.feasibility import largest_step, ways_out, what_holds
from lightning_coreset.planning.problem import PruningProblem
from lightning_coreset.planning.request import DEFAULT_RATIO, Request
from lightning_coreset.structure import Structure

_MOST_OF_A_GROUP = 0.5
"""Of a layer's channels. Where all of a chain of layers may shrink, half of the channels are 75% of its parameters."""


def sensible(model: nn.Module, structure: Structure, request: Request, *, original: ModelCost | None = None) -> Request:
    """A request whose ratio nobody has given, with one that this model can lose and go on.

    Half of the model goes, unless some layer would have to lose more than half of its channels for that: then as much
    as goes with half of the channels of every layer that may shrink. A ratio that was given stays.

    Args:
        model: The network, only read.
        structure: What ``analyse`` found in it as it is now.
        request: What is asked.
        original: Cost of the model before any pruning; that of ``model`` by default.

    Raises:
        ValueError: If no channels can be pruned, or as :meth:`PruningProblem.of` does.
    """
    if not request.by_default or request.method.chooses_sizes:
        return request
    problem = _limited(model, structure, request, original)
    most = _most(problem)
    return replace(request, pruning_ratio=DEFAULT_RATIO if most + largest_step(problem) >= DEFAULT_RATIO else most)


def goes_less_far(request: Request) -> bool:
    """Whether :func:`sensible` has found that less than half of the model is to go."""
    return request.by_default and request.target < DEFAULT_RATIO


def why_less(model: nn.Module, structure: Structure, request: Request, *, original: ModelCost | None = None) -> str:
    """How far a request goes by default instead of half, and what holds the rest."""
    problem = _limited(model, structure, request, original)
    others = ways_out(model, structure, problem, _most(problem))
    more = "".join(
        f", {change} (up to {share:.4f})" for change, share in others.items() if "max_layer_ratio" not in change
    )
    return (
        f"No pruning_ratio was given, and half of the {request.unit} of this model cannot go unless some layer loses "
        f"more than half of its channels: {request.target:.1%} will go. The rest is held, most of it in"
        + "".join(what_holds(problem))
        + f"\nFor more, give a pruning_ratio{more}; for no more than this, pruning_ratio={request.target:.4f} says so."
    )


def _limited(model: nn.Module, structure: Structure, request: Request, original: ModelCost | None) -> PruningProblem:
    limit = min(request.max_layer_ratio, _MOST_OF_A_GROUP)
    return PruningProblem.of(model, structure, replace(request, max_layer_ratio=limit), original)


def _most(problem: PruningProblem) -> float:
    return max(problem.gone(problem.smallest()), 0.0)
