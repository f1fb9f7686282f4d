"""Runs that prove that a pruned model computes the same with the config that was found for it."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import torch
from torch import nn

from lightning_coreset.huggingface.building import Builder, adopt_fields, config_sizes
from lightning_coreset.state import duplicate
from lightning_coreset.structure import Example
from lightning_coreset.surgery import ModelShapes, resize
from lightning_coreset.verification.trial import Trial


class ConfigProof:
    """Compares outputs bit for bit, in double precision where the model can do that: nothing is too small to show.

    Args:
        model: The pruned model; it is copied.
        example: How it is run.
        builder: Builds models of its class.
        names: The sizes in its configs that follow the model's config.
    """

    def __init__(self, model: nn.Module, example: Example, builder: Builder, names: Collection[str]) -> None:
        self._trial = Trial(duplicate(model), example)
        self._model = self._trial.model
        self._builder, self._names = builder, names
        self._expected = self._trial.run()

    def __call__(self, config: Any, complete: bool) -> bool:
        """Whether the model computes the same with a config, and, if this is complete, a model built from it, too."""
        try:
            return self._can_have(config) and (not complete or self._is_given_by(config))
        except Exception:  # such as a forward pass that reads a field which has to stay
            return False

    def _can_have(self, config: Any) -> bool:
        """Whether the forward pass reads nothing in the config that has to stay as it is."""
        before = config_sizes(self._model)
        told = config_sizes(self._builder.build(config))
        try:
            adopt_fields(self._model, told, self._names)
            return self._computes_the_same(self._model)
        finally:
            resize(self._model, ModelShapes(sizes=before))

    def _is_given_by(self, config: Any) -> bool:
        with torch.random.fork_rng(devices=[]):
            built = type(self._model)(config)
        device = next(self._model.parameters()).device
        built = built.to(device, self._trial.dtype).eval()
        built.load_state_dict(self._model.state_dict())
        return self._computes_the_same(built)

    def _computes_the_same(self, model: nn.Module) -> bool:
        outputs = self._trial.run(model=model)
        return len(outputs) == len(self._expected) and all(map(torch.equal, outputs, self._expected))
