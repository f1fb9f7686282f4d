"""Write ``docs/images/errors.svg``: average and worst-case error of the next layer's outputs, by method.

    python docs/make_error_picture.py

Needs what ``pip install ".[docs,examples]"`` installs; takes about a minute on one core. Prints the numbers as well.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from make_scan_plot import digits, fit
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from drawing import BLUE, CYAN, GREEN, GREY, RED, panels, plain, save

from lightning_coreset import coreset

NEURONS, SEEDS = 128, range(5)
KEPT = (112, 96, 80, 64, 48, 32, 24, 16, 8)
RELU = coreset.find_activation("relu")


class Layer:
    """The first layer of a classifier of digits, and the next layer, which reads it.

    Attributes:
        producers: The weights of the neurons, the bias last, (N, d + 1).
        consumers: The weights of the next layer, (O, N).
        moments: The second moments of the neurons for standard Gaussian inputs, (N, N).
        radius: The norm of the largest image.
    """

    def __init__(self) -> None:
        torch.manual_seed(0)
        train, _ = digits()
        network = nn.Sequential(nn.Flatten(), nn.Linear(64, NEURONS), nn.ReLU(), nn.Linear(NEURONS, 10))
        fit(network, train)
        with torch.no_grad():
            self.producers = torch.cat([network[1].weight, network[1].bias[:, None]], dim=1).double()
            self.consumers = network[3].weight.double()
        self.moments = coreset.activation_moments(RELU, coreset.linear_preactivations(self.producers)).second
        self.radius = float(train[0].flatten(1).norm(dim=1).max())

    def change(self, kept: Tensor, weights: Tensor) -> Tensor:
        """Old weights minus new ones, (O, N)."""
        change = self.consumers.clone()
        change[:, kept] -= weights
        return change

    def errors(self, kept: Tensor, weights: Tensor) -> Tensor:
        """The error of keeping some neurons with new weights, relative to the outputs: average and worst found."""
        change = self.change(kept, weights)
        signal, noise = (coreset.expected_error(self.moments, rows) for rows in (self.consumers, change))
        return torch.tensor([(noise / signal) ** 0.5, self.worst(change) / self.worst(self.consumers)])

    def worst(self, change: Tensor) -> float:
        """The largest output change that gradient ascent over the ball of inputs finds."""
        generator = torch.Generator().manual_seed(0)
        found = coreset.largest_found_error(change, self.producers, RELU, input_radius=self.radius, generator=generator)
        return float(found.max())

    def bounds(self, size: int) -> str:
        """The theorem's bound for ``size`` draws and the reconstruction's certificate, relative to the outputs."""
        largest = self.worst(self.consumers)
        scores = coreset.sensitivities(self.producers, self.consumers[:, :, None], RELU, input_radius=self.radius)
        theorem = coreset.error_bound(float(scores.sum()), size, len(self.consumers), 0.05)
        few = coreset.reconstruct(self.moments, self.consumers, size)
        change = self.change(few.kept, self.consumers @ few.mix)
        proven = coreset.certify(change, self.producers, RELU, input_radius=self.radius).bound.max()
        return f"theorem {theorem / largest:.0%}, certificate of the reconstruction {proven / largest:.0%}"


Choice = Callable[[Layer, int, torch.Generator], tuple[Tensor, Tensor]]


def at_random(layer: Layer, size: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    kept = torch.randperm(NEURONS, generator=generator)[:size]
    return kept, layer.consumers[:, kept]


def by_norm(layer: Layer, size: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    kept = layer.producers.norm(dim=1).topk(size).indices
    return kept, layer.consumers[:, kept]


def by_norm_refitted(layer: Layer, size: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    kept, _ = by_norm(layer, size, generator)
    return kept, layer.consumers @ coreset.mixing_matrix(layer.moments, kept)


def by_sampling(draw: Callable[[Tensor, int, torch.Generator], coreset.Sample]) -> Choice:
    def chosen(layer: Layer, size: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        sample = draw(coreset.sensitivities(layer.producers, layer.consumers[:, :, None], RELU), size, generator)
        return sample.kept, layer.consumers[:, sample.kept] * sample.weights

    return chosen


def by_reconstruction(layer: Layer, size: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    result = coreset.reconstruct(layer.moments, layer.consumers, size)
    return result.kept, layer.consumers @ result.mix


METHODS: dict[str, tuple[Choice, str, str]] = {
    "random": (at_random, GREY, "-"),
    "largest norms": (by_norm, RED, "-"),
    "largest norms, new weights": (by_norm_refitted, RED, "--"),
    "sensitivity (distinct)": (by_sampling(coreset.draw_distinct), CYAN, "-"),
    "sensitivity (pps)": (by_sampling(coreset.draw_pps), BLUE, "-"),
    "reconstruction": (by_reconstruction, GREEN, "-"),
}


def measured(layer: Layer, choose: Choice) -> Iterator[Tensor]:
    """Yield the two errors, averaged over the seeds, for each number of neurons kept."""
    for size in KEPT:
        generators = (torch.Generator().manual_seed(seed) for seed in SEEDS)
        yield torch.stack([layer.errors(*choose(layer, size, generator)) for generator in generators]).mean(dim=0)


def main() -> None:
    """Measure, print and draw."""
    torch.set_num_threads(1)
    layer = Layer()
    figure, axes = panels(2, height=3.6, sharey=True)
    print(f"kept of {NEURONS}: {KEPT}; Gaussian inputs, then the worst of norm up to {layer.radius:.2f}")
    for name, (choose, colour, style) in METHODS.items():
        errors = torch.stack(list(measured(layer, choose)))
        for panel, column in zip(axes, errors.T.tolist(), strict=True):
            panel.plot([NEURONS, *KEPT], [0, *(100 * error for error in column)], style, color=colour, label=name)
            print(f"{name:28}" + "".join(f"{100 * error:7.1f}" for error in column))
    print(f"{NEURONS // 2} kept, the worst of the same inputs: {layer.bounds(NEURONS // 2)}")
    for panel, title in zip(axes, ("Gaussian inputs (root mean square)", "worst input found by ascent"), strict=True):
        plain(panel)
        panel.set(xlabel=f"neurons kept of {NEURONS}", xlim=(NEURONS, 0), ylim=(0, 105), xticks=range(0, 129, 16))
        panel.set_title(title, fontsize=9)
    axes[0].set_ylabel("error of the next layer (% of its outputs)")
    axes[0].legend(frameon=False, loc="upper left", fontsize=8)
    save(figure, "errors.svg")


if __name__ == "__main__":
    main()
