"""A pruning event with Torch-Pruning on the networks of ``event_networks.py``: graph, ranking by L2 norms, removal.

    pip install torch-pruning==1.6.1

Layers that our package does not prune are ignored here, so that both remove the same number of channels.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch_pruning as tp
from event_networks import ExampleInputs, ResNet50, Work, output_of
from torch import Tensor, nn
from torch_pruning.pruner.function import BasePruningFunc


def prune(model: nn.Module, inputs: ExampleInputs, ratio: float, work: Work) -> None:
    """Build the dependency graph and prune the network, in place."""
    importance = tp.importance.MagnitudeImportance(p=2)
    if isinstance(model, ResNet50):
        _prune_resnet50(model, inputs, ratio, importance, work.include_residual)
    elif type(model).__name__ == "ViTForImageClassification":
        _prune_vit(model, inputs, ratio, importance)
    else:
        _prune_gpt2(model, inputs, ratio)


def _prune_resnet50(
    model: ResNet50, x: ExampleInputs, ratio: float, importance: tp.importance.Importance, residual: bool
) -> None:
    # What our package does not prune: the output, and by default residual channels.
    added = [block.conv3 for block in model.blocks]
    added += [block.downsample[0] for block in model.blocks if block.downsample]
    ignored = [model.fc] if residual else [model.fc, *added]
    tp.pruner.BasePruner(model, x, importance, pruning_ratio=ratio, ignored_layers=ignored).step()


def _prune_vit(model: nn.Module, inputs: ExampleInputs, ratio: float, importance: tp.importance.Importance) -> None:
    layers = model.vit.layers
    ignored = [model.vit.embeddings, model.classifier]
    ignored += [one for layer in layers for one in (layer.attention.o_proj, layer.mlp.fc2)]
    attentions = [layer.attention for layer in layers]
    heads = {
        projection: attention.num_attention_heads
        for attention in attentions
        for projection in (attention.q_proj, attention.k_proj, attention.v_proj)
    }
    pruner = tp.pruner.BasePruner(
        model,
        inputs,
        importance,
        pruning_ratio=ratio,
        ignored_layers=ignored,
        num_heads=heads,
        prune_num_heads=True,
        prune_head_dims=False,
        head_pruning_ratio=ratio,
        output_transform=output_of,
    )
    pruner.step()
    for attention in attentions:
        attention.num_attention_heads = pruner.num_heads[attention.q_proj]


def _prune_gpt2(model: nn.Module, inputs: ExampleInputs, ratio: float) -> None:
    from transformers.pytorch_utils import Conv1D

    blocks = model.transformer.h
    ignored = [model.lm_head, *(block.attn for block in blocks), *(block.mlp.c_proj for block in blocks)]
    pruner = Conv1DPruner()
    tp.pruner.BasePruner(
        model,
        inputs,
        Conv1DNorms(pruner),
        pruning_ratio=ratio,
        ignored_layers=ignored,
        customized_pruners={Conv1D: pruner},
        root_module_types=[Conv1D],
        output_transform=output_of,
    ).step()


class Conv1DPruner(BasePruningFunc):
    """Pruner for the Conv1D of `transformers`, a Linear with a weight of shape ``(in, out)``."""

    def prune_out_channels(self, layer: nn.Module, idxs: Sequence[int]) -> nn.Module:
        kept = sorted(set(range(layer.nf)) - set(idxs))
        layer.nf = len(kept)
        layer.weight = self._prune_parameter_and_grad(layer.weight, kept, 1)
        layer.bias = self._prune_parameter_and_grad(layer.bias, kept, 0)
        return layer

    def prune_in_channels(self, layer: nn.Module, idxs: Sequence[int]) -> nn.Module:
        kept = sorted(set(range(layer.nx)) - set(idxs))
        layer.nx = len(kept)
        layer.weight = self._prune_parameter_and_grad(layer.weight, kept, 0)
        return layer

    def get_out_channels(self, layer: nn.Module) -> int:
        return layer.nf

    def get_in_channels(self, layer: nn.Module) -> int:
        return layer.nx


class Conv1DNorms:
    """Squared norms of all weights that produce or read a channel, like ``MagnitudeImportance`` for a Linear."""

    def __init__(self, pruner: Conv1DPruner) -> None:
        self.pruner = pruner

    @torch.no_grad()
    def __call__(self, group: tp.dependency.Group) -> Tensor:
        norms = []
        for dependency, channels in group:
            layer = dependency.target.module
            if dependency.handler in (self.pruner.prune_out_channels, self.pruner.prune_in_channels):
                weight = layer.weight.t() if dependency.handler == self.pruner.prune_out_channels else layer.weight
                norms.append(weight[channels].pow(2).sum(1))
        return torch.stack(norms).mean(0)
