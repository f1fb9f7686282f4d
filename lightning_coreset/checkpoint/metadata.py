"""What the metadata of a state dict says about the pruning of its model, as plain data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from lightning_coreset.plain_data import as_type
from lightning_coreset.qualified_names import lies_in
from lightning_coreset.surgery import ModelShapes, recorded_shapes

KEY = "lightning_coreset"


@dataclass(frozen=True, eq=False)
class PruningMetadata:
    """How a pruned model differs from the original.

    Attributes:
        original: What surgery changed, as it was before.
        pruned: The same, as it is now.
    """

    original: ModelShapes
    pruned: ModelShapes

    @classmethod
    def of(cls, model: nn.Module) -> PruningMetadata | None:
        """The metadata of a model; ``None`` if it is not pruned."""
        present = ModelShapes.of(model)
        original = recorded_shapes(model).restrict(present).difference(present)
        return cls(original, present.restrict(original)) if original.differs_from(present) else None

    @classmethod
    def read(cls, by_module: Mapping[str, Mapping[str, Any]], path: str = "") -> PruningMetadata | None:
        """What the metadata of a state dict says of a module; ``None`` if it says nothing.

        A module whose parts were pruned by themselves, as the network of a LightningModule by ``prune``, says nothing
        of its own: then it is what they say. What is said of a whole is said of its parts, too.

        Args:
            by_module: The metadata of all modules, by name.
            path: The module.

        Raises:
            ValueError: If it is something else.
        """
        named = {name: local[KEY] for name, local in by_module.items() if KEY in local}
        within = sorted((name for name in named if lies_in(name, path)), key=len)
        found: PruningMetadata | None = None
        told: list[str] = []
        for name in within:
            if any(lies_in(name, whole) for whole in told):
                continue
            told.append(name)
            part = cls.from_dict(named[name]).with_prefix(name.removeprefix(path).removeprefix("."))
            found = part if found is None else cls(found.original | part.original, found.pruned | part.pruned)
        return found

    def with_prefix(self, path: str) -> PruningMetadata:
        """The same for a model that has this one as its submodule ``path``."""
        return PruningMetadata(self.original.with_prefix(path), self.pruned.with_prefix(path))

    def to_dict(self) -> dict[str, Any]:
        """Dicts, lists, numbers and tensors, which ``torch.load(..., weights_only=True)`` reads."""
        return {"original": _to_dict(self.original), "pruned": _to_dict(self.pruned)}

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> PruningMetadata:
        """The inverse of :meth:`to_dict`.

        Raises:
            ValueError: If it is something else.
        """
        try:
            plain = as_type(plain, dict[str, Any], "the record")
            return cls(_from_dict(plain["original"]), _from_dict(plain["pruned"]))
        except (KeyError, ValueError) as error:
            raise unreadable(error) from error


def unreadable(error: Exception) -> ValueError:
    """The error for a record of pruning that cannot be read."""
    return ValueError(
        f"Expected how a model was pruned under {KEY!r} in the state dict or its metadata but cannot read it "
        f"({error!r}). The file is damaged, or was written by a newer lightning_coreset. Load another one."
    )


def _to_dict(model_shapes: ModelShapes) -> dict[str, Any]:
    shapes = {name: list(shape) for name, shape in model_shapes.shapes.items()}
    # Clones: training may go on while an asynchronous writer saves the state dict.
    constants = {name: value.clone() for name, value in model_shapes.constants.items()}
    sizes = {name: list(size) if isinstance(size, tuple) else size for name, size in model_shapes.sizes.items()}
    return {"shapes": shapes, "sizes": sizes, "constants": constants}


def _from_dict(plain: Any) -> ModelShapes:
    parts = as_type(plain, dict[str, Any], "a model's shapes")
    shapes = as_type(parts.get("shapes"), dict[str, tuple[int, ...]], "shapes")
    sizes = as_type(parts.get("sizes"), dict[str, int | tuple[int, ...]], "sizes")
    constants = as_type(parts.get("constants"), dict[str, Tensor], "constants")
    return ModelShapes(shapes, sizes, constants)
