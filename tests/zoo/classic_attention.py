"""Hand-written transformers, in the styles of timm, nanoGPT and torch.nn."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .entry import floats, image, network, tokens


class FusedAttention(nn.Module):
    """timm's attention: one Linear for q, k, v; reshape, permute, unbind."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.num_heads, self.head_dim, self.scale = heads, width // heads, (width // heads) ** -0.5
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        b, n, _c = x.shape
        q, k, v = self.qkv(x).reshape(b, n, 3, self.num_heads, self.head_dim).permute(2, 0, 3, 1, 4).unbind(0)
        weight = (q * self.scale @ k.transpose(-2, -1)).softmax(-1)
        return self.proj((weight @ v).transpose(1, 2).reshape(b, n, -1))


class Block(nn.Module):
    def __init__(self, attention: nn.Module, mlp: nn.Module, width: int) -> None:
        super().__init__()
        self.norm1, self.attention, self.norm2, self.mlp = nn.LayerNorm(width), attention, nn.LayerNorm(width), mlp

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norm1(x))
        return x + self.mlp(self.norm2(x))


def mlp(width: int, middle: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(width, middle), nn.GELU(), nn.Dropout(0.1), nn.Linear(middle, width))


class Vit(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.patch = nn.Conv2d(3, 24, 4, 4)
        self.cls, self.place = nn.Parameter(torch.zeros(1, 1, 24)), nn.Parameter(torch.randn(1, 17, 24))
        self.blocks = nn.Sequential(*(Block(FusedAttention(24, 3), mlp(24, 36), 24) for _ in range(2)))
        self.norm, self.head = nn.LayerNorm(24), nn.Linear(24, 7)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.cls.expand(x.shape[0], -1, -1), x], 1) + self.place
        return self.head(self.norm(self.blocks(x))[:, 0])


network(image(), must=("blocks.0.mlp.0", "blocks.1.mlp.0"), normalized=("patch",))(Vit)


class SwiGlu(nn.Module):
    def __init__(self, width: int, middle: int) -> None:
        super().__init__()
        self.gate, self.up = nn.Linear(width, middle, bias=False), nn.Linear(width, middle, bias=False)
        self.down = nn.Linear(middle, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(F.silu(self.gate(x)) * self.up(x))


@network(floats((2, 5, 24)), must=("0.gate",))
def swiglu_mlp() -> nn.Module:
    return nn.Sequential(SwiGlu(24, 20), nn.Linear(24, 7))


class Causal(nn.Module):
    """nanoGPT's attention: a fused Linear, split, heads by view, scaled_dot_product_attention."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads, self.width = heads, width
        self.qkv, self.out = nn.Linear(width, 3 * width, bias=False), nn.Linear(width, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        b, t, c = x.shape
        parts = [p.view(b, t, self.heads, c // self.heads).transpose(1, 2) for p in self.qkv(x).split(self.width, 2)]
        y = F.scaled_dot_product_attention(*parts, is_causal=True)
        return self.out(y.transpose(1, 2).contiguous().view(b, t, c))


class NanoGpt(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.tokens, self.places = nn.Embedding(50, 24), nn.Embedding(16, 24)
        self.blocks = nn.Sequential(*(Block(Causal(24, 4), mlp(24, 36), 24) for _ in range(2)))
        self.norm, self.head = nn.LayerNorm(24), nn.Linear(24, 50, bias=False)
        self.head.weight = self.tokens.weight

    def forward(self, x: Tensor) -> Tensor:
        x = self.tokens(x) + self.places(torch.arange(x.shape[1]))
        return self.head(self.norm(self.blocks(x)))


network(
    tokens(),
    must=("blocks.0.mlp.0", "blocks.1.mlp.0"),
    normalized=("tokens",),
    hard=("tokens", "blocks.*.attention.qkv"),
    why="the head size is the width over the number of heads",
)(NanoGpt)


def heads(*attentions: str) -> tuple[str, ...]:
    """The groups of heads of some ``nn.MultiheadAttention``."""
    return tuple(f"{attention}.in_proj_weight" for attention in attentions)


@network(
    floats((2, 5, 24)),
    must=("layers.0.linear1", "layers.1.linear1", *heads("layers.0.self_attn", "layers.1.self_attn")),
)
def transformer_encoder() -> nn.Module:
    layer = nn.TransformerEncoderLayer(24, 4, 36, batch_first=True)
    return nn.TransformerEncoder(layer, 2)


@network(
    floats((5, 2, 24), (4, 2, 24)),
    must=(
        *("encoder.layers.0.linear1", "decoder.layers.0.linear1"),
        *heads("encoder.layers.0.self_attn", "decoder.layers.0.self_attn", "decoder.layers.0.multihead_attn"),
    ),
)
def transformer() -> nn.Module:
    return nn.Transformer(24, 3, 1, 1, 36, activation="gelu")


class CrossAttention(nn.Module):
    """nn.MultiheadAttention with keys and values of other widths, so that its projections are separate."""

    def __init__(self) -> None:
        super().__init__()
        self.before = nn.Sequential(nn.Linear(10, 28), nn.ReLU(), nn.Linear(28, 20))
        self.attention = nn.MultiheadAttention(24, 4, kdim=20, vdim=20, batch_first=True)
        self.head = nn.Linear(24, 5)

    def forward(self, query: Tensor, other: Tensor) -> tuple[Tensor, Tensor]:
        other = self.before(other)
        found, weight = self.attention(query, other, other)
        return self.head(found), weight


network(floats((2, 3, 24), (2, 6, 10)), must=("before.0",))(CrossAttention)


class CrossAttentionAlone(CrossAttention):
    """The same, whose weights nobody sees, so that heads can go."""

    def forward(self, query: Tensor, other: Tensor) -> Tensor:
        return super().forward(query, other)[0]


network(floats((2, 3, 24), (2, 6, 10)), must=("before.0", "attention.q_proj_weight"))(CrossAttentionAlone)


class TorchVit(nn.Module):
    """A vision transformer made of torch's encoder."""

    def __init__(self) -> None:
        super().__init__()
        self.patch = nn.Conv2d(3, 24, 4, 4)
        self.cls, self.place = nn.Parameter(torch.randn(1, 1, 24)), nn.Parameter(torch.randn(1, 17, 24))
        layer = nn.TransformerEncoderLayer(24, 4, 36, activation="gelu", batch_first=True, norm_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2, norm=nn.LayerNorm(24), enable_nested_tensor=False)
        self.head = nn.Linear(24, 7)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.cls.expand(x.shape[0], -1, -1), x], 1) + self.place
        return self.head(self.encoder(x)[:, 0])


network(image(), must=("patch", "encoder.layers.0.linear1", *heads("encoder.layers.0.self_attn")))(TorchVit)


class TorchTranslator(nn.Module):
    """``nn.Transformer`` between tied embeddings, with a causal mask and one of padding."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens, self.body = nn.Embedding(50, 24), nn.Transformer(24, 3, 1, 2, 36, batch_first=True)
        self.head = nn.Linear(24, 50)
        self.head.weight = self.tokens.weight

    def forward(self, x: Tensor) -> Tensor:
        source, target = self.tokens(x), self.tokens(x[:, :5])
        causal = torch.ones(5, 5, dtype=torch.bool).triu(1)
        padding = torch.arange(x.shape[1]) >= torch.tensor([[x.shape[1]], [4]])
        return self.head(
            self.body(
                *(source, target),
                tgt_mask=causal,
                tgt_is_causal=True,
                src_key_padding_mask=padding,
                memory_key_padding_mask=padding,
            )
        )


network(tokens(), must=("tokens", *heads("body.decoder.layers.1.multihead_attn")))(TorchTranslator)


class Queries(nn.Module):
    """Learned queries that read an image through attention with all its options, as in DETR and Perceiver."""

    def __init__(self) -> None:
        super().__init__()
        self.patch, self.queries = nn.Conv2d(3, 20, 4, 4), nn.Parameter(torch.randn(4, 1, 24))
        self.read = nn.MultiheadAttention(24, 4, 0.1, add_bias_kv=True, add_zero_attn=True, kdim=20, vdim=20)
        self.think = nn.MultiheadAttention(24, 3, bias=False)
        self.norm, self.head = nn.LayerNorm(24), nn.Linear(24, 6)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch(x).flatten(2).permute(2, 0, 1)
        queries = self.queries.expand(-1, x.shape[1], -1)
        found = queries + self.read(queries, x, x)[0]
        found = found + self.think(self.norm(found), self.norm(found), found)[0]
        return self.head(found).transpose(0, 1)


network(image(), must=("patch", "read.q_proj_weight", *heads("think")))(Queries)
