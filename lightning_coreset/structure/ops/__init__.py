"""What each of aten's operators does to labels, in families of a file each; every other operator is refused."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any

import torch

from lightning_coreset.structure.ops import (
    assigned,
    contraction,
    convolution,
    elementwise,
    foreach,
    grouped,
    indexed,
    joining,
    masked,
    movement,
    normalization,
    pieces,
    quantization,
    reduction,
    sparse,
)
from lightning_coreset.structure.propagation import Rule

_FAMILIES = (
    movement,
    pieces,
    joining,
    indexed,
    assigned,
    masked,
    elementwise,
    foreach,
    contraction,
    grouped,
    sparse,
    convolution,
    reduction,
    normalization,
    quantization,
)


@cache
def aten_rules() -> Mapping[Any, Rule]:
    """The rules by overload packet, ``torch.ops.aten.relu``, of operators and of their in-place twins.

    By the operator itself, for an operator of the same name in another namespace may be anything. Names that this
    version of torch does not have are left out.
    """
    named = {name: rule for family in _FAMILIES for name, rule in family.RULES.items()}
    packets = {getattr(torch.ops.aten, twin, None): rule for name, rule in named.items() for twin in (name, f"{name}_")}
    packets.pop(None, None)
    return packets


@cache
def aten_movements() -> frozenset[Any]:
    """The packets of aten's operators whose results are elements of their first argument, moved."""
    names = {name for name, rule in {**movement.RULES, **pieces.RULES}.items() if rule is not movement.ignore}
    return frozenset(packet for name in names if (packet := getattr(torch.ops.aten, name, None)) is not None)


def foreign_rule(function: Any) -> Rule | None:
    """The rule of an overload of a well-known operator that is not torch's."""
    return grouped.FOREIGN_RULES.get(function.name())


__all__ = ["aten_movements", "aten_rules", "foreign_rule"]
