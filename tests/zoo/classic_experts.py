"""Mixtures of experts as people write them: in one tensor or in a list of networks, hard and soft."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .entry import floats, network

ROWS = floats((24, 6))
E, D, H = 3, 12, 20


class Router(nn.Module):
    """Scores of the experts, and the best ones of each row with their shares."""

    def __init__(self, best: int) -> None:
        super().__init__()
        self.gate, self.best = nn.Linear(D, E), best

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        shares, chosen = self.gate(x).softmax(-1).topk(self.best, -1)
        return shares / shares.sum(-1, keepdim=True), chosen


class Mixture(nn.Module):
    """A layer of experts between two layers, with a residual connection around it."""

    def __init__(self, experts: nn.Module) -> None:
        super().__init__()
        self.first, self.experts, self.last = nn.Linear(6, D), experts, nn.Linear(D, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x).tanh()  # of both signs, so that all experts get rows
        return self.last(x + self.experts(x))


class Stack(nn.Module):
    """Weights of all experts in one tensor for each layer."""

    def __init__(self, best: int = 2, *, last_first: bool = False, gated: bool = False) -> None:
        super().__init__()
        wide = 2 * H if gated else H
        self.router = Router(best)
        first, second = ((E, wide, D), (E, D, H)) if last_first else ((E, D, wide), (E, H, D))
        self.w1, self.w2 = nn.Parameter(torch.randn(first) * 0.3), nn.Parameter(torch.randn(second) * 0.3)
        self.b1, self.b2 = nn.Parameter(torch.randn(E, wide)), nn.Parameter(torch.randn(E, D))


@network(ROWS)
def mixture_of_networks() -> nn.Module:
    """A list of networks; each gets its rows, and adds what it makes of them."""

    class Experts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.router = Router(2)
            self.each = nn.ModuleList(
                nn.Sequential(nn.Linear(D, H + i), nn.GELU(), nn.Linear(H + i, D)) for i in range(E)
            )

        def forward(self, x: Tensor) -> Tensor:
            shares, chosen = self.router(x)
            result = torch.zeros_like(x)
            for number, expert in enumerate(self.each):
                row, place = torch.where(chosen == number)
                result.index_add_(0, row, expert(x[row]) * shares[row, place, None])
            return result

    return Mixture(Experts())


@network(ROWS)
def switch() -> nn.Module:
    """One expert for each row, by a mask, as in the Switch Transformer (arXiv 2101.03961)."""

    class Experts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.router = nn.Linear(D, E)
            self.each = nn.ModuleDict(
                {f"expert_{i}": nn.Sequential(nn.Linear(D, H), nn.ReLU(), nn.Linear(H, D)) for i in range(E)}
            )

        def forward(self, x: Tensor) -> Tensor:
            share, chosen = self.router(x).softmax(-1).max(-1)
            result = x.clone()
            for number, expert in enumerate(self.each.values()):
                mask = chosen == number
                result[mask] = expert(x[mask]).to(x.dtype)
            return share[:, None] * result

    return Mixture(Experts())


@network(ROWS)
def stack_by_loop() -> nn.Module:
    class Experts(Stack):
        def forward(self, x: Tensor) -> Tensor:
            shares, chosen = self.router(x)
            result = torch.zeros_like(x)
            for number in range(E):
                row, place = torch.where(chosen == number)
                hidden = F.gelu(x[row] @ self.w1[number] + self.b1[number])
                made = hidden @ self.w2[number] + self.b2[number]
                result = result.index_add(0, row, made * shares[row, place].unsqueeze(-1))
            return result

    return Mixture(Experts())


@network(ROWS)
def expert_without_rows() -> nn.Module:
    """An expert that runs on no row, for the router sends it none."""

    class Experts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.each = nn.ModuleList(nn.Linear(D, D) for _ in range(E))

        def forward(self, x: Tensor) -> Tensor:
            chosen = torch.arange(len(x)) % 2 * 2
            result = torch.zeros_like(x)
            for number, expert in enumerate(self.each):
                result[chosen == number] = expert(x[chosen == number])
                result.index_add_(0, (chosen == number).nonzero().squeeze(1), expert(x[torch.where(chosen == number)]))
            return result

    return nn.Sequential(nn.Linear(6, D), nn.Linear(D, D), nn.Tanh(), Experts(), nn.Linear(D, 3))


@network(ROWS)
def stack_by_linear() -> nn.Module:
    """By ``F.linear``, with gate and values in one weight, as halves."""

    class Experts(Stack):
        def forward(self, x: Tensor) -> Tensor:
            shares, chosen = self.router(x)
            result = torch.zeros_like(x)
            for number in chosen.unique().tolist():
                row, place = torch.where(chosen == number)
                gate, value = F.linear(x[row], self.w1[number], self.b1[number]).chunk(2, -1)
                made = F.linear(F.silu(gate) * value, self.w2[number], self.b2[number])
                result.index_add_(0, row, made * shares[row, place].unsqueeze(-1))
            return result

    return Mixture(Experts(last_first=True, gated=True))


@network(ROWS)
def stack_interleaved() -> nn.Module:
    """Gate and values side by side, channel by channel."""

    class Experts(Stack):
        def forward(self, x: Tensor) -> Tensor:
            shares, chosen = self.router(x)
            hidden = torch.einsum("nd,nkdh->nkh", x, self.w1[chosen]) + self.b1[chosen]
            hidden = F.silu(hidden[..., ::2]) * (hidden[..., 1::2] + 1)
            made = torch.einsum("nkh,nkhd->nkd", hidden, self.w2[chosen]) + self.b2[chosen]
            return (made * shares[..., None]).sum(1)

    return Mixture(Experts(gated=True))


@network(ROWS)
def stack_of_all() -> nn.Module:
    """All experts on all rows, in a product of batches; the shares leave most of it out."""

    class Experts(Stack):
        def forward(self, x: Tensor) -> Tensor:
            shares, chosen = self.router(x)
            weights = torch.zeros(len(x), E, dtype=x.dtype).scatter(1, chosen, shares)
            hidden = (torch.bmm(x.expand(E, -1, -1), self.w1) + self.b1[:, None]).relu()
            made = torch.baddbmm(self.b2[:, None], hidden, self.w2)
            return torch.einsum("ne,end->nd", weights, made)

    return Mixture(Experts())


@network(ROWS)
def stack_by_einsum() -> nn.Module:
    """The same by einsum, with rows in front of experts."""

    class Experts(Stack):
        def forward(self, x: Tensor) -> Tensor:
            shares = self.router.gate(x).softmax(-1)
            hidden = F.gelu(torch.einsum("nd,ehd->neh", x, self.w1) + self.b1)
            made = torch.einsum("neh,edh->ned", hidden, self.w2) + self.b2
            return (made * shares[..., None]).sum(1)

    return Mixture(Experts(last_first=True))


def stack_grouped() -> nn.Module:
    """Rows sorted by expert, and torch's grouped product."""

    class Experts(Stack):
        def forward(self, x: Tensor) -> Tensor:
            shares, chosen = self.router(x)
            order = chosen.reshape(-1).argsort()
            numbers = chosen.reshape(-1)[order]
            ends = torch.bincount(numbers, minlength=E).cumsum(0).int()
            rows = order // self.router.best
            hidden = F.silu(torch._grouped_mm(x[rows], self.w1, offs=ends) + self.b1[numbers])
            made = torch._grouped_mm(hidden, self.w2.transpose(1, 2).contiguous().mT, offs=ends) + self.b2[numbers]
            return torch.zeros_like(x).index_add(0, rows, made * shares.reshape(-1)[order, None])

    return Mixture(Experts())


if hasattr(torch, "_grouped_mm"):  # since torch 2.8
    network(ROWS)(stack_grouped)


@network(floats((2, 9, D)))
def soft_mixture() -> nn.Module:
    """Slots of experts that are weighted means of all rows, as in Soft MoE (arXiv 2308.00951)."""

    class Soft(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.phi = nn.Parameter(torch.randn(D, E, 2))
            self.w1, self.w2 = nn.Parameter(torch.randn(E, D, H) * 0.3), nn.Parameter(torch.randn(E, H, D) * 0.3)

        def forward(self, x: Tensor) -> Tensor:
            logits = torch.einsum("bnd,des->bnes", x, self.phi)
            slots = torch.einsum("bnd,bnes->besd", x, logits.softmax(1))
            hidden = F.gelu(torch.einsum("besd,edh->besh", slots, self.w1))
            made = torch.einsum("besh,ehd->besd", hidden, self.w2)
            combine = logits.flatten(2).softmax(-1)
            return torch.einsum("bnm,bmd->bnd", combine, made.flatten(1, 2))

    return nn.Sequential(nn.Linear(D, D), Soft(), nn.Linear(D, 3))
