"""Graph networks: messages along edges are gathered, weighted and added up at nodes, as graph libraries write it."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from .entry import network

NODES, EDGES, FEATURES = 14, 50, 6


def graph(generator: Generator) -> tuple[Tensor, Tensor]:
    """Features of nodes, and the edges: sources and targets."""
    edges = torch.randint(0, NODES, (2, EDGES), generator=generator)
    return torch.randn(NODES, FEATURES, generator=generator), edges


def gathered(messages: Tensor, to: Tensor, nodes: int, how: str = "sum") -> Tensor:
    """The messages of all edges, reduced at their targets."""
    index = to.view(-1, *[1] * (messages.dim() - 1)).expand_as(messages)
    out = messages.new_zeros(nodes, *messages.shape[1:])
    if how == "sum":
        return out.scatter_add_(0, index, messages)
    if how == "mean":
        count = messages.new_zeros(nodes).scatter_add_(0, to, messages.new_ones(len(to))).clamp(min=1)
        total = out.scatter_add_(0, index, messages)
        return total / count.view(-1, *[1] * (messages.dim() - 1))
    return out.scatter_reduce_(0, index, messages, "amax", include_self=False)


def softmax_at_nodes(scores: Tensor, to: Tensor, nodes: int) -> Tensor:
    """A softmax over the edges that end at the same node."""
    largest = gathered(scores.detach(), to, nodes, "amax")
    weights = (scores - largest.index_select(0, to)).exp()
    return weights / (gathered(weights, to, nodes).index_select(0, to) + 1e-16)


class GraphConvolution(nn.Module):
    """GCN: the mean of the neighbours and the node itself, normalised by both degrees."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.lin, self.bias = nn.Linear(inputs, outputs, bias=False), nn.Parameter(torch.zeros(outputs))

    def forward(self, x: Tensor, edges: Tensor) -> Tensor:
        loops = torch.arange(len(x)).expand(2, -1)
        source, to = torch.cat([edges, loops], 1)
        degree = gathered(x.new_ones(len(to)), to, len(x)).pow(-0.5)
        weight = degree[source] * degree[to]
        return gathered(weight.view(-1, 1) * self.lin(x)[source], to, len(x)) + self.bias


class Sage(nn.Module):
    """GraphSAGE: a node and what its neighbours say, each through a layer of its own."""

    def __init__(self, inputs: int, outputs: int, how: str = "mean") -> None:
        super().__init__()
        self.near, self.own, self.how = nn.Linear(inputs, outputs), nn.Linear(inputs, outputs, bias=False), how

    def forward(self, x: Tensor, edges: Tensor) -> Tensor:
        return self.near(gathered(x[edges[0]], edges[1], len(x), self.how)) + self.own(x)


class Attention(nn.Module):
    """GAT: heads weigh the edges by a vector of parameters times both nodes' features."""

    def __init__(self, inputs: int, heads: int, channels: int) -> None:
        super().__init__()
        self.heads = heads
        self.lin = nn.Linear(inputs, heads * channels, bias=False)
        self.att_src = nn.Parameter(torch.randn(1, heads, channels))
        self.att_dst = nn.Parameter(torch.randn(1, heads, channels))
        self.bias = nn.Parameter(torch.zeros(heads * channels))

    def forward(self, x: Tensor, edges: Tensor) -> Tensor:
        nodes, (source, to) = len(x), edges
        x = self.lin(x).view(nodes, self.heads, -1)
        scores = (x * self.att_src).sum(-1)[source] + (x * self.att_dst).sum(-1)[to]
        weights = softmax_at_nodes(F.leaky_relu(scores, 0.2), to, nodes)
        return gathered(weights.unsqueeze(-1) * x[source], to, nodes).flatten(1) + self.bias


class AttentionOfBoth(nn.Module):
    """GATv2: the vector of parameters meets both nodes' features behind the activation."""

    def __init__(self, inputs: int, heads: int, channels: int) -> None:
        super().__init__()
        self.heads = heads
        self.lin_l, self.lin_r = nn.Linear(inputs, heads * channels), nn.Linear(inputs, heads * channels)
        self.att = nn.Parameter(torch.randn(1, heads, channels))

    def forward(self, x: Tensor, edges: Tensor) -> Tensor:
        nodes, (source, to) = len(x), edges
        left, right = (lin(x).view(nodes, self.heads, -1) for lin in (self.lin_l, self.lin_r))
        scores = (F.leaky_relu(left[source] + right[to], 0.2) * self.att).sum(-1)
        weights = softmax_at_nodes(scores, to, nodes)
        return gathered(weights.unsqueeze(-1) * left[source], to, nodes).flatten(1)


class Isomorphism(nn.Module):
    """GIN: an MLP of the sum of the neighbours and (1 + eps) times the node."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.eps = nn.Parameter(torch.tensor(0.1))
        self.nn = nn.Sequential(
            nn.Linear(inputs, outputs), nn.BatchNorm1d(outputs), nn.ReLU(), nn.Linear(outputs, outputs)
        )

    def forward(self, x: Tensor, edges: Tensor) -> Tensor:
        return self.nn(torch.zeros_like(x).index_add(0, edges[1], x[edges[0]]) + (1 + self.eps) * x)


class SparseConvolution(nn.Module):
    """A product with a sparse adjacency matrix."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.lin = nn.Linear(inputs, outputs)

    def forward(self, x: Tensor, edges: Tensor) -> Tensor:
        ones = torch.ones(edges.shape[1], dtype=x.dtype)
        return torch.sparse.mm(
            torch.sparse_coo_tensor(edges, ones, (len(x), len(x)), check_invariants=True), self.lin(x)
        )


class Graph(nn.Module):
    """Convolutions with activations between them; of each node a class, or of all the mean."""

    def __init__(self, *convolutions: nn.Module, last: nn.Module, activation: Callable[[Tensor], Tensor] = F.relu):
        super().__init__()
        self.convolutions, self.last, self.activation = nn.ModuleList(convolutions), last, activation

    def forward(self, x: Tensor, edges: Tensor) -> Tensor:
        for convolution in self.convolutions:
            x = self.activation(convolution(x, edges))
        return self.last(x, edges) if not isinstance(self.last, nn.Linear) else self.last(x)


@network(graph, must=("convolutions.0.lin", "convolutions.1.lin"))
def gcn() -> nn.Module:
    return Graph(GraphConvolution(FEATURES, 20), GraphConvolution(20, 24), last=GraphConvolution(24, 3))


@network(graph, must=("convolutions.0.near", "convolutions.1.near"))
def graph_sage_mean() -> nn.Module:
    return Graph(Sage(FEATURES, 20), Sage(20, 24), last=Sage(24, 3))


@network(graph, must=("convolutions.0.near", "convolutions.1.near"))
def graph_sage_max() -> nn.Module:
    return Graph(Sage(FEATURES, 20, "max"), Sage(20, 24, "max"), last=Sage(24, 3, "max"))


@network(graph, must=("convolutions.0.lin", "convolutions.1.lin"))
def gat() -> nn.Module:
    return Graph(Attention(FEATURES, 4, 6), Attention(24, 4, 6), last=nn.Linear(24, 3), activation=F.elu)


@network(graph, must=("convolutions.0.lin_l", "convolutions.1.lin_l"))
def gatv2() -> nn.Module:
    return Graph(AttentionOfBoth(FEATURES, 4, 6), AttentionOfBoth(24, 4, 6), last=nn.Linear(24, 3), activation=F.elu)


@network(graph, must=("convolutions.0.nn.0", "convolutions.0.nn.3", "convolutions.1.nn.0", "convolutions.1.nn.3"))
def gin() -> nn.Module:
    return Graph(Isomorphism(FEATURES, 20), Isomorphism(20, 24), last=nn.Linear(24, 3))


@network(graph, must=("convolutions.0.lin", "convolutions.1.lin"))
def sparse_adjacency() -> nn.Module:
    return Graph(SparseConvolution(FEATURES, 20), SparseConvolution(20, 24), last=SparseConvolution(24, 3))
