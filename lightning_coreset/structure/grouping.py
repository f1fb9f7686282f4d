"""Classes of united labels, and the groups that are formed by those which may be removed."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from functools import cached_property

import torch
from torch import Tensor

from lightning_coreset.module_specs import COMMON_HEAD_COUNTS, can_be_set, module_spec, read_size
from lightning_coreset.structure.head_dimensions import HeadBlocks, within_heads
from lightning_coreset.structure.places import ClassPositions, Dim
from lightning_coreset.structure.propagation import Propagation
from lightning_coreset.structure.records import ChannelGroup, Count, Member, Path, Role, layer_of, one_each
from lightning_coreset.structure.union_find import FIXED, NO_TENSOR, ChannelUnionFind


class GroupBuilder:
    """The classes of labels once the whole network was followed, each known by its root.

    There are as many labels as all dimensions of all tensors are long together, so what concerns every label is done on
    whole tensors; only groups and their members are walked one by one.

    Args:
        engine: What has followed the network.
        union_find: Its union-find, or what that is condensed to.
        blocks: Where dimensions within attention heads may go, what is known of them.
    """

    def __init__(self, engine: Propagation, union_find: ChannelUnionFind, blocks: HeadBlocks | None = None) -> None:
        self.engine = engine
        self.union_find = union_find
        self.blocks = blocks
        self.roots = union_find.all_roots()
        self._reasons = union_find.reasons()  # by root
        self.group_of = self._partition()
        self._names: dict[int, str] = {}
        self._sizes: dict[int, int] = {}
        layers = {name: contraction.layer for name, contraction in engine.records.layers.items()}
        paths = dict.fromkeys(engine.records.paths)  # each once, in the order of execution
        self.paths = [Path(layers[producer], steps, layers[consumer]) for producer, steps, consumer in paths]

    def roots_of(self, where: Dim) -> Tensor:
        """The roots along one dimension of a tensor, int64 ``(size,)``."""
        own = self.union_find.ranges[where]
        return self.roots[own.start : own.stop]

    def groups(self) -> list[ChannelGroup]:
        """Classes that the same layers make are one group, in the order in which the first of these layers ran."""
        order = self.engine.records.producers
        count = int(self.group_of.max()) + 1
        if not count:
            return []
        places = ClassPositions(self.union_find.ranges, self.roots, self.group_of)
        dims = [[where for where in own if not where[0].startswith(NO_TENSOR)] for own in places.dims(count)]
        makers = [min((order[where], where) for where in own if where in order) for own in dims]
        ranked = sorted(range(count), key=lambda number: (makers[number][0], number))
        taken: dict[str, int] = defaultdict(int)
        class_of = torch.full_like(self.group_of, -1)
        sizes = [0] * count
        for number in ranked:
            first = makers[number][1]
            name = self._name(first)
            taken[name] += 1
            self._names[number] = f"{name}#{taken[name]}" if taken[name] > 1 else name
            # Classes are numbered as they lie in the first producer.
            lying = self.roots_of(first)
            own = _each_once(lying[self.group_of[lying] == number])
            class_of[own] = torch.arange(len(own), dtype=class_of.dtype)
            sizes[number] = len(own)
        places.number(class_of)
        self._sizes = dict(enumerate(sizes))
        return [self._group(number, sizes[number], dims[number], places) for number in ranked]

    def of_one_width(self) -> list[tuple[str, str, list[str], str]]:
        """Modules, attributes, and the names of the groups whose channels these attributes count; ``""`` for none.

        Attributes that count channels of the same groups are told as one. The last is why those stay that are in no
        group, or are only a part of one; empty if there are none.
        """
        found: list[tuple[str, str, set[int]]] = []
        for (module, attribute), parts in self.engine.as_many.items():
            if module in self._copied_modules:
                continue
            numbers = {number for labels in parts.values() for number in self._numbers(labels)}
            for other in [one for one in found if one[2] & numbers - {-1}]:
                found.remove(other)
                numbers |= other[2]
            found.append((module, attribute, numbers))
        return [
            (
                module,
                attribute,
                [self._names[number] if number >= 0 else "" for number in sorted(numbers)],
                self._why_a_layer_stays(self.engine.as_many[module, attribute]),
            )
            for module, attribute, numbers in found
        ]

    def _why_a_layer_stays(self, parts: Mapping[str, Tensor]) -> str:
        """Why channels of one of these weights are in no group; empty if all are."""
        staying = (name for name, labels in parts.items() if -1 in self._numbers(labels))
        return next((self._why((name, 0)) for name in staying), "")

    def product_macs(self) -> dict[tuple[str, ...], float]:
        """What products without a weight cost, by the names of the groups that this goes with in proportion."""
        found: dict[tuple[str, ...], float] = defaultdict(float)
        for axes, macs in self.engine.records.products:
            parts: dict[tuple[str, ...], float] = {(): float(macs)}
            for labels in (axis.labels for axis in axes):
                group = self.group_of[self.roots[labels]].flatten()
                shares = zip(*(part.tolist() for part in group.unique(return_counts=True)), strict=True)
                names = [
                    ((self._names[number],) if number >= 0 else (), count / len(group)) for number, count in shares
                ]
                parts = {(*before, *name): cost * share for before, cost in parts.items() for name, share in names}
            for name, cost in parts.items():
                if name:
                    found[name] += cost
        return dict(found)

    def _partition(self) -> Tensor:
        """The group of every root, numbered by their lowest roots, int32; -1 where there is none.

        Roots that are made by the same layers, and read by some, are a group, if there are several. Dimensions within
        heads are groups of their own, and so are the channels of one of several unequal pieces.
        """
        group_of = torch.full((len(self.roots),), -1, dtype=torch.int32)
        if not self.engine.records.producers or not self.engine.records.consumers:
            return group_of
        usable = torch.zeros(len(self.roots), dtype=torch.bool)
        usable[torch.cat([self.roots_of(where) for where in self.engine.records.consumers])] = True
        for labels in self.engine.records.multiplied:
            usable[self.roots[labels]] = True
        usable &= self._reasons < 0
        usable[FIXED] = False
        lying = [self.roots_of(where) for where in self.engine.records.producers]
        if self.engine.pieces:
            produced = torch.zeros_like(usable)
            produced[torch.cat(lying)] = True
            usable &= produced
            lying += [self.roots[labels] for labels in self.engine.pieces]
        made = torch.cat(lying)
        number = torch.arange(len(lying)).repeat_interleave(torch.tensor(list(map(len, lying))))
        chosen = usable[made]
        pairs = (made[chosen] * len(lying) + number[chosen]).unique()
        root, layer = pairs // len(lying), pairs % len(lying)
        root, counts = root.unique_consecutive(return_counts=True)
        part = _by_sequence(layer, counts)
        if self.blocks is not None:
            part = torch.stack([part, self.blocks.kind_of[root]], dim=1).unique(dim=0, return_inverse=True)[1]
        several = part.bincount()[part] > 1
        root, part = root[several], part[several]
        lowest = torch.full((int(part.max()) + 1 if len(part) else 0,), len(group_of))
        lowest.scatter_reduce_(0, part, root, "amin")
        group_of[root] = lowest.argsort().argsort()[part].int()
        return group_of

    def _name(self, producer: Dim) -> str:
        """The module's name where it makes channels with its ``weight``, else the parameter's."""
        made = self.engine.weight_norms.get(producer[0])
        name = producer[0] if made is None else made.weight
        module, _, parameter = name.rpartition(".")
        owner = self.engine.modules.get(module)
        # A recurrent layer has several weights that make the same units: "weight_ih_l0", "weight_hh_l0".
        several = owner is not None and any(own.startswith("weight_") for own in module_spec(owner).tensor_names)
        return module if module and (several or parameter == "weight") else name

    def _group(self, number: int, size: int, dims: list[Dim], places: ClassPositions) -> ChannelGroup:
        """The group of this number."""
        dims = [where for where in dims if where[0] not in self.engine.mirrored]
        lengths = {where: len(self.engine.union_find.ranges[where]) for where in sorted(dims, key=self._network_order)}
        condensed = (
            self.union_find is not self.engine.union_find
        )  # then all classes lie as the first two do: one after the other
        members = tuple(
            Member(
                *where, self._role(where), one_each(length) if condensed else places.index(number, where, size), length
            )
            for where, length in lengths.items()
        )
        within = None
        if self.blocks is not None and number in self._within_heads:
            ranges, layers = self.engine.union_find.ranges, self.engine.records.layers
            biases = {name: record.layer.bias for name, record in layers.items()}
            members, within = within_heads(members, ranges, self.blocks, self.engine.queries, biases)
        return ChannelGroup(
            self._names[number],
            members,
            self._paths(members),
            self._counts(number, members),
            number in self._normalized,
            tuple(norm for name, norm in self.engine.weight_norms.items() if name in {one.name for one in members}),
            within,
            tuple(copy for copy in self.engine.copies if any(member.name in copy.copy_of for member in members)),
            number in self._residual,
            self._beside(members),
            number in self._standardised,
            number in self._routed,
            self._multiples.get(number, 1),
        )

    def _beside(self, members: tuple[Member, ...]) -> tuple[str, ...]:
        """The weights beside whose products a branch begins with these channels."""
        beside = [
            self.engine.residual.beside.get(member.name, set()) for member in members if member.role == "producer"
        ]
        return tuple(sorted(set[str]().union(*beside))) if all(beside) else ()

    @cached_property
    def _within_heads(self) -> set[int]:
        """The groups whose channels are dimensions within attention heads."""
        return set() if self.blocks is None else set(self.group_of[self.blocks.kind_of > 0].tolist())

    def _counts(self, number: int, members: tuple[Member, ...]) -> tuple[Count, ...]:
        """Group counts of GroupNorms, and head counts of the modules that hold a head's weights."""
        named = {(module, name): count for module, name, counts in self._counted if (count := counts.get(number))}
        if number in self._with_heads:
            weights = [member.name for member in members if member.role != "channelwise"]
            # The weight's own module where it is a parameter of the attention itself, else that module's parent.
            holders = {prefix for name in weights for prefix in _prefixes(name, 2)}
            named |= {(holder, name): (0, 0) for holder in sorted(holders) for name in self._head_counts(holder)}
        size = len(members[0].index)
        counts = []
        for (module, name), (labels, length) in named.items():
            holder = self.engine.modules.get(module)
            if module in self._copied_modules or holder is None or not can_be_set(holder, name):
                continue
            value = read_size(holder, name)
            if isinstance(value, int) and value == length and labels % size == 0:
                counts.append(Count(module, name, labels // size))  # as wide as several groups together, maybe
            elif isinstance(value, int) and value and value % size == 0:
                counts.append(Count(module, name, value // size))
        return tuple(counts)

    @cached_property
    def _copied_modules(self) -> set[str]:
        """The modules of copies, which count what their originals do."""
        return {module for copy in self.engine.copies for module, _ in copy.modules}

    def _head_counts(self, path: str) -> tuple[str, ...]:
        """Names of the attributes by which a module may count its heads."""
        module = self.engine.modules.get(path)
        return COMMON_HEAD_COUNTS if module is None else (*COMMON_HEAD_COUNTS, *module_spec(module).head_counts)

    @cached_property
    def _with_heads(self) -> set[int]:
        """The groups whose classes are attention heads."""
        heads = [labels.reshape(-1) for labels in self.engine.heads]
        return self._numbers(torch.cat(heads)) if heads else set()

    @cached_property
    def _normalized(self) -> set[int]:
        """The groups whose channels are normalised over."""
        return self._numbers_of(self.engine.normalized)

    @cached_property
    def _standardised(self) -> set[int]:
        """Those of them over which weights are normalised that read the channels."""
        return self._numbers_of(self.engine.standardised)

    @cached_property
    def _residual(self) -> set[int]:
        """The groups whose channels residual additions couple."""
        if not self.engine.residual.labels:
            return set()
        labels = torch.cat(self.engine.residual.labels)
        condensed = self.union_find is not self.engine.union_find
        return self._numbers(self.engine.union_find.in_condensed(labels) if condensed else labels)

    @cached_property
    def _routed(self) -> set[int]:
        """The groups whose channels are written where an index says."""
        return self._numbers_of(self.engine.routed)

    @cached_property
    def _multiples(self) -> dict[int, int]:
        """How many classes of each group have to go at a time, where that is more than one."""
        found: dict[int, int] = {}
        for labels, multiple in self.engine.multiples:
            groups, counts = self.group_of[self.roots[labels]].unique(return_counts=True)
            for number, count in zip(groups.tolist(), counts.tolist(), strict=True):
                size = self._sizes.get(number, 0)
                if size:  # every class has as many positions there, or none may go
                    own = multiple // math.gcd(multiple, count // size) if count % size == 0 else size
                    found[number] = math.lcm(found.get(number, 1), own)
        return {number: multiple for number, multiple in found.items() if multiple > 1}

    @cached_property
    def _counted(self) -> list[tuple[str, str, dict[int, tuple[int, int]]]]:
        """Attributes of modules that count classes: how many labels are each group's own, and how many all are."""
        counted = []
        for labels, module, name in self.engine.counts:
            groups, counts = self.group_of[self.roots[labels]].unique(return_counts=True)
            own = {number: (count, len(labels)) for number, count in zip(groups.tolist(), counts.tolist(), strict=True)}
            counted.append((module, name, own))
        return counted

    def _numbers_of(self, labels: Sequence[Tensor]) -> set[int]:
        return self._numbers(torch.cat([one.flatten() for one in labels])) if labels else set()

    def _numbers(self, labels: Tensor) -> set[int]:
        return set(self.group_of[self.roots[labels]].unique().tolist())

    def _role(self, where: Dim) -> Role:
        if where in self.engine.records.consumers:
            return "consumer"
        return "producer" if where in self.engine.records.producers else "channelwise"

    def _network_order(self, where: Dim) -> tuple[int, int]:
        """The order of execution for layers, and of definition for what has none of its own."""
        rank = {"producer": 0, "channelwise": 1, "consumer": 2}[self._role(where)]
        order = self.engine.records.consumers.get(where, self.engine.records.producers.get(where, 0))
        return rank, order if rank != 1 else self.engine.union_find.ranges[where].start

    def _paths(self, members: tuple[Member, ...]) -> tuple[Path, ...]:
        made = {
            (member.name, member.dim)
            for member in members
            if (member.name, member.dim) in self.engine.records.producers
        }
        used = {(member.name, member.dim) for member in members if member.role == "consumer"}
        return tuple(
            path
            for path in self.paths
            if (path.producer.weight, path.producer.out_dim) in made
            and (path.consumer.weight, path.consumer.in_dim) in used
        )

    def refused(self, groups: tuple[ChannelGroup, ...]) -> dict[str, str]:
        """For every layer none of whose channels are in a group, why."""
        grouped = {(member.name, member.dim) for group in groups for member in group.members}
        names = {group.name for group in groups}  # of a tied embedding, whose vocabulary stays
        refused = {}
        for where in sorted(self.engine.records.producers, key=lambda dim: self.engine.records.producers[dim]):
            if where not in grouped and self._name(where) not in names:
                refused[self._name(where)] = self._why(where)
        told = {name for name, _ in grouped} | {name for name, _ in self.engine.records.producers}
        for name, owner in self.engine.owners.items():
            layer = layer_of(name)
            if not layer:  # the model is a layer itself, which goes by the name of its weight
                layer = "weight" if "weight" in self.engine.owners else name
            if (
                module_spec(self.engine.modules.get(layer, owner)).is_layer
                and name not in told
                and name not in self.engine.mirrored
                and (name, 0) in self.engine.union_find.ranges
            ):
                refused.setdefault(layer, self._why((name, 0)))
        return refused

    def _why(self, where: Dim) -> str:
        numbers = self._reasons[self.roots_of(where)]
        blocked = numbers[numbers >= 0]
        if len(blocked):
            return self.engine.last_layers.reason(where[0]) or self.union_find.reason(int(blocked[0]))
        if where in self.engine.records.producers:
            return "is consumed by no layer whose weights could be cut"
        return "is not run by the example inputs"


def _prefixes(name: str, count: int) -> list[str]:
    """The last ``count`` modules on the way to a parameter."""
    parts = [*layer_of(name).split(".")] if layer_of(name) else []
    return [".".join(parts[: len(parts) - back]) for back in range(min(count, len(parts) + 1))]


def _each_once(values: Tensor) -> Tensor:
    """The values in the order in which they first come."""
    if bool((values.diff() > 0).all()):
        return values
    return torch.tensor(list(dict.fromkeys(values.tolist())), dtype=values.dtype)


def _by_sequence(values: Tensor, counts: Tensor) -> Tensor:
    """Numbers that are the same where sequences are, (n,).

    Args:
        values: n sequences of non-negative numbers, one behind the other.
        counts: How long each is, at least 1, (n,).
    """
    first, width = counts.cumsum(0) - counts, int(values.max()) + 1 if len(values) else 0
    number, used = torch.zeros_like(counts), 1
    for position in range(int(counts.max()) if len(counts) else 0):
        longer = (counts > position).nonzero().squeeze(1)
        told = number[longer] * width + values[first[longer] + position]
        seen = torch.zeros(used * width, dtype=torch.int64).index_fill_(0, told, 1).cumsum(0)
        number[longer] = used - 1 + seen[told]
        used += int(seen[-1])
    return number
