"""Whether rules tell the truth: operators on samples of torch's own tests, whole and cut.

Every floating-point input is labelled, along one dimension of one input or along all of all. Of the classes that the
engine finds and does not block one is removed: the operator on the cut inputs must give what the labels of its result
say. What the cut channels would have added to a contraction is taken away by zeros in the weight, as in the
definition of a consumer; a reduction over them is taken over the others, as the self-check does it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from lightning_coreset.structure import plain_execution
from lightning_coreset.structure.labels import ChannelLabels, TensorInfo
from lightning_coreset.structure.op_call import OpCall
from lightning_coreset.structure.penalties import hold
from lightning_coreset.structure.propagation import Propagation
from lightning_coreset.structure.registry import find_rule
from lightning_coreset.verification.twin import TwinRun

Inputs = tuple[Any, tuple[Any, ...], dict[str, Any]]
Labelled = Sequence[tuple[Tensor, Sequence[int]]]

SIZES_IN_THE_CALL = frozenset(
    """
broadcast_tensors broadcast_to diff expand expand_as grid_sampler_2d linalg.vander native_group_norm native_layer_norm
nn.functional.grid_sample nn.functional.group_norm nn.functional.layer_norm nn.functional.multi_head_attention_forward
nn.functional.rms_norm nn.functional.scaled_dot_product_attention reshape reshape_as sum_to_size unflatten view view_as
""".split()
)
"""Their calls name sizes, by numbers, by a second tensor, or by dividing by one: a network computes them anew."""


@dataclass
class Findings:
    """What came of the cases of some operators.

    Attributes:
        verdicts: How often each verdict came up.
        proven: How often each of aten's operators took part in a case that agrees.
        wrong: Cases that disagree, in words.
    """

    verdicts: Counter[str] = field(default_factory=Counter)
    proven: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)


class _Watched(Propagation):
    """Knows which operators came up, and whether any of them has no result to compare."""

    def __init__(self) -> None:
        super().__init__(nn.Module(), find_rule, {})
        self.names: set[str] = set()
        self.arbitrary = False

    def _apply_rule(self, call: OpCall) -> None:
        self.names.add(call.name)
        super()._apply_rule(call)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.arbitrary |= torch.Tag.nondeterministic_seeded in getattr(func, "tags", ()) or "empty" in str(func)
        return super().__torch_dispatch__(func, types, args, kwargs)

    def label(self, labelled: Labelled, *, constant: bool) -> None:
        for number, (tensor, dims) in enumerate(labelled):
            axes = []
            for dim in dims:
                shape = [1] * tensor.dim()
                shape[dim] = tensor.shape[dim]
                labels = self.union_find.allocate(_name(number), dim, tensor.shape[dim]).view(shape)
                axes.append(ChannelLabels(labels, frozenset({(_name(number), dim)}), from_layer=not constant))
            direct = _name(number) if constant else None
            self._known[tensor] = TensorInfo(tuple(axes), constant=constant, direct=direct)


def check(op: Any, most: int | None = None) -> Findings:
    """All cases of one entry of torch's operator database, on its first ``most`` samples."""
    findings = Findings()
    with plain_execution():
        for number, (inputs, labelled, constant) in enumerate(_cases(op, most)):
            verdict, names = _verdict(op, inputs, labelled, constant)
            findings.verdicts[verdict] += 1
            if verdict == "agrees":
                findings.proven.update(names)
            elif verdict not in ("blocked", "cannot be compared"):
                shapes = [(tuple(tensor.shape), list(dims)) for tensor, dims in labelled]
                findings.wrong.append(f"{op.full_name}, case {number}, {shapes}, constant={constant}: {verdict}")
    return findings


def _cases(op: Any, most: int | None) -> Iterator[tuple[Inputs, Labelled, bool]]:
    torch.manual_seed(0)
    # Not `op.sample_inputs`, which looks through all modules for the test that calls it, at every sample.
    for number, sample in enumerate(op.sample_inputs_func(op, "cpu", torch.float64, False)):
        if number == most:
            return
        inputs = tree_map(
            lambda leaf: leaf.detach() if isinstance(leaf, Tensor) else leaf, (sample.input, sample.args, sample.kwargs)
        )
        tensors = _tensors(inputs)
        if any(tensor.layout != torch.strided or tensor.dim() > 5 for tensor in tensors):
            continue
        own = {id(tensor): tensor for tensor in tensors if tensor.is_floating_point() and tensor.numel()}
        dims = [(tensor, [dim for dim, size in enumerate(tensor.shape) if size > 1]) for tensor in own.values()]
        labelled = [(tensor, of_tensor) for tensor, of_tensor in dims if of_tensor]
        yield from ((inputs, [(tensor, [dim])], False) for tensor, of_tensor in labelled for dim in of_tensor)
        if labelled:
            yield from ((inputs, labelled, constant) for constant in (False, True))


def _verdict(op: Any, inputs: Inputs, labelled: Labelled, constant: bool) -> tuple[str, set[str]]:
    engine = _Watched()
    engine.label(labelled, constant=constant)
    with engine.executor.running(), engine:
        results = _tensors(_call(op, inputs))
    engine.executor.close()
    if engine.arbitrary or any(one.layout != torch.strided for one in results):
        return "cannot be compared", set()
    infos = [engine.info(result) for result in results]
    for penalty in (one for info in infos for one in info.statistics if one.penalty):
        hold(engine, penalty, "is used")  # as everything but a loss does
    root = _removable(engine)
    if root is None:
        return "blocked", set()
    removed = _removed(engine, labelled, root)
    if _has_statistic(engine, infos, root):
        expected = _over_the_others(op, inputs, labelled, removed)
    else:
        zeroed = {id(tensor): _zeroed(engine, number, tensor, removed) for number, (tensor, _) in enumerate(labelled)}
        expected = _tensors(_call(op, _replaced(inputs, zeroed)))
    cut = {id(tensor): _without(tensor, removed[number]) for number, (tensor, _) in enumerate(labelled)}
    try:
        found = _tensors(_call(op, _replaced(inputs, cut)))
    except Exception as error:
        named = op.name in SIZES_IN_THE_CALL
        return ("cannot be compared" if named else f"does not run once it is cut: {error}"), set()
    verdicts = [
        _compared(engine, root, one, other, info) for one, other, info in zip(found, expected, infos, strict=True)
    ]
    wrong = next((verdict for verdict in verdicts if verdict is not None), None)
    if wrong is not None and op.name in SIZES_IN_THE_CALL:
        return "cannot be compared", set()
    return wrong or "agrees", engine.names


def _removable(engine: Propagation) -> int | None:
    """A class that may go and leaves something of every dimension."""
    roots, blocked = engine.union_find.all_roots(), engine.union_find.blocked()
    ranges = [roots[own.start : own.stop] for own in engine.union_find.ranges.values()]
    for root in {int(root) for own in ranges for root in own}:
        if not blocked[root] and all(bool((own != root).any()) for own in ranges):
            return root
    return None


def _removed(engine: Propagation, labelled: Labelled, root: int) -> list[dict[int, Tensor]]:
    """For every labelled tensor and dimension a mask of the indices that go."""
    roots, ranges = engine.union_find.all_roots(), engine.union_find.ranges
    return [
        {dim: roots[own.start : own.stop] == root for dim in dims if (own := ranges[_name(number), dim])}
        for number, (_, dims) in enumerate(labelled)
    ]


def _has_statistic(engine: Propagation, infos: Sequence[TensorInfo], root: int) -> bool:
    labels = [*engine.normalized, *(one.labels for info in infos for one in info.statistics)]
    return any(bool((engine.union_find.roots(one) == root).any()) for one in labels)


def _over_the_others(op: Any, inputs: Inputs, labelled: Labelled, removed: list[dict[int, Tensor]]) -> list[Tensor]:
    twins, layouts = [], []
    for (tensor, _), masks in zip(labelled, removed, strict=True):
        other = tensor.clone()
        for dim, mask in masks.items():
            index = mask.nonzero().flatten()
            other.index_copy_(dim, index, 0.7 - 1.3 * other.index_select(dim, index))
            layouts.append(mask)
        if not torch.equal(other, tensor):
            twins.append((tensor, other.clone))
    with TwinRun(twins, [], layouts):
        return _tensors(_call(op, inputs))


def _zeroed(engine: Propagation, number: int, tensor: Tensor, removed: list[dict[int, Tensor]]) -> Tensor:
    for dim, mask in removed[number].items():
        if (_name(number), dim) in engine.records.consumers:
            tensor = tensor.index_fill(dim, mask.nonzero().flatten(), 0.0)
    return tensor


def _without(tensor: Tensor, removed: dict[int, Tensor]) -> Tensor:
    for dim, mask in removed.items():
        tensor = tensor.index_select(dim, (~mask).nonzero().flatten())
    return tensor


def _compared(engine: Propagation, root: int, found: Tensor, expected: Tensor, info: TensorInfo) -> str | None:
    """What is wrong with a result of the cut inputs, if anything; a result that only a later use would hold is not."""
    if info.statistics or not (expected.numel() or found.numel()):
        return None
    gone = torch.zeros(expected.shape, dtype=torch.bool)
    for axis in info.channel_labels:
        gone = gone | (engine.union_find.roots(axis.labels) == root).expand(expected.shape)
    for dim in range(expected.dim()):
        kept = (~gone.movedim(dim, 0).reshape(expected.shape[dim], -1).all(1)).nonzero().flatten()
        expected, gone = expected.index_select(dim, kept), gone.index_select(dim, kept)
    if bool(gone.any()):
        return "removed elements that are no rectangle"
    for dim in range(min(found.dim(), expected.dim())):  # what does not vary has no labels, whatever its size
        first = expected.narrow(dim, 0, 1)
        if found.shape[dim] != expected.shape[dim] and torch.equal(first.expand_as(expected), expected):
            found, expected = found.narrow(dim, 0, 1), first
    if found.shape != expected.shape:
        return f"has the shape {tuple(found.shape)} where the labels say {tuple(expected.shape)}"
    if not (found.is_floating_point() or found.is_complex()):
        return None if torch.equal(found, expected) else "has other values than the labels say"
    close = torch.allclose(found, expected, rtol=1e-9, atol=1e-9, equal_nan=True)
    return None if close else "has other values than the labels say"


def _call(op: Any, inputs: Inputs) -> Any:
    first, args, kwargs = tree_map(lambda leaf: leaf, inputs)
    return op(first, *args, **kwargs)


def _replaced(inputs: Inputs, tensors: dict[int, Tensor]) -> Inputs:
    return tree_map(lambda leaf: tensors.get(id(leaf), leaf) if isinstance(leaf, Tensor) else leaf, inputs)


def _tensors(tree: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]


def _name(number: int) -> str:
    return f"input{number}.weight"
