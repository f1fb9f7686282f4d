"""What copies of parts of a network lose and change with their originals."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace

from torch import Tensor

from lightning_coreset.followers import hold_weights
from lightning_coreset.plan import ParameterChange
from lightning_coreset.structure import Copy


def changes_of_copies(
    changes: Iterable[ParameterChange], copies: Sequence[Copy], tensors: Mapping[str, Tensor]
) -> Iterator[ParameterChange]:
    """The changes of the copies' tensors.

    All lose the same positions. What holds weights also changes by as much as the original's; what holds other numbers,
    such as their Fisher information, is only sliced.

    Args:
        changes: The changes of the originals.
        copies: The copies.
        tensors: All parameters and buffers by name, only read.
    """
    by_name = {change.name: change for change in changes}
    for copy in copies:
        # Of a module all tensors are as its parameters; shadow buffers are of one kind each.
        follows = bool(copy.modules) or hold_weights((tensors[name], tensors[other]) for name, other in copy.tensors)
        for name, original in copy.tensors:
            change = by_name.get(original)
            if change is not None and (follows or change.kept):
                yield replace(
                    change,
                    name=name,
                    value=None,
                    factors={},
                    norm_of=None,
                    norm_dim=None,
                    follows=original if follows else None,
                )
