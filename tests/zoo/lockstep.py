"""Two worlds in lockstep: every operation also runs on the numbers of a second world, kept beside each tensor.

The worlds differ in the weights that make removed channels, so that the channels can be told by their numbers. They
would be equal where a ReLU or a mask makes both zero: there the second world gets other numbers, which changes nothing
but removed channels. Reductions leave removed channels out (``reductions.py``).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map

from .marked import Marks
from .reductions import differing, kept_reduction

Version = Callable[[Any, tuple[Any, ...], Tensor, int], Tensor | None]  # operation, its arguments, one of them, world


class DivergedError(Exception):
    """The worlds have results of different shapes: removed channels decide about them."""


class Lockstep(TorchDispatchMode):
    """Runs the second world beside the first.

    Args:
        twins: The second world's weight for each weight of the first.
        versions: For a weight that both makes and reads channels, by storage: what an operation gets in each world.
        marks: Weights that read removed channels, each with its marked version (``marked.py``).
    """

    def __init__(
        self,
        twins: list[tuple[Tensor, Tensor]],
        versions: Mapping[int, Version] | None = None,
        marks: Iterable[tuple[Tensor, Tensor]] = (),
    ) -> None:
        super().__init__()
        self.marks = Marks(marks)
        # Both storages are kept, so that no address is used twice. What has no twin is the same in both worlds.
        self.twins = {key(a): (a.untyped_storage(), b.untyped_storage()) for a, b in twins}
        self.versions = dict(versions or {})

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        one = self._versions(function, (args, kwargs or {}), 0)
        leaves = [leaf for leaf in tree_flatten((args, kwargs))[0] if isinstance(leaf, Tensor) and strided(leaf)]
        if not any(key(leaf) in self.twins for leaf in leaves):
            return function(*one[0], **one[1])
        if function._schema.is_mutable:
            for leaf in leaves:
                if key(leaf) not in self.twins:
                    self.twins[key(leaf)] = (leaf.untyped_storage(), leaf.untyped_storage().clone())
        other = self._versions(function, (args, kwargs or {}), 1)
        if any(map(self.marks.has, leaves)) and not (function.is_view or function._schema.is_mutable):
            made = self.marks.make(function, (args, kwargs or {}), (one, other))
            if made is not None:
                self.marks.put(made[0], made[2])
                return self._register(*made[:2])
            one, other = (self.marks.used((args, kwargs or {}), world) for world in (one, other))
        found = kept_reduction(function, one, other)
        if found is None:
            found = self._run(function, one, other, {key(leaf) for leaf in leaves})
        return self._register(*found)

    def twin(self, tensor: Tensor) -> Tensor:
        """The second world's version of a tensor."""
        if not strided(tensor) or key(tensor) not in self.twins:
            return tensor
        made = torch.empty(0, dtype=tensor.dtype, device=tensor.device)
        made.set_(self.twins[key(tensor)][1], tensor.storage_offset(), tensor.shape, tensor.stride())
        made = made.conj() if tensor.is_conj() else made
        return made._neg_view() if tensor.is_neg() else made

    def _versions(self, function: Any, arguments: Any, world: int) -> Any:
        def version(value: Any) -> Any:
            if not isinstance(value, Tensor):
                return value
            if strided(value) and key(value) in self.versions:
                chosen = self.versions[key(value)](function, arguments[0], value, world)
                if chosen is not None:
                    return chosen
            return self.twin(value) if world else value

        return tree_map(version, arguments)

    def _run(self, function: Any, one: Any, other: Any, known: set[int]) -> tuple[Any, Any]:
        changed = _changed(one, other) if torch.Tag.pointwise in function.tags else None
        random = torch.get_rng_state() if torch.Tag.nondeterministic_seeded in function.tags else None
        a = function(*one[0], **one[1])
        if not function._schema.is_mutable and all(key(leaf) in known for leaf in _tensors(a)):
            return a, None  # a view: its twin is a view of the twin
        if random is not None:
            torch.set_rng_state(random)
        b = function(*other[0], **other[1])
        if changed is not None and isinstance(a, Tensor) and a.is_floating_point() and a.shape == changed.shape:
            equal = changed & ~differing(a, b)
            if bool(equal.any()):
                noise = 0.5 + torch.rand(a.shape, generator=torch.Generator().manual_seed(0)).to(a.dtype)
                b.copy_(torch.where(equal, a + noise, b))
        return a, b

    def _register(self, a: Any, b: Any) -> Any:
        for mine, theirs in zip(_tensors(a), _tensors(b), strict=True) if b is not None else ():
            if mine.shape != theirs.shape:
                raise DivergedError(f"shapes {tuple(mine.shape)} and {tuple(theirs.shape)}")
            if key(mine) in self.twins and key(theirs) == self.twins[key(mine)][1]._cdata:
                continue  # changed in place
            if mine.stride() != theirs.stride() or theirs.storage_offset() != mine.storage_offset():
                theirs = torch.empty(0, dtype=mine.dtype).set_(
                    mine.untyped_storage().clone(), mine.storage_offset(), mine.shape, mine.stride()
                ).copy_(theirs)  # fmt: skip
            self.twins[key(mine)] = (mine.untyped_storage(), theirs.untyped_storage())
        return a


def key(tensor: Tensor) -> int:
    """What all views of the same memory share."""
    return tensor.untyped_storage()._cdata


def strided(tensor: Tensor) -> bool:
    """Whether a tensor has memory of its own: sparse ones have not."""
    return tensor.layout == torch.strided and tensor.device.type == "cpu"


def _tensors(value: Any) -> list[Tensor]:
    return [leaf for leaf in tree_flatten(value)[0] if isinstance(leaf, Tensor) and strided(leaf)]


def _changed(one: Any, other: Any) -> Tensor | None:
    """Where the result of a pointwise operation comes from numbers that differ between the worlds."""
    found = None
    for a, b in zip(_tensors(one), _tensors(other), strict=True):
        if a is not b:
            own = differing(a, b)
            found = own if found is None else torch.broadcast_tensors(found, own)[0] | own
    return found
