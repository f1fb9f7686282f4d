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

    The score is the norm of the weights that compute a channel times the largest norm of those that read it. Normalised
    channels are read by many layers, and none of them alone tells how much of the network notices: there it is the norm
    of all weights together that read a channel. The weights of the norms in between do not count, which made no
    difference.
    """
    if size >= group.size:
        return Selection.whole(group.size)
    reading = group.total_consumer_norms() if group.group.normalized else group.consumer_norms()
    return Selection(largest(group.producer_norms() * reading, size), f"rank ({reason})")


def largest(scores: Tensor, size: int) -> Tensor:
    """The positions of the ``size`` largest scores, ascending.

    Raises:
        ValueError: If a score is infinite or NaN, which ``topk`` would take for the largest of all.
    """
    if not bool(scores.isfinite().all()):
        raise ValueError("Expected the scores of all channels to be finite.")
    return scores.topk(size).indices.sort().values
