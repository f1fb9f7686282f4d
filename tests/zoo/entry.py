"""What the zoo knows of one network, and how a network gets into it."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Generator, Tensor, nn

Inputs = tuple[Any, ...] | dict[str, Any]
Expect = Literal["groups", "none", "any"]


@dataclass(frozen=True)
class Entry:
    """One network of the zoo.

    Attributes:
        name: Unique name, ``family/network``.
        build: Makes the network with random weights.
        inputs: Makes random inputs of always the same shapes: positional (a tuple) or by keyword (a dict).
        slow: Left out of the default run.
        expect: ``"groups"`` if at least one group must be found, ``"none"`` if none may be, ``"any"`` if to refuse is
            fine too. Whatever is found must be right.
        must: Names of groups that must be found.
        normalized: Names of groups that must be found, and be told to lie under a norm.
        never: Layers whose outputs may be in no group.
        hard: Patterns of names of groups that nobody can know to be impossible, as the forward pass names their width
            in numbers: they may fail when tried, so that a self-check catches them.
        train: The network acts otherwise in train mode (an auxiliary head): compare there as well.
        why: Why nothing can be pruned, or what is special, in a few words.
    """

    name: str
    build: Callable[[], nn.Module]
    inputs: Callable[[Generator], Inputs]
    slow: bool = False
    expect: Expect = "groups"
    must: tuple[str, ...] = ()
    normalized: tuple[str, ...] = ()
    never: tuple[str, ...] = ()
    hard: tuple[str, ...] = ()
    train: bool = False
    why: str = ""


ZOO: dict[str, Entry] = {}


def network(inputs: Callable[[Generator], Inputs], **facts: Any) -> Callable[[Callable[[], nn.Module]], Any]:
    """Puts the decorated class or function that makes a network into the zoo, under its own name."""

    def put(build: Callable[[], nn.Module]) -> Callable[[], nn.Module]:
        add(f"{build.__module__.rpartition('.')[2].partition('_')[0]}/{build.__name__}", build, inputs, **facts)
        return build

    return put


def add(name: str, build: Callable[[], nn.Module], inputs: Callable[[Generator], Inputs], **facts: Any) -> None:
    """Puts a network into the zoo."""
    assert name not in ZOO, f"two networks are called {name}"
    ZOO[name] = Entry(name, build, inputs, **facts)


class Net(nn.Module):
    """Parts by keyword (modules, parameters, buffers) and a forward function that is given the network first."""

    def __init__(self, forward: Callable[..., Any], **parts: nn.Module | Tensor) -> None:
        super().__init__()
        self.run = forward
        for name, part in parts.items():
            if isinstance(part, nn.Module | nn.Parameter):
                setattr(self, name, part)
            else:
                self.register_buffer(name, part)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.run(self, *args, **kwargs)


def mlp(*widths: int) -> nn.Sequential:
    """Linears with ReLUs between."""
    layers: list[nn.Module] = []
    for a, b in itertools.pairwise(widths):
        layers += [nn.Linear(a, b), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def floats(*shapes: tuple[int, ...]) -> Callable[[Generator], tuple[Tensor, ...]]:
    """Positional inputs, normally distributed."""
    return lambda generator: tuple(torch.randn(shape, generator=generator) for shape in shapes)


def image(channels: int = 3, size: int = 16) -> Callable[[Generator], tuple[Tensor, ...]]:
    """Two square images, positional."""
    return floats((2, channels, size, size))


def tokens(vocabulary: int = 50, length: int = 7) -> Callable[[Generator], tuple[Tensor, ...]]:
    """Two sequences of token numbers, positional."""
    return lambda generator: (torch.randint(0, vocabulary, (2, length), generator=generator),)


def keywords(**makers: Callable[[Generator], Any]) -> Callable[[Generator], dict[str, Any]]:
    """Inputs by keyword, each from its own maker; a maker's tuple of one tensor is that tensor."""

    def make(generator: Generator) -> dict[str, Any]:
        values = {name: maker(generator) for name, maker in makers.items()}
        return {name: value[0] if isinstance(value, tuple) else value for name, value in values.items()}

    return make


SMALL = image(3, 8)
ROWS = floats((4, 6))
