"""Plans and records of past events as short texts, which checkpoints hold: one text for an event, made once."""

from __future__ import annotations

import base64
import json
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, fields
from typing import Any, TypeAlias

from lightning_coreset.plain_data import as_type, from_plain
from lightning_coreset.plan import AttributeChange, GroupPlan, PruningPlan
from lightning_coreset.position_runs import PositionRuns
from lightning_coreset.training.report import EventRecord, GroupRecord

Event: TypeAlias = "tuple[PruningPlan | None, EventRecord]"

_WINDOW = 1 << 15
"""Bytes that a compressor looks back."""


class EventArchive:
    """Keeps the plan and the record of every event as a text.

    Each is compressed with the one before as a dictionary, since names and reasons are the same at all events, and the
    channels that stay are kept as runs. So a checkpoint takes the time to copy a list, and memory for what differs.
    A text holds its own checksum.
    """

    def __init__(self) -> None:
        self.texts: list[str] = []
        self._last = self._previous = b""

    def add(self, plan: PruningPlan | None, record: EventRecord) -> None:
        """Append an event, whose plan may be unknown."""
        plain = {"plan": None if plan is None else _plan_to_dict(plan), "record": _record_to_dict(record)}
        content = json.dumps(plain, separators=(",", ":")).encode()
        compressor = zlib.compressobj(9, zdict=self._last) if self._last else zlib.compressobj(9)
        compressed = compressor.compress(content) + compressor.flush()
        self.texts.append(base64.b64encode(compressed).decode())
        self._previous, self._last = self._last, content[-_WINDOW:]

    def replace_last(self, plan: PruningPlan | None, record: EventRecord) -> None:
        """Another plan and record in place of those of the event that was added last."""
        self.texts.pop()
        self._last = self._previous
        self.add(plan, record)

    @classmethod
    def read(cls, texts: Iterable[object]) -> tuple[EventArchive, list[Event]]:
        """The inverse: the archive that goes on behind these texts, and what they hold.

        Raises:
            ValueError: If a text is damaged.
        """
        archive, events = cls(), []
        for text in texts:
            content = archive._decompressed(text)
            plain = as_type(json.loads(content), dict[str, Any], "an event")
            plan = plain.get("plan")
            events.append((None if plan is None else plan_from_dict(plan), record_from_dict(plain.get("record"))))
            archive.texts.append(str(text))
            archive._previous, archive._last = archive._last, content[-_WINDOW:]
        return archive, events

    def _decompressed(self, text: Any) -> bytes:
        try:
            decompressor = zlib.decompressobj(zdict=self._last) if self._last else zlib.decompressobj()
            content = decompressor.decompress(base64.b64decode(text, validate=True))
        except (ValueError, TypeError, zlib.error):
            content, decompressor = b"", None
        if decompressor is None or not decompressor.eof or decompressor.unused_data:
            raise ValueError(f"Expected the text of pruning event {len(self.texts)} as it was written but got another.")
        return content


def plan_from_dict(plain: Any) -> PruningPlan:
    """A plan as this archive or version 0.1 wrote it.

    Raises:
        ValueError: If it is something else.
    """
    plain = as_type(plain, dict[str, Any], "a plan")
    read_kept = PositionRuns.from_lengths if isinstance(plain.get("groups"), Mapping) else PositionRuns.of
    groups = []
    for group in _rows(plain):
        kept = read_kept(as_type(group.get("kept"), list[int], "kept"))
        groups.append(from_plain(GroupPlan, group, kept=kept))
    attributes = [from_plain(AttributeChange, change) for change in _list_of(plain, "attributes")]
    return from_plain(PruningPlan, plain, groups=tuple(groups), changes=(), attributes=tuple(attributes))


def record_from_dict(plain: Any) -> EventRecord:
    """A record of an event as this archive or version 0.1 wrote it.

    Raises:
        ValueError: If it is something else.
    """
    plain = as_type(plain, dict[str, Any], "a record")
    groups = tuple(from_plain(GroupRecord, group) for group in _rows(plain))
    return from_plain(EventRecord, plain, groups=groups)


def _plan_to_dict(plan: PruningPlan) -> dict[str, Any]:
    plain = {one.name: getattr(plan, one.name) for one in fields(plan)}
    groups = _columns(GroupPlan, plan.groups, but="kept")
    groups["kept"] = [group.kept_runs().lengths() for group in plan.groups]
    attributes = [asdict(change) for change in plan.attributes]
    plain = plain | {"groups": groups, "changes": [], "skipped": dict(plan.skipped), "attributes": attributes}
    return without_latency(plain)


def _record_to_dict(record: EventRecord) -> dict[str, Any]:
    return without_latency(vars(record) | {"groups": _columns(GroupRecord, record.groups)})


def without_latency(plain: Mapping[str, Any]) -> dict[str, Any]:
    """Values by name without those of latency where it was not counted: checkpoints are then as before there was it."""
    return {name: value for name, value in plain.items() if value is not None or not name.startswith("latency")}


def _columns(cls: type, groups: Sequence[Any], but: str = "") -> dict[str, list[Any]]:
    """By columns: names come once, and numbers of one kind stand together, which compresses better."""
    columns = {one.name: [getattr(group, one.name) for group in groups] for one in fields(cls) if one.name != but}
    is_timed = any(value is not None for value in columns.get("latency_removed", []))
    return {name: values for name, values in columns.items() if is_timed or name != "latency_removed"}


def _rows(plain: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The groups of a plan or record, each as a dict; version 0.1 wrote them so."""
    if not isinstance(plain.get("groups"), Mapping):
        return [as_type(group, dict[str, Any], "a group") for group in _list_of(plain, "groups")]
    columns = as_type(plain["groups"], dict[str, list[Any]], "groups")
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def _list_of(plain: Mapping[str, Any], name: str) -> list[Any]:
    return as_type(plain.get(name), list[Any], name)
