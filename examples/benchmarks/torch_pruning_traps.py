"""Small networks that are hard to prune correctly, pruned by this package and by Torch-Pruning.

Each network has one construct that moves, combines or shares channels; most are networks of ``tests/zoo``, which test
this package. Both libraries remove 30% of the channels by the norm of their filters, except those of the output. The
check does not depend on either library. Random biases identify the removed channels. The pruned network must compute
what the original computes with the filters, biases and BatchNorms of these channels set to zero, to 1e-6 in double
precision, on two inputs. (Every activation here is zero at zero.) Two more tables: types of layers that one of the
libraries does not prune, and the state around a network in training (``torch_pruning_training.py``).

    pip install ".[test]" torch-pruning==1.6.1
    python examples/benchmarks/torch_pruning_traps.py

Under a minute. Prints three Markdown tables.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import torch_pruning as tp
from reporting import markdown, setting
from torch import Generator, Tensor, nn
from torch_pruning_training import in_training

sys.path.insert(0, str(Path(__file__).parents[2] / "tests"))

from zoo import ZOO, Entry
from zoo.entry import ROWS, SMALL, Net
from zoo.running import distance, duplicate, evaluate, randomise

from lightning_coreset import prune
from lightning_coreset.structure import analyse

RATIO = 0.3
TOLERANCE = 1e-6
Prune = Callable[..., None]


def twins() -> nn.Module:
    """Two Linears with one weight and separate biases."""
    parts = {"first": nn.Linear(6, 12), "a": nn.Linear(12, 20), "b": nn.Linear(12, 20), "last": nn.Linear(20, 3)}
    net = Net(lambda net, x: net.last(net.a(net.first(x)).relu() + net.b(net.first(-x)).relu()), **parts)
    net.b.weight = net.a.weight
    return net


def scaled() -> nn.Module:
    """A buffer scales every channel."""
    parts = {"first": nn.Conv2d(3, 12, 3), "scale": torch.rand(12, 1, 1) + 0.5, "last": nn.Conv2d(12, 5, 3)}
    return Net(lambda net, x: net.last(net.first(x) * net.scale), **parts)


TRAPS = {
    "Flatten, then Linear": ZOO["traps/flatten_plain"],
    "Flatten after a permute": ZOO["traps/flatten_after_permute"],
    "rows as tokens, channels times width as features": ZOO["traps/channels_by_width_rows"],
    "pixel shuffle": ZOO["traps/pixel_shuffle"],
    "pixel unshuffle": ZOO["traps/pixel_unshuffle"],
    "flip along channels": ZOO["traps/flip_channels"],
    "windows, as in Swin": ZOO["traps/windows"],
    "channel shuffle (ShuffleNet V2)": ZOO["classic/shufflenet_v2"],
    "concatenation of three": ZOO["traps/concat_of_three"],
    "concatenation with the input": ZOO["traps/concat_with_input"],
    "concatenation with constants": ZOO["traps/concat_with_constant"],
    "chunks in other order": ZOO["traps/chunk_and_swap"],
    "value and gate by chunk": ZOO["traps/chunk_gate"],
    "shortcut padded with zeros": ZOO["traps/padded_shortcut"],
    "residual blocks (ResNet)": ZOO["classic/resnet_option_b"],
    "dense connections (DenseNet)": ZOO["classic/densenet"],
    "grouped convolution": ZOO["traps/grouped"],
    "depthwise, three filters a channel": ZOO["traps/depthwise_multiplier"],
    "learned scale of each channel": ZOO["traps/layer_scale"],
    "buffer that scales each channel": Entry("scaled", scaled, SMALL),
    "one square layer called twice": ZOO["traps/shared_square_inside"],
    "two layers, one weight": Entry("twins", twins, ROWS),
    "decoder with the encoder's weight": ZOO["traps/tied_autoencoder"],
    "width written as a number": ZOO["traps/hard_view"],
}


def ours(model: nn.Module, inputs: Any, ratio: float = RATIO) -> None:
    """Prune with this package, with its self-check."""
    prune(model, inputs, ratio, unit="channels", method="magnitude", include_residual=True)


def theirs(model: nn.Module, inputs: Any, ratio: float = RATIO) -> None:
    """Prune with Torch-Pruning, which is told the layers that produce the output."""
    refused = analyse(model, inputs).refused
    outputs = [model.get_submodule(name) for name, why in refused.items() if why == "makes outputs of the network"]
    importance = tp.importance.GroupMagnitudeImportance(p=2)
    tp.pruner.BasePruner(model, inputs, importance, pruning_ratio=ratio, ignored_layers=outputs).step()


def verdict(entry: Entry, pruner: Prune) -> str:
    """The result for a network, as text."""
    torch.manual_seed(0)
    generator = Generator().manual_seed(1)
    first, second = entry.inputs(generator), entry.inputs(generator)
    model = entry.build()
    randomise(model, first, generator)
    model = model.double().eval()
    pruned = duplicate(model)
    try:
        pruner(pruned, tuple(x.double() if x.is_floating_point() else x for x in first))
    except Exception as error:
        return f"raises {type(error).__name__}" + ("" if _alike(model, pruned) else ", half pruned")
    removed = {name: gone for name, gone in _removed(model, pruned) if len(gone)}
    if not removed:
        return "left whole"
    try:
        found = [evaluate(pruned, inputs) for inputs in (first, second)]
    except Exception:
        return "**a network that does not run**"
    for name, gone in removed.items():
        _silence(model.get_submodule(name), gone)
    expected = [evaluate(model, inputs) for inputs in (first, second)]
    wrong = max(map(distance, found, expected)) > TOLERANCE
    return "**wrong, without an error**" if wrong else "right"


def _alike(model: nn.Module, other: nn.Module) -> bool:
    pairs = zip(model.parameters(), other.parameters(), strict=True)
    return all(torch.equal(one, two) for one, two in pairs)


def _removed(model: nn.Module, pruned: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """The removed output channels, identified by their biases, which are all different."""
    for name, module in model.named_modules():
        bias = module._parameters.get("bias")
        if bias is not None and bias.dim() == 1:
            yield name, (~torch.isin(bias.detach(), pruned.get_submodule(name).bias.detach())).nonzero().flatten()


@torch.no_grad()
def _silence(module: nn.Module, channels: Tensor) -> None:
    module.bias[channels] = 0
    module.weight[channels] = 0


# ---- types of layers that one of the two does not prune


def attention() -> nn.Module:
    """``nn.MultiheadAttention`` between two Linears."""
    parts = {"first": nn.Linear(6, 12), "middle": nn.MultiheadAttention(12, 3, batch_first=True)}
    return Net(lambda net, x: net.last(net.middle(*[net.first(x)] * 3)[0]), **parts, last=nn.Linear(12, 3))


def normalised() -> nn.Module:
    """LayerNorm over the channels."""
    return Net(
        lambda net, x: net.last(net.middle(net.first(x)).relu()),
        first=nn.Linear(6, 12), middle=nn.LayerNorm(12), last=nn.Linear(12, 3),
    )  # fmt: skip


def recurrent() -> nn.Module:
    """An LSTM between two Linears."""
    parts = {"first": nn.Linear(6, 12), "middle": nn.LSTM(12, 10, batch_first=True)}
    return Net(lambda net, x: net.last(net.middle(net.first(x))[0]), **parts, last=nn.Linear(10, 3))


KINDS = {"nn.MultiheadAttention": attention, "LayerNorm over the channels": normalised, "nn.LSTM": recurrent}


def becomes_smaller(build: Callable[[], nn.Module], pruner: Prune) -> str:
    """Whether the middle layer becomes smaller, and the network runs."""
    torch.manual_seed(0)
    model, x = build(), torch.randn(2, 5, 6)
    before = sum(parameter.numel() for parameter in model.middle.parameters())
    try:
        pruner(model, (x,), 0.5)  # a multiple of the number of heads
    except ValueError as error:  # ours, if nothing else in the network can be pruned
        return "left whole" if pruner is ours else f"raises {type(error).__name__}"
    except Exception as error:
        return f"raises {type(error).__name__}"
    model(x)
    return "smaller, and runs" if sum(p.numel() for p in model.middle.parameters()) < before else "left whole"


def main() -> None:
    """Print the tables."""
    warnings.simplefilter("ignore")  # both warn about what they do not prune
    rows = [(name, *(verdict(entry, pruner) for pruner in (ours, theirs))) for name, entry in TRAPS.items()]
    print(setting("torch-pruning"), end="\n\n")
    print(markdown(("network", "lightning_coreset", "Torch-Pruning"), rows), end="\n\n")
    kinds = [(name, *(becomes_smaller(build, pruner) for pruner in (ours, theirs))) for name, build in KINDS.items()]
    print(markdown(("layer", "lightning_coreset", "Torch-Pruning"), kinds), end="\n\n")
    print(markdown(("after pruning", "lightning_coreset", "Torch-Pruning"), in_training(ours, theirs)))


if __name__ == "__main__":
    main()
