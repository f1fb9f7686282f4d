"""What a config says about the pruning of its model, beside the fields of its architecture: one field with a text.

A text, since transformers converts, compares and prints what is nested in a config.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from lightning_coreset.checkpoint.metadata import KEY
from lightning_coreset.checkpoint.record_tensor import from_plain, to_plain
from lightning_coreset.module_specs import Size, plain_size
from lightning_coreset.surgery import ModelShapes

_LOADER = "lightning_coreset.huggingface.load_pretrained(cls, folder)"  # for whoever reads the file


@dataclass(frozen=True, eq=False)
class ConfigRecord:
    """How a model differs from the one that its architecture gives for the original config.

    Attributes:
        class_name: The model's class.
        fields: Sizes in the config that tell of the pruning, as they were before, by path.
        pruned: What pruning changed, as it is now; names may be patterns, see :func:`folded`.
    """

    class_name: str
    fields: Mapping[str, Size]
    pruned: ModelShapes

    @classmethod
    def made(
        cls, model: nn.Module, fields: Mapping[str, Size], pruned: ModelShapes, names: Collection[str]
    ) -> ConfigRecord:
        """The record of a model as it is now, of what surgery has changed and is named."""
        present = ModelShapes.of(model)
        shapes = {name: shape for name, shape in pruned.shapes.items() if name in names}
        sizes = {name: size for name, size in pruned.sizes.items() if name in names}
        told = ModelShapes(folded(shapes, present.shapes), folded(sizes, present.sizes), pruned.constants)
        return cls(type(model).__name__, fields, told)

    def to_text(self) -> str:
        """The record as JSON."""
        constants = {name: to_plain(value) for name, value in self.pruned.constants.items()}
        plain = {"load_with": _LOADER, "class": self.class_name, "config": self.fields, "shapes": self.pruned.shapes}
        return json.dumps({**plain, "sizes": self.pruned.sizes, "constants": constants})

    @classmethod
    def of(cls, config: Any) -> ConfigRecord | None:
        """The record in a config; ``None`` if it has none.

        Raises:
            ValueError: If it cannot be read.
        """
        text = getattr(config, KEY, None)
        if text is None:
            return None
        try:
            plain = json.loads(text)
            shapes = {name: tuple(map(int, shape)) for name, shape in plain["shapes"].items()}
            sizes = {name: plain_size(size) for name, size in plain["sizes"].items()}
            constants = {name: from_plain(value) for name, value in plain["constants"].items()}
            fields = {path: plain_size(size) for path, size in plain["config"].items()}
            return cls(str(plain["class"]), fields, ModelShapes(shapes, sizes, constants))
        except (KeyError, TypeError, ValueError, AttributeError, RuntimeError) as error:
            raise unreadable_config(error) from error


def unreadable_config(reason: object) -> ValueError:
    """The error for a record in a config that cannot be read, or is not of its model."""
    return ValueError(
        f"Expected how a model was pruned under {KEY!r} in its config but cannot read it ({reason!r}). "
        "The file is damaged, or was written by a newer lightning_coreset."
    )


def folded(changed: Mapping[str, Any], present: Mapping[str, Any]) -> dict[str, Any]:
    """Sizes by name, with one entry such as ``"layers.*.mlp.weight"`` where all layers of a model have the same."""
    values: dict[str, set[Any]] = {}
    for name, size in present.items():
        values.setdefault(_pattern(name), set()).add(size)
    return {_pattern(name) if len(values[_pattern(name)]) == 1 else name: size for name, size in changed.items()}


def unfolded(sizes: Mapping[str, Any], names: Iterable[str]) -> dict[str, Any]:
    """The inverse of :func:`folded`, for a model that has these names."""
    matching: dict[str, list[str]] = {}
    for name in names:
        matching.setdefault(_pattern(name), []).append(name)
    found = {}
    for name, size in sizes.items():
        found |= dict.fromkeys(matching.get(name, [name]) if "*" in name else [name], size)
    return found


def _pattern(name: str) -> str:
    return re.sub(r"(?<![^.])\d+(?![^.])", "*", name)
