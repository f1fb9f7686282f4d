"""The matrices of the mathematics compute what the modules compute."""

from __future__ import annotations

import pytest
import torch
from networks import Autoencoder, Gated, Mobilenet, Resnet, Siblings, make, randomised
from torch import Tensor, nn
from torch.nn import functional

from lightning_coreset.layers import GroupView, LayerPair, NoCoresetForm, layer_pairs
from lightning_coreset.layers.layer_pair import consumer_matrix, put_consumer
from lightning_coreset.structure import ChannelGroup, analyse
from lightning_coreset.surgery import named_tensors


def prepared(*layers: nn.Module) -> nn.Sequential:
    return randomised(nn.Sequential(*layers).eval(), torch.Generator().manual_seed(1)).double()


def found(
    model: nn.Module, shape: tuple[int, ...], number: int = 0
) -> tuple[ChannelGroup, tuple[LayerPair, ...], Tensor]:
    x = torch.randn(shape, dtype=torch.float64)
    group = analyse(model, x).groups[number]
    return group, layer_pairs(GroupView(group, named_tensors(model))), x


def patches(x: Tensor, convolution: nn.Conv2d) -> Tensor:
    """What a filter sees, with a constant 1 behind, (B, d + 1, positions)."""
    cut = functional.unfold(x, convolution.kernel_size, padding=convolution.padding, stride=convolution.stride)
    return torch.cat([cut, torch.ones_like(cut[:, :1])], 1)


def with_one(x: Tensor) -> Tensor:
    return torch.cat([x, torch.ones_like(x[:, :1])], 1)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("norm", [None, nn.BatchNorm1d(8), nn.BatchNorm1d(8, affine=False), nn.BatchNorm1d(8, eps=0.5)])
def test_rows_of_a_linear_with_its_norm(norm, bias):
    middle = [] if norm is None else [norm]
    model = prepared(nn.Linear(5, 8, bias=bias), *middle, nn.ReLU(), nn.Linear(8, 3))
    _, (form,), x = found(model, (20, 5))
    expected = model[: 1 + len(middle)](x)
    torch.testing.assert_close(with_one(x) @ form.rows[:, 0].T, expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(form.producers, form.rows[:, 0], rtol=0, atol=0)
    assert form.rows.dtype == torch.float64
    assert form.activation.name == "relu"


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("norms", [0, 1, 2])
def test_rows_of_a_convolution_with_its_norms(norms, bias):
    middle = [nn.BatchNorm2d(6) for _ in range(norms)]
    first = nn.Conv2d(2, 6, 3, padding=1, stride=2, bias=bias)
    model = prepared(first, *middle, nn.Tanh(), nn.Conv2d(6, 3, 1))
    _, (form,), x = found(model, (4, 2, 8, 8))
    expected = model[: 1 + norms](x).flatten(2)
    torch.testing.assert_close(form.rows[:, 0] @ patches(x, first), expected, rtol=1e-12, atol=1e-12)


def test_the_bias_of_the_producer_goes_through_its_norm():
    """A shift of the producer's bias moves the rows' last column by the norm's scale, not by itself."""
    model = prepared(nn.Linear(5, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))
    _, (before,), _ = found(model, (2, 5))
    with torch.no_grad():
        model[0].bias += 1.0
    _, (after,), _ = found(model, (2, 5))
    scale = model[1].weight / (model[1].running_var + model[1].eps).sqrt()
    torch.testing.assert_close((after.rows - before.rows)[:, 0, -1], scale.detach())


def test_rows_of_a_transposed_convolution():
    model = prepared(nn.ConvTranspose2d(3, 6, 1), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 2, 1))
    _, (form,), x = found(model, (2, 3, 4, 4))
    expected = model[:2](x).flatten(2)
    torch.testing.assert_close(form.rows[:, 0] @ with_one(x.flatten(2)), expected, rtol=1e-12, atol=1e-12)


def test_a_class_of_a_grouped_convolution_has_a_row_in_every_conv_group():
    second = nn.Conv2d(8, 12, 1, groups=4)
    model = prepared(nn.Conv2d(3, 8, 1), nn.ReLU(), second, nn.BatchNorm2d(12), nn.ReLU(), nn.Conv2d(12, 2, 1))
    group, (form,), _ = found(model, (2, 3, 4, 4), 1)
    assert form.rows.shape == (3, 4, 3)
    x = torch.randn(2, 8, 4, 4, dtype=torch.float64)
    expected = model[2:4](x).flatten(2)
    for number in range(group.size):
        for part in range(4):
            seen = with_one(x[:, 2 * part : 2 * part + 2].flatten(2))
            torch.testing.assert_close(form.rows[number, part] @ seen, expected[:, 3 * part + number])
    longest = form.rows.norm(dim=2)
    torch.testing.assert_close(form.producers.norm(dim=1), longest.amax(dim=1))


@pytest.mark.parametrize(("number", "places"), [(0, slice(0, 5)), (1, slice(5, 12))])
def test_siblings_read_their_part_of_the_norm(number, places):
    model, _ = make("siblings")
    assert isinstance(model, Siblings)
    _, (form,), x = found(model, (20, 6), number)
    expected = model.norm(torch.cat([model.a(x), model.b(x)], 1))[:, places]
    torch.testing.assert_close(with_one(x) @ form.rows[:, 0].T, expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(form.consumers[:, :, 0, 0], model.head.weight[:, places].detach(), rtol=0, atol=0)


@pytest.mark.parametrize("consumer", [nn.Linear(8, 3), nn.Linear(8, 3, bias=False)])
def test_consumers_of_a_linear(consumer):
    model = prepared(nn.Linear(5, 8), nn.ReLU(), consumer)
    _, (form,), x = found(model, (20, 5))
    hidden = model[:2](x)
    expected = functional.linear(hidden, consumer.weight)
    torch.testing.assert_close(torch.einsum("onqk,bn->bo", form.consumers, hidden), expected)


def test_consumers_of_a_convolution():
    last = nn.Conv2d(6, 3, 3, padding=1, bias=False)
    model = prepared(nn.Conv2d(2, 6, 1), nn.ReLU(), last)
    _, (form,), x = found(model, (2, 2, 5, 5))
    hidden = functional.unfold(model[:2](x), 3, padding=1).unflatten(1, (6, 1, 9))
    expected = last(model[:2](x)).flatten(2)
    torch.testing.assert_close(torch.einsum("onqk,bnqkl->bol", form.consumers, hidden), expected)


def test_consumers_behind_a_flatten():
    model = prepared(nn.Conv2d(2, 6, 3), nn.ReLU(), nn.Flatten(), nn.Linear(6 * 4, 3, bias=False))
    _, (form,), x = found(model, (5, 2, 4, 4))
    assert form.consumers.shape == (3, 6, 4, 1)
    hidden = model[:2](x).flatten(2)
    torch.testing.assert_close(torch.einsum("onqk,bnq->bo", form.consumers, hidden), model(x))


def test_consumers_of_a_grouped_convolution():
    """The filters of every conv group lie along the outputs: each sees its part of a class."""
    last = nn.Conv2d(8, 12, 3, groups=4)
    model = prepared(nn.Conv2d(3, 8, 1), nn.ReLU(), last)
    group, (form,), _ = found(prepared(*model, nn.ReLU(), nn.Conv2d(12, 2, 1)), (2, 3, 6, 6))
    assert (group.size, form.consumers.shape) == (2, (12, 2, 1, 9))
    torch.testing.assert_close(form.consumers[:, :, 0], last.weight.flatten(2).detach(), rtol=0, atol=0)


def test_consumers_of_a_transposed_convolution():
    last = nn.ConvTranspose2d(6, 4, 2, bias=False)
    model = prepared(nn.Conv2d(2, 6, 1), nn.ReLU(), last, nn.ReLU(), nn.Conv2d(4, 2, 1))
    _, (form,), x = found(model, (2, 2, 3, 3))
    hidden = model[:2](x)
    spread = torch.einsum("onqk,bnhw->bokhw", form.consumers, hidden).flatten(1, 2).flatten(2)
    torch.testing.assert_close(functional.fold(spread, (4, 4), 2), last(hidden))


@pytest.mark.parametrize("outputs", [1, 2])
def test_a_transposed_convolution_to_any_number_of_channels(outputs):
    model = prepared(nn.Conv2d(2, 6, 1), nn.ReLU(), nn.ConvTranspose2d(6, outputs, 2))
    _, (form,), _ = found(model, (2, 2, 3, 3))
    assert form.consumers.shape == (outputs, 6, 1, 4)


@pytest.mark.parametrize("outputs", [1, 2])
@pytest.mark.parametrize("inputs", [1, 2])
def test_single_inputs_and_outputs(inputs, outputs):
    model = prepared(nn.Linear(inputs, 6), nn.ReLU(), nn.Linear(6, outputs))
    _, (form,), x = found(model, (4, inputs))
    assert form.consumers.shape == (outputs, 6, 1, 1)
    torch.testing.assert_close(with_one(x) @ form.rows[:, 0].T, model[0](x))


@pytest.mark.parametrize(
    "layer", [nn.Linear(8, 3), nn.Conv2d(8, 3, 3), nn.ConvTranspose2d(8, 3, 3), nn.Conv1d(8, 3, 2), nn.Conv3d(8, 3, 2)]
)
def test_putting_a_consumer_back_is_the_inverse(layer):
    spatial = layer.weight.dim() - 2
    first = [nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d][spatial]
    model = nn.Sequential(first(2, 8, *[1] * bool(spatial)), nn.ReLU(), layer).double()
    _, (form,), _ = found(model, (2, 2, *[4] * spatial))
    consumer = form.path.consumer
    matrix = consumer_matrix(consumer, named_tensors(model))
    assert matrix.shape[:2] == (3, 8)
    torch.testing.assert_close(put_consumer(consumer, matrix, layer.weight), layer.weight.detach(), rtol=0, atol=0)


def test_norms_behind_scale_what_selection_sees():
    layers = (
        nn.Linear(5, 8),
        nn.ReLU(),
        nn.BatchNorm1d(8),
        nn.Linear(8, 3),
        nn.BatchNorm1d(3),
        nn.ReLU(),
        nn.Linear(3, 2),
    )
    model = prepared(*layers)
    with torch.no_grad():
        model[2].weight[0] *= -1
        model[4].weight[1] *= -1
    _, (form,), _ = found(model, (2, 5))
    behind, after = (norm.weight.abs() / (norm.running_var + norm.eps).sqrt() for norm in (model[2], model[4]))
    expected = model[3].weight * behind * after[:, None]
    torch.testing.assert_close(form.normalised_consumer_norms(), expected.detach().abs().amax(dim=0))
    torch.testing.assert_close(form.output_scale, after.detach())


class Consumed(nn.Module):
    """A layer's output goes through ``between`` into another layer."""

    def __init__(self, between, first: nn.Module | None = None) -> None:
        super().__init__()
        self.a, self.b, self.between = first or nn.Linear(5, 8), nn.Linear(8, 3), between

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.between(self.a(x)))


ACTIVATIONS = {
    "identity": lambda z: z,
    "relu": torch.relu,
    "relu6": functional.relu6,
    "leaky_relu": lambda z: functional.leaky_relu(z, 0.3),
    "elu": lambda z: functional.elu(z, 0.5),
    "selu": functional.selu,
    "celu": lambda z: functional.celu(z, 2.0),
    "gelu": functional.gelu,
    "gelu tanh": lambda z: functional.gelu(z, approximate="tanh"),
    "silu": functional.silu,
    "mish": functional.mish,
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
    "softplus": lambda z: functional.softplus(z, 2.0),
    "hardswish": functional.hardswish,
    "hardsigmoid": functional.hardsigmoid,
    "hardtanh": lambda z: functional.hardtanh(z, -0.5, 2.0),
    "clamp": lambda z: z.clamp(-1.0, 0.5),
    "clamp from below": lambda z: z.clamp(min=0.25),
    "clamp from above": lambda z: z.clamp(max=0.25),
    "clip from above": lambda z: torch.clip(z, max=3.0),
    "dropout": lambda z: functional.dropout(z, 0.5, training=False).relu(),
}


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_the_activation_is_the_one_that_runs(name):
    _, (form,), _ = found(Consumed(ACTIVATIONS[name]).double(), (2, 5))
    z = torch.linspace(-8, 8, 161, dtype=torch.float64)
    torch.testing.assert_close(form.activation.function(z), ACTIVATIONS[name](z), rtol=1e-12, atol=1e-12)


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(5, 8), nn.Linear(5, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.c((self.a(x) + self.b(x)).relu())


class OwnBias(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.w, self.bias, self.c = nn.Parameter(torch.randn(5, 8)), nn.Parameter(torch.randn(8)), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.c((x @ self.w + self.bias).relu())


class Stacked(nn.Module):
    """One weight for each of five places."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Parameter(torch.randn(5, 6, 8)), nn.Parameter(torch.randn(5, 8, 3))

    def forward(self, x: Tensor) -> Tensor:
        return torch.bmm(torch.bmm(x, self.a).relu(), self.b)


class View(nn.Module):
    """Layers that read a view of their input whose elements do not lie one behind the other."""

    def __init__(self, view) -> None:
        super().__init__()
        self.a, self.b, self.view = nn.Linear(5, 8), nn.Linear(8, 3), view

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.view(self.a(self.view(x)).relu()))


VIEWS = {
    "transposed": lambda x: x.transpose(0, 1),
    "expanded": lambda x: x[:, :1].expand(-1, 4, -1),
    "without the first": lambda x: x[:, 1:],
    "four dimensions": lambda x: (x.unflatten(1, (2, 3)) if x.dim() < 4 else x).transpose(1, 2),
}


@pytest.mark.parametrize("view", VIEWS.values(), ids=VIEWS)
def test_a_linear_on_a_view_is_one_layer_with_its_bias(view):
    """For such inputs aten multiplies first, and adds the bias in an operation of its own."""
    model = View(view).double()
    _, (pair,), _ = found(model, (6, 6, 5))
    torch.testing.assert_close(pair.rows[:, 0], torch.cat([model.a.weight, model.a.bias[:, None]], 1).detach())
    assert pair.activation.name == "relu"
    assert pair.constant_target == ("b.bias", 1.0)


IMAGE = (2, 2, 8, 8)
TRANSPOSED = [nn.Conv2d(2, 8, 1), nn.ReLU(), nn.ConvTranspose2d(8, 12, 2, groups=2), nn.ReLU(), nn.Conv2d(12, 2, 1)]


@pytest.mark.parametrize(
    ("model", "shape", "number", "reason"),
    [
        pytest.param(Residual(), (2, 5), 0, "several layers make its channels", id="residual"),
        pytest.param(Gated(), (2, 6), 0, "several layers make its channels", id="gated"),
        pytest.param(Autoencoder(), (2, 6), 0, "no layer's weight makes its channels", id="tied"),
        pytest.param(Mobilenet(), IMAGE, 0, "several layers make its channels", id="squeeze"),
        pytest.param(Resnet(), IMAGE, 2, "several layers make its channels", id="shortcut"),
        pytest.param(
            Consumed(nn.Sequential(nn.ReLU(), nn.BatchNorm1d(8), nn.Tanh())), (2, 5), 0,
            "two activations, relu and tanh", id="two",
        ),
        pytest.param(Consumed(lambda z: z.softmax(0)), (2, 5), 0, "softmax stands between", id="unknown"),
        pytest.param(
            Consumed(lambda z: z.log()), (2, 5), 0, r"its activation log\(z\) is not known to be", id="log"
        ),
        pytest.param(Consumed(nn.PReLU(8)), (2, 5), 0, "stands between", id="prelu"),
        pytest.param(Consumed(lambda z: z * z.sigmoid().flip(1)), (2, 5), 0, "stands between", id="own gate"),
        pytest.param(Stacked(), (5, 4, 6), 0, "is a stack of matrices", id="stacked"),
        pytest.param(OwnBias(), (2, 5), 0, "add stands between", id="bias added later"),
        pytest.param(
            Consumed(nn.BatchNorm1d(8, track_running_stats=False)), (2, 5), 0, "no running statistics", id="statistics"
        ),
        pytest.param(
            nn.Sequential(nn.Conv2d(2, 6, 1), nn.Conv2d(6, 6, 3, groups=6), nn.Conv2d(6, 2, 1)),
            IMAGE, 0, "depthwise stands between", id="depthwise",
        ),
        pytest.param(nn.Sequential(*TRANSPOSED), IMAGE, 1, "its bias has another length", id="transposed in groups"),
    ],
)  # fmt: skip
def test_reasons_in_words(model, shape, number, reason):
    with pytest.raises(NoCoresetForm, match=reason):
        found(model.double(), shape, number)


def test_an_embedding_is_no_sum():
    model = nn.Sequential(nn.Embedding(7, 6), nn.ReLU(), nn.Linear(6, 2))
    (group,) = analyse(model, torch.tensor([[1, 2]])).groups
    with pytest.raises(NoCoresetForm, match="an embedding makes its channels"):
        layer_pairs(GroupView(group, named_tensors(model)))
