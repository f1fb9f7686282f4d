"""What is printed at an event: what the model has lost, its accuracy, and the groups that changed most."""

from __future__ import annotations

from collections.abc import Sequence

from lightning_coreset.plan import GroupPlan, PruningPlan
from lightning_coreset.plan_tables import UNITS, by_loss, removed, removed_ms
from lightning_coreset.qualified_names import alike
from lightning_coreset.training.report.console import pretty_table
from lightning_coreset.training.report.records import EventRecord

_MOST_ROWS = 10


def event_report(plan: PruningPlan, record: EventRecord, when: str, metric: str = "accuracy") -> str:
    """What an event did, as two small tables: of the whole model, and of the groups that changed most.

    Groups whose names only differ in a number, and whose other numbers are all the same, are one row.

    Args:
        plan: The plan of the event.
        record: Its record.
        when: Its time, for the heading.
        metric: The name of what is measured as accuracy.
    """
    if not plan.channels_removed:
        return nothing_to_do(record, when)
    return "\n".join(
        [
            f"Pruned at {when}: {reached(record)}.",
            pretty_table(_model_rows(plan, record, metric)),
            "",
            *_groups(plan, record),
        ]
    )


def event_line(plan: PruningPlan, record: EventRecord, when: str, metric: str = "accuracy") -> str:
    """The same in one line, for notebooks."""
    if not plan.channels_removed:
        return nothing_to_do(record, when)
    accuracies = [accuracy(one) for one in (record.accuracy_before, record.accuracy_after) if one is not None]
    measured = f", {metric} {' -> '.join(accuracies)}" if accuracies else ""
    removed_so_far = f"{record.reached:.2%} of the {UNITS.get(record.unit, record.unit)} removed"
    sizes = f"{plan.params_before:,} -> {plan.params_after:,} parameters"
    return f"Pruned at {when}: {sizes}, {removed_so_far}{measured}."


def accuracy(value: float | None) -> str:
    """An accuracy as text; empty if it was not measured."""
    return "" if value is None else f"{value:.4f}"


def reached(record: EventRecord) -> str:
    """How much is gone, and how much was asked for."""
    return f"{_removed(record)} ({record.requested:.2%} requested)"


def nothing_to_do(record: EventRecord, when: str) -> str:
    """What is said of an event that removes no channel, since the ratio is reached as nearly as it can be."""
    if record.reached >= record.requested:
        return f"Nothing to do at {when}: {_removed(record)} already ({record.requested:.2%} requested)."
    return f"Nothing to do at {when}: {reached(record)}, and the next step would miss that by more."


def _removed(record: EventRecord) -> str:
    are = "is" if record.unit == "latency" else "are"
    return f"{record.reached:.2%} of the {UNITS.get(record.unit, record.unit)} {are} removed"


def latency_row(*seconds: float | None) -> list[tuple[str, ...]]:
    """The row of milliseconds, of the original first; none where time is not counted."""
    known = [each for each in seconds if each is not None]
    if len(known) < len(seconds):
        return []
    return [("latency in ms", *(f"{1e3 * each:.4g}" for each in known), f"{known[-1] / known[0]:.1%}")]


def _model_rows(plan: PruningPlan, record: EventRecord, metric: str) -> list[tuple[str, ...]]:
    left = sum(group.channels for group in record.groups)
    numbers = {
        "parameters": (record.params_original, plan.params_before, plan.params_after),
        "MACs per sample": (record.macs_original, plan.macs_before, plan.macs_after),
        "channels": (sum(group.channels_original for group in record.groups), left + plan.channels_removed, left),
    }
    rows = [("", "original", "before", "after", "left")]
    rows += [
        (name, *(f"{number:,}" for number in own), f"{own[-1] / max(own[0], 1):.1%}") for name, own in numbers.items()
    ]
    times = (record.latency_original, plan.latency_before, plan.latency_after)
    rows += latency_row(*times)
    if record.accuracy_before is not None or record.accuracy_after is not None:
        rows.append((metric, "", accuracy(record.accuracy_before), accuracy(record.accuracy_after), ""))
    return rows


def _groups(plan: PruningPlan, record: EventRecord) -> list[str]:
    """The table of the groups that changed most, and how many others there are."""
    changed = [group for group in by_loss(plan) if group.channels_after < group.channels_before]
    originals = {group.name: group.channels_original for group in record.groups}
    by_numbers: dict[tuple[str, ...], list[str]] = {}
    for group in changed:
        cells = _cells(group, originals.get(group.name, group.channels_before))
        by_numbers.setdefault(cells, []).append(group.name)
    entries = [(label, names, cells) for cells, all_names in by_numbers.items() for label, names in alike(all_names)]
    shown = entries[:_MOST_ROWS]
    errors = {group.name: group.expected_error for group in changed if group.expected_error is not None}
    rows = [
        (label, *numbers, _largest([errors[name] for name in names if name in errors]), method)
        for label, names, (*numbers, method) in shown
    ]
    lines = [pretty_table(_without_idle_columns([_HEADS, *rows]))]
    if any(len(names) > 1 for _, names, _ in shown):
        lines.append("(n): n groups, each with these numbers; of their errors the largest")
    hidden = sum(len(names) for _, names, _ in entries[_MOST_ROWS:])
    if hidden:
        lines.append(f"... and {hidden} more groups, see print(callback.plans[-1])")
    if len(plan.groups) > len(changed):
        lines.append(f"groups that keep all their channels: {len(plan.groups) - len(changed)}")
    return lines


_HEADS = ("group", "channels", "left", "params", "MACs", "latency", "error", "method")


def _cells(group: GroupPlan, original: int) -> tuple[str, ...]:
    return (
        f"{group.channels_before:,} -> {group.channels_after:,}",
        f"{group.channels_after / original:.0%}",
        removed(group.params_removed),
        removed(group.macs_removed),
        removed_ms(group.latency_removed),
        group.method.partition(" (")[0],
    )


def _largest(errors: Sequence[float]) -> str:
    return f"{max(errors):.2%}" if errors else ""


def _without_idle_columns(rows: Sequence[tuple[str, ...]]) -> list[tuple[str, ...]]:
    """The rows without columns that are empty, and without the method where it is the same for all."""
    head, *body = rows
    columns = [place for place in range(len(head)) if any(row[place] for row in body)]
    if len({row[-1] for row in body}) == 1:
        columns.pop()
    return [tuple(row[place] for place in columns) for row in rows]
