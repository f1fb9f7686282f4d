"""``nn.MultiheadAttention`` while a network is followed.

Its ``in_proj_weight`` holds the weights of queries, keys and values, one below the other. A slice would tie equal
positions of the three, as code with fixed sizes does. In ``NarrowAttention``, which the module may become, no size is
fixed: so the three are followed as if they were parameters of their own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace

import torch.nn.functional as F
from torch import Tensor, nn

from lightning_coreset.module_specs import NarrowAttention, module_spec
from lightning_coreset.structure.labels import TensorInfo
from lightning_coreset.structure.propagation import Propagation
from lightning_coreset.structure.steps import Step, StepKind


@contextmanager
def followed_attention(model: nn.Module, engine: Propagation) -> Iterator[None]:
    """In the block, every ``nn.MultiheadAttention`` that may be pruned runs operations that the engine can follow."""
    modules = [
        (module, type(module))
        for module in model.modules()
        if isinstance(module, nn.MultiheadAttention) and module_spec(module).reason(module) is None
    ]
    try:
        for module, _ in modules:
            module.__class__ = NarrowAttention
            vars(module)["project"] = _projection(module, engine)
        yield
    finally:
        for module, own in modules:
            module.__class__ = own
            vars(module).pop("project", None)


def _projection(module: nn.MultiheadAttention, engine: Propagation) -> Callable[..., tuple[Tensor, ...]]:
    """What takes the place of ``NarrowAttention.project``."""
    values = module.out_proj.weight.shape[1]
    weights = _Parts(engine, module.in_proj_weight, values)
    biases = _Parts(engine, module.in_proj_bias, values)
    separate = [module.q_proj_weight, module.k_proj_weight, module.v_proj_weight]

    def project(query: Tensor, key: Tensor, value: Tensor, same: bool) -> tuple[Tensor, ...]:
        # One layer as any other where all three read the same: its columns are those of one tensor.
        whole = same and module.in_proj_weight is not None
        for parts in (weights, biases):
            parts.stand_for_whole(whole)
        operands = zip((query, key, value), weights.tensors or separate, biases.tensors or (None,) * 3, strict=True)
        projected = tuple(F.linear(*each) for each in operands)
        for made in projected:
            _tell(engine, made, derived=whole)
        return projected

    return project


class _Parts:
    """The rows of a parameter for queries, keys and values, each of which carries the labels of these rows only.

    Args:
        engine: What follows the network.
        parameter: The parameter, ``None`` if the module has none.
        values: How many rows are those of values.
    """

    def __init__(self, engine: Propagation, parameter: Tensor | None, values: int) -> None:
        self._engine, self._name = engine, engine.info(parameter).direct
        self.tensors: list[Tensor] = []
        if parameter is None:
            return
        queries = (parameter.shape[0] - values) // 2
        self.tensors += parameter.detach().split([queries, queries, values])
        for part, first in zip(self.tensors, (0, queries, 2 * queries), strict=True):
            axes = [
                axis.with_labels(axis.labels.narrow(0, first, part.shape[0])) if 0 in axis.dims else axis
                for axis in engine.info(parameter).channel_labels
            ]
            engine.set_info(part, TensorInfo(tuple(axes), constant=True))

    def stand_for_whole(self, whole: bool) -> None:
        """Whether a layer that reads with one of the parts counts as one that reads with the parameter as it is."""
        for part in self.tensors:
            self._engine.set_info(part, replace(self._engine.info(part), direct=self._name if whole else None))


def _tell(engine: Propagation, made: Tensor, *, derived: bool) -> None:
    """Say of projected channels that they are those of all heads, and if a part of a parameter made them.

    With sequences of one token, the views of a Linear look as if they wrote a 1 for the heads.
    """
    info = engine.info(made)
    axes = tuple(replace(axis, single_head=False) for axis in info.channel_labels)
    step = Step(StepKind.DERIVED_WEIGHT) if derived else None
    paths = engine.producer_paths([made], step)
    engine.set_info(made, replace(info, channel_labels=axes, producer_paths=paths))
