"""The interface of a pruning method: what it sees of a group of channels, and what it returns."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from typing import ClassVar

import torch
from torch import Tensor

from lightning_coreset import coreset
from lightning_coreset.layers import GroupView, consumer_sets, main_set
from lightning_coreset.methods.measures import Measures
from lightning_coreset.methods.selection import Selection


class Method(ABC):
    """Chooses which channels of a group stay, and the weights that make up for the others.

    The planner asks it group by group, bottom to top; it knows no method by its type. A subclass has to define
    :meth:`select`; the rest has defaults. Instances are not changed by planning, so that one can be used for many
    models: small frozen dataclasses of their options are best.

    Not a dataclass itself, because jsonargparse takes a class of nothing but dataclasses for a mere group of values and
    would not write its class into a LightningCLI configuration.

    Example:
        Keep the channels at even positions, as far as they go:

        >>> import torch
        >>> from torch import nn
        >>> from lightning_coreset import prune
        >>> from lightning_coreset.methods import Method, Selection
        >>> class EvenFirst(Method):
        ...     def select(self, group, size):
        ...         order = torch.arange(group.size)
        ...         return Selection(torch.cat([order[::2], order[1::2]])[:size].sort().values)
        >>> model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> plan = prune(model, torch.randn(1, 4), {"0": 0.5}, method=EvenFirst())
        >>> plan.groups[0].kept, plan.groups[0].method
        ((0, 2, 4, 6), 'evenfirst')
    """

    ranks_channels: ClassVar[bool] = False
    """Whether :meth:`scores` compares channels of different groups, as ``allocation="global"`` needs."""

    reads_full_width: ClassVar[bool] = False
    """Whether :meth:`select` needs layers with zeros where earlier groups lost channels, instead of narrower ones,
    because it carries what is known of every channel from layer to layer."""

    @property
    def chooses_sizes(self) -> bool:
        """Whether the method decides itself how many channels stay, so that no pruning ratio is solved for."""
        return False

    @property
    def measures(self) -> Measures | None:
        """What :meth:`prepare` has to be told of the network by running it; ``None`` for nothing."""
        return None

    @property
    def label(self) -> str:
        """The name under which plans report the method."""
        return type(self).__name__.lower()

    @abstractmethod
    def select(self, group: GroupView, size: int) -> Selection:
        """Choose the channels of one group that stay.

        Args:
            group: The group, with the network's tensors as the groups before left them.
            size: Channels to keep, all of them included. Fewer may stay where the rest contributes nothing. A method
                that chooses sizes itself gets the number of channels for a group that has to stay whole, else 1.

        Returns:
            The channels that stay and the weights that make up for the others.
        """

    def prepare(self, groups: Sequence[GroupView], sizes: Mapping[str, int]) -> None:  # noqa: B027 - most need nothing
        """Look at all groups of a plan before the first is chosen; results go into their ``state.prepared``.

        Args:
            groups: In network order, with the network's tensors as they are.
            sizes: How many channels each is to keep.
        """

    def scores(self, group: GroupView) -> Tensor:
        """How important each channel is, comparable between the groups of a network, ``(N,)``.

        Only asked of a method that :attr:`ranks_channels`.
        """
        raise NotImplementedError(f"{type(self).__name__} does not rank channels.")

    def error_curve(self, group: GroupView) -> Tensor:
        """The expected relative error of the next layer when 0, 1, ... N - 1 channels are gone, ``(N,)``.

        For ``allocation="error"``. By default that of the reconstruction, whatever chooses the channels.

        Raises:
            NoCoresetForm: If nothing is known of this group; it then shrinks at the pace of the others.
        """
        return expected_error_curve(group)

    def warnings(self, selections: Mapping[str, Selection]) -> Iterable[str]:
        """What to warn of once all groups were chosen.

        Args:
            selections: What was chosen, by group name.
        """
        return ()


def expected_error_curve(group: GroupView, ridge: float = 1e-3) -> Tensor:
    """The expected squared error of the next layer's outputs for every number of channels that could go.

    Relative to the outputs' variance: where the moments of a layer's input are not known, nor is the scale of its
    channels, and errors of different layers are comparable only relative to the signal.

    Args:
        group: The group.
        ridge: Regularisation, as a part of the mean diagonal of the moments.

    Returns:
        The relative error when 0, 1, ... N - 1 channels are gone, (N,).

    Raises:
        NoCoresetForm: If the group has no coreset form, or several channels make one class.
    """
    main = main_set(consumer_sets(group))
    curve = coreset.elimination_curve(main.moment, main.rows, ridge=ridge)
    variance = coreset.expected_error(main.covariance, main.rows)
    return curve / variance if variance > 0 else torch.zeros_like(curve)
