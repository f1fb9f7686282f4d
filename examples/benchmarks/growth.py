"""How planning grows with the channels of a group, beside the limits that it nears.

One group: Linear(N, N), ReLU, Linear(N, N), of whose N channels in the middle half go. Planning alone is timed, the
structure being known, in one process, the contenders in turn. The limits:

- *one pass*: the norms of all rows of the first weight and of all columns of the second, which is the least that
  anything that looks at the weights can take;
- *N^3/3*: a Cholesky factorisation of size N in float64, the least that solving for new weights can take; and what that
  many multiplications take at the rate of a product of two such matrices.

    python examples/benchmarks/growth.py

Some minutes on two cores, nearly all of them for the largest N. Prints a Markdown table; medians.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from statistics import median

import torch
from measuring import interleaved, seconds
from reporting import markdown, setting
from torch import nn

from lightning_coreset.methods import as_method
from lightning_coreset.planning import Request, make_plan
from lightning_coreset.structure import analyse

SIZES = (256, 512, 1024, 2048, 4096)
METHODS = ("sensitivity", "reconstruction")


def contenders(channels: int) -> dict[str, Callable[[], float]]:
    """Planning by each method, and the limits, each timing itself once."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(channels, channels), nn.ReLU(), nn.Linear(channels, channels))
    first, second = model[0].weight.detach(), model[2].weight.detach()
    structure = analyse(model, torch.randn(2, channels))
    wide = first.double()
    moment = wide @ wide.T + torch.eye(channels, dtype=torch.float64)
    timed = {
        method: partial(make_plan, model, structure, Request(0.5, "channels", as_method(method))) for method in METHODS
    }
    timed["pass"] = lambda: (first.norm(dim=1), second.norm(dim=0))
    timed["cholesky"] = partial(torch.linalg.cholesky, moment)
    timed["product"] = partial(torch.mm, wide, moment)
    return {name: partial(seconds, call) for name, call in timed.items()}


def measure(sizes: Iterable[int], repeats: int) -> dict[int, dict[str, float]]:
    """Medians by number of channels and contender; large ones are called less often, small ones once in vain."""
    found = {}
    for channels in sizes:
        calls = contenders(channels)
        if channels <= 1024:
            interleaved(calls, 1)
        times = interleaved(calls, max(1, repeats * 1024 // channels))
        found[channels] = {name: median(values) for name, values in times.items()}
    return found


def rows(found: dict[int, dict[str, float]]) -> Iterable[list[str]]:
    """Milliseconds, growth since the row before, and ratios to the limits."""
    before: dict[str, float] | None = None
    for channels, one in found.items():
        flops = one["product"] / 6  # a product takes 2 N^3 operations, N^3/3 are a sixth
        grown = [f"x {one[method] / before[method]:.1f}" if before else "" for method in METHODS]
        yield [
            f"{channels}",
            *(cell for method, growth in zip(METHODS, grown, strict=True) for cell in (ms(one[method]), growth)),
            ms(one["pass"]),
            f"{one['sensitivity'] / one['pass']:.1f}",
            ms(one["cholesky"]),
            ms(flops),
            f"{one['reconstruction'] / one['cholesky']:.1f}",
            f"{one['reconstruction'] / flops:.1f}",
        ]
        before = one


def ms(value: float) -> str:
    """Milliseconds with three digits or all before the point."""
    return f"{1000 * value:.3g}" if value < 1 else f"{1000 * value:.0f}"


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=list(SIZES))
    parser.add_argument(
        "--repeats", type=int, default=3, help="at 1024 channels; in proportion more below, fewer above"
    )
    given = parser.parse_args(arguments)
    found = measure(given.sizes, given.repeats)
    print(setting())
    print(f"Milliseconds of planning for one group of N channels, medians of {given.repeats} calls at N = 1024.\n")
    head = ["N", "sensitivity", "growth", "reconstruction", "growth", "one pass", "sensitivity / pass"]
    head += ["Cholesky", "N^3/3 at the rate of a product", "reconstruction / Cholesky", "reconstruction / N^3/3"]
    print(markdown(head, rows(found)))


if __name__ == "__main__":
    main()
