"""Configs of Hugging Face transformers that say how their models were pruned, so that ``save_pretrained`` writes it."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

from torch import nn

from lightning_coreset._compat import without_compile_wrapper
from lightning_coreset.checkpoint.config_record import ConfigRecord
from lightning_coreset.checkpoint.consistency import inferred_sizes
from lightning_coreset.checkpoint.metadata import KEY, PruningMetadata
from lightning_coreset.module_specs import Size
from lightning_coreset.surgery import ModelShapes, hand_down_record, original_shapes, recorded_shapes


def write_configs(model: nn.Module) -> None:
    """Let the configs of all models of transformers in a model say how these were pruned; of others, nothing.

    The fields that tell sizes keep their values. A config that changes is replaced by a copy.
    """
    inner = without_compile_wrapper(model)
    for path, part in list(pretrained_models(inner)):
        hand_down_record(inner, path)
        metadata = PruningMetadata.of(part)
        if metadata is not None:
            write_config(part, metadata, set())
        elif getattr(part.config, KEY, None) is not None:  # it has its original sizes again
            _attach(part, None)


def write_config(model: nn.Module, metadata: PruningMetadata, told: set[str]) -> None:
    """Let the config of a model of transformers say how it was pruned.

    Args:
        model: The model.
        metadata: How it was pruned.
        told: Sizes that the fields of the config tell.
    """
    names = {*metadata.pruned.shapes, *metadata.pruned.sizes} - told
    names -= inferred_sizes(model, original_shapes(model), ModelShapes.of(model).shapes).keys()
    _attach(model, ConfigRecord.made(model, _changed_fields(model), metadata.pruned, names).to_text())


def is_pretrained_model(module: nn.Module) -> bool:
    """Whether a module is a model of transformers (without importing that)."""
    config = getattr(module, "config", None)
    return (
        hasattr(type(module), "from_pretrained") and hasattr(config, "to_dict") and hasattr(type(config), "from_dict")
    )


def pretrained_models(model: nn.Module, path: str = "") -> Iterator[tuple[str, nn.Module]]:
    """The models of transformers in a module that are not part of another one, by qualified name."""
    if is_pretrained_model(model):
        yield path, model
        return
    for name, child in model.named_children():
        yield from pretrained_models(child, f"{path}.{name}" if path else name)


def _changed_fields(model: nn.Module) -> dict[str, Size]:
    """The sizes in a model's own config that are others now, as they were before."""
    present, original = ModelShapes.of(model).sizes, recorded_shapes(model).sizes
    changed = {name: size for name, size in original.items() if present.get(name, size) != size}
    return {name.removeprefix("config."): size for name, size in changed.items() if name.startswith("config.")}


def _attach(model: nn.Module, text: str | None) -> None:
    """Put a text into a copy of a model's config, for all modules that hold this; without one, take it out."""
    old: Any = model.config
    if getattr(old, KEY, None) == text:
        return
    new = copy.copy(old)
    if text is None:
        delattr(new, KEY)
    else:
        setattr(new, KEY, text)
    for module in model.modules():
        if vars(module).get("config") is old:
            module.config = new
