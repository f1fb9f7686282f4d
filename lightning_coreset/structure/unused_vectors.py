"""Vectors of layers that the network does not use: a bias, where the code only takes the weight."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import replace

from torch import nn

from lightning_coreset._compat import own_tensors
from lightning_coreset.module_specs import module_spec
from lightning_coreset.structure.records import ChannelGroup, Member, layer_of


def with_unused_vectors(modules: Mapping[str, nn.Module], group: ChannelGroup, used: Collection[str]) -> ChannelGroup:
    """The group with the unused vectors of the layers that make its channels, so that each of these has one width.

    Nothing says that these vectors belong to the channels but the layer that has them. Were they left as long as they
    are, no layer of that width could take them from a checkpoint.

    Args:
        modules: The modules of the network by qualified name.
        group: One of its groups.
        used: Names of the parameters and buffers that the network uses.
    """
    known = {member.name for member in group.members}
    makers = [member for member in group.by_role("producer") if member.length is not None]
    new = {found.name: found for maker in makers for found in _vectors_beside(modules, maker) if found.name not in used}
    more = tuple(member for name, member in new.items() if name not in known)
    if not more or group.pairing is not None:
        return group
    return replace(group, members=(*group.members, *more))


def _vectors_beside(modules: Mapping[str, nn.Module], maker: Member) -> Iterator[Member]:
    """The vectors of the layer of a weight that are as long as the weight has rows."""
    path = layer_of(maker.name)
    module = modules.get(path)
    spec = None if module is None else module_spec(module)
    if module is None or spec is None or spec.width is None:
        return
    tensors = own_tensors(module)
    if vars(module).get(spec.width) != maker.length or maker.name.rpartition(".")[2] not in spec.tensor_names:
        return
    for vector in spec.vectors:
        if vector in tensors and tensors[vector].shape == (maker.length,):
            yield Member(f"{path}.{vector}" if path else vector, 0, "channelwise", maker.index, maker.length)
