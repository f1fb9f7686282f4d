"""What has been done in a training run so far, as plain data for checkpoints."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from lightning_coreset.plan import PruningPlan
from lightning_coreset.planning import ModelCost
from lightning_coreset.structure import Completion
from lightning_coreset.training.report import History


@dataclass
class Progress:
    """The state of a training run with pruning events.

    Attributes:
        plans: The plan of every event that took place. Those of a checkpoint have no ``changes``.
        done: Epochs (steps) and ratios of the schedule's events that are over.
        original: Parameters, MACs and widths of the model before the first event; ``None`` until they are measured.
        final_sizes: With ``order="bottom_up"``, the number of classes that every group will be left with.
        unsound: Groups that failed the self-check, each with the reason.
        completions: By group name, what the self-check found out about groups, such as numbers that change with them.
        history: The record of every event in plain numbers.
    """

    plans: list[PruningPlan] = field(default_factory=list)
    done: dict[int, float] = field(default_factory=dict)
    original: ModelCost | None = None
    final_sizes: dict[str, int] = field(default_factory=dict)
    unsound: dict[str, str] = field(default_factory=dict)
    completions: dict[str, Completion] = field(default_factory=dict)
    history: History = field(default_factory=History)

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

    def to_dict(self) -> dict[str, Any]:
        """Numbers, strings, lists and dicts."""
        completions = {name: completion.to_dict() for name, completion in self.completions.items()}
        return {
            "plans": [replace(plan, changes=()).to_dict() for plan in self.plans],
            "done": dict(self.done),
            "original": None if self.original is None else asdict(self.original),
            "final_sizes": dict(self.final_sizes),
            "unsound": dict(self.unsound),
            "history": self.history.to_dicts(),
            **({"completions": completions} if completions else {}),
        }

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> Progress:
        """The inverse of :meth:`to_dict`."""
        return cls(
            plans=[PruningPlan.from_dict(plan) for plan in plain["plans"]],
            done=dict(plain["done"]),
            original=None if plain["original"] is None else ModelCost(**plain["original"]),
            final_sizes=dict(plain["final_sizes"]),
            unsound=dict(plain["unsound"]),
            # Version 0.1 looked for none.
            completions={name: Completion.from_dict(one) for name, one in plain.get("completions", {}).items()},
            history=History.from_dicts(plain["history"]),
        )
