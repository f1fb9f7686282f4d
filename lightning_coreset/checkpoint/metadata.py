"""What the metadata of a state dict says about the pruning of its model, as plain data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from lightning_coreset.module_specs import Size, is_size, plain_size
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
            return cls(_from_dict(plain["original"]), _from_dict(plain["pruned"]))
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ValueError(
                f"Expected how a model was pruned under {KEY!r} in the state dict's metadata but cannot read it "
                f"({error!r}). The file is damaged, or was written by a newer lightning_coreset."
            ) from error


def _to_dict(model_shapes: ModelShapes) -> dict[str, Any]:
    shapes = {name: list(shape) for name, shape in model_shapes.shapes.items()}
    # Clones: training may go on while an asynchronous writer saves the state dict.
    constants = {name: value.clone() for name, value in model_shapes.constants.items()}
    sizes = {name: list(size) if isinstance(size, tuple) else size for name, size in model_shapes.sizes.items()}
    return {"shapes": shapes, "sizes": sizes, "constants": constants}


def _from_dict(plain: Mapping[str, Any]) -> ModelShapes:
    shapes = {str(name): tuple(int(size) for size in shape) for name, shape in plain["shapes"].items()}
    sizes = {str(name): _size(name, size) for name, size in plain["sizes"].items()}
    constants = dict(plain["constants"])
    if not all(isinstance(value, Tensor) for value in constants.values()):
        raise TypeError("a constant that is no tensor")
    return ModelShapes(shapes, sizes, constants)


def _size(name: str, size: object) -> Size:
    if not is_size(size):
        raise TypeError(f"the size {name!r} is {size!r}")
    return plain_size(size)
