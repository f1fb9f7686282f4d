"""Two tapes side by side as one: of the same input, with their difference, and their neurons paired.

What pruning kept differs little between the networks. Bounded apart, the two activations of such a pair would be
replaced by lines of their own; as a pair, the second is the first minus a small difference. Which neurons are paired is
a matter of how tight bounds are, never of whether they hold.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from lightning_coreset.agreement.tape import Affine, Function, Node, Pair, Pointwise, Tape


@dataclass(frozen=True, eq=False)
class Joined:
    """Both networks on one tape.

    Attributes:
        tape: The operations, those of the first network before those of the second.
        first: The node of the first network's output.
        second: That of the second network's.
    """

    tape: Tape
    first: int
    second: int

    @property
    def change(self) -> int:
        """The node of the first output minus the second."""
        return len(self.tape.nodes) - 1


def join(first: Tape, second: Tape, samples: Tensor) -> Joined:
    """One tape of both.

    Args:
        first: The tape of the original network.
        second: That of the pruned one, whose output has the same shape.
        samples: Inputs by which neurons are paired, ``(S, 1, ...)``.
    """
    partners = _partners(first, second, samples)
    nodes: list[Node] = list(first.nodes)
    places = {0: 0}
    for number, node in enumerate(second.nodes):
        if number == 0:
            continue  # the input of both
        moved = node.renumbered(places)
        if isinstance(moved, Pointwise) and number in partners:
            moved = replace(moved, pair=_write_pair(nodes, moved, *partners[number]))
        nodes.append(moved)
        places[number] = len(nodes) - 1
    outputs = first.outputs[0], places[second.outputs[0]]
    nodes.append(_difference(nodes, *outputs))
    return Joined(Tape(tuple(nodes), (*outputs, len(nodes) - 1), first.device), *outputs)


def _difference(nodes: list[Node], a: int, b: int) -> Affine:
    return Affine((a, b), torch.sub, torch.add, nodes[a].shape, "the difference of the networks")


def _write_pair(nodes: list[Node], node: Pointwise, partner: int, choose: Function) -> Pair:
    """Add what a pair consists of."""
    other = nodes[partner]
    for one in (other.inputs[0], partner):
        nodes.append(Affine((one,), choose, choose, node.shape, node.place))
    source, output = len(nodes) - 2, len(nodes) - 1
    nodes.append(_difference(nodes, source, node.inputs[0]))
    return Pair(source, output, len(nodes) - 1)


def _partners(first: Tape, second: Tape, samples: Tensor) -> dict[int, tuple[int, Function]]:
    """For activations of the second tape one of the first, with a function that puts its neurons in their order.

    The activations of both networks follow each other in the same order. Where channels are missing, those of the first
    network are taken whose arguments are nearest on the samples.
    """
    ours, theirs = (
        [(number, node) for number, node in enumerate(tape.nodes) if isinstance(node, Pointwise)]
        for tape in (first, second)
    )
    same = len(ours) == len(theirs) and all(
        (a.activation.name, a.activation.args) == (b.activation.name, b.activation.args)
        for (_, a), (_, b) in zip(ours, theirs, strict=True)
    )
    if not same:
        return {}
    values = first.run(samples, [a.inputs[0] for _, a in ours]), second.run(samples, [b.inputs[0] for _, b in theirs])
    found = {}
    for (partner, _), (number, _), *arguments in zip(ours, theirs, *values, strict=True):
        choose = _nearest(*arguments)
        if choose is not None:
            found[number] = partner, choose
    return found


def _nearest(first: Tensor, second: Tensor) -> Function | None:
    """What puts values of the first network in the shape of the second; ``None`` if not only channels are missing."""
    if first.shape == second.shape:
        return lambda x: x
    different = [
        dim for dim in range(first.dim()) if first.dim() == second.dim() and first.shape[dim] != second.shape[dim]
    ]
    if len(different) != 1:
        return None
    dim = different[0]
    distances = torch.cdist(second.movedim(dim, 0).flatten(1), first.movedim(dim, 0).flatten(1))
    index = distances.argmin(dim=1)
    return lambda x: x.index_select(dim - 1, index)
