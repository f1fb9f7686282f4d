"""Write ``docs/images/removal.svg``: the weights of two layers, masked and pruned.

    python docs/make_removal_picture.py

Needs what ``pip install ".[docs]"`` installs; takes some seconds.
"""

from __future__ import annotations

import copy
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import nn
from torch.nn.utils import prune as masks

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from drawing import INK, PALE, panels, save

from lightning_coreset import count_macs, prune

if TYPE_CHECKING:
    from matplotlib.axes import Axes

INPUTS, CHANNELS, OUTPUTS = 8, 20, 6
GAP = 1.6


def masked(network: nn.Sequential) -> nn.Sequential:
    """A copy with half of the weights masked."""
    network = copy.deepcopy(network)
    for layer in (network[0], network[2]):
        masks.l1_unstructured(layer, "weight", amount=0.5)
    return network


def pruned(network: nn.Sequential) -> nn.Sequential:
    """A copy with half of the channels removed."""
    network = copy.deepcopy(network)
    prune(network, torch.randn(1, INPUTS), 0.5)
    return network


def draw(axes: Axes, network: nn.Sequential, title: str) -> None:
    """Draw the magnitudes of both weights, with channels as columns; a zero is an empty box."""
    import matplotlib

    first, second = network[0].weight.detach().abs(), network[2].weight.detach().abs()
    colours = matplotlib.colormaps["Blues"].with_extremes(bad="white")
    largest = float(max(first.max(), second.max()))
    boxes = {"cmap": colours, "vmin": -0.4 * largest, "vmax": largest, "edgecolors": PALE, "linewidth": 0.6}
    for weight, top in ((first.T, 0.0), (second, INPUTS + GAP)):
        rows, columns = weight.shape
        mesh = axes.pcolormesh(
            range(columns + 1), [top + i for i in range(rows + 1)], np.ma.masked_equal(weight, 0), **boxes
        )
        mesh.set_clip_on(False)
    width = len(first)
    axes.text(width / 2, INPUTS + GAP / 2, f"{width} channels", ha="center", va="center", color=INK, fontsize=8)
    stored = first.numel() + second.numel()
    macs = count_macs(network, torch.randn(1, INPUTS))
    axes.set_title(f"{title}\n{stored} numbers stored\n{macs} multiply-accumulates", fontsize=9)
    axes.set(xlim=(-0.2, CHANNELS + 0.2), ylim=(INPUTS + GAP + OUTPUTS + 0.2, -0.2), aspect="equal", anchor="N")
    axes.set(xticks=[], yticks=[])
    axes.spines[:].set_visible(False)


def main() -> None:
    """Draw one network unchanged, masked and pruned."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(INPUTS, CHANNELS), nn.ReLU(), nn.Linear(CHANNELS, OUTPUTS))
    figure, axes = panels(3, height=2.7)
    draw(axes[0], network, "two layers")
    draw(axes[1], masked(network), "half of their weights masked")
    draw(axes[2], pruned(network), "half of their channels removed")
    axes[0].text(-0.8, INPUTS / 2, "first layer", rotation=90, ha="center", va="center", fontsize=8)
    axes[0].text(-0.8, INPUTS + GAP + OUTPUTS / 2, "next layer", rotation=90, ha="center", va="center", fontsize=8)
    save(figure, "removal.svg")


if __name__ == "__main__":
    main()
