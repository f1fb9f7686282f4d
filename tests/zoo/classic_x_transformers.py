"""Language models in the style of lucidrains' x-transformers, without einops."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .entry import floats, network, tokens

# The number of key heads is an attribute that only a search can find.
KV: dict[str, Any] = {"hard": ("*.attention.to_q",), "why": "the heads of the keys are counted in an attribute"}
VOCABULARY, DIM, HEADS, DIM_HEAD, HIDDEN = 50, 24, 3, 10, 36


class MeanSquare(nn.Module):
    """RMSNorm with pow, mean and rsqrt, in single precision and back."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.ones(dim)), 1e-6

    def forward(self, x: Tensor) -> Tensor:
        wide = x.float()
        wide = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + self.eps)
        return self.weight * wide.type_as(x)


class VectorNorm(nn.Module):
    """RMSNorm with linalg.vector_norm and the root of the width as it was."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.scale, self.g = dim**-0.5, nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        return x / (torch.linalg.vector_norm(x, dim=-1, keepdim=True) * self.scale).clamp(min=1e-8) * self.g


class ScaleNorm(nn.Module):
    """Vectors of a learned length."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.g = nn.Parameter(torch.full((1,), dim**0.5))

    def forward(self, x: Tensor) -> Tensor:
        return x / x.norm(dim=-1, keepdim=True).clamp(min=1e-8) * self.g


class Centred(nn.Module):
    """LayerNorm without a bias: a gain, and variance and mean of their own."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        variance, mean = x.var(dim=-1, unbiased=False, keepdim=True), x.mean(dim=-1, keepdim=True)
        return (x - mean) * (variance + 1e-5).rsqrt() * self.gamma


class Rotary(nn.Module):
    """Rotary positions; the frequencies are a buffer."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.register_buffer("inv_freq", 1.0 / (10000 ** (torch.arange(0, dim, 2).float() / dim)))

    def forward(self, x: Tensor) -> Tensor:
        t = torch.arange(x.shape[-2], device=x.device).type_as(self.inv_freq)
        freqs = torch.einsum("i,j->ij", t, self.inv_freq)
        freqs = torch.cat((freqs, freqs), dim=-1)
        a, b = x.chunk(2, dim=-1)
        return x * freqs.cos() + torch.cat((-b, a), dim=-1) * freqs.sin()


class Attention(nn.Module):
    """Grouped queries, a context of its own width, rotary positions, queries and keys of length one if asked for."""

    def __init__(self, dim: int, kv_heads: int, context: int | None = None, rotary: bool = True, cosine: bool = False):
        super().__init__()
        self.heads, self.kv_heads, self.cosine = HEADS, kv_heads, cosine
        self.to_q = nn.Linear(dim, HEADS * DIM_HEAD, bias=False)
        self.to_k = nn.Linear(context or dim, kv_heads * DIM_HEAD, bias=False)
        self.to_v = nn.Linear(context or dim, kv_heads * DIM_HEAD, bias=False)
        self.to_out = nn.Linear(HEADS * DIM_HEAD, dim, bias=False)
        self.rotary = Rotary(DIM_HEAD) if rotary else nn.Identity()

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        (b, n, _), other = x.shape, x if context is None else context
        q = self.to_q(x).view(b, n, self.heads, -1).transpose(1, 2)
        k, v = (to(other).view(b, other.shape[1], self.kv_heads, -1).transpose(1, 2) for to in (self.to_k, self.to_v))
        q, k = self.rotary(q), self.rotary(k)
        if self.cosine:
            q, k = F.normalize(q, dim=-1), F.normalize(k, dim=-1)
        k, v = (t.repeat_interleave(self.heads // self.kv_heads, dim=1) for t in (k, v))
        dots = q @ k.transpose(-1, -2) * (10 if self.cosine else DIM_HEAD**-0.5)
        if context is None:
            dots = dots.masked_fill(torch.ones(n, n, dtype=torch.bool).triu(1), -torch.finfo(dots.dtype).max)
        return self.to_out((dots.softmax(dim=-1) @ v).transpose(1, 2).reshape(b, n, -1))


class GatedLinear(nn.Module):
    """One projection for value and gate, with a norm inside, as x-transformers offers it."""

    def __init__(self, dim: int, hidden: int, inner: nn.Module) -> None:
        super().__init__()
        self.proj, self.inner, self.out = nn.Linear(dim, hidden * 2), inner, nn.Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        x, gate = self.proj(x).chunk(2, dim=-1)
        return self.out(self.inner(x * F.silu(gate)))


class Layer(nn.Module):
    def __init__(self, norm: Callable[[int], nn.Module], attention: nn.Module, forward: nn.Module) -> None:
        super().__init__()
        self.norm1, self.attention, self.norm2, self.ff = norm(DIM), attention, norm(DIM), forward

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        x = self.attention(self.norm1(x), context) + x
        return self.ff(self.norm2(x)) + x


class Wrapper(nn.Module):
    """Token embedding (of a width of its own, and projected, where asked for), layers, norm, logits."""

    def __init__(self, norm: Callable[[int], nn.Module], *layers: nn.Module, embedding: int = DIM, tied: bool = False,
                 absolute: bool = False) -> None:  # fmt: skip
        super().__init__()
        self.token_emb, self.layers, self.tied = nn.Embedding(VOCABULARY, embedding), nn.ModuleList(layers), tied
        self.pos_emb = nn.Parameter(torch.randn(16, embedding)) if absolute else None
        self.project_emb = nn.Identity() if embedding == DIM else nn.Linear(embedding, DIM)
        self.memory_tokens = nn.Parameter(torch.randn(2, DIM)) if absolute else None
        self.final_norm = norm(DIM)
        self.to_logits = None if tied else nn.Linear(DIM, VOCABULARY, bias=False)

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        x = self.token_emb(x)
        if self.pos_emb is not None:
            x = x + self.pos_emb[: x.shape[1]]
        x = self.project_emb(x)
        if self.memory_tokens is not None:
            x = torch.cat((self.memory_tokens.expand(x.shape[0], -1, -1), x), dim=1)
        for layer in self.layers:
            x = layer(x, context)
        x = self.final_norm(x)
        x = x if self.memory_tokens is None else x[:, len(self.memory_tokens) :]
        return x @ self.token_emb.weight.t() if self.tied else self.to_logits(x)


@network(tokens(), must=("layers.0.ff.proj",), normalized=("token_emb",))
def x_decoder_tied() -> nn.Module:
    """As Llama: RMSNorm by hand, one key head for three queries, SwiGLU, logits of the table of tokens."""
    layers = (Layer(MeanSquare, Attention(DIM, 1), GatedLinear(DIM, HIDDEN, nn.Identity())) for _ in range(2))
    return Wrapper(MeanSquare, *layers, tied=True)


@network(tokens(), normalized=("project_emb", "layers.0.ff.proj"), **KV)
def x_encoder_positions() -> nn.Module:
    """Absolute positions as a sliced parameter, memory tokens, a narrower table, cosine attention, an inner norm."""
    layers = (
        Layer(Centred, Attention(DIM, 3, rotary=False, cosine=True), GatedLinear(DIM, HIDDEN, nn.LayerNorm(HIDDEN)))
        for _ in range(2)
    )
    return Wrapper(Centred, *layers, embedding=20, absolute=True)


@network(tokens(), must=("layers.0.ff.proj",), normalized=("token_emb",), **KV)
def x_decoder_vector_norm() -> nn.Module:
    return Wrapper(VectorNorm, Layer(VectorNorm, Attention(DIM, 3), GatedLinear(DIM, HIDDEN, nn.Dropout(0.1))))


@network(tokens(), must=("layers.0.ff.proj",), normalized=("token_emb",), **KV)
def x_decoder_scale_norm() -> nn.Module:
    """One gain for all channels, and a table that makes the stream and reads it."""
    return Wrapper(ScaleNorm, Layer(ScaleNorm, Attention(DIM, 3), GatedLinear(DIM, HIDDEN, nn.Identity())), tied=True)


@network(
    lambda generator: (*tokens()(generator), *floats((2, 5, 14))(generator)),
    must=("layers.0.ff.proj",),
    normalized=("token_emb",),
    **KV,
)
def x_cross_attention() -> nn.Module:
    """The context, of another width, is an input."""
    attention = Attention(DIM, 3, context=14, rotary=False)
    return Wrapper(nn.LayerNorm, Layer(nn.LayerNorm, attention, GatedLinear(DIM, HIDDEN, nn.Identity())))
