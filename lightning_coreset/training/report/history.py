"""What every pruning event came to, in plain numbers: for tables, files and charts, and for checkpoints."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from os import PathLike
from typing import Any

from lightning_coreset.plan import GroupPlan, PruningPlan, text_table
from lightning_coreset.planning import ModelCost

_ACCURACIES = ("accuracy before", "accuracy after", "recovered")


@dataclass(frozen=True)
class GroupRecord:
    """One group of channels after an event.

    Attributes:
        name: The group's name.
        channels: Channels (classes) that are left.
        channels_original: Channels of the original model.
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
    """One pruning event: when it was, what was asked, what the model is like after it, and what it cost.

    Attributes:
        epoch: The epoch in which it happened, from 0.
        step: Where it stands on the loggers' axis: the batches before it that led to an optimizer step.
        unit: What the ratios count: ``"params"``, ``"macs"`` or ``"channels"``.
        requested: The fraction of the original model that was to be gone.
        reached: The fraction that whole channels allow.
        params: Parameters that are left.
        params_original: Parameters of the original model.
        macs: Multiply-accumulates of one sample that are left.
        macs_original: Those of the original model.
        groups: Every group of the original model, in network order.
        accuracy_before: Accuracy right before the event, in [0, 1]; ``None`` where it was not measured, as below.
        accuracy_after: Accuracy right after it, on the same batches.
        accuracy_recovered: The latest accuracy of a validation since then: what training brought back.
        reverted: Whether the guard took the event back later.
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

    @property
    def sparsity(self) -> float:
        """Fraction of the original model's parameters that is gone."""
        return 1.0 - self.params / self.params_original

    def flat(self) -> dict[str, Any]:
        """One value a column, as for a table: columns of a group end in its name, as in ``channels/fc1``."""
        columns = {name: value for name, value in vars(self).items() if name != "groups"} | {"sparsity": self.sparsity}
        order = ("epoch", "step", "unit", "requested", "reached", "sparsity")
        columns = {name: columns.pop(name) for name in order} | columns
        for quantity in ("channels", "keep_ratio", "expected_error", "certified_error", "found_error", "method"):
            columns |= {f"{quantity}/{group.name}": getattr(group, quantity) for group in self.groups}
        return columns


class History(list[EventRecord]):
    """The records of all events so far, reverted ones included; a list that prints as a table.

    Example:
        >>> import lightning.pytorch as pl
        >>> from lightning_coreset import CoresetPruningCallback
        >>> pruning = CoresetPruningCallback(0.5)
        >>> pruning.history  # one record an event, once a Trainer has trained with it
        []
    """

    def add(
        self,
        plan: PruningPlan,
        original: ModelCost,
        *,
        epoch: int,
        step: int,
        accuracy_before: float | None = None,
        accuracy_after: float | None = None,
    ) -> EventRecord:
        """Append the record of an event.

        Args:
            plan: What it did.
            original: What the model came to before the first event.
            epoch: When it was.
            step: When it was, on the loggers' axis.
            accuracy_before: Accuracy right before it.
            accuracy_after: Accuracy right after it.

        Returns:
            The record.
        """
        last = self.standing
        before = {} if last is None else {group.name: group for group in last.groups}
        planned = {group.name: group for group in plan.groups}
        # A group that is down to one channel is none any more: plans do not name it, but its channel is still there.
        names = [name for name in {**original.widths, **before, **planned} if name in planned or name in before]
        record = EventRecord(
            epoch=epoch,
            step=step,
            unit=plan.unit,
            requested=plan.requested,
            reached=plan.reached,
            params=plan.params_after,
            params_original=plan.params_original,
            macs=plan.macs_after,
            macs_original=original.macs,
            groups=tuple(
                _group_record(planned[name], original.widths) if name in planned else before[name] for name in names
            ),
            accuracy_before=accuracy_before,
            accuracy_after=accuracy_after,
        )
        self.append(record)
        return record

    @property
    def standing(self) -> EventRecord | None:
        """The last event that was not taken back, which tells what the model is like."""
        return next((record for record in reversed(self) if not record.reverted), None)

    def recovered(self, accuracy: float) -> None:
        """Note the latest validation's accuracy with the last event that counts."""
        self._replace_standing(accuracy_recovered=accuracy)

    def revert(self) -> None:
        """Mark the last event that counts as taken back."""
        self._replace_standing(reverted=True)

    def _replace_standing(self, **changes: Any) -> None:
        for index in reversed(range(len(self))):
            if not self[index].reverted:
                self[index] = replace(self[index], **changes)
                return

    def to_csv(self, path: str | PathLike[str]) -> None:
        """Write a table with a row for every event.

        Columns of a group end in its name (``channels/fc1``), so that ``frame.filter(like="channels/")`` finds them in
        pandas. What was not measured is empty.

        Args:
            path: The file; an existing one is replaced.
        """
        rows = [record.flat() for record in self]
        known = (column for row in rows for column in row if "/" not in column or row[column] is not None)
        columns = list(dict.fromkeys(known)) or ["epoch", "step"]
        with open(path, "w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, columns, extrasaction="ignore")
            writer.writeheader()
            writer.writerows(rows)

    def to_dicts(self) -> list[dict[str, Any]]:
        """Plain data for checkpoints."""
        return [asdict(record) | {"groups": [asdict(group) for group in record.groups]} for record in self]

    @classmethod
    def from_dicts(cls, plain: Iterable[Mapping[str, Any]]) -> History:
        """The inverse of :meth:`to_dicts`."""
        return cls(
            EventRecord(**{**record, "groups": tuple(GroupRecord(**group) for group in record["groups"])})
            for record in plain
        )

    def rows(self) -> list[tuple[str, ...]]:
        """The cells of the table, with a row of headings; columns that nothing is known of are left out."""
        heads = ("epoch", "step", "requested", "reached", "sparsity", "params", "MACs", *_ACCURACIES)
        cells = [
            (
                *(str(record.epoch), str(record.step)),
                *(f"{ratio:.2%}" for ratio in (record.requested, record.reached, record.sparsity)),
                *(f"{record.params:,}", f"{record.macs:,}"),
                *map(_number, (record.accuracy_before, record.accuracy_after, record.accuracy_recovered)),
                "taken back" if record.reverted else "",
            )
            for record in self
        ]
        table = [(*heads, ""), *cells]
        known = [column for column in range(len(table[0])) if any(row[column] for row in cells)]
        return [tuple(row[column] for column in known) for row in table]

    def __str__(self) -> str:
        """The table."""
        return text_table(self.rows()) if self else "There has been no pruning event yet."


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


def _number(accuracy: float | None) -> str:
    return "" if accuracy is None else f"{accuracy:.4f}"
