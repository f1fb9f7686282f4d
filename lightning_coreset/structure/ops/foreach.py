"""Operators on lists of tensors, ``_foreach_mul`` and the like: the elementwise operator on every tensor of the list.

Averages of a network's weights are mostly updated by them, in the training step of some.
"""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor

from lightning_coreset.structure.ops.elementwise import ELEMENTWISE, follow_elementwise
from lightning_coreset.structure.propagation import OpCall, Propagation, Rule
from lightning_coreset.structure.steps import Step

_PREFIX = "_foreach_"


def foreach(propagation: Propagation, call: OpCall) -> None:
    """The tensors at each place of all lists are the operands of one operation; single tensors are of each."""
    lists = [value for value in call.arguments.values() if isinstance(value, (list, tuple)) and _holds_tensors(value)]
    single = [value for value in call.arguments.values() if isinstance(value, Tensor)]
    for place, result in enumerate(call.results):
        operands = [*(own[place] for own in lists), *single]
        one = replace(call, args=tuple(operands), kwargs={}, tensors=operands, results=[result])
        follow_elementwise(propagation, one, Step(call.name.removeprefix(_PREFIX), call.numbers))


def _holds_tensors(values: list[object] | tuple[object, ...]) -> bool:
    return bool(values) and all(isinstance(one, Tensor) for one in values)


RULES: dict[str, Rule] = {f"{_PREFIX}{name}": foreach for name in (*ELEMENTWISE, "copy", "zero")}
