"""Time of a pruning event on ResNet-50, ViT-B/16 and GPT-2 (124M), by part, compared with Torch-Pruning.

The parts, as in the callback: *structure* (finding groups of channels), *probes* (making inputs up, where the method
measures), *planning* (which channels stay, and new weights for their consumers), *surgery*, and *optimizer* (slicing
the state of an AdamW after one step). The self-check is listed separately, since Torch-Pruning has none. The weights
are random. Half of the channels of every group are removed, and both libraries must reach the same shapes. Torch-
Pruning ranks by L2 norms without reweighting, and its user has to create a new optimizer. Every figure is the first
call in a fresh process, and the processes of the libraries alternate. The slow parts, reconstruction and self-check,
are repeated less often.

Groups to which the method does not apply are ranked by norms. This is much less work than a coreset, so the table shows
how many groups were ranked.

The highest memory of an event with reconstruction is compared with that of a training step of AdamW on a batch (32
images or sequences), each in a process of its own after a small warm-up, above what the process held before the network
was built; network and optimizer state are part of both.

On ViT, both libraries also remove heads. On GPT-2, both prune the FFN only: Torch-Pruning needs a custom pruner and
importance for the Conv1D of `transformers` (``torch_pruning_event.py``), and even then its group for the merged
projection of queries, keys and values asks for all 2304 columns of the next layer, which has 768.

    pip install ".[benchmarks]"
    python examples/benchmarks/event_cost.py

Some minutes on two cores. Prints a Markdown table, seconds as median / fastest; set OMP_NUM_THREADS to fix the threads.
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from collections.abc import Iterable, Sequence

import torch
from event_networks import WORKS, ExampleInputs, Work, run
from footprint import Memory
from measuring import Stopwatch, format_ratio, format_times, in_fresh_process
from reporting import markdown, setting
from torch import nn

METHODS = ("sensitivity", "reconstruction")
THEIRS = "torch-pruning"
CHECK = "self-check"
MEMORY = ("event memory", "step memory")
PARTS = (*METHODS, CHECK, THEIRS, *MEMORY)
SLOW = ("reconstruction", CHECK, *MEMORY)
STEPS = ("structure", "probes", "planning", "surgery", "optimizer")
RATIO = 0.5
Seconds = dict[str, float]
Found = dict[tuple[str, str], list[Seconds]]
"""What was measured by network and part, of every repeat."""


def trained(model: nn.Module) -> torch.optim.Optimizer:
    """An AdamW with the state of one step, and no gradients."""
    optimizer = torch.optim.AdamW(model.parameters())
    for parameter in model.parameters():
        parameter.grad = torch.full_like(parameter, 1e-3)
    optimizer.step()
    optimizer.zero_grad()
    return optimizer


def ours(model: nn.Module, inputs: ExampleInputs, work: Work, method: str) -> Seconds:
    """Seconds of every part of an event; also the number of groups, and how many of them were ranked."""
    from lightning_coreset.methods import as_method
    from lightning_coreset.optimizers import slice_optimizer_state
    from lightning_coreset.planning import Request, make_plan, measuring_runs
    from lightning_coreset.structure import Example, analyse
    from lightning_coreset.surgery import apply_changes

    optimizer = trained(model)
    request = Request(RATIO, "channels", as_method(method), ignore=work.ignore, include_residual=work.include_residual)
    watch = Stopwatch()
    structure = analyse(model, inputs)
    watch.lap("structure")
    runs = measuring_runs(model, structure, request.method.measures, [Example.of(inputs)])
    watch.lap("probes")
    plan = make_plan(model, structure, request, runs=runs)
    watch.lap("planning")
    changed = apply_changes(model, plan.changes, plan.attributes)
    watch.lap("surgery")
    slice_optimizer_state(optimizer, changed)
    watch.lap("optimizer")
    ranked = sum(group.method.startswith("rank") for group in plan.groups)
    return watch.parts | {"groups": len(plan.groups), "ranked": ranked}


def self_check(model: nn.Module, inputs: ExampleInputs) -> Seconds:
    """Seconds of the self-check, which precedes the first event."""
    from lightning_coreset.structure import Example, analyse
    from lightning_coreset.verification import failing_groups

    example = Example.of(inputs)
    groups = analyse(model, example).groups
    watch = Stopwatch()
    failing = failing_groups(model, groups, example)
    watch.lap(CHECK)
    assert not failing, failing
    return watch.parts


def peak(work: Work, part: str, tiny: bool) -> Seconds:
    """The highest memory of an event or of a training step in this process, in bytes."""
    from lightning_coreset import prune

    small = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    prune(small, torch.randn(2, 4), 0.5)  # imports all that is used
    small(torch.randn(2, 4)).sum().backward()
    memory = Memory()
    model, inputs = work.build(tiny)
    memory.lap()
    if part == "event memory":
        ours(model, inputs, work, "reconstruction")
    else:
        step(model, inputs, work.batch)
    return {part: memory.lap()}


def step(model: nn.Module, inputs: ExampleInputs, batch: int) -> None:
    """One training step, with the optimizer state of one before."""
    optimizer = trained(model)
    run(model.train(), repeated(inputs, batch)).square().mean().backward()
    optimizer.step()


def repeated(inputs: ExampleInputs, batch: int) -> ExampleInputs:
    """The samples again and again, as many as a batch has."""
    if isinstance(inputs, dict):
        return {
            name: tensor.repeat(-(-batch // len(tensor)), *[1] * (tensor.ndim - 1)) for name, tensor in inputs.items()
        }
    return inputs.repeat(-(-batch // len(inputs)), *[1] * (inputs.ndim - 1))


def theirs(model: nn.Module, inputs: ExampleInputs, work: Work) -> Seconds:
    """Seconds for building Torch-Pruning's dependency graph and pruning."""
    import torch_pruning_event

    trained(model)  # unused: it puts the process into the same condition as ours
    watch = Stopwatch()
    torch_pruning_event.prune(model, inputs, RATIO, work)
    watch.lap(THEIRS)
    return watch.parts


Measured = tuple[Seconds, list[tuple[int, ...]]]


def measured(work: Work, part: str, tiny: bool = False) -> Measured:
    """Seconds of one part in this process, and the resulting parameter shapes."""
    torch.manual_seed(0)
    if part in MEMORY:
        return peak(work, part, tiny), []
    model, inputs = work.build(tiny)
    if part == CHECK:
        found = self_check(model, inputs)
    else:
        found = theirs(model, inputs, work) if part == THEIRS else ours(model, inputs, work, part)
    with torch.no_grad():
        assert run(model.eval(), inputs).isfinite().all(), f"{work.title}: {part} broke it"
    return found, [tuple(parameter.shape) for parameter in model.parameters()]


def measure(names: Iterable[str], parts: Sequence[str], repeats: int, slow_repeats: int, tiny: bool) -> Found:
    """Measure every part of every network, alternating, each in a fresh process.

    Raises:
        AssertionError: If two of them prune to different shapes.
    """
    found: Found = defaultdict(list)
    for number in range(repeats):
        for name in names:
            shapes = {}
            for part in parts:
                if part in SLOW and number >= slow_repeats:
                    continue
                one = in_fresh_process(__file__, "--child", "--model", name, "--parts", part, *["--tiny"] * tiny)
                found[name, part].append(one["seconds"])
                if part not in (CHECK, *MEMORY):
                    shapes[part] = one["shapes"]
            assert len(set(map(str, shapes.values()))) <= 1, f"{name}: other shapes by {' than by '.join(shapes)}"
    return found


def rows(names: Iterable[str], found: Found) -> Iterable[list[str]]:
    """A row for each network and each of our methods."""
    for name in names:
        checks = [one[CHECK] for one in found[name, CHECK]]
        other = [one[THEIRS] for one in found[name, THEIRS]]
        held = [max(one[part] for one in found[name, part]) for part in MEMORY if found[name, part]]
        for method in METHODS:
            runs = found[name, method]
            if not runs:
                continue
            event = [sum(one[step] for step in STEPS if step != "optimizer") for one in runs]
            yield [
                WORKS[name].title,
                method,
                f"{runs[0]['groups']:.0f}, {runs[0]['ranked']:.0f} ranked",
                *(format_times([one[step] for one in runs]) for step in STEPS),
                format_times(event, ".2f"),
                format_times(other, ".2f") if other else "",
                format_ratio(event, other) if other else "",
                format_times(checks, ".2f") if checks else "",
                " / ".join(f"{bytes / 2**20:,.0f}" for bytes in held) if method == "reconstruction" else "",
            ]


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", nargs="+", choices=WORKS, default=list(WORKS))
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--slow-repeats", type=int, default=1, help=f"of {' and '.join(SLOW)}")
    parser.add_argument("--tiny", action="store_true", help="small networks of the same kinds, to try the script")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    if given.child:
        found, shapes = measured(WORKS[given.model[0]], given.parts[0], given.tiny)
        print(json.dumps({"seconds": found, "shapes": shapes}))
        return
    results = measure(given.model, given.parts, given.repeats, given.slow_repeats, given.tiny)
    size = "Tiny networks of the same kinds" if given.tiny else f"{RATIO:.0%} of the channels of every group"
    print(setting("torch-pruning", "transformers"))
    print(f"{size}: seconds of the first event in a fresh process, median / fastest of {given.repeats}")
    print(
        f"({' and '.join(SLOW)}: {given.slow_repeats}). An event consists of structure analysis, probes, planning and "
        "surgery;"
    )
    print("the time of Torch-Pruning is that of building its graph and of one pruning step.\n")
    head = ["network", "method", "groups", *STEPS, "event", "Torch-Pruning", "event / Torch-Pruning", CHECK]
    head.append("MiB: event / training step")
    print(markdown(head, rows(given.model, results)))


if __name__ == "__main__":
    main()
