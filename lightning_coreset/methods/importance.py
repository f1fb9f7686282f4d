"""Channels by a score that the user defines."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor

from lightning_coreset.layers import GroupView
from lightning_coreset.methods.ranking import RankingMethod
from lightning_coreset.structure import ChannelGroup

Score: TypeAlias = Callable[[ChannelGroup, Mapping[str, Tensor]], Tensor]
"""Takes a group of channels and the network's tensors by name, and returns a score for each of the N channels."""


@dataclass(frozen=True)
class Importance(RankingMethod):
    """Keep the channels to which a function of yours gives the largest scores.

    Attributes:
        score: Called as ``score(group, tensors)`` for every group, bottom to top: with the
            :class:`~lightning_coreset.structure.ChannelGroup`, whose members say where in which tensor each channel
            lies, and all parameters and buffers by qualified name, as the groups before left them. Returns a floating
            tensor ``(group.size,)``, larger for channels that shall stay. With ``allocation="global"`` the scores of
            different groups are compared with each other.

    Raises:
        ValueError: If ``score`` cannot be called; in planning, if it returns anything but one finite number for each
            channel. The model is unchanged then.

    Example:
        Keep channels whose bias is large:

        >>> import torch
        >>> from torch import nn
        >>> from lightning_coreset import prune
        >>> from lightning_coreset.methods import Importance
        >>> def bias(group, tensors):
        ...     return tensors[f"{group.name}.bias"].abs()
        >>> model = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
        >>> _ = nn.init.constant_(model[0].bias, 0.1), model[0].bias.data[1:2].fill_(-5.0)
        >>> plan = prune(model, torch.randn(64, 4), {"0": 0.6}, method=Importance(bias))
        >>> plan.groups[0].kept, plan.groups[0].method
        ((1,), 'importance (bias)')
    """

    score: Score

    def __post_init__(self) -> None:
        if not callable(self.score):
            raise ValueError(
                "Expected the score of Importance to be a function of a group and the network's tensors but got "
                f"{self.score!r}."
            )

    @property
    def label(self) -> str:
        """With the name of the function: ``"importance (taylor)"``."""
        name = getattr(self.score, "__name__", type(self.score).__name__)
        return f"{super().label} ({name})"

    def scores(self, group: GroupView) -> Tensor:
        """What the function returns, checked; float64 on the CPU."""
        found = self.score(group.group, group.tensors)
        if not isinstance(found, Tensor) or found.shape != (group.size,):
            shape = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
            raise ValueError(
                f"Expected the {self.label} of group {group.name!r} to be a tensor of shape ({group.size},), a score "
                f"for each channel, but got {shape}."
            )
        scores = found.detach().to("cpu", torch.float64)
        if not bool(scores.isfinite().all()):
            raise ValueError(
                f"Expected the {self.label} of group {group.name!r} to be finite but it holds NaN or infinity."
            )
        return scores
