"""Requests that change nothing, in whole or in part: what to tell whoever made them."""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn

from lightning_coreset.planning.layer_rules import Rule, RuleMatcher, format_rule
from lightning_coreset.planning.problem import PruningProblem, prunable
from lightning_coreset.planning.request import Request
from lightning_coreset.structure import Structure


def idle_rules(model: nn.Module, structure: Structure, request: Request) -> list[str]:
    """What to warn of: rules that match modules and yet change nothing, each with the reason."""
    groups, skipped = prunable(model, structure, request)
    makers, messages = RuleMatcher(model), []
    rules = {"pruning_ratio": tuple(request.pruning_ratio) if isinstance(request.pruning_ratio, Mapping) else ()}
    for argument, given in (rules | {"only": request.only, "ignore": request.ignore}).items():
        able = structure.groups if argument == "ignore" else groups
        for rule in given:
            if any(any(makers.named([rule], group)) for group in able):
                continue
            held = {group.name for group in structure.groups if any(makers.named([rule], group))}
            reasons = [f"{name} {why}" for name, why in skipped.items() if name in held or makers.means(rule, name)]
            if argument == "ignore" and reasons:
                continue  # it stays, as was asked
            messages.append(
                f"The rule {format_rule(rule)} of {argument} names no group of channels that can be pruned: "
                + ("; ".join(reasons[:5]) or _no_makers(model, makers, rule))
                + "."
            )
    return messages


def why_nothing_goes(model: nn.Module, structure: Structure, request: Request) -> str:
    """Why the plan of a ratio above zero removes nothing, in a sentence with the numbers."""
    survey = PruningProblem.of(model, structure, request)
    unit, whole = request.unit, getattr(survey.original, request.unit)
    steps = {
        ladder.group: survey.cost_model.saved(ladder.group, ladder.sizes[1], survey.original.widths, unit)
        for ladder in survey.allowed
        if len(ladder.sizes) > 1
    }
    if not steps:
        return f"No channel goes: no group can become smaller with {request.limits()}. Lower these limits."
    group = min(steps, key=lambda name: steps[name])
    return (
        f"No channel goes: {survey.requested():.2%} of {whole:,} {unit} is {survey.requested() * whole:,.1f}, and the "
        f"smallest step, {request.limits() or 'one channel'} of {group}, is {steps[group]:,.0f}. Ask for a larger "
        "ratio."
    )


def _no_makers(model: nn.Module, makers: RuleMatcher, rule: Rule) -> str:
    modules = makers.modules(rule)
    inner = next((name for name in modules if any(model.get_submodule(name).children())), None)
    names = ", ".join(modules[:3])
    return f"{names} makes no channels itself" + (f" ({inner + '.*'!r} names what is inside)" if inner else "")
