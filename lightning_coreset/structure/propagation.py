"""The engine: runs a network once and lets labels ride along, from one aten operation to the next."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from lightning_coreset.structure.labels import (
    UNLABELLED,
    ChannelLabels,
    TensorInfo,
    drop_uniform_dims,
    labels_along,
    pin_all,
)
from lightning_coreset.structure.lazy_execution import LazyExecutor
from lightning_coreset.structure.op_call import OpCall, tensors_among
from lightning_coreset.structure.records import Layer, Norm, Step
from lightning_coreset.structure.union_find import ChannelUnionFind
from lightning_coreset.structure.weak_map import IdentityWeakMap


@dataclass
class LayerRecord:
    """What the engine learns of a layer; becomes a ``Layer``."""

    layer: Layer
    order: int


class Propagation(TorchDispatchMode):
    """Follows every aten operation and keeps what is known of each tensor.

    An operation that no rule knows blocks all labels that enter it. A rule that fails does so too: the engine may
    refuse what could be pruned, never the other way round.
    """

    def __init__(self, model: nn.Module, rules: Mapping[str, Rule], refused: Mapping[str, str]) -> None:
        super().__init__()
        self.rules = rules
        self.refused = refused
        self.union_find = ChannelUnionFind()
        self.layers: dict[str, LayerRecord] = {}
        self.normalised_by: dict[Norm, set[str]] = {}
        self.producers: dict[tuple[str, int], int] = {}
        self.consumers: dict[tuple[str, int], int] = {}
        self.paths: list[tuple[str, tuple[Step, ...], str]] = []
        self.grids: list[ChannelLabels] = []
        # Labels that number attention heads, and those whose classes an attribute of a module counts.
        self.heads: list[Tensor] = []
        self.counts: list[tuple[Tensor, str, str]] = []
        self.macs: dict[str, int] = defaultdict(int)
        # Labels along the results of products without a weight, such as heads, with what these products cost.
        self.products: list[tuple[Tensor, int]] = []
        self.recording = True
        self.executor = LazyExecutor()
        self._known = IdentityWeakMap()
        self._adopt(model)
        for (name, _), atoms in self.union_find.ranges.items():
            if name in refused:
                self.union_find.block(torch.arange(atoms.start, atoms.stop), refused[name])

    def _adopt(self, model: nn.Module) -> None:
        """Give every index of every dimension of every parameter and buffer its atom; whole numbers are indices."""
        self.owners: dict[str, nn.Module] = {}
        self.modules = dict(model.named_modules())
        own = {
            f"{prefix}.{name}" if prefix else name: (module, tensor)
            for prefix, module in self.modules.items()
            for name, tensor in (*module._parameters.items(), *module._buffers.items())
            if tensor is not None and _holds_values(tensor)
        }
        self.union_find.reserve(sum(size for _, tensor in own.values() for size in tensor.shape))
        for name, (module, tensor) in own.items():
            if tensor not in self._known:  # the first of several names
                self.owners[name] = module
                self._adopt_tensor(name, tensor)

    def _adopt_tensor(self, name: str, tensor: Tensor) -> None:
        axes = []
        for dim, size in enumerate(tensor.shape):
            if size > 1:
                shape = [1] * tensor.dim()
                shape[dim] = size
                axes.append(
                    ChannelLabels(self.union_find.allocate(name, dim, size).view(shape), frozenset({(name, dim)}))
                )
        self._known[tensor] = TensorInfo(tuple(axes), constant=True, direct=name)

    # ---- what is known of tensors

    def info(self, tensor: Tensor | None) -> TensorInfo:
        """What is known of a tensor."""
        return (self._known.get(tensor) if tensor is not None else None) or UNLABELLED

    def set_info(self, tensor: Tensor, carried: TensorInfo) -> None:
        """Remember what is known of a result, and the grids to be decided at the end."""
        axes = drop_uniform_dims(carried.channel_labels, self.union_find)
        if axes != carried.channel_labels:
            carried = carried.with_channel_labels(axes)
        self.grids += [axis for axis in axes if len(axis.dims) > 1]
        self._known[tensor] = carried

    def channel_labels(self, tensor: Tensor, dim: int, reason: str) -> Tensor:
        """The labels of ``tensor`` along ``dim``, shape ``(tensor.shape[dim],)``, zeros where there are none."""
        return labels_along(self.info(tensor).along(dim), dim, tensor.shape[dim], self.union_find, reason)

    def pin_dims(self, tensor: Tensor, dims: Iterable[int], reason: str) -> tuple[ChannelLabels, ...]:
        """The axes of ``tensor`` after no single index along ``dims`` may go any more."""
        return tuple(pin_all(self.info(tensor).channel_labels, set(dims), self.union_find, reason))

    def block(self, tensor: Tensor, reason: str) -> None:
        """Forbid the removal of anything this tensor is labelled with."""
        for axis in self.info(tensor).channel_labels:
            self.union_find.block(axis.labels, reason)

    def producer_paths(self, tensors: Iterable[Tensor], step: Step | None = None) -> dict[str, tuple[Step, ...]]:
        """The trails of a result: those of its operands, with one step more."""
        merged: dict[str, tuple[Step, ...]] = {}
        for tensor in tensors:
            for producer, steps in self.info(tensor).producer_paths.items():
                known = merged.get(producer, steps)
                merged[producer] = known if known == steps else (*known, Step("mixed"))
        return merged if step is None else {producer: (*steps, step) for producer, steps in merged.items()}

    # ---- what is learnt of layers

    def record_layer(
        self, weight: Tensor, in_dim: int | None, out_dim: int | None, inputs: Tensor | None, **details: Any
    ) -> dict[str, tuple[Step, ...]]:
        """Record that ``weight`` contracts ``inputs``; returns the trails of the output.

        ``in_dim`` and ``out_dim`` are dimensions of the weight as it is used, which may be a transposed view.
        """
        carried = self.info(weight)
        order = len(self.layers)
        into = carried.along(in_dim) if in_dim is not None else None
        out = carried.along(out_dim) if out_dim is not None else None
        for axis, roles in ((into, self.consumers), (out, self.producers)):
            for source in axis.sources if axis is not None else ():
                roles.setdefault(source, order)
        name = self._layer_name(carried, out or into)
        if name is None:
            return {}
        if name not in self.layers:
            made, read = _own_dim(out, name), _own_dim(into, name)
            if made is None:
                made = 0 if read is None else 1 - min(read, 1)  # a single channel has no atoms
            if read is None and in_dim is not None:
                read = 1 - min(made, 1)
            layer = Layer(name, in_dim=read, out_dim=made, **details)
            self.layers[name] = LayerRecord(layer, order)
        opaque = () if carried.direct else (Step("derived weight"),)
        if self.recording and inputs is not None:
            trails = self.info(inputs).producer_paths.items()
            self.paths += [(producer, steps + opaque, name) for producer, steps in trails]
        return {name: opaque}

    def _layer_name(self, carried: TensorInfo, axis: ChannelLabels | None) -> str | None:
        if carried.direct is not None:
            return carried.direct
        return min(axis.sources)[0] if axis is not None and axis.sources else None

    def record_batch_norm(self, inputs: Tensor, norm: Norm) -> None:
        """Record that a BatchNorm directly follows the layer that made ``inputs``, if one did."""
        for producer, steps in self.info(inputs).producer_paths.items():
            if not steps and producer in self.layers:
                served = self.normalised_by.setdefault(norm, set())
                served.add(producer)
                # What is right for one of several layers that a BatchNorm serves would be wrong for the others.
                for name in served:
                    layer = self.layers[name].layer
                    self.layers[name].layer = replace(layer, norm=norm if len(served) == 1 else None)

    def count_macs(self, weight: Tensor | None, macs: int, axes: Sequence[ChannelLabels] = ()) -> None:
        """Add multiply-accumulates to the account of a weight, or to that of products without one (``""``).

        Such a product costs less when something goes that the ``axes`` of its result are labelled with.
        """
        if self.recording:
            carried = self.info(weight)
            name = self._layer_name(carried, next(iter(carried.channel_labels), None)) or ""
            self.macs[name] += macs
            if not name and axes:
                self.products.append((axes[0].labels, macs))

    # ---- running

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Run without the import of dynamo, which takes over three seconds; ``trace`` runs compiled code eagerly."""
        return False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run the operation, then follow it."""
        kwargs = kwargs or {}
        tensors = tensors_among((*args, *kwargs.values()))
        # The state before an in-place operation is what its rule needs; labels do not change by running it.
        result = self.executor.run(func, args, kwargs, tensors)
        if any(tensor in self._known for tensor in tensors):
            self._apply(OpCall.read(func, args, kwargs, tensors, result))
        return result

    def _apply(self, op: OpCall) -> None:
        """Apply the rule of an operation."""
        rule = self.rules.get(op.name)
        if rule is None:
            names = [self.info(tensor).direct or "" for tensor in op.tensors]
            known = next((self.refused[name] for name in names if name in self.refused), None)
            self.refuse(op, f"enters a layer that {known}" if known else f"enters aten.{op.name}, which has no rule")
            return
        try:
            rule(self, op)
        except Exception as error:  # a rule that cannot follow an unforeseen form must not end the user's program
            self.refuse(op, f"enters aten.{op.name} in a form that cannot be followed ({error})")

    def refuse(self, op: OpCall, reason: str) -> None:
        """Block everything that enters an operation."""
        for tensor in (*op.tensors, *op.results):
            self.block(tensor, reason)
            if tensor in self._known and not self.info(tensor).constant:
                self._known[tensor] = UNLABELLED


def _holds_values(tensor: Tensor) -> bool:
    return tensor.is_floating_point() or tensor.is_complex() or tensor.dtype == torch.bool


def _own_dim(axis: ChannelLabels | None, name: str) -> int | None:
    return next((dim for source, dim in axis.sources if source == name), None) if axis is not None else None


Rule = Callable[[Propagation, OpCall], None]
