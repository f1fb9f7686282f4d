"""Matrix products and embeddings: the weight's columns are united with what they read, its rows label the result."""

from __future__ import annotations

from dataclasses import replace

from lightning_coreset.structure.labels import ChannelLabels, TensorInfo
from lightning_coreset.structure.ops.einsum import FIXED_INPUT, contract
from lightning_coreset.structure.ops.sparse import is_sparse, sparse_product
from lightning_coreset.structure.propagation import OpCall, Propagation, Rule

_NOTATIONS = {(1, 1): "k,k->", (1, 2): "k,km->m", (2, 1): "nk,k->n", (2, 2): "nk,km->nm", (3, 3): "bnk,bkm->bnm"}
"""By the numbers of dimensions of both operands."""


def product(propagation: Propagation, call: OpCall) -> None:
    """``mm``, ``bmm``, ``addmm`` and their like."""
    if any(map(is_sparse, call.tensors)):
        sparse_product(propagation, call)
        return
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


def bilinear(propagation: Propagation, call: OpCall) -> None:
    """``nn.Bilinear``: for every row of its weight a matrix between two inputs, (rows, first, second)."""
    first, weight, second = call.args[:3]
    if list(map(list, call.args[3:7])) != [[1, 3], [0], [1, 2], [2, 3]] or not propagation.info(weight).constant:
        raise NotImplementedError("a product of three tensors, not of two with a weight between")
    for inputs, dim in ((first, 1), (second, 2)):
        propagation.pin_dims(inputs, [0], "is a sample of a bilinear layer")
        labels = propagation.size_labels(inputs, 1, FIXED_INPUT)
        propagation.unite(propagation.channel_labels(weight, dim, FIXED_INPUT), labels, FIXED_INPUT)
        # Linear in each input, but by a matrix that the other one makes.
        paths = propagation.record_layer(weight, dim, 0, inputs, scaled=True)
    rows = propagation.channel_labels(weight, 0, "is a row of a bilinear layer")
    propagation.count_macs(weight, first.shape[0] * weight.numel())
    info = TensorInfo((ChannelLabels(rows[None], from_layer=True),), producer_paths=paths)
    propagation.set_info(call.results[0], info)


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
    "_trilinear": bilinear,
    **dict.fromkeys(("embedding", "_embedding_bag", "_embedding_bag_forward_only"), embedding),
}
