"""Vision transformers in the style of lucidrains' vit-pytorch, without einops."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .entry import image, network
from .traps_streams import ChannelNorm


def patches(x: Tensor, size: int) -> Tensor:
    """``b c (h p) (w q) -> b (h w) (p q c)``."""
    b, c, h, w = x.shape
    x = x.reshape(b, c, h // size, size, w // size, size).permute(0, 2, 4, 3, 5, 1)
    return x.reshape(b, (h // size) * (w // size), size * size * c)


class UnitNorm(nn.Module):
    """RMSNorm as F.normalize, times the root of the width as it was, times a gain."""

    def __init__(self, *shape: int) -> None:
        super().__init__()
        self.scale, self.gamma = shape[-1] ** 0.5, nn.Parameter(torch.ones(shape))

    def forward(self, x: Tensor) -> Tensor:
        return F.normalize(x, dim=-1) * self.scale * self.gamma


class Attention(nn.Module):
    """Inner width of its own; queries and keys of length one where asked for."""

    def __init__(self, dim: int, heads: int, dim_head: int, norm: Callable[[int], nn.Module], cosine: bool) -> None:
        super().__init__()
        inner, self.heads, self.scale = heads * dim_head, heads, 1.0 if cosine else dim_head**-0.5
        self.norm, self.to_qkv = norm(dim), nn.Linear(dim, inner * 3, bias=False)
        self.q_norm = UnitNorm(heads, 1, dim_head) if cosine else nn.Identity()
        self.k_norm = UnitNorm(heads, 1, dim_head) if cosine else nn.Identity()
        self.to_out = nn.Sequential(nn.Linear(inner, dim), nn.Dropout(0.1))

    def forward(self, x: Tensor) -> Tensor:
        b, n, _ = x.shape
        q, k, v = (t.view(b, n, self.heads, -1).transpose(1, 2) for t in self.to_qkv(self.norm(x)).chunk(3, dim=-1))
        dots = torch.matmul(self.q_norm(q), self.k_norm(k).transpose(-1, -2)) * self.scale
        out = torch.matmul(dots.softmax(dim=-1), v)
        return self.to_out(out.transpose(1, 2).reshape(b, n, -1))


class GatedGelu(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        x, gate = x.chunk(2, dim=-1)
        return x * F.gelu(gate)


def feed_forward(dim: int, hidden: int, norm: Callable[[int], nn.Module], gated: bool) -> nn.Sequential:
    first = [nn.Linear(dim, 2 * hidden), GatedGelu()] if gated else [nn.Linear(dim, hidden), nn.GELU()]
    return nn.Sequential(norm(dim), *first, nn.Dropout(0.1), nn.Linear(hidden, dim), nn.Dropout(0.1))


class Transformer(nn.Module):
    def __init__(self, dim: int, norm: Callable[[int], nn.Module], gated: bool, cosine: bool) -> None:
        super().__init__()
        self.norm = norm(dim)
        self.layers = nn.ModuleList(
            nn.ModuleList([Attention(dim, 3, 10, norm, cosine), feed_forward(dim, 36, norm, gated)]) for _ in range(2)
        )

    def forward(self, x: Tensor) -> Tensor:
        for attention, forward in self.layers:
            x = attention(x) + x
            x = forward(x) + x
        return self.norm(x)


class ClassTokenVit(nn.Module):
    """``vit.ViT``: norms around the patch embedding, a class token, a sliced position parameter, dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.to_patch_embedding = nn.Sequential(nn.LayerNorm(48), nn.Linear(48, 24), nn.LayerNorm(24))
        self.pos_embedding = nn.Parameter(torch.randn(1, 20, 24))
        self.cls_token, self.dropout = nn.Parameter(torch.randn(1, 1, 24)), nn.Dropout(0.1)
        self.transformer = Transformer(24, nn.LayerNorm, gated=False, cosine=False)
        self.mlp_head = nn.Linear(24, 7)

    def forward(self, x: Tensor) -> Tensor:
        x = self.to_patch_embedding(patches(x, 4))
        b, n, _ = x.shape
        x = torch.cat((self.cls_token.expand(b, -1, -1), x), dim=1)
        x = self.dropout(x + self.pos_embedding[:, : (n + 1)])
        return self.mlp_head(self.transformer(x)[:, 0])


network(
    image(),
    must=("transformer.layers.0.0.to_qkv", "transformer.layers.1.1.1"),
    normalized=("to_patch_embedding.1",),
)(ClassTokenVit)


def sines(h: int, w: int, dim: int) -> Tensor:
    """Sines and cosines of both coordinates, (h * w, dim)."""
    y, x = torch.meshgrid(torch.arange(h), torch.arange(w), indexing="ij")
    omega = 1.0 / (1000 ** (torch.arange(dim // 4) / (dim // 4 - 1)))
    y, x = y.flatten()[:, None] * omega[None, :], x.flatten()[:, None] * omega[None, :]
    return torch.cat((x.sin(), x.cos(), y.sin(), y.cos()), dim=1)


class SimpleVit(nn.Module):
    """``simple_vit_with_qk_norm``: positions as a buffer, register tokens, cosine attention, gated layers, a mean."""

    def __init__(self) -> None:
        super().__init__()
        self.to_patch_embedding = nn.Sequential(nn.LayerNorm(48), nn.Linear(48, 24), UnitNorm(24))
        self.register_buffer("pos_embedding", sines(4, 4, 24))
        self.register_tokens = nn.Parameter(torch.randn(3, 24))
        self.transformer = Transformer(24, UnitNorm, gated=True, cosine=True)
        self.linear_head = nn.Sequential(nn.LayerNorm(24), nn.Linear(24, 7))

    def forward(self, x: Tensor) -> Tensor:
        x = self.to_patch_embedding(patches(x, 4))
        x = x + self.pos_embedding[: x.shape[1]].to(x.dtype)
        registers = self.register_tokens[None].expand(x.shape[0], -1, -1)
        x = self.transformer(torch.cat((x, registers), dim=1))
        x, _ = x.split((x.shape[1] - 3, 3), dim=1)
        return self.linear_head(x.mean(dim=1))


network(image(), must=("transformer.layers.0.1.1",), normalized=("to_patch_embedding.1",))(SimpleVit)


class PlainPositions(nn.Module):
    """``simple_vit``: the positions are an attribute, neither parameter nor buffer, so that the stream stays."""

    def __init__(self) -> None:
        super().__init__()
        self.patch, self.pos_embedding = nn.Linear(48, 24), sines(4, 4, 24)
        self.transformer, self.head = Transformer(24, nn.LayerNorm, gated=False, cosine=False), nn.Linear(24, 7)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch(patches(x, 4))
        x = x + self.pos_embedding.to(x.device, dtype=x.dtype)
        return self.head(self.transformer(x).mean(dim=1))


network(
    image(), must=("transformer.layers.0.0.to_qkv", "transformer.layers.1.1.1"), never=("patch",),
    why="a tensor of fixed size is added to the stream",
)(PlainPositions)  # fmt: skip


class ImageAttention(nn.Module):
    """``cvt`` and ``twins_svt``: attention of images by 1x1 convolutions, heads by reshape."""

    def __init__(self, dim: int, heads: int, dim_head: int) -> None:
        super().__init__()
        self.heads, self.scale = heads, dim_head**-0.5
        self.to_q = nn.Conv2d(dim, heads * dim_head, 1, bias=False)
        self.to_kv = nn.Conv2d(dim, heads * dim_head * 2, 2, stride=2, bias=False)
        self.to_out = nn.Conv2d(heads * dim_head, dim, 1)

    def forward(self, x: Tensor) -> Tensor:
        b, _, h, w = x.shape
        q, k, v = self.to_q(x), *self.to_kv(x).chunk(2, dim=1)
        q, k, v = (t.reshape(b, self.heads, -1, t.shape[2] * t.shape[3]).transpose(2, 3) for t in (q, k, v))
        out = (q @ k.transpose(-1, -2) * self.scale).softmax(dim=-1) @ v
        return self.to_out(out.transpose(2, 3).reshape(b, -1, h, w))


class Twins(nn.Module):
    """Two stages of images under channel norms, each with a width of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 16, 4, 4), ChannelNorm(16))
        self.stages = nn.ModuleList(self.stage(*sizes) for sizes in ((16, 2, 28), (24, 3, 36)))
        self.between = nn.Sequential(nn.Conv2d(16, 24, 2, 2), ChannelNorm(24))
        self.head = nn.Linear(24, 7)

    @staticmethod
    def stage(dim: int, heads: int, hidden: int) -> nn.ModuleDict:
        deep = nn.Conv2d(dim, dim, 3, padding=1, groups=dim)
        mlp = nn.Sequential(ChannelNorm(dim), nn.Conv2d(dim, hidden, 1), nn.GELU(), nn.Conv2d(hidden, dim, 1))
        attention = nn.Sequential(ChannelNorm(dim), ImageAttention(dim, heads, 10))
        return nn.ModuleDict({"attention": attention, "mlp": mlp, "place": deep})

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for number, stage in enumerate(self.stages):
            x = self.between(x) if number else x
            for part in ("attention", "place", "mlp"):
                x = x + stage[part](x)
        return self.head(x.mean((2, 3)))


network(
    image(), must=("stages.0.mlp.1", "stages.1.mlp.1", "stages.1.attention.1.to_q"),
    normalized=("stem.0", "between.0"),
)(Twins)  # fmt: skip
