"""What people read of a plan: its table, totals and reasons, as text and as HTML."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from lightning_coreset.qualified_names import listed, not_pruned
from lightning_coreset.tables import html_details, html_lines, html_table, text_table

if TYPE_CHECKING:
    from lightning_coreset.plan import GroupPlan, PruningPlan

UNITS: Mapping[str, str] = {"params": "parameters", "macs": "MACs"}
"""How sentences call what a ratio counts; other units go by their own names."""

_MOST_ROWS = 10
_CERTIFICATE = ("found", "certified", "input radius")


def plan_rows(groups: Sequence[GroupPlan]) -> list[tuple[str, ...]]:
    """The cells of a table of groups: a row of headings, then one row for each group."""
    certified = any(group.radius_source is not None for group in groups)
    timed = any(group.latency_removed is not None for group in groups)
    heads = (
        *("group", "channels", "kept", "params", "MACs", *(("latency",) if timed else ()), "error"),
        *(_CERTIFICATE if certified else ()),
        "method",
    )
    cells = [
        (
            group.name,
            f"{group.channels_before:,} -> {group.channels_after:,}",
            f"{group.channels_after / group.channels_before:.0%}",
            removed(group.params_removed),
            removed(group.macs_removed),
            *((removed_ms(group.latency_removed),) if timed else ()),
            "" if group.expected_error is None else f"{group.expected_error:.2%}",
            *(_certificate_cells(group) if certified else ()),
            group.method,
        )
        for group in groups
    ]
    return [heads, *cells]


def plan_table(plan: PruningPlan, most: int | None = None) -> str:
    """The table of a plan's groups, followed by the totals; of ``most`` groups, those that lose most."""
    groups = plan.groups if most is None or len(plan.groups) <= most else by_loss(plan)[:most]
    hidden = len(plan.groups) - len(groups)
    lines = [text_table(plan_rows(groups)), *([f"... and {hidden} more groups"] if hidden else []), *plan.totals()]
    return "\n".join(lines)


def by_loss(plan: PruningPlan) -> list[GroupPlan]:
    """The groups of a plan, what loses most first: MACs or seconds if the ratio counts those, else parameters."""
    quantity = {"macs": "macs_removed", "latency": "latency_removed"}.get(plan.unit, "params_removed")
    return sorted(plan.groups, key=lambda group: -(getattr(group, quantity) or 0))


def attribute_lines(plan: PruningPlan) -> list[str]:
    """The changes of attributes, one line for all modules in which a number changes in the same way."""
    modules: dict[tuple[Any, ...], list[str]] = {}
    for change in plan.attributes:
        modules.setdefault((change.name, change.old, change.new), []).append(change.module or "the model")
    return [f"number changed: {name} {old} -> {new} in {listed(names)}" for (name, old, new), names in modules.items()]


def plan_text(plan: PruningPlan) -> str:
    """The table, the numbers that change with the groups, and the layers that stay, by reason."""
    return "\n".join([plan_table(plan), *attribute_lines(plan), *not_pruned(plan.skipped)])


def plan_in_short(plan: PruningPlan) -> str:
    """One line: how many groups shrink, and what the model loses."""
    smaller = sum(group.channels_after < group.channels_before for group in plan.groups)
    return (
        f"{smaller} of {len(plan.groups)} groups smaller, {plan.params_before:,} -> {plan.params_after:,} parameters, "
        f"{plan.reached:.2%} of the {UNITS.get(plan.unit, plan.unit)} removed ({plan.requested:.2%} requested)"
    )


def plan_html(plan: PruningPlan) -> str:
    """The groups that lose most and the totals, with all groups and the reasons folded away."""
    groups = by_loss(plan)[:_MOST_ROWS] if len(plan.groups) > _MOST_ROWS else plan.groups
    parts = [html_lines([plan_in_short(plan)]), html_table(plan_rows(groups))]
    if len(groups) < len(plan.groups):
        parts.append(html_details(f"all {len(plan.groups)} groups", html_table(plan_rows(plan.groups))))
    parts.append(html_lines([*plan.totals(), *attribute_lines(plan)]))
    if plan.skipped:
        layers = "1 layer" if len(plan.skipped) == 1 else f"{len(plan.skipped)} layers"
        parts.append(html_details(f"{layers} not pruned", html_lines(not_pruned(plan.skipped))))
    return f"<div>{''.join(parts)}</div>"


def removed(count: int) -> str:
    """A number of parameters or MACs that go, empty for none."""
    return f"-{count:,}" if count else ""


def removed_ms(seconds: float | None) -> str:
    """A number of seconds that go, in milliseconds, empty for none."""
    return f"{-1e3 * seconds:.3g} ms" if seconds else ""


def _certificate_cells(group: GroupPlan) -> tuple[str, ...]:
    """The cells of one group in the columns ``_CERTIFICATE``."""
    numbers = (group.found_error, group.certified_error, group.input_radius)
    found, certified, radius = ("" if number is None else f"{number:.4g}" for number in numbers)
    source = group.radius_source or ""
    return found, certified, f"{radius} {source}".strip()
