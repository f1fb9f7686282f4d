"""What writes a stream of channels, the norms behind it, and what reads what these make.

Shapes: N channels.
"""

from __future__ import annotations

from dataclasses import dataclass

from lightning_coreset.layers.group_view import GroupView
from lightning_coreset.moments import LayerInput, MeasuredInputs
from lightning_coreset.structure import Member, layer_of


@dataclass(frozen=True)
class StreamReader:
    """A weight that reads what a norm makes.

    Attributes:
        columns: Where the channels lie in it.
        bias: Qualified name of the bias that is added, if there is one.
    """

    columns: Member
    bias: str | None


@dataclass(frozen=True)
class StreamNorm:
    """A norm over the channels of a stream.

    Attributes:
        gain: Qualified name of what it multiplies with.
        shift: Qualified name of what it adds, if it adds anything.
        centred: Whether it takes the mean of the channels off.
        readers: What reads what it makes.
    """

    gain: str
    shift: str | None
    centred: bool
    readers: tuple[StreamReader, ...]

    @property
    def biased(self) -> bool:
        """Whether every reader adds a constant."""
        return all(reader.bias is not None for reader in self.readers)

    @property
    def lifts(self) -> bool:
        """Whether its shift has to hold the constants that some reader has no bias for."""
        return not self.biased and self.shift is not None


@dataclass(frozen=True)
class StreamParts:
    """A stream, all readers of which read it through norms.

    Attributes:
        writers: What is added to it: rows of weights, biases, embeddings.
        norms: The norms, all of one kind.
    """

    writers: tuple[Member, ...]
    norms: tuple[StreamNorm, ...]

    @property
    def centred(self) -> bool:
        """Whether the mean of the channels is nothing to any reader."""
        return self.norms[0].centred


def norms_to_sample(view: GroupView) -> list[str]:
    """Vectors over the channels of a group that may be the weights of norms, where the group may be a stream."""
    group = view.group
    if not group.normalized or group.pairing is not None or group.weight_norms or group.standardised:
        return []
    if not all(member.one_each for member in group.members):
        return []
    return [one.name for one in group.by_role("channelwise") if view.tensors[one.name].dim() == 1]


def stream_parts(view: GroupView, measured: MeasuredInputs) -> StreamParts | None:
    """The parts of a stream; ``None`` if anything reads or holds its channels in another way.

    Whether what writes it only adds to it is not known here.
    """
    norms = {name: measured.channel_norms[name] for name in norms_to_sample(view) if name in measured.channel_norms}
    if len({one.centred for one in norms.values()}) != 1:
        return None
    readers: dict[str, list[StreamReader]] = {name: [] for name in norms}
    for member in view.group.by_role("consumer"):
        read = measured.layers.get(member.name)
        if read is None or read.norm not in norms or not _reads_all(view, member, read):
            return None
        readers[read.norm].append(StreamReader(member, read.bias))
    of_norms = {layer_of(name): name for name in norms}
    others = [one for one in view.group.members if one.role != "consumer" and one.name not in norms]
    shifts = {of_norms[layer_of(one.name)]: one.name for one in others if layer_of(one.name) in of_norms}
    found = [StreamNorm(name, shifts.get(name), norms[name].centred, tuple(readers[name])) for name in norms]
    if not all(one.readers for one in found) or _shares_constants(found):
        return None
    writers = tuple(one for one in others if one.name not in shifts.values())
    return StreamParts(writers, tuple(found))


def _reads_all(view: GroupView, member: Member, read: LayerInput) -> bool:
    """Whether a weight reads the channels of the stream and no others, at one position."""
    plain = read.groups == 1 and not read.transposed and member.dim < 2
    return plain and tuple(read.stored.shape[1:]) == (view.size, 1) and view.tensors[member.name].dim() > 1


def _shares_constants(norms: list[StreamNorm]) -> bool:
    """Whether two readers have one bias."""
    biases = [reader.bias for norm in norms for reader in norm.readers if reader.bias is not None]
    return len(biases) != len(set(biases))
