"""``heads="within"``: attention loses dimensions of its heads, and computes what it did without them."""

from __future__ import annotations

import copy
import math
from pathlib import Path

import lightning.pytorch as pl
import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor, nn
from torch.utils.data import DataLoader

from lightning_coreset import CoresetPruningCallback, count_macs, plan_pruning, prune, sensitivity_scan
from lightning_coreset.structure import ChannelGroup, Example, Structure, analyse, paired
from lightning_coreset.verification import tried_groups

HEADS, WIDTH = 3, 6


class Attention(nn.Module):
    """Attention in some way; a residual addition and a norm around it."""

    def __init__(self, attend, width: int = WIDTH, heads: int = HEADS, key_heads: int = HEADS, bias: bool = True):
        super().__init__()
        self.attend, self.heads, self.key_heads, self.dim_head = attend, heads, key_heads, width
        self.q = nn.Linear(8, heads * width, bias=bias)
        self.k = nn.Linear(8, key_heads * width, bias=bias)
        self.v = nn.Linear(8, key_heads * width, bias=bias)
        self.o = nn.Linear(heads * width, 8)
        self.head = nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(x + self.o(self.attend(self, x).transpose(1, 2).flatten(2)))

    def split(self, x: Tensor, heads: int) -> Tensor:
        return x.unflatten(-1, (heads, -1)).transpose(1, 2)

    def parts(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        several = self.heads // self.key_heads
        q, k, v = self.q(x), self.k(x), self.v(x)
        k, v = (self.split(one, self.key_heads).repeat_interleave(several, 1) for one in (k, v))
        return self.split(q, self.heads), k, v


def fixed_scale(net: Attention, x: Tensor) -> Tensor:
    q, k, v = net.parts(x)
    return (q @ k.transpose(-1, -2) / math.sqrt(net.dim_head)).softmax(-1) @ v


def scale_by_size(net: Attention, x: Tensor) -> Tensor:
    q, k, v = net.parts(x)
    return (q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])).softmax(-1) @ v


def fused(net: Attention, x: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(*net.parts(x))


def causal(net: Attention, x: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(*net.parts(x), is_causal=True, scale=0.3)


def linear(net: Attention, x: Tensor) -> Tensor:
    q, k, v = net.parts(x)
    return q.relu() @ (k.relu().transpose(-1, -2) @ v)


def one_width(net: Attention, x: Tensor) -> Tensor:
    q, k, v = (part(x).view(*x.shape[:2], net.heads, net.dim_head).transpose(1, 2) for part in (net.q, net.k, net.v))
    return F.scaled_dot_product_attention(q, k, v)


FORMS = {
    "fixed scale": (lambda: Attention(fixed_scale), 2),
    "scale by size": (lambda: Attention(scale_by_size), 2),
    "fused": (lambda: Attention(fused), 2),
    "no bias": (lambda: Attention(fused, bias=False), 2),
    "causal": (lambda: Attention(causal), 2),
    "linear": (lambda: Attention(linear), 2),
    "grouped queries": (lambda: Attention(fused, heads=4, key_heads=2), 2),
    "one key": (lambda: Attention(causal, heads=4, key_heads=1), 2),
    "one width": (lambda: Attention(one_width), 1),
}


def zeroed(model: nn.Module, groups_of: dict[str, tuple[int, ...]]) -> nn.Module:
    """A copy in which what makes removed queries, and what reads removed values, is zero."""
    reference = copy.deepcopy(model)
    with torch.no_grad():
        for name, kept in groups_of.items():
            tensor, dim = reference.get_parameter(name), 1 if name == "o.weight" else 0
            gone = [place for place in range(tensor.shape[dim]) if place not in kept]
            tensor.index_fill_(dim, torch.tensor(gone), 0.0)
    return reference


@pytest.mark.parametrize("name", FORMS)
def test_what_is_left_computes_what_it_did(name):
    torch.manual_seed(0)
    build, groups = FORMS[name]
    model, x = build().double(), torch.randn(2, 5, 8, dtype=torch.float64)
    before = copy.deepcopy(model)
    plan = prune(model, x, {"q": 0.5, "v": 0.5} if groups == 2 else {"q": 0.5}, heads="within", method="magnitude")

    assert len(plan.groups) == groups
    assert all(group.method == "magnitude (L2), within heads" for group in plan.groups)
    assert (model.q.out_features, model.v.out_features) == (model.heads * WIDTH // 2, model.key_heads * WIDTH // 2)
    kept = {change.name: tuple(change.kept[dim].tolist()) for change in plan.changes for dim in change.kept}
    reference = zeroed(before, {one: kept[one] for one in kept if one in ("q.weight", "q.bias", "o.weight")})
    for inputs in (x, torch.randn(3, 4, 8, dtype=torch.float64)):
        torch.testing.assert_close(model(inputs), reference(inputs), rtol=0, atol=1e-10)
        assert not torch.allclose(before(inputs), reference(inputs))
    assert plan.macs_after == count_macs(model, x)
    assert plan.params_after == sum(parameter.numel() for parameter in model.parameters())


def test_every_head_loses_its_own_dimensions():
    torch.manual_seed(0)
    model, x = Attention(fused), torch.randn(2, 5, 8)
    with torch.no_grad():
        # In every head, other dimensions are large.
        large = torch.zeros(HEADS, WIDTH)
        for head in range(HEADS):
            large[head, [head, head + 2, head + 3]] = 1
        for layer in (model.q, model.k, model.v):
            layer.weight.copy_(torch.randn(HEADS * WIDTH, 8) * (0.01 + large.flatten())[:, None])
    plan = plan_pruning(model, x, {"q": 0.5, "v": 0.5}, heads="within", method="magnitude")
    wanted = large.flatten().nonzero().squeeze(1).tolist()
    kept = {change.name: change.kept for change in plan.changes}
    assert kept["q.weight"][0].tolist() == kept["k.weight"][0].tolist() == wanted
    assert kept["v.weight"][0].tolist() == kept["o.weight"][1].tolist() == wanted


def rotary(net: nn.Module, x: Tensor) -> Tensor:
    q, k, v = net.parts(x)
    angles = torch.outer(torch.arange(x.shape[1]).to(x), net.frequencies)
    angles = torch.cat([angles, angles], -1)

    def turned(one: Tensor) -> Tensor:
        first, second = one.chunk(2, -1)
        return one * angles.cos() + torch.cat([-second, first], -1) * angles.sin()

    return F.scaled_dot_product_attention(turned(q), turned(k), v)


def test_rotary_pairs_stay_together_and_are_the_same_in_all_heads():
    torch.manual_seed(0)
    model, x = Attention(rotary).double(), torch.randn(2, 5, 8, dtype=torch.float64)
    model.register_buffer("frequencies", 10.0 ** -torch.arange(WIDTH // 2, dtype=torch.float64))
    before = copy.deepcopy(model)
    prune(model, x, {"q": 1 / 3}, heads="within", method="magnitude")
    (gone,) = {float(one) for one in before.frequencies} - {float(one) for one in model.frequencies}
    first = before.frequencies.tolist().index(gone)
    kept = tuple(place for place in range(HEADS * WIDTH) if place % (WIDTH // 2) != first)
    reference = zeroed(before, {"q.weight": kept, "q.bias": kept})
    torch.testing.assert_close(model(x), reference(x), rtol=0, atol=1e-10)


class Normed(Attention):
    def __init__(self) -> None:
        super().__init__(lambda net, x: net.attended(x))
        self.q_norm, self.k_norm = nn.RMSNorm(WIDTH), nn.RMSNorm(WIDTH)

    def attended(self, x: Tensor) -> Tensor:
        q, k, v = self.parts(x)
        return F.scaled_dot_product_attention(self.q_norm(q), self.k_norm(k), v, scale=0.4)


def test_normalised_queries_go_with_the_norm_and_only_if_asked_for():
    torch.manual_seed(0)
    model, x = Normed().double(), torch.randn(2, 5, 8, dtype=torch.float64)
    assert plan_pruning(model, x, 0.1, heads="within").skipped["q"].startswith("is normalised over all its channels")
    before = copy.deepcopy(model)
    plan = prune(model, x, {"q": 0.5}, heads="within", include_residual=True, method="magnitude")
    assert model.q_norm.normalized_shape == (3,)
    (kept,) = {tuple(change.kept[0].tolist()) for change in plan.changes if change.name.endswith("norm.weight")}
    # By hand: norms and products over the dimensions that stay.
    parts = [part[..., list(kept)] for part in before.parts(x)[:2]]
    q, k = (
        part / (part.pow(2).mean(-1, keepdim=True) + torch.finfo(x.dtype).eps).sqrt() * norm.weight[list(kept)]
        for part, norm in zip(parts, (before.q_norm, before.k_norm), strict=True)
    )
    attended = (q @ k.transpose(-1, -2) * 0.4).softmax(-1) @ before.parts(x)[2]
    expected = before.head(x + before.o(attended.transpose(1, 2).flatten(2)))
    torch.testing.assert_close(model(x), expected, rtol=0, atol=1e-10)


def _structure(model: nn.Module, x: Tensor) -> Structure:
    return analyse(model, x, heads="within")


def test_blocks_can_be_paired_in_any_way():
    model, x = Attention(fused), torch.randn(2, 5, 8)
    (queries, values) = _structure(model, x).groups
    assert queries.pairing.blocks == values.pairing.blocks == HEADS
    order = torch.stack([torch.arange(WIDTH).roll(head) for head in range(HEADS)])
    again = paired(queries, order)
    assert again.members[0].index[0] == (0, WIDTH + WIDTH - 1, 2 * WIDTH + WIDTH - 2)
    assert tried_groups(model, [again, values], Example.of(x))[1] == {}


def test_a_wrong_scale_is_found_out():
    """The analysis cannot tell whether a number that divides products is the root of their size; the self-check can."""
    model, x = Attention(scale_by_size), torch.randn(2, 5, 8)
    before = {group.name: group for group in _structure(model, x).groups}
    assert not before["q"].pairing.scaled_by_size
    groups, failures = tried_groups(model, tuple(before.values()), Example.of(x))
    assert not failures
    assert next(group for group in groups if group.name == "q").pairing.scaled_by_size


def test_heads_are_checked():
    with pytest.raises(ValueError, match="Expected heads to be 'whole' or 'within' but got 'some'"):
        prune(Attention(fused), torch.randn(2, 5, 8), 0.5, heads="some")


def test_it_needs_the_self_check():
    message = "Expected self_check=True with heads='within' but got self_check=False"
    with pytest.raises(ValueError, match=message):
        prune(Attention(fused), torch.randn(2, 5, 8), 0.5, heads="within", self_check=False)
    with pytest.raises(ValueError, match=message):
        CoresetPruningCallback(0.5, heads="within", self_check=False)


def test_whole_heads_are_the_default():
    model, x = Attention(fused, heads=4, key_heads=4), torch.randn(2, 5, 8)
    prune(model, x, {"v": 0.5}, method="magnitude")
    assert (model.heads, model.q.out_features) == (2, 2 * WIDTH)


class Module(pl.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.net = Attention(one_width)

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)

    def training_step(self, batch: Tensor, _: int) -> Tensor:
        return self(batch).square().mean()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), 1e-3)

    def train_dataloader(self) -> DataLoader:
        return DataLoader(torch.randn(8, 5, 8, generator=torch.Generator().manual_seed(0)), batch_size=4)


def _fit(module: pl.LightningModule, folder: Path, ckpt_path: Path | None = None) -> None:
    callback = CoresetPruningCallback(
        {"net.q": 0.5}, schedule="linear", start=0, end=1, heads="within", method="magnitude", verbose=False
    )
    trainer = pl.Trainer(
        max_epochs=3,
        callbacks=[callback, ModelCheckpoint(folder, "{epoch}", save_top_k=-1)],
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, ckpt_path=ckpt_path)


@pytest.mark.filterwarnings("ignore")
def test_events_in_training_and_a_resume_between_them(tmp_path):
    """What the self-check found out before the first event (one width for all) holds for those after a resume."""
    torch.manual_seed(0)
    whole, resumed = Module(), Module()
    _fit(whole, tmp_path / "whole")
    first = tmp_path / "whole" / "epoch=0.ckpt"
    assert torch.load(first, weights_only=True)["state_dict"]["net.q.weight"].shape[0] // HEADS not in (
        WIDTH,
        WIDTH // 2,
    )
    _fit(resumed, tmp_path / "resumed", first)
    for module in (whole, resumed):
        assert (module.net.dim_head, module.net.q.out_features, module.net.v.out_features) == (3, 9, 9)
    for (name, one), other in zip(whole.state_dict().items(), resumed.state_dict().values(), strict=True):
        assert torch.equal(one, other), name


def test_groups_name_their_parts():
    groups, _ = tried_groups(
        Attention(one_width),
        _structure(Attention(one_width), torch.randn(2, 5, 8)).groups,
        Example.of(torch.randn(2, 5, 8)),
    )
    (group,) = groups
    assert isinstance(group, ChannelGroup)
    assert group.pairing.merged == ("q", "v")
    assert [(count.name, count.per_class) for count in group.counts] == [("dim_head", 1)]


@pytest.mark.parametrize(
    "options", [{}, {"method": "sensitivity"}, {"allocation": "error"}, {"certify": True}], ids=str
)
def test_queries_and_keys_of_one_weight_have_no_coreset_form(options):
    class Packed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.attention, self.head = (
                nn.Linear(8, 12),
                nn.MultiheadAttention(12, 2, batch_first=True),
                nn.Linear(12, 2),
            )

        def forward(self, x: Tensor) -> Tensor:
            y = self.first(x)
            return self.head(self.attention(y, y, y, need_weights=False)[0])

    plan = prune(Packed(), torch.randn(2, 5, 8), 0.3, heads="within", **options)
    assert any("within heads" in group.method for group in plan.groups)


def test_a_scan_finds_groups_that_are_one():
    scan = sensitivity_scan(
        Attention(one_width), torch.randn(2, 5, 8), lambda model: 1.0, ratios=(0.5,), heads="within"
    )
    assert [record.group for record in scan] == ["q"]


def test_with_a_single_key_nothing_shows():
    structure = analyse(Attention(fused), torch.randn(2, 1, 8), heads="within")
    assert structure.refused["q"] == "meets a single key in the example inputs, so that nothing shows"
