"""Pruned models of Hugging Face transformers: configs that tell their sizes, and folders that load again."""

from __future__ import annotations

from lightning_coreset.huggingface.loading import load_pretrained
from lightning_coreset.huggingface.updating import update_config

__all__ = ["load_pretrained", "update_config"]
