"""Heads that make the parameters of distributions: of gluonts, pytorch-forecasting, darts, scvi-tools, and of flows.

What is made for a distribution is an output, and keeps its sizes; what lies in front of it can go.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, distributions, nn

from .entry import Net, floats, mlp, network

SERIES = floats((3, 9))
ROWS_AND_TARGETS = floats((4, 6), (4, 2))


class Projection(nn.Module):
    """gluonts: one Linear for each parameter of a distribution, and a map of each into its domain."""

    def __init__(self, width: int, *domains: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.proj = nn.ModuleList(nn.Linear(width, 1) for _ in domains)
        self.domains = domains

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        return tuple(to_domain(layer(x).squeeze(-1)) for layer, to_domain in zip(self.proj, self.domains, strict=True))


def positive(x: Tensor) -> Tensor:
    return F.softplus(x).clamp_min(torch.finfo(x.dtype).eps)


@network(ROWS_AND_TARGETS, must=("trunk.0", "trunk.2"), never=("weights", "means", "scales"))
def mixture_density() -> nn.Module:
    """Bishop's: five components in two dimensions, three layers of their own; the output is the loss."""

    def forward(net: Net, x: Tensor, target: Tensor) -> Tensor:
        hidden = net.trunk(x).tanh()
        means, scales = (layer(hidden).view(-1, 5, 2) for layer in (net.means, net.scales))
        parts = distributions.Independent(distributions.Normal(means, scales.exp(), validate_args=False), 1)
        mixture = distributions.Categorical(logits=net.weights(hidden), validate_args=False)
        whole = distributions.MixtureSameFamily(mixture, parts, validate_args=False)
        return torch.cat([whole.log_prob(target)[:, None], whole.mean], 1)

    heads = {name: nn.Linear(14, size) for name, size in (("weights", 5), ("means", 10), ("scales", 10))}
    return Net(forward, trunk=mlp(6, 20, 14), **heads)


@network(floats((4, 6)), must=("trunk.0", "trunk.2"), never=("head",))
def mixture_density_of_one_layer() -> nn.Module:
    """All parameters in one Linear, split by sizes that differ."""

    def forward(net: Net, x: Tensor) -> tuple[Tensor, ...]:
        weights, means, scales = net.head(net.trunk(x).relu()).split([3, 6, 6], dim=-1)
        return weights.log_softmax(-1), means.view(-1, 3, 2), F.elu(scales).view(-1, 3, 2) + 1

    return Net(forward, trunk=mlp(6, 20, 14), head=nn.Linear(14, 15))


@network(
    SERIES,
    must=("trunk.0",),
    never=("head.proj.0", "head.proj.1", "head.proj.2"),
    hard=("trunk.2",),
    why="the width of a step is a 7",
)
def student_t_head() -> nn.Module:
    """SimpleFeedForward of gluonts: scaled by the mean, one trunk for four steps, Student's t for each of them."""

    def forward(net: Net, x: Tensor) -> tuple[Tensor, ...]:
        scale = x.abs().mean(1, keepdim=True).clamp_min(1e-3)
        hidden = net.trunk(x / scale).relu().reshape(-1, 4, 7)
        return *net.head(hidden), scale

    def freedom(x: Tensor) -> Tensor:
        return 2 + F.softplus(x)

    return Net(forward, trunk=mlp(9, 20, 28), head=Projection(7, freedom, nn.Identity(), positive))


@network(SERIES, must=("first",), never=("last",))
def student_t_of_one_layer() -> nn.Module:
    """neuralforecast: one Linear of horizon times parameters, split by their number, scale and mean put back."""

    def forward(net: Net, x: Tensor) -> tuple[Tensor, ...]:
        mean, scale = x.mean(1, keepdim=True), x.std(1, keepdim=True)
        made = net.last(net.first((x - mean) / scale).relu()).reshape(-1, 4, 3)
        freedom, place, width = (part.squeeze(-1) for part in torch.tensor_split(made, 3, dim=-1))
        return 3 + F.softplus(freedom), place * scale + mean, (F.softplus(width) + 1e-3) * scale

    return Net(forward, first=nn.Linear(9, 20), last=nn.Linear(20, 12))


@network(SERIES, must=("trunk.0", "trunk.2"), never=("head",))
def quantile_head() -> nn.Module:
    """Five quantiles of four steps that never cross: the lowest one, and what is added to it."""

    def forward(net: Net, x: Tensor) -> Tensor:
        made = net.head(net.trunk(x).relu()).unflatten(-1, (4, 5))
        return torch.cat([made[..., :1], F.softplus(made[..., 1:])], -1).cumsum(-1)

    return Net(forward, trunk=mlp(9, 20, 14), head=nn.Linear(14, 20))


@network(floats((3, 9), (3, 4)), must=("trunk",), never=("head",))
def implicit_quantiles() -> nn.Module:
    """Implicit quantile networks: an embedding of the level in cosines scales what the trunk makes."""

    def forward(net: Net, x: Tensor, levels: Tensor) -> Tensor:
        waves = (levels.sigmoid()[..., None] * net.numbers * math.pi).cos()
        return net.head(net.trunk(x).relu()[:, None] * (1 + net.cosines(waves).relu())).squeeze(-1)

    parts = {"trunk": nn.Linear(9, 14), "cosines": nn.Linear(8, 14), "head": nn.Linear(14, 1)}
    return Net(forward, **parts, numbers=torch.arange(1.0, 9.0))


@network(floats((3, 12)), must=("lstm",), never=("head.proj.0", "head.proj.1"))
def negative_binomial_with_lags() -> nn.Module:
    """DeepAR of counts: lags beside features for each step, the scale as a feature, and in the logits."""

    def forward(net: Net, x: Tensor) -> tuple[Tensor, Tensor]:
        counts = x.abs()
        scale = counts.mean(1, keepdim=True) + 1
        lags = torch.stack([(counts / scale)[:, 7 - lag : 12 - lag] for lag in (1, 2, 7)], -1)
        features = scale.log()[:, None].expand(-1, lags.shape[1], -1)
        hidden, _ = net.lstm(torch.cat([lags, features], -1))
        total, logits = net.head(hidden)
        return total, logits + scale.log()

    lstm = nn.LSTM(4, 14, num_layers=2, batch_first=True)
    return Net(forward, lstm=lstm, head=Projection(14, positive, nn.Identity()))


@network(floats((4, 11)), must=("encoder.0", "decoder.0"), never=("scale", "rate", "zero", "dispersion"))
def zero_inflated_counts() -> nn.Module:
    """scvi-tools: shares of each gene by softmax, times the size of the cell; the output is the loss."""

    def forward(net: Net, x: Tensor) -> Tensor:
        counts = (x.abs() * 3).round()
        size = counts.sum(1, keepdim=True) + 1
        hidden = net.decoder(net.encoder((counts + 1).log()))
        mean, dispersion = net.scale(hidden).softmax(-1) * size, net.rate(hidden).exp()
        zero, eps = net.zero(hidden), 1e-8
        log = (dispersion + mean + eps).log()
        whole = dispersion * ((dispersion + eps).log() - log)
        no_counts = F.softplus(whole - zero) - F.softplus(-zero)
        some = whole - zero - F.softplus(-zero) + counts * ((mean + eps).log() - log)
        some = some + (counts + dispersion).lgamma() - dispersion.lgamma() - (counts + 1).lgamma()
        return torch.where(counts < eps, no_counts, some).sum(-1)

    def layer(inputs: int, outputs: int) -> nn.Module:
        return nn.Sequential(nn.Linear(inputs, outputs), nn.BatchNorm1d(outputs), nn.ReLU())

    heads = {name: nn.Linear(18, 11) for name in ("scale", "rate", "zero")}
    return Net(forward, encoder=layer(11, 20), decoder=layer(20, 18), **heads)


@network(floats((4, 6), (4, 3)), must=("trunk.0", "trunk.2"), never=("place", "factors", "diagonal"))
def low_rank_normal() -> nn.Module:
    """DeepVAR: a normal distribution of three series whose covariance has rank two beside its diagonal."""

    def forward(net: Net, x: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        hidden = net.trunk(x).tanh()
        factors, diagonal = net.factors(hidden).view(-1, 3, 2), F.softplus(net.diagonal(hidden)) + 0.1
        normal = distributions.LowRankMultivariateNormal(net.place(hidden), factors, diagonal, validate_args=False)
        return normal.log_prob(target), normal.covariance_matrix

    heads = {name: nn.Linear(14, size) for name, size in (("place", 3), ("factors", 6), ("diagonal", 3))}
    return Net(forward, trunk=mlp(6, 20, 14), **heads)


@network(floats((4, 6), (4, 3)), must=("trunk.0", "trunk.2"), never=("place", "lower"))
def normal_by_its_cholesky_factor() -> nn.Module:
    def forward(net: Net, x: Tensor, target: Tensor) -> Tensor:
        hidden = net.trunk(x).tanh()
        lower = x.new_zeros(len(x), 3, 3)
        rows, columns = torch.tril_indices(3, 3)
        lower[:, rows, columns] = net.lower(hidden)
        lower = lower.tril(-1) + torch.diag_embed(F.softplus(lower.diagonal(dim1=-2, dim2=-1)) + 0.1)
        normal = distributions.MultivariateNormal(net.place(hidden), scale_tril=lower, validate_args=False)
        return normal.log_prob(target)

    return Net(forward, trunk=mlp(6, 20, 14), place=nn.Linear(14, 3), lower=nn.Linear(14, 6))


@network(floats((4, 6)), must=("actor.0", "actor.2"), never=("head",))
def squashed_policy() -> nn.Module:
    """Soft actor-critic: means and scales in halves, the action squashed, and its log-density."""

    def forward(net: Net, x: Tensor) -> tuple[Tensor, Tensor]:
        mean, log_scale = net.head(net.actor(x).relu()).chunk(2, dim=-1)
        normal = distributions.Normal(mean, log_scale.clamp(-5, 2).exp(), validate_args=False)
        squashed = distributions.TransformedDistribution(normal, [distributions.TanhTransform(cache_size=1)])
        action = squashed.rsample()
        return action, squashed.log_prob(action).sum(-1)

    return Net(forward, actor=mlp(6, 20, 14), head=nn.Linear(14, 4))


@network(
    floats((4, 6), (4, 5)),
    must=("context.0", "context.2", "layers.0.0", "layers.1.0"),
    never=("layers.0.2", "layers.1.2"),
)
def coupling_flow() -> nn.Module:
    """Real NVP given a context: one part of the target scales and shifts the other, in turns."""

    def forward(net: Net, x: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        context, log_det = net.context(x).tanh(), 0.0
        for number, layer in enumerate(net.layers):
            kept, moved = target.split([2, 3] if number % 2 == 0 else [3, 2], dim=-1)
            log_scale, shift = layer(torch.cat([kept, context], -1)).chunk(2, dim=-1)
            log_scale = 2 * (log_scale / 2).tanh()
            target = torch.cat([moved * log_scale.exp() + shift, kept], -1)
            log_det = log_det + log_scale.sum(-1)
        return target, log_det - 0.5 * (target**2).sum(-1)

    layers = [mlp(2 + 14, 20, 6), mlp(3 + 14, 18, 4)]
    return Net(forward, context=mlp(6, 16, 14), layers=nn.ModuleList(layers))


class MaskedLinear(nn.Linear):
    """MADE: a weight of which a mask leaves what may be read."""

    mask: Tensor

    def __init__(self, read: Tensor, made: Tensor, *, strict: bool = False) -> None:
        super().__init__(len(read), len(made))
        allowed = made[:, None] > read if strict else made[:, None] >= read
        self.register_buffer("mask", allowed.to(self.weight.dtype))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight * self.mask, self.bias)


@network(floats((4, 5), (4, 6)), must=("first.mask", "second.mask"), never=("last",))
def masked_autoregressive_flow() -> nn.Module:
    """The flow of TempFlow: a MADE given a context makes a shift and a scale for each of five values."""

    def forward(net: Net, target: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        hidden = (net.first(target) + net.context(x)).relu()
        shift, log_scale = net.last(net.second(hidden).relu()).chunk(2, dim=-1)
        return (target - shift) * (-log_scale.tanh()).exp(), -log_scale.tanh().sum(-1)

    values, hidden, more = torch.arange(1, 6), torch.arange(20) % 4 + 1, torch.arange(16) % 4 + 1
    layers = {"first": MaskedLinear(values, hidden), "second": MaskedLinear(hidden, more)}
    return Net(forward, **layers, context=nn.Linear(6, 20), last=MaskedLinear(more, values.repeat(2), strict=True))
