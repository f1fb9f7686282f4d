"""Networks on which the structural engine must hold: real ones, the classic ones, and traps."""

from . import (  # noqa: F401 (each import fills the zoo)
    classic_attention,
    classic_blocks,
    classic_cnn,
    classic_dense,
    classic_misc,
    classic_mobile,
    huggingface_text,
    huggingface_vision,
    traps_concat,
    traps_convs,
    traps_flow,
    traps_forward,
    traps_maths,
    traps_movement,
    traps_norms,
    traps_weights,
)
from .entry import ZOO, Entry

__all__ = ["ZOO", "Entry"]
