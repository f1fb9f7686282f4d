"""Seconds and memory of a default pruning event on large networks, and on networks of very many layers.

The parts of ``prune`` with its default arguments, in this order: *structure* (finding groups of channels), *self-check*
(trying every group on a copy) and *pruning* (planning, and applying the plan). Each part has its wall time and its CPU
time, since other work on the machine lengthens the first alone, and the most memory that the process held during it,
above what it held before the network was built. Memory is told relative to that of the network: its parameters and
buffers. What one run of the network takes beside these, for its activations and for torch's kernels, is listed as
*one run*: that is for no one to avoid.

YOLO12n is built by ``ultralytics``, MobileOne-S0, EfficientNet-B4 and Swin-B by ``timm``, and the Llama, of the shape
of TinyLlama 1.1B and in bfloat16, by ``transformers``. The weights are random; nothing is downloaded. Every network has
a process of its own.

    pip install ".[benchmarks]" timm ultralytics
    python examples/benchmarks/big_networks.py

Some minutes on two cores. Prints a Markdown table; set OMP_NUM_THREADS to fix the threads. Memory is read from Linux.
"""

from __future__ import annotations

import argparse
import json
import time
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from footprint import Memory
from measuring import in_fresh_process
from reporting import markdown, setting
from torch import Tensor, nn

Inputs = Tensor | dict[str, Tensor]
Built = tuple[nn.Module, Inputs]
RATIO = 0.3
PARTS = ("structure", "self-check", "pruning")


def of_timm(name: str, size: int, tiny: bool) -> Built:
    """A network of timm, and two images."""
    import timm  # pyright: ignore[reportMissingImports]

    small = {"img_size": 64} if tiny and name.startswith("swin") else {}
    size = 64 if tiny else size
    return timm.create_model(name, **small), torch.randn(2, 3, size, size)


def yolo12n(tiny: bool) -> Built:
    """YOLO12n for 80 classes, and two images."""
    from ultralytics.nn.tasks import DetectionModel  # pyright: ignore[reportMissingImports]

    size = 64 if tiny else 160
    return DetectionModel("yolo12n.yaml", verbose=False), torch.randn(2, 3, size, size)


def llama(tiny: bool) -> Built:
    """The shape of TinyLlama (arXiv 2401.02385), and two sequences of 8 tokens."""
    from transformers import LlamaConfig, LlamaForCausalLM

    whole: dict[str, Any] = {
        "hidden_size": 2048,
        "intermediate_size": 5632,
        "num_hidden_layers": 22,
        "num_attention_heads": 32,
    }
    small: dict[str, Any] = {
        "hidden_size": 64,
        "intermediate_size": 160,
        "num_hidden_layers": 3,
        "num_attention_heads": 8,
    }
    config = LlamaConfig(vocab_size=32000, num_key_value_heads=4, use_cache=False, **(small if tiny else whole))
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        model = LlamaForCausalLM(config)
    finally:
        torch.set_default_dtype(before)
    return model, {"input_ids": torch.randint(0, 32000, (2, 8))}


NETWORKS: dict[str, tuple[str, Callable[[bool], Built]]] = {
    "yolo12n": ("YOLO12n, images of 160", yolo12n),
    "mobileone": ("MobileOne-S0, images of 128", lambda tiny: of_timm("mobileone_s0", 128, tiny)),
    "efficientnet": ("EfficientNet-B4, images of 128", lambda tiny: of_timm("efficientnet_b4", 128, tiny)),
    "swin": ("Swin-B, images of 224", lambda tiny: of_timm("swin_base_patch4_window7_224", 224, tiny)),
    "llama": ("Llama of 1.1B in bfloat16, sequences of 8", llama),
}


def measured(name: str, tiny: bool) -> dict[str, Any]:
    """Seconds, CPU seconds and highest memory of every part of an event on one network, in this process."""
    from lightning_coreset import prune
    from lightning_coreset.structure import Example, analyse
    from lightning_coreset.verification import verified

    torch.manual_seed(0)
    build = NETWORKS[name][1]
    if not tiny:
        build(True)  # imports what builds it
        prune(nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)), torch.randn(2, 4), 0.5)  # and all of ours
    memory = Memory()
    model, inputs = build(tiny)
    own = sum(one.untyped_storage().nbytes() for one in (*model.parameters(), *model.buffers()))
    parameters = sum(one.numel() for one in model.parameters())
    memory.lap()
    with torch.no_grad():
        model.eval()(inputs) if isinstance(inputs, Tensor) else model.eval()(**inputs)
    found: dict[str, Any] = {"own": own, "parameters": parameters, "one run": memory.lap() - own}
    example = Example.of(inputs)

    def part(title: str, call: Callable[[], Any]) -> Any:
        start, cpu = time.perf_counter(), time.process_time()
        result = call()
        found[title] = (time.perf_counter() - start, time.process_time() - cpu, memory.lap())
        return result

    structure = part("structure", lambda: analyse(model, example))
    proven = part("self-check", lambda: verified(model, structure, example))
    plan = part("pruning", lambda: prune(model, inputs, RATIO, include_residual=True, self_check=False))
    found |= {"groups": len(proven.groups), "found": len(structure.groups), "left": plan.params_after}
    return found


def row(name: str, one: dict[str, Any]) -> list[str]:
    """One line of the table."""
    own = one["own"]
    times = [f"{one[part][0]:.1f} ({one[part][1]:.1f})" for part in PARTS]
    peaks = [f"{one[part][2] / own:.2f}" for part in PARTS]
    share = one["self-check"][1] / max(one["structure"][1] + one["pruning"][1], 1e-9)
    return [
        NETWORKS[name][0],
        f"{one['parameters'] / 1e6:,.1f}M, {own / 1e6:,.0f} MB",
        f"{one['groups']} of {one['found']}",
        *times,
        f"{share:.1f}",
        f"{one['one run'] / own:.2f}",
        *peaks,
    ]


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    parser.add_argument("--tiny", action="store_true", help="small networks of the same kinds, to try the script")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    if given.child:
        warnings.simplefilter("ignore")
        print(json.dumps(measured(given.model[0], given.tiny)))
        return
    small = ["--tiny"] * given.tiny
    results = {name: in_fresh_process(__file__, "--child", "--model", name, *small) for name in given.model}
    print(setting("transformers", "timm", "ultralytics"))
    print(
        "Seconds (CPU seconds) of the first event in a process; its highest memory in multiples of the network's own.\n"
    )
    head = ["network", "size", "groups proven", *PARTS, "self-check / rest", "one run"]
    print(markdown([*head, *(f"memory: {part}" for part in PARTS)], [row(name, one) for name, one in results.items()]))


if __name__ == "__main__":
    main()
