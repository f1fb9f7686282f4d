"""Half-precision products are computed in single precision, and nothing else about a run changes."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lightning_coreset._compat import DispatchMode
from lightning_coreset.moments import MeasuringRuns, half_precision
from lightning_coreset.moments.half_precision import products_in_single
from lightning_coreset.structure import Example

aten = torch.ops.aten
PRODUCTS = {aten.mm, aten.addmm, aten.bmm, aten.baddbmm, aten.linear, aten.convolution}
HALF = [torch.bfloat16, torch.float16]


class Operands(DispatchMode):
    """What products are computed of, and how many numbers are converted at once."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[torch.Tensor] = []
        self.converted: list[int] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.overloadpacket in PRODUCTS:
            self.seen += [one for one in args if isinstance(one, torch.Tensor)]
        made = func(*args, **(kwargs or {}))
        if func.overloadpacket in (aten._to_copy, aten.to) and made.dtype == torch.float32:
            self.converted.append(made.numel())
        return made


@pytest.fixture(autouse=True)
def no_arithmetic(monkeypatch):
    monkeypatch.setattr(half_precision, "multiplies_in", lambda dtype: False)


def products():
    """Of every kind, with operands that lie in memory in other orders too."""
    torch.manual_seed(0)
    a, b, c = torch.randn(50, 70), torch.randn(70, 90), torch.randn(90)
    batch, other = torch.randn(5, 6, 40), torch.randn(5, 40, 9)
    maps = torch.randn(3, 8, 12, 11)
    wide = {"weight": torch.randn(12, 4, 3, 3), "bias": torch.randn(12), "stride": 2, "padding": 1, "groups": 2}
    return {
        "mm": (torch.mm, (a, b), {}),
        "mm of a transposed weight": (lambda x, y: x @ y.T, (a, b.T.contiguous()), {}),
        "addmm": (torch.addmm, (c, a, b), {}),
        "addmm with factors": (torch.addmm, (torch.randn(50, 90), a, b), {"beta": 0.5, "alpha": -2.0}),
        "bmm": (torch.bmm, (batch, other), {}),
        "bmm of views": (lambda x, y: x @ y.transpose(1, 2), (batch, other.transpose(1, 2).contiguous()), {}),
        "baddbmm": (torch.baddbmm, (torch.randn(1, 9), batch, other), {"beta": 0.5, "alpha": -2.0}),
        "linear": (F.linear, (torch.randn(2, 20, 70), b.T.contiguous(), c), {}),
        "convolution": (F.conv2d, (maps,), wide),
        "transposed convolution": (F.conv_transpose2d, (maps, torch.randn(8, 5, 2, 2)), {"stride": 2}),
    }


@pytest.mark.parametrize("dtype", HALF)
@pytest.mark.parametrize("numbers", [2**22, 3000])
@pytest.mark.parametrize("name", products())
def test_products_are_those_of_double_precision_rounded_once(monkeypatch, name, numbers, dtype):
    monkeypatch.setattr(half_precision, "_NUMBERS", numbers)
    monkeypatch.setattr(half_precision, "_MOST_ROWS", 33)

    def to(kind, value):
        return value.to(dtype).to(kind) if isinstance(value, torch.Tensor) else value

    function, args, options = products()[name]
    half, exact = (
        ([to(kind, one) for one in args], {key: to(kind, one) for key, one in options.items()})
        for kind in (dtype, torch.float64)
    )
    expected = function(*exact[0], **exact[1])
    with Operands() as operands, products_in_single(half[0]):
        found = function(*half[0], **half[1])
    assert found.dtype == dtype
    assert found.stride() == expected.stride()
    assert {one.dtype for one in operands.seen} == {torch.float32}
    if "convolution" not in name:  # the inputs of one sample, and a weight, are converted as a whole
        assert max(operands.converted) <= min(numbers, 33 * 90 if "bmm" not in name else numbers)
    unit = torch.finfo(dtype).eps / 2
    assert bool(((found.double() - expected).abs() <= 1.01 * unit * expected.abs() + 2e-5).all())


@pytest.mark.parametrize("dtype", HALF)
def test_what_would_gain_nothing_stays(monkeypatch, dtype):
    a, b = torch.randn(16, 70).to(dtype), torch.randn(70, 90).to(dtype)
    with Operands() as operands, products_in_single([b]):
        few, mixed = a @ b, torch.randn(50, 70) @ b.float()
    assert {one.dtype for one in operands.seen[:2]} == {dtype}  # so few rows that rounding takes as long
    assert torch.equal(few, a @ b)
    assert mixed.dtype == torch.float32
    monkeypatch.setattr(half_precision, "multiplies_in", lambda kind: kind == dtype)
    with Operands() as operands, products_in_single([b]):
        torch.randn(50, 70).to(dtype) @ b
    assert {one.dtype for one in operands.seen} == {dtype}


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.first, self.last = nn.Linear(8, 40), nn.Linear(40, 32)

    def forward(self, x):
        x = self.norm(self.conv(x)).relu().flatten(2).transpose(1, 2)
        return self.last(self.first(x).relu())


def test_a_run_shows_what_it_showed(monkeypatch):
    torch.manual_seed(0)
    model = Small().bfloat16().eval()
    weights = {name: (1, 10**6) for name, one in model.named_parameters() if one.dim() > 1}
    runs = MeasuringRuns(model, [[Example.of(torch.randn(4, 3, 8, 8).bfloat16())]], True, "probes")
    before = {name: one.clone() for name, one in model.state_dict().items()}
    with Operands() as operands:
        found = runs.measure(weights, {"norm.running_mean": 10**6})
    assert {one.dtype for one in operands.seen} == {torch.float32}
    monkeypatch.setattr(half_precision, "multiplies_in", lambda dtype: True)
    as_it_was = runs.measure(weights, {"norm.running_mean": 10**6})
    assert found.layers.keys() == as_it_was.layers.keys() == weights.keys()
    for name, read in as_it_was.layers.items():
        assert (found.layers[name].bias, found.layers[name].groups) == (read.bias, read.groups)
        torch.testing.assert_close(found.layers[name].rows, read.rows, rtol=0.03, atol=0.03)
    torch.testing.assert_close(
        found.normed["norm.running_mean"], as_it_was.normed["norm.running_mean"], rtol=0.03, atol=0.03
    )
    torch.testing.assert_close(model.state_dict(), before, rtol=0, atol=0)


def test_gradients_within_a_run_are_computed():
    class Own(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = nn.Linear(40, 40), nn.Linear(40, 32)

        def forward(self, x):
            with torch.enable_grad():
                x = x.detach().requires_grad_()
                (slope,) = torch.autograd.grad(self.first(x).square().sum(), x)
            return self.last(slope)

    model, x = Own().bfloat16().eval(), torch.randn(64, 40).bfloat16()
    runs = MeasuringRuns(model, [[Example.of(x)]], False, "probes")
    rows = runs.measure({"last.weight": (1, 10**6)}).layers["last.weight"].rows[:, :, 0]
    first = nn.Linear(40, 40).double()
    first.load_state_dict(model.first.state_dict())
    expected = 2 * first(x.double()) @ first.weight
    torch.testing.assert_close(rows.double(), expected, rtol=0.05, atol=0.05)
