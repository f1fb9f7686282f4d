"""The changes of one pruning event, as frozen dataclasses that refer to modules and tensors by qualified name.

The plan is the interface between the packages. It does not depend on how it is made (structure, mathematics) or applied
(surgery, optimizers): it is made once, then broadcast, applied, logged and saved.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any

from torch import Tensor

from lightning_coreset.plan_tables import (
    attribute_lines,
    plan_html,
    plan_in_short,
    plan_rows,
    plan_table,
    plan_text,
)
from lightning_coreset.position_runs import CompactPositions, PositionRuns


@dataclass(frozen=True, eq=False)
class ParameterChange:
    """The change of one parameter or buffer.

    Attributes:
        name: Qualified name of the parameter or buffer.
        old_shape: Shape before the event.
        new_shape: Shape after the event.
        kept: For every sliced dimension, the int64 positions that stay, in ascending order.
        value: New content of shape ``new_shape``; ``None`` if the content is the old one, sliced by ``kept`` and
            multiplied by ``factors``.
        factors: For some dimensions, the factors (float64, one for each position that stays) that multiply the content
            along that dimension: the weights of a coreset, in the layers that read it.
        norm_of: For the magnitude of a ``weight_norm`` the name of its direction: the content is multiplied by the
            quotient of the direction's norms after and before the change as well, so that the weight that both make
            changes as the direction does. Every model that the change is applied to has a quotient of its own.
        norm_dim: The dimension along which a magnitude lies, over which these norms are not taken.
        follows: For a tensor of a copy that holds values of another tensor, the name of that one: besides being sliced,
            it changes by as much as that one does (``lightning_coreset.followers.follow``).
    """

    name: str
    old_shape: tuple[int, ...]
    new_shape: tuple[int, ...]
    kept: Mapping[int, Tensor]
    value: Tensor | None = None
    factors: Mapping[int, Tensor] = field(default_factory=dict)
    norm_of: str | None = None
    norm_dim: int | None = None
    follows: str | None = None

    def __repr__(self) -> str:
        return f"<ParameterChange: {self.name} {self.old_shape} -> {self.new_shape}>"


@dataclass(frozen=True)
class AttributeChange:
    """The change of a module's attribute that does not follow from the shape of a tensor, such as a number of heads.

    Attributes:
        module: Qualified name of the module.
        name: Name of the attribute.
        old: Its value before the event, an integer or a tuple of integers (of an attribute that is a list, too).
        new: Its value after the event.
    """

    module: str
    name: str
    old: int | tuple[int, ...]
    new: int | tuple[int, ...]


@dataclass(frozen=True)
class GroupPlan:
    """The change of one group of channels.

    Attributes:
        name: The group's name.
        channels_before: Number of classes (units that are removed together) before the event.
        channels_after: Number of classes after the event.
        kept: The classes that stay, in ascending order, as positions among those before the event.
        method: How they were chosen, with the reason if the requested method does not apply to this group.
        expected_error: The expected squared error of the next layer's outputs, relative to their expected square, for
            Gaussian pre-activations; ``None`` if the method does not compute it.
        certified_error: A proven bound on the change of any coordinate of the next layer's outputs, for every input of
            norm at most ``input_radius``; ``None`` without certificates, or if there is no bound. A coordinate is one
            output of a Linear; the output of a convolution is the sum of one coordinate for each kernel position.
        found_error: The largest such change that gradient ascent found; the true maximum lies between the two.
        input_radius: The radius of the ball of inputs of the layer that produces the channels.
        radius_source: The origin of the radius: ``"given"`` by the user, ``"propagated"`` with proof from the layer
            below, or ``"measured"`` on the example inputs; or the reason why there is no certificate. ``None`` if
            certificates were not requested.
        params_removed: Number of parameters removed with the channels of this group, after all earlier groups have been
            pruned; so the sum over all groups is the number that the plan removes.
        macs_removed: The same for the multiply-accumulates of one sample.
        latency_removed: The same for the seconds of one run, as they are predicted; ``None`` if they are not counted.
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
    latency_removed: float | None = None

    def kept_runs(self) -> PositionRuns:
        """``kept`` as it is stored."""
        return _KEPT.runs(self)

    def __repr__(self) -> str:
        return f"<GroupPlan: {self.name} {self.channels_before:,} -> {self.channels_after:,} channels, {self.method}>"


# Not in the class: for a type checker that would be a default, with fields without one behind it.
_KEPT = CompactPositions("kept")
GroupPlan.kept = _KEPT  # type: ignore[assignment]


@dataclass(frozen=True, eq=False)
class PruningPlan:
    """All changes of one pruning event, with the parameters, MACs and channels before and after it.

    Attributes:
        groups: The change of each group, in network order, including groups that keep all their channels.
        changes: The change of each parameter and buffer.
        attributes: The changes of module attributes that do not follow from the shapes.
        skipped: Layers that cannot be pruned, by qualified name, each with the reason.
        requested: The requested pruning ratio, as a fraction of the original model's ``unit``.
        reached: The ratio that the plan reaches, since only whole channels can be removed.
        unit: What ``requested`` and ``reached`` count: ``"params"``, ``"macs"``, ``"channels"`` or ``"latency"``.
        params_original: Parameters of the original model, before any event.
        params_before: Parameters before this event.
        params_after: Parameters after this event.
        macs_before: Multiply-accumulates of one sample before this event.
        macs_after: Multiply-accumulates of one sample after this event.
        latency_original: Seconds of one run of the original model, by the sum of its layers; ``None``, as the next two,
            with another unit than ``"latency"``.
        latency_before: Those before this event.
        latency_after: Those after this event, as they are predicted.
        latency_measured: Seconds of one run of the original and of the pruned model, measured in turns after the last
            event; ``None`` if that was not done.
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
    latency_original: float | None = None
    latency_before: float | None = None
    latency_after: float | None = None
    latency_measured: tuple[float, float] | None = None

    @property
    def sparsity(self) -> float:
        """Fraction of the original model's parameters that has been removed after this event."""
        return 1.0 - self.params_after / self.params_original

    @property
    def channels_removed(self) -> int:
        """Number of channels (classes) that this event removes, over all groups."""
        return sum(group.channels_before - group.channels_after for group in self.groups)

    def without_tensors(self) -> PruningPlan:
        """What people read of the plan, without ``changes``: for events that are over."""
        return replace(self, changes=())

    def to_dict(self) -> dict[str, Any]:
        """A nested dict of numbers, strings, lists and tensors, for broadcasts."""
        plain = {one.name: getattr(self, one.name) for one in fields(self)}
        return plain | {
            "groups": [asdict(group) | {"kept": list(group.kept)} for group in self.groups],
            "changes": [_change_to_dict(change) for change in self.changes],
            "skipped": dict(self.skipped),
            "attributes": [_attribute_to_dict(change) for change in self.attributes],
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
        attributes = tuple(_attribute_from_dict(change) for change in plain["attributes"])
        measured = plain.get("latency_measured")
        latency = {} if measured is None else {"latency_measured": tuple(measured)}
        return cls(**{**plain, "groups": groups, "changes": changes, "attributes": attributes, **latency})

    def __str__(self) -> str:
        """The table, the numbers that change with the groups, and the layers that stay, by reason."""
        return plan_text(self)

    def __repr__(self) -> str:
        return f"<PruningPlan: {plan_in_short(self)}>"

    def _repr_html_(self) -> str:
        """What notebooks show: the groups that lose most, the totals, and all else folded away."""
        return plan_html(self)

    def table(self, most: int | None = None) -> str:
        """The groups as a table, followed by the totals.

        Args:
            most: The most groups; of more, those that lose most parameters (MACs, if the ratio counts these). All in
                network order by default.
        """
        return plan_table(self, most)

    def rows(self) -> list[tuple[str, ...]]:
        """The cells of the table: a row of headings, then one row for each group."""
        return plan_rows(self.groups)

    def totals(self) -> list[str]:
        """Ratio, parameters, MACs and latency before and after the event, one line each."""
        latency = []
        if self.latency_before is not None and self.latency_after is not None:
            latency.append(f"latency {_ms(self.latency_before)} -> {_ms(self.latency_after)}, predicted")
        if self.latency_measured is not None:
            whole, pruned = self.latency_measured
            latency.append(f"latency measured {_ms(whole)} -> {_ms(pruned)}: {1 - pruned / whole:.2%} removed")
        return [
            f"{self.unit} removed: {self.reached:.2%} of the original (requested {self.requested:.2%})",
            f"params {self.params_before:,} -> {self.params_after:,}, sparsity {self.sparsity:.2%}",
            f"MACs per sample {self.macs_before:,} -> {self.macs_after:,}",
            *latency,
        ]

    def numbers(self) -> list[str]:
        """The changes of ``attributes``, one line for all modules in which a number changes in the same way."""
        return attribute_lines(self)


def _ms(seconds: float) -> str:
    return f"{1e3 * seconds:.4g} ms"


def _change_to_dict(change: ParameterChange) -> dict[str, Any]:
    plain = {one.name: getattr(change, one.name) for one in fields(change)}
    shapes = {"old_shape": list(change.old_shape), "new_shape": list(change.new_shape)}
    return plain | shapes | {"kept": dict(change.kept), "factors": dict(change.factors)}


def _attribute_to_dict(change: AttributeChange) -> dict[str, Any]:
    return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(change).items()}


def _attribute_from_dict(plain: Mapping[str, Any]) -> AttributeChange:
    values: dict[str, Any] = {n: tuple(value) if isinstance(value, list) else value for n, value in plain.items()}
    return AttributeChange(**values)
