"""Inputs that a user's function makes, instead of those made up here."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, TypeAlias

from torch import Generator, Tensor, nn

from lightning_coreset.nested import Path, tensors_by_path
from lightning_coreset.probes.leaf import described, name_of_path
from lightning_coreset.probes.synthetic import synthetic_inputs
from lightning_coreset.structure import Example, preserved_random

Probes: TypeAlias = Callable[[nn.Module, Example, int, Generator], Example]
"""What :func:`synthetic_inputs` is: network, example, number of samples and generator to an example."""
ProbesFunction: TypeAlias = Callable[[Any, Generator], Any]
"""A user's function: example inputs and a generator to inputs of the same structure."""


def as_probes(probes: ProbesFunction | None) -> Probes:
    """The function that makes inputs for measuring.

    Args:
        probes: ``None`` for :func:`synthetic_inputs`; or a function of the example inputs and a generator on the CPU
            that returns inputs of the same structure, with as many samples as it likes.

    Returns:
        A function like :func:`synthetic_inputs`. What a user's function returns is checked: the same containers, and
        tensors of the same shapes, dtypes and devices, but for the batch. Global random states are as before.

    Raises:
        ValueError: If it is neither ``None`` nor a function; the returned function, if what it makes does not fit.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from lightning_coreset.structure import Example
        >>> make = as_probes(lambda inputs, generator: torch.rand(256, *inputs.shape[1:], generator=generator))
        >>> probes = make(nn.Linear(8, 2), Example.of(torch.zeros(1, 8)), 512, torch.Generator().manual_seed(0))
        >>> probes.batch_size
        256
    """
    if probes is None:
        return synthetic_inputs
    if isinstance(probes, type) or not callable(probes):
        raise ValueError(
            f"Expected probes to be a function of the example inputs and a torch.Generator but got {probes!r}."
        )

    def make(model: nn.Module, example: Example, samples: int, generator: Generator) -> Example:
        with preserved_random(model):
            inputs = probes(example.inputs, generator)
        return replace(example, inputs=inputs, batch_size=_batch_size_of(inputs, example))

    return make


def _batch_size_of(inputs: Any, example: Example) -> int:
    """The number of samples in inputs that have the structure of an example's.

    Raises:
        ValueError: If they have not.
    """
    expected, found = tensors_by_path(example.inputs), tensors_by_path(inputs)
    both_mappings = isinstance(inputs, Mapping) and isinstance(example.inputs, Mapping)  # a dict for a BatchEncoding
    same_type = both_mappings or type(inputs) is type(example.inputs)
    if not same_type or found.keys() != expected.keys():
        raise ValueError(
            f"Expected probes to return the structure of the example inputs, {_outline(example.inputs, expected)}, but "
            f"got {_outline(inputs, found)}."
        )
    sizes: dict[int, Path] = {}
    for path, wanted in expected.items():
        got, name = found[path], name_of_path(path)
        batched = wanted.dim() > 0 and wanted.shape[0] == example.batch_size
        start = 1 if batched else 0
        same_kind = (got.dim(), got.dtype, got.device) == (wanted.dim(), wanted.dtype, wanted.device)
        if not same_kind or got.shape[start:] != wanted.shape[start:]:
            raise ValueError(
                f"Expected probes to return {name} as {described(wanted)}"
                f"{', with any number of samples' if batched else ''}, but got {described(got)}."
            )
        if batched:
            sizes.setdefault(got.shape[0], path)
    if len(sizes) > 1 or 0 in sizes:
        listed = ", ".join(f"{size} in {name_of_path(path)}" for size, path in sizes.items())
        raise ValueError(f"Expected probes to return one number of samples, above 0, but got {listed}.")
    return next(iter(sizes), example.batch_size)


def _outline(inputs: Any, tensors: dict[Path, Tensor]) -> str:
    """The container and the places of its tensors, as ``dict with tensors at ['ids'], ['mask']``."""
    if isinstance(inputs, Tensor):
        return "a tensor"
    places = ", ".join(name_of_path(path).removeprefix("inputs") for path in tensors)
    return f"{type(inputs).__name__} with tensors at {places or 'no place'}"
