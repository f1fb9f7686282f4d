"""The record of a pruning event in plain numbers, for tables, files and charts, and for checkpoints."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from lightning_coreset.plan import GroupPlan, PruningPlan
from lightning_coreset.planning import ModelCost


@dataclass(frozen=True)
class GroupRecord:
    """One group of channels after an event.

    Attributes:
        name: The group's name.
        channels: Channels (classes) that are left.
        channels_original: Channels in the original model.
        method: How they were chosen.
        expected_error: See :class:`lightning_coreset.plan.GroupPlan`, as the next two.
        certified_error: A proven bound.
        found_error: The largest error found.
    """

    name: str
    channels: int
    channels_original: int
    method: str
    expected_error: float | None = None
    certified_error: float | None = None
    found_error: float | None = None

    @property
    def keep_ratio(self) -> float:
        """Fraction of the original channels that is left."""
        return self.channels / self.channels_original


@dataclass(frozen=True)
class EventRecord:
    """One pruning event: its time, the ratio requested and reached, the size and the accuracy of the model after it.

    Attributes:
        epoch: The epoch in which it happened, from 0.
        step: Its step on the loggers' axis: the number of batches before it that led to an optimizer step.
        unit: What the ratios count: ``"params"``, ``"macs"``, ``"channels"`` or ``"latency"``.
        requested: The fraction of the original model that the schedule asked to remove.
        reached: The fraction that was removed, in whole channels.
        params: Parameters that are left.
        params_original: Parameters of the original model.
        macs: Multiply-accumulates of one sample that are left.
        macs_original: Those of the original model.
        groups: Every group of the original model, in network order.
        accuracy_before: Accuracy right before the event, in [0, 1]; ``None`` if it was not measured, as below.
        accuracy_after: Accuracy right after it, on the same batches.
        accuracy_recovered: Accuracy of the latest validation since then, after further training.
        reverted: Whether the guard took the event back later.
        latency: Seconds of one run that are left, as predicted; ``None``, as the next two, with another unit than
            ``"latency"``.
        latency_original: Those of the original model.
        latency_measured: Seconds of one run after the last event, measured in turns with the original model.
        latency_measured_original: Those of the original model then.
    """

    epoch: int
    step: int
    unit: str
    requested: float
    reached: float
    params: int
    params_original: int
    macs: int
    macs_original: int
    groups: tuple[GroupRecord, ...]
    accuracy_before: float | None = None
    accuracy_after: float | None = None
    accuracy_recovered: float | None = None
    reverted: bool = False
    latency: float | None = None
    latency_original: float | None = None
    latency_measured: float | None = None
    latency_measured_original: float | None = None

    def __repr__(self) -> str:
        undone = ", taken back" if self.reverted else ""
        return (
            f"<EventRecord: epoch {self.epoch}, {self.reached:.2%} of {self.unit} removed, {self.params:,} of "
            f"{self.params_original:,} parameters left{undone}>"
        )

    @property
    def sparsity(self) -> float:
        """Fraction of the original model's parameters that is gone."""
        return 1.0 - self.params / self.params_original

    def flat(self) -> dict[str, Any]:
        """The values by column of a table; columns of a group end in its name, as in ``channels/fc1``."""
        columns = {name: value for name, value in vars(self).items() if name != "groups"} | {"sparsity": self.sparsity}
        order = ("epoch", "step", "unit", "requested", "reached", "sparsity")
        columns = {name: columns.pop(name) for name in order} | columns
        columns = {name: value for name, value in columns.items() if value is not None or "latency" not in name}
        for quantity in ("channels", "keep_ratio", "expected_error", "certified_error", "found_error", "method"):
            columns |= {f"{quantity}/{group.name}": getattr(group, quantity) for group in self.groups}
        return columns

    @classmethod
    def of(cls, plan: PruningPlan, original: ModelCost, last: EventRecord | None, **when: Any) -> EventRecord:
        """The record of an event.

        Args:
            plan: What it did.
            original: Parameters, MACs and widths of the model before the first event.
            last: The record of the event before it, if any.
            **when: Epoch, step and accuracies.
        """
        before = {} if last is None else {group.name: group for group in last.groups}
        planned = {group.name: group for group in plan.groups}
        # Plans do not contain a group that has only one channel left, but the channel still exists.
        names = [name for name in {**original.widths, **before, **planned} if name in planned or name in before]
        return cls(
            unit=plan.unit,
            requested=plan.requested,
            reached=plan.reached,
            params=plan.params_after,
            params_original=plan.params_original,
            macs=plan.macs_after,
            macs_original=original.macs,
            latency=plan.latency_after,
            latency_original=plan.latency_original,
            latency_measured=None if plan.latency_measured is None else plan.latency_measured[1],
            latency_measured_original=None if plan.latency_measured is None else plan.latency_measured[0],
            groups=tuple(
                _group_record(planned[name], original.widths) if name in planned else before[name] for name in names
            ),
            **when,
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain data for checkpoints, with latencies only where they count."""
        plain = asdict(self) | {"groups": [asdict(group) for group in self.groups]}
        return {name: value for name, value in plain.items() if value is not None or "latency" not in name}

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> EventRecord:
        """The inverse of :meth:`to_dict`."""
        return cls(**{**plain, "groups": tuple(GroupRecord(**group) for group in plain["groups"])})


def _group_record(group: GroupPlan, original: Mapping[str, int]) -> GroupRecord:
    return GroupRecord(
        group.name,
        group.channels_after,
        original.get(group.name, group.channels_before),
        group.method,
        group.expected_error,
        group.certified_error,
        group.found_error,
    )
