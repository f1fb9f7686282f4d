"""One group of channels with the tensors that carry them: what a pruning method sees.

Shapes in this package: N channels of the group (a channel stands for a whole class where several go together); r rows
that compute one channel (1 but for grouped convolutions); d + 1 inputs of a producer with its bias last; O outputs of a
consumer; I its inputs; q input positions of one channel (several behind a Flatten); k kernel positions.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from lightning_coreset.layers.norms import class_norms, largest_class_norms
from lightning_coreset.layers.plan_state import PlanState
from lightning_coreset.structure import ChannelGroup, Member


class NoCoresetForm(Exception):  # noqa: N818 - a finding, not an error
    """A group is not a sum of one layer's activated channels; the message says why, in words for a user."""


@dataclass(frozen=True, eq=False)
class GroupView:
    """A group of channels while a plan is made.

    Attributes:
        group: The group: which dimensions of which tensors carry its channels.
        tensors: All parameters and buffers by qualified name, as the groups chosen before left them: removed columns
            are zero or gone, kept ones reweighted. Only to be read.
        state: What the groups of this plan share: the random generator, and what is known of layers' inputs.
    """

    group: ChannelGroup
    tensors: Mapping[str, Tensor]
    state: PlanState = field(default_factory=PlanState)

    @property
    def name(self) -> str:
        """The group's name, that of the module that first computes its channels."""
        return self.group.name

    @property
    def size(self) -> int:
        """Number of channels (classes of channels that go together), N."""
        return self.group.size

    @property
    def generator(self) -> torch.Generator:
        """The source of random numbers, on the CPU; the global generator is never used."""
        return self.state.generator

    def producer_norms(self, p: int = 2) -> Tensor:
        """The p-norm of the weights that compute each channel, added up over the layers, float64 (N,)."""
        # A tied weight computes and reads its channels, and counts as a consumer.
        makers = self.group.by_role("producer") or self.group.by_role("consumer")
        return torch.stack([class_norms(self.tensors[member.name], member, p) for member in makers]).sum(dim=0)

    def consumer_norms(self) -> Tensor:
        """The largest norm of the weights by which any output of any consumer reads each channel, float64 (N,).

        Ones for queries and keys, which are multiplied with each other.
        """
        consumers = self.group.by_role("consumer")
        if not consumers:
            return torch.ones(self.size, dtype=torch.float64)
        largest = [
            largest_class_norms(self.tensors[member.name], member, self._output_dims(member)) for member in consumers
        ]
        return torch.stack(largest).amax(dim=0)

    def _output_dims(self, member: Member) -> tuple[int, ...]:
        """The dimensions of a consumer of which every index is an output.

        In a stack of matrices, such as one for each expert, every matrix has outputs of its own.
        """
        layers = (path.consumer for path in self.group.paths)
        made = {layer.out_dim for layer in layers if (layer.weight, layer.in_dim) == (member.name, member.dim)}
        if len(made) == 1:
            (out,) = made
            return (*range(min(out, member.dim)), out)
        return (1 - member.dim,) if member.dim < 2 else tuple(range(member.dim))

    def total_consumer_norms(self) -> Tensor:
        """The norm of all weights together that read each channel, of all consumers, float64 (N,)."""
        consumers = self.group.by_role("consumer")
        if not consumers:
            return self.consumer_norms()
        return torch.stack([class_norms(self.tensors[member.name], member) for member in consumers]).norm(dim=0)

    def with_tensors(self, tensors: Mapping[str, Tensor]) -> GroupView:
        """The same group with other contents of its tensors."""
        return replace(self, tensors=tensors)
