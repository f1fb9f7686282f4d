"""What is known of a group from measuring before its consumers get new weights, and how that is found and used."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from torch import Tensor

from lightning_coreset.layers import GroupView
from lightning_coreset.methods.moving import Move, with_samples
from lightning_coreset.methods.refining import Refining
from lightning_coreset.methods.rotating import Rotation
from lightning_coreset.methods.rotating_streams import StreamRotation
from lightning_coreset.moments import LayerInput, MeasuringRuns, NormInput


@dataclass(frozen=True)
class Settings:
    """How channels are chosen and weights found; as in ``Reconstruction``.

    Attributes:
        rounds: Of the elimination.
        ridge: Regularisation.
        refining: How far producers move.
        sequential: Whether a group's consumers are fitted to what the network pruned so far gives them.
    """

    rounds: int
    ridge: float
    refining: Refining
    sequential: bool


@dataclass(frozen=True, eq=False)
class Prepared:
    """What is known of a group before the plan reaches it.

    Attributes:
        layers: What its consumers read in the network as it was.
        kept: The channels that stay; ``None`` if they are chosen later.
        move: How its producers move, if they do.
        stream: How it rotates, if it is a stream that does.
        norms: What norms over its channels read in the network as it was.
        refined: Whether its producers may move.
    """

    layers: Mapping[str, LayerInput]
    kept: Tensor | None = None
    move: Move | Rotation | None = None
    stream: StreamRotation | None = None
    norms: Mapping[str, NormInput] = field(default_factory=dict)
    refined: bool = False

    @property
    def turned(self) -> Rotation | None:
        """How the dimensions within its heads rotate, if they do."""
        return self.move if isinstance(self.move, Rotation) else None


def with_moved_samples(
    prepared: Mapping[GroupView, Prepared], runs: MeasuringRuns, tensors: Mapping[str, Tensor] | None = None
) -> dict[str, Prepared]:
    """With what the consumers read behind producers that move; these stay where the network has no place for more.

    Args:
        prepared: What is known of each group, moves without samples.
        runs: The network with inputs.
        tensors: Those of the network pruned so far, if it is not as it was.

    Returns:
        By the name of the group.
    """
    moves = with_samples(
        {view: one.move for view, one in prepared.items() if isinstance(one.move, Move)}, runs, tensors
    )
    return {
        view.name: replace(one, move=moves[view.name]) if view.name in moves else one for view, one in prepared.items()
    }
