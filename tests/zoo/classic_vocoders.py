"""Networks for sound, whose every layer is weight-normed: a WaveNet and the generator of HiFi-GAN."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from weight_norms import new_style, old_style

from .entry import floats, network


@network(floats((2, 4, 20)), must=("first", "blocks.0.gate", "end"))
class WaveNet(nn.Module):
    """Gated dilated convolutions; the halves of one are value and gate, two others make stream and skip."""

    def __init__(self) -> None:
        super().__init__()
        self.first = new_style(nn.Conv1d(4, 8, 1))
        self.blocks = nn.ModuleList(
            nn.ModuleDict(
                {
                    "gate": new_style(nn.Conv1d(8, 20, 3, dilation=2**level, padding=2**level)),
                    "stream": new_style(nn.Conv1d(10, 8, 1)),
                    "skip": new_style(nn.Conv1d(10, 12, 1)),
                }
            )
            for level in range(2)
        )
        self.end, self.last = new_style(nn.Conv1d(12, 9, 1)), new_style(nn.Conv1d(9, 3, 1))

    def forward(self, x: Tensor) -> Tensor:
        x, skips = self.first(x), 0
        for block in self.blocks:
            value, gate = block["gate"](x).chunk(2, 1)
            y = value.tanh() * gate.sigmoid()
            x, skips = x + block["stream"](y), skips + block["skip"](y)
        return self.last(self.end(skips.relu()).relu())


@network(floats((2, 5, 6)), must=("pre", "ups.0", "ups.1"))
class HifiGan(nn.Module):
    """Transposed convolutions, whose magnitudes lie along their input channels, and residual blocks between them."""

    def __init__(self) -> None:
        super().__init__()
        self.pre = old_style(nn.Conv1d(5, 16, 7, padding=3))
        self.ups = nn.ModuleList(
            old_style(nn.ConvTranspose1d(16 // 2**n, 8 // 2**n, 4, 2, padding=1)) for n in range(2)
        )
        self.blocks = nn.ModuleList(
            old_style(nn.Conv1d(8 // 2**n, 8 // 2**n, 3, padding=size, dilation=size))
            for n in range(2)
            for size in (1, 3)
        )
        self.post = old_style(nn.Conv1d(4, 1, 7, padding=3))

    def forward(self, x: Tensor) -> Tensor:
        x = self.pre(x)
        for number, up in enumerate(self.ups):
            x = up(F.leaky_relu(x, 0.1))
            x = sum(x + block(F.leaky_relu(x, 0.1)) for block in self.blocks[2 * number : 2 * number + 2]) / 2
        return torch.tanh(self.post(F.leaky_relu(x)))
