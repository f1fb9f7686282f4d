"""Operators whose calls name sizes, as ``view(4, -1)`` does: a network computes these anew once channels are gone."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch

Size = Sequence[int]

OF_RESULT = frozenset("view view_copy reshape expand expand_copy broadcast_to sum_to_size".split())
AS_ANOTHER = frozenset("view_as reshape_as expand_as".split())
OF_LAYER_NORM = frozenset("native_layer_norm nn.functional.layer_norm nn.functional.rms_norm".split())


def with_new_sizes(name: str, args: list[Any], kept: Size, result: Size) -> list[Any]:
    """The arguments of an operator whose first one has been cut.

    Args:
        name: The operator.
        args: Its positional arguments.
        kept: The shape of the first one.
        result: The shape that the result should have.
    """
    if name in OF_RESULT:
        return [args[0], tuple(result)]
    if name in AS_ANOTHER:
        return [args[0], torch.empty(*result)]
    if name in OF_LAYER_NORM:
        return [args[0], tuple(kept[len(kept) - len(args[1]) :]), *args[2:]]
    if name == "unsafe_split_with_sizes":
        return [args[0], [result[args[2]]] * len(args[1]), args[2]]
    if name == "native_group_norm":
        return [*args[:3], kept[0], kept[1], math.prod(kept[2:]), *args[6:]]
    if name == "unflatten":
        sizes = list(result[args[1] % len(kept) :])[: len(args[2])]
        return [*args[:2], tuple(sizes), *args[3:]]
    return args
