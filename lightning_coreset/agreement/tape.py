"""A network as a list of operations on its input: affine ones, and element-wise activations.

Shapes are those of one sample, whose batch has size one. Values of S samples carry another dimension in front.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import torch
from torch import Tensor

from lightning_coreset.coreset import Activation

Function = Callable[..., Tensor]


@dataclass(frozen=True, eq=False)
class Input:
    """The input itself, the first node of a tape.

    Attributes:
        shape: Of one sample.
        inputs: None.
    """

    shape: tuple[int, ...]
    inputs: tuple[int, ...] = ()

    def renumbered(self, places: Mapping[int, int]) -> Input:
        """The same node."""
        return self


@dataclass(frozen=True, eq=False)
class Affine:
    r"""A map :math:`x \mapsto L x + c` of one value or several.

    Attributes:
        inputs: Numbers of the nodes that it reads.
        function: Computes it.
        magnitude: Computes :math:`|L| m + |c|` of values that are not negative, or more.
        shape: Of the result.
        place: The operator and the module that called it, for messages.
        largest_of: Two nodes of which the result is the elementwise maximum, if that is known.
    """

    inputs: tuple[int, ...]
    function: Function
    magnitude: Function
    shape: tuple[int, ...]
    place: str
    largest_of: tuple[int, int] | None = None

    def renumbered(self, places: Mapping[int, int]) -> Affine:
        """The node with other numbers for those that it reads."""
        largest = self.largest_of and (places[self.largest_of[0]], places[self.largest_of[1]])
        return replace(self, inputs=tuple(places[one] for one in self.inputs), largest_of=largest)


@dataclass(frozen=True, eq=False)
class Pair:
    """What a pointwise node of the second network has beside it: the neurons of the first that it resembles.

    Attributes:
        source: The node of their pre-activations, in the order of this node's neurons.
        output: The node of their activations.
        difference: The node of their pre-activations minus the ones of this node.
    """

    source: int
    output: int
    difference: int


@dataclass(frozen=True, eq=False)
class Pointwise:
    """An activation.

    Attributes:
        inputs: The number of the node that it reads.
        activation: The function.
        shape: Of the result.
        place: As for ``Affine``.
        pair: Its partner in the first network, if it has one.
    """

    inputs: tuple[int, ...]
    activation: Activation
    shape: tuple[int, ...]
    place: str
    pair: Pair | None = None

    def renumbered(self, places: Mapping[int, int]) -> Pointwise:
        """The node, without its partner, with another number for the one that it reads."""
        return replace(self, inputs=(places[self.inputs[0]],), pair=None)


Node = Input | Affine | Pointwise


@dataclass(frozen=True, eq=False)
class Tape:
    """Operations in an order in which they can be run.

    Attributes:
        nodes: Node 0 is the input; every other reads nodes before it.
        outputs: Numbers of the nodes that are results.
        device: Where the tensors are.
    """

    nodes: tuple[Node, ...]
    outputs: tuple[int, ...]
    device: torch.device
    _pullbacks: dict[int, Function] = field(default_factory=dict, repr=False)
    _constants: dict[int, Tensor] = field(default_factory=dict, repr=False)

    @classmethod
    def of(cls, nodes: Sequence[Node], output: int, device: torch.device) -> Tape:
        """The nodes that an output needs."""
        needed = sorted(_needed(nodes, (output,)))
        places = {number: place for place, number in enumerate(needed)}
        kept = [nodes[number].renumbered(places) for number in needed]
        return cls(tuple(kept), (places[output],), device)

    def run(self, inputs: Tensor, results: Sequence[int] | None = None) -> list[Tensor]:
        """Values of nodes (of the outputs by default) for samples ``(S, 1, ...)``, each ``(S, 1, ...)``."""
        wanted = self.outputs if results is None else tuple(results)
        values: dict[int, Tensor] = {0: inputs}
        for number in sorted(_needed(self.nodes, wanted)):
            node = self.nodes[number]
            if isinstance(node, Affine):
                values[number] = torch.vmap(node.function)(*(values[one] for one in node.inputs))
            elif isinstance(node, Pointwise):
                values[number] = node.activation.function(values[node.inputs[0]])
        return [values[number] for number in wanted]

    def loads(self, inputs: Tensor, number: int) -> Tensor:
        """The magnitudes of all that is added up to compute a node for samples ``(S, 1, ...)``: what rounding is of."""
        found: dict[int, Tensor] = {0: inputs.abs()}
        values = self.run(inputs, range(number + 1))
        for one, node in enumerate(self.nodes[: number + 1]):
            if isinstance(node, Affine):
                found[one] = torch.vmap(node.magnitude)(*(found[source] for source in node.inputs))
            elif isinstance(node, Pointwise):
                steepest = node.activation.lipschitz if math.isfinite(node.activation.lipschitz) else 1.0
                found[one] = steepest * found[node.inputs[0]] + values[one].abs()
        return found[number]

    def pulled_back(self, number: int, rows: Tensor) -> Sequence[Tensor]:
        """Rows ``(S, K, ...)`` that multiply the result of an affine node as rows that multiply each of its inputs."""
        node = self.nodes[number]
        assert isinstance(node, Affine)
        if number not in self._pullbacks:
            self._pullbacks[number] = torch.func.vjp(node.function, *self._zeros(node))[1]
        parts = torch.vmap(self._pullbacks[number])(rows.flatten(0, 1))
        return [part.unflatten(0, rows.shape[:2]) for part in parts]

    def constant(self, number: int) -> Tensor:
        """What an affine node makes of zeros, in the shape of one sample."""
        if number not in self._constants:
            node = self.nodes[number]
            assert isinstance(node, Affine)
            self._constants[number] = node.function(*self._zeros(node))
        return self._constants[number]

    @cached_property
    def direct(self) -> frozenset[int]:
        """The nodes that are affine in the input."""
        found = {0}
        for number, node in enumerate(self.nodes):
            if isinstance(node, Affine) and found.issuperset(node.inputs):
                found.add(number)
        return frozenset(found)

    @cached_property
    def bounded(self) -> dict[int, list[Pointwise]]:
        """The nodes whose intervals lines are made from, each with the activations that they are for."""
        found: dict[int, list[Pointwise]] = {}
        for node in self.nodes:
            if isinstance(node, Pointwise):
                for one in (*node.inputs, *([node.pair.difference] if node.pair else [])):
                    found.setdefault(one, []).append(node)
        return found

    @cached_property
    def differences(self) -> frozenset[int]:
        """The nodes that are differences of paired pre-activations."""
        return frozenset(node.pair.difference for node in self.nodes if isinstance(node, Pointwise) and node.pair)

    @cached_property
    def rounding(self) -> float:
        """What rounding can do to a sum of products, relative to the sum of their magnitudes.

        No sum has more terms than a value has numbers; the factor leaves room for those of sums of sums.
        """
        terms = max(torch.Size(node.shape).numel() for node in self.nodes) + len(self.nodes)
        return 8 * terms * torch.finfo(torch.float64).eps

    def _zeros(self, node: Affine) -> list[Tensor]:
        return [torch.zeros(self.nodes[one].shape, dtype=torch.float64, device=self.device) for one in node.inputs]


def _needed(nodes: Sequence[Node], wanted: Sequence[int]) -> set[int]:
    """The nodes that some nodes are computed from, with these and the input."""
    needed = {0, *wanted}
    for number in range(max(needed), 0, -1):
        if number in needed:
            needed |= {*nodes[number].inputs}
    return needed
