"""Weights that are standardised over columns, some of which read removed channels.

In the reference of the self-check, what reads removed channels is zero. That is as good as gone in a product, but not
in the mean or the deviation of a weight's columns, and what has a mean subtracted is no zero any more. So each such
weight has a version in which removed columns are no numbers (NaN), which goes along through all that makes a weight of
it. Statistics are taken over the columns that are numbers, and where the weight is used, the others are zero.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor

from lightning_coreset._compat import tree_map, view_base
from lightning_coreset.structure import OpCall
from lightning_coreset.structure.op_call import tensors_among
from lightning_coreset.structure.views import same_view
from lightning_coreset.structure.weak_map import IdentityWeakMap
from lightning_coreset.verification.kept_only import reduced_dims

_MAKING = frozenset(
    """
add sub rsub mul div neg pow sqrt rsqrt square abs reciprocal clamp clamp_min clone _to_copy _unsafe_view
""".split()
)
"""What makes a weight of weights, element by element; views do, too."""


class StandardisedWeights:
    """What is known of weights that are standardised.

    Args:
        weights: Parameters, each with its version without numbers in removed columns, of the same layout.
    """

    def __init__(self, weights: Iterable[tuple[Tensor, Tensor]]) -> None:
        self._marked: IdentityWeakMap[Tensor] = IdentityWeakMap()
        self._given: IdentityWeakMap[Tensor] = IdentityWeakMap()
        self._known = False
        for weight, marked in weights:
            self._marked[weight] = self._given[weight] = marked
            self._known = True

    def marked(self, tensor: Tensor) -> Tensor | None:
        """The version of a tensor without numbers in removed columns; ``None`` if it has none."""
        if not self._known:
            return None
        known = self._marked.get(tensor)
        base = view_base(tensor) if known is None else None
        marked = self._marked.get(base) if base is not None else None
        return known if base is None or marked is None else same_view(tensor, base, marked)

    def columns(self, call: OpCall) -> Mapping[int, Tensor]:
        """Of a call that reduces such a weight, the positions that stay, by reduced dimension."""
        marked = self.marked(call.args[0]) if call.args and isinstance(call.args[0], Tensor) else None
        kept: dict[int, Tensor] = {}
        if marked is None:
            return kept
        for dim in reduced_dims(call):
            removed = marked.isnan().movedim(dim, 0).reshape(marked.shape[dim], -1).all(1)
            if removed.any() and not removed.all():
                kept[dim] = (~removed).nonzero().squeeze(1)
        return kept

    def makes_weights(self, call: OpCall) -> bool:
        """Whether a call makes such a weight of one, element by element."""
        return call.name in _MAKING and not call.written

    def note(self, call: OpCall, result: Any) -> None:
        """Note the marked version of what such a call has made."""
        args, kwargs = tree_map(self._version, (call.args, dict(call.kwargs)))
        self._marked[result] = call.function(*args, **kwargs)

    def note_like(self, source: Tensor, result: Tensor) -> None:
        """Note that a result has numbers where ``source`` has."""
        marked = self.marked(source)
        assert marked is not None
        self._marked[result] = result.masked_fill(marked.isnan(), float("nan"))

    def used(self, arguments: Any, originals: Any) -> Any:
        """The arguments of a call that uses such weights, with zeros in removed columns.

        Parameters as they are have zeros there already.

        Args:
            arguments: The arguments, or their twins.
            originals: The tensors among the arguments, in their order.
        """
        pairs = zip(tensors_among(arguments), originals, strict=True)
        marks = {id(one): self.marked(own) for one, own in pairs if not self._is_given(own)}

        def filled(leaf: Any) -> Any:
            marked = marks.get(id(leaf)) if isinstance(leaf, Tensor) else None
            return leaf if marked is None else leaf.masked_fill(marked.isnan(), 0.0)

        return tree_map(filled, arguments)

    def has(self, tensors: Iterable[Tensor]) -> bool:
        """Whether any of them is such a weight, or made of one."""
        return self._known and any(self.marked(tensor) is not None for tensor in tensors)

    def _is_given(self, tensor: Tensor) -> bool:
        base = view_base(tensor)
        return (tensor if base is None else base) in self._given

    def _version(self, leaf: Any) -> Any:
        marked = self.marked(leaf) if isinstance(leaf, Tensor) else None
        return leaf if marked is None else marked
