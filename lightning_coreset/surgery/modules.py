"""The sizes that modules remember beside their tensors."""

from __future__ import annotations

import torch
from torch import nn


def mend_modules(model: nn.Module, changed: set[int]) -> None:
    """Set the sizes that modules remember to those of their tensors, where these have changed."""
    for module in model.modules():
        # Not ``module.weight``: a parametrized one is computed anew, and in training mode that has side effects.
        own = module._parameters.get("weight")
        if own is None and isinstance(module, nn.modules.batchnorm._NormBase):
            own = module.running_mean
        if own is not None and id(own) in changed:
            _mend(module, own.shape)


def _mend(module: nn.Module, shape: torch.Size) -> None:
    if isinstance(module, nn.Linear):
        module.out_features, module.in_features = shape
    elif isinstance(module, nn.modules.conv._ConvNd):
        _mend_convolution(module, *shape[:2])
    elif isinstance(module, nn.modules.batchnorm._NormBase):
        module.num_features = shape[0]
    elif isinstance(module, nn.GroupNorm):
        module.num_channels = shape[0]
    elif isinstance(module, nn.PReLU):
        module.num_parameters = shape[0]
    elif isinstance(module, (nn.Embedding, nn.EmbeddingBag)):
        module.num_embeddings, module.embedding_dim = shape
    elif type(module).__name__ == "Conv1D" and "nf" in vars(module):  # GPT-2's in transformers, a transposed Linear
        vars(module).update(nf=shape[1], **({"nx": shape[0]} if "nx" in vars(module) else {}))


def _mend_convolution(module: nn.modules.conv._ConvNd, first: int, second: int) -> None:
    if module.groups > 1 and module.groups == module.in_channels:
        multiplier = module.out_channels // module.groups
        module.groups = first if module.transposed else first // multiplier
        module.in_channels, module.out_channels = module.groups, module.groups * multiplier
    elif module.transposed:
        module.in_channels, module.out_channels = first, second * module.groups
    else:
        module.in_channels, module.out_channels = second * module.groups, first
