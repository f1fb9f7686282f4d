"""Mixtures of experts of Hugging Face transformers, tiny and with random weights, in all ways that run the experts."""

from __future__ import annotations

from typing import Any

from .huggingface_text import GENERATE, SIZES, text

BASE: dict[str, Any] = {**SIZES, "num_key_value_heads": 2, "num_experts_per_tok": 2}
LATENT: dict[str, Any] = {
    **SIZES, "num_experts_per_tok": 2, "n_routed_experts": 4, "moe_intermediate_size": 20, "n_shared_experts": 1,
    "topk_group": 1, "first_k_dense_replace": 1, "kv_lora_rank": 8, "q_lora_rank": 10, "qk_nope_head_dim": 6,
    "qk_rope_head_dim": 4, "v_head_dim": 6,
}  # fmt: skip
EXPERTS: dict[str, tuple[str, dict[str, Any]]] = {
    "mixtral": ("Mixtral", {**BASE, "num_local_experts": 3}),
    "gpt-oss": ("GptOss", {
        **BASE, "num_local_experts": 4, "head_dim": 6, "sliding_window": 4,
        "layer_types": ["sliding_attention", "full_attention"],
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e4},
    }),
    "olmoe": ("Olmoe", {**BASE, "num_experts": 4}),
    "qwen2-moe": ("Qwen2Moe", {
        **BASE, "num_experts": 4, "moe_intermediate_size": 20, "shared_expert_intermediate_size": 28,
    }),
    "qwen3-moe": ("Qwen3Moe", {**BASE, "num_experts": 4, "moe_intermediate_size": 20, "head_dim": 10}),
    "granite-moe": ("GraniteMoe", {**BASE, "num_local_experts": 4}),
    "granite-moe-shared": ("GraniteMoeShared", {**BASE, "num_local_experts": 4, "shared_intermediate_size": 28}),
    "phi-moe": ("Phimoe", {**BASE, "num_local_experts": 4}),
    "deepseek-v2-moe": ("DeepseekV2", {**LATENT, "n_group": 1, "topk_method": "greedy"}),
    "deepseek-v3-moe": ("DeepseekV3", {**LATENT, "n_group": 2}),
}  # fmt: skip
WAYS = {"": "grouped_mm", "-batched": "batched_mm", "-loop": "eager"}
"""How the experts are run, by the end of the name; torch's grouped product is what transformers takes by itself."""

REMEMBERED = ("model.embed_tokens",)
"""The routers, or the layers of experts, of most of them keep the width of the stream, which the self-check finds."""

for name, (stem, settings) in EXPERTS.items():
    for end, way in WAYS.items():
        text(f"{name}{end}", stem, GENERATE, {**settings, "experts_implementation": way}, hard=REMEMBERED)
