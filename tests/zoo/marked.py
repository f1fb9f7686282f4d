"""Weights that are made of weights which read removed channels: what is standardised over these leaves them out.

A weight that reads removed channels is zero there, which is as good as gone in a product, but not in the mean or the
deviation of its columns. So a third version of such a weight is kept beside it, with no number (NaN) at these places,
and goes along through all that makes a weight of it. Statistics are taken over the places that have numbers, and where
the weight is used at last, it is zero at the others.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_unflatten

from .reductions import MARKED_RULES, differing, named_arguments

MAKING = frozenset(
    """
add sub rsub mul div neg pow sqrt rsqrt square abs reciprocal clamp clamp_min clone _to_copy _unsafe_view reshape
""".split()
)


class Marks:
    """The marked versions of weights, by storage, so that views of a weight are views of its marked version.

    Args:
        given: Weights, each with its marked version.
    """

    def __init__(self, given: Iterable[tuple[Tensor, Tensor]]) -> None:
        self._marked = {_key(a): (a.untyped_storage(), b.untyped_storage()) for a, b in given}
        self._given = set(self._marked)

    def has(self, tensor: Tensor) -> bool:
        return tensor.layout == torch.strided and _key(tensor) in self._marked

    def of(self, tensor: Any) -> Any:
        """The marked version of a tensor, or itself where nothing is marked."""
        if not isinstance(tensor, Tensor) or not self.has(tensor):
            return tensor
        made = torch.empty(0, dtype=tensor.dtype)
        return made.set_(
            self._marked[_key(tensor)][1], tensor.storage_offset(), tensor.shape, tensor.stride()
        )  # fmt: skip

    def used(self, arguments: Any, versions: Any) -> Any:
        """The arguments of an operation in some world, with zeros at the marked places of what is made of weights.

        Weights as they are have zeros there already, unless they are looked up.
        """
        originals, leaves = tree_flatten(arguments)[0], tree_flatten(versions)
        filled = [
            leaf.masked_fill(self.of(original).isnan(), 0)
            if isinstance(original, Tensor) and self.has(original) and _key(original) not in self._given
            else leaf
            for original, leaf in zip(originals, leaves[0], strict=True)
        ]
        return tree_unflatten(filled, leaves[1])

    def make(self, function: Any, arguments: Any, worlds: tuple[Any, Any]) -> list[Any] | None:
        """The results of an operation that makes a weight, in all worlds and marked; ``None`` if it does not."""
        name = function.overloadpacket.__name__
        flat, spec = tree_flatten(arguments)
        marked = tree_unflatten([self.of(leaf) for leaf in flat], spec)
        if name in MAKING:
            return [function(*args, **kwargs) for args, kwargs in (*worlds, marked)]
        if name not in MARKED_RULES or not self.has(arguments[0][0]):
            return None
        dims_of, rule = MARKED_RULES[name]
        found, (one, other) = [], worlds
        for args, kwargs in (one, other, marked):
            x, facts = named_arguments(function, args, kwargs)
            dims = [dim % x.dim() for dim in dims_of(x, facts)]
            found.append(rule(x, _kept(one[0][0], other[0][0], marked[0][0], dims), dims, facts))
        return found

    def put(self, made: Any, marked: Any) -> None:
        """Note the marked version of a result."""
        for one, other in zip(_tensors(made), _tensors(marked), strict=True):
            own = torch.empty_strided(one.shape, one.stride(), dtype=one.dtype).copy_(other)
            self._marked[_key(one)] = (one.untyped_storage(), own.untyped_storage())


def _kept(one: Tensor, other: Tensor, marked: Tensor, dims: list[int]) -> Tensor:
    """The places that a statistic takes: not the marked ones, nor those of rows that go, which differ.

    Where all that is not marked differs, the statistic is of a row that goes itself.
    """
    gone = marked.isnan()
    differs = differing(one, other) & ~gone
    partial = differs.any(dims, keepdim=True) & ~(differs | gone).all(dims, keepdim=True)
    return ~gone & ~(differs & partial)


def _key(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata


def _tensors(value: Any) -> list[Tensor]:
    return [leaf for leaf in tree_flatten(value)[0] if isinstance(leaf, Tensor)]
