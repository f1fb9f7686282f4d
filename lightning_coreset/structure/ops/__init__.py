"""What each aten operation does to labels: five families (joining is movement, too), and everything else is refused."""

from __future__ import annotations

from lightning_coreset.structure.ops import contraction, elementwise, joining, movement, normalization, reduction
from lightning_coreset.structure.propagation import Rule

RULES: dict[str, Rule] = {
    **movement.RULES,
    **joining.RULES,
    **elementwise.RULES,
    **contraction.RULES,
    **reduction.RULES,
    **normalization.RULES,
}

__all__ = ["RULES"]
