"""Products with a sparse matrix, such as the edges of a graph: rows are added up, channels stay in their columns."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_coreset._compat import stored_elements
from lightning_coreset.structure.label_merging import join
from lightning_coreset.structure.labels import TensorInfo
from lightning_coreset.structure.propagation import OpCall, Propagation, Rule
from lightning_coreset.structure.steps import Step, StepKind


def sparse_product(propagation: Propagation, call: OpCall) -> None:
    """``adjacency @ x`` and ``addmm`` with it: the labels of the dense factor's columns pass."""
    arguments = list(call.args)
    added = [arguments.pop(0)] if call.name in ("addmm", "addmv", "_sparse_addmm") else []
    matrix, dense = arguments[:2]
    if not is_sparse(matrix) or is_sparse(dense):
        propagation.refuse(call, f"is multiplied with a sparse matrix from the right ({call.title})")
        return
    out = call.results[0]
    reason = f"meets a tensor that cannot be cut ({call.title})"
    propagation.block(matrix, "belongs to a sparse matrix")
    axes = propagation.pin_dims(dense, [0], f"is added up by a sparse matrix ({call.title})")
    operands = [(propagation.varying(dense, out.dim()) - {0}, axes)]
    operands += [(propagation.varying(one, out.dim()), propagation.info(one).channel_labels) for one in added]
    joined = join(operands, out.dim(), propagation.union_find, reason)
    propagation.count_macs(None, stored_elements(matrix) * dense[0].numel())
    paths = {
        **propagation.producer_paths(added, Step(StepKind.SUM)),
        **propagation.producer_paths([dense], _step(call)),
    }
    propagation.set_info(out, TensorInfo(joined, producer_paths=paths))


def is_sparse(tensor: Tensor) -> bool:
    """Whether a tensor is stored in another way than as all of its elements."""
    return tensor.layout is not torch.strided


def _step(call: OpCall) -> Step:
    how = call.args[2] if call.name == "_sparse_mm_reduce_impl" else "sum"
    return Step(StepKind.MAX_POOL) if how == "amax" else Step(StepKind.POSITIONS, (None,))


RULES: dict[str, Rule] = dict.fromkeys(("_sparse_addmm", "_sparse_mm_reduce_impl"), sparse_product)
