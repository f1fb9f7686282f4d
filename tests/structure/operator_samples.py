"""Samples of operators: calls whose tensors can be replaced by others, such as cut ones."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

import torch
from structure.operator_sizes import with_new_sizes
from torch import Tensor
from torch.utils._pytree import TreeSpec, tree_flatten, tree_leaves, tree_unflatten


@dataclass(frozen=True)
class Sample:
    """One call: a function, and its arguments taken apart."""

    operator: str
    function: Callable[..., Any]
    leaves: tuple[Any, ...]
    spec: TreeSpec
    inplace: bool = False

    @classmethod
    def of(cls, name: str, function: Callable[..., Any], args: Any, kwargs: Any, *, inplace: bool = False) -> Sample:
        """The sample of a call."""
        leaves, spec = tree_flatten((list(args), dict(kwargs)))
        leaves = [leaf.detach() if isinstance(leaf, Tensor) else leaf for leaf in leaves]
        return cls(name, function, tuple(leaves), spec, inplace)

    def in_another_layout(self) -> Sample:
        """The same numbers, in another order in memory."""
        leaves = [
            in_another_layout_of(leaf) if isinstance(leaf, Tensor) and leaf.dim() > 1 else leaf for leaf in self.leaves
        ]
        return replace(self, leaves=tuple(leaves))

    @property
    def tensors(self) -> list[Tensor]:
        """Its tensors, each once."""
        return list({id(leaf): leaf for leaf in self.leaves if isinstance(leaf, Tensor)}.values())

    def call(self, tensors: Sequence[Tensor], result: Sequence[int] | None = None) -> list[Tensor]:
        """The results for other tensors in the place of its own, and these themselves if it writes into them.

        Args:
            tensors: The others.
            result: The shape that the result should have, if sizes that the call names have to follow.
        """
        others = {id(own): other for own, other in zip(self.tensors, tensors, strict=True)}
        leaves = [others[id(leaf)] if isinstance(leaf, Tensor) else leaf for leaf in self.leaves]
        args, kwargs = tree_unflatten(leaves, self.spec)
        if result is not None:
            args = with_new_sizes(self.operator, args, tensors[0].shape, result)
        found = _tensors(self.function(*args, **kwargs))
        return [*found, *tensors] if self.inplace else found


def samples_of(op: Any, most: int | None = None) -> Iterator[Sample]:
    """The samples of an entry of torch's database, out of place and in place, as they are and in another layout.

    Args:
        op: The entry.
        most: How many samples of the database.
    """
    torch.manual_seed(0)
    # Not `op.sample_inputs`, which looks through all modules for the test that calls it, at every sample.
    for number, one in enumerate(islice(op.sample_inputs_func(op, "cpu", torch.float64, False), most)):
        sample = Sample.of(op.full_name, op, (one.input, *one.args), one.kwargs)
        if any(tensor.layout != torch.strided or tensor.dim() > 5 for tensor in sample.tensors):
            continue
        yield sample
        if number < 2:
            yield sample.in_another_layout()
        if op.inplace_variant is not None and not one.broadcasts_input and sample.tensors:
            function = op.inplace_variant
            yield Sample.of(op.full_name, function, (one.input, *one.args), one.kwargs, inplace=True)


def in_another_layout_of(tensor: Tensor) -> Tensor:
    """The same numbers, in another order in memory."""
    return tensor.transpose(0, -1).contiguous().transpose(0, -1)


def _tensors(tree: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]
