"""The networks for measuring the time of an event, with random weights: ResNet-50, ViT-B/16 and GPT-2 (124M).

The transformers are built by the package ``transformers`` from its own configurations; nothing is downloaded.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

ExampleInputs = Tensor | dict[str, Tensor]


class Bottleneck(nn.Module):
    """Convolutions of 1 x 1, 3 x 3 and 1 x 1, and a shortcut with a projection if shapes change."""

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(inputs, width, 1, bias=False), nn.BatchNorm2d(width)
        self.conv2, self.bn2 = nn.Conv2d(width, width, 3, stride, 1, bias=False), nn.BatchNorm2d(width)
        self.conv3, self.bn3 = nn.Conv2d(width, 4 * width, 1, bias=False), nn.BatchNorm2d(4 * width)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = None
        if stride > 1 or inputs != 4 * width:
            projection = nn.Conv2d(inputs, 4 * width, 1, stride, bias=False)
            self.downsample = nn.Sequential(projection, nn.BatchNorm2d(4 * width))

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.relu(self.bn2(self.conv2(x)))
        return self.relu(self.bn3(self.conv3(x)) + shortcut)


class ResNet50(nn.Module):
    """He et al., arXiv 1512.03385, with the stride in the 3 x 3 convolutions."""

    def __init__(self, width: int = 64, counts: tuple[int, ...] = (3, 4, 6, 3)) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, width, 7, 2, 3, bias=False), nn.BatchNorm2d(width)
        self.relu, self.maxpool = nn.ReLU(inplace=True), nn.MaxPool2d(3, 2, 1)
        blocks, inputs = [], width
        for stage, count in enumerate(counts):
            for number in range(count):
                blocks.append(Bottleneck(inputs, width << stage, 2 if stage and number == 0 else 1))
                inputs = 4 * width << stage
        self.blocks = nn.Sequential(*blocks)
        self.avgpool, self.fc = nn.AdaptiveAvgPool2d(1), nn.Linear(inputs, 1000)

    def forward(self, x: Tensor) -> Tensor:
        x = self.blocks(self.maxpool(self.relu(self.bn1(self.conv1(x)))))
        return self.fc(self.avgpool(x).flatten(1))


def resnet50(tiny: bool) -> tuple[nn.Module, ExampleInputs]:
    """ResNet-50 and one image; the tiny version has one block per stage and an eighth of the channels."""
    size = 32 if tiny else 224
    return ResNet50(8, (1, 1, 1, 1)) if tiny else ResNet50(), torch.randn(1, 3, size, size)


def vit(tiny: bool) -> tuple[nn.Module, ExampleInputs]:
    """Dosovitskiy et al., arXiv 2010.11929; two images, since with a batch of 1 heads look like the batch."""
    from transformers import ViTConfig, ViTForImageClassification

    small = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
    size = 32 if tiny else 224
    config = ViTConfig(num_labels=1000, image_size=size, **(small if tiny else {}))
    return ViTForImageClassification(config), {"pixel_values": torch.randn(2, 3, size, size)}


def gpt2(tiny: bool, activation: str = "gelu_new") -> tuple[nn.Module, ExampleInputs]:
    """The smallest GPT-2 (Radford et al., 2019), and two sequences of 128 tokens."""
    from transformers import GPT2Config, GPT2LMHeadModel

    small = {"vocab_size": 60, "n_positions": 32, "n_embd": 32, "n_layer": 2, "n_head": 4}
    special = dict.fromkeys(("bos_token_id", "eos_token_id"))  # the default ids are outside the tiny vocabulary
    config = GPT2Config(use_cache=False, activation_function=activation, **(small | special if tiny else {}))
    shape = (2, config.n_positions if tiny else 128)
    return GPT2LMHeadModel(config), {"input_ids": torch.randint(0, config.vocab_size, shape)}


@dataclass(frozen=True)
class Work:
    """A network and which of its channels are pruned.

    Attributes:
        title: Its name in the table.
        build: Returns the network and its example inputs; takes whether to build the tiny version.
        include_residual: Whether residual channels are pruned.
        ignore: Patterns of layers whose channels stay.
        batch: Images or sequences of a training step that its memory is compared with.
    """

    title: str
    build: Callable[[bool], tuple[nn.Module, ExampleInputs]]
    include_residual: bool = False
    ignore: tuple[str, ...] = ()
    batch: int = 32


# GPT-2 computes its GELU with products and sums; "gelu_pytorch_tanh" is the same function as one operator of torch.
# GPT-2 keeps its heads: Torch-Pruning does not support the merged projection of queries, keys and values.
WORKS = {
    "resnet50": Work("ResNet-50, inside the blocks", resnet50),
    "resnet50-all": Work("ResNet-50, all channels", resnet50, include_residual=True),
    "vit": Work("ViT-B/16, FFN and heads", vit),
    "gpt2": Work("GPT-2 (124M), FFN", gpt2, ignore=("*.attn.*",)),
    "gpt2-tanh": Work(
        "GPT-2 (124M), FFN, GELU as one operation", partial(gpt2, activation="gelu_pytorch_tanh"), ignore=("*.attn.*",)
    ),
}


def output_of(found: object) -> Tensor:
    """The logits, also if a model of `transformers` wraps them."""
    return found if isinstance(found, Tensor) else found.logits  # type: ignore[attr-defined]


def run(model: nn.Module, inputs: ExampleInputs) -> Tensor:
    """The network's output."""
    return output_of(model(inputs) if isinstance(inputs, Tensor) else model(**inputs))
