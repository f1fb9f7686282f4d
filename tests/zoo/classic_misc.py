"""MLPs, recommenders, point clouds and hand-written transformers."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from .entry import floats, image, network


class Mixer(nn.Module):
    """MLP-Mixer: one MLP across the patches, one across the channels."""

    def __init__(self, patches: int, width: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.across = nn.Sequential(nn.Linear(patches, 20), nn.GELU(), nn.Linear(20, patches))
        self.along = nn.Sequential(nn.Linear(width, 36), nn.GELU(), nn.Linear(36, width))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.across(self.norm1(x).transpose(1, 2)).transpose(1, 2)
        return x + self.along(self.norm2(x))


class Patches(nn.Module):
    """Cuts an image into patches, mixes them, averages them, classifies."""

    def __init__(self, width: int, *blocks: nn.Module) -> None:
        super().__init__()
        self.patch, self.blocks = nn.Conv2d(3, width, 4, 4), nn.Sequential(*blocks)
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, 7)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(self.blocks(self.patch(x).flatten(2).transpose(1, 2))).mean(1))


@network(image(), must=("blocks.0.across.0", "blocks.0.along.0"), normalized=("patch",))
def mlp_mixer() -> nn.Module:
    return Patches(24, Mixer(16, 24), Mixer(16, 24))


class Spatial(nn.Module):
    """gMLP: one half of the channels gates the other half after a Linear across the patches."""

    def __init__(self, patches: int, width: int, middle: int) -> None:
        super().__init__()
        self.norm, self.up = nn.LayerNorm(width), nn.Linear(width, 2 * middle)
        self.inner, self.place = nn.LayerNorm(middle), nn.Conv1d(patches, patches, 1)
        self.down = nn.Linear(middle, width)

    def forward(self, x: Tensor) -> Tensor:
        u, v = F.gelu(self.up(self.norm(x))).chunk(2, -1)
        return x + self.down(u * self.place(self.inner(v)))


@network(image(), normalized=("patch",))
def gmlp() -> nn.Module:
    return Patches(24, Spatial(16, 24, 20), Spatial(16, 24, 14))


class Affine(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.scale, self.shift = nn.Parameter(torch.ones(width)), nn.Parameter(torch.zeros(width))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scale + self.shift


class ResMlp(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.patch = nn.Conv2d(3, 24, 4, 4)
        self.affine1, self.across = Affine(24), nn.Linear(16, 16)
        self.affine2, self.layerscale = Affine(24), nn.Parameter(torch.full((24,), 1e-2))
        self.up, self.down, self.head = nn.Linear(24, 36), nn.Linear(36, 24), nn.Linear(24, 7)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch(x).flatten(2).transpose(1, 2)
        x = x + self.layerscale * self.across(self.affine1(x).transpose(1, 2)).transpose(1, 2)
        x = x + self.down(F.gelu(self.up(self.affine2(x))))
        return self.head(x.mean(1))


network(image(), must=("patch", "up"))(ResMlp)


class Residual(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        return x + self.inner(x)


@network(image(), must=("0", "6"))
def conv_mixer() -> nn.Module:
    deep = nn.Sequential(nn.Conv2d(12, 12, 5, padding="same", groups=12), nn.GELU(), nn.BatchNorm2d(12))
    first = [nn.Conv2d(3, 12, 2, 2), nn.GELU(), nn.BatchNorm2d(12), Residual(deep)]
    return nn.Sequential(
        *first, nn.GELU(), nn.Identity(), nn.Conv2d(12, 20, 1), nn.GELU(), nn.BatchNorm2d(20),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(20, 7),
    )  # fmt: skip


def visits(generator: Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Dense features and two categories."""
    return (torch.randn(2, 5, generator=generator), *(torch.randint(0, 11, (2,), generator=generator) for _ in "ab"))


class Dlrm(nn.Module):
    """Dense features and embeddings meet in their pairwise dot products."""

    def __init__(self) -> None:
        super().__init__()
        self.bottom = nn.Sequential(nn.Linear(5, 20), nn.ReLU(), nn.Linear(20, 12), nn.ReLU())
        self.tables = nn.ModuleList(nn.Embedding(11, 12) for _ in range(2))
        self.top = nn.Sequential(nn.Linear(15, 28), nn.ReLU(), nn.Linear(28, 1))

    def forward(self, dense: Tensor, *categories: Tensor) -> Tensor:
        x = self.bottom(dense)
        parts = torch.stack([x, *(t(c) for t, c in zip(self.tables, categories, strict=True))], 1)
        i, j = torch.tril_indices(3, 3, -1)
        dots = torch.bmm(parts, parts.transpose(1, 2))[:, i, j]
        return self.top(torch.cat([x, dots], 1)).squeeze(1)


network(visits, must=("bottom.0", "top.0"))(Dlrm)


class DeepFm(nn.Module):
    """Deep and wide, with the factorisation machine's square-of-sum term."""

    def __init__(self) -> None:
        super().__init__()
        self.wide = nn.ModuleList(nn.Embedding(11, 1) for _ in range(2))
        self.tables = nn.ModuleList(nn.Embedding(11, 6) for _ in range(2))
        self.deep = nn.Sequential(nn.Linear(17, 20), nn.ReLU(), nn.BatchNorm1d(20), nn.Linear(20, 1))

    def forward(self, dense: Tensor, *categories: Tensor) -> Tensor:
        wide = sum(t(c) for t, c in zip(self.wide, categories, strict=True))
        parts = torch.stack([t(c) for t, c in zip(self.tables, categories, strict=True)], 1)
        pairs = 0.5 * (parts.sum(1) ** 2 - (parts**2).sum(1)).sum(1, keepdim=True)
        return torch.sigmoid(wide + pairs + self.deep(torch.cat([dense, parts.flatten(1)], 1)))


network(visits, must=("deep.0",))(DeepFm)


class Ncf(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.user1, self.item1 = nn.Embedding(11, 12), nn.Embedding(11, 12)
        self.user2, self.item2 = nn.Embedding(11, 10), nn.Embedding(11, 14)
        self.mlp = nn.Sequential(nn.Linear(24, 20), nn.ReLU(), nn.Linear(20, 8), nn.ReLU())
        self.last = nn.Linear(20, 1)

    def forward(self, user: Tensor, item: Tensor) -> Tensor:
        product = self.user1(user) * self.item1(item)
        return self.last(torch.cat([product, self.mlp(torch.cat([self.user2(user), self.item2(item)], -1))], -1))


network(lambda g: visits(g)[1:], must=("user1", "user2", "item2", "mlp.0", "mlp.2"))(Ncf)


class PointNet(nn.Module):
    """A learned alignment of the points, shared MLPs, a maximum over the points."""

    def __init__(self) -> None:
        super().__init__()
        pool = [nn.AdaptiveMaxPool1d(1), nn.Flatten(), nn.Linear(12, 9)]
        self.align = nn.Sequential(nn.Conv1d(3, 12, 1), nn.ReLU(), *pool)
        self.local = nn.Sequential(nn.Conv1d(3, 20, 1), nn.BatchNorm1d(20), nn.ReLU())
        self.globe = nn.Sequential(nn.Conv1d(20, 28, 1), nn.BatchNorm1d(28), nn.ReLU())
        self.each = nn.Sequential(nn.Conv1d(48, 24, 1), nn.ReLU(), nn.Conv1d(24, 4, 1))

    def forward(self, x: Tensor) -> Tensor:
        turn = self.align(x).view(-1, 3, 3) + torch.eye(3, dtype=x.dtype)
        local = self.local(torch.bmm(turn, x))
        whole = self.globe(local).max(2, keepdim=True).values.expand(-1, -1, x.shape[2])
        return F.log_softmax(self.each(torch.cat([local, whole], 1)), 1)


network(floats((2, 3, 15)), must=("align.0", "local.0", "globe.0", "each.0"))(PointNet)
