"""Models that are built from configs only to see what they would be like."""

from __future__ import annotations

import warnings
from collections.abc import Collection, Mapping
from typing import Any, TypeAlias

import torch
from torch import nn

from lightning_coreset.module_specs import Size, changed_attributes, owner, remembered_sizes
from lightning_coreset.surgery import ModelShapes, resize

Fact: TypeAlias = tuple[str, int]
"""The name of a tensor or a size, and the number of one of its dimensions or elements; -1 if it has none."""


def with_fields(config: Any, fields: Mapping[str, Size]) -> Any:
    """A config with other sizes, as it would be read from its file; the original stays as it is.

    Args:
        config: A config of transformers.
        fields: New sizes by path: ``"hidden_size"``, ``"vision_config.hidden_size"``, ``"hidden_sizes[1]"``.

    Raises:
        Exception: What the class of the config raises for sizes that do not go together.
    """
    holder = nn.Module()
    holder.config = config
    changes = [(holder, f"config.{path}", size) for path, size in fields.items()]
    changed = changed_attributes(changes)[0][2] if changes else config
    read = type(config).from_dict(changed.to_dict())
    read._attn_implementation = config._attn_implementation  # which is in no file
    return read


def fields_of_config(config: Any) -> dict[str, Size]:
    """The sizes in a config by path, without those that :func:`with_fields` could not set."""
    holder = nn.Module()
    holder.config = config
    return {path.removeprefix("config."): size for path, size in remembered_sizes(holder).items() if "." in path}


class Builder:
    """Builds models of one class from configs, without memory for their tensors where the class allows that."""

    def __init__(self, cls: type[nn.Module]) -> None:
        self._cls = cls
        self._device = "meta"

    def build(self, config: Any) -> nn.Module:
        """A new model. The global random state stays as it is.

        Raises:
            Exception: What the class raises for a config that gives no model.
        """
        try:
            return self._build(config)
        except Exception:
            if self._device == "cpu":
                raise
            # Some classes read numbers from tensors when they are built, which have none on this device.
            self._device = "cpu"
            return self._build(config)

    def _build(self, config: Any) -> nn.Module:
        with torch.device(self._device), torch.random.fork_rng(devices=[]), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return self._cls(config)


def facts(model: nn.Module, names: Collection[str]) -> dict[Fact, int]:
    """What can be compared of two models: the shapes of all tensors, and the sizes that are named."""
    shapes = ModelShapes.of(model)
    sizes = {name: size for name, size in shapes.sizes.items() if name in names}
    found: dict[Fact, int] = {}
    for name, size in {**shapes.shapes, **sizes}.items():
        found |= {(name, -1): size} if isinstance(size, int) else {(name, i): each for i, each in enumerate(size)}
    return found


def config_sizes(model: nn.Module) -> dict[str, Size]:
    """The sizes in the configs that the modules of a model hold, by qualified name."""
    sizes = ModelShapes.of(model).sizes
    return {name: size for name, size in sizes.items() if "." in owner(model, name)[1]}


def adopt_fields(model: nn.Module, sizes: Mapping[str, Size], names: Collection[str]) -> None:
    """Give the configs that the modules of a model hold the sizes of those of another one, where these are named."""
    present = config_sizes(model)
    resize(model, ModelShapes(sizes={name: sizes[name] for name in names if name in sizes and name in present}))
