"""Streams behind norms over channels: the best directions stay, and what lies in few directions loses nothing."""

from __future__ import annotations

import copy
from functools import partial

import pytest
import torch
from torch import Tensor, nn

from lightning_coreset import Reconstruction, prune
from lightning_coreset.moments import MeasuringRuns

WIDTH, RANK, IDS = 24, 9, 13


@pytest.fixture(autouse=True)
def no_gradients():
    with torch.no_grad():
        yield


class WrittenOut(nn.Module):
    """An RMSNorm that multiplies with one more than its weight, as Gemma's."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6) * (1 + self.weight)


class Block(nn.Module):
    def __init__(self, norm, *, bias: bool) -> None:
        super().__init__()
        self.norm, self.up, self.gate = norm(WIDTH), nn.Linear(WIDTH, 16, bias=bias), nn.Linear(WIDTH, 16, bias=bias)
        self.down = nn.Linear(16, WIDTH, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        x_ = self.norm(x)
        return x + self.down(nn.functional.silu(self.gate(x_)) * self.up(x_))


class Stream(nn.Module):
    """Embeddings with positions, two blocks, a norm and a head, all of whose writers lie in few directions."""

    def __init__(self, norm=nn.RMSNorm, *, bias: bool = False, ids: bool = True) -> None:
        super().__init__()
        self.embed = nn.Embedding(IDS, WIDTH) if ids else nn.Linear(5, WIDTH, bias=bias)
        self.positions = nn.Parameter(torch.randn(1, 7, WIDTH))
        self.blocks = nn.ModuleList(Block(norm, bias=bias) for _ in range(2))
        self.norm, self.head = norm(WIDTH), nn.Linear(WIDTH, 3, bias=bias)
        for name, parameter in self.named_parameters():
            if "norm" in name:
                nn.init.uniform_(parameter, 0.3, 1.5)
        directions = torch.randn(WIDTH, RANK)
        if isinstance(self.norm, nn.LayerNorm):  # which takes the mean off: it may be anything
            directions = torch.cat([directions[:, :-1], torch.ones(WIDTH, 1)], dim=1)
        basis = torch.linalg.qr(directions).Q
        for writer in (self.embed.weight if ids else self.embed.weight.T, self.positions):
            writer.copy_(3 * writer @ basis @ basis.T)
        for block in self.blocks:
            block.down.weight.copy_(basis @ basis.T @ block.down.weight)
        for vector in [block.down.bias for block in self.blocks] + ([] if ids else [self.embed.bias]):
            if vector is not None:
                vector.copy_(basis @ basis.T @ vector)

    def embedded(self, x: Tensor) -> Tensor:
        return self.embed(x) + self.positions

    def forward(self, x: Tensor) -> Tensor:
        x = self.embedded(x)
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))


def inputs(ids: bool = True) -> Tensor:
    return torch.randint(IDS, (8, 7)) if ids else torch.randn(8, 7, 5)


def narrowed(model: nn.Module, x: Tensor, size: int, method=None, **options):
    """The stream of the network with so many channels."""
    method = Reconstruction(ridge=1e-8) if method is None else method
    rules = {"embed": 1 - size / WIDTH}
    return prune(model, x, rules, method=method, include_residual=True, **options).groups[0]


KINDS = {
    "RMSNorm": (nn.RMSNorm, False, True),
    "RMSNorm, one more than its weight": (WrittenOut, False, True),
    "RMSNorm, biases": (nn.RMSNorm, True, True),
    "LayerNorm, readers without biases": (nn.LayerNorm, False, True),
    "LayerNorm, biases": (nn.LayerNorm, True, True),
    "LayerNorm that adds nothing": (partial(nn.LayerNorm, bias=False), False, True),
    "vectors": (nn.LayerNorm, True, False),
}


@pytest.mark.parametrize("name", KINDS)
def test_a_stream_in_few_directions_loses_nothing(name):
    norm, bias, ids = KINDS[name]
    model, x = Stream(norm, bias=bias, ids=ids).eval(), inputs(ids)
    expected = model(x)

    group = narrowed(model, x, RANK)

    assert group.method == "reconstruction (probes)"
    assert model.positions.shape == (1, 7, RANK)
    assert group.expected_error is not None
    assert group.expected_error < 1e-8
    torch.testing.assert_close(model(x), expected, rtol=1e-3, atol=1e-3 * float(expected.abs().max()))


def test_a_second_event_starts_where_the_first_ended():
    model, x = Stream(nn.LayerNorm).eval(), inputs()
    expected = model(x)
    narrowed(model, x, 2 * RANK)
    prune(model, x, {"embed": 0.5}, method=Reconstruction(ridge=1e-8), include_residual=True)

    assert model.positions.shape[2] == RANK
    torch.testing.assert_close(model(x), expected, rtol=1e-3, atol=1e-3 * float(expected.abs().max()))


@pytest.mark.parametrize("sequential", [False, True])
@pytest.mark.parametrize("norm", [nn.RMSNorm, nn.LayerNorm])
def test_with_data_and_all_groups_at_once_it_beats_ranking(norm, sequential):
    """Directions of unequal weight, so that something is lost; everything of the network is halved."""
    errors = {}
    x = inputs().repeat(16, 1)
    model = Stream(norm, bias=True).eval()
    for parameter in (model.embed.weight, model.positions):
        parameter.add_(0.3 * torch.randn_like(parameter))
    expected = model(x)
    for method in (Reconstruction(moments="batches", sequential=sequential), "magnitude"):
        pruned = copy.deepcopy(model)
        data = {} if method == "magnitude" else {"data": x.split(16)}
        prune(pruned, x[:2], {"*": 0.5}, method=method, include_residual=True, **data)
        errors[str(method)] = float((pruned(x) - expected).square().mean() / expected.square().mean())
    ours, theirs = errors.values()
    assert ours < 0.5 * theirs


@pytest.mark.parametrize("norm", [nn.LayerNorm, nn.RMSNorm])
def test_groups_fitted_in_turn_see_norms_of_the_width_that_they_will_have(norm, monkeypatch):
    """They are measured in a network that still has all channels."""
    seen = []
    measure = MeasuringRuns.measure

    def note(runs, weights, norms=None, tensors=None, channel_norms=None, **others):
        seen.append((weights, tensors and {name: one.float().clone() for name, one in tensors.items()}))
        return measure(runs, weights, norms, tensors, channel_norms, **others)

    monkeypatch.setattr(MeasuringRuns, "measure", note)
    model, x = Stream(norm, bias=True).eval(), inputs().repeat(16, 1)
    wide, narrow = copy.deepcopy(model), copy.deepcopy(model)
    method, data = Reconstruction(moments="batches"), x.split(16)
    prune(model, x[:2], {"embed": 0.5, "*up": 0.25}, method=method, include_residual=True, data=data)
    so_far = next(tensors for weights, tensors in seen if tensors and [*weights] == ["blocks.0.down.weight"])

    prune(narrow, x[:2], {"embed": 0.5}, method=method, include_residual=True, data=data)

    assert so_far["embed.weight"].shape[1] == WIDTH
    found, expected = torch.func.functional_call(wide, so_far, (x,)), narrow(x)
    assert float((found - expected).norm() / expected.norm()) < 0.15


class Tied(Stream):
    """Its head is its embedding."""

    def __init__(self, norm, **kwargs) -> None:
        super().__init__(norm, **kwargs)
        self.head = nn.Linear(WIDTH, IDS, bias=False)
        self.head.weight = self.embed.weight


class PostNorm(Stream):
    """What norms make is the stream."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.embedded(x)
        for block in self.blocks:
            x = block.norm(x + block.down(nn.functional.silu(block.gate(x)) * block.up(x)))
        return self.head(self.norm(x))


class Scaled(Stream):
    """With a scale for each channel on the branches."""

    def __init__(self, *args, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        self.scale = nn.Parameter(torch.rand(WIDTH) + 0.5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embedded(x)
        for block in self.blocks:
            x = x + self.scale * (block(x) - x)
        return self.head(self.norm(x))


class Bent(Stream):
    """With an activation on the stream, which is so small that this is nearly linear."""

    def __init__(self, *args, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        self.embed.weight.mul_(1e-3)
        self.positions.mul_(1e-3)

    def embedded(self, x: Tensor) -> Tensor:
        return torch.tanh(super().embedded(x))


class Bypassed(Stream):
    """Its head reads the stream itself."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.embedded(x)
        for block in self.blocks:
            x = block(x)
        return self.head(x + 0 * self.norm(x))


class Bright(Stream):
    """An activation on the stream, before outputs that a large constant hides."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.embedded(x)
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x.relu())) + 3000


class SlightlyScaled(Scaled):
    """As networks with such scales begin: the branches add next to nothing."""

    def __init__(self, *args, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        self.scale.mul_(1e-5)


@pytest.mark.parametrize("kind", [Tied, PostNorm, Scaled, SlightlyScaled, Bent, Bright, Bypassed])
@pytest.mark.parametrize("norm", [nn.RMSNorm, nn.LayerNorm])
def test_what_does_not_rotate_keeps_channels_as_they_are(kind, norm):
    model, x = kind(norm, bias=True).eval(), inputs()
    before = model.positions.detach().clone()

    group = narrowed(model, x, RANK)

    assert group.method.startswith("rank")
    torch.testing.assert_close(model.positions.detach(), before[:, :, list(group.kept)])


@pytest.mark.parametrize("method", [Reconstruction(refine=False), Reconstruction(moments="closed_form"), "magnitude"])
def test_only_where_producers_may_move(method):
    model, x = Stream().eval(), inputs()
    before = model.positions.detach().clone()

    group = narrowed(model, x, RANK, method)

    torch.testing.assert_close(model.positions.detach(), before[:, :, list(group.kept)])


class Encoder(nn.Module):
    """With torch's own layers, which multiply by a weight in one operator or another."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(IDS, WIDTH)
        self.layer = nn.TransformerEncoderLayer(WIDTH, 4, 32, batch_first=True, norm_first=True, dropout=0.0)
        self.norm, self.head = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(self.layer(self.embed(x))))


@pytest.mark.parametrize("moments", ["synthetic", "batches"])
def test_torch_s_own_transformers_rotate(moments):
    model, x = Encoder().eval(), inputs().repeat(8, 1)
    data = {"data": x.split(16)} if moments == "batches" else {}

    group = narrowed(model, x, 12, Reconstruction(moments=moments), **data)

    assert group.method.startswith("reconstruction")
    assert model.layer.self_attn.embed_dim == 12


class Latent(nn.Module):
    """The layer that makes the stream makes other channels as well, as in DeepSeek's attention."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.norm = nn.Linear(5, WIDTH + 6), nn.RMSNorm(WIDTH)
        self.head, self.other = nn.Linear(WIDTH, 3), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        stream, rest = self.embed(x).split([self.norm.weight.shape[0], 6], dim=-1)
        return self.head(self.norm(stream)) + self.other(rest)


def test_what_else_a_layer_makes_stays_as_it_is():
    model, x = Latent().eval(), inputs(ids=False)
    before = model.embed.weight[WIDTH:].clone(), model.other(model.embed(x)[..., WIDTH:])

    (group,) = prune(model, x, {"embed": 0.5}, include_residual=True).groups

    assert group.method == "reconstruction (probes)"
    assert model.embed.weight.shape[0] == WIDTH // 2 + 6
    torch.testing.assert_close(model.embed.weight[-6:], before[0])
    torch.testing.assert_close(model.other(model.embed(x)[..., -6:]), before[1])
