"""What a pruning event does, as frozen records by qualified name: the plan that every part of the package uses.

A plan knows nothing of how it was made (structure, mathematics) nor of how it is applied (surgery, optimizers). It is
made once, broadcast, applied, logged and saved.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from torch import Tensor


@dataclass(frozen=True, eq=False)
class ParameterChange:
    """How one parameter or buffer changes.

    Attributes:
        name: Qualified name of the parameter or buffer.
        old_shape: Shape before.
        new_shape: Shape after.
        kept: For every sliced dimension, the int64 positions that stay, in ascending order.
        value: New content of shape ``new_shape``, where it is not made of the old one by ``kept`` and ``factors``.
        factors: By what the content is multiplied along a dimension, float64, one number for each position that stays:
            the weights of a coreset in what reads it.
    """

    name: str
    old_shape: tuple[int, ...]
    new_shape: tuple[int, ...]
    kept: Mapping[int, Tensor]
    value: Tensor | None = None
    factors: Mapping[int, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class AttributeChange:
    """How an integer attribute of a module changes that follows from no tensor's shape, such as a number of heads."""

    module: str
    name: str
    old: int
    new: int


@dataclass(frozen=True)
class GroupPlan:
    """What happens to one group of channels.

    Attributes:
        name: The group's name.
        channels_before: Classes before the event.
        channels_after: Classes after the event.
        kept: The classes that stay, ascending, as positions among those before the event.
        method: How they were chosen, with the reason where a group fell back to another method.
        expected_error: The expected squared error of the next layer's outputs over their expected square, under the
            Gaussian distribution of the activations; ``None`` where the method does not compute it.
        certified_error: A proven bound on what the plan changes in any coordinate of the next layer's outputs, for
            every input of norm at most ``input_radius``; ``None`` unless certificates were asked for and there is one.
            A coordinate is an output of a Linear; the output of a convolution adds one for each kernel position.
        found_error: The largest such change that gradient ascent found: the truth lies between the two.
        input_radius: The radius of the ball of inputs of the layer that makes the channels.
        radius_source: Where the radius comes from: ``"given"`` by the user, ``"propagated"`` from the layer below with
            proof, ``"measured"`` on the example inputs; or why there is no certificate. ``None`` if none was asked for.
        params_removed: Parameters that go with this group's cut, the groups before it being cut already: over all
            groups they add up to what the plan removes.
        macs_removed: Multiply-accumulates of one sample that go with it, likewise.
    """

    name: str
    channels_before: int
    channels_after: int
    kept: tuple[int, ...]
    method: str
    expected_error: float | None = None
    certified_error: float | None = None
    found_error: float | None = None
    input_radius: float | None = None
    radius_source: str | None = None
    params_removed: int = 0
    macs_removed: int = 0


@dataclass(frozen=True, eq=False)
class PruningPlan:
    """Everything one pruning event does to a model, with the sizes before and after.

    Attributes:
        groups: What happens to each group, in network order; groups that keep all their channels included.
        changes: What happens to each parameter and buffer.
        attributes: What happens to attributes of modules that do not follow from the shapes.
        skipped: Layers that cannot be pruned, by qualified name, each with the reason in words.
        requested: The pruning ratio asked for, as a fraction of the original model's ``unit``.
        reached: The pruning ratio that whole channels allow.
        unit: What ``requested`` and ``reached`` count: ``"params"``, ``"macs"`` or ``"channels"``.
        params_original: Parameters of the original model, before any event.
        params_before: Parameters before this event.
        params_after: Parameters after this event.
        macs_before: Multiply-accumulates of one sample before this event.
        macs_after: Multiply-accumulates of one sample after this event.
    """

    groups: tuple[GroupPlan, ...]
    changes: tuple[ParameterChange, ...]
    skipped: Mapping[str, str]
    requested: float
    reached: float
    unit: str
    params_original: int
    params_before: int
    params_after: int
    macs_before: int
    macs_after: int
    attributes: tuple[AttributeChange, ...] = ()

    @property
    def sparsity(self) -> float:
        """Fraction of the original model's parameters that is gone after this event."""
        return 1.0 - self.params_after / self.params_original

    @property
    def channels_removed(self) -> int:
        """Channels that this event removes, over all groups."""
        return sum(group.channels_before - group.channels_after for group in self.groups)

    def to_dict(self) -> dict[str, Any]:
        """A plain nested dict of numbers, strings, lists and tensors, as checkpoints and broadcasts want it."""
        plain = {one.name: getattr(self, one.name) for one in fields(self)}
        return plain | {
            "groups": [asdict(group) | {"kept": list(group.kept)} for group in self.groups],
            "changes": [_change_to_dict(change) for change in self.changes],
            "skipped": dict(self.skipped),
            "attributes": [asdict(change) for change in self.attributes],
        }

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> PruningPlan:
        """The inverse of :meth:`to_dict`."""
        groups = tuple(GroupPlan(**{**group, "kept": tuple(group["kept"])}) for group in plain["groups"])
        changes = tuple(
            ParameterChange(
                **{**change, "old_shape": tuple(change["old_shape"]), "new_shape": tuple(change["new_shape"])}
            )
            for change in plain["changes"]
        )
        attributes = tuple(AttributeChange(**change) for change in plain["attributes"])
        return cls(**{**plain, "groups": groups, "changes": changes, "attributes": attributes})

    def __str__(self) -> str:
        """The table, and the reasons of what was skipped."""
        skipped = (f"not pruned: {name} {reason}" for name, reason in self.skipped.items())
        return "\n".join([self.table(), *skipped])

    def table(self) -> str:
        """A table of the groups, and the totals."""
        return "\n".join([text_table(self.rows()), *self.totals()])

    def rows(self) -> list[tuple[str, ...]]:
        """The cells of the table: a row of headings, then one for each of ``groups``."""
        certified = any(group.radius_source is not None for group in self.groups)
        heads = ("group", "channels", "kept", "params", "MACs", "error", *(_CERTIFICATE if certified else ()), "method")
        cells = [
            (
                group.name,
                f"{group.channels_before} -> {group.channels_after}",
                f"{group.channels_after / group.channels_before:.0%}",
                _gone(group.params_removed),
                _gone(group.macs_removed),
                "" if group.expected_error is None else f"{group.expected_error:.2%}",
                *(_certificate_cells(group) if certified else ()),
                group.method,
            )
            for group in self.groups
        ]
        return [heads, *cells]

    def totals(self) -> list[str]:
        """The sizes before and after the event, one sentence a line."""
        return [
            f"{self.unit} removed: {self.reached:.2%} of the original (requested {self.requested:.2%})",
            f"params {self.params_before:,} -> {self.params_after:,}, sparsity {self.sparsity:.2%}",
            f"MACs per sample {self.macs_before:,} -> {self.macs_after:,}",
        ]


def text_table(rows: Sequence[Sequence[str]]) -> str:
    """Cells in aligned columns, the first row being the headings."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return "\n".join([lines[0], "-" * max(map(len, lines)), *lines[1:]])


_CERTIFICATE = ("found", "certified", "input radius")


def _certificate_cells(group: GroupPlan) -> tuple[str, ...]:
    """The cells of a row below ``_CERTIFICATE``."""
    numbers = (group.found_error, group.certified_error, group.input_radius)
    found, certified, radius = ("" if number is None else f"{number:.4g}" for number in numbers)
    source = group.radius_source or ""
    return found, certified, f"{radius} {source}".strip()


def _gone(count: int) -> str:
    return f"-{count:,}" if count else ""


def _change_to_dict(change: ParameterChange) -> dict[str, Any]:
    plain = {one.name: getattr(change, one.name) for one in fields(change)}
    shapes = {"old_shape": list(change.old_shape), "new_shape": list(change.new_shape)}
    return plain | shapes | {"kept": dict(change.kept), "factors": dict(change.factors)}
