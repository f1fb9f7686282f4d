"""Vision, video and vision-language models of Hugging Face transformers, tiny and with random weights."""

from __future__ import annotations

from typing import Any

from .entry import add, floats, keywords, tokens
from .huggingface_text import hugging

SIZES = {
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 36,
    "image_size": 16,
    "patch_size": 4,
    "num_channels": 3,
}
# The reduced tokens are reshaped to as many channels as the stream has, though a convolution makes them.
REDUCED: dict[str, Any] = {
    "hard": ("*patch_embeddings*", "*.sequence_reduction", "*.self.sr"),
    "why": "two widths have to be one",
}
TOWER = {**SIZES, "projection_dim": 20}
WORDS = {
    "vocab_size": 60,
    "hidden_size": 20,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 28,
    "max_position_embeddings": 16,
    "projection_dim": 20,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


def vision(name: str, stem: str, size: int, settings: dict[str, Any], head: str = "", **facts: Any) -> None:
    """Adds a model that reads images."""
    add(
        f"hf/{name}",
        lambda: hugging(f"{stem}Config", f"{stem}{head or 'ForImageClassification'}", no_cache_key=True, **settings),
        keywords(pixel_values=floats((2, 3, size, size))),
        **facts,
    )


vision("vit", "ViT", 16, SIZES)
vision("vit-eager", "ViT", 16, {**SIZES, "attn_implementation": "eager"})
vision("deit", "DeiT", 16, SIZES)
vision("deit-distilled", "DeiT", 16, SIZES, "ForImageClassificationWithTeacher")
vision("beit", "Beit", 16, {**SIZES, "use_relative_position_bias": True, "layer_scale_init_value": 0.1})
vision("data2vec-vision", "Data2VecVision", 16, {**SIZES, "use_shared_relative_position_bias": True})
vision("dinov2", "Dinov2", 16, {**SIZES, "mlp_ratio": 2})
vision("dinov2-swiglu", "Dinov2", 16, {**SIZES, "mlp_ratio": 2, "use_swiglu_ffn": True})
vision("dinov2-registers", "Dinov2WithRegisters", 16, {**SIZES, "mlp_ratio": 2, "num_register_tokens": 2})
vision("vit-msn", "ViTMSN", 16, SIZES)
vision("yolos", "Yolos", 16, {**SIZES, "image_size": [16, 16], "num_detection_tokens": 5}, "ForObjectDetection")
vision("swin", "Swin", 32, {"image_size": 32, "patch_size": 2, "embed_dim": 12, "depths": [2, 1], "num_heads": [2, 4],
                            "window_size": 4})  # fmt: skip
vision("swinv2", "Swinv2", 32, {"image_size": 32, "patch_size": 2, "embed_dim": 12, "depths": [2, 1],
                                "num_heads": [2, 4], "window_size": 4})  # fmt: skip
vision("hiera", "Hiera", 32, {
    "image_size": [32, 32], "patch_size": [3, 3], "patch_stride": [2, 2], "patch_padding": [1, 1], "embed_dim": 12,
    "depths": [1, 1], "num_heads": [1, 2], "masked_unit_size": [4, 4], "masked_unit_attention": [True, False],
    "query_stride": [2, 2], "num_query_pool": 1, "embed_dim_multiplier": 2.0,
}, hard=("*.attn.qkv", "*.layers.0.proj"), why="the queries are pooled by numbers")  # fmt: skip
vision("focalnet", "FocalNet", 32, {"image_size": 32, "patch_size": 4, "embed_dim": 12, "depths": [1, 1],
                                    "focal_levels": [2, 2], "focal_windows": [3, 3]},
       hard=("*.projection", "*.projection_in"), why="splits name the width")  # fmt: skip
vision("pvt", "Pvt", 32, {
    "image_size": 32, "num_encoder_blocks": 2, "depths": [1, 1], "sequence_reduction_ratios": [2, 1],
    "hidden_sizes": [12, 20], "patch_sizes": [4, 2], "strides": [4, 2], "num_attention_heads": [1, 2],
    "mlp_ratios": [2, 3],
}, **REDUCED)  # fmt: skip
vision("cvt", "Cvt", 32, {
    "num_stages": 2, "embed_dim": [12, 20], "num_heads": [1, 2], "depth": [1, 2], "mlp_ratio": [2.0, 3.0],
    "patch_sizes": [7, 3], "patch_stride": [4, 2], "patch_padding": [2, 1], "attention_drop_rate": [0.0, 0.0],
    "drop_rate": [0.0, 0.0], "drop_path_rate": [0.0, 0.0], "qkv_bias": [True, True], "cls_token": [False, True],
    "qkv_projection_method": ["dw_bn", "dw_bn"], "kernel_qkv": [3, 3], "padding_kv": [1, 1], "stride_kv": [2, 2],
    "padding_q": [1, 1], "stride_q": [1, 1],
}, hard=("*.projection_*",), why="the head size is a number")  # fmt: skip
vision("levit", "Levit", 64, {
    "image_size": 64, "patch_size": 16, "hidden_sizes": [16, 24, 32], "num_attention_heads": [2, 3, 4],
    "depths": [1, 1, 1], "key_dim": [4, 4, 4], "attention_ratio": [2, 2, 2], "mlp_ratio": [2, 2, 2],
}, hard=("*keys_values*",), why="splits of the heads name their sizes")  # fmt: skip
vision("convnext", "ConvNext", 32, {"hidden_sizes": [12, 20, 24, 28], "depths": [1, 1, 1, 1]})
vision("convnextv2", "ConvNextV2", 32, {"hidden_sizes": [12, 20, 24, 28], "depths": [1, 1, 1, 1]},
       normalized=("convnextv2.embeddings.patch_embeddings",
                   "convnextv2.encoder.stages.0.layers.0.pwconv1"))  # fmt: skip
RESNET = {"embedding_size": 12, "hidden_sizes": [20, 24, 28], "depths": [1, 2, 1]}
vision("resnet", "ResNet", 32, {**RESNET, "layer_type": "bottleneck"})
vision("resnet-basic", "ResNet", 32, {**RESNET, "layer_type": "basic"})
vision("regnet-x", "RegNet", 32, {**RESNET, "layer_type": "x", "groups_width": 4})
vision("regnet-y", "RegNet", 32, {**RESNET, "layer_type": "y", "groups_width": 4})
vision("bit", "Bit", 32, {"embedding_size": 12, "hidden_sizes": [24, 32], "depths": [1, 2], "num_groups": 2,
                          "layer_type": "preactivation"})  # fmt: skip
vision("mobilenet-v1", "MobileNetV1", 32, {"image_size": 32, "depth_multiplier": 0.25, "min_depth": 8})
vision("mobilenet-v2", "MobileNetV2", 32, {"image_size": 32, "depth_multiplier": 0.25, "min_depth": 8})
vision("mobilenet-v2-segmentation", "MobileNetV2", 32, {"image_size": 32, "depth_multiplier": 0.25, "min_depth": 8},
       "ForSemanticSegmentation", slow=True)  # fmt: skip
MOBILEVIT = {
    "image_size": 32, "hidden_sizes": [16, 20, 24], "neck_hidden_sizes": [8, 12, 16, 20, 24, 28, 36],
    "num_attention_heads": 2, "expand_ratio": 2.0,
}  # fmt: skip
vision("mobilevit", "MobileViT", 64, MOBILEVIT, slow=True)
vision("mobilevit-v2", "MobileViTV2", 64, {"image_size": 64, "width_multiplier": 0.1, "n_attn_blocks": [1, 1, 1],
                                            "base_attn_unit_dims": [32, 40, 48]})  # fmt: skip
vision("efficientnet", "EfficientNet", 32, {
    "image_size": 32, "width_coefficient": 0.5, "depth_coefficient": 0.4, "hidden_dim": 640,
    "in_channels": [32, 16, 24, 40], "out_channels": [16, 24, 40, 48], "kernel_sizes": [3, 3, 5, 3],
    "strides": [1, 2, 2, 1], "num_block_repeats": [1, 2, 2, 1], "expand_ratios": [1, 4, 4, 6],
    "depthwise_padding": [],
})  # fmt: skip
SEGFORMER = {
    "num_encoder_blocks": 2, "depths": [1, 1], "sr_ratios": [2, 1], "hidden_sizes": [12, 20], "patch_sizes": [7, 3],
    "strides": [4, 2], "num_attention_heads": [1, 2], "mlp_ratios": [2, 3], "decoder_hidden_size": 28,
}  # fmt: skip
vision("segformer", "Segformer", 32, SEGFORMER, **REDUCED)
vision("segformer-segmentation", "Segformer", 32, SEGFORMER, "ForSemanticSegmentation", **REDUCED)
vision("glpn", "GLPN", 32, SEGFORMER | {"num_encoder_blocks": 4, "depths": [1] * 4, "sr_ratios": [2, 2, 1, 1],
       "hidden_sizes": [12, 16, 20, 24], "patch_sizes": [7, 3, 3, 3], "strides": [2, 2, 2, 2],
       "num_attention_heads": [1, 2, 2, 2], "mlp_ratios": [2, 2, 2, 2]}, "ForDepthEstimation", slow=True,
       **REDUCED)  # fmt: skip
vision("poolformer", "PoolFormer", 32, {
    "num_encoder_blocks": 2, "depths": [1, 2], "hidden_sizes": [12, 20], "patch_sizes": [7, 3], "strides": [4, 2],
    "padding": [2, 1], "mlp_ratio": 2.0,
})  # fmt: skip
vision("swiftformer", "SwiftFormer", 64, {
    "depths": [1, 1, 1, 1], "embed_dims": [12, 16, 20, 24], "mlp_ratio": 2, "image_size": 64,
})  # fmt: skip
vision("textnet", "TextNet", 32, {
    "stem_out_channels": 12, "hidden_sizes": [12, 12, 20, 24, 28],
    "conv_layer_kernel_sizes": [[[3, 3]], [[3, 1], [3, 3]], [[1, 3]], [[3, 3]]],
    "conv_layer_strides": [[2], [1, 2], [2], [1]],
})  # fmt: skip
vision("dpt", "DPT", 16, {
    **SIZES, "num_hidden_layers": 4, "backbone_out_indices": [0, 1, 2, 3], "neck_hidden_sizes": [12, 16, 20, 24],
    "fusion_hidden_size": 20, "is_hybrid": False, "reassemble_factors": [4, 2, 1, 0.5],
}, "ForDepthEstimation", hard=("*.readout_projects.*", "*.projection"), why="a view names the hidden size")  # fmt: skip

VIDEO = {**SIZES, "num_frames": 4}
for name, stem, more in (
    ("videomae", "VideoMAE", {"tubelet_size": 2}),
    ("vivit", "Vivit", {"tubelet_size": [2, 4, 4]}),
    ("timesformer", "Timesformer", {"attention_type": "divided_space_time"}),
):
    add(
        f"hf/{name}",
        lambda s=stem, m=more: hugging(f"{s}Config", f"{s}ForVideoClassification", no_cache_key=True, **VIDEO, **m),
        keywords(pixel_values=floats((2, 4, 3, 16, 16))),
        hard=("*.qkv", "*.projection") if name == "timesformer" else (),
        why="the head size is the width over the number of heads" if name == "timesformer" else "",
    )

captioned = keywords(input_ids=tokens(60), pixel_values=floats((2, 3, 16, 16)))
for stem in ("CLIP", "Siglip"):
    add(
        f"hf/{stem.lower()}",
        lambda s=stem: hugging(
            f"{s}Config",
            f"{s}Model",
            no_cache_key=True,
            text_config=WORDS,
            vision_config={**TOWER, "hidden_size": 24 if s == "CLIP" else 20},
            projection_dim=20,
        ),
        captioned,
    )
add(
    "hf/vilt",
    lambda: hugging(
        "ViltConfig",
        "ViltForQuestionAnswering",
        no_cache_key=True,
        **SIZES,
        vocab_size=60,
        max_position_embeddings=16,
        max_image_length=-1,
    ),
    captioned,
)
add(
    "hf/perceiver",
    lambda: hugging(
        "PerceiverConfig",
        "PerceiverForMaskedLM",
        no_cache_key=True,
        num_latents=6,
        d_latents=24,
        d_model=16,
        num_blocks=1,
        num_self_attends_per_block=2,
        num_self_attention_heads=4,
        num_cross_attention_heads=2,
        qk_channels=16,
        v_channels=24,
        vocab_size=60,
        max_position_embeddings=7,
    ),
    keywords(inputs=tokens(60, 7)),
)
add(
    "hf/audio-spectrogram-transformer",
    lambda: hugging(
        "ASTConfig",
        "ASTForAudioClassification",
        no_cache_key=True,
        **{k: v for k, v in SIZES.items() if k not in ("image_size", "num_channels")},
        max_length=24,
        num_mel_bins=12,
        frequency_stride=4,
        time_stride=4,
    ),
    keywords(input_values=floats((2, 24, 12))),
)
add(
    "hf/patchtst",
    lambda: hugging(
        "PatchTSTConfig",
        "PatchTSTForPrediction",
        no_cache_key=True,
        num_input_channels=3,
        context_length=16,
        patch_length=4,
        patch_stride=4,
        d_model=24,
        num_hidden_layers=2,
        num_attention_heads=4,
        ffn_dim=36,
        prediction_length=5,
        share_embedding=True,
        loss="mse",
    ),
    keywords(past_values=floats((2, 16, 3))),
)


def detr() -> Any:
    """DETR reads its features from a ResNet with frozen BatchNorms."""
    import transformers

    resnet = transformers.ResNetConfig(**RESNET, layer_type="basic", out_features=["stage3"])
    config = transformers.DetrConfig(
        backbone_config=resnet, use_timm_backbone=False, backbone=None, num_queries=5, d_model=24, encoder_layers=1,
        decoder_layers=1, encoder_ffn_dim=36, decoder_ffn_dim=40, encoder_attention_heads=4, decoder_attention_heads=3,
    )  # fmt: skip
    return transformers.DetrForObjectDetection(config)


add("hf/detr", detr, keywords(pixel_values=floats((2, 3, 32, 32))))
