"""Traps in the weights: shared, tied, computed, parametrised, own parameters, unusual convolutions."""

from __future__ import annotations

import warnings

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from .entry import ROWS, Net, floats, network, tokens


@network(ROWS, expect="none", why="one square weight used twice, the second time for the output")
def shared_square_to_output() -> nn.Module:
    fc = nn.Linear(6, 6)
    return Net(lambda net, x: net.fc(net.fc(x).relu()), fc=fc)


@network(ROWS, must=("first",))
def shared_square_inside() -> nn.Module:
    """A recurrent step in the middle: rows and columns of one weight go together."""
    return Net(
        lambda net, x: net.last(net.step(net.step(net.first(x)).tanh()).tanh()),
        first=nn.Linear(6, 20),
        step=nn.Linear(20, 20),
        last=nn.Linear(20, 3),
    )


@network(ROWS, must=("first",))
def two_modules_one_weight() -> nn.Module:
    """Two Linears own one weight; a bias each."""
    net = Net(
        lambda net, x: net.last(net.a(net.first(x)).relu() + net.b(net.first(-x)).sigmoid()),
        first=nn.Linear(6, 12), a=nn.Linear(12, 20), b=nn.Linear(12, 20), last=nn.Linear(20, 3),
    )  # fmt: skip
    net.b.weight = net.a.weight
    return net


@network(ROWS, must=("encode",))
def tied_autoencoder() -> nn.Module:
    """The decoder is the encoder's weight, transposed, with a bias of its own."""
    return Net(
        lambda net, x: F.linear(net.encode(x).relu(), net.encode.weight.t(), net.bias),
        encode=nn.Linear(6, 20),
        bias=nn.Parameter(torch.zeros(6)),
    )


@network(tokens(), must=("table",))
def tied_embedding() -> nn.Module:
    """No norm between: the width of a tied embedding can shrink."""
    net = Net(lambda net, x: net.head(net.table(x).relu()), table=nn.Embedding(50, 20), head=nn.Linear(20, 50))
    net.head.weight = net.table.weight
    return net


@network(tokens(), must=("table",))
def embedding_with_padding() -> nn.Module:
    return Net(
        lambda net, x: net.last(net.mix(net.table(x).transpose(1, 2)).amax(2)),
        table=nn.Embedding(50, 20, padding_idx=0), mix=nn.Conv1d(20, 12, 3), last=nn.Linear(12, 3),
    )  # fmt: skip


@network(tokens(), expect="any")
def embedding_bag() -> nn.Module:
    return Net(lambda net, x: net.last(net.bag(x)), bag=nn.EmbeddingBag(50, 20), last=nn.Linear(20, 3))


@network(tokens())
def one_hot_embedding() -> nn.Module:
    return Net(
        lambda net, x: net.last(F.one_hot(x, 50).to(net.first.weight.dtype) @ net.first.weight.t()),
        first=nn.Linear(50, 12, bias=False),
        last=nn.Linear(12, 3),
    )


@network(ROWS)
def functional_linear() -> nn.Module:
    return Net(
        lambda net, x: F.linear(F.linear(x, net.w1, net.b1).relu(), net.w2),
        w1=nn.Parameter(torch.randn(20, 6)), b1=nn.Parameter(torch.randn(20)), w2=nn.Parameter(torch.randn(3, 20)),
    )  # fmt: skip


@network(ROWS)
def matmul_parameters() -> nn.Module:
    return Net(
        lambda net, x: (x @ net.w1 + net.b1).relu() @ net.w2,
        w1=nn.Parameter(torch.randn(6, 20)), b1=nn.Parameter(torch.randn(20)), w2=nn.Parameter(torch.randn(20, 3)),
    )  # fmt: skip


@network(floats((2, 5, 6)))
def batched_matmul_parameters() -> nn.Module:
    """One weight per position; all share their hidden width."""
    return Net(
        lambda net, x: torch.bmm(torch.bmm(x.transpose(0, 1), net.w1).relu(), net.w2),
        w1=nn.Parameter(torch.randn(5, 6, 20)),
        w2=nn.Parameter(torch.randn(5, 20, 3)),
    )


@network(floats((2, 5, 6)))
def einsum() -> nn.Module:
    return Net(
        lambda net, x: torch.einsum("bth,ho->bto", torch.einsum("bti,hi->bth", x, net.w1).tanh(), net.w2),
        w1=nn.Parameter(torch.randn(20, 6)),
        w2=nn.Parameter(torch.randn(20, 3)),
    )


@network(floats((2, 5, 24)), expect="any", why="heads")
def einsum_heads() -> nn.Module:
    """Attention as in JAX ports: weights of shape (model, heads, head)."""

    def forward(net: Net, x: Tensor) -> Tensor:
        q, k, v = (torch.einsum("bti,ihd->bhtd", x, w) for w in (net.q, net.k, net.v))
        weight = torch.einsum("bhid,bhjd->bhij", q, k).softmax(-1)
        return torch.einsum("bhtd,hdo->bto", torch.einsum("bhij,bhjd->bhid", weight, v), net.o)

    shape = {name: nn.Parameter(torch.randn(24, 3, 10)) for name in "qkv"}
    return Net(forward, **shape, o=nn.Parameter(torch.randn(3, 10, 7)))


@network(floats((4, 6), (4, 5)), expect="any")
def bilinear() -> nn.Module:
    return Net(
        lambda net, x, y: net.last(net.pair(net.a(x).relu(), net.b(y).relu())),
        a=nn.Linear(6, 12), b=nn.Linear(5, 10), pair=nn.Bilinear(12, 10, 14), last=nn.Linear(14, 3),
    )  # fmt: skip


@network(ROWS, must=("first",))
def weight_of_two_factors() -> nn.Module:
    """LoRA: a frozen weight and two thin factors beside it."""

    def forward(net: Net, x: Tensor) -> Tensor:
        x = net.first(x).relu()
        return net.last((net.middle(x) + net.up(net.down(x)) * 0.5).relu())

    net = Net(
        forward, first=nn.Linear(6, 20), middle=nn.Linear(20, 14), down=nn.Linear(20, 4, bias=False),
        up=nn.Linear(4, 14, bias=False), last=nn.Linear(14, 3),
    )  # fmt: skip
    net.middle.requires_grad_(False)
    return net


@network(ROWS, must=("first", "middle", "up"))
def merged_factors() -> nn.Module:
    """LoRA merged on the fly: the weight is a sum of a parameter and a product of two."""
    return Net(
        lambda net, x: net.last(F.linear(net.first(x).relu(), net.middle.weight + net.up @ net.down).relu()),
        first=nn.Linear(6, 20), middle=nn.Linear(20, 14), up=nn.Parameter(torch.randn(14, 4)),
        down=nn.Parameter(torch.randn(4, 20)), last=nn.Linear(14, 3),
    )  # fmt: skip


def sandwich(middle: nn.Module) -> nn.Module:
    """A layer with a parametrised weight between plain ones with groups of their own."""
    return nn.Sequential(nn.Linear(6, 12), nn.ReLU(), nn.Linear(12, 10), nn.ReLU(), middle, nn.ReLU(), nn.Linear(14, 3))


@network(ROWS, must=("0", "2", "4"))
def weight_norm() -> nn.Module:
    return sandwich(parametrizations.weight_norm(nn.Linear(10, 14)))


@network(ROWS, must=("0", "2", "4"))
def weight_norm_old() -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        return sandwich(nn.utils.weight_norm(nn.Linear(10, 14)))


@network(ROWS, must=("0",))
def spectral_norm() -> nn.Module:
    return sandwich(parametrizations.spectral_norm(nn.Linear(10, 14)))


@network(ROWS, must=("0",))
def spectral_norm_old() -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        return sandwich(nn.utils.spectral_norm(nn.Linear(10, 14)))


@network(ROWS, must=("0",))
def orthogonal() -> nn.Module:
    return sandwich(parametrizations.orthogonal(nn.Linear(10, 14)))


@network(ROWS, must=("0",))
def pruning_mask() -> nn.Module:
    from torch.nn.utils import prune

    return sandwich(prune.random_unstructured(nn.Linear(10, 14), "weight", 0.3))
