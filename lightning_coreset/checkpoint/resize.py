"""Give a model the layout of a state dict, if that can be one of this model."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from typing import Any

from torch import Tensor, nn

from lightning_coreset._compat import loads_itself
from lightning_coreset.checkpoint.consistency import inferred_sizes, misfits_within_modules
from lightning_coreset.checkpoint.metadata import KEY, PruningMetadata
from lightning_coreset.structure.unsupported import unsupported_parameters
from lightning_coreset.surgery import ModelShapes, original_shapes, recorded_shapes, resize

Shapes = Mapping[str, tuple[int, ...]]

_TOLD = 4  # the misfits that an error tells


def resize_to_state_dict(
    model: nn.Module, state: Mapping[str, Any], *, record: PruningMetadata | None = None, strict: bool = True
) -> None:
    """Give a model the sizes of a state dict, smaller or larger, so that it can be loaded.

    Where no size differs, nothing is checked or done.

    Args:
        model: The model, pruned already or not.
        state: The state dict, under the model's own names.
        record: What it says about its structure; without one, shapes alone tell.
        strict: Whether all names must match.

    Raises:
        ValueError: If the tensors cannot be those of this model, pruned or not. The model is unchanged then.
    """
    original, present = original_shapes(model), ModelShapes.of(model)
    loaded = _loaded_shapes(model, state, original, record)
    pruned = ModelShapes() if record is None else record.pruned.restrict(present)
    if not (present | ModelShapes(loaded) | ModelShapes(sizes=pruned.sizes)).differs_from(present):
        return

    _refuse(model, _misfits_of_names(model, state, record, strict))
    if record is None:
        _refuse(model, _misfits_of_shapes(model, original, loaded))
        _refuse(model, _untold(model, original, loaded))
    else:
        _refuse(model, _misfits_of_record(original, loaded, record, strict))

    staying = {n: s for n, s in present.shapes.items() if n not in loaded and n not in present.constants}
    target = original | pruned | ModelShapes({**staying, **loaded})
    if record is None:
        target = target | ModelShapes(sizes=inferred_sizes(model, original, target.shapes))
    _refuse(model, misfits_within_modules(model, original, target))
    resize(model, target.difference(present))


def _loaded_shapes(
    model: nn.Module, state: Mapping[str, Any], original: ModelShapes, record: PruningMetadata | None
) -> dict[str, tuple[int, ...]]:
    """The shapes of the tensors that torch is about to copy into the model's."""
    loaded = {}
    for name, shape in original.shapes.items():
        value = state.get(name)
        # Scalars never change their shape, but torch once wrote them as vectors of one element.
        if not isinstance(value, Tensor) or name in original.constants or not shape:
            continue
        recorded = record is not None and name in record.pruned.shapes
        # A module with a way of its own to load, such as one with a growing buffer, takes shapes that are not ours.
        if recorded or _within(value.shape, shape) or not _loads_itself(model, name):
            loaded[name] = tuple(value.shape)
    return loaded


def _loads_itself(model: nn.Module, name: str) -> bool:
    owner = model.get_submodule(name.rpartition(".")[0])
    return loads_itself(owner)


def _within(shape: tuple[int, ...], original: tuple[int, ...]) -> bool:
    return len(shape) == len(original) and all(
        size == most or 0 < size < most for size, most in zip(shape, original, strict=True)
    )


def _misfits_of_names(
    model: nn.Module, state: Mapping[str, Any], record: PruningMetadata | None, strict: bool
) -> Iterator[str]:
    expected = {name: value for name, value in model.state_dict().items() if name != KEY}
    changing = {*recorded_shapes(model).shapes, *(() if record is None else record.pruned.shapes)}
    for name, value in expected.items():
        if name not in state:
            if strict or name in changing:
                yield f"{name!r} is missing"
        elif isinstance(value, Tensor) and not isinstance(state[name], Tensor):
            yield f"{name!r} is no tensor but of type {type(state[name]).__name__}"
    if strict:
        yield from (f"{name!r} is not one of the model's" for name in state if name not in expected)


def _misfits_of_record(original: ModelShapes, loaded: Shapes, record: PruningMetadata, strict: bool) -> Iterator[str]:
    """The record must tell of the original that the model at hand has, and of the tensors that come with it."""
    for name, shape in loaded.items():
        was = record.original.shapes.get(name, shape)
        if was != original.shapes[name]:
            yield f"{name!r} has shape {was} before pruning where the model's is {original.shapes[name]}"
        elif record.pruned.shapes.get(name, shape) != shape:
            yield f"{name!r} has shape {shape} where {record.pruned.shapes[name]} is recorded"
    for name, size in record.original.sizes.items():
        found = original.sizes.get(name)
        if found != size and (strict or found is not None):
            yield f"{name!r} is {size} before pruning where the model's is {found}"
    for name, value in record.pruned.constants.items():
        shapes = (record.original.shapes.get(name), record.pruned.shapes.get(name))
        if name in original.constants and shapes != (original.shapes[name], tuple(value.shape)):
            yield f"{name!r} has shape {shapes[0]} before pruning where the model's is {original.shapes[name]}"


def _misfits_of_shapes(model: nn.Module, original: ModelShapes, loaded: Shapes) -> Iterator[str]:
    refused = unsupported_parameters(model)
    for name, shape in loaded.items():
        was = original.shapes[name]
        if not _within(shape, was):
            yield f"{name!r} has shape {shape}, which is not a part of the original model's {was}"
        elif shape != was and name in refused:
            yield f"{name!r} has shape {shape} where the model's is {was}, but it {refused[name]}"


def _untold(model: nn.Module, original: ModelShapes, loaded: Shapes) -> Iterator[str]:
    """What surgery changed on the model and shapes do not tell, unless they are those of the original."""
    if all(shape == original.shapes[name] for name, shape in loaded.items()):
        return
    told, changed = inferred_sizes(model, original, original.shapes), recorded_shapes(model)
    for name in (*changed.sizes, *changed.constants):
        if name not in told:
            yield f"{name!r} is not told by shapes, and the state dict has no metadata of a pruned model (plain dict?)"


def _refuse(model: nn.Module, misfits: Iterable[str]) -> None:
    told = list(islice(misfits, _TOLD + 1))
    if told:
        lines = [*told[:_TOLD], *(("...",) if len(told) > _TOLD else ())]
        raise ValueError(
            f"Expected a state dict of this {type(model).__name__}, pruned or not, but got one in which\n- "
            + "\n- ".join(lines)
            + "\nThe model is unchanged. Build it with the arguments it was trained with, or load another checkpoint."
        )
