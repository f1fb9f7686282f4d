"""Recurrent layers, followed by one step of theirs instead of all.

``nn.LSTM``, ``nn.GRU`` and ``nn.RNN`` call one function of torch for all steps, layers and directions. What that calls
in turn differs between devices, and a long sequence makes it thousands of operations that all say the same. So the call
is seen as a whole: two steps of the cell, written out, show which rows, columns and inputs belong together, and the
values are computed by the function itself, if anything needs them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from lightning_coreset._compat import can_defer
from lightning_coreset.structure.labels import ChannelLabels, TensorInfo
from lightning_coreset.structure.records import layer_of
from lightning_coreset.structure.stacked import set_stacked
from lightning_coreset.structure.steps import Step, StepKind

if TYPE_CHECKING:
    from lightning_coreset.structure.propagation import Propagation

State: TypeAlias = tuple[Tensor, ...]
"""Of one layer in one direction: what it puts out, and of an LSTM the cell."""

_PLACE = "is a step of a sequence that a recurrent layer reads"


class Weights(NamedTuple):
    """Those of one layer in one direction, the gates one below the other."""

    inputs: Tensor
    states: Tensor
    input_bias: Tensor | None
    state_bias: Tensor | None

    def of_inputs(self, x: Tensor) -> Tensor:
        """What the inputs add to all gates."""
        return F.linear(x, self.inputs, self.input_bias)

    def of_states(self, x: Tensor) -> Tensor:
        """What the state of the step before adds."""
        return F.linear(x, self.states, self.state_bias)


def _lstm(x: Tensor, state: State, weights: Weights) -> State:
    hidden, cell = state
    gates = weights.of_inputs(x) + weights.of_states(hidden)
    enter, keep, new, leave = gates.chunk(4, dim=-1)
    cell = keep.sigmoid() * cell + enter.sigmoid() * new.tanh()
    return leave.sigmoid() * cell.tanh(), cell


def _gru(x: Tensor, state: State, weights: Weights) -> State:
    (hidden,) = state
    read, kept = weights.of_inputs(x).chunk(3, dim=-1), weights.of_states(hidden).chunk(3, dim=-1)
    reset, update = (read[0] + kept[0]).sigmoid(), (read[1] + kept[1]).sigmoid()
    new = (read[2] + reset * kept[2]).tanh()
    return ((1 - update) * new + update * hidden,)


def _rnn(x: Tensor, state: State, weights: Weights, activation: Callable[[Tensor], Tensor]) -> State:
    return (activation(weights.of_inputs(x) + weights.of_states(state[0])),)


Cell: TypeAlias = Callable[[Tensor, State, Weights], State]

_TANH: Cell = partial(_rnn, activation=torch.tanh)
_RELU: Cell = partial(_rnn, activation=torch.relu)
_LAYERS: dict[Any, Cell] = {torch.lstm: _lstm, torch.gru: _gru, torch.rnn_tanh: _TANH, torch.rnn_relu: _RELU}
_CELLS: dict[Any, Cell] = {
    torch.lstm_cell: _lstm,
    torch.gru_cell: _gru,
    torch.rnn_tanh_cell: _TANH,
    torch.rnn_relu_cell: _RELU,
}


@dataclass(frozen=True, eq=False)
class _Call:
    """One call of a recurrent layer.

    Attributes:
        inputs: The sequence: (steps, samples, channels), with ``batch_first`` (samples, steps, channels), packed
            (rows, channels), of which the first ones are the first step.
        states: The first states, each (layers and directions, samples, channels).
        weights: Those of every layer and direction, each with the projection that follows, if one does.
        directions: 1 or 2.
        time: The dimension of the steps; ``None`` in a packed sequence.
    """

    inputs: Tensor
    states: State
    weights: tuple[tuple[Weights, Tensor | None], ...]
    directions: int
    time: int | None

    @classmethod
    def read(cls, args: tuple[Any, ...]) -> _Call:
        """Take the arguments of ``torch.lstm`` and the like apart."""
        packed = not isinstance(args[3], bool)
        inputs, *rest = args
        states, parameters, biases, layers, _, _, bidirectional = rest[1:] if packed else rest[:7]
        states = states if isinstance(states, (tuple, list)) else (states,)
        directions = 2 if bidirectional else 1
        each = len(parameters) // (layers * directions)
        own = [parameters[first : first + each] for first in range(0, len(parameters), each)]
        weights = tuple(
            (Weights(*one[:2], *(one[2:4] if biases else (None, None))), one[-1] if each in (3, 5) else None)
            for one in own
        )
        return cls(inputs, tuple(states), weights, directions, None if packed else int(rest[7]))

    @property
    def repeats(self) -> Fraction:
        """How many times the rows of the first step there are."""
        if self.time is not None:
            return Fraction(self.inputs.shape[self.time])
        return Fraction(self.inputs.shape[0], max(self.states[0].shape[1], 1))

    def first_step(self) -> Tensor:
        """What is read first, (samples, channels)."""
        return self.inputs[: self.states[0].shape[1]] if self.time is None else self.inputs.select(self.time, 0)


class FollowedRecurrence(TorchFunctionMode):
    """Gives what recurrent layers return the labels of their units.

    Args:
        engine: What follows the network.
    """

    def __init__(self, engine: Propagation) -> None:
        super().__init__()
        self._engine = engine

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run a function of torch."""
        if kwargs or not can_defer():
            return function(*args, **(kwargs or {}))
        if function in _CELLS and len(args) == 6:
            return self._run_cell(_CELLS[function], *args)
        if function in _LAYERS and len(args) == 9:
            return self._run_layers(function, args)
        return function(*args)

    def _run_cell(self, cell: Cell, x: Tensor, state: Any, *weights: Any) -> Any:
        is_one = isinstance(state, Tensor)
        new = self._run_step(cell, x, (state,) if is_one else tuple(state), Weights(*weights))
        return new[0] if is_one else new

    def _run_layers(self, function: Any, args: tuple[Any, ...]) -> Any:
        engine, call = self._engine, _Call.read(args)
        rows = range(call.inputs.dim() - 1) if call.time is None else [call.time]
        if any(dim in rows for axis in engine.info(call.inputs).channel_labels for dim in axis.dims):
            engine.set_info(
                call.inputs,
                engine.info(call.inputs).with_channel_labels(engine.pin_dims(call.inputs, rows, _PLACE)),
            )
        out, states = self._follow(call, _LAYERS[function])
        made = engine.executor.run_function(function, args, partial(_empty_results, call, out, states))
        info = engine.info(out)
        axes = info.channel_labels if call.time is None else _with_dim(info.channel_labels, call.time)
        engine.set_info(made[0], TensorInfo(axes, producer_paths=info.producer_paths))
        for result, each in zip(made[1:], states, strict=True):
            set_stacked(engine, result, each)
        engine.residual.see(None, [out, *(one for each in states for one in each)], made)
        return made

    def _follow(self, call: _Call, cell: Cell) -> tuple[Tensor, list[list[Tensor]]]:
        """Two steps of every layer; returns what the last one puts out in one step, and the states of all."""
        x, ends = call.first_step(), []
        for first in range(0, len(call.weights), call.directions):
            ends += [
                self._follow_layer(x, tuple(state[number] for state in call.states), cell, call, number)
                for number in range(first, first + call.directions)
            ]
            x = torch.cat([end[0] for end in ends[first:]], dim=-1) if call.directions > 1 else ends[-1][0]
        return x, [list(each) for each in zip(*ends, strict=True)]

    def _follow_layer(self, x: Tensor, state: State, cell: Cell, call: _Call, number: int) -> State:
        weights, projection = call.weights[number]
        for times in (call.repeats, Fraction(0)):  # the second step reads what the first one has put out
            with self._engine.records.counting(times):
                state = self._run_step(cell, x, state, weights)
                self._note_width(weights.states, state[-1], "hidden_size")
                if projection is not None:
                    state = (F.linear(state[0], projection), *state[1:])
                    self._note_width(projection, state[0], "proj_size")
        return state

    def _run_step(self, cell: Cell, x: Tensor, before: State, weights: Weights) -> State:
        """The sum of what inputs and states make is no residual addition, and nothing else is to be told of it."""
        with self._engine.residual.ignored():
            state = cell(x, before, weights)
        for each in state:
            info = self._engine.info(each)
            paths = dict.fromkeys(info.producer_paths, (Step(StepKind.RECURRENT),))
            self._engine.set_info(each, replace(info, producer_paths=paths))
        return state

    def _note_width(self, weight: Tensor, made: Tensor, attribute: str) -> None:
        """All layers and directions of a module have one width."""
        name = self._engine.info(weight).direct
        if name is not None:
            labels = self._engine.channel_labels(made, made.dim() - 1, "is a unit of a recurrent layer")
            self._engine.as_many.setdefault((layer_of(name), attribute), {})[name] = labels


def _with_dim(axes: Sequence[ChannelLabels], dim: int) -> tuple[ChannelLabels, ...]:
    return tuple(axis.moved(axis.labels.unsqueeze(dim)) for axis in axes)


def _empty_results(call: _Call, out: Tensor, states: Sequence[Sequence[Tensor]]) -> tuple[Tensor, ...]:
    """Tensors of the form that the function returns."""
    lead = call.inputs.shape[:-1]
    steps_first = lead[::-1] if call.time == 1 else lead
    made = out.new_empty(*steps_first, out.shape[-1])
    ends = [each[0].new_empty(len(call.weights), *each[0].shape) for each in states]
    return (made.transpose(0, 1) if call.time == 1 else made, *ends)
