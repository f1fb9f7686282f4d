"""Runs a network and lets labels ride along, from one operator to the next."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from lightning_coreset._compat import DispatchMode, tree_map, view_base, without_transforms
from lightning_coreset.held_tensors import held_tensors
from lightning_coreset.state import FreedMemory
from lightning_coreset.state.writes import UndoneWrites
from lightning_coreset.structure.example import RunMode
from lightning_coreset.structure.head_dimensions import Queries
from lightning_coreset.structure.label_merging import varying
from lightning_coreset.structure.labels import (
    UNLABELLED,
    ChannelLabels,
    Statistic,
    TensorInfo,
    drop_uniform_dims,
    labels_along,
    pin_all,
)
from lightning_coreset.structure.last_layers import LastLayers
from lightning_coreset.structure.layer_records import LayerRecords, Paths
from lightning_coreset.structure.lazy_execution import LazyExecutor
from lightning_coreset.structure.loss_terms import note_terms
from lightning_coreset.structure.op_call import EQUAL_ELEMENTS, OpCall, tensors_among, written_by
from lightning_coreset.structure.penalties import follow_as_penalty, note_alike
from lightning_coreset.structure.pointwise import Pointwise, PointwiseFunctions, step_of
from lightning_coreset.structure.records import WeightNorm, layer_of
from lightning_coreset.structure.residual import ResidualAdditions
from lightning_coreset.structure.stacked import follow_stacked
from lightning_coreset.structure.statistics import block_statistics, check_statistics, pass_statistics
from lightning_coreset.structure.steps import Norm, Step, StepKind
from lightning_coreset.structure.uncounted import count_or_note
from lightning_coreset.structure.union_find import NO_TENSOR, ChannelUnionFind
from lightning_coreset.structure.untrained import Copy, mirrored_tensors
from lightning_coreset.structure.views import SharedMemory
from lightning_coreset.structure.weak_map import IdentityWeakMap
from lightning_coreset.structure.weight_products import WeightProducts


class Propagation(DispatchMode):
    """Follows every operation of a run and keeps what is known of each tensor.

    An operator without a rule blocks all labels that enter it. A rule that fails does so too: the engine may refuse
    what could be pruned, never the other way round.

    Rules call the methods from ``info`` to ``count_macs``. A rule of your own (``register_rule``) may rely on ``info``,
    ``channel_labels``, ``unite``, ``pin_dims``, ``block``, ``refuse``, ``producer_paths`` and ``set_info``.

    Args:
        model: The network whose parameters and buffers are followed.
        find_rule: The rule of an operator, ``None`` where it has none.
        unsupported: Parameters that may not change, by qualified name, each with the reason.
        within_heads: See below.
        unequal_pieces: See below.
        copies: Copies of parts of the network.

    Attributes:
        union_find: Which labels live and die together, and which are blocked.
        records: The layers that ran.
        pointwise: Which tensors hold functions of single elements of others.
        last_layers: Those that make outputs.
        grids: Labels that vary along several dimensions, of which one is chosen at the end.
        heads: Labels that number attention heads.
        counts: Labels whose classes an attribute of a module counts, with the names of both.
        normalized: Labels of channels that the network normalises over.
        standardised: Those of them that weights are normalised over, which read the channels.
        residual: Which additions are residual.
        routed: Labels of channels that are written where an index says, as experts write what they make of some rows.
        multiples: Labels along dimensions whose size has to be a multiple of a number, with this number.
        weight_norms: How weights are made that are no parameters themselves, by the name of the direction.
        weight_products: Which products of weights may be weights.
        within_heads: Whether dimensions within attention heads may go, instead of whole heads.
        unequal_pieces: Whether pieces of different sizes may lose positions, each its own.
        head_dimensions: Labels of these dimensions, a row for each head (repeated for each sample).
        queries: Of every product of queries and keys, what is known of the queries.
        pieces: With ``unequal_pieces``, the labels of each piece; classes of different pieces are different groups.
        alike: Tensors that the code has made alike for all rows and columns, and whether they are identity matrices.
        terms: Tensors that are made of activations in another way than as statistics over channels.
        read_terms: Statistics in numbers that the code has read, which may be losses.
        stacked: Tensors that hold states of several layers, with the number of dimensions that tell these apart.
        as_many: Labels of the channels that an attribute of a module counts for several of its layers at once, so that
            all lose equally many; by the module's name and the attribute, then by weight.
        modules: All modules of the network by qualified name.
        owners: The module that holds each parameter and buffer, or the weight that is made of it.
        copies: Copies of parts of the network: the same dimensions of copy and original live and die together.
        mirrored: The tensors of copies, each with the name of the one that it mirrors.
        used: Names of the parameters and buffers that met something else than these, such as an activation.
        followed: For each example, the modes in which it was followed.
        showed: For each example, whether it showed anything that those before it did not.
        has_outputs: Whether any of them returned a tensor.
    """

    supports_higher_order_operators = True

    def __init__(
        self,
        model: nn.Module,
        find_rule: Callable[[Any], Rule | None],
        unsupported: Mapping[str, str],
        *,
        within_heads: bool = False,
        unequal_pieces: bool = False,
        copies: Sequence[Copy] = (),
    ) -> None:
        super().__init__()
        self.union_find = ChannelUnionFind(within_heads=within_heads)
        self.records = LayerRecords()
        self.last_layers = LastLayers(self)
        self.pointwise = PointwiseFunctions(self)
        self.executor = LazyExecutor(self.pointwise.note_read)
        self.grids: list[ChannelLabels] = []
        self.heads: list[Tensor] = []
        self.counts: list[tuple[Tensor, str, str]] = []
        self.normalized: list[Tensor] = []
        self.standardised: list[Tensor] = []
        self.residual = ResidualAdditions(self)
        self.routed: list[Tensor] = []
        self.multiples: list[tuple[Tensor, int]] = []
        self.weight_norms: dict[str, WeightNorm] = {}
        self.weight_products = WeightProducts(self)
        self.within_heads = within_heads
        self.unequal_pieces = unequal_pieces
        self.head_dimensions: list[Tensor] = []
        self.queries: list[Queries] = []
        self.scale_is_implicit = False
        self.pieces: list[Tensor] = []
        self.modules = dict(model.named_modules())
        self.owners: dict[str, nn.Module] = {}
        self.copies = tuple(copies)
        self.mirrored = mirrored_tensors(copies)
        self.used: set[str] = set()
        self.followed: list[tuple[RunMode, ...]] = []
        self.showed: list[bool] = []
        self.has_outputs = False
        self.alike: IdentityWeakMap[bool] = IdentityWeakMap()
        self.terms: IdentityWeakMap[bool] = IdentityWeakMap()
        self.read_terms: list[Statistic] = []
        self.stacked: IdentityWeakMap[int] = IdentityWeakMap()
        self.as_many: dict[tuple[str, str], dict[str, Tensor]] = {}
        self._find_rule = find_rule
        self._unsupported = unsupported
        self._freed = FreedMemory(model)
        self._known: IdentityWeakMap[TensorInfo] = IdentityWeakMap()
        self._shared_memory = SharedMemory()
        self._first_shapes: dict[int, tuple[str, tuple[int, ...]]] = {}  # of parameters and buffers, by id
        self.writes: UndoneWrites | None = None  # told of every operation before it is run
        self._adopt()

    def _adopt(self) -> None:
        """Give every index of every dimension of every parameter and buffer its label; whole numbers are indices."""
        own = dict(self._own_tensors())
        self.union_find.reserve(sum(size for tensor in own.values() for size in tensor.shape))
        for name, tensor in own.items():
            if tensor not in self._known:  # the first of several names
                self.owners[name] = self.modules[layer_of(name)]
                self._adopt_tensor(name, tensor)
        for (name, _), labels in self.union_find.ranges.items():
            if name in self._unsupported:
                self.union_find.block(torch.arange(labels.start, labels.stop), self._unsupported[name])
        self._unite_copies(own)

    def _unite_copies(self, own: Mapping[str, Tensor]) -> None:
        """Whatever holds the channels of a copy holds its original's, and the other way round."""
        info = {name: self.info(tensor) for name, tensor in own.items() if name in self.owners}
        for name, original in self.mirrored.items():
            if name in info and original in info:
                axes = zip(info[name].channel_labels, info[original].channel_labels, strict=True)
                for axis, other in axes:
                    self.union_find.unite(other.labels, axis.labels, "")
        for name, tensor in held_tensors(self.modules[""]).items():
            original = own.get(self.mirrored.get(name, ""))
            if original is not None:
                self._known[tensor] = replace(self.info(original), constant=True, direct=name)
        for copy in self.copies:
            for tensor in (own[name] for name in copy.misfits if name in own):
                self.block(tensor, f"differs in shape between {copy.original or 'the module'} and its copy {copy.name}")

    def _own_tensors(self) -> Iterator[tuple[str, Tensor]]:
        """Parameters and buffers with values, module by module; a module that stands in two places only once."""
        # By the methods of nn.Module itself, since wrappers override them; for the whole network at once, since asking
        # every module is slow.
        model = self.modules[""]
        by_module: dict[str, list[tuple[str, Tensor]]] = {prefix: [] for prefix in self.modules}
        for name, tensor in (
            *nn.Module.named_parameters(model, remove_duplicate=False),
            *nn.Module.named_buffers(model, remove_duplicate=False),
        ):
            self._first_shapes.setdefault(id(tensor), (name, tuple(tensor.shape)))
            if _holds_values(tensor):
                by_module.get(name.rpartition(".")[0], []).append((name, tensor))
        for own in by_module.values():
            yield from own

    def _adopt_tensor(self, name: str, tensor: Tensor) -> None:
        axes = []
        for dim, size in enumerate(tensor.shape):
            if size > 1:
                shape = [1] * tensor.dim()
                shape[dim] = size
                labels = self.union_find.allocate(name, dim, size).view(shape)
                axes.append(ChannelLabels(labels, frozenset({(name, dim)})))
        self._known[tensor] = TensorInfo(tuple(axes), constant=True, direct=name, vanishes=True)

    # ---- what is known of tensors

    def info(self, tensor: Tensor | None) -> TensorInfo:
        """What is known of a tensor."""
        return (self._known.get(tensor) if tensor is not None else None) or UNLABELLED

    def is_followed(self, tensor: Tensor) -> bool:
        """Whether a tensor comes from channels of the network, each in its place or all together."""
        info = self.info(tensor)
        return bool(info.channel_labels or info.statistics or info.producer_paths)

    def varying(self, tensor: Tensor, ndim: int) -> set[int]:
        """The dimensions of a result of ``ndim`` dimensions in which an operand has elements of its own."""
        info = self.info(tensor)
        if info.uniform:
            return set()
        shift = ndim - tensor.dim()
        return varying(tensor, ndim) - {dim + shift for dim in info.equal_along}

    def is_alone(self, tensor: Tensor) -> bool:
        """Whether a tensor is no view and nothing else is known to show its memory."""
        return view_base(tensor) is None and not self._shared_memory.others(tensor)

    def same_views(self, tensor: Tensor) -> list[Tensor] | None:
        """The other tensors that show a tensor's memory; ``None`` if one of them shows another part, or otherwise."""
        base = view_base(tensor)
        others = [*self._shared_memory.others(tensor), *([] if base is None else [base])]
        form = (tensor.shape, tensor.stride(), tensor.storage_offset())
        return others if all((one.shape, one.stride(), one.storage_offset()) == form for one in others) else None

    def hold_in_views(self, call: OpCall, written: Tensor, axes: Collection[ChannelLabels]) -> None:
        """Block labels along new dimensions of a view that is written in place: its base would not get them."""
        dims = {axis.dims for axis in self.info(written).channel_labels}
        if call.inplace and {axis.dims for axis in axes} != dims and not self.is_alone(written):
            for axis in axes:
                self.union_find.block(axis.labels, f"is written in place ({call.title})")

    def note_values(self, tensor: Tensor) -> None:
        """Say that a tensor, and all that shows its memory, does not hold equal elements any more."""
        for one in (tensor, *self._shared_memory.others(tensor)):
            if self.info(one).uniform or self.info(one).equal_along:
                self._known[one] = replace(self.info(one), uniform=False, equal_along=frozenset())

    def set_info(self, tensor: Tensor, info: TensorInfo, *, stacked: int = 0) -> None:
        """Say what is known of a result. Labels that do not vary, for they are united, are dropped.

        Of as many first dimensions as ``stacked``, every index is the state of another layer.
        """
        axes = drop_uniform_dims(info.channel_labels, self.union_find)
        if axes != info.channel_labels:
            info = info.with_channel_labels(axes)
        if stacked:
            self.stacked[tensor] = stacked
        else:
            self.stacked.forget(tensor)
            self.grids += [axis for axis in axes if len(axis.dims) > 1]
        self._known[tensor] = info

    def channel_labels(self, tensor: Tensor, dim: int, reason: str) -> Tensor:
        """The labels of ``tensor`` along ``dim``, shape ``(tensor.shape[dim],)``, zeros where there are none.

        Where they vary along other dimensions as well, these are pinned for ``reason``. Labels of a second kind along
        ``dim``, as a view that merges two dimensions leaves them, are blocked.
        """
        along = [axis for axis in self.info(tensor).channel_labels if axis.labels.shape[dim] > 1]
        for other in along[1:]:
            self.union_find.block(other.labels, "shares a dimension with other channels")
        return labels_along(along[0] if along else None, dim, tensor.shape[dim], self.union_find, reason)

    def size_labels(self, tensor: Tensor, dim: int, reason: str) -> Tensor:
        """``channel_labels``, and of a dimension of equal elements, such as a first state of zeros, those of its size.

        It is as long as the channels that it meets, whichever these are.
        """
        if self.info(tensor).along(dim) is not None or dim in self.varying(tensor, tensor.dim()):
            return self.channel_labels(tensor, dim, reason)
        met, place, size = self.info(tensor).met, (dim - tensor.dim(),), tensor.shape[dim]
        if size < 2 or tensor not in self._known:
            return self.channel_labels(tensor, dim, reason)
        if place not in met:
            shape = [1] * tensor.dim()
            shape[dim] = size
            labels = self.union_find.allocate(f"{NO_TENSOR}{len(self.union_find.ranges)}", dim, size)
            met[place] = ChannelLabels(labels.view(shape))
        return met[place].flat

    def is_filled_by_run(self, tensor: Tensor) -> bool:
        """Whether a buffer has got its size in this run, as observers get theirs; it will be put back."""
        known = self._first_shapes.get(id(tensor))
        return known is not None and known[1] != tuple(tensor.shape)

    def buffer_labels(self, tensor: Tensor) -> Tensor:
        """The labels of a buffer of one dimension, also of whole numbers, which count as indices otherwise."""
        known = self._first_shapes.get(id(tensor))
        if known is not None and tensor not in self._known and tensor.dim() == 1:
            self.owners[known[0]] = self.modules[layer_of(known[0])]
            self._adopt_tensor(known[0], tensor)
        return self.channel_labels(tensor, 0, "is a number of a channel")

    def unite(self, first: Tensor, second: Tensor, reason: str) -> None:
        """Let the channels of two label tensors of one shape live and die together, element by element.

        A label that meets a 0, which stands for an element that nothing can remove, is blocked for ``reason``.
        """
        self.union_find.unite(first, second, reason)

    def pin_dims(self, tensor: Tensor, dims: Iterable[int], reason: str) -> tuple[ChannelLabels, ...]:
        """Forbid for ``reason`` that single indices along ``dims`` go; returns the labels that are left."""
        return self.pin_axes(self.info(tensor).channel_labels, dims, reason)

    def pin_axes(self, axes: Iterable[ChannelLabels], dims: Iterable[int], reason: str) -> tuple[ChannelLabels, ...]:
        """The same for axes that were moved already."""
        return tuple(pin_all(axes, set(dims), self.union_find, reason))

    def block(self, tensor: Tensor, reason: str) -> None:
        """Forbid the removal of anything this tensor is labelled with."""
        for axis in self.info(tensor).channel_labels:
            self.union_find.block(axis.labels, reason)
        block_statistics(self, tensor, reason)

    def refuse(self, call: OpCall, reason: str) -> None:
        """Block everything that enters a call; its results have no labels."""
        self._refuse((*call.tensors, *call.results), reason)

    def _refuse(self, tensors: Iterable[Tensor], reason: str) -> None:
        for tensor in tensors:
            self.block(tensor, reason)
            if tensor in self._known and not self.info(tensor).constant:
                self.last_layers.keep(tensor)
                self._known[tensor] = UNLABELLED

    def producer_paths(self, tensors: Iterable[Tensor], step: Step | None = None) -> Paths:
        """The paths of a result: those of its operands, with one step more."""
        merged: Paths = {}
        for tensor in tensors:
            for producer, steps in self.info(tensor).producer_paths.items():
                known = merged.get(producer, steps)
                merged[producer] = known if known == steps else (*known, Step(StepKind.MIXED))
        return merged if step is None else {producer: (*steps, step) for producer, steps in merged.items()}

    def note_derivative(self, derivative: Tensor, source: Tensor) -> None:
        """Say of what stands for a derivative that it is one with respect to ``source``; it has its labels already."""
        result, source = without_transforms(derivative), without_transforms(source)
        own, known = self.info(source), self.info(result)
        update = own.constant and result.shape == source.shape
        paths = {} if update else self.producer_paths([source], Step(StepKind.DERIVATIVE))
        self._known[result] = replace(known, constant=update, direct=None, producer_paths=paths, update=update)

    # ---- what is known of layers

    def record_layer(
        self,
        weight: Tensor,
        in_dim: int | None,
        out_dim: int | None,
        inputs: Tensor | None,
        *,
        bias: Tensor | None = None,
        groups: int = 1,
        scaled: bool = False,
    ) -> Paths:
        """Record that ``weight`` contracts ``inputs``; see ``LayerRecords.add_layer``."""
        made = self.records.add_layer(
            self.info(weight),
            in_dim,
            out_dim,
            self.info(inputs) if inputs is not None else None,
            self.info(bias) if bias is not None else None,
            groups,
            scaled,
        )
        for layer in made:
            self.residual.begin_call(layer)
        return made

    def record_product(self, product: Tensor, dim: int) -> Paths:
        """Record that a product with a parameter, element by element, is summed over ``dim``: a layer of one row."""
        info = self.info(product)
        assert info.factor is not None
        return self.records.add_layer(info.factor, dim, None, info, None, 1, scaled=True)

    def record_batch_norm(self, inputs: Tensor, norm: Norm) -> None:
        """Record that a BatchNorm directly follows the layer that made ``inputs``, if one did."""
        self.records.add_batch_norm(self.info(inputs), norm)

    def count_macs(self, weight: Tensor | None, macs: int, axes: Sequence[ChannelLabels] = ()) -> None:
        """Add multiply-accumulates to those of a weight, or to those of products without one (``""``).

        Such a product costs less when something goes that the ``axes`` of its result are labelled with.
        """
        self.records.add_macs(self.info(weight), macs, axes)

    # ---- running

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run the operation, then follow it."""
        kwargs = kwargs or {}
        if not hasattr(func, "overloadpacket"):
            return self._run_higher_order(func, args, kwargs)
        tensors = tensors_among((*args, *kwargs.values()))
        if self.writes is not None:
            self.writes.see(func, args, kwargs)
        # The state before an in-place operation is what its rule needs; labels do not change by running it.
        result = self.executor.run(func, args, kwargs, tensors)
        note_alike(func, tensors, result, self.alike)
        self.pointwise.see(func, tensors, result)
        if any(tensor in self._known for tensor in tensors):
            self._follow(OpCall.read(func, args, kwargs, tensors, result))
        elif func.overloadpacket in EQUAL_ELEMENTS:
            self._known[result] = TensorInfo(uniform=True)
        elif written_by(func):
            self.pointwise.forget_written(tensors)  # what it writes into may be the memory of others
        self._note_origin(func, tensors, result)
        note_terms(self, func, tensors, result)
        self.last_layers.see(tensors, result)
        if isinstance(result, Tensor):
            self._freed.count(result)
        return result

    def _note_origin(self, func: Any, tensors: list[Tensor], result: Any) -> None:
        results = tensors_among((result,))
        if written_by(func):
            written = [tensor for tensor in tensors if all(tensor is not one for one in results)]
            # All that may be written into, and what shows its memory: nothing is lost if that is too much.
            results += [*written, *(other for tensor in tensors for other in self._shared_memory.others(tensor))]
        self.residual.see(func, tensors, results)

    def _follow(self, call: OpCall) -> None:
        self._note_use(call)
        # The rule of a copy looks at what it writes into itself; another shape leaves the values as they are.
        if call.inplace and call.name != "copy" and torch.Tag.inplace_view not in call.function.tags:
            self._note_write(call)
        copies = {tensor: info for tensor in call.written if (info := self.info(tensor)).direct in self.mirrored}
        entered = self.pointwise.before(call)
        before = self.info(call.tensors[0]).producer_paths
        self._apply_rule(call)
        self._note_function(call, entered, before)
        for tensor, info in copies.items():
            self._known[tensor] = info  # an update of a copy: it is the same layer with other values
        if call.function.is_view:
            self._shared_memory.add((*call.tensors, *call.results))

    def _note_function(self, call: OpCall, entered: list[Pointwise] | None, before: Paths) -> None:
        """Let one step stand for all element-wise operations since the same tensor, where they are one function."""
        if call.written:
            self.pointwise.forget_written(call.written)
        if not entered or not call.results:
            return
        paths, info = entered[0].origin.paths, self.info(call.results[0])
        holds = self.pointwise.after(call, entered)
        if holds is None or info.constant or info.producer_paths.keys() != paths.keys():
            return
        step = step_of(call, holds)
        if step is not None:
            paths = {producer: (*steps, step) for producer, steps in paths.items()}
            self._known[call.results[0]] = replace(info, producer_paths=paths)
        elif info.producer_paths != before:
            return  # it was no mere movement
        self.pointwise.remember(call.results[0], holds)

    def _note_use(self, call: OpCall) -> None:
        """A penalty or an average, in which parameters only meet each other, uses none of them."""
        infos = [self.info(tensor) for tensor in call.tensors]
        if all(info.constant for info in infos):
            return
        for info in infos:
            if info.direct is not None:
                self.used.add(info.direct)
            if info.constant:
                self.used.update(name for axis in info.channel_labels for name, _ in axis.sources)

    def _apply_rule(self, call: OpCall) -> None:
        rule = self._find_rule(call.function)
        count_or_note(self, call, rule)
        if rule is None:
            names = [self.info(tensor).direct or "" for tensor in call.tensors]
            known = next((self._unsupported[name] for name in names if name in self._unsupported), None)
            missing = (
                f"enters an operator without a rule ({call.title}; lightning_coreset.structure.register_rule adds one)"
            )
            if not known and follow_as_penalty(self, call, missing):
                return
            self.refuse(call, f"enters a layer that {known}" if known else missing)
            return
        if call.has_out:  # which may be a view of something else
            self.refuse(call, f"is written into an argument out ({call.title})")
            return
        try:
            if follow_stacked(self, call):
                return
            statistics = check_statistics(self, call, rule)
            rule(self, call)
            if statistics:
                self._add_statistics(call.results, pass_statistics(self, call, statistics))
        except Exception as error:  # a rule that cannot follow an unforeseen form must not end the user's program
            self.refuse(call, f"is used in a form that cannot be followed ({call.title}: {error})")

    def _add_statistics(self, results: Iterable[Tensor], statistics: Iterable[Statistic]) -> None:
        for result in results:
            info = self.info(result)
            self._known[result] = replace(info, statistics=(*info.statistics, *statistics))

    def _note_write(self, call: OpCall) -> None:
        """Other views of memory that is written into keep their labels, and have other values from now on."""
        for written in call.written:
            for other in self._shared_memory.others(written):
                info = self.info(other)
                paths = self.producer_paths([other], Step(StepKind.WRITTEN))
                self._known[other] = replace(
                    info, direct=None, producer_paths=paths, uniform=False, equal_along=frozenset()
                )

    def _run_higher_order(self, func: Any, args: Any, kwargs: Any) -> Any:
        """Run an operator that is given functions, such as ``torch.cond``.

        What these functions do is followed, for they may use any weight of the network. What becomes of the operator's
        own arguments is not known, so everything that enters or leaves it is blocked.
        """

        def followed(function: Callable[..., Any]) -> Callable[..., Any]:
            def call(*inner: Any, **named: Any) -> Any:
                with self:
                    result = function(*inner, **named)
                self.executor.materialize()
                return result

            return call

        self.executor.materialize()
        args, kwargs = tree_map(
            lambda leaf: followed(leaf) if callable(leaf) and not isinstance(leaf, Tensor) else leaf, (args, kwargs)
        )
        result = func(*args, **kwargs)
        self.residual.see(func, tensors_among((args, kwargs)), tensors_among((result,)))
        reason = f"enters an operator that is given functions ({func.name()})"
        self._refuse(tensors_among((args, kwargs, result)), reason)
        return result


def _holds_values(tensor: Tensor) -> bool:
    return tensor.is_floating_point() or tensor.is_complex() or tensor.dtype == torch.bool


Rule = Callable[[Propagation, OpCall], None]
"""What an operator does to labels: called after it ran, with what is known and the call."""
