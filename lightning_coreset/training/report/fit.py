"""What is printed when the structure of a model is known, and when training is over."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from lightning_coreset.plan_tables import UNITS
from lightning_coreset.qualified_names import by_reason, sentence
from lightning_coreset.training.report.console import pretty_table
from lightning_coreset.training.report.events import accuracy, latency_row, reached
from lightning_coreset.training.report.history import History

_MOST_REASONS = 4


@dataclass(frozen=True)
class Outlook:
    """What will be pruned in a fit, as far as it is known before the first event.

    Attributes:
        unit: What the ratio counts.
        whole: How many of these the original model has; ``None`` if it is not a number.
        reached: The ratio that is reached already, by events before a checkpoint.
        target: The ratio that is reached in the end; ``None`` if the method chooses the sizes.
        rules: Whether rules give groups ratios of their own, of which ``target`` is the largest.
        groups: How many groups may lose channels.
        skipped: The layers that stay, each with the reason.
        times: The epochs (steps) of the events to come; those that are due already come now, as one.
        interval: What these count.
        curve: The name of the schedule.
    """

    unit: str
    whole: float | None
    reached: float
    target: float | None
    rules: bool
    groups: int
    skipped: Mapping[str, str]
    times: Sequence[int]
    interval: str
    curve: str

    def __str__(self) -> str:
        """Two lines: what will be pruned and when, and what stays."""
        groups = f"{self.groups} of {self.groups + len(self.skipped)} groups of layers"
        first = f"Coreset pruning: {groups}, {self._size()}, {self._events()} ({self.curve})."
        return f"{first}\n{self._stays()}" if self.skipped else first

    def _size(self) -> str:
        of = f"of {self._whole()}"
        if self.target is None:
            return f"as much {of} as the method allows"
        if self.rules:
            return f"up to {_percent(self.target)} of a group's channels, by rules"
        if not self.times:
            return f"{_percent(self.reached)} {of} removed"
        return f"{_percent(self.reached)} -> {_percent(self.target)} {of}"

    def _whole(self) -> str:
        unit = UNITS.get(self.unit, self.unit)
        if self.whole is None:
            return f"the {unit}"
        return f"{1e3 * self.whole:.4g} ms of latency" if self.unit == "latency" else f"{self.whole:,} {unit}"

    def _events(self) -> str:
        if not self.times:
            return "no more events"
        first, last = self.times[0], self.times[-1]
        if len(self.times) == 1:
            return f"in 1 event, {self.interval} {first}"
        return f"in {len(self.times)} events, {self.interval}s {first} to {last}"

    def _stays(self) -> str:
        reasons = sorted(by_reason(self.skipped).items(), key=lambda one: -len(one[1]))
        told = [sentence(names, reason, most=2) for reason, names in reasons[:_MOST_REASONS]]
        if len(reasons) > _MOST_REASONS:
            told.append(f"and {len(reasons) - _MOST_REASONS} more reasons (see callback.dry_run)")
        return f"Not pruned: {'; '.join(told)}."


@dataclass(frozen=True)
class Outcome:
    """What has been pruned when training is over.

    Attributes:
        history: All events.
        sizes: Bytes of the weights in a state dict, of the original and now.
        metric: The name of what is measured as accuracy.
        best: The best accuracy in validation since the last event; ``None`` if it was not measured.
        seconds: How long the events of this fit took.
        whole: How long this fit took.
    """

    history: History
    sizes: tuple[int, int]
    metric: str
    best: float | None
    seconds: float
    whole: float

    def __str__(self) -> str:
        """A table of the original and the model now, and lines on accuracy and time."""
        last = self.history.current
        undone = sum(record.reverted for record in self.history)
        events = f"{len(self.history)} event{'s' * (len(self.history) != 1)}"
        some = (
            "" if undone == len(self.history) == 1 else f"{'all' if undone == len(self.history) else undone} of them "
        )
        taken_back = f", {some}taken back" if undone else ""
        if last is None:
            return f"Pruning is over: {events}{taken_back}; the model is the original one."
        lines = [f"Pruning is over: {reached(last)}, in {events}{taken_back}.", pretty_table(self._rows())]
        return "\n".join([*lines, *self._accuracies(), self._time()])

    def _rows(self) -> list[tuple[str, ...]]:
        last = self.history.current
        assert last is not None
        numbers = {
            "parameters": (last.params_original, last.params),
            "MACs per sample": (last.macs_original, last.macs),
            "channels": (
                sum(group.channels_original for group in last.groups),
                sum(group.channels for group in last.groups),
            ),
        }
        rows = [(name, *(f"{number:,}" for number in own), _left(own)) for name, own in numbers.items()]
        rows += latency_row(last.latency_original, last.latency)
        return [("", "original", "now", "left"), *rows, ("file size", *_bytes(self.sizes), _left(self.sizes))]

    def _accuracies(self) -> list[str]:
        last = self.history.current
        assert last is not None
        known = {
            "before the first event": self.history[0].accuracy_before,
            "at the end": last.accuracy_recovered if last.accuracy_recovered is not None else last.accuracy_after,
            "best since the last event": self.best,
        }
        told = [f"{accuracy(value)} {when}" for when, value in known.items() if value is not None]
        return [f"{self.metric}: {', '.join(told)}"] if told else []

    def _time(self) -> str:
        share = self.seconds / self.whole if self.whole else 0.0
        return f"pruning took {self.seconds:.1f} s of the {self.whole:.1f} s of this fit ({share:.0%})"


def _percent(ratio: float) -> str:
    return f"{100 * ratio:.4g}%"


def _left(numbers: tuple[int, int]) -> str:
    return f"{numbers[1] / max(numbers[0], 1):.1%}"


def _bytes(sizes: tuple[int, int]) -> tuple[str, str]:
    scale, unit = next(
        (scale, unit) for scale, unit in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")) if sizes[0] >= scale or unit == "kB"
    )
    first, second = (f"{size / scale:,.2f} {unit}" for size in sizes)
    return first, second
