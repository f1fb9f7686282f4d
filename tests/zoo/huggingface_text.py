"""Language and speech models of Hugging Face transformers, tiny and with random weights."""

from __future__ import annotations

from typing import Any

import torch
from torch import Generator, nn

from .entry import add, floats, keywords, tokens

# Widths differ between roles (embedding, hidden, feed-forward, vocabulary), so that a wrong index map shows.
SIZES = {
    "vocab_size": 60,
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 36,
    "max_position_embeddings": 32,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
GPT2 = {"vocab_size": 60, "n_positions": 32, "n_embd": 24, "n_layer": 2, "n_head": 4, "n_inner": 36}
SPECIAL = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
PAIR = {
    "vocab_size": 60,
    "d_model": 24,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 3,
    "encoder_ffn_dim": 36,
    "decoder_ffn_dim": 40,
    "max_position_embeddings": 32,
    "decoder_start_token_id": 2,
    **SPECIAL,
}
AUDIO = {
    "vocab_size": 32,
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 36,
    "conv_dim": (12, 20, 20),
    "conv_kernel": (8, 3, 3),
    "conv_stride": (4, 2, 2),
    "num_feat_extract_layers": 3,
    "num_conv_pos_embeddings": 8,
    "num_conv_pos_embedding_groups": 2,
    "classifier_proj_size": 20,
    "mask_time_prob": 0.0,
    "layerdrop": 0.0,
}


def hugging(config: str, model: str, **settings: Any) -> nn.Module:
    """Builds a model of transformers from the names of its configuration and its class."""
    import transformers

    cache = {} if settings.pop("no_cache_key", False) else {"use_cache": False}
    made = getattr(transformers, config)(**cache, **settings)
    return getattr(transformers, model)(made)


def mask(generator: Generator) -> torch.Tensor:
    """The second of two sequences is two tokens shorter."""
    found = torch.ones(2, 7, dtype=torch.long)
    found[1, 5:] = 0
    return found


def text(name: str, stem: str, head: str, settings: dict[str, Any], masked: bool = True, **facts: Any) -> None:
    """Adds a model that reads tokens and an attention mask."""
    inputs = keywords(input_ids=tokens(60), attention_mask=mask) if masked else keywords(input_ids=tokens(60))
    add(f"hf/{name}", lambda: hugging(f"{stem}Config", f"{stem}{head}", **settings), inputs, **facts)


CLASSIFY, GENERATE, FILL = "ForSequenceClassification", "ForCausalLM", "ForMaskedLM"
DISTIL = {"vocab_size": 60, "dim": 24, "n_layers": 2, "n_heads": 4, "hidden_dim": 36, "max_position_embeddings": 32}

text("bert", "Bert", CLASSIFY, SIZES)
text("bert-eager", "Bert", CLASSIFY, {**SIZES, "attn_implementation": "eager"})
text("bert-masked-lm", "Bert", FILL, SIZES)
text("distilbert", "DistilBert", CLASSIFY, DISTIL)
text("roberta", "Roberta", CLASSIFY, SIZES)
text("albert", "Albert", CLASSIFY, {**SIZES, "embedding_size": 20})
text("electra", "Electra", CLASSIFY, {**SIZES, "embedding_size": 20})
text("deberta-v2", "DebertaV2", CLASSIFY, {**SIZES, "relative_attention": True, "pos_att_type": ["p2c", "c2p"]})
text("mpnet", "MPNet", CLASSIFY, SIZES)
text("squeezebert", "SqueezeBert", CLASSIFY, {**SIZES, "embedding_size": 24, "q_groups": 2, "intermediate_groups": 2})
text("fnet", "FNet", CLASSIFY, SIZES, masked=False)
text(
    "convbert",
    "ConvBert",
    CLASSIFY,
    {**SIZES, "embedding_size": 20, "head_ratio": 2, "conv_kernel_size": 3},
    hard=("*.attention.self.*",),
)
text("modernbert", "ModernBert", CLASSIFY, {**SIZES, "sep_token_id": 3, "cls_token_id": 4})
XLNET = {"vocab_size": 60, "d_model": 24, "n_layer": 2, "n_head": 4, "d_inner": 36}
add(
    "hf/xlnet",
    lambda: hugging("XLNetConfig", "XLNetForSequenceClassification", no_cache_key=True, use_mems_eval=False, **XLNET),
    keywords(input_ids=tokens(60), attention_mask=mask),
)

text("gpt2", "GPT2", "LMHeadModel", {**GPT2, **SPECIAL})
text("gpt2-eager", "GPT2", "LMHeadModel", {**GPT2, **SPECIAL, "attn_implementation": "eager"})
text("gpt2-classifier", "GPT2", CLASSIFY, {**GPT2, **SPECIAL})
text("gpt-neo", "GPTNeo", GENERATE, {
    "vocab_size": 60, "hidden_size": 24, "num_layers": 2, "attention_types": [[["global", "local"], 1]],
    "num_heads": 4, "intermediate_size": 36, "max_position_embeddings": 32, "window_size": 4, **SPECIAL,
})  # fmt: skip
text("opt", "OPT", GENERATE, {**SIZES, "ffn_dim": 36, "word_embed_proj_dim": 20})
text("bloom", "Bloom", GENERATE, {"vocab_size": 60, "hidden_size": 24, "n_layer": 2, "n_head": 4, **SPECIAL})
text("gpt-neox", "GPTNeoX", GENERATE, SIZES)
text("gpt-j", "GPTJ", GENERATE, {**GPT2, "rotary_dim": 4, **SPECIAL})
text("llama", "Llama", GENERATE, {**SIZES, "num_key_value_heads": 2})
text("llama-eager", "Llama", GENERATE, {**SIZES, "num_key_value_heads": 2, "attn_implementation": "eager"})
text("llama-tied", "Llama", GENERATE, {**SIZES, "num_key_value_heads": 1, "tie_word_embeddings": True})
text("mistral", "Mistral", GENERATE, {**SIZES, "num_key_value_heads": 2, "sliding_window": 4})
text("qwen2", "Qwen2", GENERATE, {**SIZES, "num_key_value_heads": 2})
text("qwen3", "Qwen3", GENERATE, {**SIZES, "num_key_value_heads": 2, "head_dim": 10})
text("gemma", "Gemma", GENERATE, {**SIZES, "num_key_value_heads": 2, "head_dim": 10})
text("gemma2", "Gemma2", GENERATE, {**SIZES, "num_key_value_heads": 2, "head_dim": 10, "sliding_window": 4})
text("phi", "Phi", GENERATE, {**SIZES, "hidden_size": 32, "partial_rotary_factor": 0.5})
text("phi3", "Phi3", GENERATE, {**SIZES, "num_key_value_heads": 2})
text("falcon", "Falcon", GENERATE, {**SIZES, "ffn_hidden_size": 36, "new_decoder_architecture": False})
text(
    "stablelm",
    "StableLm",
    GENERATE,
    {**SIZES, "hidden_size": 32, "num_key_value_heads": 4, "partial_rotary_factor": 0.5},
)
text("codegen", "CodeGen", GENERATE, {**GPT2, "n_ctx": 32, "n_head": 4, "rotary_dim": 4, **SPECIAL},
     hard=("*.qkv_proj",), why="four pieces for four devices")  # fmt: skip
text("gpt-bigcode", "GPTBigCode", GENERATE, {**GPT2, "multi_query": True, **SPECIAL})
text("cohere", "Cohere", GENERATE, {**SIZES, "num_key_value_heads": 2})
text("olmo2", "Olmo2", GENERATE, {**SIZES, "num_key_value_heads": 2})
text("starcoder2", "Starcoder2", GENERATE, {**SIZES, "num_key_value_heads": 2})
text("mamba", "Mamba", GENERATE, {
    "vocab_size": 60, "hidden_size": 24, "num_hidden_layers": 2, "state_size": 5, "time_step_rank": 3, **SPECIAL,
}, masked=False, expect="any", why="a scan over time")  # fmt: skip

MAMBA = {"vocab_size": 60, "hidden_size": 24, "num_hidden_layers": 2, "state_size": 5, **SPECIAL}
text("falcon-mamba", "FalconMamba", GENERATE, {**MAMBA, "time_step_rank": 3}, masked=False)
text(
    "mamba2",
    "Mamba2",
    GENERATE,
    {**MAMBA, "num_heads": 6, "head_dim": 8, "n_groups": 2, "chunk_size": 4, "expand": 2},
    masked=False,
    why="one projection for gates, values, keys, queries and steps, cut into five pieces",
)
text("bamba", "Bamba", GENERATE, {
    **SIZES, "num_key_value_heads": 2, "attn_layer_indices": [1], "mamba_n_heads": 6, "mamba_d_head": 8,
    "mamba_n_groups": 2, "mamba_d_state": 5, "mamba_chunk_size": 4, "mamba_expand": 2,
}, masked=False)  # fmt: skip
text("jamba", "Jamba", GENERATE, {
    **SIZES, "num_key_value_heads": 2, "mamba_d_state": 5, "mamba_dt_rank": 3, "attn_layer_period": 2,
    "attn_layer_offset": 1, "expert_layer_period": 2, "expert_layer_offset": 1, "num_experts": 3,
    "num_experts_per_tok": 2, "experts_implementation": "eager",
}, masked=False)  # fmt: skip
LATENT = {
    **SIZES, "num_key_value_heads": 4, "q_lora_rank": 10, "kv_lora_rank": 12, "qk_nope_head_dim": 6,
    "qk_rope_head_dim": 4, "v_head_dim": 8, "n_routed_experts": 4, "num_experts_per_tok": 2, "n_shared_experts": 1,
    "moe_intermediate_size": 20, "n_group": 1, "topk_group": 1, "experts_implementation": "eager",
}  # fmt: skip
for name, family in (("deepseek-v2", "DeepseekV2"), ("deepseek-v3", "DeepseekV3")):
    text(
        name,
        family,
        GENERATE,
        {**LATENT, "first_k_dense_replace": 1},
        masked=False,
        hard=("model.embed_tokens",),
        why="the router keeps the width of the stream",
    )
text(
    "deepseek-v3-dense",
    "DeepseekV3",
    GENERATE,
    {**LATENT, "first_k_dense_replace": 2, "q_lora_rank": None},
    masked=False,
)

T5 = {"vocab_size": 60, "d_model": 24, "d_kv": 6, "d_ff": 36, "num_layers": 2, "num_heads": 4}
both = keywords(input_ids=tokens(60), attention_mask=mask, decoder_input_ids=tokens(60, 5))
PAIRS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "t5": ("T5Config", "T5ForConditionalGeneration", {**T5, "decoder_start_token_id": 0}),
    "t5-gated": ("T5Config", "T5ForConditionalGeneration", {**T5, "feed_forward_proj": "gated-gelu"}),
    "bart": ("BartConfig", "BartForConditionalGeneration", PAIR),
    "pegasus": ("PegasusConfig", "PegasusForConditionalGeneration", PAIR),
    "marian": ("MarianConfig", "MarianMTModel", PAIR),
}
for name, (config, model, settings) in PAIRS.items():
    add(f"hf/{name}", lambda c=config, m=model, s=settings: hugging(c, m, **s), both)

add(
    "hf/whisper",
    lambda: hugging(
        "WhisperConfig",
        "WhisperForConditionalGeneration",
        num_mel_bins=10,
        max_source_positions=12,
        max_target_positions=16,
        **{k: v for k, v in PAIR.items() if k != "max_position_embeddings"},
    ),
    keywords(input_features=floats((2, 10, 24)), decoder_input_ids=tokens(60, 5)),
)

wave = keywords(input_values=floats((2, 400)))
SOUND: dict[str, tuple[str, dict[str, Any]]] = {
    "wav2vec2": ("Wav2Vec2", {}),
    "wav2vec2-layer-norm": ("Wav2Vec2", {"feat_extract_norm": "layer", "do_stable_layer_norm": True}),
    "hubert": ("Hubert", {}),
    "sew": ("SEW", {"squeeze_factor": 2}),
    "wavlm": ("WavLM", {"num_buckets": 8, "max_bucket_distance": 16}),
}
for name, (stem, more) in SOUND.items():
    add(
        f"hf/{name}",
        lambda s=stem, m=more: hugging(f"{s}Config", f"{s}ForSequenceClassification", no_cache_key=True, **AUDIO, **m),
        wave,
        # torch's attention takes the size of a head, by which it scales, from the width of the stream
        **({"hard": ("wavlm.feature_projection.projection",)} if name == "wavlm" else {}),
    )
