"""``nn.MultiheadAttention`` whose heads need not be as wide together as the model.

torch computes the size of a head as ``embed_dim // num_heads``. So an ``nn.MultiheadAttention`` that lost heads, or
whose model became narrower, cannot run. It then becomes a :class:`NarrowAttention`, by a change of its class in place:
it stays the same object, with the same parameters under the same names. Where the sizes agree again, it is a plain
``nn.MultiheadAttention`` again.

Legend of shapes: N samples, L queries, S keys, E ``embed_dim``, H heads with D query-key and V value dimensions each.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_coreset._compat import UnfusedAttention, has_packed_projection, may_be_unfused


class NarrowAttention(UnfusedAttention):
    """``nn.MultiheadAttention`` that takes the sizes of its heads from its weights.

    It has the parameters, the ``forward`` and the results of ``nn.MultiheadAttention``, and computes the same as that
    one wherever that one can. Do not make one: :func:`settle_attention` gives this class to modules that need it.

    ``head_dim`` stays what it was in the original module, for it determines the scale of the logits.
    """

    __jit_unused_properties__ = ("qk_head_dim", "v_head_dim")

    @property
    def v_head_dim(self) -> int:
        """The value dimensions of each head, V."""
        return self.out_proj.weight.shape[1] // self.num_heads

    @property
    def qk_head_dim(self) -> int:
        """The query-key dimensions of each head, D."""
        if self.in_proj_weight is None:
            return self.q_proj_weight.shape[0] // self.num_heads
        return (self.in_proj_weight.shape[0] // self.num_heads - self.v_head_dim) // 2

    def extra_repr(self) -> str:
        """The sizes that do not follow from each other."""
        sizes = f"embed_dim={self.embed_dim}, num_heads={self.num_heads}"
        return f"{sizes}, qk_head_dim={self.qk_head_dim}, v_head_dim={self.v_head_dim}"

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """As ``nn.MultiheadAttention.forward``."""
        if not torch.jit.is_scripting() and query.is_nested:  # pyright: ignore[reportPrivateImportUsage]
            return self._forward_nested(query, key, value, need_weights, average_attn_weights)
        same, batched = query is key and key is value, query.dim() == 3
        if not batched:
            query, key, value = query.unsqueeze(0), key.unsqueeze(0), value.unsqueeze(0)
            key_padding_mask = None if key_padding_mask is None else key_padding_mask.unsqueeze(0)
        elif not self.batch_first:
            query, key, value = query.transpose(0, 1), key.transpose(0, 1), value.transpose(0, 1)
        q, k, v = self.project(query, key, value, same)
        output, weights = self._attend(
            q, k, v, key_padding_mask, need_weights, attn_mask, average_attn_weights, is_causal
        )
        if not batched:
            return output.squeeze(0), None if weights is None else weights.squeeze(0)
        return output if self.batch_first else output.transpose(0, 1), weights

    def project(self, query: Tensor, key: Tensor, value: Tensor, same: bool) -> tuple[Tensor, Tensor, Tensor]:
        """Queries ``(N, L, H D)``, keys ``(N, S, H D)`` and values ``(N, S, H V)`` of all heads.

        Args:
            query: The input, ``(N, L, E)``.
            key: Of shape ``(N, S, kdim)``.
            value: Of shape ``(N, S, vdim)``.
            same: Whether all three are one tensor.
        """
        weight, bias, values = self.in_proj_weight, self.in_proj_bias, self.out_proj.weight.shape[1]
        if weight is None:
            q_weight, k_weight, v_weight = self.q_proj_weight, self.k_proj_weight, self.v_proj_weight
            queries = q_weight.shape[0]
        else:
            queries = (weight.shape[0] - values) // 2
            if same:
                q, k, v = F.linear(query, weight, bias).split([queries, queries, values], dim=-1)
                return q, k, v
            q_weight, k_weight, v_weight = weight.split([queries, queries, values])
        if bias is None:
            return F.linear(query, q_weight), F.linear(key, k_weight), F.linear(value, v_weight)
        q_bias, k_bias, v_bias = bias.split([queries, queries, values])
        return F.linear(query, q_weight, q_bias), F.linear(key, k_weight, k_bias), F.linear(value, v_weight, v_bias)

    def _attend(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        key_padding_mask: Tensor | None,
        need_weights: bool,
        attn_mask: Tensor | None,
        average_attn_weights: bool,
        is_causal: bool,
    ) -> tuple[Tensor, Tensor | None]:
        """From projected queries, keys and values to the output ``(N, L, E)``."""
        if is_causal and attn_mask is None:
            raise ValueError("Expected attn_mask with is_causal=True, which only says that the mask is a causal one.")
        # As torch does: the hint is taken where the mask says nothing more.
        hint = is_causal and key_padding_mask is None and not need_weights
        mask = merged_mask(None if hint else attn_mask, key_padding_mask, self.num_heads, q, k)

        extra = 0
        bias_k, bias_v = self.bias_k, self.bias_v
        if bias_k is not None and bias_v is not None:
            k = torch.cat([k, bias_k.expand(k.shape[0], -1, -1)], dim=1)
            v = torch.cat([v, bias_v.expand(v.shape[0], -1, -1)], dim=1)
            extra += 1
        if self.add_zero_attn:
            k = torch.cat([k, k.new_zeros(k.shape[0], 1, k.shape[2])], dim=1)
            v = torch.cat([v, v.new_zeros(v.shape[0], 1, v.shape[2])], dim=1)
            extra += 1
        if mask is not None and extra > 0:
            mask = F.pad(mask, [0, extra])

        q = q.unflatten(2, [self.num_heads, -1]).transpose(1, 2)  # (N, H, L, D)
        k = k.unflatten(2, [self.num_heads, -1]).transpose(1, 2)
        v = v.unflatten(2, [self.num_heads, -1]).transpose(1, 2)
        dropout = self.dropout if self.training else 0.0
        scale = math.sqrt(1.0 / float(self.head_dim))
        weights: Tensor | None = None
        if need_weights:
            logits = (q * scale) @ k.transpose(2, 3)
            weights = F.softmax(logits if mask is None else logits + mask, dim=-1)
            if dropout > 0.0:
                weights = F.dropout(weights, p=dropout)
            found = weights @ v
            weights = weights.mean(dim=1) if average_attn_weights else weights
        else:
            found = F.scaled_dot_product_attention(q, k, v, mask, dropout, hint, scale=scale)
        return F.linear(found.transpose(1, 2).flatten(2), self.out_proj.weight, self.out_proj.bias), weights

    def _forward_nested(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        need_weights: bool,
        average_attn_weights: bool,
    ) -> tuple[Tensor, Tensor | None]:
        """Self-attention on a nested tensor, which ``nn.TransformerEncoder`` makes of an input with padding.

        The encoder decides about that when it is made, so that there is no way to tell it that this module is narrow.
        """
        if query is not key or key is not value or not self.batch_first:
            raise ValueError("Expected one nested tensor as query, key and value, and batch_first=True.")
        lengths = [sample.shape[0] for sample in query.unbind()]
        padded = query.to_padded_tensor(0.0)
        places = torch.arange(padded.shape[1], device=padded.device)
        padding = places >= torch.tensor(lengths, device=padded.device)[:, None]
        q, k, v = self.project(padded, padded, padded, True)
        output, weights = self._attend(q, k, v, padding, need_weights, None, average_attn_weights, False)
        whole = [sample[:length] for sample, length in zip(output, lengths, strict=True)]
        return torch.nested.as_nested_tensor(whole), weights


def merged_mask(
    attn_mask: Tensor | None,
    key_padding_mask: Tensor | None,
    heads: int,
    q: Tensor,
    k: Tensor,
) -> Tensor | None:
    """What both masks add to the logits, of a shape that broadcasts to ``(N, H, L, S)``.

    Args:
        attn_mask: Of shape ``(L, S)`` or ``(N H, L, S)``.
        key_padding_mask: Of shape ``(N, S)``.
        heads: H.
        q: Queries, ``(N, L, H D)``.
        k: Keys, ``(N, S, H D)``.
    """
    samples, queries, keys = q.shape[0], q.shape[1], k.shape[1]
    mask: Tensor | None = None
    if attn_mask is not None:
        if attn_mask.dim() == 3:
            _check_shape("attn_mask", attn_mask, [samples * heads, queries, keys])
            attn_mask = attn_mask.view(samples, heads, queries, keys)
        else:
            _check_shape("attn_mask", attn_mask, [queries, keys])
        mask = _added(attn_mask, q)
    if key_padding_mask is not None:
        _check_shape("key_padding_mask", key_padding_mask, [samples, keys])
        padding = _added(key_padding_mask.view(samples, 1, 1, keys), q)
        mask = padding if mask is None else mask + padding
    return mask


def _check_shape(name: str, mask: Tensor, shape: list[int]) -> None:
    if list(mask.shape) != shape:
        raise ValueError(f"Expected {name} to have shape {shape} but got {list(mask.shape)}.")


def _added(mask: Tensor, like: Tensor) -> Tensor:
    """What a mask adds to logits: minus infinity where a boolean one is ``True``."""
    if mask.dtype == torch.bool:
        return torch.zeros_like(mask, dtype=like.dtype).masked_fill_(mask, float("-inf"))
    if not mask.is_floating_point():
        raise ValueError(f"Expected a mask of booleans or floating-point numbers but got {mask.dtype}.")
    return mask


def attention_sizes(attributes: Mapping[str, Any], shape: tuple[int, ...]) -> dict[str, int]:
    """The sizes that follow from ``in_proj_weight``, or from ``q_proj_weight`` where keys have another width."""
    names = ("embed_dim", "kdim", "vdim") if has_packed_projection(attributes) else ("embed_dim",)
    return dict.fromkeys(names, shape[1])


def attention_head_widths(shapes: Mapping[str, tuple[int, ...]]) -> tuple[int, int]:
    """How many dimensions the queries, and the values, of all heads have together."""
    values = shapes["out_proj.weight"][1]
    packed = shapes.get("in_proj_weight")
    return (packed[0] - values) // 2 if packed is not None else shapes["q_proj_weight"][0], values


def settle_attention(module: nn.Module, original: Mapping[str, Any]) -> None:
    """Give an attention whose weights were replaced the class that can run it, and the widths of its keys and values.

    An ``nn.TransformerEncoder`` that was made with an even number of heads may send nested tensors, which a plain
    attention with an odd number refuses.
    """
    assert isinstance(module, nn.MultiheadAttention)
    if module.in_proj_weight is None:
        module.kdim, module.vdim = module.k_proj_weight.shape[1], module.v_proj_weight.shape[1]
    takes_nested = module.num_heads % 2 == 0 or original["num_heads"] % 2 == 1
    module.__class__ = nn.MultiheadAttention if takes_nested and _is_plain(module) else NarrowAttention


def _is_plain(module: nn.MultiheadAttention) -> bool:
    """Whether all sizes are those of an ``nn.MultiheadAttention``."""
    width = module.embed_dim
    rows = 3 * width if module.in_proj_weight is not None else width
    weight = module.in_proj_weight if module.in_proj_weight is not None else module.q_proj_weight
    return (
        module.num_heads * module.head_dim == width
        and tuple(weight.shape) == (rows, width)
        and tuple(module.out_proj.weight.shape) == (width, width)
    )


def unsupported_attention(module: nn.Module) -> str | None:
    """Why nothing of an attention may be pruned; ``None`` if it may."""
    own = type(module) in (nn.MultiheadAttention, NarrowAttention) and "forward" not in vars(module)
    if not own or not may_be_unfused(module):
        return "belongs to nn.MultiheadAttention with code of its own (a subclass, or a replaced forward)"
    return None
