"""From the labels of a network's runs to groups of channels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal, TypeAlias

import torch
from torch import Tensor, nn

from lightning_coreset.structure.example import Example, ExampleInputs, Examples, as_examples
from lightning_coreset.structure.grouping import GroupBuilder
from lightning_coreset.structure.head_dimensions import HeadBlocks
from lightning_coreset.structure.labels import compress, unite_along
from lightning_coreset.structure.pairing import merged
from lightning_coreset.structure.propagation import Propagation
from lightning_coreset.structure.records import ChannelGroup
from lightning_coreset.structure.result import Structure
from lightning_coreset.structure.trace import OnFailure, raise_or_warn, trace
from lightning_coreset.structure.union_find import ChannelUnionFind
from lightning_coreset.structure.untrained import NOTHING_UNTRAINED, Untrained
from lightning_coreset.structure.unused_vectors import with_unused_vectors

Heads: TypeAlias = Literal["whole", "within"]


def find_groups(model: nn.Module, example_inputs: ExampleInputs) -> list[ChannelGroup]:
    """Find the channels of a network that belong together.

    The network is run once in evaluation and once in training mode on the example inputs, without gradients, and left
    exactly as it was. What the engine does not understand is not in any group.

    Args:
        model: Any network.
        example_inputs: A tensor, a tuple of positional arguments or a dict of keyword arguments for ``model``; a small
            batch is enough.

    Returns:
        The groups in network order.

    Raises:
        ValueError: If ``example_inputs`` is of another type, or a parameter is not initialised yet.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from lightning_coreset.structure import find_groups
        >>> model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> (group,) = find_groups(model, torch.randn(1, 4))
        >>> group.name, group.size
        ('0', 8)
        >>> [(member.name, member.dim, member.role) for member in group.members]
        [('0.weight', 0, 'producer'), ('0.bias', 0, 'channelwise'), ('2.weight', 1, 'consumer')]
    """
    return list(analyse(model, example_inputs).groups)


def analyse(
    model: nn.Module,
    example: Examples | ExampleInputs,
    *,
    heads: Heads = "whole",
    unequal_pieces: bool = False,
    untrained: Untrained = NOTHING_UNTRAINED,
    on_failure: OnFailure = raise_or_warn,
) -> Structure:
    """``find_groups``, with the reasons of what is refused and the multiply-accumulates of every layer.

    Args:
        model: Any network.
        example: How it is run, or a list of several ways; multiply-accumulates of a layer are those of the first that
            runs it.
        heads: Whether whole attention heads may go, or dimensions ``"within"`` them.
        unequal_pieces: Whether channels of tensors that are cut into pieces of different sizes are in groups, too. The
            sizes of the pieces have to change with them, so such groups have to be tried.
        untrained: What of the model nothing trains. Copies lose the channels that their originals lose.
        on_failure: Told of every example that does not run in some of its modes, with what the network raised.
    """
    engine = trace(
        model,
        _read_examples(example),
        within_heads=heads == "within",
        unequal_pieces=unequal_pieces,
        copies=untrained.copies,
        on_failure=on_failure,
    )
    engine.records = engine.records.without(engine.mirrored, untrained.uncounted)
    blocks = HeadBlocks.of(engine.head_dimensions, engine.union_find) if engine.head_dimensions else None
    _decide_grids(engine)
    by_label = (
        *(engine.pieces, engine.heads, engine.counts, engine.normalized, engine.routed, engine.multiples),
        *(engine.records.products, engine.as_many),
    )
    looked_up = blocks is not None or any(by_label)
    union_find = engine.union_find if looked_up else engine.union_find.condensed()
    _block_whole_dimensions(union_find)
    classes = GroupBuilder(engine, union_find, blocks)
    modules = dict(model.named_modules())
    groups = tuple(with_unused_vectors(modules, group, engine.used) for group in classes.groups())
    samples = engine.records.samples
    macs = {name: count // samples for name, count in engine.records.macs.items()}
    products = {name: count / samples for name, count in classes.product_macs().items()}
    reason = "is frozen: nothing trains it (a rule of only that names it prunes it)"
    frozen = dict.fromkeys([group.name for group in groups if untrained.holds(group)], reason)
    used, followed, showed = frozenset(engine.used), tuple(engine.followed), tuple(engine.showed)
    refused = classes.refused(groups)
    uncounted = tuple(sorted(engine.records.uncounted))
    found = Structure(groups, refused, macs, products, untrained, used, followed, showed, engine.has_outputs, uncounted)
    return _of_one_width(found.without(frozen | _too_small(groups)), classes)


def _too_small(groups: Sequence[ChannelGroup]) -> dict[str, str]:
    """Groups that would have to lose more channels at a time than they have, with the reason."""
    reasons = {}
    for group in groups:
        if group.multiple >= group.size:
            reason = f"has {group.size} channels, of which only multiples of {group.multiple} could go at a time"
            reasons[group.name] = reason
    return reasons


def _of_one_width(structure: Structure, classes: GroupBuilder) -> Structure:
    """Groups of which a module has one width for all, as of the layers of an ``nn.LSTM``, as one group."""
    joined, reasons = [], {}
    for module, attribute, names, why in classes.of_one_width():
        groups = [group for group in structure.groups if group.name in names]
        whole = len(groups) == len(names) and len({group.size for group in groups}) == 1
        one = merged(groups) if whole and len(groups) > 1 else None
        if one is not None and one.pairing is not None:  # not found by a trial, so that it has no other names
            joined.append((replace(one, pairing=replace(one.pairing, merged=())), names))
        elif not whole:
            where = module or "the module"
            reason = f"has as many channels as another layer of {where}, by its {attribute}, which stay"
            if why:  # of the module, which is what has a name for people
                reason = f"{why} (all layers of {where} have one {attribute})"
            reasons |= dict.fromkeys([group.name for group in groups], reason)
    return structure.with_merged(joined).without(reasons)


def _read_examples(example: Examples | ExampleInputs) -> tuple[Example, ...]:
    several = isinstance(example, list | tuple) and bool(example) and all(isinstance(one, Example) for one in example)
    return as_examples(example if several or isinstance(example, Example) else Example.of(example))  # type: ignore[arg-type]


def _decide_grids(engine: Propagation) -> None:
    """A tensor whose labels vary along several dimensions stays rectangular: choose along which one indices may go.

    The one along which most indices remain removable; the others are united.
    """
    # A transposed grid has the same labels: what was decided for one was decided for the other.
    for grid in {_elements(grid.labels): grid for grid in engine.grids}.values():
        axis = compress(grid, engine.union_find)
        if len(axis.dims) < 2:
            continue
        free = ~engine.union_find.blocked()[engine.union_find.roots(axis.labels)]

        def removable(dim: int, free: Tensor = free) -> int:
            others = [other for other in range(free.dim()) if other != dim]
            return int(free.movedim(dim, 0).reshape(free.shape[dim], -1).all(1).sum()) if others else 0

        chosen = max(axis.dims, key=removable)
        others = [dim for dim in axis.dims if dim != chosen]
        unite_along(axis, others, engine.union_find, "is viewed as a grid that must stay rectangular")


def _elements(labels: Tensor) -> tuple[int, frozenset[tuple[int, int]]]:
    """Which elements of a memory a tensor shows, whatever the order of its dimensions."""
    layout = zip(labels.shape, labels.stride(), strict=True)
    return labels.data_ptr(), frozenset(dim for dim in layout if dim[0] > 1)


def _block_whole_dimensions(union_find: ChannelUnionFind) -> None:
    """A class that covers a whole dimension is never removed."""
    ranges, roots = union_find.ranges, union_find.all_roots()
    starts = torch.tensor([own.start for own in ranges.values()], dtype=torch.int64)
    alike = (roots[starts] == roots[starts + 1]).tolist()  # no dimension has fewer than two
    for ((name, dim), own), starts_alike in zip(ranges.items(), alike, strict=True):
        if starts_alike and bool((roots[own.start : own.stop] == roots[own.start]).all()):
            union_find.block(torch.tensor([own.start]), f"couples all channels of {name} (dimension {dim})")
