"""Point clouds, whose neighbourhoods are found by distances, and networks that unpool to where a maximum was."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from .entry import image, network

POINTS = 24


def cloud(generator: Generator) -> tuple[Tensor]:
    """Two clouds of points in space, with two features each."""
    return (torch.randn(2, POINTS, 5, generator=generator),)


def rows_of(x: Tensor, index: Tensor) -> Tensor:
    """Rows of each cloud by number: (B, N, C) at (B, ...) is (B, ..., C)."""
    batch = torch.arange(len(x)).view(-1, *[1] * (index.dim() - 1)).expand_as(index)
    return x[batch, index]


class EdgeConvolution(nn.Module):
    """DGCNN: an MLP of each point and its way to its neighbours in feature space, and the maximum over these."""

    def __init__(self, inputs: int, outputs: int, neighbours: int = 4) -> None:
        super().__init__()
        self.conv = nn.Sequential(
            nn.Conv2d(2 * inputs, outputs, 1, bias=False), nn.BatchNorm2d(outputs), nn.LeakyReLU(0.2)
        )
        self.neighbours = neighbours

    def forward(self, x: Tensor) -> Tensor:
        near = torch.cdist(x, x).topk(self.neighbours, largest=False).indices
        centre = x.unsqueeze(2).expand(-1, -1, self.neighbours, -1)
        edges = torch.cat([rows_of(x, near) - centre, centre], 3)
        return self.conv(edges.permute(0, 3, 1, 2)).max(3).values.transpose(1, 2)


class Dgcnn(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.edges = nn.ModuleList([EdgeConvolution(5, 8), EdgeConvolution(8, 8), EdgeConvolution(8, 16)])
        self.embed = nn.Sequential(nn.Conv1d(32, 64, 1, bias=False), nn.BatchNorm1d(64), nn.LeakyReLU(0.2))
        self.head = nn.Sequential(nn.Linear(128, 32), nn.BatchNorm1d(32), nn.LeakyReLU(0.2), nn.Linear(32, 4))

    def forward(self, x: Tensor) -> Tensor:
        found = []
        for edge in self.edges:
            x = edge(x)
            found.append(x)
        x = self.embed(torch.cat(found, 2).transpose(1, 2))
        return self.head(torch.cat([F.adaptive_max_pool1d(x, 1), F.adaptive_avg_pool1d(x, 1)], 1).flatten(1))


def farthest(places: Tensor, count: int) -> Tensor:
    """Numbers of points that lie far from each other: each next one farthest from those before."""
    batch = torch.arange(len(places))
    chosen = torch.zeros(len(places), count, dtype=torch.int64)
    distance = torch.full(places.shape[:2], 1e10, dtype=places.dtype)
    last = torch.zeros(len(places), dtype=torch.int64)
    for number in range(count):
        chosen[:, number] = last
        from_last = (places - places[batch, last].unsqueeze(1)).pow(2).sum(-1)
        nearer = from_last < distance
        distance[nearer] = from_last[nearer]
        last = distance.max(1).indices
    return chosen


def in_ball(radius: float, count: int, places: Tensor, centres: Tensor) -> Tensor:
    """For each centre the first points that are no farther than the radius; the first one again where there are few."""
    squared = torch.cdist(centres, places).pow(2)
    index = torch.arange(places.shape[1]).repeat(len(places), centres.shape[1], 1)
    index[squared > radius**2] = places.shape[1]
    index = index.sort(2).values[:, :, :count]
    first = index[:, :, :1].expand_as(index)
    missing = index == places.shape[1]
    index[missing] = first[missing]
    return index


class SetAbstraction(nn.Module):
    """PointNet++: points around chosen ones, through shared layers, and the maximum over each neighbourhood."""

    def __init__(self, chosen: int, radius: float, inputs: int, *widths: int) -> None:
        super().__init__()
        self.chosen, self.radius = chosen, radius
        sizes = zip((inputs + 3, *widths), widths, strict=False)
        self.layers = nn.Sequential(
            *(part for i, o in sizes for part in (nn.Conv2d(i, o, 1), nn.BatchNorm2d(o), nn.ReLU()))
        )

    def forward(self, places: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        centres = rows_of(places, farthest(places, self.chosen))
        near = in_ball(self.radius, 6, places, centres)
        around = rows_of(places, near) - centres.unsqueeze(2)
        x = torch.cat([around, rows_of(x, near)], 3)
        return centres, self.layers(x.permute(0, 3, 2, 1)).max(2).values.transpose(1, 2)


class FeaturePropagation(nn.Module):
    """PointNet++: features of few points at many, weighted by the distances to the three nearest."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Conv1d(inputs, outputs, 1), nn.BatchNorm1d(outputs), nn.ReLU())

    def forward(self, places: Tensor, centres: Tensor, x: Tensor, coarse: Tensor) -> Tensor:
        distance, index = torch.cdist(places, centres).topk(3, largest=False)
        weight = 1 / (distance + 1e-8)
        weight = weight / weight.sum(2, keepdim=True)
        found = (rows_of(coarse, index) * weight.unsqueeze(3)).sum(2)
        return self.layers(torch.cat([x, found], 2).transpose(1, 2)).transpose(1, 2)


class PointNet2(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.down1, self.down2 = SetAbstraction(12, 1.0, 2, 16, 24), SetAbstraction(6, 2.0, 24, 24, 32)
        self.up2, self.up1 = FeaturePropagation(24 + 32, 28), FeaturePropagation(2 + 28, 20)
        self.head = nn.Linear(20, 4)

    def forward(self, x: Tensor) -> Tensor:
        places, features = x[..., :3], x[..., 3:]
        places1, features1 = self.down1(places, features)
        places2, features2 = self.down2(places1, features1)
        features1 = self.up2(places1, places2, features1, features2)
        return self.head(self.up1(places, places1, features, features1))


def convolution(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(inputs, outputs, 3, padding=1), nn.BatchNorm2d(outputs), nn.ReLU())


class SegNet(nn.Module):
    """The decoder puts values where the encoder's pooling found the maxima."""

    def __init__(self) -> None:
        super().__init__()
        self.down1, self.down2 = convolution(3, 12), convolution(12, 16)
        self.pool, self.unpool = nn.MaxPool2d(2, return_indices=True), nn.MaxUnpool2d(2)
        self.up2, self.up1, self.last = convolution(16, 12), convolution(12, 12), nn.Conv2d(12, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        x, first = self.pool(self.down1(x))
        x, second = self.pool(self.down2(x))
        x = self.up2(self.unpool(x, second))
        return self.last(self.up1(self.unpool(x, first)))


class UnpoolingUnet(nn.Module):
    """A U-Net whose decoder unpools by indices, and joins what it gets with what the encoder had there."""

    def __init__(self) -> None:
        super().__init__()
        self.down1, self.down2, self.middle = convolution(3, 10), convolution(10, 14), convolution(14, 14)
        self.pool, self.unpool = nn.MaxPool2d(2, return_indices=True), nn.MaxUnpool2d(2)
        self.up2, self.up1, self.last = convolution(28, 10), convolution(20, 12), nn.Conv2d(12, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        fine = self.down1(x)
        x, first = self.pool(fine)
        coarse = self.down2(x)
        x, second = self.pool(coarse)
        x = self.up2(torch.cat([self.unpool(self.middle(x), second), coarse], 1))
        return self.last(self.up1(torch.cat([self.unpool(x, first), fine], 1)))


@network(cloud, must=("edges.2.conv.0", "embed.0", "head.0"))
def dgcnn() -> nn.Module:
    return Dgcnn()


@network(
    cloud,
    must=("down1.layers.0", "down1.layers.3", "down2.layers.0", "down2.layers.3", "up2.layers.0", "up1.layers.0"),
)
def pointnet2() -> nn.Module:
    return PointNet2()


@network(image(), must=("down1.0", "down2.0", "up1.0"))
def segnet() -> nn.Module:
    return SegNet()


@network(image(), must=("down1.0", "down2.0", "up1.0"))
def unet_unpooling() -> nn.Module:
    return UnpoolingUnet()
