"""Give a model the sizes of a state dict, if that can be one of this model."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from typing import Any

from torch import Tensor, nn

from lightning_coreset._compat import loads_itself, metadata_of
from lightning_coreset.checkpoint.configs import write_configs
from lightning_coreset.checkpoint.consistency import inferred_sizes, mismatches
from lightning_coreset.checkpoint.given_sizes import given_sizes
from lightning_coreset.checkpoint.metadata import PruningMetadata
from lightning_coreset.checkpoint.record_check import half_recorded, is_part_of, wrong_record, wrong_sizes
from lightning_coreset.checkpoint.record_tensor import combined, is_record, pop_records
from lightning_coreset.checkpoint.unknown_sizes import derived_head_counts, unknown_sizes
from lightning_coreset.module_specs import Size, check_module_sizes
from lightning_coreset.qualified_names import listed
from lightning_coreset.structure.unsupported import unsupported_parameters
from lightning_coreset.surgery import ModelShapes, all_tensors, keep_record, original_shapes, recorded_shapes, resize

Shapes = Mapping[str, tuple[int, ...]]

_MOST_LINES = 4  # that an error lists


def resize_to_state_dict(
    model: nn.Module,
    state: Mapping[str, Any],
    *,
    metadata: PruningMetadata | None = None,
    strict: bool = True,
    sizes: Mapping[str, Size] | None = None,
) -> None:
    """Give a model the sizes of a state dict, smaller or larger, so that it can be loaded.

    Where no size differs, nothing is checked or done.

    Args:
        model: The model, pruned already or not.
        state: The state dict, under the model's own names.
        metadata: What is known about its pruning, in place of what the state dict says. Where neither says anything,
            sizes are inferred from shapes alone.
        strict: Whether all names must match.
        sizes: Numbers that shapes do not tell, for tensors without a record: what a model remembers, such as its number
            of heads, by qualified name, which may be a shell pattern. Also those that pruning did not change.

    Raises:
        ValueError: If the tensors cannot be those of this model, pruned or not, or shapes do not tell all that pruning
            may have changed. The model is unchanged then.

    Example:
        >>> import torch
        >>> from lightning_coreset import prune
        >>> from lightning_coreset.checkpoint import resize_to_state_dict
        >>> def build():
        ...     return nn.TransformerEncoderLayer(32, nhead=4, dim_feedforward=64, batch_first=True)
        >>> model, fresh = build().eval(), build().eval()
        >>> _ = prune(model, torch.randn(1, 5, 32), 0.5)
        >>> state = {name: tensor.clone() for name, tensor in model.state_dict().items()}  # says nothing of heads
        >>> resize_to_state_dict(fresh, state, sizes={"self_attn.num_heads": model.self_attn.num_heads})
        >>> fresh.load_state_dict(state)
        <All keys matched successfully>
    """
    state, found = entries_and_record(state)
    metadata = found if metadata is None else metadata
    if metadata is not None and sizes:
        raise ValueError("Expected no `sizes` for a state dict that says itself how its model was pruned.")
    original, present = original_shapes(model), ModelShapes.of(model)
    given = given_sizes(original, sizes or {})
    loaded = _loaded_shapes(model, state, original, metadata)
    pruned = ModelShapes() if metadata is None else metadata.pruned.restrict(present)
    if not (present | ModelShapes(loaded) | ModelShapes(sizes={**pruned.sizes, **given})).differs_from(present):
        if metadata is not None:
            _adopt(model, metadata, present)
        return

    check_module_sizes(model)
    _raise_for(model, _wrong_names(model, state, metadata, strict), _TO_BE_LENIENT if strict else "")
    if metadata is None:
        _raise_for(model, _wrong_shapes(model, original, loaded))
    else:
        _raise_for(model, wrong_record(original, loaded, metadata, strict))

    unloaded = {n: s for n, s in present.shapes.items() if n not in loaded and n not in present.constants}
    shapes = (original | pruned | ModelShapes({**unloaded, **loaded})).shapes
    inferred = inferred_sizes(model, original, shapes)
    if metadata is not None:
        _raise_for(model, wrong_sizes(original, metadata, inferred, strict))
    else:
        inferred = {**inferred, **derived_head_counts(model, original, shapes), **given}
    known = ModelShapes(sizes=inferred).restrict(original)  # without constants
    target = original | known | pruned | ModelShapes(shapes)
    _raise_for(model, mismatches(model, original, target))
    if metadata is not None:
        _raise_for(model, half_recorded(metadata))
    else:
        _check_known(model, unknown_sizes(model, original, shapes, inferred))
    resize(model, target.difference(present))
    write_configs(model)


def _adopt(model: nn.Module, metadata: PruningMetadata, present: ModelShapes) -> None:
    """Record how a model was pruned that was built with the smaller sizes, as of a pickled one, which has no record."""
    known, pruned, before = recorded_shapes(model), metadata.pruned, metadata.original
    named = pruned.shapes.keys() <= present.shapes.keys() and pruned.sizes.keys() <= present.sizes.keys()
    if known.shapes or known.sizes or not named or present.restrict(pruned).differs_from(pruned):
        return
    sound = (
        not any(half_recorded(metadata))
        and all(is_part_of(shape, before.shapes[name]) for name, shape in pruned.shapes.items())
        and all(tuple(value.shape) == before.shapes.get(name) for name, value in before.constants.items())
    )
    if sound:
        keep_record(model, before)


def with_aliases(model: nn.Module, state: Mapping[str, Any]) -> dict[str, Any]:
    """The entries of a state dict, each tied tensor under all of its names."""
    tensors = all_tensors(model)
    given = {id(tensor): state[name] for name, tensor in reversed(tensors.items()) if name in state}
    return {**{name: given[id(tensor)] for name, tensor in tensors.items() if id(tensor) in given}, **state}


def entries_and_record(state: Mapping[str, Any]) -> tuple[dict[str, Any], PruningMetadata | None]:
    """The tensors of a state dict, and what it says of pruning, as metadata or as an entry."""
    entries = dict(state)
    record, found = PruningMetadata.read(metadata_of(state)), pop_records(entries)
    return entries, found if record is None else record if found is None else combined(record, found)


def _check_known(model: nn.Module, unknown: Mapping[str, Size]) -> None:
    """Raise if shapes do not tell all that pruning may have changed."""
    if unknown:
        numbers = listed([f"{name!r} ({size} as built)" for name, size in unknown.items()])
        raise ValueError(
            f"Expected a state dict that says how its {type(model).__name__} was pruned, since shapes do not tell what "
            f"became of {numbers}, but got one that does not, as plain dicts and safetensors. The model is unchanged. "
            "Load what model.state_dict() returned with its metadata (torch.save keeps that), save with "
            "make_resizable(model, record='tensor'), or give the numbers: "
            "lightning_coreset.checkpoint.resize_to_state_dict(model, state_dict, sizes={name: number}). See "
            "docs/checkpoints.md."
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
    expected = {name: value for name, value in model.state_dict().items() if not is_record(name)}
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


_TO_BE_LENIENT = (
    " To leave out names, set `model.strict_loading = False` first: torch does not tell how `strict` is set."
)


def _raise_for(model: nn.Module, problems: Iterable[str], hint: str = "") -> None:
    found = list(islice(problems, _MOST_LINES + 1))
    if found:
        lines = [*found[:_MOST_LINES], *(("...",) if len(found) > _MOST_LINES else ())]
        raise ValueError(
            f"Expected a state dict of this {type(model).__name__}, pruned or not, but got one in which\n- "
            + "\n- ".join(lines)
            + "\nThe model is unchanged. Build it with the arguments it was trained with, or load another checkpoint "
            f"(docs/checkpoints.md).{hint}"
        )
