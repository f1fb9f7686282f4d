"""Whether a request can be met, and which parts of it change nothing: checked before anything is changed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from torch import nn

from lightning_coreset.planning.cost_model import ModelCost
from lightning_coreset.planning.layer_rules import Rule, RuleMatcher, format_rule
from lightning_coreset.planning.problem import PruningProblem, prunable
from lightning_coreset.planning.request import Request
from lightning_coreset.qualified_names import alike
from lightning_coreset.structure import Structure

_TOLERANCE = 1e-9
_HOLDERS = 4
"""How many of the layers that hold the rest an error names."""
_NORMALIZATION = "its normalisation, which needs two channels,"
"""What limits the size of a group where no option does."""


def check_reachable(
    model: nn.Module, structure: Structure, request: Request, *, original: ModelCost | None = None
) -> None:
    """Check that a request can be met.

    Args:
        model: The network, only read.
        structure: What ``analyse`` found in it as it is now.
        request: What is asked, at the end of a schedule.
        original: Cost of the model before any pruning; that of ``model`` by default.

    Raises:
        ValueError: If even the smallest sizes that all rules and limits allow fall short of the ratio by more than one
            step (one channel, or one multiple of ``round_to``, of the largest group), with what holds the rest and the
            ways out; or for what :meth:`PruningProblem.of` raises.
    """
    check_feasible(model, structure, PruningProblem.of(model, structure, request, original))


def most_that_can_go(model: nn.Module, structure: Structure, request: Request) -> float:
    """The largest ratio that all rules and limits allow; 0 if nothing can be pruned."""
    try:
        problem = PruningProblem.of(model, structure, request)
    except ValueError:
        return 0.0
    return max(problem.gone(problem.smallest()), 0.0)


def check_feasible(model: nn.Module, structure: Structure, problem: PruningProblem) -> None:
    """:func:`check_reachable` for a request that was applied to the model already."""
    if problem.request.method.chooses_sizes:
        return
    if problem.ratios:
        _check_each_group(problem)
        return
    most, target = problem.gone(problem.smallest()), problem.request.target - _TOLERANCE
    if most < target and most + largest_step(problem) < target:
        raise ValueError(_too_much(problem, most, ways_out(model, structure, problem, most)))


def _check_each_group(problem: PruningProblem) -> None:
    """Where rules give each group a ratio, none may fall short by more than a step of its own."""
    for group in problem.allowed:
        if problem.shortfall(group) > max(group.longest_step, group.multiple) + _TOLERANCE:
            least = 1 - group.smallest / group.original
            limits = problem.request.limits() or _NORMALIZATION
            raise ValueError(
                f"Expected pruning_ratio to be at most {least:.4g} for group {group.name!r} but got "
                f"{problem.ratios[group.name]:g}: {limits} leaves it {group.smallest} of "
                f"{group.original} channels."
            )


def largest_step(problem: PruningProblem) -> float:
    """The largest fraction of the original model that one step removes."""
    unit, sizes = problem.request.unit, problem.cost_model.totals().widths
    whole = getattr(problem.original, unit)
    steps = [
        problem.cost_model.saved(group.name, group.sizes[0] - group.longest_step, sizes, unit)
        for group in problem.allowed
    ]
    return max(steps) / whole if whole else 0.0


def _too_much(problem: PruningProblem, most: float, ways_out: Mapping[str, float]) -> str:
    request, unit = problem.request, problem.request.unit
    more = ", ".join(f"{change} (up to {share:.4f})" for change, share in ways_out.items())
    return (
        f"Expected pruning_ratio to be at most {max(most, 0.0):.4f} for this model but got {request.target:g}: with "
        f"every group as small as it may be, {1 - most:.1%} of the original {unit} stay, most of them in"
        + "".join(what_holds(problem))
        + (f"\nMore can go with {more}." if more else "\nAsk for less.")
    )


def what_holds(problem: PruningProblem) -> list[str]:
    """The layers that hold most of what is left with every group as small as it may be, a line for each."""
    unit, smallest = problem.request.unit, problem.smallest()
    whole = getattr(problem.original, unit) or 1
    held = problem.cost_model.holders(smallest, unit)
    reasons: dict[str, list[str]] = {}
    for name in held:
        left = f"is down to {smallest[name]} channels" if name in smallest else ""
        reasons.setdefault(problem.skipped.get(name, left), []).append(name)
    entries = [
        (sum(held[name] for name in names), label, f"each {reason}" if reason and len(names) > 1 else reason)
        for reason, all_names in reasons.items()
        for label, names in alike(all_names)
    ]
    most = sorted(entries, key=lambda entry: -entry[0])[:_HOLDERS]
    return [
        f"\n  {label} ({share / whole:.1%})" + (f", which {reason}" if reason else "") for share, label, reason in most
    ]


def ways_out(model: nn.Module, structure: Structure, problem: PruningProblem, most: float) -> dict[str, float]:
    """Which single change allows a larger ratio, and how large then."""
    changes: dict[str, dict[str, Any]] = {
        "include_residual=True": {"include_residual": True},
        "ignore=()": {"ignore": ()},
        "only=()": {"only": ()},
        "max_layer_ratio=1.0": {"max_layer_ratio": 1.0},
        "min_channels=1": {"min_channels": 1},
        "round_to=1": {"round_to": 1},
    }
    found = {}
    for text, change in changes.items():
        relaxed = PruningProblem.of(model, structure, replace(problem.request, **change))
        share = relaxed.gone(relaxed.smallest())
        if share > most + _TOLERANCE:
            found[text] = share
    return found


def idle_rules(model: nn.Module, structure: Structure, request: Request) -> list[str]:
    """Warnings about rules that match modules and yet change nothing, each with the reason."""
    groups, skipped = prunable(model, structure, request)
    matcher, messages = RuleMatcher(model), []
    rules = {"pruning_ratio": tuple(request.pruning_ratio) if isinstance(request.pruning_ratio, Mapping) else ()}
    for argument, given in (rules | {"only": request.only, "ignore": request.ignore}).items():
        # To ignore a copy holds its original.
        able = [group.with_copies for group in structure.groups] if argument == "ignore" else groups
        for rule in given:
            if any(any(matcher.named([rule], group)) for group in able):
                continue
            held = {group.name for group in structure.groups if any(matcher.named([rule], group))}
            reasons = [f"{name} {why}" for name, why in skipped.items() if name in held or matcher.means(rule, name)]
            reasons += [
                f"{copy.name} is a copy of {copy.original}, whose channels it loses"
                for copy in structure.untrained.copies
                if any(matcher.means(rule, name) for name, _ in copy.modules)
            ]
            if argument == "ignore" and reasons:
                continue  # it stays, as was asked
            messages.append(
                f"The rule {format_rule(rule)} of {argument} names no group of channels that can be pruned: "
                + ("; ".join(reasons[:5]) or _no_makers(model, matcher, rule))
                + "."
            )
    return messages


def why_nothing_goes(model: nn.Module, structure: Structure, request: Request) -> str:
    """Why the plan of a ratio above zero removes nothing, in a sentence with the numbers."""
    problem = PruningProblem.of(model, structure, request)
    unit, whole = request.unit, getattr(problem.original, request.unit)
    steps = {
        group.name: problem.cost_model.saved(group.name, group.sizes[1], problem.original.widths, unit)
        for group in problem.allowed
        if len(group.sizes) > 1
    }
    if not steps and unit == "latency":
        return "No channel is removed: no size of a group that is allowed takes less time."
    if not steps and not request.limits():
        return "No channel is removed: every group has the two channels that its normalisation needs."
    if not steps:
        return f"No channel is removed: no group can become smaller with {request.limits()}. Lower these limits."
    group = min(steps, key=lambda name: steps[name])
    if unit == "latency":
        return (
            f"No channel is removed: {problem.requested():.2%} of {1e3 * whole:.4g} ms is "
            f"{1e3 * problem.requested() * whole:.4g} ms, and the smallest step that saves time, of {group}, saves "
            f"{1e3 * steps[group]:.4g} ms. Ask for a larger ratio."
        )
    return (
        f"No channel is removed: {problem.requested():.2%} of {whole:,} {unit} is {problem.requested() * whole:,.1f}, "
        f"and the smallest step, {request.limits() or 'one channel'} of {group}, is {steps[group]:,.0f}. Ask for "
        "a larger ratio."
    )


def _no_makers(model: nn.Module, matcher: RuleMatcher, rule: Rule) -> str:
    modules = matcher.modules(rule)
    inner = next((name for name in modules if any(model.get_submodule(name).children())), None)
    names = ", ".join(modules[:3])
    return f"{names} makes no channels itself" + (f" ({inner + '.*'!r} names what is inside)" if inner else "")
