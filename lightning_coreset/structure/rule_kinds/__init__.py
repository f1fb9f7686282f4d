"""Ready-made rules: what most operators do to channels, said in a line."""

from lightning_coreset.structure.rule_kinds.contraction import Contraction
from lightning_coreset.structure.rule_kinds.elementwise import Elementwise
from lightning_coreset.structure.rule_kinds.movement import Movement
from lightning_coreset.structure.rule_kinds.pinned import Pinned

__all__ = ["Contraction", "Elementwise", "Movement", "Pinned"]
