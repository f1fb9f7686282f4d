"""The name under which models that version 0.1 pruned and pickled as a whole refer to their original shapes."""

from lightning_coreset.surgery.model_shapes import ModelShapes as Layout

__all__ = ["Layout"]
