"""Whether tensors are held by anybody else: the one place where references are counted.

The executor of a run keeps every tensor whose values were not computed. At the end of the run, those values are needed
only if something outlives it: a cache of the network, a list that a hook filled. Two counts show it.

1. *Users of the storage.* Views and a ``Parameter`` around a tensor are tensors of their own on the same storage. If
   more of them lie there than the executor keeps, somebody holds one that no operation made.
2. *References to the tensor object*, as ``sys.getrefcount`` gives them, less those of the executor and its tape. What
   remains for a tensor that nobody else holds is measured on tensors made for that purpose, for it depends on the
   version of Python and on whether the tensor has a view.

If either cannot be counted, the answer must be that tensors are held: computing them costs time and changes nothing.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from lightning_coreset._compat import can_defer, storage_number, storage_users, view_base

PLAIN_TYPES = (Tensor, nn.Parameter, nn.Buffer)
"""Classes of tensors without behaviour of their own."""


def storage_of(tensor: Tensor) -> int:
    """A number for the storage that a tensor lies on; 0 where it has none of its own."""
    return storage_number(tensor) if type(tensor) in PLAIN_TYPES and tensor.layout is torch.strided else 0


def address_of(tensor: Tensor) -> int:
    """Where the memory of a tensor begins, which its views share; 0 where it has none."""
    return tensor.untyped_storage().data_ptr() if type(tensor) in PLAIN_TYPES and tensor.layout is torch.strided else 0


def lies_alone(tensor: Tensor) -> bool:
    """Whether no other tensor shows the memory of this one; ``False`` where that cannot be told."""
    if not can_defer() or not storage_of(tensor) or view_base(tensor) is not None:
        return False
    return storage_users(storage_of(tensor)) - _unseen_users() == 1


def held_elsewhere(tensors: Sequence[Tensor], references: Iterable[Tensor]) -> bool:
    """Whether anything but the caller holds one of ``tensors``, or another tensor on its storage.

    Args:
        tensors: Tensors that the caller holds in one dict besides this sequence; so each has one reference there.
        references: All further references of the caller, a tensor once for each of them.
    """
    on_storage = Counter(map(storage_of, tensors))
    unseen = _unseen_users()
    if any(storage_users(storage) - unseen > count for storage, count in on_storage.items()):
        return True
    known = Counter(map(id, references))
    viewed = {id(base) for one in tensors if (base := view_base(one)) is not None}
    usual = _usual_references()
    return any(sys.getrefcount(one) - known[id(one)] > usual[id(one) in viewed] for one in tensors)


def _unseen_users() -> int:
    """What torch counts beside the tensors on a storage."""
    single = torch.empty(1)
    return storage_users(storage_of(single)) - 1


def _usual_references() -> tuple[int, int]:
    """What ``getrefcount`` gives for a tensor that only a dict and a list hold, and for one that has a view besides."""
    pending = {number: torch.empty(1) for number in range(2)}
    view = pending[1].view(1)
    own = list(pending.values())
    alone, viewed = (sys.getrefcount(one) for one in own)
    del view
    return alone, viewed
