"""Whether rules tell the truth: operators on samples of torch's own tests, whole and cut.

Inputs are labelled in all the ways of ``operator_labels.py``. Of the classes of channels that the engine finds and does
not block some are removed: the operator on the cut inputs must give what the labels of its result say. What the cut
channels would have added to a contraction is taken away by zeros in the weight, as in the definition of a consumer; a
reduction over them is taken over the others, as the self-check does it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from structure.operator_labels import Labelling, labellings
from structure.operator_samples import Sample, in_another_layout_of
from torch import Tensor, nn

from lightning_coreset.structure import plain_execution
from lightning_coreset.structure.find import _decide_grids
from lightning_coreset.structure.function_calls import FollowedCalls
from lightning_coreset.structure.labels import TensorInfo
from lightning_coreset.structure.op_call import OpCall
from lightning_coreset.structure.penalties import hold
from lightning_coreset.structure.propagation import Propagation
from lightning_coreset.structure.registry import find_rule
from lightning_coreset.verification.twin import TwinRun

MOST_CLASSES = 3
"""So many classes of channels are removed one by one, and then together."""


@dataclass
class Findings:
    """What came of the cases of some operators.

    Attributes:
        verdicts: How often each verdict came up.
        proven: How often each of aten's operators took part in a case that agrees.
        failed: Rules that gave up on a call for an error of their own.
        wrong: Cases that disagree, in words.
    """

    verdicts: Counter[str] = field(default_factory=Counter)
    proven: Counter[str] = field(default_factory=Counter)
    failed: set[str] = field(default_factory=set)
    wrong: list[str] = field(default_factory=list)

    def add(self, other: Findings) -> None:
        """Those of other operators too."""
        self.verdicts += other.verdicts
        self.proven += other.proven
        self.failed |= other.failed
        self.wrong += other.wrong


class _Watched(Propagation):
    """Knows which operators came up, which rules failed, and whether any operator has no result to compare."""

    def __init__(self) -> None:
        super().__init__(nn.Module(), find_rule, {})
        self.names: set[str] = set()
        self.failed: set[str] = set()
        self.arbitrary = False

    def _apply_rule(self, call: OpCall) -> None:
        self.names.add(call.name)
        super()._apply_rule(call)

    def refuse(self, call: OpCall, reason: str) -> None:
        if "cannot be followed" in reason:
            self.failed.add(reason)
        super().refuse(call, reason)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.arbitrary |= torch.Tag.nondeterministic_seeded in getattr(func, "tags", ()) or "empty" in str(func)
        return super().__torch_dispatch__(func, types, args, kwargs)


def check(samples: Iterator[Sample]) -> Findings:
    """All cases of some samples."""
    findings = Findings()
    with plain_execution():
        for number, sample in enumerate(samples):
            for labelling in labellings(sample.tensors):
                _judge(sample, labelling, f"{sample.operator}{' in place' * sample.inplace}, sample {number}", findings)
    return findings


def _judge(sample: Sample, labelling: Labelling, title: str, findings: Findings) -> None:
    engine, tensors = _Watched(), [tensor.clone() for tensor in sample.tensors]
    labelling.apply(engine, tensors)
    try:
        with engine.executor.running(), FollowedCalls(engine), engine:
            results = sample.call(tensors)
    except Exception as error:
        engine.executor.close()
        if _raises(sample):
            return  # not by the engine
        raise AssertionError(f"{title}, {labelling}: {error}") from error
    engine.executor.close()
    findings.failed |= engine.failed
    if engine.arbitrary or any(one.layout != torch.strided for one in results):
        findings.verdicts["cannot be compared"] += 1
        return
    infos = [engine.info(result) for result in results]
    for penalty in (one for info in infos for one in info.statistics if one.penalty):
        hold(engine, penalty, "is used")  # as everything but a loss does
    _decide_grids(engine)
    choices = list(_choices(engine, labelling))
    if not choices:
        findings.verdicts["blocked"] += 1
    for roots in choices:
        gone = _gone(sample, labelling, engine, roots)
        statistic = _has_statistic(engine, infos, roots)
        # Nobody reduces over two dimensions at once, and a norm needs two channels.
        if statistic and any(len(_cut_dims(one)) > 1 or not _leaves_two(one) for one in gone):
            findings.verdicts["cannot be compared"] += 1
            continue
        wrong = _compare(sample, labelling, engine, infos, roots, gone, statistic)
        findings.verdicts["wrong" if wrong else "agrees"] += 1
        if wrong:
            findings.wrong.append(f"{title}, {labelling}, {[tuple(one.shape) for one in tensors]}: {wrong}")
            return
        findings.proven.update(engine.names)


def _raises(sample: Sample) -> bool:
    try:
        sample.call([tensor.clone() for tensor in sample.tensors])
    except Exception:
        return True
    return False


def _choices(engine: Propagation, labelling: Labelling) -> Iterator[Tensor]:
    """Classes that may go and leave something of every dimension: some one by one, then these together."""
    roots, blocked = engine.union_find.all_roots(), engine.union_find.blocked()
    names = {axis.name for axes in labelling.axes.values() for axis in axes}
    ranges = [roots[(own := engine.union_find.ranges[name]).start : own.stop] for name in names]
    free = [root for root in torch.cat(ranges).unique().tolist() if not blocked[root]]
    few = [torch.tensor([root]) for root in (free[:: max(len(free) // MOST_CLASSES, 1)])[:MOST_CLASSES]]
    for choice in [*few, torch.cat(few)] if len(few) > 1 else few:
        if all(bool((~torch.isin(own, choice)).any()) for own in ranges):
            yield choice


def _compare(
    sample: Sample,
    labelling: Labelling,
    engine: _Watched,
    infos: Sequence[TensorInfo],
    choice: Tensor,
    gone: Sequence[Tensor],
    statistic: bool,
) -> str | None:
    """What is wrong with the removal of the classes with these roots."""
    kept = [_kept(one) for one in gone]
    if any(rows is None for rows in kept):
        return "removes elements of an input that are no rectangle"
    cut = [_part(tensor, rows) for tensor, rows in zip(sample.tensors, kept, strict=True)]  # type: ignore[arg-type]
    if statistic:
        expected = _over_the_others(sample, engine, choice, gone)
    else:
        expected = sample.call(_zeroed(sample, labelling, engine, choice))
    result_gone = [_result_gone(engine, one, info, choice) for one, info in zip(expected, infos, strict=True)]
    left = _kept(result_gone[0]) if result_gone else []
    if left is None:
        return "removes elements of the result that are no rectangle"
    try:
        found = sample.call([tensor.clone() for tensor in cut], [len(rows) for rows in left])
    except Exception as error:
        return f"does not run once it is cut: {error}"
    verdicts = (
        None if info.statistics else _compared(one, other, its)
        for one, other, its, info in zip(found, expected, result_gone, infos, strict=True)
    )
    return next((verdict for verdict in verdicts if verdict is not None), None)


def _gone(sample: Sample, labelling: Labelling, engine: Propagation, choice: Tensor) -> list[Tensor]:
    """For every tensor which elements go."""
    roots, masks = engine.union_find.all_roots(), []
    for number, tensor in enumerate(sample.tensors):
        mask = torch.zeros(tensor.shape, dtype=torch.bool)
        for axis in labelling.axes.get(number, ()):
            own = engine.union_find.ranges[axis.name]
            mask = mask | axis.gone(torch.isin(roots[own.start : own.stop], choice), tensor.shape)
        masks.append(mask)
    return masks


def _kept(gone: Tensor) -> list[Tensor] | None:
    """The positions along each dimension that are left, if what is gone leaves a rectangle."""
    rows = []
    left = gone
    for dim in range(gone.dim()):
        own = (
            (~gone.movedim(dim, 0).reshape(gone.shape[dim], -1).all(1) if gone.numel() else torch.ones(gone.shape[dim]))
            .nonzero()
            .flatten()
        )
        rows.append(own)
        left = left.index_select(dim, own)
    return None if bool(left.any()) else rows


def _part(tensor: Tensor, rows: Sequence[Tensor]) -> Tensor:
    part = tensor
    for dim, own in enumerate(rows):
        part = part.index_select(dim, own) if len(own) < part.shape[dim] else part
    return part if tensor.is_contiguous() else in_another_layout_of(part)


def _cut_dims(gone: Tensor) -> list[int]:
    rows = _kept(gone)
    return [dim for dim, own in enumerate(rows or ()) if len(own) < gone.shape[dim]]


def _leaves_two(gone: Tensor) -> bool:
    return all(len(own) > 1 or len(own) == size for own, size in zip(_kept(gone) or (), gone.shape, strict=True))


def _over_the_others(sample: Sample, engine: Propagation, choice: Tensor, gone: Sequence[Tensor]) -> list[Tensor]:
    """The results where every reduction is over what stays."""
    copies = [tensor.clone() for tensor in sample.tensors]
    twins = [(copy, torch.where(its, _other(copy), copy).clone) for copy, its in zip(copies, gone, strict=True)]
    roots, ranges = engine.union_find.all_roots(), engine.union_find.ranges
    layouts = [torch.isin(roots[own.start : own.stop], choice) for own in ranges.values()]
    with TwinRun([pair for pair, its in zip(twins, gone, strict=True) if its.any()], [], layouts):
        return sample.call(copies)


def _other(tensor: Tensor) -> Tensor:
    """Other values; indices have none that are sure to be valid."""
    if tensor.is_floating_point() or tensor.is_complex():
        return 0.7 - 1.3 * tensor
    return ~tensor if tensor.dtype == torch.bool else tensor


def _zeroed(sample: Sample, labelling: Labelling, engine: Propagation, choice: Tensor) -> list[Tensor]:
    """Copies of the inputs, of consumers with zeros in what goes."""
    roots, copies = engine.union_find.all_roots(), []
    for number, tensor in enumerate(sample.tensors):
        copy = tensor.clone()
        for axis in labelling.axes.get(number, ()):
            if axis.name in engine.records.consumers:
                own = engine.union_find.ranges[axis.name]
                copy.masked_fill_(axis.gone(torch.isin(roots[own.start : own.stop], choice), tensor.shape), 0)
        copies.append(copy)
    return copies


def _has_statistic(engine: Propagation, infos: Sequence[TensorInfo], choice: Tensor) -> bool:
    labels = [*engine.normalized, *(one.labels for info in infos for one in info.statistics)]
    return any(bool(torch.isin(engine.union_find.roots(one), choice).any()) for one in labels)


def _result_gone(engine: Propagation, result: Tensor, info: TensorInfo, choice: Tensor) -> Tensor:
    gone = torch.zeros(result.shape, dtype=torch.bool)
    for axis in info.channel_labels:
        gone = gone | torch.isin(engine.union_find.roots(axis.labels), choice).expand(result.shape)
    return gone


def _compared(found: Tensor, expected: Tensor, gone: Tensor) -> str | None:
    """What is wrong with a result of the cut inputs, if anything."""
    if not (expected.numel() or found.numel()):
        return None
    rows = _kept(gone)
    if rows is None:
        return "removes elements of the result that are no rectangle"
    expected = _part(expected, rows)
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
