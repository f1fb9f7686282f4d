"""Traps in inputs, outputs, recurrence and in what Python does during the forward pass."""

from __future__ import annotations

from collections import namedtuple
from dataclasses import dataclass

import torch
from torch import Generator, Tensor, nn

from .entry import ROWS, SMALL, Net, floats, keywords, mlp, network, tokens
from .traps_movement import two_convs


@network(SMALL, must=("stem.0", "side.0"), train=True)
def auxiliary_head() -> nn.Module:
    """As in Inception and PSPNet: a second head that only train mode runs."""

    def forward(net: Net, x: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        y = net.stem(x)
        out = net.last(y.mean((2, 3)))
        return (out, net.side(y)) if net.training else out

    stem = nn.Sequential(nn.Conv2d(3, 12, 3), nn.BatchNorm2d(12), nn.ReLU())
    side = nn.Sequential(nn.Conv2d(12, 10, 1), nn.ReLU(), nn.Flatten(), nn.Linear(360, 3))
    return Net(forward, stem=stem, side=side, last=nn.Linear(12, 3))


@network(SMALL, train=True, expect="none", why="train mode shows the channels outside")
def hidden_output_in_training() -> nn.Module:
    def forward(net: Net, x: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        y = net.first(x)
        return (net.last(y), y) if net.training else net.last(y)

    return two_convs(forward)


@network(SMALL, must=("second",))
def hidden_output() -> nn.Module:
    def forward(net: Net, x: Tensor) -> tuple[Tensor, Tensor]:
        y = net.first(x)
        return net.last(net.second(y).relu()), y

    net = two_convs(forward, 12, 20)
    net.second = nn.Conv2d(12, 20, 1)
    return net


Pair = namedtuple("Pair", "scores features")


@dataclass
class Found:
    """An output of a network that is a dataclass."""

    scores: Tensor
    pair: Pair


@network(keywords(a=floats((4, 6)), b=floats((4, 5)), scale=lambda g: 1.5), must=("left.0", "right.0"))
def many_inputs_and_outputs() -> nn.Module:
    """Inputs by keyword, one of them a number; a dict with a tuple, a named tuple and None comes back."""

    def forward(net: Net, *, a: Tensor, b: Tensor, scale: float) -> dict[str, object]:
        x, y = net.left(a), net.right(b) * scale
        return {"sum": net.last(x + y), "nested": (Pair(net.extra(x), None), [net.extra(y)])}

    parts = {"left": mlp(6, 20, 12), "right": mlp(5, 10, 12)}
    return Net(forward, **parts, last=nn.Linear(12, 3), extra=nn.Linear(12, 2))


@network(ROWS, must=("body.0", "body.2"))
def dataclass_output() -> nn.Module:
    def forward(net: Net, x: Tensor) -> Found:
        y = net.body(x)
        return Found(net.last(y), Pair(net.side(y), x))

    return Net(forward, body=mlp(6, 20, 12), last=nn.Linear(12, 3), side=nn.Linear(12, 2))


def nested(generator: Generator) -> tuple[dict[str, Tensor], list[Tensor]]:
    """A dict of tensors and a list of tensors, as positional inputs."""
    a, b, c = (torch.randn(4, n, generator=generator) for n in (6, 5, 3))
    return {"a": a, "b": b}, [c]


@network(nested, must=("first", "last.0"))
def nested_inputs() -> nn.Module:
    def forward(net: Net, table: dict[str, Tensor], rest: list[Tensor]) -> Tensor:
        return net.last(net.first(table["a"]).relu() + net.second(torch.cat([table["b"], *rest], 1)))

    return Net(forward, first=nn.Linear(6, 12), second=nn.Linear(8, 12), last=mlp(12, 20, 3))


@network(ROWS, must=("a.0", "b.0"))
def module_dict_and_list() -> nn.Module:
    def forward(net: Net, x: Tensor) -> Tensor:
        return sum(net.heads[name](body(x)) for name, body in (("p", net.a), ("q", net.b)))

    heads = nn.ModuleDict({"p": nn.Linear(12, 3), "q": nn.Linear(14, 3)})
    return Net(forward, a=mlp(6, 20, 12), b=mlp(6, 10, 14), heads=heads)


def recurrent(cell: type[nn.RNNBase], **more: bool) -> nn.Module:
    """A recurrent layer between Linears with groups of their own."""

    def forward(net: Net, x: Tensor) -> Tensor:
        return net.last(net.rnn(net.first(x))[0])

    wide = 28 if more else 14
    parts = {"first": mlp(6, 20, 12), "rnn": cell(12, 14, batch_first=True, **more)}
    return Net(forward, **parts, last=mlp(wide, 10, 3))


@network(floats((2, 5, 6)), must=("first.0", "last.0"))
def lstm() -> nn.Module:
    return recurrent(nn.LSTM)


@network(floats((2, 5, 6)), must=("first.0", "last.0"))
def gru_both_ways() -> nn.Module:
    return recurrent(nn.GRU, bidirectional=True)


@network(floats((2, 5, 6)), must=("first.0", "last.0"), hard=("cell",), why="the size of the first state is a 14")
def rnn_cell() -> nn.Module:
    def forward(net: Net, x: Tensor) -> Tensor:
        x = net.first(x)
        h = torch.zeros(x.shape[0], 14, dtype=x.dtype)
        for step in x.unbind(1):
            h = net.cell(step, h)
        return net.last(h)

    return Net(forward, first=mlp(6, 20, 12), cell=nn.GRUCell(12, 14), last=mlp(14, 10, 3))


@network(floats((2, 5, 6)), must=("first",), hard=("gates",), why="the size of the first state is a 14")
def hand_made_lstm() -> nn.Module:
    """Four gates from one Linear, split by chunk."""

    def forward(net: Net, x: Tensor) -> Tensor:
        x = net.first(x)
        h = c = torch.zeros(x.shape[0], 14, dtype=x.dtype)
        for step in x.unbind(1):
            i, f, g, o = net.gates(torch.cat([step, h], 1)).chunk(4, 1)
            c = f.sigmoid() * c + i.sigmoid() * g.tanh()
            h = o.sigmoid() * c.tanh()
        return net.last(h)

    return Net(forward, first=nn.Linear(6, 12), gates=nn.Linear(26, 56), last=nn.Linear(14, 3))


@network(SMALL, must=("second",))
def inference_mode_inside() -> nn.Module:
    def forward(net: Net, x: Tensor) -> Tensor:
        with torch.inference_mode():
            y = net.first(x).relu()
        return net.last(net.second(y.clone()).relu())

    net = two_convs(forward, 12, 20)
    net.second = nn.Conv2d(12, 20, 1)
    return net


@network(SMALL, must=("first",))
def hooks() -> nn.Module:
    """A forward hook that changes the output, and a pre-hook that changes the input."""
    net = two_convs(lambda net, x: net.last(net.first(x)))
    net.first.register_forward_hook(lambda module, args, out: out * 2)
    net.last.register_forward_pre_hook(lambda module, args: (args[0].relu(),))
    return net


class Squared(torch.autograd.Function):
    """A user's own autograd function."""

    @staticmethod
    def forward(ctx: object, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x * x

    @staticmethod
    def backward(ctx: object, gradient: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return 2 * x * gradient


@network(SMALL, must=("first",))
def own_autograd_function() -> nn.Module:
    return two_convs(lambda net, x: net.last(Squared.apply(net.first(x))))


@network(SMALL)
def numpy_in_between() -> nn.Module:
    """Values leave torch and come back: nothing behind may be trusted, and the rest still holds."""

    def forward(net: Net, x: Tensor) -> Tensor:
        y = net.first(x).relu()
        scale = float(y.detach().mean().item())
        return net.last(net.second(y) * (1 + abs(scale))) + torch.from_numpy(y.detach().numpy()).mean()

    net = two_convs(forward, 12, 20)
    net.second = nn.Conv2d(12, 20, 1)
    return net


@network(SMALL, expect="any", hard=("*",), why="the code reads the width from the module")
def width_of_attribute() -> nn.Module:
    def forward(net: Net, x: Tensor) -> Tensor:
        return net.fc(net.conv(x).amax((2, 3)).view(-1, net.width))

    net = Net(forward, conv=nn.Conv2d(3, 20, 3), fc=nn.Linear(20, 5))
    net.width = 20
    return net


@network(SMALL, must=("conv",))
def width_of_module() -> nn.Module:
    """As above, but the number is an attribute that surgery mends."""

    def forward(net: Net, x: Tensor) -> Tensor:
        return net.fc(net.conv(x).amax((2, 3)).view(-1, net.conv.out_channels) / 2)

    return Net(forward, conv=nn.Conv2d(3, 20, 3), fc=nn.Linear(20, 5))


@network(tokens(50, 7), must=("body.0", "body.2"))
def one_channel_left() -> nn.Module:
    """Very thin layers: two channels, one of which must stay."""
    return Net(
        lambda net, x: net.body(net.table(x).mean(1)),
        table=nn.Embedding(50, 12),
        body=nn.Sequential(nn.Linear(12, 2), nn.Tanh(), nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 4)),
    )


@network(ROWS, expect="none", why="every layer is seen outside or has one unit")
def nothing_to_prune() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 1), nn.Tanh(), nn.Linear(1, 3))


@network(ROWS, expect="none", why="no parameter at all")
def no_parameters() -> nn.Module:
    return nn.Sequential(nn.ReLU(), nn.Softmax(1))


@network(ROWS, expect="none", why="a single layer, whose channels are the output's")
def single_linear() -> nn.Module:
    return nn.Linear(6, 3)
