"""Adapters of low rank beside frozen layers, as LoRA puts them there: their rank is left as it is."""

from __future__ import annotations

from torch import nn

from lightning_coreset.structure import ChannelGroup, Structure


def is_adapter_rank(model: nn.Module, structure: Structure, group: ChannelGroup) -> bool:
    """Whether channels are the rank of an adapter that is added to the products of frozen layers.

    An adapter is a few percent of the layer beside it: a ratio is meant for the layer, and with it for the rows and
    columns of the adapter. To take the same fraction of its rank would hardly make the network smaller, and cost what
    the adapter has learned.

    Args:
        model: The network.
        structure: What was found in it.
        group: One of its groups.
    """
    frozen = structure.untrained.frozen
    parameters = dict(model.named_parameters()) if group.beside else {}
    return bool(group.beside) and all(
        name in frozen or (name in parameters and not parameters[name].requires_grad) for name in group.beside
    )
