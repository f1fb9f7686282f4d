"""Products whose multiply-accumulates nobody counts: they are told, so that a count never misses them in silence."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING

from torch.utils.flop_counter import flop_registry

from lightning_coreset.structure.op_call import OpCall

if TYPE_CHECKING:
    from lightning_coreset.structure.propagation import Propagation, Rule

_COUNTED_BY_RULES = frozenset(
    """
mm bmm addmm baddbmm mv addmv dot linear convolution _convolution mkldnn_convolution cudnn_convolution _trilinear
_sparse_addmm _sparse_mm_reduce_impl _grouped_mm
""".split()
)
_NOT_COUNTED = frozenset(
    """
mkldnn_rnn_layer _cudnn_rnn miopen_rnn _thnn_fused_lstm_cell _thnn_fused_gru_cell addbmm addr ger _cdist_forward
_euclidean_dist sspaddmm hspmm _sparse_sparse_matmul _scaled_grouped_mm _int_mm _weight_int8pack_mm
_weight_int4pack_mm _fft_r2c _fft_c2r _fft_c2c linalg_qr _linalg_svd _linalg_eigh _linalg_eigvals linalg_lu
linalg_lu_factor_ex linalg_cholesky_ex linalg_inv_ex _linalg_solve_ex linalg_solve_triangular linalg_matrix_exp
triangular_solve lu_unpack ormqr householder_product
""".split()
)


def count_or_note(engine: Propagation, call: OpCall, rule: Rule | None) -> None:
    """Count a product whose rule does not, by torch's own formula; note it where there is none.

    Of an operator of another namespace without a rule nobody knows whether it is a product.
    """
    if call.name in _COUNTED_BY_RULES:
        return
    formula = flop_registry.get(call.function.overloadpacket)
    if formula is not None:
        result = call.results[0] if len(call.results) == 1 else tuple(call.results)
        engine.count_macs(None, int(formula(*call.args, **call.kwargs, out_val=result)) // 2)
    elif call.name in _NOT_COUNTED or ("::" in call.name and rule is None):
        engine.records.uncounted.add(call.title)


def warn_of_uncounted(names: Sequence[str]) -> None:
    """Say which operators a count of multiply-accumulates lacks, if any."""
    if names:
        warnings.warn(
            f"The multiply-accumulates of {', '.join(names)} are not counted, since nothing says how many there are. "
            "Counts, and ratios of unit='macs', are those of all other products.",
            stacklevel=3,
        )
