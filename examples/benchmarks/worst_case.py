r"""Worst-case error of a coreset over all inputs in a ball: found, certified, and the bounds of theorems.

Layer 1 of LeNet-300-100 is pruned to several fractions of its N = 300 neurons. The error is the largest in any of the J
= 100 outputs of layer 2, over *all* inputs of norm at most :math:`\beta`, the norm of the largest training image. Known
after pruning, for the coreset that was chosen by the paper's sensitivities (sampler "distinct") or by reconstruction:

- *found*: gradient ascent finds an input with this error, so the true maximum is not smaller;
- *certified*: a proven upper bound, so the true maximum is not larger;
- *triangle*: a proven upper bound from the triangle inequality, with each neuron at the end of its own range.

Known before drawing, for M draws with replacement by sensitivities with sum S, each with probability 0.95:

- *Hoeffding, one input*: :math:`S \sqrt{2 \ln(2 J / \delta) / M}`, for all J outputs at one input that is fixed before
  the draws. It does not hold for an input chosen after the coreset, so it is no bound of the worst case;
- *theorem, all inputs*: ``error_bound`` of ``lightning_coreset.coreset``, :math:`(2 S + S \sqrt{2 \ln(2 J / \delta)}) /
  \sqrt{M}`, for all J outputs and all inputs of the ball at once.

Both apply to the sampler that draws exactly M times. M is chosen so that m different neurons are expected among the
draws, which makes the bounds look better than for m draws.

    python examples/benchmarks/worst_case.py --data mnist.npz --output docs/images/worst_case.svg

Some minutes on one core. Prints a Markdown table, and draws it with ``--output``. Without ``--data`` it uses the digits
of scikit-learn, enlarged to 28 x 28, which need no download.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from lenet_mnist import certified, trained_network
from reporting import markdown, setting
from torch import Tensor, nn

from lightning_coreset import Reconstruction, Sensitivity
from lightning_coreset.coreset import error_bound, find_activation, sensitivities
from lightning_coreset.methods import Method

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "examples"))
from data import Split, digits, mnist  # noqa: E402

KEEP = (0.9, 0.75, 0.5, 0.35, 0.25, 0.15, 0.1, 0.05)
METHODS: dict[str, Method] = {"sensitivity": Sensitivity(), "reconstruction": Reconstruction()}
DELTA = 0.05


@dataclass(frozen=True)
class Worst:
    """Errors for one fraction of neurons kept; means over seeds.

    Attributes:
        keep: The fraction.
        output: The largest output of layer 2 that gradient ascent finds, to compare with.
        brackets: By method: found, certified, triangle.
        draws: M.
        one_input: Hoeffding's bound.
        all_inputs: The theorem's.
    """

    keep: float
    output: float
    brackets: dict[str, tuple[float, float, float]]
    draws: float
    one_input: float
    all_inputs: float


def images(path: Path | None) -> Split:
    """Training images, flattened, of 784 pixels."""
    if path is not None:
        x, y = mnist(path).train
        return x.flatten(1), y
    x, y = digits().train
    return F.interpolate(x, (28, 28), mode="bilinear").flatten(1), y


def drawing_probabilities(model: nn.Sequential, radius: float) -> tuple[float, Tensor]:
    """The sum of the sensitivities of layer 1, and the probabilities with which its neurons are drawn."""
    first, second = model[0], model[2]
    relu = find_activation("relu")
    rows = torch.cat([first.weight, first.bias[:, None]], dim=1).detach()
    scores = sensitivities(rows, second.weight.detach()[:, :, None], relu, input_radius=radius)
    return float(scores.sum()), scores / scores.sum()


def draws_for(distinct: int, probabilities: Tensor) -> int:
    """The number of draws with replacement that give so many different neurons on average."""
    low, high = 1, 1
    while _expected_distinct(high, probabilities) < distinct:
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if _expected_distinct(middle, probabilities) < distinct else (low, middle)
    return high


def _expected_distinct(draws: int, probabilities: Tensor) -> float:
    return float(-torch.expm1(draws * torch.log1p(-probabilities)).sum())


def bounds_beforehand(total: float, draws: int, outputs: int) -> tuple[float, float]:
    """The bounds known before drawing: for one input, and for all inputs."""
    one_input = total * math.sqrt(2 * math.log(2 * outputs / DELTA) / draws)
    return one_input, error_bound(total, draws, outputs, DELTA)


def measure(training: Split, keeps: Iterable[float], seeds: int, epochs: int) -> list[Worst]:
    """Train, prune layer 1 to every fraction with both methods, and compute the bounds."""
    radius = float(training[0].norm(dim=1).max())
    models = [trained_network(training, epochs, seed) for seed in range(seeds)]
    return [_worst(models, keep, radius) for keep in keeps]


def _worst(models: Sequence[nn.Sequential], keep: float, radius: float) -> Worst:
    beforehand, brackets, outputs = [], {}, []
    for model in models:
        total, probabilities = drawing_probabilities(model, radius)
        draws = draws_for(round(keep * len(probabilities)), probabilities)
        beforehand.append((draws, *bounds_beforehand(total, draws, model[2].out_features)))
    for name, method in METHODS.items():
        found = [certified(model, method, keep, radius, seed) for seed, model in enumerate(models)]
        output, *bracket = np.mean(found, axis=0).tolist()
        outputs.append(output)
        brackets[name] = tuple(bracket)
    return Worst(keep, outputs[0], brackets, *np.mean(beforehand, axis=0).tolist())


def rows(found: Sequence[Worst]) -> Iterable[list[str]]:
    """A row for each fraction."""
    for one in found:
        errors = [f"{error:.1f}" for name in METHODS for error in one.brackets[name]]
        beforehand = [f"{one.draws:.0f}", f"{one.one_input:.0f}", f"{one.all_inputs:.0f}"]
        yield [f"{one.keep:.0%}", f"{one.output:.1f}", *errors, *beforehand]


def draw(found: Sequence[Worst], path: Path) -> None:
    """Plot errors against the fraction kept, on a logarithmic scale, with a panel for each method."""
    sys.path.insert(0, str(ROOT / "docs"))
    from drawing import BLUE, GREEN, GREY, INK, RED, YELLOW, panels, plain

    figure, axes = panels(2, sharey=True)
    keep = [100 * one.keep for one in found]
    for panel, name in zip(axes, METHODS, strict=True):
        for column, (label, colour) in enumerate((("found", BLUE), ("certified", GREEN), ("triangle", YELLOW))):
            values = [one.brackets[name][column] for one in found]
            panel.plot(keep, values, color=colour, marker="osD"[column], markersize=4, linewidth=1.4, label=label)
        if name == "sensitivity":
            panel.plot(keep, [one.one_input for one in found], "--", color=GREY, label="Hoeffding, one input")
            panel.plot(keep, [one.all_inputs for one in found], "--", color=RED, label="theorem, all inputs")
        panel.axhline(found[0].output, color=INK, linewidth=1, linestyle=":", label="largest output found")
        panel.set(title=name, xlabel="neurons kept (%)", yscale="log", xlim=(100, 0))
        plain(panel)
    axes[0].set_ylabel("largest error of an output")
    axes[0].legend(frameon=False, fontsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix != ".svg":
        figure.savefig(path, dpi=120)
        return
    figure.savefig(path, metadata={"Date": None})
    # Some lines of path data end in a space.
    path.write_text("".join(line.rstrip() + "\n" for line in path.read_text().splitlines()))


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print a table, and draw it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="MNIST: an .npz file or a folder (default: scikit-learn's digits)")
    parser.add_argument("--output", type=Path, help="a picture to write, .svg or .png")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=8, help="epochs of training before pruning")
    parser.add_argument("--keep", type=float, nargs="+", default=list(KEEP), help="fractions of the neurons kept")
    given = parser.parse_args(arguments)
    torch.set_num_threads(1)
    training = images(given.data)
    found = measure(training, given.keep, given.seeds, given.epochs)
    data = "MNIST" if given.data else "digits of scikit-learn, enlarged"
    print(setting())
    print(f"Layer 1 of LeNet-300-100 ({data}), all inputs of norm up to {training[0].norm(dim=1).max():.2f}, ", end="")
    print(f"mean of {given.seeds} seeds: the largest error in an output of layer 2.\n")
    head = ["keep", "largest output found"]
    head += [f"{name}: {kind}" for name in METHODS for kind in ("found", "certified", "triangle")]
    print(markdown([*head, "draws M", "Hoeffding, one input", "theorem, all inputs"], rows(found)))
    if given.output:
        draw(found, given.output)


if __name__ == "__main__":
    main()
