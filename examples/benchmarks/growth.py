"""Planning time by number of channels of a group, compared with lower bounds.

One group: Linear(N, N), ReLU, Linear(N, N); half of the N channels between them are removed. Only planning is timed,
with a known structure, in one process, alternating. *reconstruction* has moments in closed form; *measured* are the
moments of synthetic inputs, with the runs that measure them, as by default for such a network. The lower bounds:

- *one pass*: the norms of all rows of the first weight and of all columns of the second. A method that reads the
  weights cannot be faster.
- *N^3/3*: a Cholesky factorisation of size N in float64, the minimum for solving for new weights; and the time of that
  many multiplications at the rate of a matrix product of this size.

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

from lightning_coreset import Reconstruction, Sensitivity
from lightning_coreset.methods import Method
from lightning_coreset.planning import Request, make_plan, measuring_runs
from lightning_coreset.structure import Example, analyse

SIZES = (256, 512, 1024, 2048, 4096)
METHODS = {
    "sensitivity": Sensitivity(),
    "reconstruction": Reconstruction(moments="closed_form"),
    "measured": Reconstruction(),
}


def contenders(channels: int) -> dict[str, Callable[[], float]]:
    """Planning with each method, and the lower bounds; each times itself once."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(channels, channels), nn.ReLU(), nn.Linear(channels, channels))
    first, second = model[0].weight.detach(), model[2].weight.detach()
    example = Example.of(torch.randn(2, channels))
    structure = analyse(model, example)
    wide = first.double()
    moment = wide @ wide.T + torch.eye(channels, dtype=torch.float64)

    def plan(method: Method) -> None:
        request = Request(0.5, "channels", method)
        make_plan(model, structure, request, runs=measuring_runs(model, structure, method.measures, [example]))

    timed: dict[str, Callable[[], object]] = {name: partial(plan, method) for name, method in METHODS.items()}
    timed["pass"] = lambda: (first.norm(dim=1), second.norm(dim=0))
    timed["cholesky"] = partial(torch.linalg.cholesky, moment)
    timed["product"] = partial(torch.mm, wide, moment)
    return {name: partial(seconds, call) for name, call in timed.items()}


def measure(sizes: Iterable[int], repeats: int) -> dict[int, dict[str, float]]:
    """Medians by number of channels and contender; large ones are called less often, small ones have a warm-up call."""
    found = {}
    for channels in sizes:
        calls = contenders(channels)
        if channels <= 1024:
            interleaved(calls, 1)
        times = interleaved(calls, max(1, repeats * 1024 // channels))
        found[channels] = {name: median(values) for name, values in times.items()}
    return found


def rows(found: dict[int, dict[str, float]]) -> Iterable[list[str]]:
    """Milliseconds, growth since the row before, and ratios to the lower bounds."""
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
            f"{one['measured'] / one['cholesky']:.1f}",
        ]
        before = one


def ms(value: float) -> str:
    """Milliseconds with at least three significant digits."""
    return f"{1000 * value:.3g}" if value < 1 else f"{1000 * value:.0f}"


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=list(SIZES))
    parser.add_argument(
        "--repeats", type=int, default=3, help="calls at 1024 channels; proportionally more below, fewer above"
    )
    given = parser.parse_args(arguments)
    found = measure(given.sizes, given.repeats)
    print(setting())
    print(f"Milliseconds of planning for one group of N channels, medians of {given.repeats} calls at N = 1024.\n")
    head = ["N", *(cell for method in METHODS for cell in (method, "growth")), "one pass", "sensitivity / pass"]
    head += ["Cholesky", "N^3/3 at the rate of a product", "reconstruction / Cholesky", "reconstruction / N^3/3"]
    head += ["measured / Cholesky"]
    print(markdown(head, rows(found)))


if __name__ == "__main__":
    main()
