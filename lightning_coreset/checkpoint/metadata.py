"""What a state dict says about a pruned model beside its tensors: plain data in its metadata."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from lightning_coreset.surgery import Layout, remembered

KEY = "lightning_coreset"


@dataclass(frozen=True, eq=False)
class Record:
    """How a pruned model differs from the original.

    Attributes:
        original: What surgery changed, as it was before.
        pruned: The same, as it is now.
    """

    original: Layout
    pruned: Layout

    @classmethod
    def of(cls, model: nn.Module) -> Record | None:
        """The record of a model; ``None`` if it is not pruned."""
        present = Layout.of(model)
        original = remembered(model).at(present).where_not(present)
        return cls(original, present.at(original)) if original.differs_from(present) else None

    def to_dict(self) -> dict[str, Any]:
        """Dicts, lists, numbers and tensors, which ``torch.load(..., weights_only=True)`` reads."""
        return {"original": _to_dict(self.original), "pruned": _to_dict(self.pruned)}

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> Record:
        """The inverse of :meth:`to_dict`.

        Raises:
            ValueError: If it is something else.
        """
        try:
            return cls(_from_dict(plain["original"]), _from_dict(plain["pruned"]))
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ValueError(
                f"Expected the record of a pruned model under {KEY!r} in the state dict's metadata but cannot read it "
                f"({error!r}). Is it damaged, or from a newer lightning_coreset?"
            ) from error


def _to_dict(layout: Layout) -> dict[str, Any]:
    shapes = {name: list(shape) for name, shape in layout.shapes.items()}
    # Clones: the state dict of a model that is trained on must not change under the hands of an asynchronous writer.
    constants = {name: value.clone() for name, value in layout.constants.items()}
    return {"shapes": shapes, "sizes": dict(layout.sizes), "constants": constants}


def _from_dict(plain: Mapping[str, Any]) -> Layout:
    shapes = {str(name): tuple(int(size) for size in shape) for name, shape in plain["shapes"].items()}
    sizes = {str(name): int(size) for name, size in plain["sizes"].items()}
    constants = dict(plain["constants"])
    if not all(isinstance(value, Tensor) for value in constants.values()):
        raise TypeError("a constant that is no tensor")
    return Layout(shapes, sizes, constants)
