"""Networks on which the structural engine must hold: real ones, the classic ones, and traps."""

from . import (  # noqa: F401 (each import fills the zoo)
    classic_attention,
    classic_blocks,
    classic_cnn,
    classic_dense,
    classic_distributions,
    classic_experts,
    classic_graphs,
    classic_misc,
    classic_mobile,
    classic_points,
    classic_recurrent,
    classic_vit_pytorch,
    classic_vocoders,
    classic_x_transformers,
    huggingface_experts,
    huggingface_text,
    huggingface_vision,
    traps_concat,
    traps_convs,
    traps_flow,
    traps_forward,
    traps_maths,
    traps_movement,
    traps_norms,
    traps_products,
    traps_statistics,
    traps_streams,
    traps_weights,
)
from .entry import ZOO, Entry

_TRANSFORMERS = """
bert bit bloom convnextv2 deberta-v2 deepseek-v2 detr falcon fnet focalnet gpt-bigcode gpt2 llama mamba mixtral mpnet
patchtst phi-moe phi3 t5 vilt vit xlnet
""".split()
FAST = [
    name
    for name, entry in ZOO.items()
    if not entry.slow and (not name.startswith("hf/") or name.removeprefix("hf/") in _TRANSFORMERS)
]
"""Names of the networks in the fast tests: all traps and classics, and of those from transformers as few as call, with
them, every operation that any network of the zoo calls (tests/test_zoo.py checks that)."""

__all__ = ["FAST", "ZOO", "Entry"]

THIRD_PARTY = (
    "ignore:enable_nested_tensor is True:UserWarning",
    "ignore:.*weight_norm:FutureWarning",
    "ignore:LSTM with projections is not supported with oneDNN:UserWarning",
)
"""Warnings of the networks themselves, for ``pytest.mark.filterwarnings``."""
