"""What a request cannot have, told before anything is done."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from torch import nn

from lightning_coreset.methods import chooses_sizes
from lightning_coreset.planning.cost_model import ModelCost
from lightning_coreset.planning.problem import PruningProblem
from lightning_coreset.planning.request import Request
from lightning_coreset.structure import Structure

_TOLERANCE = 1e-9
_HOLDERS = 4
"""How many of the layers that hold the rest an error names."""


def check_reachable(
    model: nn.Module, structure: Structure, request: Request, *, original: ModelCost | None = None
) -> None:
    """Check that a request can be had: that no more is asked than can go.

    Args:
        model: The network, only read.
        structure: What ``analyse`` found in it as it is now.
        request: What is asked, at the end of a schedule.
        original: Totals of the model before any pruning; those of ``model`` by default.

    Raises:
        ValueError: If even the smallest sizes that all rules and limits allow fall short of the ratio by more than one
            step (one channel, or one multiple of ``round_to``, of the largest group), with what holds the rest and the
            ways out; or for what :meth:`PruningProblem.of` raises.
    """
    check_survey(model, structure, PruningProblem.of(model, structure, request, original))


def check_survey(model: nn.Module, structure: Structure, survey: PruningProblem) -> None:
    """:func:`check_reachable` for a model that was looked at already."""
    request = survey.request
    if chooses_sizes(request.method):
        return
    if survey.ratios:
        _check_each_group(survey)
        return
    most = survey.gone(survey.smallest())
    if most + _largest_step(survey) + _TOLERANCE < request.target:
        raise ValueError(_too_much(survey, most, _ways_out(model, structure, survey, most)))


def _check_each_group(survey: PruningProblem) -> None:
    """Rules say it group by group: none may fall short by more than a step of its own."""
    for ladder in survey.allowed:
        if survey.shortfall(ladder) > max(ladder.longest_step, ladder.multiple) + _TOLERANCE:
            least = 1 - ladder.smallest / ladder.original
            raise ValueError(
                f"Expected pruning_ratio to be at most {least:.4g} for group {ladder.group!r} but got "
                f"{survey.ratios[ladder.group]:g}: {survey.request.limits()} leaves it {ladder.smallest} of "
                f"{ladder.original} channels."
            )


def _largest_step(survey: PruningProblem) -> float:
    """The largest share of the original model that one step takes."""
    unit, sizes = survey.request.unit, survey.cost_model.totals().widths
    whole = getattr(survey.original, unit)
    steps = [
        survey.cost_model.saved(ladder.group, ladder.sizes[0] - ladder.longest_step, sizes, unit)
        for ladder in survey.allowed
    ]
    return max(steps) / whole if whole else 0.0


def _too_much(survey: PruningProblem, most: float, ways_out: Mapping[str, float]) -> str:
    request, unit = survey.request, survey.request.unit
    whole = max(getattr(survey.original, unit), 1)
    smallest = survey.smallest()
    held = survey.cost_model.holders(smallest, unit)
    lines = []
    for name in sorted(held, key=lambda name: -held[name])[:_HOLDERS]:
        left = f"is down to {smallest[name]} channels" if name in smallest else ""
        reason = survey.skipped.get(name, left)
        lines.append(f"\n  {name} ({held[name] / whole:.1%})" + (f", which {reason}" if reason else ""))
    more = ", ".join(f"{change} (up to {share:.4f})" for change, share in ways_out.items())
    return (
        f"Expected pruning_ratio to be at most {max(most, 0.0):.4f} for this model but got {request.target:g}: with "
        f"every group as small as it may be, {1 - most:.1%} of the original {unit} stay, most of them in"
        + "".join(lines)
        + (f"\nMore can go with {more}." if more else "\nAsk for less.")
    )


def _ways_out(model: nn.Module, structure: Structure, survey: PruningProblem, most: float) -> dict[str, float]:
    """Which single change lets more go, and how much then."""
    changes: dict[str, dict[str, Any]] = {
        "include_residual=True": {"include_residual": True},
        "ignore=()": {"ignore": ()},
        "only=()": {"only": ()},
        "max_ratio=1.0": {"max_ratio": 1.0},
        "min_channels=1": {"min_channels": 1},
        "round_to=1": {"round_to": 1},
    }
    found = {}
    for text, change in changes.items():
        relaxed = PruningProblem.of(model, structure, replace(survey.request, **change))
        share = relaxed.gone(relaxed.smallest())
        if share > most + _TOLERANCE:
            found[text] = share
    return found
