"""What is sampled of a run: some rows of what layers read for each unknown of the least squares."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from math import prod

from torch import Tensor

from lightning_coreset.layers import GroupView, LayerPair, norms_to_sample
from lightning_coreset.moments import LayerInput, MeasuredInputs, MeasuringRuns, NormInput

_LEAST_ROWS, _MOST_ROWS = 2048, 16384
_ROWS_PER_UNKNOWN = 3
_NORM_ROWS = 8192
"""Of what a BatchNorm makes."""


def sampled(
    views: Sequence[GroupView],
    movable: Iterable[LayerPair],
    runs: MeasuringRuns,
    tensors: Mapping[str, Tensor] | None = None,
    *,
    together: Mapping[str, tuple[int, int]] | None = None,
    counted: bool = False,
    least_runs: int = 1,
) -> MeasuredInputs:
    """What the consumers of groups read, and what enters the activations of those whose producers may move.

    Args:
        views: The groups.
        movable: Pairs whose producers may move: their BatchNorms' outputs, or what the producers read.
        runs: The network with inputs.
        tensors: Those of the network pruned so far, if it is not as it was.
        together: What these groups and others ask for: it says how a weight is read that several of them read.
        counted: Whether the others' weights count as in :meth:`MeasuringRuns.measure`.
        least_runs: How many runs to make at least.

    Raises:
        Unmeasurable: If the network cannot be run.
    """
    movable = list(movable)
    means = [mean for pair in movable if (mean := running_mean_before(pair)) is not None]
    channel_norms = {name: rows for view in views for name, rows in _norms_to_sample(view).items()}
    own = weights_to_sample(views, movable)
    together = together or own
    return runs.measure(
        {name: together[name] for name in own},
        dict.fromkeys(means, _NORM_ROWS),
        None if tensors is None else dict(tensors),
        channel_norms,
        counted=together if counted else None,
        least_runs=least_runs,
    )


def weights_to_sample(views: Iterable[GroupView], movable: Iterable[LayerPair]) -> dict[str, tuple[int, int]]:
    """The weights whose inputs are sampled for groups, with the dimension and how many rows to sample.

    Args:
        views: The groups.
        movable: Pairs whose producers may move: where no BatchNorm tells what enters their activation, what the
            producers read does.
    """
    wanted = all_to_sample(views)
    for pair in movable:
        producer = pair.path.producer
        if running_mean_before(pair) is None and producer.in_dim is not None:
            wanted[producer.weight] = _rows_of(pair.view.tensors[producer.weight], producer.in_dim)
    return wanted


def worth_sampling(views: Iterable[GroupView], *, streams: bool) -> list[GroupView]:
    """The groups of which samples may be used: those with linear consumers, and streams that may rotate.

    Consumers of channels that are normalised are not fitted to samples otherwise, and in networks with patch mergings,
    which read a stream in blocks, their samples were most of what was held.

    Args:
        views: The groups.
        streams: Whether streams may rotate at all.
    """
    return [
        view
        for view in views
        if not (view.group.normalized or view.group.standardised) or (streams and norms_to_sample(view))
    ]


def all_to_sample(views: Iterable[GroupView]) -> dict[str, tuple[int, int]]:
    """The weights that read groups or make dimensions of heads, with the dimension and how many rows to sample."""
    return {name: rows for view in views for name, rows in (rows_to_sample(view) | _of_projections(view)).items()}


def layers_of(view: GroupView, measured: MeasuredInputs) -> dict[str, LayerInput]:
    """What the consumers of one group read, as far as they were seen."""
    return {name: measured.layers[name] for name in rows_to_sample(view) if name in measured.layers}


def running_mean_before(pair: LayerPair) -> str | None:
    """The running mean of the BatchNorm before the activation, if there is one."""
    return None if pair.before is None else pair.before.running_mean


def norms_of(view: GroupView, measured: MeasuredInputs) -> dict[str, NormInput]:
    """What norms over the channels of a group read, as far as they were seen."""
    return {name: measured.channel_norms[name] for name in norms_to_sample(view) if name in measured.channel_norms}


def rows_to_sample(view: GroupView) -> dict[str, tuple[int, int]]:
    """The weights that read a group, with the dimension and how many rows to sample."""
    members = view.group.by_role("consumer")
    return {member.name: _rows_of(view.tensors[member.name], member.dim) for member in members if member.dim < 2}


def _norms_to_sample(view: GroupView) -> dict[str, int]:
    """The norms over the channels of a group, with how many rows to sample."""
    rows = min(max(_ROWS_PER_UNKNOWN * view.size, _LEAST_ROWS), _MOST_ROWS)
    return dict.fromkeys(norms_to_sample(view), rows)


def _of_projections(view: GroupView) -> dict[str, tuple[int, int]]:
    """What makes dimensions within attention heads, with the dimension that is contracted."""
    within = view.group.pairing
    members = view.group.by_role("producer") if within is not None and within.heads else ()
    matrices = [member for member in members if view.tensors[member.name].dim() == 2]
    return {member.name: _rows_of(view.tensors[member.name], 1 - member.dim) for member in matrices}


def _rows_of(weight: Tensor, dim: int) -> tuple[int, int]:
    """The dimension that is contracted, and how many rows to sample of what is contracted with it."""
    unknowns = weight.shape[dim] * prod(weight.shape[2:])
    return dim, min(max(_ROWS_PER_UNKNOWN * unknowns, _LEAST_ROWS), _MOST_ROWS)
