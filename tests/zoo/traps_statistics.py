"""Traps in the statistics of channels: used elsewhere, of several streams, of a part of one, shared."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .entry import SMALL, Net, floats, network
from .traps_norms import Between
from .traps_streams import SEQUENCES, Gained, rms, standard, stream


def tail(width: int, out: int = 3) -> nn.Module:
    """A group that nothing disturbs."""
    return nn.Sequential(nn.Linear(width, 20), nn.ReLU(), nn.Linear(20, out))


@network(SMALL, never=("first",), must=("last.0",), why="the mean over the channels is an image of its own")
def statistics_as_an_image() -> nn.Module:
    """As the spatial gate of CBAM: mean and deviation over channels are two channels of a convolution."""

    def forward(net: Net, x: Tensor) -> Tensor:
        x = net.first(x)
        gate = net.gate(torch.cat([x.mean(1, keepdim=True), x.std(1, keepdim=True)], 1))
        return net.last(x * gate.sigmoid())

    last = nn.Sequential(nn.Conv2d(12, 20, 3), nn.ReLU(), nn.Conv2d(20, 5, 1))
    return Net(forward, first=nn.Conv2d(3, 12, 3), gate=nn.Conv2d(2, 1, 3, padding=1), last=last)


@network(SEQUENCES, never=("first",), must=("last.0",), why="the statistics come back at the output")
def statistics_at_the_output() -> nn.Module:
    def forward(net: Net, x: Tensor) -> Tensor:
        x = net.first(x)
        mean, deviation = x.mean(-1, keepdim=True), x.std(-1, keepdim=True)
        return net.last((x - mean) / deviation) * deviation + mean

    return Net(forward, first=nn.Linear(6, 12), last=tail(12))


@network(SEQUENCES, never=("a",), must=("last.0",), why="one stream's deviation scales another of another width")
def statistics_of_another_stream() -> nn.Module:
    return Net(
        lambda net, x: net.last(net.b(x) / net.a(x).norm(dim=-1, keepdim=True)),
        a=nn.Linear(6, 12),
        b=nn.Linear(6, 16),
        last=tail(16),
    )


@network(SMALL, never=("first",), must=("last.0",), why="the statistics run over places and channels together")
def statistics_of_the_whole_image() -> nn.Module:
    last = nn.Sequential(nn.Conv2d(12, 20, 3), nn.ReLU(), nn.Conv2d(20, 5, 1))
    return Net(lambda net, x: net.last(net.norm(net.first(x))), first=nn.Conv2d(3, 12, 3), last=last,
               norm=nn.LayerNorm([12, 6, 6]))  # fmt: skip


@network(SEQUENCES, never=("first",), must=("last.0",), why="normalised over tokens and channels together")
def statistics_of_a_sequence() -> nn.Module:
    return Net(lambda net, x: net.last(net.norm(net.first(x))), first=nn.Linear(6, 12), last=tail(12),
               norm=nn.LayerNorm([5, 12]))  # fmt: skip


@network(SEQUENCES, never=("first",), must=("last.0",), why="softmax mixes the channels")
def statistics_softmax() -> nn.Module:
    return Net(lambda net, x: net.last(net.first(x).softmax(-1)), first=nn.Linear(6, 12), last=tail(12))


@network(SEQUENCES, must=("last.0",), normalized=("value",))
def gated_norm() -> nn.Module:
    """A gate of other weights on normalised channels: both make the same classes."""
    return Net(
        lambda net, x: net.last(rms(net.value(x)) * net.gate(x).sigmoid()),
        value=nn.Linear(6, 12), gate=nn.Linear(6, 12), last=tail(12),
    )  # fmt: skip


@network(SEQUENCES, must=("last.0",), normalized=("value",))
def scaled_by_the_gate() -> nn.Module:
    """The statistic is that of the gate, whose channels are the same classes as those that it scales."""

    def forward(net: Net, x: Tensor) -> Tensor:
        value, gate = net.value(x), net.gate(x)
        return net.last((value + gate) / (1 + gate.norm(dim=-1, keepdim=True)))

    return Net(forward, value=nn.Linear(6, 12), gate=nn.Linear(6, 12), last=tail(12))


@network(SEQUENCES, must=("a.0", "last.0"), normalized=("join",))
def shared_norm_at_two_places() -> nn.Module:
    """One norm before and behind a residual block."""

    def forward(net: Net, x: Tensor) -> Tensor:
        x = net.join(x)
        return net.last(net.norm(x + net.a(net.norm(x))))

    return Net(forward, join=nn.Linear(6, 12), norm=nn.LayerNorm(12), last=tail(12),
               a=nn.Sequential(nn.Linear(12, 28), nn.GELU(), nn.Linear(28, 12)))  # fmt: skip


@network(floats((2, 5, 6), (2, 4, 9)), must=("end.0",), normalized=("a",))
def shared_norm_of_two_streams() -> nn.Module:
    """One norm's weights belong to both streams, which lose the same channels."""
    return Net(
        lambda net, x, y: net.end(torch.cat([net.read(net.norm(net.a(x))), net.scan(net.norm(net.b(y)))], 1)),
        a=nn.Linear(6, 12), b=nn.Linear(9, 12), norm=nn.LayerNorm(12), read=nn.Linear(12, 10), scan=nn.Linear(12, 10),
        end=tail(10),
    )  # fmt: skip


@network(floats((2, 5, 6), (2, 5, 9)), must=("end.0",), normalized=("a", "b"))
def shared_norm_of_two_widths() -> nn.Module:
    """A norm without weights serves two widths, which stay independent."""
    return Net(
        lambda net, x, y: net.end(net.read(net.norm(net.a(x))) + net.scan(net.norm(net.b(y)))),
        a=nn.Linear(6, 12), b=nn.Linear(9, 16), norm=Between(lambda x: F.layer_norm(x, x.shape[-1:])),
        read=nn.Linear(12, 10), scan=nn.Linear(16, 10), end=tail(10),
    )  # fmt: skip


@network(floats((2, 5, 6), (2, 5, 9)), must=("end.0",), expect="groups")
def shared_weights_of_two_widths() -> nn.Module:
    """The narrower stream uses the first weights of the norm."""

    def forward(net: Net, x: Tensor, y: Tensor) -> Tensor:
        wide, narrow = rms(net.a(x)) * net.g, rms(net.b(y)) * net.g[:12]
        return net.end(net.read(wide) + net.scan(narrow))

    return Net(
        forward, a=nn.Linear(6, 16), b=nn.Linear(9, 12), g=nn.Parameter(torch.ones(16)), read=nn.Linear(16, 10),
        scan=nn.Linear(12, 10), end=tail(10),
    )  # fmt: skip


@network(floats((2, 5, 6), (2, 5, 9)), must=("last.0",), normalized=("a", "b"))
def norm_of_a_concatenation() -> nn.Module:
    """One norm over two streams of 12 and 16 channels: each may lose channels of its own."""
    return Net(
        lambda net, x, y: net.last(net.norm(torch.cat([net.a(x), net.b(y).relu()], -1))),
        a=nn.Linear(6, 12), b=nn.Linear(9, 16), norm=nn.LayerNorm(28), last=tail(28),
    )  # fmt: skip


@network(SEQUENCES, must=("last.0",), normalized=("first",))
def norm_and_halves() -> nn.Module:
    """A norm in front of a gated linear unit: value and gate go in pairs."""

    def forward(net: Net, x: Tensor) -> Tensor:
        value, gate = net.norm(net.first(x)).chunk(2, -1)
        return net.last(value * F.gelu(gate))

    return Net(forward, first=nn.Linear(6, 24), norm=nn.LayerNorm(24), last=tail(12))


@network(SEQUENCES, must=("last.0",), normalized=("first",))
def norm_of_a_half() -> nn.Module:
    """Only the second half of the channels is normalised, as in gMLP."""

    def forward(net: Net, x: Tensor) -> Tensor:
        value, gate = F.gelu(net.first(x)).chunk(2, -1)
        return net.last(value * (net.norm(gate) + 1))

    return Net(forward, first=nn.Linear(6, 24), norm=nn.LayerNorm(12), last=tail(12))


@network(SEQUENCES, must=("last.0",))
def norm_of_a_half_of_a_stream() -> nn.Module:
    """One half of a stream is normalised, and the stream goes on whole."""

    def forward(net: Net, x: Tensor) -> Tensor:
        x = net.first(x)
        x = torch.cat([rms(x[..., :10]), x[..., 10:]], -1)
        return net.last(x)

    return Net(forward, first=nn.Linear(6, 24), last=tail(24))


@network(SEQUENCES, must=("last.0",), hard=("first",), why="the sizes of the groups are numbers in the code")
def norms_of_groups_of_channels() -> nn.Module:
    """Four groups of six channels, each with its own statistics."""
    return Net(
        lambda net, x: net.last(standard(net.first(x).unflatten(-1, (4, 6))).flatten(-2)),
        first=nn.Linear(6, 24), last=tail(24),
    )  # fmt: skip


@network(SEQUENCES, must=("last.0",))
def cosine_heads() -> nn.Module:
    """Queries and keys of length one with a gain for each place in a head, as Qwen3 and vit-pytorch have them."""

    def forward(net: Net, x: Tensor) -> Tensor:
        q, k, v = (part.unflatten(-1, (net.num_heads, -1)).transpose(1, 2) for part in net.qkv(x).chunk(3, -1))
        q, k = F.normalize(q, dim=-1) * net.gain, F.normalize(k, dim=-1) * net.gain
        return net.last((q @ k.transpose(-2, -1) * 10).softmax(-1).matmul(v).transpose(1, 2).flatten(2))

    net = Net(forward, qkv=nn.Linear(6, 90), gain=nn.Parameter(torch.ones(10)), last=tail(30))
    net.num_heads = 3
    return net


@network(SEQUENCES, must=("join.2", "last.0"), normalized=("first",))
def residual_before_the_norm() -> nn.Module:
    """Post-norm: the sum is normalised, once with weights and once without."""

    def forward(net: Net, x: Tensor) -> Tensor:
        x = net.first(x)
        x = net.norm(x + net.join(x))
        return net.last(standard(x + net.other(x)))

    return Net(
        forward, first=nn.Linear(6, 12), norm=nn.LayerNorm(12), other=nn.Linear(12, 12), last=tail(12),
        join=nn.Sequential(nn.Linear(12, 28), nn.ReLU(), nn.Linear(28, 18), nn.ReLU(), nn.Linear(18, 12)),
    )  # fmt: skip


@network(SEQUENCES, must=("last.0",), normalized=("first",))
def two_norms_of_one_stream() -> nn.Module:
    """Parallel norms of different kinds, read by different layers, and the bare stream by a third."""
    return Net(
        lambda net, x: net.last(
            net.a(F.layer_norm(y := net.first(x), y.shape[-1:])) + net.b(net.norm(y)) + net.c(y).tanh()
        ),
        first=nn.Linear(6, 12), norm=Gained(rms, 12), a=nn.Linear(12, 16), b=nn.Linear(12, 16), c=nn.Linear(12, 16),
        last=tail(16),
    )  # fmt: skip


@network(SEQUENCES, must=("0",), normalized=("0",))
def batch_norm_and_layer_norm() -> nn.Module:
    turned = Between(lambda x: x.transpose(1, 2))
    return stream(turned, nn.BatchNorm1d(12), turned, nn.LayerNorm(12))


@network(SEQUENCES, must=("4",), normalized=("0", "2"))
def norms_in_a_row() -> nn.Module:
    """Two normalised widths, one after the other, and none behind."""
    return nn.Sequential(
        nn.Linear(6, 12), nn.LayerNorm(12), nn.Linear(12, 16), nn.RMSNorm(16), nn.Linear(16, 20), nn.ReLU(),
        nn.Linear(20, 3),
    )  # fmt: skip
