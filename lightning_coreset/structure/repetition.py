"""Operations of a second run that do just what they did in the first, and need not be followed once more."""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Callable, Hashable, Sequence
from typing import Any

from torch import Tensor

from lightning_coreset.structure.labels import TensorInfo
from lightning_coreset.structure.op_call import OpCall

_Known = Callable[[Tensor], TensorInfo | None]


class Repetition:
    """What became of operations, by all that a rule can look at.

    That is the operation, its plain arguments, the forms of its tensors and what is known of them. An operation on
    whole numbers or truth values of which nothing is known is no repetition, for they may say where things go; but for
    a few operations of which it is known that they do not.
    """

    def __init__(self) -> None:
        self._became: defaultdict[Hashable, deque[tuple[TensorInfo | None, ...]]] = defaultdict(deque)
        self._alive: list[TensorInfo] = []  # their identities stand in the keys

    def key(self, op: OpCall, known: _Known) -> Hashable | None:
        """All that a rule can look at; ``None`` if that is more than can be told.

        Args:
            op: The operation.
            known: What is known of a tensor, as it was before the operation.
        """
        told = tuple([_told(one, known) for one in (*op.args, *op.kwargs.items())])
        return None if _UNTOLD in told and op.name not in _BLIND else (op.function, told)

    def note(self, key: Hashable, operands: Sequence[TensorInfo | None], results: Sequence[TensorInfo | None]) -> None:
        """Keep what became of an operation: what was known of its operands, and what is known of its results."""
        self._became[key].append(tuple(results))
        self._alive += [carried for carried in operands if carried is not None]

    def became(self, key: Hashable) -> tuple[TensorInfo | None, ...] | None:
        """What became of the results when the same was done before; ``None`` if it was done fewer times.

        Several times the same, as three layers reading one tensor, came to things that are alike but not identical, on
        which the later keys depend: they are given back in their order.
        """
        earlier = self._became.get(key)
        return earlier.popleft() if earlier else None


_BLIND = frozenset({"embedding", "where", "masked_fill", "add", "sub", "mul"})
"""Operations whose rules look at no value."""
_UNTOLD = object()


def _told(value: Any, known: _Known) -> Hashable:
    """A value, or what a rule can see of a tensor."""
    if isinstance(value, Tensor):
        carried = known(value)
        if carried is None:
            return (value.shape, value.stride(), value.dtype) if value.is_floating_point() else _UNTOLD
        # Trails themselves are only recorded in the first run.
        axes = tuple(map(id, carried.channel_labels))
        return (
            axes,
            carried.constant,
            carried.direct,
            not carried.producer_paths,
            value.shape,
            value.stride(),
            value.dtype,
        )
    if isinstance(value, (list, tuple)):
        told = tuple([_told(one, known) for one in value])
        return _UNTOLD if _UNTOLD in told else told
    return value
