"""Matrix products and embeddings: the weight's columns are united with what they read, its rows label the result."""

from __future__ import annotations

from dataclasses import replace

from lightning_coreset.structure.labels import TensorInfo
from lightning_coreset.structure.ops.einsum import contract
from lightning_coreset.structure.propagation import OpCall, Propagation, Rule

_NOTATIONS = {(1, 1): "k,k->", (1, 2): "k,km->m", (2, 1): "nk,k->n", (2, 2): "nk,km->nm", (3, 3): "bnk,bkm->bnm"}
"""By the numbers of dimensions of both operands."""


def product(propagation: Propagation, call: OpCall) -> None:
    """``mm``, ``bmm``, ``addmm`` and their like."""
    arguments = list(call.args)
    bias = arguments.pop(0) if call.name in ("addmm", "baddbmm", "addmv") else None
    first, second = arguments[:2]
    scaled = any(call.arguments.get(factor, 1) != 1 for factor in ("alpha", "beta"))
    notation = _NOTATIONS[first.dim(), second.dim()]
    contract(propagation, first, second, notation, call.results[0], bias, scaled=scaled)


def linear(propagation: Propagation, call: OpCall) -> None:
    """``linear``, where it arrives whole."""
    inputs, weight = call.arguments["input"], call.arguments["weight"]
    lead = "abcdefgh"[: inputs.dim() - 1]
    contract(propagation, inputs, weight, f"{lead}k,mk->{lead}m", call.results[0], call.arguments["bias"])


def embedding(propagation: Propagation, call: OpCall) -> None:
    """Rows of a table: the vocabulary is fixed, the columns label the result."""
    weight, out = call.arguments["weight"], call.results[0]
    for other in call.tensors:
        if other is not weight:
            propagation.block(other, f"says what is looked up ({call.title})")
    axes = propagation.pin_dims(weight, [0], "is a vocabulary")
    shape = (1,) * (out.dim() - 1) + (-1,)
    placed = tuple(replace(axis, labels=axis.labels.reshape(shape), from_layer=True) for axis in axes)
    paths = propagation.record_layer(weight, None, 1, None)
    propagation.set_info(out, TensorInfo(placed, producer_paths=paths))


RULES: dict[str, Rule] = {
    **dict.fromkeys(("mm", "bmm", "addmm", "baddbmm", "mv", "addmv", "dot"), product),
    "linear": linear,
    **dict.fromkeys(("embedding", "_embedding_bag", "_embedding_bag_forward_only"), embedding),
}
