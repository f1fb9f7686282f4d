"""From the labels of one run to groups of channels."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from lightning_coreset.structure.axes import compress, unite_along
from lightning_coreset.structure.engine import Propagation
from lightning_coreset.structure.example import Example, ExampleInputs
from lightning_coreset.structure.groups import ChannelGroup, Count, Member, Path, Role
from lightning_coreset.structure.trace import trace

_Dim = tuple[str, int]

_LAYERS = (
    *(nn.Linear, nn.modules.conv._ConvNd, nn.Embedding, nn.EmbeddingBag, nn.Bilinear, nn.RNNBase, nn.RNNCellBase),
    nn.MultiheadAttention,
)
HEAD_COUNTS = (
    *("num_heads", "num_attention_heads", "n_heads", "n_head", "nhead", "heads", "num_key_value_heads"),
    *("num_kv_heads", "n_kv_heads", "all_head_size", "split_size", "inner_dim"),
)
"""Names under which attention modules keep how many heads they have, or how wide these are together."""


@dataclass(frozen=True)
class Structure:
    """What one run of a network tells about its channels.

    Attributes:
        groups: The channels that can be removed, in network order.
        refused: Layers whose channels cannot be, by qualified module name, each with the reason.
        macs: Multiply-accumulates of one sample by qualified name of the weight; ``""`` holds those of products
            between activations, as in attention.
    """

    groups: tuple[ChannelGroup, ...]
    refused: Mapping[str, str] = field(repr=False)
    macs: Mapping[str, int] = field(repr=False)

    def without(self, reasons: Mapping[str, str]) -> Structure:
        """The structure without some groups, by name, each refused for a reason."""
        groups = tuple(group for group in self.groups if group.name not in reasons)
        return replace(self, groups=groups, refused={**self.refused, **reasons})


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


def analyse(model: nn.Module, example: Example | ExampleInputs) -> Structure:
    """``find_groups``, with the reasons of what is refused and the multiply-accumulates of every layer."""
    example = example if isinstance(example, Example) else Example.of(example)
    engine = trace(model, example)
    _decide_grids(engine)
    _block_whole_dimensions(engine)
    classes = _Classes(engine)
    groups = tuple(classes.groups())
    macs = {name: count // max(example.batch_size, 1) for name, count in engine.macs.items()}
    return Structure(groups, classes.refused(groups), macs)


def _decide_grids(engine: Propagation) -> None:
    """A tensor whose labels vary along several dimensions stays rectangular: choose along which one indices may go.

    The one along which most indices remain removable; the others are united.
    """
    for grid in engine.grids:
        axis = compress(grid, engine.atoms)
        if len(axis.dims) < 2:
            continue
        blocked = torch.tensor([0, *engine.atoms.reasons()], dtype=torch.int64)
        free = ~torch.isin(engine.atoms.roots(axis.labels), blocked)

        def removable(dim: int, free: Tensor = free) -> int:
            others = [other for other in range(free.dim()) if other != dim]
            return int(free.movedim(dim, 0).reshape(free.shape[dim], -1).all(1).sum()) if others else 0

        chosen = max(axis.dims, key=removable)
        others = [dim for dim in axis.dims if dim != chosen]
        unite_along(axis, others, engine.atoms, "is viewed as a grid that must stay rectangular")


def _block_whole_dimensions(engine: Propagation) -> None:
    """A class that covers a whole dimension is never removed."""
    for (name, dim), atoms in engine.atoms.ranges.items():
        labels = torch.arange(atoms.start, atoms.stop)
        roots = engine.atoms.roots(labels)
        if bool((roots == roots[0]).all()):
            engine.atoms.block(labels[:1], f"couples all channels of {name} (dimension {dim})")


def _prefixes(name: str, count: int) -> list[str]:
    """The last ``count`` modules on the way to a parameter."""
    parts = name.split(".")[:-1]
    return [".".join(parts[: len(parts) - back]) for back in range(min(count, len(parts) + 1))]


class _Classes:
    """The classes of atoms that may be removed, by root."""

    def __init__(self, engine: Propagation) -> None:
        self.engine = engine
        self.reasons = engine.atoms.reasons()
        self.places: dict[int, list[tuple[_Dim, int]]] = defaultdict(list)
        self.root_of: dict[_Dim, list[int]] = {}
        for where, atoms in engine.atoms.ranges.items():
            roots = engine.atoms.roots(torch.arange(atoms.start, atoms.stop)).tolist()
            self.root_of[where] = roots
            for position, root in enumerate(roots):
                if root not in self.reasons:
                    self.places[root].append((where, position))

    def groups(self) -> list[ChannelGroup]:
        """Classes made by the same layers are one group."""
        by_producers: dict[frozenset[_Dim], list[int]] = defaultdict(list)
        for root, places in self.places.items():
            dims = {where for where, _ in places}
            producers = dims & self.engine.producers.keys()
            if producers and dims & self.engine.consumers.keys():
                by_producers[frozenset(producers)].append(root)
        order = self.engine.producers
        ranked = sorted(by_producers.items(), key=lambda item: (min(order[dim] for dim in item[0]), min(item[1])))
        groups, taken = [], defaultdict(int)
        for producers, roots in ranked:
            if len(roots) < 2:
                continue
            first = min(producers, key=lambda dim: (order[dim], dim))
            name = self._name(first)
            taken[name] += 1
            groups.append(self._group(f"{name}#{taken[name]}" if taken[name] > 1 else name, first, roots))
        return groups

    def _name(self, producer: _Dim) -> str:
        """The module's name where it makes channels with its ``weight``, else the parameter's."""
        module, _, parameter = producer[0].rpartition(".")
        return module if module and parameter == "weight" else producer[0]

    def _group(self, name: str, first: _Dim, roots: list[int]) -> ChannelGroup:
        position = {root: position for root in roots for where, position in self.places[root][::-1] if where == first}
        roots = sorted(roots, key=lambda root: position[root])
        number = {root: index for index, root in enumerate(roots)}
        index: dict[_Dim, list[list[int]]] = defaultdict(lambda: [[] for _ in roots])
        for root in roots:
            for where, place in self.places[root]:
                index[where][number[root]].append(place)
        members = tuple(
            Member(*where, self._role(where), tuple(map(tuple, index[where])), len(self.root_of[where]))
            for where in sorted(index, key=self._network_order)
        )
        return ChannelGroup(name, members, self._paths(members), self._counts(members, set(roots)))

    def _counts(self, members: tuple[Member, ...], roots: set[int]) -> tuple[Count, ...]:
        """Group counts of GroupNorms, and head counts of the modules that hold a head's weights."""
        named = [(module, name) for labels, module, name in self.engine.counts if self._meets(labels, roots)]
        if any(self._meets(labels, roots) for labels in self.engine.heads):
            weights = [member.name for member in members if member.role != "channelwise"]
            # The weight's own module where it is a parameter of the attention itself, else that module's parent.
            holders = {prefix for name in weights for prefix in _prefixes(name, 2)}
            named += [(holder, name) for holder in sorted(holders) for name in HEAD_COUNTS]
        counts = []
        for module, name in dict.fromkeys(named):
            value = vars(self.engine.modules.get(module, object)).get(name)
            if isinstance(value, int) and value and value % len(roots) == 0:
                counts.append(Count(module, name, value // len(roots)))
        return tuple(counts)

    def _meets(self, labels: Tensor, roots: set[int]) -> bool:
        return not roots.isdisjoint(self.engine.atoms.roots(labels).unique().tolist())

    def _role(self, where: _Dim) -> Role:
        if where in self.engine.consumers:
            return "consumer"
        return "producer" if where in self.engine.producers else "channelwise"

    def _network_order(self, where: _Dim) -> tuple[int, int]:
        """The order of execution for layers, and of definition for what has none of its own."""
        rank = {"producer": 0, "channelwise": 1, "consumer": 2}[self._role(where)]
        order = self.engine.consumers.get(where, self.engine.producers.get(where, 0))
        return rank, order if rank != 1 else self.engine.atoms.ranges[where].start

    def _paths(self, members: tuple[Member, ...]) -> tuple[Path, ...]:
        made = {(member.name, member.dim) for member in members if (member.name, member.dim) in self.engine.producers}
        used = {(member.name, member.dim) for member in members if member.role == "consumer"}
        layers = {name: contraction.layer for name, contraction in self.engine.layers.items()}
        paths = {}
        for producer, steps, consumer in self.engine.paths:
            path = Path(layers[producer], steps, layers[consumer])
            if (producer, path.producer.out_dim) in made and (consumer, path.consumer.in_dim) in used:
                paths[producer, steps, consumer] = path
        return tuple(paths.values())

    def refused(self, groups: tuple[ChannelGroup, ...]) -> dict[str, str]:
        """For every layer none of whose channels are in a group, why."""
        grouped = {(member.name, member.dim) for group in groups for member in group.members}
        refused = {}
        for where in sorted(self.engine.producers, key=lambda dim: self.engine.producers[dim]):
            if where not in grouped:
                refused[self._name(where)] = self._why(where)
        told = {name for name, _ in grouped} | {name for name, _ in self.engine.producers}
        for name, owner in self.engine.owners.items():
            layer = name.partition(".parametrizations.")[0] if ".parametrizations." in name else _module(name)
            if (
                isinstance(self.engine.modules.get(layer, owner), _LAYERS)
                and name not in told
                and (name, 0) in self.root_of
            ):
                refused.setdefault(layer, self._why((name, 0)))
        return refused

    def _why(self, where: _Dim) -> str:
        for root in self.root_of[where]:
            if root in self.reasons:
                return self.reasons[root]
        if where in self.engine.producers:
            return "is consumed by no layer whose weights could be cut"
        return "is not run by the example inputs"


def _module(name: str) -> str:
    return name.rpartition(".")[0]
