"""Networks whose output is an image: segmentation, detection, generation, and their like."""

from __future__ import annotations

import itertools

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .classic_cnn import conv_bn, head
from .entry import floats, image, network


class Unet(nn.Module):
    """Concatenated skips; the way up by a transposed convolution or by bilinear upsampling."""

    def __init__(self, transposed: bool) -> None:
        super().__init__()
        self.down1, self.down2, self.middle = conv_bn(3, 12), conv_bn(12, 20), conv_bn(20, 28)
        lift = nn.Upsample(scale_factor=2, mode="bilinear")
        self.lift2 = nn.ConvTranspose2d(28, 14, 2, 2) if transposed else nn.Sequential(lift, nn.Conv2d(28, 14, 1))
        self.up2 = conv_bn(34, 18)
        self.lift1 = nn.ConvTranspose2d(18, 10, 2, 2) if transposed else nn.Sequential(lift, nn.Conv2d(18, 10, 1))
        self.up1 = conv_bn(22, 16)
        self.last = nn.Conv2d(16, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        high = self.down1(x)
        low = self.down2(F.max_pool2d(high, 2))
        y = self.lift2(self.middle(F.max_pool2d(low, 2)))
        y = self.lift1(self.up2(torch.cat([low, y], 1)))
        return self.last(self.up1(torch.cat([high, y], 1)))


@network(image(), must=("down1.0", "down2.0", "middle.0", "lift2", "up2.0", "lift1", "up1.0"))
def unet() -> nn.Module:
    return Unet(transposed=True)


@network(image(), must=("down1.0", "lift2.1", "up1.0"))
def unet_bilinear() -> nn.Module:
    return Unet(transposed=False)


class UnetAdd(nn.Module):
    """LinkNet-like: the skips are added, which ties the way up to the way down."""

    def __init__(self) -> None:
        super().__init__()
        self.down1, self.down2, self.middle = conv_bn(3, 12), conv_bn(12, 20, 3, 2), conv_bn(20, 28, 3, 2)
        self.up2, self.up1 = nn.ConvTranspose2d(28, 20, 4, 2, 1), nn.ConvTranspose2d(20, 12, 4, 2, 1)
        self.last = nn.Conv2d(12, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        high = self.down1(x)
        low = self.down2(high)
        y = F.relu(self.up2(self.middle(low)) + low)
        return self.last(F.relu(self.up1(y) + high))


network(image(), must=("down1.0", "down2.0", "middle.0"))(UnetAdd)


class Deeplab(nn.Module):
    """Atrous pyramid with image-level pooling, then a decoder that sees an early layer."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.body = conv_bn(3, 12), nn.Sequential(conv_bn(12, 20, 3, 2), conv_bn(20, 24))
        self.pyramid = nn.ModuleList(nn.Conv2d(24, 10 + d, 3, padding=d, dilation=d) for d in (1, 2, 4))
        self.pool = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(24, 9, 1), nn.ReLU())
        self.join, self.low = conv_bn(46, 22, 1), conv_bn(12, 6, 1)
        self.last = nn.Sequential(conv_bn(28, 16), nn.Conv2d(16, 4, 1))

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        early = self.stem(x)
        deep = self.body(early)
        parts = [F.relu(conv(deep)) for conv in self.pyramid]
        parts.append(F.interpolate(self.pool(deep), size=deep.shape[2:], mode="bilinear"))
        joined = F.interpolate(self.join(torch.cat(parts, 1)), size=early.shape[2:], mode="bilinear")
        return {"out": self.last(torch.cat([joined, self.low(early)], 1))}


network(image(), must=("stem.0", "body.0.0", "pyramid.0", "pool.1", "join.0", "low.0", "last.0.0"))(Deeplab)


class Pyramid(nn.Module):
    """A feature pyramid network with two shared heads, as in RetinaNet."""

    def __init__(self) -> None:
        super().__init__()
        self.stages = nn.ModuleList([conv_bn(3, 12, 3, 2), conv_bn(12, 20, 3, 2), conv_bn(20, 28, 3, 2)])
        self.lateral = nn.ModuleList(nn.Conv2d(c, 16, 1) for c in (12, 20, 28))
        self.smooth = nn.ModuleList(nn.Conv2d(16, 16, 3, padding=1) for _ in range(3))
        self.scores = nn.Sequential(nn.Conv2d(16, 14, 3, padding=1), nn.ReLU(), nn.Conv2d(14, 6, 1))
        self.boxes = nn.Sequential(nn.Conv2d(16, 10, 3, padding=1), nn.ReLU(), nn.Conv2d(10, 8, 1))

    def forward(self, x: Tensor) -> list[tuple[Tensor, Tensor]]:
        maps = []
        for stage, lateral in zip(self.stages, self.lateral, strict=True):
            x = stage(x)
            maps.append(lateral(x))
        for i in (1, 0):
            maps[i] = maps[i] + F.interpolate(maps[i + 1], scale_factor=2.0)
        maps = [smooth(m) for smooth, m in zip(self.smooth, maps, strict=True)]
        return [(self.scores(m).permute(0, 2, 3, 1).reshape(2, -1, 3), self.boxes(m)) for m in maps]


network(image(3, 32), must=("stages.0.0", "stages.2.0", "scores.0", "boxes.0"))(Pyramid)


class Yolo(nn.Module):
    """Darknet blocks, a CSP split, SPPF pooling, and a head whose output is viewed as anchors."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv_bn(3, 12, 3, 2)
        self.left, self.right = conv_bn(12, 10, 1), conv_bn(12, 14, 1)
        self.block = nn.Sequential(conv_bn(14, 8, 1), conv_bn(8, 14))
        self.join = conv_bn(24, 20, 1)
        self.squeeze, self.spread = conv_bn(20, 6, 1), conv_bn(24, 22, 1)
        self.detect = nn.Conv2d(22, 3 * 9, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        right = self.right(x)
        x = self.join(torch.cat([right + self.block(right), self.left(x)], 1))
        pooled = [self.squeeze(x)]
        for _ in range(3):
            pooled.append(F.max_pool2d(pooled[-1], 5, 1, 2))
        y = self.detect(self.spread(torch.cat(pooled, 1)))
        y = y.view(2, 3, 9, y.shape[2], y.shape[3]).permute(0, 1, 3, 4, 2)
        return torch.cat([y[..., :2].sigmoid(), y[..., 2:4].exp(), y[..., 4:]], -1)


network(image(), must=("stem.0", "left.0", "right.0", "block.0.0", "join.0", "squeeze.0", "spread.0"))(Yolo)


@network(image(3, 8), must=("0", "2", "4"))
def super_resolution() -> nn.Module:
    body = [nn.Conv2d(3, 12, 3, padding=1), nn.PReLU(), nn.Conv2d(12, 48, 3, padding=1), nn.PixelShuffle(2)]
    return nn.Sequential(*body, nn.Conv2d(12, 20, 3, padding=1), nn.Tanh(), nn.Conv2d(20, 12, 1), nn.PixelShuffle(2))


@network(floats((2, 48)), must=("0", "2", "4", "6"))
def autoencoder() -> nn.Module:
    widths = (48, 28, 20, 6, 20, 28, 48)
    layers: list[nn.Module] = []
    for a, b in itertools.pairwise(widths):
        layers += [nn.Linear(a, b), nn.ReLU()]
    return nn.Sequential(*layers[:-1], nn.Sigmoid())


class Vae(nn.Module):
    """Returns reconstruction, mean and log variance; the noise comes in, so that the network stays a function."""

    def __init__(self) -> None:
        super().__init__()
        self.encode = nn.Sequential(nn.Conv2d(1, 12, 3, 2, 1), nn.ReLU(), nn.Conv2d(12, 20, 3, 2, 1), nn.ReLU())
        self.mean, self.log_var = nn.Linear(20 * 16, 6), nn.Linear(20 * 16, 6)
        self.start = nn.Linear(6, 20 * 16)
        self.decode = nn.Sequential(
            nn.ConvTranspose2d(20, 14, 4, 2, 1), nn.BatchNorm2d(14), nn.ReLU(), nn.ConvTranspose2d(14, 1, 4, 2, 1)
        )

    def forward(self, x: Tensor, noise: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        h = self.encode(x).flatten(1)
        mean, log_var = self.mean(h), self.log_var(h)
        z = mean + noise * torch.exp(0.5 * log_var)
        return torch.sigmoid(self.decode(F.relu(self.start(z)).view(-1, 20, 4, 4))), mean, log_var


network(floats((2, 1, 16, 16), (2, 6)), hard=("start",), must=("encode.0", "encode.2", "decode.0"))(Vae)


@network(floats((2, 10, 1, 1)), must=("0", "3"))
def gan_generator() -> nn.Module:
    first = [nn.ConvTranspose2d(10, 28, 4, bias=False), nn.BatchNorm2d(28), nn.ReLU()]
    second = [nn.ConvTranspose2d(28, 20, 4, 2, 1, bias=False), nn.BatchNorm2d(20), nn.ReLU()]
    return nn.Sequential(*first, *second, nn.ConvTranspose2d(20, 3, 4, 2, 1), nn.Tanh())


@network(image(), must=("0", "2"))
def gan_discriminator() -> nn.Module:
    second = [nn.Conv2d(12, 20, 4, 2, 1, bias=False), nn.BatchNorm2d(20), nn.LeakyReLU(0.2)]
    return nn.Sequential(nn.Conv2d(3, 12, 4, 2, 1), nn.LeakyReLU(0.2), *second, nn.Conv2d(20, 1, 4), nn.Flatten())


class Siamese(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.branch = nn.Sequential(conv_bn(3, 12), conv_bn(12, 20, 3, 2), head(20, 14))
        self.compare = nn.Linear(14, 1)

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return torch.sigmoid(self.compare((self.branch(a) - self.branch(b)).abs()))


network(floats((2, 3, 12, 12), (2, 3, 12, 12)), must=("branch.0.0", "branch.1.0", "branch.2.2"))(Siamese)


class Diffusion(nn.Module):
    """A denoiser: GroupNorm, SiLU, a time embedding added to the channels, attention over the places."""

    def __init__(self) -> None:
        super().__init__()
        self.time = nn.Sequential(nn.Linear(8, 20), nn.SiLU(), nn.Linear(20, 24))
        self.first, self.norm = nn.Conv2d(3, 24, 3, padding=1), nn.GroupNorm(4, 24)
        self.second, self.shift = nn.Conv2d(24, 24, 3, padding=1), nn.Linear(24, 24)
        self.qkv, self.out = nn.Conv1d(24, 60, 1), nn.Conv1d(20, 24, 1)
        self.wide, self.last = nn.Conv2d(24, 28, 3, padding=1), nn.Conv2d(28, 3, 3, padding=1)

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        t = torch.cat([torch.sin(time[:, None] * torch.arange(4)), torch.cos(time[:, None] * torch.arange(4))], 1)
        x = self.first(x)
        y = self.second(F.silu(self.norm(x))) + self.shift(F.silu(self.time(t.to(x.dtype))))[:, :, None, None]
        x = x + y
        b, c, h, w = x.shape
        q, k, v = self.qkv(x.view(b, c, h * w)).chunk(3, 1)
        weight = torch.softmax(torch.einsum("bci,bcj->bij", q, k) / 20**0.5, -1)
        x = x + self.out(torch.einsum("bij,bcj->bci", weight, v)).view(b, c, h, w)
        return self.last(F.silu(self.wide(x)))


network(floats((2, 3, 8, 8), (2,)), must=("time.0", "wide"))(Diffusion)
