"""What has been done in a training run so far, as plain data for checkpoints."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from lightning_coreset.plain_data import as_type, from_plain
from lightning_coreset.plan import PruningPlan
from lightning_coreset.planning import ModelCost
from lightning_coreset.structure import Completion, Count
from lightning_coreset.training.event_archive import EventArchive, plan_from_dict, record_from_dict, without_latency
from lightning_coreset.training.report import History
from lightning_coreset.training.untrained_parts import UntrainedParts


@dataclass(repr=False)
class Progress:
    """The state of a training run with pruning events.

    Attributes:
        plans: The plan of every event that took place and was not taken back, without ``changes``.
        done: Epochs (steps) and ratios of the schedule's events that are over.
        original: Parameters, MACs and widths of the model before the first event; ``None`` until they are measured.
        target: The ratio that was found sensible for the original, where none was given; else ``None``.
        final_sizes: With ``order="bottom_up"``, the number of classes that every group will be left with.
        unsound: Groups that failed the self-check, each with the reason.
        completions: By group name, what the self-check found out about groups, such as numbers that change with them.
        untrained: What of the module nothing trains; ``None`` until it is known.
        history: The record of every event in plain numbers.
        archive: Plans and records once more, as checkpoints hold them.
        latency: With ``unit="latency"``, what was measured, or what a function is asked about, as plain data.
        is_resumed: Whether training went on from a checkpoint: if that has no ``original``, the model may be pruned.
    """

    plans: list[PruningPlan] = field(default_factory=list)
    done: dict[int, float] = field(default_factory=dict)
    original: ModelCost | None = None
    target: float | None = None
    final_sizes: dict[str, int] = field(default_factory=dict)
    unsound: dict[str, str] = field(default_factory=dict)
    completions: dict[str, Completion] = field(default_factory=dict)
    untrained: UntrainedParts | None = None
    history: History = field(default_factory=History)
    archive: EventArchive = field(default_factory=EventArchive)
    latency: dict[str, Any] | None = None
    is_resumed: bool = False

    def forget_model(self) -> None:
        """What was found out about the model before the first event is to be found out anew."""
        self.original, self.completions, self.unsound = None, {}, {}

    def open_events(self, events: Mapping[int, float]) -> dict[int, float]:
        """The events that ask for more than was reached.

        Compared by ratio, not by epoch: if training continues for more epochs, the epochs of events change.
        """
        reached = max(self.done.values(), default=0.0)
        return {epoch: ratio for epoch, ratio in events.items() if ratio > reached}

    @property
    def reached(self) -> float:
        """The pruning ratio that the last event reached."""
        return self.plans[-1].reached if self.plans else 0.0

    @property
    def places(self) -> list[int]:
        """The places in the history of the events that removed channels and were not taken back."""
        standing = [place for place, record in enumerate(self.history) if not record.reverted]
        return [place for place, plan in zip(standing, self.plans, strict=True) if plan.channels_removed]

    def add(self, plan: PruningPlan, done: Mapping[int, float], **when: Any) -> None:
        """Record an event.

        Args:
            plan: What it did.
            done: The events of the schedule that are over with it, and their ratios.
            **when: Epoch, step and accuracies, as for :meth:`History.add`.
        """
        assert self.original is not None, "it was measured before the first event"
        plan = plan.without_tensors()
        self.plans.append(plan)
        self.done.update(done)
        self.archive.add(plan, self.history.add(plan, self.original, **when))

    def note_measured(self, latency: tuple[float, float]) -> None:
        """Add to the last event the seconds of the original and of the pruned model."""
        plan = self.plans[-1] = replace(self.plans[-1], latency_measured=latency)
        original, pruned = latency
        self.history[-1] = replace(self.history[-1], latency_measured=pruned, latency_measured_original=original)
        self.archive.replace_last(plan, self.history[-1])

    def undo(self, plans: int, done: Mapping[int, float]) -> None:
        """Go back to what was before the last event, which stays in the history.

        Args:
            plans: How many plans there were.
            done: What was done.
        """
        del self.plans[plans:]
        self.done = dict(done)
        self.history.revert()

    def to_dict(self) -> dict[str, Any]:
        """Numbers, strings, lists and dicts; ``plans`` are the places in ``history`` of the events that remain."""
        completions = {name: completion.to_dict() for name, completion in self.completions.items()}
        return {
            "plans": [place for place, record in enumerate(self.history) if not record.reverted],
            "done": dict(self.done),
            "original": None if self.original is None else without_latency(asdict(self.original)),
            "final_sizes": dict(self.final_sizes),
            "unsound": dict(self.unsound),
            "history": [
                [text, record.accuracy_recovered, record.reverted]
                for text, record in zip(self.archive.texts, self.history, strict=True)
            ],
            **({} if self.target is None else {"target": self.target}),
            **({"completions": completions} if completions else {}),
            **({} if self.untrained is None else {"untrained": self.untrained.to_dict()}),
            **({} if self.latency is None else {"latency": self.latency}),
        }

    @classmethod
    def from_dict(cls, plain: Any) -> Progress:
        """The inverse of :meth:`to_dict`.

        Raises:
            ValueError: If it is something else.
        """
        plain = as_type(plain, dict[str, Any], "the state")
        original = plain.get("original")
        archive, plans, history = _events(_read(plain, "plans", list[Any]), _read(plain, "history", list[Any]))
        completions = as_type(plain.get("completions", {}), dict[str, Any], "completions")  # version 0.1 has none
        return cls(
            plans=plans,
            done=_ratios(_read(plain, "done", dict[int, float])),
            original=None if original is None else from_plain(ModelCost, original),
            target=_target(plain.get("target")),
            final_sizes=_read(plain, "final_sizes", dict[str, int]),
            unsound=_read(plain, "unsound", dict[str, str]),
            completions={name: _completion(one) for name, one in completions.items()},
            untrained=from_plain(UntrainedParts, plain["untrained"]) if "untrained" in plain else None,
            latency=as_type(plain.get("latency"), dict[str, Any] | None, "latency"),
            history=history,
            archive=archive,
        )


def _events(places: list[Any], events: list[Any]) -> tuple[EventArchive, list[PruningPlan], History]:
    """The archive of past events, the plans of those that remain, and the records of all."""
    if any(isinstance(one, Mapping) for one in (*places, *events)):
        return _events_of_version_0_1(places, events)
    parts = [as_type(event, tuple[Any, ...], "an event") for event in events]
    if any(len(part) != 3 for part in parts):
        raise ValueError(f"Expected three values for every event but got {min(map(len, parts))}.")
    archive, read = EventArchive.read(text for text, _, _ in parts)
    history, plans = History(), []
    for (plan, record), (_, recovered, reverted) in zip(read, parts, strict=True):
        recovered, reverted = as_type(recovered, float | None, "an accuracy"), as_type(reverted, bool, "reverted")
        history.append(replace(record, accuracy_recovered=recovered, reverted=reverted))
        if not reverted:
            plans.append(plan)
    if places != [place for place, record in enumerate(history) if not record.reverted]:
        raise ValueError(f"Expected the places of {len(plans)} events that remain but got {places}.")
    return archive, plans, history


def _events_of_version_0_1(places: list[Any], events: list[Any]) -> tuple[EventArchive, list[PruningPlan], History]:
    plans, history = [plan_from_dict(plan) for plan in places], History(map(record_from_dict, events))
    if len(plans) != sum(not record.reverted for record in history):
        raise ValueError(f"Expected a plan for every event that remains but got {len(plans)}.")
    archive, standing = EventArchive(), iter(plans)
    for record in history:
        # Version 0.1 did not keep the plans of events that were taken back.
        archive.add(None if record.reverted else next(standing), record)
    return archive, plans, history


def _ratios(done: dict[int, float]) -> dict[int, float]:
    if not all(0 <= ratio <= 1 for ratio in done.values()):
        raise ValueError(f"Expected ratios from 0 to 1 of the events that are done but got {done}.")
    return done


def _target(plain: Any) -> float | None:
    target = as_type(plain, float | None, "the target")
    if target is not None and not 0 <= target < 1:
        raise ValueError(f"Expected a target from 0 to 1 but got {target}.")
    return target


def _completion(plain: Any) -> Completion:
    plain = as_type(plain, dict[str, Any], "a completion")
    counts = tuple(from_plain(Count, count) for count in _read(plain, "counts", list[Any]))
    return from_plain(Completion, plain, counts=counts)


def _read(plain: Mapping[str, Any], name: str, kind: Any) -> Any:
    if name not in plain:
        raise ValueError(f"Expected {name} among the values but got none.")
    return as_type(plain[name], kind, name)
