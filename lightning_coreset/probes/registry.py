"""Kinds of inputs, and what makes them up."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, TypeAlias

from torch import Generator, Tensor

from lightning_coreset._registration import Registration
from lightning_coreset.probes import kinds
from lightning_coreset.probes.leaf import WAY_OUT, Leaf, ProbesUnavailable, described

Matches: TypeAlias = Callable[[Leaf], bool]
Make: TypeAlias = Callable[[Leaf, int, Generator], Tensor]


class ProbeKind(NamedTuple):
    """One kind of inputs.

    Attributes:
        matches: Whether an input is of this kind.
        make: Makes inputs up: takes the leaf, the number of samples and a generator on the CPU, and returns
            ``(samples, *leaf.value.shape[1:])``.
    """

    matches: Matches
    make: Make


_BUILT_IN: dict[str, ProbeKind] = {
    "kept": ProbeKind(kinds.is_kept, kinds.repeated),
    "ids": ProbeKind(kinds.is_ids, kinds.ids),
    "bytes": ProbeKind(kinds.is_bytes, kinds.byte_images),
    "points": ProbeKind(kinds.is_points, kinds.vectors),
    "images": ProbeKind(kinds.is_images, kinds.images),
    "series": ProbeKind(kinds.is_series, kinds.series),
    "vectors": ProbeKind(kinds.is_vectors, kinds.vectors),
}
"""Asked in this order."""
_REGISTERED: dict[str, ProbeKind] = {}
"""Asked before those, the last one first."""


def register_probe(name: str, matches: Matches, make: Make) -> Registration:
    """Say how inputs of some kind are made up, before the kinds that the package knows are asked.

    Args:
        name: A name of a kind that does not exist yet.
        matches: Takes a :class:`Leaf`, one tensor among the example inputs, and tells whether it is of this kind.
        make: Takes the leaf, the number of samples and a generator on the CPU, and returns a tensor of shape
            ``(samples, *leaf.value.shape[1:])``. It is converted to the leaf's dtype and moved to its device. To be
            independent of data, it should use no values of the leaf.

    Returns:
        The registration, whose ``remove()`` takes it back.

    Raises:
        ValueError: If the name is taken, or ``matches`` or ``make`` cannot be called.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from lightning_coreset.probes import register_probe, synthetic_inputs
        >>> from lightning_coreset.structure import Example
        >>> def uniform(leaf, samples, generator):
        ...     return torch.rand(samples, *leaf.value.shape[1:], generator=generator)
        >>> with register_probe("spectra", lambda leaf: leaf.value.shape[-1] == 256, uniform):
        ...     example = Example.of(torch.randn(2, 256))
        ...     probes = synthetic_inputs(nn.Linear(256, 4), example, 512, torch.Generator().manual_seed(0))
        >>> probes.inputs.shape, bool(probes.inputs.min() >= 0)
        (torch.Size([512, 256]), True)
    """
    taken = (*_BUILT_IN, *_REGISTERED)
    if not isinstance(name, str) or not name or name in taken:
        raise ValueError(f"Expected the name of a new kind of inputs but got {name!r}; there are {sorted(taken)}.")
    if not callable(matches) or not callable(make):
        raise ValueError(
            f"Expected two functions for the inputs {name!r}, one that recognises and one that makes them, but got "
            f"{matches!r} and {make!r}."
        )
    _REGISTERED[name] = ProbeKind(matches, make)
    return Registration(lambda: _REGISTERED.pop(name, None))


def kind_of(leaf: Leaf) -> tuple[str, ProbeKind]:
    """The name of the kind that an input is of, and the kind.

    Raises:
        ProbesUnavailable: If it is of none.
    """
    for name, kind in (*reversed(_REGISTERED.items()), *_BUILT_IN.items()):
        if kind.matches(leaf):
            return name, kind
    raise ProbesUnavailable(
        f"Expected inputs that can be made up but there is no law for {leaf.name}, {described(leaf.value)}. Register "
        f"one with register_probe. {WAY_OUT}"
    )
