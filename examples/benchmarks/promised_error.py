r"""How many neurons an error costs: channels that stay for the same promise, by what decides.

Layer 1 of LeNet-300-100 is drawn by the paper's sensitivities, so that no input of norm at most :math:`\beta`, the norm
of the largest training image, moves an output of layer 2 by more than :math:`\epsilon`, in parts of the largest output
that gradient ascent finds. Neurons that stay of N = 300:

- *theorem*: draws with replacement, as many as ``sample_size`` asks for (probability 0.95), and the different neurons
  among them on average. Where these are 300 draws and more ``Sensitivity(epsilon=...)`` keeps all instead;
- *refined theorem*: as many as ``refined_sample_size`` asks for (probability 0.95);
- *certificate*: what ``Sensitivity(epsilon=...)`` draws and certifies, with certainty, by the samplers "draws" and
  "pps". The latter is what it does by default.

    python examples/benchmarks/promised_error.py --data mnist.npz

Some minutes on one core. Without ``--data`` it uses the digits of scikit-learn, enlarged to 28 x 28.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from lenet_mnist import trained_network
from reporting import markdown, setting
from torch import nn
from worst_case import DELTA, images

from lightning_coreset import Sensitivity, plan_pruning
from lightning_coreset.coreset import (
    draw_fixed,
    draw_law,
    find_activation,
    largest_found_error,
    refined_sample_size,
    sample_size,
    sensitivities,
)

PARTS = (0.5, 1.0, 2.0, 4.0)
SAMPLERS = ("draws", "pps")
REPEATED = 10
"""Draws over which the number of distinct neurons is averaged."""


def rows(model: nn.Sequential, parts: Sequence[float], radius: float) -> Iterator[list[str]]:
    """A row for each error."""
    first, second = model[0], model[2]
    relu = find_activation("relu")
    assert relu is not None
    producers = torch.cat([first.weight, first.bias[:, None]], dim=1).detach()
    consumers = second.weight.detach()
    generator = torch.Generator().manual_seed(0)
    scores = sensitivities(producers, consumers[:, :, None], relu, input_radius=radius)
    law = draw_law(producers, consumers, relu, scores, input_radius=radius)
    output = largest_found_error(consumers, producers, relu, input_radius=radius, generator=generator)

    def stay(draws: int) -> str:
        kept = [len(draw_fixed(scores, draws, generator).kept) for _ in range(REPEATED)]
        return f"{sum(kept) / REPEATED:.0f} ({draws} draws)"

    for part in parts:
        epsilon = part * float(output.max())
        theorem = sample_size(law.total, epsilon, len(consumers), DELTA)
        certified, seconds = [], []
        for sampler in SAMPLERS:
            start = time.perf_counter()
            certified.append(str(_planned(model, Sensitivity(sampler, radius, epsilon, DELTA))))
            seconds.append(f"{time.perf_counter() - start:.0f}")
        refined = refined_sample_size(law, epsilon, DELTA)
        yield [f"{part:g}", f"{epsilon:.0f}", stay(theorem), stay(refined), *certified, *seconds]


def _planned(model: nn.Sequential, method: Sensitivity) -> int:
    plan = plan_pruning(model, torch.zeros(2, 784), method=method, only=["0"], self_check=False)
    return plan.groups[0].channels_after


def main(arguments: Sequence[str] | None = None) -> None:
    """Train, plan, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="MNIST: an .npz file or a folder (default: scikit-learn's digits)")
    parser.add_argument("--epochs", type=int, default=8, help="epochs of training before pruning")
    parser.add_argument("--parts", type=float, nargs="+", default=list(PARTS), help="errors, in parts of the output")
    given = parser.parse_args(arguments)
    torch.set_num_threads(1)
    training = images(given.data)
    radius = float(training[0].norm(dim=1).max())
    model = trained_network(training, given.epochs, 0)
    print(setting())
    print(f"Layer 1 of LeNet-300-100, all inputs of norm up to {radius:.2f}: neurons of 300 that stay.\n")
    head = ["part of the largest output", "epsilon", "theorem", "refined theorem"]
    head += [f"certificate, {sampler}" for sampler in SAMPLERS] + [f"{sampler}: s" for sampler in SAMPLERS]
    print(markdown(head, rows(model, given.parts, radius)))


if __name__ == "__main__":
    main()
