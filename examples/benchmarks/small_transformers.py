"""Small transformers to train in minutes: a ViT for images, a language model for the library's docstrings."""

from __future__ import annotations

import ast
import math
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from images import Batches, Images, prepared
from torch import Generator, Tensor, nn
from torch.optim.lr_scheduler import OneCycleLR

CONTEXT = 64


@dataclass(frozen=True)
class Task:
    """A network, its data and its score.

    Attributes:
        name: What the tables call it, with its data.
        build: Makes the network.
        inputs: Example inputs by keyword.
        batches: Endless batches of inputs by keyword and targets.
        held_out: Batches of inputs by keyword and targets that training does not see.
        steps: Steps of training.
    """

    name: str
    build: Callable[[], nn.Module]
    inputs: dict[str, Tensor]
    batches: Callable[[Generator], Iterator[tuple[dict[str, Tensor], Tensor]]]
    held_out: Sequence[tuple[dict[str, Tensor], Tensor]]
    steps: int

    def score(self, model: nn.Module) -> float:
        """Accuracy in percent on the held-out data."""
        return self.scores(model)[0]

    @torch.no_grad()
    def scores(self, model: nn.Module) -> tuple[float, float]:
        """Accuracy in percent and cross entropy in nats on the held-out data."""
        right, loss, count = 0, 0.0, 0
        for inputs, targets in self.held_out:
            logits = model.eval()(**inputs).logits.flatten(0, -2)
            right += int((logits.argmax(1) == targets.flatten()).sum())
            loss += float(F.cross_entropy(logits, targets.flatten(), reduction="sum"))
            count += targets.numel()
        return 100 * right / count, loss / count


def train(
    task: Task, model: nn.Module, share: float = 1.0, lr: float = 2e-3, seed: int = 0, device: str = "cpu"
) -> None:
    """Train for a share of the steps, with AdamW and one cycle of the learning rate; the model moves to the device."""
    steps = max(round(share * task.steps), 2)
    model.to(device)
    optimizer = torch.optim.AdamW(model.parameters(), lr, weight_decay=0.01)
    schedule = OneCycleLR(optimizer, lr, total_steps=steps)
    model.train()
    for _, (inputs, targets) in zip(range(steps), task.batches(Generator().manual_seed(seed)), strict=False):
        optimizer.zero_grad()
        logits = model(**{name: tensor.to(device) for name, tensor in inputs.items()}).logits
        F.cross_entropy(logits.flatten(0, -2), targets.to(device).flatten()).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    model.eval()


def vit(path: Path, count: int, test_count: int, epochs: float, width: int = 96, layers: int = 4) -> Task:
    """A ViT on CIFAR-10, averaged down to 16 x 16, in patches of 4 x 4."""
    images = prepared(path, count, test_count, pixels=16)
    return image_transformer("CIFAR-10", images, epochs, width, layers, augment=True)


def image_transformer(
    data: str, images: Images, epochs: float, width: int = 96, layers: int = 4, *, augment: bool
) -> Task:
    """A ViT that sees images as 4 x 4 patches.

    Args:
        data: The name of the images.
        images: The images, square, of a size that 4 divides.
        epochs: Epochs of training.
        width: The width of the stream; twice of it inside the blocks.
        layers: The number of blocks.
        augment: Whether training images are shifted and mirrored.
    """
    from transformers import ViTConfig, ViTForImageClassification

    _, colours, pixels, _ = images.example.shape
    config = ViTConfig(
        hidden_size=width, num_hidden_layers=layers, num_attention_heads=4, intermediate_size=2 * width,
        image_size=pixels, patch_size=pixels // 4, num_channels=colours, num_labels=10, hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )  # fmt: skip

    def batches(generator: Generator) -> Iterator[tuple[dict[str, Tensor], Tensor]]:
        own = Batches(images.train, generator, augment=augment)
        while True:
            for x, y in own:
                yield {"pixel_values": x}, y

    count = len(images.train[1])
    return Task(
        f"ViT, {data} ({count} training images of {pixels} x {pixels}, {epochs:g} epochs)",
        lambda: ViTForImageClassification(config),
        {"pixel_values": images.test[0][:2]},
        batches,
        [({"pixel_values": x}, y) for x, y in zip(*(part.split(500) for part in images.test), strict=True)],
        round(epochs * math.ceil(count / 128)),
    )


def language_model(characters: int, steps: int, width: int = 64, layers: int = 3) -> Task:
    """A Llama on the characters of the standard library's docstrings."""
    from transformers import LlamaConfig, LlamaForCausalLM

    text = docstrings(characters)
    alphabet = sorted(set(text))
    number = {character: place for place, character in enumerate(alphabet)}
    codes = torch.tensor([number[character] for character in text])
    end = int(0.9 * len(codes))
    training, held_out = codes[:end], codes[end:]
    config = LlamaConfig(
        vocab_size=len(alphabet), hidden_size=width, num_hidden_layers=layers, num_attention_heads=4,
        num_key_value_heads=4, intermediate_size=2 * width, max_position_embeddings=CONTEXT, use_cache=False,
        bos_token_id=None, eos_token_id=None,
    )  # fmt: skip

    def batches(generator: Generator) -> Iterator[tuple[dict[str, Tensor], Tensor]]:
        while True:
            starts = torch.randint(0, len(training) - CONTEXT - 1, (32, 1), generator=generator)
            windows = training[starts + torch.arange(CONTEXT + 1)]
            yield {"input_ids": windows[:, :-1]}, windows[:, 1:]

    windows = min((len(held_out) - 1) // CONTEXT, 300)
    x, y = (held_out[i : i + windows * CONTEXT].view(windows, CONTEXT) for i in (0, 1))
    name = f"Llama, docstrings ({len(training):,} characters of {len(alphabet)} kinds, {steps} steps)"
    example: dict[str, Any] = {"input_ids": training[: 2 * CONTEXT].view(2, CONTEXT)}
    return Task(name, lambda: LlamaForCausalLM(config), example, batches, [({"input_ids": x}, y)], steps)


def docstrings(characters: int) -> str:
    """The docstrings of the modules of Python's standard library, in order of their names, printable ASCII only."""
    found, size = [], 0
    for path in sorted(Path(os.__file__).parent.glob("*.py")):
        nodes = ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        for node in nodes:
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
                text = ast.get_docstring(node) or ""
                found.append("".join(one for one in text if one == "\n" or " " <= one <= "~"))
                size += len(found[-1]) + 1
        if size >= characters:
            break
    return "\n".join(found)[:characters]
