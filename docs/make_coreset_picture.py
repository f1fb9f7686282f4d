"""Write ``docs/images/coreset.svg``: a layer of one input as a sum of neurons, and a coreset of it.

    python docs/make_coreset_picture.py

Needs what ``pip install ".[docs]"`` installs; takes some seconds.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from drawing import GREEN, GREY, INK, RED, panels, plain, save

from lightning_coreset.coreset import activation_moments, find_activation, linear_preactivations, reconstruct

NEURONS, KEPT, RADIUS = 24, 5, 2.0


def layer() -> tuple[Tensor, Tensor]:
    """Neurons as rows (slope, bias), with their kinks inside the range, and the weights of their sum, (1, N)."""
    generator = torch.Generator().manual_seed(0)
    sign = torch.randint(0, 2, (NEURONS,), generator=generator) * 2.0 - 1
    slope = sign * (0.3 + torch.rand(NEURONS, generator=generator))
    kink = RADIUS * (2 * torch.rand(NEURONS, generator=generator) - 1)
    weights = torch.randn(1, NEURONS, generator=generator)
    return torch.stack([slope, -slope * kink], dim=1).double(), weights.double()


def main() -> None:
    """Draw the sum of all neurons, of those with the largest norms (weights unchanged), and of a coreset."""
    producers, weights = layer()
    moments = activation_moments(find_activation("relu"), linear_preactivations(producers))
    coreset = reconstruct(moments.second, weights, KEPT)
    largest = producers.norm(dim=1).topk(KEPT).indices

    x = torch.linspace(-RADIUS, RADIUS, 201, dtype=torch.float64)
    neurons = torch.relu(x[:, None] * producers[:, 0] + producers[:, 1])  # (201, N)
    parts = {
        f"{NEURONS} neurons, each times its weight": neurons * weights[0],
        f"the {KEPT} with the largest norms": neurons[:, largest] * weights[0, largest],
        f"{KEPT} neurons with new weights": neurons[:, coreset.kept] * (weights @ coreset.mix)[0],
    }
    whole = next(iter(parts.values())).sum(dim=1)
    figure, axes = panels(3, height=3.0, sharey=True)
    for panel, colour, (title, lines) in zip(axes, (INK, RED, GREEN), parts.items(), strict=True):
        panel.plot(x, lines, color=GREY, linewidth=0.8)
        panel.plot(x, whole, color=INK, linewidth=2.4)
        if panel is not axes[0]:
            panel.plot(x, lines.sum(dim=1), color=colour, linewidth=2, linestyle="--")
        plain(panel)
        panel.set(xlabel="input", xlim=(-RADIUS, RADIUS), ylim=(-4.3, 5.9))
        panel.set_title(title, fontsize=9)
        print(f"{title}: at most {float((whole - lines.sum(dim=1)).abs().max()):.2f} off")
    axes[0].text(0.02, 0.97, "black: the sum of all,\nwhat the next layer gets", transform=axes[0].transAxes, va="top")
    axes[1].text(0.02, 0.97, "dashed: the sum of these", transform=axes[1].transAxes, va="top")
    save(figure, "coreset.svg")


if __name__ == "__main__":
    main()
