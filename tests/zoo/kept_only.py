"""What a correct removal computes: every reduction takes kept channels only, and consumers ignore the removed ones.

It is computed by the whole network, without cutting anything, and without any code of the package. See
``lockstep.py`` for how the removed channels are told from the kept ones inside the network.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Generator, Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from lightning_coreset.structure import ChannelGroup

from .entry import Inputs
from .inspection import tensors
from .lockstep import Lockstep, key
from .running import AllDouble, GroupedInDouble, as_double, call, duplicate, results

LOOK_UPS = {"embedding", "index_select", "index", "gather", "embedding_bag", "_embedding_bag"}
PRODUCTS = {
    "mm": (1, 0),
    "addmm": (None, 1, 0),
    "bmm": (2, 1),
    "baddbmm": (None, 2, 1),
    "mv": (1, 0),
    "_grouped_mm": (1, 1),
}

Removed = Sequence[tuple[ChannelGroup, Sequence[int]]]


def kept_only(
    model: nn.Module, removed: Removed, inputs: Inputs, train: bool = False
) -> tuple[list[Tensor], list[Tensor]]:
    """The outputs without the removed classes, in double precision, in two worlds with other removed channels.

    Both are the same if the channels reach no further than their consumers.

    Args:
        model: The network; it stays as it is.
        removed: Groups, each with the numbers of the classes that go.
        inputs: What the network is run on.
        train: Whether it runs in train mode.
    """
    model = duplicate(model).double().train(train)
    twins, versions, marks = [], {}, []
    for name, weight in weights(model, removed).items():
        tensor = tensors(model)[name].detach()
        tensor.copy_(weight.without(0, weight.read))
        twins.append((tensor, weight.without(1, weight.read)))
        if weight.read:
            versions[key(tensor)] = weight.version
            marks += [(tensor, weight.without(0, weight.read, math.nan))] if tensor.dim() > 1 else []
    worlds = Lockstep(twins, versions, marks)
    with torch.random.fork_rng(devices=[]), plain(), GroupedInDouble(), worlds, AllDouble():
        torch.manual_seed(0)
        found = results(call(model, as_double(inputs)))
    return found, [worlds.twin(one) for one in found]


@dataclass
class Weight:
    """A weight of some groups in both worlds, and at which places of its dimensions it reads removed channels."""

    worlds: tuple[Tensor, Tensor]
    read: dict[int, list[int]] = field(default_factory=dict)

    def without(self, world: int, dims: dict[int, list[int]], value: float = 0) -> Tensor:
        """A copy with zeros, or another value, at what these dimensions read of removed channels."""
        found = self.worlds[world].clone()
        for dim, places in dims.items():
            found.index_fill_(dim, torch.tensor(places), value)
        return found

    def version(self, function: Any, args: tuple[Any, ...], view: Tensor, world: int) -> Tensor | None:
        """What an operation gets of a weight that may both make and read channels, as a tied embedding does.

        Channels are read where a product sums over them, else made: nothing is zero there.
        """
        name = function.overloadpacket.__name__
        if name in LOOK_UPS:  # rows of a table; a matrix out of several is multiplied with later
            dims = {} if self.worlds[0].dim() < 3 else self.read
        elif name in PRODUCTS:
            summed = [at for at, one in zip(PRODUCTS[name], args, strict=False) if one is view and at is not None]
            shape, stride = self.worlds[0].shape, self.worlds[0].stride()
            dims = {
                dim: places
                for dim, places in self.read.items()
                if any(view.stride(at) == stride[dim] and view.shape[at] == shape[dim] for at in summed)
            }
        else:
            return None
        return self.without(world, dims).as_strided(view.shape, view.stride(), view.storage_offset())


def weights(model: nn.Module, removed: Removed) -> dict[str, Weight]:
    """All weights of the groups by name; in the second world, what belongs to removed classes has other numbers."""
    named, found = tensors(model), {}
    generator = Generator().manual_seed(4)
    for group, classes in removed:
        for member in group.members:
            places = [place for number in classes for place in member.index[number]]
            if not places:
                continue
            own = named[member.name].detach()
            weight = found.setdefault(member.name, Weight((own.clone(), own.clone())))
            if member.role == "consumer":
                weight.read.setdefault(member.dim, []).extend(places)
            if own.is_floating_point():
                disturb(weight.worlds[1], member.dim, torch.tensor(places), generator)
    return found


def disturb(tensor: Tensor, dim: int, places: Tensor, generator: Generator) -> None:
    """Other numbers at some places of a dimension, of the same sign where all are positive, as variances are."""
    old = tensor.index_select(dim, places)
    noise = torch.rand(old.shape, generator=generator).to(old.dtype)
    shift = 0.1 * noise if bool((tensor >= 0).all()) else 0.6 * noise - 0.3
    tensor.index_copy_(dim, places, old * (1.2 + noise) + shift)


@contextlib.contextmanager
def plain() -> Iterator[None]:
    """Attention step by step, in operations that the worlds know; no gradients."""
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
