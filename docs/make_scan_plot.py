"""Write ``docs/images/sensitivity_scan.svg``: the accuracy of a small network when a single layer is pruned.

    python docs/make_scan_plot.py

Needs what ``pip install ".[docs,examples]"`` installs; takes some seconds on one core. Prints the scan as a table.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor, nn

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

from lightning_coreset import Scan, sensitivity_scan  # noqa: E402

RATIOS = (0.25, 0.5, 0.625, 0.75, 0.875, 0.9375)
METHODS = {"reconstruction": 'method="reconstruction"', "magnitude": 'method="magnitude"'}
Split = tuple[Tensor, Tensor]


def digits() -> tuple[Split, Split]:
    """Training and test images (N, 1, 8, 8) in [0, 1], with their labels."""
    x, y = load_digits(return_X_y=True)
    images, labels = torch.tensor(x / 16, dtype=torch.float32).view(-1, 1, 8, 8), torch.tensor(y)
    train, test = train_test_split(range(len(labels)), test_size=0.4, random_state=0, stratify=y)
    return (images[train], labels[train]), (images[test], labels[test])


def network() -> nn.Sequential:
    """Three convolutions, the second much wider than necessary, and a classifier."""
    layers: list[nn.Module] = []
    for inputs, outputs in ((1, 16), (16, 64), (64, 32)):
        layers += [nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()]
    return nn.Sequential(*layers, nn.MaxPool2d(4), nn.Flatten(), nn.Linear(128, 32), nn.ReLU(), nn.Linear(32, 10))


def fit(model: nn.Module, split: Split, epochs: int = 12) -> None:
    """Train with Adam on batches of 64."""
    optimizer = torch.optim.Adam(model.parameters(), 2e-3)
    for _ in range(epochs):
        for chosen in torch.randperm(len(split[0])).split(64):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(split[0][chosen]), split[1][chosen]).backward()
            optimizer.step()


def plot(scans: dict[str, Scan], path: Path) -> None:
    """Plot accuracy against keep ratio, with a line for each group and a panel for each method."""
    import matplotlib

    matplotlib.use("svg" if path.suffix == ".svg" else "agg")
    matplotlib.rcParams.update({"svg.hashsalt": "lightning-coreset", "svg.fonttype": "none", "font.size": 9})
    from matplotlib import pyplot as plt

    figure, panels = plt.subplots(1, len(scans), figsize=(8, 3.4), sharey=True, layout="constrained")
    for panel, (title, scan) in zip(panels, scans.items(), strict=True):
        panel.axhline(100 * scan[0].baseline, color="0.6", linewidth=1, linestyle="--", label="whole network")
        for group, marker in zip(dict.fromkeys(record.group for record in scan), "osD^v", strict=False):
            own = [record for record in scan if record.group == group]
            keep = [100.0, *(100 * record.keep_ratio for record in own)]
            value = [100 * own[0].baseline, *(100 * record.value for record in own)]
            label = f"{group} ({own[0].channels_before} channels)"
            panel.plot(keep, value, marker=marker, markersize=4, linewidth=1.4, label=label)
        panel.set(title=title, xlabel="channels kept in this group (%)", xlim=(103, 0), ylim=(0, 103))
        panel.grid(alpha=0.25)
        panel.spines[["top", "right"]].set_visible(False)
    panels[0].set_ylabel("test accuracy (%)")
    panels[0].legend(frameon=False, loc="lower left")
    figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None, dpi=120)


def main() -> None:
    """Train, scan, print and draw; the optional command line argument is another path for the picture."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    train, test = digits()
    model = network()
    fit(model, train)

    @torch.no_grad()
    def accuracy(pruned: nn.Module) -> float:
        pruned.eval()
        return float((pruned(test[0]).argmax(1) == test[1]).double().mean())

    scans = {}
    for method, title in METHODS.items():
        scans[title] = sensitivity_scan(model, test[0][:2], accuracy, ratios=RATIOS, method=method)
        print(f"{method}\n{scans[title]}\n")
    plot(scans, Path(sys.argv[1]) if len(sys.argv) > 1 else HERE / "images" / "sensitivity_scan.svg")


if __name__ == "__main__":
    main()
