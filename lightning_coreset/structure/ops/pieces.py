"""Pieces: slices, chunks, shuffles and patches, where several positions go together or none does."""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor

from lightning_coreset.structure.labels import ChannelLabels, unite_along
from lightning_coreset.structure.ops.movement import set_moved
from lightning_coreset.structure.propagation import OpCall, Propagation, Rule

UNEQUAL_PIECES = "is cut into unequal pieces"
"""The beginning of the reason that holds for channels unless the sizes of pieces change with them."""


def equal_chunks(propagation: Propagation, call: OpCall) -> None:
    """Chunks and slices: equal pieces lose the same positions, also where they are interleaved; unequal ones none.

    Unless sizes and positions of pieces are taken to change with them (``unequal_pieces``), which has to be tried.
    """
    source = call.args[0]
    dim = int(call.arguments["dim"]) % source.dim()
    size, start = _piece(call, source, dim)
    whole = source.shape[dim]
    reason = f"is cut into unequal pieces ({call.title})"
    if size == whole:
        axes = propagation.info(source).channel_labels
    elif propagation.unequal_pieces and (int(call.arguments["step"]) == 1 if call.name == "slice" else not size):
        set_moved(propagation, call, propagation.info(source).channel_labels)
        propagation.pieces += [propagation.channel_labels(result, dim, reason) for result in call.results]
        return
    elif size and whole % size == 0 and start % size == 0:
        axes = unite_pieces(propagation, source, dim, size, reason)
    elif _is_comb(call, source, dim, start):
        axes = unite_pieces(propagation, source, dim, int(call.arguments["step"]), reason, as_wholes=True)
    else:
        axes = propagation.pin_dims(source, [dim], reason)
    set_moved(propagation, call, axes)


def _piece(call: OpCall, source: Tensor, dim: int) -> tuple[int, int]:
    """Size of the pieces (0 if they differ) and where the first begins."""
    if call.name == "slice":
        step, start = int(call.arguments["step"]), call.arguments["start"] or 0
        start = start + source.shape[dim] if start < 0 else start
        return (call.results[0].shape[dim] if step == 1 else 0), start
    sizes = {result.shape[dim] for result in call.results}
    return (sizes.pop() if len(sizes) == 1 else 0), 0


def unite_pieces(
    propagation: Propagation, source: Tensor, dim: int, size: int, reason: str, *, as_wholes: bool = False
) -> tuple[ChannelLabels, ...]:
    """Let all pieces of ``size`` along ``dim`` lose the same positions, or each go as a whole.

    Returns:
        The labels of ``source``.
    """
    axes = propagation.info(source).channel_labels
    for axis in axes:
        if axis.labels.shape[dim] > 1:
            pieces = axis.labels.unflatten(dim, (-1, size))
            unite_along(ChannelLabels(pieces), [dim + as_wholes], propagation.union_find, reason)
    return axes


def _is_comb(call: OpCall, source: Tensor, dim: int, start: int) -> bool:
    """Whether a slice takes one position out of each run of as many as its step, as ``gate_up[..., ::2]`` does."""
    if call.name != "slice":
        return False
    step, whole = int(call.arguments["step"]), source.shape[dim]
    return step > 1 and whole % step == 0 and start < step and call.results[0].shape[dim] == whole // step


def channel_shuffle(propagation: Propagation, call: OpCall) -> None:
    """Every shuffled group loses the same positions."""
    source = call.args[0]
    size = source.shape[1] // int(call.args[1])
    set_moved(propagation, call, unite_pieces(propagation, source, 1, size, "is shuffled in groups"))


def pixel_shuffle(propagation: Propagation, call: OpCall) -> None:
    """The channels that become one pixel block stay together."""
    source, factor = call.args[0], int(call.args[1])
    dim = source.dim() - 3
    axes = []
    for axis in propagation.pin_dims(
        source, (source.dim() - 2, source.dim() - 1), "is moved between channels and pixels"
    ):
        if call.name == "pixel_shuffle" and axis.labels.shape[dim] > 1:
            folded = axis.labels.unflatten(dim, (-1, factor * factor))
            unite_along(ChannelLabels(folded), [dim + 1], propagation.union_find, "becomes pixels of one channel")
        axes.append(axis)
    set_moved(propagation, call, axes)


def unfold_patches(propagation: Propagation, call: OpCall) -> None:
    """``im2col`` lays the kernel positions of a channel side by side, ``col2im`` adds them up again."""
    source, out = call.args[0], call.results[0]
    size = call.arguments["kernel_size"]
    window = size[0] * size[1]
    channel = source.dim() - (3 if call.name == "im2col" else 2)
    axes = []
    for axis in propagation.pin_dims(source, range(channel + 1, source.dim()), "is moved over by a window"):
        labels = axis.labels
        if call.name == "im2col":
            labels = labels.repeat_interleave(window, channel) if labels.shape[channel] > 1 else labels
            labels = labels.squeeze(-1)
        else:
            folded = labels.unflatten(channel, (-1, window)) if labels.shape[channel] > 1 else labels.unsqueeze(-1)
            labels = unite_along(
                ChannelLabels(folded), [channel + 1], propagation.union_find, "is added up to one channel"
            ).labels
        axes.append(axis.with_labels(labels))
    propagation.set_info(out, replace(propagation.info(source), channel_labels=tuple(axes), direct=None))


def restrided(propagation: Propagation, call: OpCall) -> None:
    """Other strides for elements that stay in their order, as average pooling to one pixel gives to channels last."""
    source, out = call.args[0], call.results[0]
    whole = out.storage_offset() == 0 and out.numel() * out.element_size() == out.untyped_storage().nbytes()
    axes = propagation.info(source).channel_labels
    alike = all(
        axis.labels.dim() == out.dim() and all(out.shape[dim] == axis.labels.shape[dim] for dim in axis.dims)
        for axis in axes
    )
    if not (whole and alike and out.squeeze().is_contiguous() and max(out.shape[2:], default=1) == 1):
        propagation.refuse(call, "is viewed with other strides (aten.as_strided)")
        return
    propagation.set_info(out, propagation.info(source))


RULES: dict[str, Rule] = {
    **dict.fromkeys(
        ("slice", "split", "split_with_sizes", "unsafe_split", "unsafe_split_with_sizes", "chunk"), equal_chunks
    ),
    **dict.fromkeys(("channel_shuffle", "native_channel_shuffle"), channel_shuffle),
    **dict.fromkeys(("pixel_shuffle", "pixel_unshuffle"), pixel_shuffle),
    **dict.fromkeys(("im2col", "col2im"), unfold_patches),
    "as_strided": restrided,
}
