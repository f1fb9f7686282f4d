"""What a loss is made of, read from its autograd graph: which layers follow which, and what lies between them.

It tells a step that puts layers together in another way from those before, though it runs the same ones: crossed
branches, a layer that is left out, a term of the loss that sets in later.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from itertools import chain, combinations
from typing import Any, TypeAlias

from torch import Tensor, nn

Link: TypeAlias = tuple[str, int, int, int]
"""An operation, its own parameter, and one or two of those that its inputs come from, by number; -1 for none."""

_MOVES = frozenset(
    "TBackward0 TransposeBackward0 PermuteBackward0 ViewBackward0 UnsafeViewBackward0 ToCopyBackward0 "
    "ExpandBackward0 SliceBackward0 SelectBackward0 SqueezeBackward0 UnsqueezeBackward0 ReshapeAliasBackward0".split()
)
"""Operations behind which a parameter is still one, as the transposed weight of a Linear."""

_LAYOUT = {"ReshapeAliasBackward0": "ViewBackward0", "UnsafeViewBackward0": "ViewBackward0", "CloneBackward0": ""}
"""What ``reshape`` and ``contiguous`` do depends on strides, and so on the number of samples: a view, or a copy."""

_SCALES = frozenset({"DivBackward0", "MulBackward0", "ToCopyBackward0", "_DDPSinkBackward"})

_MOST_MOVES = 4
_MOST_SOURCES = 16
"""Of one operation; a sum over more layers says nothing by its pairs."""


class LossGraphs:
    """Remembers the links of all losses so far, and tells those that are new.

    A loop that runs twice as long, or an input of another size, makes no new links.
    """

    def __init__(self) -> None:
        self._numbers: dict[int, int] = {}
        self._names: list[str] = []
        self._known: set[Link] = set()

    def start(self, module: nn.Module) -> None:
        """Begin with a module's parameters, and no link."""
        named = dict(module.named_parameters())
        self._numbers, self._names = {id(one): number for number, one in enumerate(named.values())}, list(named)
        self._known = set()

    def forget(self) -> None:
        """Begin anew with no link."""
        self._known = set()

    def note(self, losses: Iterable[Tensor]) -> frozenset[Link]:
        """Remember the links of a step, and return those that are new."""
        new = frozenset(links_of(losses, self._numbers) - self._known)
        self._known |= new
        return new

    def of(self, losses: Iterable[Tensor]) -> set[Link]:
        """The links of a step."""
        return links_of(losses, self._numbers)

    def has_all(self, losses: Iterable[Tensor]) -> bool:
        """Whether all links of a step are known."""
        return self.of(losses) <= self._known

    def makers(self, links: Iterable[Link]) -> set[str]:
        """The parameters, by name, whose layers made what these links join."""
        return {self._names[number] for link in links for number in link[2:] if number >= 0}

    @property
    def is_empty(self) -> bool:
        """Whether no step was seen so far."""
        return not self._known


def links_of(losses: Iterable[Tensor], numbers: dict[int, int]) -> set[Link]:
    """The links between the parameters of a network in what losses are made of.

    Args:
        losses: Tensors with gradients.
        numbers: The parameters' numbers, by id.
    """
    order = _in_order([_without_scale(loss.grad_fn) for loss in losses if loss.grad_fn is not None])
    parameters: dict[Any, tuple[int, int]] = {}  # where a node is a parameter, moved so many times
    sources: dict[Any, tuple[int, ...]] = {}
    links: set[Link] = set()
    for node in order:
        children = [child for child, _ in node.next_functions if child is not None]
        moved = _parameter(node, children, parameters, numbers)
        if moved is not None:
            parameters[node] = moved
            continue
        own = min((parameters[child][0] for child in children if child in parameters), default=-1)
        below = _union([sources[child] for child in children if child in sources])
        sources[node] = below if own < 0 else (own,)
        links.update(_links(type(node).__name__, own, below))
    return links


def _without_scale(node: Any) -> Any:
    """What is below the factors that the Trainer and its strategy put on a loss."""
    while type(node).__name__ in _SCALES:
        children = [child for child, _ in node.next_functions if child is not None]
        if len(children) != 1:
            break
        node = children[0]
    return node


def _links(name: str, own: int, below: Collection[int]) -> Iterable[Link]:
    name = _LAYOUT.get(name, name)
    if not name:
        return ()
    if not below:
        return ((name, own, -1, -1),)
    singles = [(name, own, source, -1) for source in below]
    if own >= 0 or len(below) > _MOST_SOURCES:
        return singles
    return singles + [(name, own, one, other) for one, other in combinations(below, 2)]  # in their order, as in a cat


def _parameter(
    node: Any, children: list[Any], parameters: dict[Any, tuple[int, int]], numbers: dict[int, int]
) -> tuple[int, int] | None:
    if type(node).__name__ == "AccumulateGrad":
        number = numbers.get(id(node.variable))
        return None if number is None else (number, 0)
    if len(children) == 1 and len(node.next_functions) == 1 and type(node).__name__ in _MOVES:
        number, moves = parameters.get(children[0], (-1, _MOST_MOVES))
        return (number, moves + 1) if moves < _MOST_MOVES else None
    return None


def _union(parts: list[tuple[int, ...]]) -> tuple[int, ...]:
    return parts[0] if len(parts) == 1 else tuple(dict.fromkeys(chain(*parts)))


def _in_order(roots: list[Any]) -> list[Any]:
    """The nodes of a graph, each after those that it is made from."""
    order: list[Any] = []
    seen: set[Any] = set(roots)
    stack = [(root, iter(root.next_functions)) for root in dict.fromkeys(roots)]
    while stack:
        node, children = stack[-1]
        child = next((one for one, _ in children if one is not None and one not in seen), None)
        if child is None:
            order.append(node)
            stack.pop()
        else:
            seen.add(child)
            stack.append((child, iter(child.next_functions)))
    return order
