"""Methods that give every channel a score and keep the largest ones, without new weights."""

from __future__ import annotations

from abc import abstractmethod

from torch import Tensor

from lightning_coreset.layers import GroupView
from lightning_coreset.methods.method import Method
from lightning_coreset.methods.selection import Selection


class RankingMethod(Method):
    """Keeps the channels of largest score; a subclass defines :meth:`scores`."""

    ranks_channels = True

    @abstractmethod
    def scores(self, group: GroupView) -> Tensor:
        """How important each channel is, ``(N,)``; comparable between groups for ``allocation="global"``."""

    def select(self, group: GroupView, size: int) -> Selection:
        """The ``size`` channels of largest score."""
        if size >= group.size:
            return Selection.whole(group.size)
        return Selection(largest(self.scores(group), size), self.label)


def rank_by_norms(group: GroupView, size: int, reason: object) -> Selection:
    """What a coreset method does with a group that has no coreset form: rank by norms, without new weights.

    The score is the norm of the weights that compute a channel times the largest norm of those that read it.
    """
    if size >= group.size:
        return Selection.whole(group.size)
    return Selection(largest(group.producer_norms() * group.consumer_norms(), size), f"rank ({reason})")


def largest(scores: Tensor, size: int) -> Tensor:
    """The positions of the ``size`` largest scores, ascending.

    Raises:
        ValueError: If a score is infinite or NaN, which ``topk`` would take for the largest of all.
    """
    if not bool(scores.isfinite().all()):
        raise ValueError("Expected the scores of all channels to be finite.")
    return scores.topk(size).indices.sort().values
