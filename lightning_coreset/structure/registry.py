"""Rules for operators that the package does not know: registered, found and removed again."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

from lightning_coreset._registration import Registration
from lightning_coreset.structure.ops import aten_rules, foreign_rule
from lightning_coreset.structure.propagation import Rule


@dataclass(frozen=True, eq=False)  # entries are removed by identity: two may have equal rules
class _Entry:
    op: Any
    rule: Rule


_REGISTERED: list[_Entry] = []
"""Overloads and packets with their rules; the last one that fits a call counts, and comes before aten's own."""


def register_rule(op: Any, rule: Rule, *, override: bool = False) -> Registration:
    """Say what an operator does to channels, so that networks that use it can be pruned through it.

    Without a rule, no channel that enters an operator can be removed. A wrong rule gives wrong groups, which the
    self-check finds before anything is pruned, as long as it is not switched off.

    Only operators that reach torch's dispatcher are asked for: one that is made of others, such as a
    ``CompositeImplicitAutograd`` kernel or an ``autograd.Function``, is followed through those and needs no rule.

    Args:
        op: The operator, ``torch.ops.house.swish``, or one overload of it, ``torch.ops.house.swish.default``.
        rule: A ready-made kind: ``Elementwise``, ``Movement``, ``Contraction`` or ``Pinned``; or any function of the
            ``Propagation`` and the ``OpCall``.
        override: Whether the operator, or an overload of it, may have a rule already, as all of aten's known ones have.
            The new rule is used instead until it is removed.

    Returns:
        A handle: ``handle.remove()``, or the end of ``with register_rule(...):``, undoes it.

    Raises:
        TypeError: If ``op`` is not an operator or ``rule`` is not callable.
        ValueError: If the operator has a rule and ``override`` is not set.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from lightning_coreset.structure import Elementwise, find_groups, register_rule
        >>> @torch.library.custom_op("readme::squared_relu", mutates_args=())
        ... def squared_relu(x: torch.Tensor) -> torch.Tensor:
        ...     return torch.relu(x).square()
        >>> class Net(nn.Module):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.a, self.b = nn.Linear(4, 8), nn.Linear(8, 2)
        ...
        ...     def forward(self, x):
        ...         return self.b(squared_relu(self.a(x)))
        >>> find_groups(Net(), torch.randn(1, 4))
        []
        >>> with register_rule(torch.ops.readme.squared_relu, Elementwise()):
        ...     [group.name for group in find_groups(Net(), torch.randn(1, 4))]
        ['a']
    """
    packet = packet_of(op)
    if isinstance(rule, type) or not callable(rule):
        raise TypeError(
            f"Expected a rule for {op} such as Elementwise(), or a function of the propagation and the call, but got "
            f"{rule!r}."
        )
    if not override and (any(packet_of(entry.op) is packet for entry in _REGISTERED) or packet in aten_rules()):
        raise ValueError(
            f"Expected an operator without a rule but {op} has one. Pass override=True to use yours instead of it."
        )
    entry = _Entry(op, rule)
    _REGISTERED.append(entry)
    find_rule.cache_clear()

    def undo() -> None:
        _REGISTERED.remove(entry)
        find_rule.cache_clear()

    return Registration(undo)


@cache
def find_rule(function: Any) -> Rule | None:
    """The rule of an overload as it is called, ``None`` where there is none. Remembered until another is registered."""
    packet = function.overloadpacket
    for entry in reversed(_REGISTERED):
        if entry.op is function or entry.op is packet:
            return entry.rule
    return aten_rules().get(packet) or foreign_rule(function)


def packet_of(op: Any) -> Any:
    """The packet of an operator or of an overload.

    Raises:
        TypeError: If it is neither.
    """
    packet = getattr(op, "overloadpacket", op)
    if not callable(getattr(packet, "overloads", None)):
        raise TypeError(
            f"Expected an operator such as torch.ops.aten.relu, or an overload of it, but got {op!r}. The operator of "
            'torch.library.custom_op("house::swish", ...) is torch.ops.house.swish.'
        )
    return packet


def overload_of(op: Any) -> Any:
    """The one overload of an operator, besides those with ``out=``.

    Raises:
        TypeError: If ``op`` is not an operator.
        ValueError: If there are several.
    """
    packet = packet_of(op)
    if packet is not op:
        return op
    overloads = [getattr(packet, name) for name in packet.overloads() if not name.endswith("out")]
    if len(overloads) != 1:
        names = ", ".join(map(str, overloads))
        raise ValueError(f"Expected one overload of {op} but it has several. Name one of them: {names}.")
    return overloads[0]
