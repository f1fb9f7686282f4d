"""Plain calls of operators of which torch's first samples show nothing, for they are numbers or too small."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

aten = torch.ops.aten
Calls = dict[str, tuple[Callable[..., Any], tuple[Any, ...]]]


def plain_calls() -> Calls:
    """Calls by the name of the operator."""
    x, square, mask = torch.randn(3, 4), torch.randn(3, 4, 4), torch.rand(3, 4) > 0.5
    chance, target = torch.rand(3, 4), (torch.rand(3, 4) > 0.5).double()
    rows, table = torch.tensor([2, 0]), torch.randn(6, 4)
    return {
        "bitwise_not": (aten.bitwise_not, (mask,)),
        "bitwise_xor": (aten.bitwise_xor, (mask, ~mask)),
        "all": (aten.all, (mask, 0)),
        **{name: (getattr(aten, name), (x, [0])) for name in ("amax", "amin", "count_nonzero", "nansum")},
        **{name: (getattr(aten, name), (x, 0)) for name in ("argmax", "argmin", "median", "nanmedian")},
        **{
            name: (getattr(aten, name), (x,))
            for name in ("alias", "detach", "lift", "lift_fresh", "_neg_view", "positive")
        },
        "copy": (aten.copy, (x, torch.randn(3, 4))),
        "diagonal": (aten.diagonal, (square, 0, 1, 2)),
        "triu": (aten.triu, (square,)),
        "tril": (aten.tril, (square,)),
        "repeat": (aten.repeat, (x, [2, 1])),
        "glu": (aten.glu, (square, 1)),
        "unsafe_split_with_sizes": (aten.unsafe_split_with_sizes, (x, [2, 2], 1)),
        "_unsafe_index": (aten._unsafe_index, (x, [rows])),
        "_unsafe_index_put": (aten._unsafe_index_put, (x, [rows], torch.randn(2, 4))),
        "_index_put_impl": (aten._index_put_impl, (x, [rows], torch.randn(2, 4))),
        "_embedding_bag": (aten._embedding_bag, (table, torch.tensor([0, 3, 3, 1]), torch.tensor([0, 2]))),
        **{
            name: (getattr(aten, name), (x, torch.randn(3, 4), 0))
            for name in ("mse_loss", "smooth_l1_loss", "soft_margin_loss")
        },
        "binary_cross_entropy": (aten.binary_cross_entropy, (chance, target, None, 0)),
        "binary_cross_entropy_with_logits": (aten.binary_cross_entropy_with_logits, (x, target, None, None, 0)),
        **_on_images(),
        **_of_batch_norm(),
        **_quantizers(),
    }


def _on_images() -> Calls:
    row, image, volume = torch.randn(2, 4, 6), torch.randn(2, 4, 4, 4), torch.randn(2, 3, 4, 4, 4)
    kernel = torch.randn(5, 4, 3)
    return {
        "native_channel_shuffle": (aten.native_channel_shuffle, (image, 2)),
        **{
            f"{way}_pad{count}d": (getattr(aten, f"{way}_pad{count}d"), (own, [1, 1] * count))
            for way in ("reflection", "replication")
            for count, own in ((1, row), (2, image), (3, volume))
        },
        **{
            f"{way}{count}d": (getattr(aten, f"{way}{count}d"), (own, [6] * count))
            for way in ("upsample_nearest", "_upsample_nearest_exact")
            for count, own in ((2, image), (3, volume))
        },
        "_upsample_bicubic2d_aa": (aten._upsample_bicubic2d_aa, (image, [2, 2], False)),
        "native_group_norm": (aten.native_group_norm, (torch.randn(3, 4, 6), None, None, 3, 4, 6, 2, 1e-5)),
        "_convolution": (
            aten._convolution,
            (row, kernel, torch.randn(5), [1], [0], [1], False, [0], 1, False, False, True, True),
        ),
    }


def whole_calls() -> Calls:
    """Calls of operators that are made of others."""
    x, row, image, volume = torch.randn(3, 4), torch.randn(2, 4, 6), torch.randn(2, 4, 4, 4), torch.randn(2, 3, 4, 4, 4)
    statistics = (torch.rand(4), torch.rand(4), torch.rand(4), torch.rand(4))
    mask = x > 0
    return {
        "concat": (aten.concat, ([x, torch.randn(3, 4)], 0)),
        "numpy_T": (aten.numpy_T, (x,)),
        **{name: (getattr(aten, name), (mask, ~mask)) for name in ("__and__", "__or__", "__xor__")},
        "selu": (aten.selu, (x,)),
        **(
            {"native_layer_norm": (aten._fused_rms_norm, (x, [4], torch.rand(4), 1e-6))}
            if hasattr(aten, "_fused_rms_norm")  # not yet in torch 2.6
            else {}
        ),
        "adaptive_avg_pool1d": (aten.adaptive_avg_pool1d, (row, [2])),
        "max_pool1d": (aten.max_pool1d, (row, [2])),
        "max_pool2d": (aten.max_pool2d, (image, [2, 2])),
        "max_pool3d": (aten.max_pool3d, (volume, [2, 2, 2])),
        "pixel_unshuffle": (aten.pixel_unshuffle, (image, 2)),
        "group_norm": (aten.group_norm, (row, 2)),
        "batch_norm": (aten.batch_norm, (row, *statistics, False, 0.1, 1e-5, False)),
        "fake_quantize_per_tensor_affine": (aten.fake_quantize_per_tensor_affine, (x, 0.1, 0, 0, 255)),
        "fake_quantize_per_channel_affine": (
            aten.fake_quantize_per_channel_affine,
            (x.float(), torch.rand(4).float() + 0.1, torch.zeros(4, dtype=torch.int32), 1, 0, 255),
        ),
    }


def _of_batch_norm() -> Calls:
    x = torch.randn(3, 4, 2)
    weight, bias, mean, variance = torch.rand(4), torch.rand(4), torch.rand(4), torch.rand(4)
    return {
        "_native_batch_norm_legit_no_training": (
            aten._native_batch_norm_legit_no_training,
            (x, weight, bias, mean, variance, 0.1, 1e-5),
        ),
        "_native_batch_norm_legit_functional": (
            aten._native_batch_norm_legit_functional,
            (x, weight, bias, mean, variance, False, 0.1, 1e-5),
        ),
        "_batch_norm_no_update": (aten._batch_norm_no_update, (x, weight, bias, mean, variance, 0.1, 1e-5)),
    }


def _quantizers() -> Calls:
    x = torch.randn(3, 4)
    scale, zero = torch.rand(4).float() + 0.1, torch.zeros(4)
    return {
        "_fake_quantize_per_tensor_affine_cachemask_tensor_qparams": (
            aten._fake_quantize_per_tensor_affine_cachemask_tensor_qparams,
            (x, scale[:1].clone(), torch.zeros(1, dtype=torch.int32), torch.ones(1, dtype=torch.int64), 0, 255),
        ),
        "_fake_quantize_learnable_per_tensor_affine": (
            aten._fake_quantize_learnable_per_tensor_affine,
            (x.float(), scale[:1].clone(), zero[:1].float(), 0, 255),
        ),
        "_fake_quantize_learnable_per_channel_affine": (
            aten._fake_quantize_learnable_per_channel_affine,
            (x.float(), scale, zero.float(), 1, 0, 255),
        ),
    }
