"""The runs in which a method measures what layers read: on probes, or on batches of a user's."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import islice
from typing import Any, Literal

import torch
from torch import nn

from lightning_coreset._calls import level_of_caller
from lightning_coreset.methods import Measures, Method
from lightning_coreset.moments import MeasuringRuns, has_channel_norms
from lightning_coreset.nested import tensors_in
from lightning_coreset.probes import ProbesUnavailable, as_probes
from lightning_coreset.structure import Example, StepKind, Structure

_NUMBERS_A_RUN, _IDS_A_RUN = 2**21, 2**12
"""Of the inputs of one run: activations of no more are in memory at once. An id becomes a whole vector, and logits."""
_FEWEST_A_RUN = 8
_LARGE, _LARGE_IDS, _FEWEST_OF = 3 * 64 * 64, 64, 4
"""Images of more than 64 x 64 and longer texts have so many positions that fewer of them do, down to a quarter."""
_VECTORS_A_SAMPLE = 8
"""A vector is one row of a layer's input, where an image or a text is many, and costs as little."""


def measuring_runs(
    model: nn.Module,
    structure: Structure,
    measures: Measures | None,
    examples: Sequence[Example],
    *,
    data: Iterable[Any] | None = None,
    seed: int = 0,
) -> MeasuringRuns | None:
    """The runs that a method asks for; ``None`` if it measures nothing.

    Args:
        model: The network.
        structure: What was found in it.
        measures: What the method asks for.
        examples: How the network is run.
        data: Batches, each of them as example inputs, for ``moments="batches"``.
        seed: Of the probes.

    Raises:
        ValueError: If there are no batches in ``data``, or a user's probes do not fit.
    """
    kind = moments_kind(measures, model, structure, examples)
    if measures is None or kind == "closed_form":
        return None
    if data is not None:
        batches = _batches(data, examples[0], measures.samples)
        return MeasuringRuns(model, [batches], by_batch=False, source="batches")
    generator = torch.Generator().manual_seed(seed)
    try:
        runs = [_probes(model, example, measures, generator) for example in examples]
    except ProbesUnavailable as reason:
        if measures.moments == "synthetic":  # asked for, not chosen by us
            warnings.warn(_no_probes(reason), stacklevel=level_of_caller())
        return None
    by_law = measures.probes is None
    independent = by_law and measures.moments == "auto" and not _probes_count(structure, examples)
    return MeasuringRuns(model, runs, by_batch=True, source="probes", norms_by_law=by_law, independent=independent)


def moments_kind(
    measures: Measures | None, model: nn.Module, structure: Structure, examples: Sequence[Example]
) -> Literal["closed_form", "synthetic", "batches"]:
    """How a method finds moments in this network.

    Probes are put to scale by BatchNorms, whose statistics are those of the batch, and by norms over channels, behind
    which a law stands instead of what the probes would make. Without either, nothing does.
    """
    if measures is None:
        return "closed_form"
    if measures.moments != "auto":
        return measures.moments
    to_scale = _probes_count(structure, examples) or has_channel_norms(model)
    return "synthetic" if to_scale else "closed_form"


def check_data(method: Method, data: Iterable[Any] | None) -> None:
    """Refuse batches that the method does not read, and their absence where it does.

    Raises:
        ValueError: If one of the two is so, or ``data`` cannot be iterated over.
    """
    wanted = method.measures is not None and method.measures.moments == "batches"
    if wanted and data is None:
        raise ValueError(
            "Expected data=, an iterable of batches as the model takes them, with moments='batches' but got none. Give "
            "some hundred samples, or leave moments to its default, which needs no data."
        )
    if data is not None and not wanted:
        raise ValueError(
            f"Expected method=Reconstruction(moments='batches') with data= but got {method!r}, which does not read "
            "data."
        )
    if data is not None and (isinstance(data, (torch.Tensor, str, Mapping)) or not isinstance(data, Iterable)):
        raise ValueError(
            "Expected data to be an iterable of batches, each as example_inputs, such as [images[:64], images[64:128]] "
            f"or (images for images, _ in loader), but got {type(data).__name__}."
        )


def has_batch_norms(structure: Structure) -> bool:
    """Whether BatchNorms stand behind or before the layers that make channels, so that probes are put to scale."""
    paths = [path for group in structure.groups for path in group.paths]
    return any(
        path.consumer.norm is not None or any(step.op == StepKind.BATCH_NORM for step in path.steps) for path in paths
    )


def _probes_count(structure: Structure, examples: Sequence[Example]) -> bool:
    """Whether probes are to scale in the layers, so that what the network makes of them counts."""
    return has_batch_norms(structure) or _reads_vectors(examples)


def _reads_vectors(examples: Sequence[Example]) -> bool:
    """Whether all inputs are vectors, of which the closed form assumes what probes are: independent Gaussians."""
    floating = [one for example in examples for one in tensors_in(example.inputs) if one.is_floating_point()]
    return bool(floating) and all(one.dim() == 2 for one in floating)


def _probes(model: nn.Module, example: Example, measures: Measures, generator: torch.Generator) -> list[Example]:
    """As many samples as are wanted, in runs that fit into memory."""
    make = as_probes(measures.probes)
    wanted = _wanted(measures.samples, example)
    made, count = [], 0
    while count < wanted:
        one = make(model, example, wanted, generator)
        made.append(one)
        count += max(one.batch_size, 1)
        if measures.probes is not None:  # a user's function makes as many as it likes
            break
    return [part for one in made for part in _in_parts(one)]


def _wanted(samples: int, example: Example) -> int:
    """More of small inputs, fewer of large ones: what counts is how many rows the layers read."""
    if _reads_vectors([example]):
        return samples * _VECTORS_A_SAMPLE
    least = -(-samples // _FEWEST_OF)
    for is_floating, usual in ((True, _LARGE), (False, _LARGE_IDS)):
        numbers = _numbers(example, is_floating) // max(example.batch_size, 1)
        samples = max(min(samples, samples * usual // max(numbers, 1)), least)
    return samples


def _numbers(example: Example, is_floating: bool) -> int:
    return sum(one.numel() for one in tensors_in(example.inputs) if one.is_floating_point() == is_floating)


def _in_parts(example: Example) -> list[Example]:
    """The example, a part of its samples at a time."""
    runs = max(-(-_numbers(example, True) // _NUMBERS_A_RUN), -(-_numbers(example, False) // _IDS_A_RUN), 1)
    at_once = max(-(-example.batch_size // runs), _FEWEST_A_RUN)
    if example.batch_size <= at_once:
        return [example]
    starts = range(0, example.batch_size - at_once // 2, at_once)
    return [example.part(start, at_once) for start in starts]


def _batches(data: Iterable[Any], example: Example, samples: int) -> list[Example]:
    """The first batches, until there are samples enough."""
    found: list[Example] = []
    count = 0
    for batch in islice(data, samples):
        one = Example.of(batch)
        found.append(replace(example, inputs=one.inputs, batch_size=one.batch_size))
        count += one.batch_size
        if count >= samples:
            break
    if not found:
        raise ValueError(
            "Expected data to give at least one batch for moments='batches' but it is empty. Give a loader that has "
            "some, or leave moments to its default, which needs no data."
        )
    return found


def _no_probes(reason: ProbesUnavailable) -> str:
    return (
        "Moments are derived in closed form instead of measured, and groups without such a form ranked by norms. "
        f"{reason}"
    )
