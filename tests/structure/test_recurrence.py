"""Recurrent layers: which units go together, which may differ between layers, and what they cost."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence

from lightning_coreset import count_macs, make_resizable, prune
from lightning_coreset.structure import analyse, find_groups
from lightning_coreset.surgery import remove_channels

pytestmark = pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN:UserWarning")

KINDS = {nn.RNN: 1, nn.GRU: 3, nn.LSTM: 4}
"""With the number of gates."""


class Recurrent(nn.Module):
    """A recurrent layer between Linears; ``read`` takes what the last one reads out of what it returns."""

    def __init__(self, layer: nn.RNNBase, width: int, read: Any) -> None:
        super().__init__()
        self.first, self.layer, self.last = nn.Linear(5, layer.input_size), layer, nn.Linear(width, 3)
        self.read = read

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.read(*self.layer(self.first(x))))


def last_step(out: Tensor, _: Any) -> Tensor:
    return out[:, -1]


@pytest.mark.parametrize(("kind", "gates"), KINDS.items())
@pytest.mark.parametrize("frozen", [False, True])
def test_macs_are_counted(kind: type[nn.RNNBase], gates: int, frozen: bool) -> None:
    layer, steps = kind(6, 8, batch_first=True), 10
    if frozen:
        layer.eval().requires_grad_(False)
    assert count_macs(layer, torch.randn(3, steps, 6)) == steps * gates * 8 * (6 + 8)


def test_macs_of_layers_directions_and_projections_are_counted() -> None:
    layer = nn.LSTM(6, 8, num_layers=2, bidirectional=True, proj_size=5, batch_first=True)
    first, second, projection = 4 * 8 * (6 + 5), 4 * 8 * (2 * 5 + 5), 5 * 8
    assert count_macs(layer, torch.randn(1, 10, 6)) == 10 * 2 * (first + second + 2 * projection)


def test_macs_of_a_packed_sequence_are_those_of_its_rows() -> None:
    class Packed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.GRU(6, 8, batch_first=True)

        def forward(self, x: Tensor) -> Tensor:
            return self.layer(pack_padded_sequence(x, torch.tensor([7, 3]), batch_first=True))[1]

    assert count_macs(Packed(), torch.randn(2, 7, 6)) == 5 * 3 * 8 * (6 + 8)  # ten rows of two samples


@pytest.mark.parametrize("kind", KINDS)
def test_a_unit_is_a_row_of_every_gate_and_a_column_of_the_states(kind: type[nn.RNNBase]) -> None:
    model = Recurrent(kind(6, 8, batch_first=True), 8, last_step)
    group = find_groups(model, torch.randn(2, 4, 5))[1]
    assert (group.name, group.size) == ("layer", 8)
    rows = tuple(tuple(unit + 8 * gate for gate in range(KINDS[kind])) for unit in range(8))
    index = {(member.name.removeprefix("layer."), member.dim): member.index for member in group.members}
    units = tuple((unit,) for unit in range(8))
    ends = dict.fromkeys([("weight_ih_l0", 0), ("weight_hh_l0", 0), ("bias_ih_l0", 0), ("bias_hh_l0", 0)], rows)
    assert index == ends | {("weight_hh_l0", 1): units, ("last.weight", 1): units}


def test_layers_lose_as_many_units_and_each_its_own() -> None:
    torch.manual_seed(1)
    model = Recurrent(nn.GRU(6, 8, num_layers=2, bidirectional=True, batch_first=True), 16, last_step)
    before = {name: own.clone() for name, own in model.named_parameters() if "bias_hh" in name}
    prune(model, torch.randn(2, 4, 5), {"layer": 0.5}, method="magnitude")
    assert model.layer.hidden_size == 4
    kept = set()
    for name, own in before.items():
        after = model.get_parameter(name)
        assert after.shape == (12,)
        kept.add(tuple(torch.isin(own[:8], after[:4]).nonzero().flatten().tolist()))
    assert {len(units) for units in kept} == {4}
    assert len(kept) > 1


@pytest.mark.parametrize(
    ("read", "blocks"),
    [
        pytest.param(lambda out, state: state[-1], 2, id="one layer's"),
        pytest.param(lambda out, state: torch.cat([state[0], state[1]], -1), 2, id="each by itself"),
        pytest.param(lambda out, state: torch.cat(state.unbind(0), -1), 2, id="unbound"),
        pytest.param(lambda out, state: state.view(2, 1, *state.shape[1:])[1, 0], 2, id="viewed by layer"),
        pytest.param(lambda out, state: state.clone()[-1], 2, id="a copy"),
        pytest.param(lambda out, state: state.sum(0), 1, id="added"),
        pytest.param(lambda out, state: state.transpose(0, 1).flatten(1), 1, id="flattened"),
        pytest.param(lambda out, state: state.tanh()[-1], 1, id="changed together"),
    ],
)
def test_states_of_layers_are_tied_only_by_what_is_done_with_all_of_them(read: Any, blocks: int) -> None:
    model = Recurrent(nn.GRU(6, 8, num_layers=2, batch_first=True), 8, read)
    x = torch.randn(2, 4, 5)
    with torch.no_grad():
        width = read(*model.layer(model.first(x))).shape[-1]
    model.last = nn.Linear(width, 3)
    groups = {group.name: group for group in find_groups(model, x)}
    pairing = groups["layer"].pairing if "layer" in groups else None
    assert (pairing.blocks if pairing is not None else 1) == blocks
    for group in groups.values():
        if group.name == "layer" and pairing is None:
            remove_channels(model, group, [1, 5])
            assert model(x).shape == (2, 3)


def test_layers_stay_as_wide_as_one_of_them_that_has_to_stay() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer, self.last = nn.LSTM(5, 8, num_layers=2, batch_first=True), nn.Linear(8, 3)

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            out, (state, _) = self.layer(x)
            return self.last(state[0]), out

    structure = analyse(Net(), torch.randn(2, 4, 5))
    assert structure.groups == ()
    reasons = set(structure.refused.values())
    assert any("output" in reason for reason in reasons)


def test_a_state_dict_with_other_widths_fits() -> None:
    layer = {"input_size": 6, "hidden_size": 8, "proj_size": 5, "num_layers": 2, "batch_first": True}
    model, fresh = (make_resizable(Recurrent(nn.LSTM(**layer), 5, last_step)) for _ in range(2))
    x = torch.randn(2, 4, 5)
    prune(model, x, 0.4)
    assert model.layer.hidden_size < 8
    fresh.load_state_dict(model.state_dict())
    for size in ("input_size", "hidden_size", "proj_size"):
        assert getattr(fresh.layer, size) == getattr(model.layer, size)
    assert torch.equal(fresh.eval()(x), model.eval()(x))


def test_long_sequences_are_followed_by_two_steps() -> None:
    model = Recurrent(nn.GRU(6, 8, batch_first=True), 8, last_step)
    calls = []

    class Counting(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            calls[-1] += 1
            return func(*args, **(kwargs or {}))

    for steps in (5, 300):
        calls.append(0)
        with Counting():
            find_groups(model, torch.randn(2, steps, 5))
    assert calls[0] == calls[1]


def test_macs_of_a_bilinear_layer_are_counted() -> None:
    class Pair(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.pair = nn.Bilinear(3, 4, 5)

        def forward(self, x: Tensor) -> Tensor:
            return self.pair(x[..., :3], x[..., 3:])

    assert count_macs(Pair(), torch.randn(2, 6, 7)) == 6 * 3 * 4 * 5


class Distances(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(6, 8), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x)
        return self.last(torch.cdist(y, y))


def test_products_that_are_not_counted_are_told() -> None:
    model, x = nn.Sequential(nn.Linear(6, 6), nn.ReLU(), Distances()), torch.randn(4, 6)
    with pytest.warns(UserWarning, match=r"multiply-accumulates of aten\._cdist_forward are not counted"):
        assert count_macs(model, x) == 36 + 48 + 12
    with pytest.warns(UserWarning, match=r"multiply-accumulates of aten\._cdist_forward are not counted"):
        prune(model, x, 0.2, unit="macs")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("options", [{"num_layers": 2}, {"bidirectional": True, "num_layers": 3}])
def test_a_layer_whose_outputs_leave_says_so_of_the_module(kind: type[nn.RNNBase], options: dict[str, Any]) -> None:
    model = nn.ModuleDict({"layer": kind(5, 8, batch_first=True, **options)})
    model.forward = lambda x: model["layer"](x)[0]

    structure = analyse(model, torch.randn(2, 4, 5))

    reason = "makes outputs of the network (all layers of layer have one hidden_size)"
    assert structure.groups == ()
    assert set(structure.refused.values()) == {reason}
