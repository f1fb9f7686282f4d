"""Small networks whose channels are normalised: transformers of several kinds, a ConvNeXt, a plain MLP."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Attention(nn.Module):
    """Self-attention with whole heads; keys and values of fewer heads are shared where ``shared`` is given."""

    def __init__(self, width: int, heads: int, *, shared: int | None = None, rotary: bool = False) -> None:
        super().__init__()
        self.head_dim, self.rotary = width // heads, rotary
        inner = self.head_dim * (shared or heads)
        self.q, self.k, self.v = nn.Linear(width, width), nn.Linear(width, inner), nn.Linear(width, inner)
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor, *, causal: bool = False) -> Tensor:
        q, k, v = (layer(x).unflatten(-1, (-1, self.head_dim)).transpose(1, 2) for layer in (self.q, self.k, self.v))
        if self.rotary:
            q, k = rotated(q), rotated(k)
        if k.shape[1] != q.shape[1]:
            k, v = (one.repeat_interleave(q.shape[1] // k.shape[1], dim=1) for one in (k, v))
        found = F.scaled_dot_product_attention(q, k, v, is_causal=causal)
        return self.out(found.transpose(1, 2).flatten(2))


def rotated(x: Tensor) -> Tensor:
    """Rotary embeddings of (batch, heads, length, dim)."""
    half = x.shape[-1] // 2
    angles = torch.arange(x.shape[-2])[:, None] / 100 ** (torch.arange(half) / half)
    one, two = x[..., :half], x[..., half:]
    return torch.cat([one * angles.cos() - two * angles.sin(), one * angles.sin() + two * angles.cos()], -1)


class Mlp(nn.Module):
    def __init__(self, width: int, hidden: int, *, gated: bool = False) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(width, hidden), nn.Linear(hidden, width)
        self.gate = nn.Linear(width, hidden) if gated else None

    def forward(self, x: Tensor) -> Tensor:
        hidden = F.gelu(self.up(x)) if self.gate is None else self.up(x) * F.silu(self.gate(x))
        return self.down(hidden)


class Block(nn.Module):
    def __init__(self, width: int, heads: int, norm: type[nn.Module], *, post: bool = False, **options) -> None:
        super().__init__()
        gated = norm is nn.RMSNorm
        self.norm1, self.norm2, self.post = norm(width), norm(width), post
        self.attention, self.mlp = Attention(width, heads, **options), Mlp(width, 3 * width, gated=gated)

    def forward(self, x: Tensor, *, causal: bool) -> Tensor:
        if self.post:
            x = self.norm1(x + self.attention(x, causal=causal))
            return self.norm2(x + self.mlp(x))
        x = x + self.attention(self.norm1(x), causal=causal)
        return x + self.mlp(self.norm2(x))


class LanguageModel(nn.Module):
    """Tokens to the next token's logits."""

    def __init__(
        self,
        *,
        width: int = 16,
        heads: int = 4,
        depth: int = 2,
        tokens: int = 30,
        length: int = 12,
        norm: type[nn.Module] = nn.LayerNorm,
        post: bool = False,
        tied: bool = False,
        positions: bool = True,
        **options,
    ) -> None:
        super().__init__()
        self.embed = nn.Embedding(tokens, width)
        self.positions = nn.Parameter(0.1 * torch.randn(1, length, width)) if positions else None
        self.blocks = nn.ModuleList(Block(width, heads, norm, post=post, **options) for _ in range(depth))
        self.norm = nn.Identity() if post else norm(width)
        self.head = nn.Linear(width, tokens, bias=False)
        if tied:
            self.head.weight = self.embed.weight

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embed(tokens)
        if self.positions is not None:
            x = x + self.positions[:, : tokens.shape[1]]
        for block in self.blocks:
            x = block(x, causal=True)
        return self.head(self.norm(x))


class VisionTransformer(nn.Module):
    """Images to classes: patches, a class token, pre-norm blocks."""

    def __init__(self, *, width: int = 16, heads: int = 4, depth: int = 2, size: int = 8, patch: int = 4) -> None:
        super().__init__()
        self.patches = nn.Conv2d(1, width, patch, patch)
        self.token = nn.Parameter(0.1 * torch.randn(1, 1, width))
        self.positions = nn.Parameter(0.1 * torch.randn(1, (size // patch) ** 2 + 1, width))
        self.blocks = nn.ModuleList(Block(width, heads, nn.LayerNorm) for _ in range(depth))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, 10)

    def forward(self, image: Tensor) -> Tensor:
        x = self.patches(image).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(len(x), -1, -1), x], dim=1) + self.positions
        for block in self.blocks:
            x = block(x, causal=False)
        return self.head(self.norm(x)[:, 0])


class ConvNextBlock(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(width, width, 3, padding=1, groups=width)
        self.norm, self.up, self.down = nn.LayerNorm(width), nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.scale = nn.Parameter(torch.full((width,), 0.5))

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.depthwise(x).permute(0, 2, 3, 1))
        return x + (self.scale * self.down(F.gelu(self.up(y)))).permute(0, 3, 1, 2)


class ConvNext(nn.Module):
    def __init__(self, *, width: int = 12, depth: int = 2) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, width, 2, 2)
        self.blocks = nn.Sequential(*(ConvNextBlock(width) for _ in range(depth)))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, 10)

    def forward(self, image: Tensor) -> Tensor:
        return self.head(self.norm(self.blocks(self.stem(image)).mean((2, 3))))


def mlp(width: int = 32) -> nn.Sequential:
    """Layers with a LayerNorm each, without residual additions."""
    return nn.Sequential(
        *(nn.Flatten(), nn.Linear(64, width), nn.LayerNorm(width), nn.ReLU()),
        *(nn.Linear(width, width), nn.LayerNorm(width), nn.ReLU(), nn.Linear(width, 10)),
    )


def llama(**options) -> LanguageModel:
    """RMSNorm, gated units, rotary positions, shared keys and values."""
    options = {"shared": 2, **options}
    return LanguageModel(norm=nn.RMSNorm, rotary=True, positions=False, **options)


def _tokens(count: int = 4) -> Tensor:
    return torch.randint(0, 30, (count, 12), generator=torch.Generator().manual_seed(0))


def _images(count: int = 4) -> Tensor:
    return torch.randn(count, 1, 8, 8, generator=torch.Generator().manual_seed(0))


NETWORKS = {
    "gpt": (lambda: LanguageModel(tied=True), _tokens),
    "post-norm": (lambda: LanguageModel(post=True), _tokens),
    "llama": (llama, _tokens),
    "vit": (VisionTransformer, _images),
    "convnext": (ConvNext, _images),
    "mlp": (mlp, _images),
}
"""Each network with example inputs."""
