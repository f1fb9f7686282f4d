"""Inputs made up for a network, for measuring what its channels look like without data."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from torch import Generator, Tensor, nn

from lightning_coreset.nested import map_tensors, tensors_by_path, tensors_in
from lightning_coreset.probes.fixed_size import has_fixed_size, unbatched
from lightning_coreset.probes.leaf import WAY_OUT, Leaf, ProbesUnavailable, described, name_of_path
from lightning_coreset.probes.observation import observe, why_not_run
from lightning_coreset.probes.registry import kind_of
from lightning_coreset.structure import Example


def synthetic_inputs(model: nn.Module, example: Example, samples: int, generator: Generator) -> Example:
    """Inputs of the structure of an example, made up by the kind of each tensor among them.

    The network runs once on the example, to see what reads its inputs, and on a few of those made up, to see that it
    takes them; it is left as it was. What is made depends on
    shapes, dtypes and the sizes of embeddings alone, not on values of the example. Only what cannot be made up is taken
    from it, repeated along the batch: masks, lengths, targets, edges, adjacencies, and whatever has no batch dimension.
    If the number of samples cannot be chosen, as that of a graph's nodes or in a network that only takes so many, it
    stays that of the example.

    Args:
        model: The network.
        example: How it is run.
        samples: Samples of the inputs to make.
        generator: Source of random numbers, on the CPU. The global ones are not touched.

    Returns:
        An example with other inputs, of the same dtypes on the same devices. Its ``batch_size`` is ``samples``, or that
        of the example: then each further call with the same generator makes further samples.

    Raises:
        ValueError: If ``samples`` is not positive.
        ProbesUnavailable: If there is no law for a tensor among the inputs, nothing in them that can be made up, or if
            the network does not run on what was made.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from lightning_coreset.structure import Example
        >>> network = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 10))
        >>> example = Example.of(torch.zeros(1, 3, 8, 8))
        >>> probes = synthetic_inputs(network, example, 512, torch.Generator().manual_seed(0))
        >>> probes.inputs.shape, probes.batch_size, round(probes.inputs.std().item(), 3)
        (torch.Size([512, 3, 8, 8]), 512, 1.0)
    """
    if not isinstance(samples, int) or samples < 1:
        raise ValueError(f"Expected samples to be a positive whole number but got {samples!r}.")
    _check_all_reached(example)
    leaves = observe(model, example)
    if all(kind_of(leaf)[0] == "kept" for leaf in leaves):
        listed = ", ".join(leaf.name for leaf in leaves) or "no tensors"
        raise ProbesUnavailable(
            f"Expected some inputs that can be made up but got only what is taken from the example: {listed}. {WAY_OUT}"
        )
    if has_fixed_size(example, leaves) or not _takes_others(model, example, leaves, samples, generator):
        samples = example.batch_size
    probes = _made_of(example, leaves, samples, generator)
    if samples == example.batch_size and (error := why_not_run(model, probes)) is not None:
        raise ProbesUnavailable(
            f"Expected the network to run on inputs made up for it but it raised: {error} {WAY_OUT}"
        )
    return probes


def _takes_others(
    model: nn.Module, example: Example, leaves: Sequence[Leaf], samples: int, generator: Generator
) -> bool:
    """Whether the network runs on another number of samples than the example has; tried on few."""
    few = 2 if example.batch_size != 2 else 3
    if any(leaf.may_hold_places for leaf in leaves):
        few = example.batch_size + 1  # places beyond the end are no exception on a GPU, but the end of the process
    few = min(samples, few)
    state = generator.get_state()
    trial = _made_of(example, leaves, few, generator)
    generator.set_state(state)
    return why_not_run(model, trial) is None


def _made_of(example: Example, leaves: Sequence[Leaf], samples: int, generator: Generator) -> Example:
    made = iter([_made(leaf, samples, generator) for leaf in leaves])
    try:  # both walk through containers in the same order
        inputs = map_tensors(lambda _: next(made), example.inputs)
    except Exception as error:  # of a class that validates what is put into it, and asks for the example's own values
        raise ProbesUnavailable(
            f"Expected inputs whose tensors can be replaced but {type(example.inputs).__name__} raised "
            f"{type(error).__name__}: {error} {WAY_OUT}"
        ) from error
    return replace(example, inputs=inputs, batch_size=samples)


def _made(leaf: Leaf, samples: int, generator: Generator) -> Tensor:
    name, kind = kind_of(leaf)
    value = leaf.value
    rows = samples if leaf.has_batch or value.dim() == 0 else len(value)
    made = unbatched(kind.make, leaf, generator) if leaf.is_one_sample else kind.make(leaf, rows, generator)
    expected = (rows, *value.shape[1:]) if value.dim() else ()
    if not isinstance(made, Tensor) or tuple(made.shape) != expected:
        raise ValueError(
            f"Expected the inputs {name!r} made for {leaf.name} to be a tensor of shape {expected} but got "
            f"{described(made)}."
        )
    return made.to(value.device, value.dtype).requires_grad_(value.requires_grad)


def _check_all_reached(example: Example) -> None:
    """Tensors within objects that are no containers cannot be replaced in a copy."""
    reached = tensors_by_path(example.inputs)
    replaced: list[Tensor] = []

    def itself(tensor: Tensor) -> Tensor:  # an object may refuse anything else in its place
        replaced.append(tensor)
        return tensor

    map_tensors(itself, example.inputs)
    if len(replaced) != len(reached) or len([*tensors_in(example.inputs)]) != len(reached):
        raise ProbesUnavailable(
            "Expected inputs in tuples, lists, dicts and dataclasses but got tensors within other objects, in "
            f"{type(example.inputs).__name__}. {WAY_OUT}"
        )
    for path, tensor in reached.items():
        if tensor.is_nested:
            raise ProbesUnavailable(f"Expected plain tensors but {name_of_path(path)} is a nested one. {WAY_OUT}")
