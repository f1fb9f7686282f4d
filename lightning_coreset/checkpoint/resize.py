"""Give a model the sizes of a state dict, if that can be one of this model."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from typing import Any

from torch import Tensor, nn

from lightning_coreset._compat import loads_itself
from lightning_coreset.checkpoint.consistency import head_counts, inferred_sizes, kept_numbers, mismatches
from lightning_coreset.checkpoint.metadata import KEY, PruningMetadata
from lightning_coreset.checkpoint.record_check import half_recorded, is_part_of, wrong_record, wrong_sizes
from lightning_coreset.module_specs import check_module_sizes
from lightning_coreset.qualified_names import listed
from lightning_coreset.structure.unsupported import unsupported_parameters
from lightning_coreset.surgery import ModelShapes, original_shapes, recorded_shapes, resize

Shapes = Mapping[str, tuple[int, ...]]

_MOST_LINES = 4  # that an error lists


def resize_to_state_dict(
    model: nn.Module, state: Mapping[str, Any], *, metadata: PruningMetadata | None = None, strict: bool = True
) -> None:
    """Give a model the sizes of a state dict, smaller or larger, so that it can be loaded.

    Where no size differs, nothing is checked or done.

    Args:
        model: The model, pruned already or not.
        state: The state dict, under the model's own names.
        metadata: What it says about its pruning; without it, sizes are inferred from shapes alone.
        strict: Whether all names must match.

    Raises:
        ValueError: If the tensors cannot be those of this model, pruned or not. The model is unchanged then.
    """
    original, present = original_shapes(model), ModelShapes.of(model)
    loaded = _loaded_shapes(model, state, original, metadata)
    pruned = ModelShapes() if metadata is None else metadata.pruned.restrict(present)
    if not (present | ModelShapes(loaded) | ModelShapes(sizes=pruned.sizes)).differs_from(present):
        return

    check_module_sizes(model)
    _raise_for(model, _wrong_names(model, state, metadata, strict))
    if metadata is None:
        _raise_for(model, _wrong_shapes(model, original, loaded))
        _raise_for(model, _unknown_sizes(model, original, loaded))
    else:
        _raise_for(model, wrong_record(original, loaded, metadata, strict))

    unloaded = {n: s for n, s in present.shapes.items() if n not in loaded and n not in present.constants}
    shapes = (original | pruned | ModelShapes({**unloaded, **loaded})).shapes
    inferred = ModelShapes(sizes=inferred_sizes(model, original, shapes))
    if metadata is not None:
        _raise_for(model, wrong_sizes(original, metadata, inferred.sizes, strict))
    target = original | inferred | pruned | ModelShapes(shapes)
    _raise_for(model, mismatches(model, original, target))
    if metadata is not None:
        _raise_for(model, half_recorded(metadata))
    else:
        _warn_of_numbers(model, original, shapes)
    resize(model, target.difference(present))


def _warn_of_numbers(model: nn.Module, original: ModelShapes, shapes: Shapes) -> None:
    """Warn of modules that keep numbers which no shape tells, and whose layers have other sizes now."""
    numbers = [
        f"{path}.{name}" if path else name
        for path, module in model.named_modules()
        for name in kept_numbers(path, module, original, shapes)
    ]
    if numbers:
        warnings.warn(
            "The state dict has other sizes than the model and no metadata, so numbers that shapes do not tell, such "
            f"as of heads, stay as they are: {listed(numbers)}. If pruning changed any of them, "
            "the model computes something else now. Load the state dict as it was saved (torch.save keeps its "
            "metadata, safetensors and dict(state_dict) do not).",
            stacklevel=2,
        )


def _loaded_shapes(
    model: nn.Module, state: Mapping[str, Any], original: ModelShapes, metadata: PruningMetadata | None
) -> dict[str, tuple[int, ...]]:
    """The shapes of the tensors that torch is about to copy into the model's."""
    loaded = {}
    for name, shape in original.shapes.items():
        value = state.get(name)
        # Scalars never change their shape, but torch once wrote them as vectors of one element.
        if not isinstance(value, Tensor) or name in original.constants or not shape:
            continue
        recorded = metadata is not None and name in metadata.pruned.shapes
        # A module with its own way to load, such as one with a growing buffer, accepts shapes that are not ours.
        if recorded or is_part_of(value.shape, shape) or not _loads_itself(model, name):
            loaded[name] = tuple(value.shape)
    return loaded


def _loads_itself(model: nn.Module, name: str) -> bool:
    owner = model.get_submodule(name.rpartition(".")[0])
    return loads_itself(owner)


def _wrong_names(
    model: nn.Module, state: Mapping[str, Any], metadata: PruningMetadata | None, strict: bool
) -> Iterator[str]:
    expected = {name: value for name, value in model.state_dict().items() if name != KEY}
    changing = {*recorded_shapes(model).shapes, *(() if metadata is None else metadata.pruned.shapes)}
    for name, value in expected.items():
        if name not in state:
            if strict or name in changing:
                yield f"{name!r} is missing"
        elif isinstance(value, Tensor) and not isinstance(state[name], Tensor):
            yield f"{name!r} is no tensor but of type {type(state[name]).__name__}"
    if strict:
        yield from (f"{name!r} is not one of the model's" for name in state if name not in expected)


def _wrong_shapes(model: nn.Module, original: ModelShapes, loaded: Shapes) -> Iterator[str]:
    """Without metadata: shapes that no pruning of this model gives."""
    unsupported = unsupported_parameters(model)
    for name, shape in loaded.items():
        before = original.shapes[name]
        if not is_part_of(shape, before):
            yield f"{name!r} has shape {shape}, which is not a part of the original model's {before}"
        elif shape != before and name in unsupported:
            yield f"{name!r} has shape {shape} where the model's is {before}, but it {unsupported[name]}"


def _unknown_sizes(model: nn.Module, original: ModelShapes, loaded: Shapes) -> Iterator[str]:
    """Without metadata: what does not follow from the shapes to be loaded.

    That is what surgery has changed about this model, or may have changed about the one that was saved.
    """
    if all(shape == original.shapes[name] for name, shape in loaded.items()):
        return
    inferred, changed = inferred_sizes(model, original, original.shapes), recorded_shapes(model)
    for name in dict.fromkeys((*changed.sizes, *changed.constants, *head_counts(model, original, loaded))):
        if name not in inferred:
            yield (
                f"{name!r} does not follow from shapes, and the state dict has no metadata of a pruned model "
                "(plain dict?)"
            )


def _raise_for(model: nn.Module, problems: Iterable[str]) -> None:
    found = list(islice(problems, _MOST_LINES + 1))
    if found:
        lines = [*found[:_MOST_LINES], *(("...",) if len(found) > _MOST_LINES else ())]
        raise ValueError(
            f"Expected a state dict of this {type(model).__name__}, pruned or not, but got one in which\n- "
            + "\n- ".join(lines)
            + "\nThe model is unchanged. Build it with the arguments it was trained with, or load another checkpoint."
        )
