"""Producers that move: where the rows that stay go, and what consumers then read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from torch import Tensor

from lightning_coreset.coreset import Refinement, refine_producers, sample_moments
from lightning_coreset.layers import (
    GroupView,
    LayerPair,
    MeasuredReader,
    MovedProducers,
    movable_pair,
    single_channel_pairs,
)
from lightning_coreset.methods.sampled_rows import rows_to_sample, running_mean_before
from lightning_coreset.moments import LayerInput, MeasuredInputs, MeasuringRuns, Unmeasurable


@dataclass(frozen=True, eq=False)
class Move:
    """How a group's producers move.

    Attributes:
        refinement: The combinations.
        mean: Of the pre-activations, (N,).
        covariance: (N, N).
        samples: What the moved channels become where consumers read them, by the name of the weight: (R, m, q, k).
    """

    refinement: Refinement
    mean: Tensor
    covariance: Tensor
    samples: Mapping[str, Tensor]

    def in_place_of(self, view: GroupView, kept: Tensor) -> dict[str, Tensor]:
        """New contents of whole tensors, in which the channels that stay have their new rows."""
        pair = movable_pair(view)
        assert pair is not None
        return MovedProducers.of(pair, self.refinement, self.mean, self.covariance).in_place_of(kept)

    def samples_for(self, readers: Sequence[MeasuredReader], kept: Tensor) -> Mapping[str, Tensor]:
        """What the readers will read, by the name of the weight, (R, m, q, k)."""
        return self.samples


def moved(
    pair: LayerPair, kept: Tensor, rows: Tensor, measured: MeasuredInputs, *, centred: bool, ridge: float
) -> Move | None:
    """Where the kept producers go; ``None`` if nothing is known of what enters their activation.

    Args:
        pair: Whose producers these are.
        kept: The channels that stay, (m,).
        rows: All that reads the channels, (J, N).
        measured: What was sampled.
        centred: Whether errors count around the mean.
        ridge: As everywhere.
    """
    samples = _preactivations(pair, measured)
    if samples is None or len(kept) == pair.view.size:
        return None
    mean, covariance = sample_moments(samples, centred=True)
    refinement = refine_producers(pair.activation, mean, covariance, rows, kept, centred=centred, ridge=ridge)
    return Move(refinement, mean, covariance, {})


def _preactivations(pair: LayerPair, measured: MeasuredInputs) -> Tensor | None:
    """Samples of what enters the activation, (R, N)."""
    name = running_mean_before(pair)
    if name is not None:
        made, member = measured.normed.get(name), pair.view.group.member_at(name, 0)
        return None if made is None or member is None else made[:, member.positions[:, 0]]
    read = measured.layers.get(pair.path.producer.weight)
    rows = pair.rows[:, 0]
    if read is None or read.transposed or read.groups > 1 or read.stored[0].numel() != rows.shape[1] - 1:
        return None
    return (read.rows.flatten(1) @ rows[:, :-1].T.to(read.rows)).double() + rows[:, -1]


def with_samples(
    moves: Mapping[GroupView, Move], runs: MeasuringRuns, tensors: Mapping[str, Tensor] | None = None
) -> dict[str, Move | None]:
    """Run a network that has the moved channels beside those that it had, and sample what consumers would read.

    Args:
        moves: How producers move, by group.
        runs: The network with inputs.
        tensors: Those of the network pruned so far, if it is not as it was.

    Returns:
        The moves with samples by the group's name; ``None`` where the network has no place for more channels, such as
        where the code has its width as a number.
    """
    if not moves:
        return {}
    wide: dict[str, Tensor] = {}
    pairs = {view: single_channel_pairs(view) for view in moves}
    for view, move in moves.items():
        producers = MovedProducers.of(pairs[view][0], move.refinement, move.mean, move.covariance)
        wide |= producers.beside(wide)
        wide |= producers.unread(pairs[view], wide)
    weights = {name: rows for view in moves for name, rows in rows_to_sample(view).items()}
    try:
        layers = runs.measure(weights, tensors={**(tensors or {}), **wide}).layers
    except Unmeasurable:
        return {view.name: None for view in moves}
    return {view.name: _behind(move, pairs[view], layers) for view, move in moves.items()}


def _behind(move: Move, pairs: Sequence[LayerPair], layers: Mapping[str, LayerInput]) -> Move | None:
    """The move with what consumers read behind the channels that they had."""
    samples = {}
    for pair in pairs:
        name, places = pair.path.consumer.weight, pair.whole_input
        if name not in layers or places is None:
            return None
        samples[name] = layers[name].rows[:, places.numel() :].unflatten(1, (-1, places.shape[1]))
    return replace(move, samples=samples)
