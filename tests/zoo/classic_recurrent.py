"""Recurrent networks: taggers, classifiers of packed sequences, sequence to sequence, forecasters, cells in loops."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from .entry import Net, floats, image, network, tokens

SERIES = floats((2, 5, 6))
STEPS_FIRST = floats((5, 2, 6))


def plain(layer: nn.RNNBase, width: int) -> nn.Module:
    """Linear, recurrent layer, Linear."""
    return Net(
        lambda net, x: net.last(net.layer(net.first(x).relu())[0]),
        first=nn.Linear(6, layer.input_size),
        layer=layer,
        last=nn.Linear(width, 3),
    )


@network(SERIES, must=("first", "layer"))
def tanh_rnn() -> nn.Module:
    return plain(nn.RNN(12, 14, batch_first=True), 14)


@network(STEPS_FIRST, must=("first", "layer"))
def relu_rnn_steps_first() -> nn.Module:
    return plain(nn.RNN(12, 14, nonlinearity="relu", num_layers=2, bias=False), 14)


@network(SERIES, must=("first", "layer"))
def deep_gru_both_ways() -> nn.Module:
    return plain(nn.GRU(12, 14, num_layers=3, dropout=0.2, bidirectional=True, batch_first=True), 28)


@network(SERIES, must=("first", "layer", "layer#2"))
def lstm_with_projection() -> nn.Module:
    return plain(nn.LSTM(12, 14, num_layers=2, proj_size=8, bidirectional=True, batch_first=True), 16)


@network(STEPS_FIRST, must=("first", "layer", "layer#2"))
def one_lstm_with_projection() -> nn.Module:
    return plain(nn.LSTM(12, 14, proj_size=8, bias=False), 8)


@network(floats((5, 6)), must=("first", "layer"))
def lstm_without_a_batch() -> nn.Module:
    return plain(nn.LSTM(12, 14, num_layers=2), 14)


@network(tokens(), must=("embedding", "lstm", "hidden"))
def tagger() -> nn.Module:
    """A tag for each token, as in named entity recognition."""

    def forward(net: Net, x: Tensor) -> Tensor:
        return net.tags(net.hidden(net.lstm(net.embedding(x))[0]).tanh())

    lstm = nn.LSTM(16, 12, num_layers=2, bidirectional=True, batch_first=True, dropout=0.3)
    return Net(forward, embedding=nn.Embedding(50, 16), lstm=lstm, hidden=nn.Linear(24, 20), tags=nn.Linear(20, 5))


@network(tokens(), must=("embedding", "gru"))
def packed_classifier() -> nn.Module:
    """Sequences of several lengths, packed; both directions' last states."""

    def forward(net: Net, x: Tensor) -> Tensor:
        lengths = torch.tensor([4, 7])
        packed = pack_padded_sequence(net.embedding(x), lengths, batch_first=True, enforce_sorted=False)
        _, state = net.gru(packed)
        return net.head(torch.cat([state[-2], state[-1]], dim=1))

    gru = nn.GRU(16, 12, num_layers=2, bidirectional=True, batch_first=True)
    return Net(forward, embedding=nn.Embedding(50, 16), gru=gru, head=nn.Linear(24, 5))


@network(tokens(), must=("embedding", "lstm", "hidden"))
def packed_and_padded_again() -> nn.Module:
    def forward(net: Net, x: Tensor) -> Tensor:
        packed = pack_padded_sequence(net.embedding(x), torch.tensor([7, 3]), batch_first=True)
        out, _ = pad_packed_sequence(net.lstm(packed)[0], batch_first=True, total_length=7)
        return net.head(net.hidden(out).relu())

    lstm = nn.LSTM(16, 12, batch_first=True, bidirectional=True)
    return Net(forward, embedding=nn.Embedding(50, 16), lstm=lstm, hidden=nn.Linear(24, 20), head=nn.Linear(20, 5))


@network(SERIES, must=("encoder",))
def sequence_to_sequence() -> nn.Module:
    """The decoder begins with the encoder's states: layer by layer they have the same units."""

    def forward(net: Net, x: Tensor) -> Tensor:
        _, states = net.encoder(x)
        return net.head(net.decoder(x[:, -1:].expand(-1, 4, -1), states)[0])

    encoder, decoder = (nn.LSTM(6, 14, num_layers=2, batch_first=True) for _ in range(2))
    return Net(forward, encoder=encoder, decoder=decoder, head=nn.Linear(14, 3))


@network(SERIES, must=("encoder", "bridge"))
def bridged() -> nn.Module:
    """A Linear between the encoder's last state and the decoder's first one."""

    def forward(net: Net, x: Tensor) -> Tensor:
        _, state = net.encoder(x)
        start = net.bridge(torch.cat([state[0], state[1]], dim=1)).tanh()[None]
        return net.head(net.decoder(x, start)[0])

    encoder = nn.GRU(6, 10, batch_first=True, bidirectional=True)
    return Net(
        forward,
        encoder=encoder,
        bridge=nn.Linear(20, 14),
        decoder=nn.GRU(6, 14, batch_first=True),
        head=nn.Linear(14, 3),
    )


@network(SERIES, must=("encoder", "keys"))
def attentive_decoder() -> nn.Module:
    """Bahdanau's: a cell in a loop that looks at what the encoder puts out."""

    def forward(net: Net, x: Tensor) -> Tensor:
        seen, _ = net.encoder(x)
        state, steps = seen[:, -1], []
        keys = net.keys(seen)
        for _ in range(3):
            weights = net.score((keys + net.query(state)[:, None]).tanh()).softmax(1)
            state = net.cell((weights * seen).sum(1), state)
            steps.append(net.head(state))
        return torch.stack(steps, 1)

    return Net(
        forward,
        encoder=nn.GRU(6, 14, batch_first=True),
        keys=nn.Linear(14, 10),
        query=nn.Linear(14, 10),
        score=nn.Linear(10, 1),
        cell=nn.GRUCell(14, 14),
        head=nn.Linear(14, 3),
    )


@network(image(1, 16), must=("conv1", "conv2", "lstm"))
def crnn() -> nn.Module:
    """Text in images: columns of the last maps are the steps."""

    def forward(net: Net, x: Tensor) -> Tensor:
        maps = net.conv2(F.max_pool2d(net.conv1(x).relu(), 2)).relu().amax(2)
        return net.letters(net.lstm(maps.transpose(1, 2))[0])

    lstm = nn.LSTM(12, 10, num_layers=2, bidirectional=True, batch_first=True)
    convs = {"conv1": nn.Conv2d(1, 8, 3, padding=1), "conv2": nn.Conv2d(8, 12, 3, padding=1)}
    return Net(forward, **convs, lstm=lstm, letters=nn.Linear(20, 11))


@network(SERIES, must=("lstm",))
def deep_ar() -> nn.Module:
    """A distribution for each step: mean and scale by two heads."""

    def forward(net: Net, x: Tensor) -> tuple[Tensor, Tensor]:
        out, _ = net.lstm(x)
        return net.mean(out), F.softplus(net.scale(out))

    lstm = nn.LSTM(6, 16, num_layers=3, batch_first=True, dropout=0.1)
    return Net(forward, lstm=lstm, mean=nn.Linear(16, 1), scale=nn.Linear(16, 1))


@network(SERIES, must=("lstm.0", "lstm.1"))
def cells_in_a_loop() -> nn.Module:
    def forward(net: Net, x: Tensor) -> Tensor:
        sizes = [cell.hidden_size for cell in net.lstm]
        states = [(x.new_zeros(len(x), size), x.new_zeros(len(x), size)) for size in sizes]
        for step in x.unbind(1):
            for number, cell in enumerate(net.lstm):
                states[number] = cell(step, states[number])
                step = states[number][0]
        return net.head(step)

    return Net(forward, lstm=nn.ModuleList([nn.LSTMCell(6, 14), nn.LSTMCell(14, 10)]), head=nn.Linear(10, 3))


@network(SERIES, must=("layers.0", "layers.1"))
def states_by_layer_and_direction() -> nn.Module:
    def forward(net: Net, x: Tensor) -> Tensor:
        state = None
        for layer in net.layers:
            x, state = layer(x)
        state = state.view(2, 2, len(x), layer.hidden_size)[-1]
        return net.head(state[0] * state[1])

    layers = nn.ModuleList(
        [
            nn.GRU(6, 10, batch_first=True, bidirectional=True),
            nn.GRU(20, 12, num_layers=2, batch_first=True, bidirectional=True),
        ]
    )
    return Net(forward, layers=layers, head=nn.Linear(12, 3))


@network(SERIES, must=("lstm",))
def all_states_side_by_side() -> nn.Module:
    """Here the layers have to lose the same units."""

    def forward(net: Net, x: Tensor) -> Tensor:
        _, (state, cell) = net.lstm(x)
        return net.head(state.transpose(0, 1).flatten(1)) + net.other(cell.sum(0))

    lstm = nn.LSTM(6, 12, num_layers=2, batch_first=True)
    return Net(forward, lstm=lstm, head=nn.Linear(24, 3), other=nn.Linear(12, 3))


@network(SERIES, must=("gru",))
def directions_added() -> nn.Module:
    def forward(net: Net, x: Tensor) -> Tensor:
        out = net.gru(x)[0]
        return net.head(out.view(*out.shape[:2], 2, -1).sum(2))

    return Net(forward, gru=nn.GRU(6, 12, batch_first=True, bidirectional=True), head=nn.Linear(12, 3))


@network(SERIES, must=("gru",))
def learned_first_state() -> nn.Module:
    def forward(net: Net, x: Tensor) -> Tensor:
        return net.head(net.gru(x, net.state.expand(-1, len(x), -1).contiguous())[0][:, -1])

    state = nn.Parameter(torch.randn(2, 1, 12))
    return Net(forward, gru=nn.GRU(6, 12, num_layers=2, batch_first=True), state=state, head=nn.Linear(12, 3))


@network(SERIES, must=("first",), why="the layer's units lie on the residual stream")
def residual_lstms() -> nn.Module:
    def forward(net: Net, x: Tensor) -> Tensor:
        x = net.first(x)
        for layer in net.layers:
            x = x + layer(x)[0]
        return net.head(x)

    layers = nn.ModuleList([nn.LSTM(12, 12, batch_first=True) for _ in range(2)])
    return Net(forward, first=nn.Linear(6, 12), layers=layers, head=nn.Linear(12, 3))


@network(floats((2, 8, 20)), must=("paths.0.layer", "paths.1.layer"))
def dual_path() -> nn.Module:
    """DPRNN: along chunks, then across them; each with a projection back to the stream."""

    def walk(net: Net, x: Tensor) -> Tensor:
        batch, channels, first, second = x.shape
        rows = x.permute(0, 3, 2, 1).reshape(batch * second, first, channels)
        out = net.project(net.layer(rows)[0])
        return x + out.view(batch, second, first, channels).permute(0, 3, 2, 1)

    def forward(net: Net, x: Tensor) -> Tensor:
        x = net.encode(x).unfold(2, 4, 4)
        x = net.paths[0](x.transpose(2, 3)).transpose(2, 3)
        return net.decode(net.paths[1](x).flatten(2))

    def path() -> nn.Module:
        layer = nn.LSTM(12, 10, batch_first=True, bidirectional=True)
        return Net(walk, layer=layer, project=nn.Linear(20, 12))

    paths = nn.ModuleList([path(), path()])
    return Net(forward, encode=nn.Conv1d(8, 12, 1), paths=paths, decode=nn.Conv1d(12, 8, 1))


@network(SERIES, expect="any", why="what the layer puts out leaves the network")
def output_of_a_layer() -> nn.Module:
    return Net(lambda net, x: net.gru(x)[0], gru=nn.GRU(6, 12, num_layers=2, batch_first=True))


@network(SERIES, expect="none", why="what one of its layers puts out leaves the network, and all have one width")
def last_layer_leaves() -> nn.Module:
    return Net(lambda net, x: net.gru(x)[1][-1], gru=nn.GRU(6, 12, num_layers=2, batch_first=True))


class ConvLSTM(nn.Module):
    """A cell whose gates are a convolution of input and state, as it is written by hand everywhere."""

    def __init__(self, inputs: int, width: int) -> None:
        super().__init__()
        self.width, self.conv = width, nn.Conv2d(inputs + width, 4 * width, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        hidden, cell = (x.new_zeros(len(x), self.width, *x.shape[3:]) for _ in range(2))
        for step in x.unbind(1):
            enter, keep, leave, new = torch.split(self.conv(torch.cat([step, hidden], dim=1)), self.width, dim=1)
            cell = keep.sigmoid() * cell + enter.sigmoid() * new.tanh()
            hidden = leave.sigmoid() * cell.tanh()
        return hidden


@network(floats((2, 3, 3, 8, 8)), must=("cell.conv",), hard=("cell.conv",))
def conv_lstm() -> nn.Module:
    return Net(lambda net, x: net.head(net.cell(x)), cell=ConvLSTM(3, 10), head=nn.Conv2d(10, 2, 1))


class ConvGRU(nn.Module):
    def __init__(self, inputs: int, width: int) -> None:
        super().__init__()
        self.width = width
        self.gates = nn.Conv2d(inputs + width, 2 * width, 3, padding=1)
        self.new = nn.Conv2d(inputs + width, width, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        hidden = torch.zeros(len(x), self.width, *x.shape[3:], dtype=x.dtype)
        for step in x.unbind(1):
            reset, update = self.gates(torch.cat([step, hidden], 1)).sigmoid().chunk(2, 1)
            new = self.new(torch.cat([step, reset * hidden], 1)).tanh()
            hidden = (1 - update) * hidden + update * new
        return hidden


@network(floats((2, 3, 3, 8, 8)), expect="any", hard=("*",))
def conv_gru() -> nn.Module:
    return Net(lambda net, x: net.head(net.cell(x)), cell=ConvGRU(3, 10), head=nn.Conv2d(10, 2, 1))
