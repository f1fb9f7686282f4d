"""Samples of operators that torch's database lacks, or shows only in forms in which all channels stay.

Among them are the operators that are made of others: they reach a rule where they arrive whole.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import torch
from structure.operator_forms import plain_calls, whole_calls
from structure.operator_samples import Sample, samples_of
from torch.utils._python_dispatch import _disable_current_modes, _get_current_dispatch_mode

from lightning_coreset.structure.ops import aten_rules, foreach

aten = torch.ops.aten
ROWS, WIDTH, EDGES = 5, 4, 7


def foreach_samples() -> Iterator[Sample]:
    """Each operator on lists of tensors that has a rule, on two lists, three or one: as many as it takes."""
    with double_precision():
        for name in [f"{name}{end}" for name in foreach.RULES for end in ("", "_")]:
            packet = getattr(aten, name, None)
            for count in (2, 3, 1) if packet is not None else ():
                lists = [[0.1 + 0.8 * torch.rand(3, 4), 0.1 + 0.8 * torch.rand(2)] for _ in range(count)]
                with suppress(RuntimeError, TypeError):  # takes another number of lists
                    packet(*lists)
                    yield Sample.of(name, packet, lists, {}, inplace=name.endswith("_"))
                    break


def whole(packet: Any) -> Callable[..., Any]:
    """Calls an operator that is made of others in such a way that it arrives at a dispatch mode as one."""

    def call(*args: Any, **kwargs: Any) -> Any:
        overload = getattr(packet, torch._C._jit_resolve_packet(packet._qualified_op_name, *args, **kwargs))
        mode = _get_current_dispatch_mode()
        if mode is None:
            return overload(*args, **kwargs)
        with _disable_current_modes():
            return mode.__torch_dispatch__(overload, (), args, kwargs)

    return call


def whole_samples_of(op: Any, most: int | None = None) -> Iterator[Sample]:
    """The samples of an entry of the database whose operator has a rule, but is made of others."""
    packet = getattr(aten, op.aten_name or op.name, None)
    if packet not in aten_rules() or not _is_made_of_others(packet):
        return
    for sample in samples_of(op, most):
        if not sample.inplace:
            yield Sample(sample.operator, whole(packet), sample.leaves, sample.spec)


def _is_made_of_others(packet: Any) -> bool:
    overloads = [getattr(packet, name) for name in packet.overloads()]
    return any(
        torch._C._dispatch_has_kernel(one.name())
        and torch._C._dispatch_has_kernel_for_dispatch_key(one.name(), "CompositeImplicitAutograd")
        for one in overloads
    )


def _spread(index: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    return index[:, None].expand(-1, rows.shape[1])


def _rows() -> dict[str, tuple[Callable[..., Any], tuple[Any, ...]]]:
    """Rows moved by indices and masks that are the same for all channels."""
    x, edges = torch.rand(ROWS, WIDTH), torch.rand(EDGES, WIDTH)
    to, source = torch.tensor([0, 3, 3, 1, 0, 4, 3]), torch.tensor([4, 1, 0, 2, 2, 3, 0])
    some, mask = torch.tensor([3, 0, 2]), torch.tensor([True, False, True, True, False])
    grid = torch.rand(2, 3, WIDTH)
    pairs = (torch.tensor([0, 1, 1]), torch.tensor([2, 0, 1]))
    return {
        "gather": (lambda a, i: a.gather(0, _spread(i, a)), (x, to)),
        "gather by a repeated index": (lambda a, i: a.gather(0, _spread(i, a).clone()), (x, to)),
        "scatter": (lambda a, i, b: a.scatter(0, _spread(i, b), b), (x, some, edges[:3])),
        "scatter number": (lambda a, i: a.scatter(0, _spread(i, a), 2.0), (x, to)),
        "scatter_add": (lambda a, i, b: a.scatter_add(0, _spread(i, b).clone(), b), (x, to, edges)),
        **{
            f"scatter_reduce {how}": (
                lambda a, i, b, how=how: a.scatter_reduce(0, _spread(i, b), b, how),
                (x, to, edges),
            )
            for how in ("sum", "prod", "mean", "amax", "amin")
        },
        "index": (lambda a, i: a[i], (x, to)),
        "index_select": (torch.index_select, (x, 0, to)),
        "index_add": (torch.index_add, (x, 0, to, edges)),
        "index_copy": (torch.index_copy, (x, 0, some, edges[:3])),
        "index_fill": (lambda a, i: a.index_fill(0, i, 2.0), (x, some)),
        "index_reduce": (lambda a, i, b: a.index_reduce(0, i, b, "amax"), (x, to, edges)),
        "index_put": (lambda a, i, b: a.index_put((i,), b), (x, some, edges[:3])),
        "index_put of one row": (lambda a, i, b: a.index_put((i,), b), (x, some, edges[0])),
        "index_put accumulated": (lambda a, i, b: a.index_put((i,), b, accumulate=True), (x, to, edges)),
        "index_put under a mask": (lambda a, m, b: a.index_put((m,), b), (x, mask, edges[:3])),
        "index_put of a number": (lambda a, m: a.index_put((m,), torch.tensor(2.0)), (x, mask)),
        "index_put of pairs": (lambda a, i, j, b: a.index_put((i, j), b), (grid, *pairs, edges[:3])),
        "index_put of columns": (
            lambda a, i, b: aten.index_put(a, [None, i], b),
            (grid, torch.tensor([2, 0]), grid[:, :2]),
        ),
        "index_put apart": (
            lambda a, i, j, b: aten.index_put(a, [i, None, j], b),
            (grid.transpose(1, 2).contiguous(), *pairs, edges[:3]),
        ),
        "index_put of a grid": (
            lambda a, i, b: a.index_put((i,), b),
            (x, some[:2, None].repeat(1, 2), torch.rand(2, 2, WIDTH)),
        ),
        "masked_scatter": (torch.masked_scatter, (x, mask[:, None], edges)),
        "masked_select": (lambda a, m: a.masked_select(m).view(3, -1), (x, mask[:, None])),
        "segment_reduce": (
            lambda a: torch.segment_reduce(a, "max", lengths=torch.tensor([2, 3])),
            (x,),
        ),
        "max_unpool2d": (
            lambda a, i: torch.nn.functional.max_unpool2d(a, i, 2),
            torch.nn.functional.max_pool2d(torch.rand(2, 3, 4, 4), 2, return_indices=True),
        ),
        "max_unpool3d": (
            lambda a, i: torch.nn.functional.max_unpool3d(a, i, 2),
            torch.nn.functional.max_pool3d(torch.rand(2, 3, 4, 4, 2), 2, return_indices=True),
        ),
        "cdist of few": (torch.cdist, (x, edges)),
        "cdist of many": (torch.cdist, (x.repeat(6, 1), edges)),
        "repeat_interleave": (lambda a, n: a.repeat_interleave(n, 0), (x, torch.tensor([1, 0, 2, 1, 1]))),
        "select_scatter": (lambda a, b: a.select_scatter(b, 0, 2), (x, edges[0])),
        "slice_scatter": (lambda a, b: a.slice_scatter(b, 0, 1, 3), (x, edges[:2])),
        "unfold": (lambda a: torch.nn.functional.unfold(a, (2, 1)), (torch.rand(2, 3, 4, 2),)),
        "fold": (lambda a: torch.nn.functional.fold(a, (4, 2), (2, 1)), (torch.rand(2, 6, 6),)),
        "fft along rows": (lambda a: torch.fft.rfft(a, dim=0), (x,)),
        "softmax of edges": (
            lambda h, a: torch.zeros(ROWS, *h.shape[1:]).index_add(0, to, h * a.exp()),
            (torch.rand(EDGES, 2, WIDTH), torch.rand(EDGES, 2, 1)),
        ),
        "sparse edges": (lambda a: torch.sparse.mm(torch.eye(ROWS).to_sparse(), a), (x,)),
        "the mean over sparse edges": (lambda a: torch.sparse.mm(torch.eye(ROWS).to_sparse_csr(), a, "mean"), (x,)),
        "messages": (lambda a: torch.zeros_like(a).index_add(0, to, a[source]), (x,)),
    }


def _others() -> dict[str, tuple[Callable[..., Any], tuple[Any, ...]]]:
    x = torch.randn(3, 4)
    scale, zero = torch.rand(4) + 0.1, torch.zeros(4, dtype=torch.int32)
    return {
        "fake_quantize_per_tensor_affine": (lambda a: torch.fake_quantize_per_tensor_affine(a, 0.1, 0, 0, 255), (x,)),
        "fake_quantize_per_channel_affine": (
            lambda a, s, z: torch.fake_quantize_per_channel_affine(a, s, z, 1, 0, 255),
            (x.float(), scale.float(), zero),
        ),
        "packed": (
            lambda a: torch.nn.utils.rnn.pack_padded_sequence(a, torch.tensor([3, 2]), batch_first=False).data,
            (torch.rand(3, 2, 4),),
        ),
        "view_as_real": (lambda a: torch.view_as_real(torch.complex(a, a)), (x,)),
    }


def extra_samples() -> Iterator[Sample]:
    """Rows moved by index, quantisation, and what else the database lacks."""
    with double_precision():
        for name, (function, args) in {**_rows(), **_others(), **plain_calls()}.items():
            yield Sample.of(name, function, args, {})
        for name, (function, args) in whole_calls().items():
            yield Sample.of(name, whole(function), args, {})


@contextmanager
def double_precision() -> Iterator[None]:
    """Make samples of 64 bits, always the same."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    torch.manual_seed(0)
    try:
        yield
    finally:
        torch.set_default_dtype(before)
