"""The oracle of removed channels under norms, beside networks that are narrowed by hand."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from lightning_coreset.structure import ChannelGroup, Member

from .entry import Net
from .kept_only import kept_only
from .running import distance
from .test_oracle import group, one_each

REMOVED = [1, 4, 6, 11]
KEPT = [i for i in range(12) if i not in REMOVED]
X = torch.randn(4, 7, 5, generator=Generator().manual_seed(0), dtype=torch.float64)


def rms(x: Tensor) -> Tensor:
    return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6)


def standard(x: Tensor) -> Tensor:
    variance, mean = torch.var_mean(x, -1, unbiased=False, keepdim=True)
    return (x - mean) / (variance + 1e-6).sqrt()


def first_moments(x: Tensor) -> Tensor:
    """Deviation with n - 1, both from one call."""
    deviation, mean = torch.std_mean(x, -1, keepdim=True)
    return (x - mean) / deviation


NORMS: dict[str, Callable[[Tensor], Tensor]] = {
    "layer_norm": lambda x: F.layer_norm(x, x.shape[-1:]),
    "rms_norm": lambda x: F.rms_norm(x, x.shape[-1:]),
    "rms by hand": rms,
    "var_mean": standard,
    "std_mean": first_moments,
    "std": lambda x: x / (x.std(-1, keepdim=True) + 0.1),
    "var": lambda x: (x - x.mean(-1, keepdim=True)) * x.var(-1, unbiased=False, keepdim=True).add(0.1).rsqrt(),
    "normalize": lambda x: F.normalize(x, dim=-1) * 12**0.5,
    "norm": lambda x: x / x.norm(dim=-1, keepdim=True),
    "absolute norm": lambda x: x / x.norm(p=1, dim=-1, keepdim=True),
    "largest": lambda x: x / torch.linalg.vector_norm(x, torch.inf, -1, keepdim=True),
    "root of a sum": lambda x: x / (x * x).sum(-1, keepdim=True).sqrt(),
    "over places and channels": lambda x: x - x.mean((1, 2), keepdim=True),
    "group norm": lambda x: F.group_norm(x.transpose(1, 2), 1).transpose(1, 2),
    "channels first": lambda x: _first(x.transpose(1, 2)).transpose(1, 2),
    "response": lambda x: x * (gx := x.norm(dim=1, keepdim=True)) / (gx.mean(-1, keepdim=True) + 1e-6) + x,
    "dead channels": lambda x: F.layer_norm(x.relu(), x.shape[-1:]),
    "single precision": lambda x: (rms(x.float())).to(x.dtype),
    "in place": lambda x: x.clone().sub_(x.mean(-1, keepdim=True)).div_(x.norm(dim=-1, keepdim=True)),
    "behind zero places": lambda x: F.layer_norm(F.pad(x, (0, 0, 2, 1)).relu(), x.shape[-1:]),
    "mean over places": lambda x: x * F.pad(x, (0, 0, 2, 1)).relu().mean(1, keepdim=True),
    "heads": lambda x: F.normalize(x.unflatten(-1, (2, -1)), dim=-1).flatten(-2),
    "scores": lambda x: (x @ x.transpose(-2, -1)).softmax(-1) @ x,
}


def _first(x: Tensor) -> Tensor:
    """The LayerNorm of ConvNeXt over dimension 1."""
    mean = x.mean(1, keepdim=True)
    return (x - mean) / torch.sqrt((x - mean).pow(2).mean(1, keepdim=True) + 1e-6)


def between(norm: Callable[[Tensor], Tensor]) -> nn.Module:
    """A norm with weights of its own between two layers."""
    torch.manual_seed(0)
    return Net(
        lambda net, x: net.last(norm(net.first(x)) * net.gain + net.shift),
        first=nn.Linear(5, 12),
        last=nn.Linear(12, 3),
        gain=nn.Parameter(torch.randn(12)),
        shift=nn.Parameter(torch.randn(12)),
    ).double()


MEMBERS = (
    ("first.weight", 0, "producer", one_each(12)),
    ("first.bias", 0, "channelwise", one_each(12)),
    ("gain", 0, "channelwise", one_each(12)),
    ("shift", 0, "channelwise", one_each(12)),
    ("last.weight", 1, "consumer", one_each(12)),
)


def outputs(model: nn.Module, made: ChannelGroup, *inputs: Any, removed: Sequence[int] = REMOVED) -> tuple[Any, float]:
    """The one output without the removed classes, and how far the two worlds are apart."""
    (found,), (other,) = kept_only(model, [(made, removed)], inputs or (X,))
    return found, distance([other], [found])


@torch.no_grad()
def narrowed(model: nn.Module, made: ChannelGroup, x: Tensor) -> Tensor:
    """The network with smaller weights, cut here."""
    for member in made.members:
        module, _, name = member.name.rpartition(".")
        owner = model.get_submodule(module)
        setattr(owner, name, nn.Parameter(getattr(owner, name).index_select(member.dim, torch.tensor(KEPT))))
    return model(x)


@pytest.mark.parametrize("name", NORMS)
def test_equals_the_network_that_is_narrowed_by_hand(name):
    made = group(*MEMBERS)
    found, leak = outputs(between(NORMS[name]), made)
    narrow = between(NORMS[name])
    expected = narrowed(narrow, made, X)
    assert leak < 1e-12
    tolerance = 1e-6 if name == "single precision" else 1e-12  # the oracle computes in double precision throughout
    assert distance([found], [expected]) < tolerance
    assert distance([found], [between(NORMS[name])(X)]) > 1e-3, "nothing was removed"


@pytest.mark.parametrize("name", ["layer_norm", "rms by hand", "scores", "response", "heads"])
@pytest.mark.parametrize("changed", range(5))
def test_sees_a_wrong_index(name, changed):
    """Each member in turn is shifted by one: its channel's neighbour changes between the worlds."""
    members = [list(member) for member in MEMBERS]
    members[changed][3] = [[(i + 1) % 12] for i in range(12)]
    assert outputs(between(NORMS[name]), group(*members))[1] > 1e-6


@pytest.mark.parametrize("name", ["layer_norm", "rms by hand", "normalize"])
def test_sees_a_forgotten_consumer(name):
    assert outputs(between(NORMS[name]), group(*MEMBERS[:-1]))[1] > 1e-6


@pytest.mark.parametrize("function", [lambda x: x.softmax(-1), lambda x: x.cumsum(-1), lambda x: x - x.amax(-1, True)])
def test_sees_what_mixes_channels_and_is_no_reduction(function):
    assert outputs(between(function), group(*MEMBERS))[1] > 1e-6


def test_a_width_as_a_number_is_another_network():
    """The sum over the kept channels is divided by all of them, which a narrower network does not."""
    divided = lambda x: x - x.sum(-1, keepdim=True) / x.shape[-1]  # noqa: E731
    found, leak = outputs(between(divided), group(*MEMBERS))
    assert leak < 1e-12
    assert distance([found], [narrowed(between(divided), group(*MEMBERS), X)]) > 1e-3


def test_heads_may_lose_different_channels():
    """Each of two heads loses three channels, its own ones."""
    model = between(NORMS["heads"])
    pairs = [(0, 8), (1, 6), (2, 11), (3, 7), (4, 10), (5, 9)]
    made = ChannelGroup("heads", tuple(Member(name, dim, role, tuple(pairs)) for name, dim, role, _ in MEMBERS))  # type: ignore[arg-type]
    found, leak = outputs(model, made, removed=[0, 2, 3])
    kept = [1, 4, 5, 6, 9, 10]
    x = F.linear(X, model.first.weight[kept], model.first.bias[kept])
    x = F.normalize(x.unflatten(-1, (2, 3)), dim=-1).flatten(-2) * model.gain[kept] + model.shift[kept]
    assert leak < 1e-12
    assert distance([found], [F.linear(x, model.last.weight[:, kept], model.last.bias)]) < 1e-12


def tied() -> nn.Module:
    """A language model without a body: its table makes the channels and reads them."""
    torch.manual_seed(0)
    net = Net(
        lambda net, x: net.head(net.norm(net.table(x))),
        table=nn.Embedding(9, 12), norm=nn.LayerNorm(12), head=nn.Linear(12, 9, bias=False),
    ).double()  # fmt: skip
    net.head.weight = net.table.weight
    return net


def test_a_tied_table_makes_and_reads_channels():
    model, x = tied(), torch.randint(0, 9, (2, 7), generator=Generator().manual_seed(0))
    rows = one_each(12)
    norm = (("norm.weight", 0, "channelwise", rows), ("norm.bias", 0, "channelwise", rows))
    found, leak = outputs(model, group(("table.weight", 1, "consumer", rows), *norm), x)
    table = model.table.weight[:, KEPT]
    y = F.layer_norm(table[x], (8,), model.norm.weight[KEPT], model.norm.bias[KEPT])
    assert leak < 1e-12
    assert distance([found], [y @ table.t()]) < 1e-12
    shifted = group(("table.weight", 1, "consumer", [[(i + 1) % 12] for i in range(12)]), *norm)
    assert outputs(model, shifted, x)[1] > 1e-6


def test_a_residual_stream_of_two_blocks():
    """Two norms of their own, an embedding, a class token and a position buffer on one stream."""
    rows = one_each(12)
    torch.manual_seed(0)

    def forward(net: Net, x: Tensor) -> Tensor:
        x = torch.cat([net.token.expand(x.shape[0], -1, -1), net.first(x)], 1) + net.place[:, : x.shape[1] + 1]
        x = x + net.up(net.down(net.norm(x)).relu())
        return net.last(net.end(x)[:, 0])

    net = Net(
        forward, first=nn.Linear(5, 12), norm=nn.LayerNorm(12), down=nn.Linear(12, 6), up=nn.Linear(6, 12),
        end=nn.LayerNorm(12), last=nn.Linear(12, 3), token=nn.Parameter(torch.randn(1, 1, 12)),
        place=torch.randn(1, 20, 12),
    ).double()  # fmt: skip
    made = group(
        ("first.weight", 0, "producer", rows), ("first.bias", 0, "channelwise", rows), ("token", 2, "producer", rows),
        ("place", 2, "channelwise", rows), ("norm.weight", 0, "channelwise", rows),
        ("norm.bias", 0, "channelwise", rows), ("up.weight", 0, "producer", rows),
        ("up.bias", 0, "channelwise", rows), ("end.weight", 0, "channelwise", rows),
        ("end.bias", 0, "channelwise", rows), ("down.weight", 1, "consumer", rows),
        ("last.weight", 1, "consumer", rows),
    )  # fmt: skip
    found, leak = outputs(net, made)
    assert leak < 1e-12
    kept = {name: value.detach() for name, value in [*net.named_parameters(), *net.named_buffers()]}
    for member in made.members:
        kept[member.name] = kept[member.name].index_select(member.dim, torch.tensor(KEPT))
    y = torch.cat([kept["token"].expand(4, -1, -1), F.linear(X, kept["first.weight"], kept["first.bias"])], 1)
    y = y + kept["place"][:, :8]
    z = F.layer_norm(y, (8,), kept["norm.weight"], kept["norm.bias"])
    z = F.linear(z, kept["down.weight"], kept["down.bias"]).relu()
    y = y + F.linear(z, kept["up.weight"], kept["up.bias"])
    y = F.layer_norm(y, (8,), kept["end.weight"], kept["end.bias"])[:, 0]
    assert distance([found], [F.linear(y, kept["last.weight"], kept["last.bias"])]) < 1e-12
    for left_out in range(1, len(made.members)):
        fewer = ChannelGroup("fewer", made.members[:left_out] + made.members[left_out + 1 :])
        if made.members[left_out].role == "consumer":
            assert outputs(net, fewer)[1] > 1e-6


def test_the_network_stays_as_it_is():
    model = between(rms)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    outputs(model, group(*MEMBERS))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
