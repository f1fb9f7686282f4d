"""Groups of channels that belong together, as plain frozen records by qualified name."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache
from itertools import chain
from typing import Literal, get_args

import torch
from torch import Tensor

from lightning_coreset.structure.steps import Norm, Step
from lightning_coreset.structure.untrained import Copy

Role = Literal["producer", "consumer", "channelwise"]


def layer_of(name: str) -> str:
    """The module of a parameter by qualified names; of a parametrized one, the module that it is a part of."""
    return name.partition(".parametrizations.")[0] if ".parametrizations." in name else name.rpartition(".")[0]


@lru_cache(maxsize=64)
def one_each(size: int) -> tuple[tuple[int, ...], ...]:
    """The index of classes that each lie at their own position, as in nearly every member; one object for all."""
    return tuple((position,) for position in range(size))


@dataclass(frozen=True)
class Member:
    """One dimension of one parameter or buffer that carries the channels of a group.

    Attributes:
        name: Qualified name, as in ``model.named_parameters()`` or ``model.named_buffers()``; the first one if tied.
        dim: The dimension of the tensor along which the channels lie.
        role: ``"producer"`` if the tensor computes the channels (the rows of a weight), ``"consumer"`` if it contracts
            them (the columns of the next weight), ``"channelwise"`` if it holds one value per channel (a bias, a
            BatchNorm weight or running mean, a depthwise filter). A dimension with several uses, as in a tied
            embedding, is a consumer before a producer before channelwise.
        index: For every class of the group, the positions of the class along ``dim``. Empty where the tensor does not
            carry the class; several where one channel became several positions (a Flatten, a grouped convolution).
        length: Size of ``dim`` when the group was found, to recognise a group that is out of date; ``None`` if
            unknown.
    """

    name: str
    dim: int
    role: Role
    index: tuple[tuple[int, ...], ...]
    length: int | None = None

    def __repr__(self) -> str:
        return f"<Member: {self.name}, dimension {self.dim}, {self.role}, {self.total:,} positions>"

    @cached_property
    def one_each(self) -> bool:
        """Whether every class lies at the position of its own number."""
        plain = one_each(len(self.index))
        return self.index is plain or self.index == plain

    @cached_property
    def highest(self) -> int:
        """The last position of all; -1 if there is none."""
        return len(self.index) - 1 if self.one_each else max((max(own, default=-1) for own in self.index), default=-1)

    @cached_property
    def positions(self) -> Tensor:
        """The index as an int64 tensor (N, q) for N classes, q the most positions of a class, filled up with -1."""
        if self.one_each:
            return torch.arange(len(self.index))[:, None]
        width = max(map(len, self.index))
        filled = [(*places, *[-1] * (width - len(places))) for places in self.index]
        return torch.tensor(filled, dtype=torch.int64).reshape(len(self.index), width)

    @cached_property
    def total(self) -> int:
        """How many positions all classes have together."""
        return len(self.index) if self.one_each else sum(map(len, self.index))

    @cached_property
    def widths(self) -> Tensor:
        """How many positions every class has, int64 (N,)."""
        if self.one_each:
            return torch.ones(len(self.index), dtype=torch.int64)
        return (self.positions >= 0).sum(dim=1)

    def by_class(self, tensor: Tensor, dim: int = 0) -> Tensor:
        """One dimension of a tensor, laid out as this member's, as two ``(N, q)``: the positions of each class.

        Classes with fewer positions than others are filled up with zeros.
        """
        if self.one_each and len(self.index) == tensor.shape[dim]:
            return tensor.unsqueeze(dim + 1)
        index = self.positions
        shape = list(tensor.shape)
        shape[dim] = 1
        padded = torch.cat([tensor, tensor.new_zeros(shape)], dim=dim)
        return padded.index_select(dim, index.flatten() % padded.shape[dim]).unflatten(dim, index.shape)

    def at_positions(self, values: Tensor, length: int) -> Tensor:
        """The value of every class ``(N,)`` at its positions along a dimension, ones elsewhere, ``(length,)``."""
        if self.one_each and len(values) == length:
            return values
        # One number more at the end, where classes with fewer positions than others have their -1.
        spread = torch.ones(length + 1, dtype=torch.float64)
        spread[self.positions] = values[:, None]
        return spread[:-1]


@dataclass(frozen=True)
class Layer:
    """A weight that contracts channels and makes new ones: a Linear, a convolution, an own parameter in ``@``.

    Attributes:
        weight: Qualified name of the weight.
        bias: Qualified name of the bias, if there is one.
        in_dim: Dimension of the weight that is contracted; ``None`` for an embedding.
        out_dim: Dimension of the weight that makes the output's channels.
        groups: Convolution groups; 1 elsewhere.
        norm: The BatchNorm that directly follows, if one does.
    """

    weight: str
    bias: str | None
    in_dim: int | None
    out_dim: int
    groups: int = 1
    norm: Norm | None = None


@dataclass(frozen=True)
class Path:
    """What stands between a producer and one of its consumers."""

    producer: Layer
    steps: tuple[Step, ...]
    consumer: Layer


@dataclass(frozen=True)
class Count:
    """An integer that a module remembers and that shrinks with a group, such as a number of heads.

    Attributes:
        module: Qualified name of the module.
        name: Name of the attribute; of an element of a tuple or a list ``"sizes[1]"``; of a field of a config object
            ``"config.hidden_size"``.
        per_class: What one class adds to it.
    """

    module: str
    name: str
    per_class: int


@dataclass(frozen=True)
class WeightNorm:
    """A weight that is a magnitude times a direction over the direction's norm, as ``weight_norm`` makes it.

    When parts of the direction go, its norm changes, and the magnitude with it, so that what is left of the weight
    stays as it was.

    Attributes:
        weight: Qualified name of the weight, which is no parameter itself.
        magnitude: Qualified name of ``original0``, ``weight_g`` in the old style.
        direction: Qualified name of ``original1``, ``weight_v`` in the old style. It has the weight's shape, and stands
            for the weight wherever a parameter is named.
        dim: The dimension along which the magnitude lies; ``None`` for a single number.
    """

    weight: str
    magnitude: str
    direction: str
    dim: int | None


@dataclass(frozen=True)
class Pairing:
    """That each class of a group has one part in each of several blocks, and which parts make up a class is free.

    So it is with dimensions within attention heads: every head loses as many, each its own. And with channels of two
    layers that only have to be as many, such as where the code views one tensor by the width of another.

    Attributes:
        spans: For every member, the first of the blocks in which it carries the channels, and the one behind the last.
            In ``Member.index`` the positions of a class lie block by block.
        heads: Whether the blocks are attention heads; one block stands for all heads that have to lose the same
            dimensions.
        queries: Of queries and keys, what makes the queries: tensors, dimensions and positions.
        scaled_by_size: Whether the network divides the products of queries and keys by the root of how many dimensions
            they have. Where ``k`` of ``n`` classes stay, the queries are then multiplied by ``sqrt(k / n)``, so that
            the products are divided as before.
        merged: Where it is several of the groups that the analysis finds, their names.
    """

    spans: tuple[tuple[int, int], ...]
    heads: bool = False
    queries: tuple[tuple[str, int, tuple[int, ...]], ...] = ()
    scaled_by_size: bool = False
    merged: tuple[str, ...] = ()

    @property
    def blocks(self) -> int:
        """How many blocks there are."""
        return max(stop for _, stop in self.spans)


@dataclass(frozen=True)
class ChannelGroup:
    """Channels that live and die together, with every tensor dimension that carries them.

    A *class* is one removable unit: usually one channel; in a grouped convolution, one position in every conv group.

    Attributes:
        name: Qualified name of the module that first computes the channels (of the parameter, if a module owns several
            such); with ``#2``, ``#3`` ... behind it where one module makes several groups.
        members: Every dimension that must be sliced with the group.
        paths: What stands between the group's producers and its consumers, one path per pair; empty if unknown.
        counts: Attributes of modules that count the classes, beside the sizes of tensors.
        normalized: Whether the network normalises over these channels, as LayerNorm does. Where it does, the statistics
            are those of the channels that stay.
        weight_norms: How the weights are made that are no parameters themselves, by ``weight_norm``.
        pairing: Where classes are put together of parts, as of dimensions within attention heads, how; else ``None``.
        copies: Copies of parts of the network that lose the same channels. What they have is not among the members.
        residual: Whether a residual addition couples layers that make the channels with what these layers read.
        beside: Where the channels lie between two linear layers, as the rank of LoRA does, the weights of the layers to
            whose products theirs is added.
        standardised: Whether weights that read the channels are normalised over them.
        routed: Whether the channels are written where an index says, as experts write what they make of some rows.
        multiple: How many classes have to go at a time: an operator demands sizes that are multiples of a number.
    """

    name: str
    members: tuple[Member, ...]
    paths: tuple[Path, ...] = field(default=(), repr=False)
    counts: tuple[Count, ...] = ()
    normalized: bool = False
    weight_norms: tuple[WeightNorm, ...] = ()
    pairing: Pairing | None = None
    copies: tuple[Copy, ...] = field(default=(), repr=False)
    residual: bool = False
    beside: tuple[str, ...] = ()
    standardised: bool = False
    routed: bool = False
    multiple: int = 1

    def __repr__(self) -> str:
        roles = ", ".join(
            f"{len(members)} {role}{'s' * (len(members) > 1 and role != 'channelwise')}"
            for role in get_args(Role)
            if (members := self.by_role(role))
        )
        return f"<ChannelGroup: {self.name}, {self.size:,} classes, {roles}>"

    @cached_property
    def with_copies(self) -> ChannelGroup:
        """The group with all that copies have of it as members, numbers and weights of its own."""
        members, spans, queries = list(self.members), [], []
        own = self.pairing.spans if self.pairing is not None else [(0, 1)] * len(members)
        for copy in self.copies:
            for member, span in zip(self.members, own, strict=True):
                if member.name in copy.copy_of:
                    members.append(replace(member, name=copy.copy_of[member.name]))
                    spans.append(span)
            for name, dim, positions in self.pairing.queries if self.pairing is not None else ():
                if name in copy.copy_of:
                    queries.append((copy.copy_of[name], dim, positions))
        if self.pairing is None:
            pairing = None
        else:
            pairing = replace(
                self.pairing, spans=(*self.pairing.spans, *spans), queries=(*self.pairing.queries, *queries)
            )
        return replace(
            self,
            members=tuple(members),
            counts=(*self.counts, *(count for copy in self.copies for count in _counts_of(copy, self.counts))),
            weight_norms=(*self.weight_norms, *(norm for copy in self.copies for norm in _norms_of(copy, self))),
            pairing=pairing,
            copies=(),
        )

    @property
    def size(self) -> int:
        """Number of classes, the most that could be removed plus one."""
        return len(self.members[0].index)

    def with_counts(self, counts: Iterable[Count]) -> ChannelGroup:
        """The group with more numbers that change with it."""
        known = {(count.module, count.name) for count in self.counts}
        more = [count for count in counts if (count.module, count.name) not in known]
        return replace(self, counts=(*self.counts, *more)) if more else self

    def overlaps(self, other: ChannelGroup) -> bool:
        """Whether both have a position of some tensor."""
        own = {(member.name, member.dim): member for member in self.members}
        both = [(own[member.name, member.dim], member) for member in other.members if (member.name, member.dim) in own]
        return any({*chain(*one.index)} & {*chain(*two.index)} for one, two in both)

    def by_role(self, role: Role) -> tuple[Member, ...]:
        """The members of one role, in network order."""
        return tuple(member for member in self.members if member.role == role)

    def member_at(self, name: str | None, dim: int | None) -> Member | None:
        """The member on one dimension of a tensor, if the group lies there."""
        return next((member for member in self.members if member.name == name and member.dim == dim), None)


def _counts_of(copy: Copy, counts: Iterable[Count]) -> list[Count]:
    return [replace(count, module=copy.copy_of[count.module]) for count in counts if count.module in copy.copy_of]


def _norms_of(copy: Copy, group: ChannelGroup) -> list[WeightNorm]:
    return [
        WeightNorm(weight, copy.copy_of[norm.magnitude], copy.copy_of[norm.direction], norm.dim)
        for norm in group.weight_norms
        if norm.magnitude in copy.copy_of
        and norm.direction in copy.copy_of
        and (weight := copy.renamed(norm.weight)) is not None
    ]
