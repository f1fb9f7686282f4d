"""Transformers made half as wide: this package beside Torch-Pruning, on the same networks, widths and heads.

    pip install ".[benchmarks]"
    python examples/benchmarks/narrow_transformers.py --data cifar10.npz

The first table is about tiny networks of ``transformers`` with random weights, those of ``tests/zoo``. Both libraries
remove half of everything that they can remove: the width of the stream, heads, feed-forward channels. It shows

- the fraction of the parameters that is gone,
- whether the pruned network is right (``kept_channels.py``): it has to compute what the whole network computes when
  every mean, variance and norm over channels takes the kept ones and no layer reads the removed ones, to 1e-9 in
  double precision, on two inputs,
- the seconds; for this package with its self-check, which runs copies of the network. After a minute a library is
  stopped: on some of these networks Torch-Pruning's search for groups has no end in sight.

The other tables are about a ViT and a Llama, small and trained here, on CIFAR-10 and on the docstrings of Python's
standard library: accuracy right after half of the channels and heads is gone, and after a tenth of the training.
*Inside* leaves the stream as it is; *everywhere* narrows it, too.

Without ``--data`` there is no ViT. A quarter of an hour on two cores; prints Markdown tables.
"""

from __future__ import annotations

import argparse
import signal
import sys
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from contenders import ABSENT, has_torch_pruning, selected
from kept_channels import verdict
from reporting import markdown, setting
from small_transformers import Task, language_model, train, vit
from torch import Generator, nn

sys.path.insert(0, str(Path(__file__).parents[2] / "tests"))

from zoo import ZOO, Entry
from zoo.running import duplicate, randomise

from lightning_coreset import plan_pruning, prune
from lightning_coreset.structure import analyse

NAMED = """
bert distilbert gpt2 llama qwen2 qwen3 t5 whisper clip vit deit swin convnext convnextv2 segformer wav2vec2
wav2vec2-layer-norm
""".split()
RATIO = 0.5
LIMIT = 60  # seconds
OURS = {"lightning_coreset, default": "reconstruction", "lightning_coreset, magnitude": "magnitude"}
Prune = Callable[[nn.Module, Any], None]


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="CIFAR-10: an .npz file, or a folder for torchvision")
    parser.add_argument("--networks", default="*", help="shell patterns of the tiny networks, with | between them")
    parser.add_argument("--images", type=int, default=10000, help="training images of the ViT")
    parser.add_argument("--test-images", type=int, default=5000)
    parser.add_argument("--epochs", type=float, default=10, help="epochs of the ViT")
    parser.add_argument("--characters", type=int, default=1_000_000, help="length of the language model's text")
    parser.add_argument("--steps", type=int, default=1000, help="steps of the language model")
    given = parser.parse_args(argv)
    warnings.simplefilter("ignore")  # both warn about what they do not prune
    print(setting("transformers", "torch-pruning") if has_torch_pruning() else f"{setting()}\n{ABSENT}", flush=True)

    entries = {name: ZOO[f"hf/{name}"] for name in NAMED if selected(name, given.networks)}
    columns = [f"{library}{what}" for what in (": gone", "", ": s") for library in libraries()]
    rows = [(name, *cells(entry)) for name, entry in entries.items()]
    print(f"\nHalf of all channels and heads removed from tiny networks.\n\n{markdown(['network', *columns], rows)}")

    tasks = [] if given.data is None else [partial(vit, given.data, given.images, given.test_images, given.epochs)]
    for task in (make() for make in [*tasks, partial(language_model, given.characters, given.steps)]):
        print_accuracies(task)


# ---- reach, right or wrong, seconds


def libraries() -> dict[str, Prune]:
    """Both, or one if the other is not installed: half of everything goes."""
    found: dict[str, Prune] = {"lightning_coreset": partial(ours, "magnitude", True)}
    if has_torch_pruning():
        found["Torch-Pruning"] = theirs
    return found


def ours(method: str, everywhere: bool, model: nn.Module, inputs: Any) -> None:
    """Prune with this package, with its self-check."""
    prune(model, inputs, RATIO, unit="channels", method=method, include_residual=everywhere)


def theirs(model: nn.Module, inputs: Any) -> None:
    """Prune with Torch-Pruning, which is told the layers that make the output."""
    from torch_pruning_transformers import prune as prune_with_torch_pruning

    refused = analyse(model, inputs).refused
    outputs = [model.get_submodule(name) for name, why in refused.items() if why == "makes outputs of the network"]
    prune_with_torch_pruning(model, inputs, RATIO, outputs)


def cells(entry: Entry) -> list[str]:
    """What is gone, the verdict and the seconds, each for all libraries."""
    generator = Generator().manual_seed(0)
    inputs = [entry.inputs(generator) for _ in range(2)]
    torch.manual_seed(0)
    model = entry.build().eval()
    randomise(model, inputs[0], generator)
    model.double()
    results = [one_result(model, inputs, library) for library in libraries().values()]
    return [result[column] for column in range(3) for result in results]


def one_result(model: nn.Module, inputs: list[Any], library: Prune) -> tuple[str, str, str]:
    """The three columns of one library."""
    pruned, start = duplicate(model), time.perf_counter()
    try:
        with limited(LIMIT):
            library(pruned, as_double(inputs[0]))
    except TimeoutError:
        return "-", "no end", f"> {LIMIT}"
    except Exception as error:
        return "-", f"raises {type(error).__name__}", "-"
    seconds = time.perf_counter() - start
    before, after = size(model, model), size(model, pruned)
    return f"{1 - after / before:.0%}", verdict(model, pruned, inputs), f"{seconds:.1f}"


@contextmanager
def limited(seconds: int) -> Iterator[None]:
    """Raise TimeoutError after some seconds: a graph search may take exponentially long."""

    def stop(*_: object) -> None:
        raise TimeoutError

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def size(model: nn.Module, pruned: nn.Module) -> int:
    """The parameters of a pruned network, where those that were one tensor count once, also if they are two now."""
    left = dict(pruned.named_parameters(remove_duplicate=False))
    return sum(left[name].numel() for name, _ in model.named_parameters())


def as_double(inputs: Any) -> Any:
    """The floating inputs in double precision."""
    items = inputs.items() if isinstance(inputs, dict) else enumerate(inputs)
    made = {name: one.double() if one.is_floating_point() else one for name, one in items}
    return made if isinstance(inputs, dict) else tuple(made.values())


# ---- accuracy


def print_accuracies(task: Task) -> None:
    """Train, prune with every method to the same widths, train on."""
    torch.manual_seed(0)
    model = task.build()
    train(task, model)
    print(f"\n{task.name}: {task.score(model):.1f}% unpruned.\n", flush=True)
    rows = [row for where in ("inside", "everywhere") for row in accuracies(task, model, where)]
    print(markdown(("pruned", "method", "parameters", "right after", "after a tenth of the training"), rows))


def accuracies(task: Task, model: nn.Module, where: str) -> Iterable[tuple[str, ...]]:
    """A row for every method."""
    everywhere = where == "everywhere"
    methods: dict[str, Prune] = {name: partial(ours, method, everywhere) for name, method in OURS.items()}
    if has_torch_pruning():
        from torch_pruning_transformers import IMPORTANCES

        methods |= {name: partial(to_our_widths, name, everywhere) for name in IMPORTANCES}
    for name, method in methods.items():
        pruned = duplicate(model)
        try:
            method(pruned, task.inputs)
            after = task.score(pruned)
        except Exception as error:
            yield where, name, "-", f"raises {type(error).__name__}", "-"
            continue
        left = size(model, pruned) / size(model, model)
        train(task, pruned, 0.1, 1e-3, seed=1)
        yield where, name, f"{left:.1%}", f"{after:.1f}", f"{task.score(pruned):.1f}"


def to_our_widths(name: str, everywhere: bool, model: nn.Module, inputs: Any) -> None:
    """Prune exactly the layers that this package narrows, with Torch-Pruning."""
    from torch_pruning_transformers import prune as prune_with_torch_pruning

    plan = plan_pruning(model, inputs, RATIO, unit="channels", method="magnitude", include_residual=everywhere)
    after = {change.name: change.new_shape for change in plan.changes}
    kept = []
    for path, module in model.named_modules():
        weight = getattr(module, "weight", None)
        makes = {nn.Linear: 0, nn.Conv2d: 0, nn.Embedding: 1}.get(type(module))
        if makes is not None and after.get(f"{path}.weight", weight.shape)[makes] == weight.shape[makes]:
            kept.append(module)
        if not everywhere and any(parameter.dim() > 2 for parameter in module.parameters(recurse=False)):
            kept += [module] if weight is None else []  # class tokens and positions
    prune_with_torch_pruning(model, inputs, RATIO, kept, name)


if __name__ == "__main__":
    main()
