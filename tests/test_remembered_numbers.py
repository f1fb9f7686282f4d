"""Numbers that a network remembers: found where a trial fails, proven, changed with the group, saved and undone."""

from __future__ import annotations

import argparse
import copy
import io
import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from types import SimpleNamespace
from typing import ClassVar

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from lightning_coreset import PruningPlan, load_pruned, make_resizable, plan_pruning, prune, sensitivity_scan
from lightning_coreset.structure import Count, Example, Structure, analyse, find_groups
from lightning_coreset.surgery import Snapshot, apply_changes, remove_channels
from lightning_coreset.verification import tried_groups, verified
from lightning_coreset.verification.trial import Trial


def tried(model: nn.Module, x: Tensor, **options: bool) -> tuple[dict[str, set[tuple[str, str, int]]], dict[str, str]]:
    """The numbers of each group, and the groups that fail."""
    groups, failures = tried_groups(model, analyse(model, x).groups, Example.of(x), **options)
    numbers = {
        group.name: {(count.module, count.name, count.per_class) for count in group.counts}
        for group in groups
        if group.name not in failures
    }
    return numbers, failures


@pytest.fixture
def trials(monkeypatch) -> list[int]:
    """How many groups each trial has tried."""
    sizes: list[int] = []
    attempt = Trial.attempt

    def counted(self: Trial, groups: Sequence) -> str | None:
        sizes.append(len(groups))
        return attempt(self, groups)

    monkeypatch.setattr(Trial, "attempt", counted)
    return sizes


X = torch.randn(4, 6)


class Layers(nn.Module):
    """Two layers; ``between`` works on the channels of the first."""

    def __init__(self, width: int = 8, **attributes: object) -> None:
        super().__init__()
        vars(self).update(attributes)
        self.a, self.b = nn.Linear(6, width), nn.Linear(width, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.between(self.a(x).relu()))

    def between(self, y: Tensor) -> Tensor:
        raise NotImplementedError


# ---- where numbers stand


class View(Layers):
    def between(self, y: Tensor) -> Tensor:
        return y.view(-1, self.dim_head)


class Twice(Layers):
    """The number is a multiple of the width."""

    def between(self, y: Tensor) -> Tensor:
        return torch.cat([y, y], 1).view(-1, self.doubled)[:, : self.doubled // 2]


class Divided(Layers):
    """It runs with the old number as well, but computes something else."""

    def between(self, y: Tensor) -> Tensor:
        return y * (y.shape[1] / self.intermediate_size)


class EqualParts(Layers):
    def between(self, y: Tensor) -> Tensor:
        first, second = y.split(self.split_sizes, 1)
        return torch.cat([second, first], 1)


class Rearranged(nn.Module):
    """As the layer of einops does it: sizes by the names of a pattern, in a module between."""

    def __init__(self, **sizes: int) -> None:
        super().__init__()
        self.sizes = sizes

    def forward(self, y: Tensor) -> Tensor:
        return y.view(len(y), self.sizes["h"], self.sizes["d"]).transpose(1, 2).flatten(1)


class Attention(nn.Module):
    """Attention as timm has it: the width of all heads together is a number of its own."""

    def __init__(self, dim: int = 12, heads: int = 3) -> None:
        super().__init__()
        self.num_heads, self.head_dim, self.attn_dim = heads, dim // heads, dim
        self.qkv, self.proj = nn.Linear(6, 3 * dim), nn.Linear(dim, 6)

    def forward(self, x: Tensor) -> Tensor:
        batch, length, _ = x.shape
        qkv = self.qkv(x).reshape(batch, length, 3, self.num_heads, self.head_dim).permute(2, 0, 3, 1, 4)
        q, k, v = qkv.unbind(0)
        y = functional.scaled_dot_product_attention(q, k, v)
        return self.proj(y.transpose(1, 2).reshape(batch, length, self.attn_dim))


class Computed(nn.Module):
    """Attention whose number of heads is a property, of a number that it keeps or of a layer's width."""

    def __init__(self, config: dict[str, int] | None = None) -> None:
        super().__init__()
        self.settings_config = config
        self.q, self.k, self.v, self.proj = (nn.Linear(12, 12) for _ in range(4))

    @property
    def heads(self) -> int:
        return self.q.out_features // 4 if self.settings_config is None else self.settings_config["count"]

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (layer(x).unflatten(2, (self.heads, -1)).transpose(1, 2) for layer in (self.q, self.k, self.v))
        return self.proj(functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


@pytest.mark.parametrize("config", [None, {"count": 3}])
def test_a_number_of_heads_that_is_computed_follows_by_itself(config):
    model = nn.Sequential(nn.Linear(6, 12), Computed(config), nn.Linear(12, 3))

    plan = prune(model, torch.randn(2, 5, 6), {"1.q": 0.34})

    assert (model[1].heads, model[1].q.out_features) == (2, 8)
    assert [group.channels_after for group in plan.groups] == [2]


@pytest.mark.parametrize(
    ("model", "numbers"),
    [
        (View(dim_head=8), {("", "dim_head", 1)}),
        (Twice(doubled=16), {("", "doubled", 2)}),
        (Divided(intermediate_size=8), {("", "intermediate_size", 1)}),
        (EqualParts(split_sizes=[4, 4]), {("", "split_sizes[0]", 1), ("", "split_sizes[1]", 1)}),
        (EqualParts(split_sizes=(4, 4)), {("", "split_sizes[0]", 1), ("", "split_sizes[1]", 1)}),
    ],
)
def test_numbers_of_one_module(model, numbers):
    assert tried(model, X, change_attributes=False)[1].keys() == {"a"}
    assert tried(model, X) == ({"a": numbers}, {})


class Pieces(nn.Module):
    """Pieces of several sizes, each with a layer of its own."""

    def __init__(self, sizes: tuple[int, ...] | list[int] = (8, 4, 8)) -> None:
        super().__init__()
        self.split_sizes = sizes
        self.a = nn.Linear(6, sum(sizes))
        self.layers = nn.ModuleList(nn.Linear(size, 3) for size in sizes)

    def forward(self, x: Tensor) -> Tensor:
        return sum(layer(piece.relu()) for layer, piece in zip(self.layers, self.cut(self.a(x)), strict=True))

    def cut(self, y: Tensor) -> Sequence[Tensor]:
        return y.split(self.split_sizes, 1)


class Slices(Pieces):
    def cut(self, y: Tensor) -> Sequence[Tensor]:
        first, second, third = self.split_sizes
        return y[:, :first], y[:, first : first + second], y[:, first + second : first + second + third]


class LiteralPieces(Pieces):
    def cut(self, y: Tensor) -> Sequence[Tensor]:
        return y.split((8, 4, 8), 1)


def checked(model: nn.Module, x: Tensor, **options: bool) -> Structure:
    return verified(model, analyse(model, x), Example.of(x), **options)


@pytest.mark.parametrize("kind", [tuple, list])
@pytest.mark.parametrize(
    ("net", "last"),
    [
        (Pieces, [("split_sizes[2]", 1)]),
        (Slices, []),  # it ends with the tensor in any case
    ],
)
def test_pieces_of_several_sizes(net, last, kind):
    model = net(kind([8, 4, 8]))
    structure = checked(model, X)
    assert {group.name: [(count.name, count.per_class) for count in group.counts] for group in structure.groups} == {
        "a": [("split_sizes[0]", 1)],
        "a#2": [("split_sizes[1]", 1)],
        "a#3": last,
    }
    assert "a" not in structure.refused
    prune(model, X, 0.4)
    widths = tuple(layer.in_features for layer in model.layers)
    assert tuple(model.split_sizes[: 2 + len(last)]) == widths[: 2 + len(last)] < (8, 4, 8)
    assert type(model.split_sizes) is kind
    model(X)


@pytest.mark.parametrize("options", [{"change_attributes": False}, {"change_attributes": True}])
def test_pieces_written_as_numbers_stay_refused_without_a_word(options):
    """As before: nobody expects them to be pruned, so no warning says that they are not."""
    structure = checked(LiteralPieces(), X, **options)
    assert structure.groups == ()
    assert structure.refused["a"] == "is cut into unequal pieces (aten.split_with_sizes)"
    assert checked(Pieces(), X, change_attributes=False).groups == ()


def test_find_groups_knows_nothing_of_unequal_pieces():
    assert find_groups(Pieces(), X) == []


def test_pieces_beside_other_groups_come_in_network_order():
    model = nn.Sequential(nn.Linear(6, 7), nn.ReLU(), nn.Linear(7, 6), Pieces(), nn.Linear(3, 5), nn.Linear(5, 2))
    names = [group.name for group in checked(model, X).groups]
    assert names == ["0", "2", "3.a", "3.a#2", "3.a#3", "3.layers.0", "4"]


@pytest.mark.parametrize(
    "config",
    [
        {"hidden_size": 8},
        SimpleNamespace(hidden_size=8),
        argparse.Namespace(hidden_size=8),
        pytest.param(None, id="class"),
    ],
)
def test_numbers_of_configs(config):
    class ModelConfig:
        def __init__(self) -> None:
            self.hidden_size = 8

    class Net(Layers):
        def between(self, y: Tensor) -> Tensor:
            held = self.config
            return y.view(-1, held["hidden_size"] if isinstance(held, dict) else held.hidden_size)

    config = ModelConfig() if config is None else config
    model, before = Net(config=config), copy.deepcopy(config)
    assert tried(model, X) == ({"a": {("", "config.hidden_size", 1)}}, {})
    prune(model, X, 0.5)
    model(X)
    assert model.config is not config
    assert type(model.config) is type(config)
    assert config == before or vars(config) == vars(before)


@dataclass(frozen=True)
class Sizes:
    hidden: tuple[int, ...] = (8, 5)


@dataclass
class Config:
    width: int = 8
    vocabulary: int = 8
    sizes: Sizes = field(default_factory=Sizes)


class FromConfig(Layers):
    def __init__(self, config: Config) -> None:
        super().__init__(config=config)

    def between(self, y: Tensor) -> Tensor:
        return y.view(len(y), self.config.width).view(len(y), self.config.sizes.hidden[0])


def test_a_config_of_two_models_is_changed_in_one():
    config = Config()
    model, other = FromConfig(config), FromConfig(config)
    expected = other(X)
    plan = prune(model, X, 0.5)
    assert {(each.name, each.old, each.new) for each in plan.attributes} == {
        ("config.width", 8, 4),
        ("config.sizes.hidden[0]", 8, 4),
    }
    assert model.config == Config(4, 8, Sizes((4, 5)))
    model(X)
    assert other.config is config
    assert config == Config()
    assert torch.equal(other(X), expected)


def test_a_config_of_all_modules_stays_one():
    class Inner(FromConfig):
        pass

    class Outer(nn.Module):
        def __init__(self, config: Config) -> None:
            super().__init__()
            self.config, self.sizes, self.inner, self.last = config, config.sizes, Inner(config), nn.Linear(3, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.last(self.inner(x).relu())

    model = Outer(Config())
    prune(model, X, {"inner.a": 0.5})
    assert model.config is model.inner.config
    assert model.sizes is model.config.sizes
    assert model.sizes == Sizes((4, 5))
    model(X)


class Blocks(nn.Module):
    """Blocks that read one config, whose groups are cut independently."""

    def __init__(self, config: Config, count: int = 3) -> None:
        super().__init__()
        self.config = config
        self.blocks = nn.ModuleList(Wide(config) for _ in range(count))

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = x + block(x)
        return x


class Wide(nn.Module):
    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        self.a, self.b = nn.Linear(6, config.width), nn.Linear(config.width, 6)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.a(x).view(-1, self.config.width).relu())


def test_groups_that_share_a_field_get_copies_of_their_own():
    config = Config()
    model = Blocks(config)
    ratios = {"blocks.0.a": 0.25, "blocks.1.a": 0.5, "blocks.2.a": 0.0}
    prune(model, X, ratios)
    assert [block.config.width for block in model.blocks] == [6, 4, 8]
    assert config.width == model.config.width == 8
    model(X)


def test_modules_between():
    model = nn.Sequential(nn.Linear(6, 8), Rearranged(h=2, d=4), nn.Linear(8, 3))
    numbers, failures = tried(model, X)
    assert failures == {}
    assert numbers in ({"0": {("1", "sizes.h", 1)}}, {"0": {("1", "sizes.d", 1)}})
    prune(model, X, 0.5)
    model(X)


def test_heads_as_timm_counts_them():
    model, x = nn.Sequential(nn.Linear(6, 6), Attention()), torch.randn(2, 5, 6)
    assert tried(model, x, change_attributes=False)[1].keys() == {"1.qkv"}
    numbers, failures = tried(model, x)
    assert failures == {}
    assert numbers["1.qkv"] == {("1", "num_heads", 1), ("1", "attn_dim", 4)}


def test_vision_transformers_of_timm():
    timm = pytest.importorskip("timm")
    model, x = timm.create_model("vit_tiny_patch16_224", num_classes=3, img_size=32, depth=2), torch.randn(2, 3, 32, 32)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        plan = prune(model, x, {"blocks.*.attn.qkv": 0.34}, method="magnitude")
    changes = {(each.module, each.name, each.old, each.new) for each in plan.attributes}
    assert {("blocks.0.attn", "attn_dim", 192, 128), ("blocks.1.attn", "attn_dim", 192, 128)} <= changes
    model(x)


def test_layers_of_einops():
    torch_layers = pytest.importorskip("einops.layers.torch")
    rearrange = torch_layers.Rearrange("b (h d) -> b (d h)", h=2)
    model = nn.Sequential(nn.Linear(6, 8), rearrange, nn.Linear(8, 3))
    prune(model, X, 0.5)
    model(X)


# ---- what is not changed


def test_numbers_that_are_equal_by_coincidence_stay():
    class Vocabulary(View):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x).repeat(1, 3)[:, : self.vocabulary]

    model = Vocabulary(dim_head=8, vocabulary=8)
    assert tried(model, X) == ({"a": {("", "dim_head", 1)}}, {})


def test_a_kernel_is_no_number_of_heads():
    class Heads(nn.Module):
        """Convolutions whose kernels are as large as there are heads."""

        def __init__(self) -> None:
            super().__init__()
            self.kernel, self.count, self.width = 3, 3, 4
            self.a, self.b = nn.Linear(6, 12), nn.Linear(12, 3)

        def forward(self, x: Tensor) -> Tensor:
            y = self.a(x).view(len(x), self.count, self.width)
            y = functional.avg_pool1d(y, self.kernel, stride=1, padding=self.kernel // 2)
            return self.b(y.softmax(-1).reshape(len(x), -1))

    model = Heads()
    assert tried(model, X) == ({"a": {("", "count", 1)}}, {})


def test_two_groups_of_one_width_are_not_confused():
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two = 8, 8
            self.a, self.b, self.c = nn.Linear(6, 8), nn.Linear(8, 8), nn.Linear(8, 3)

        def forward(self, x: Tensor) -> Tensor:
            x = self.a(x).view(-1, self.one).relu()
            return self.c(self.b(x).view(-1, self.two).relu())

    model = Two()
    assert tried(model, X) == ({"a": {("", "one", 1)}, "b": {("", "two", 1)}}, {})
    prune(model, X, {"a": 0.5, "b": 0.25})
    assert (model.one, model.two) == (4, 6)


def test_what_is_read_but_not_needed_stays():
    class Noted(View):
        def between(self, y: Tensor) -> Tensor:
            assert self.note
            return super().between(y)

    assert tried(Noted(dim_head=8, note=8), X) == ({"a": {("", "dim_head", 1)}}, {})


def test_what_is_not_read_stays():
    model = View(dim_head=8, note=8, config=Config())
    assert tried(model, X) == ({"a": {("", "dim_head", 1)}}, {})


def test_a_number_of_another_module_of_the_class_stays():
    model = nn.Sequential(View(dim_head=8), nn.Linear(3, 6), View(dim_head=8))
    numbers, failures = tried(model, X)
    assert failures == {}
    assert (numbers["0.a"], numbers["2.a"]) == ({("0", "dim_head", 1)}, {("2", "dim_head", 1)})


def test_a_number_for_two_groups_together():
    """What is as long as the channels of two layers changes with each of them."""

    class Joined(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.total = 16
            self.a, self.b, self.c = nn.Linear(6, 8), nn.Linear(6, 8), nn.Linear(16, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.c(torch.cat([self.a(x), self.b(x)], 1).view(-1, self.total).relu())

    model = Joined()
    assert tried(model, X) == ({"a": {("", "total", 1)}, "b": {("", "total", 1)}}, {})
    prune(model, X, {"a": 0.5, "b": 0.25})
    assert model.total == 10
    model(X)


# ---- what stays refused


def test_a_literal_stays_refused():
    class Literal(Layers):
        def between(self, y: Tensor) -> Tensor:
            return y.view(-1, 8)

    _, failures = tried(Literal(), X)
    assert re.search(r"written as a number .*; no attribute that its modules read has such a value$", failures["a"])
    _, failures = tried(Literal(unread=8), X)
    assert "no attribute" in failures["a"]


def test_a_literal_beside_numbers_stays_refused_and_nothing_is_changed():
    class Both(Layers):
        def between(self, y: Tensor) -> Tensor:
            return y.view(len(y), self.dim_head).view(len(y), 8)

    model = Both(dim_head=8)
    with pytest.warns(UserWarning, match=r"; changing 0\.dim_head along does not help"):
        checked = plan_pruning(nn.Sequential(model, nn.ReLU(), nn.Linear(3, 5), nn.Linear(5, 2)), X, 0.1)
    assert checked.attributes == ()
    assert model.dim_head == 8


def test_only_numbers_that_are_read_on_the_way_are_tried():
    class Partly(Layers):
        def between(self, y: Tensor) -> Tensor:
            return y.view(len(y), self.config.width).view(len(y), 8)

    class Elsewhere(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.other = 8

        def forward(self, x: Tensor) -> Tensor:
            return x.view(len(x), -1)[:, : self.other]

    model = nn.Sequential(Partly(config=Config()), Elsewhere())
    _, failures = tried(model, X)
    assert failures["0.a"].endswith("; changing 0.config.width along does not help")


def test_a_leak_is_not_searched(trials):
    model, x = View(dim_head=8), X
    groups = find_groups(model, x)
    wrong = [
        type(group)(group.name, tuple(member for member in group.members if member.role != "consumer"), group.paths)
        for group in groups
    ]
    _, failures = tried_groups(model, wrong, Example.of(x))
    assert "reach further" in failures["a"]
    assert len(trials) == 1


def test_what_fails_only_together_is_refused():
    """Both groups count on the same number, but there it is the width of one of them."""

    class Either(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.width = 8
            self.a, self.b, self.c, self.d = nn.Linear(6, 8), nn.Linear(8, 3), nn.Linear(6, 8), nn.Linear(8, 3)

        def forward(self, x: Tensor) -> Tensor:
            y, z = self.a(x).relu(), self.c(x).relu()
            if min(y.shape[1], z.shape[1]) != self.width:
                raise RuntimeError("the narrower one")
            return self.b(y) + self.d(z)

    numbers, failures = tried(Either(), X)
    assert numbers == {"a": {("", "width", 1)}}
    assert "together with others" in failures["c"]


def test_the_switch():
    model = View(dim_head=8)
    with pytest.warns(UserWarning, match="written as a number"), pytest.raises(ValueError, match="written as a number"):
        prune(model, X, 0.5, change_attributes=False)
    with pytest.warns(UserWarning, match="written as a number"), pytest.raises(ValueError, match="written as a number"):
        sensitivity_scan(model, X, lambda network: 0.0, change_attributes=False)
    assert len(sensitivity_scan(model, X, lambda network: network.dim_head, ratios=(0.5,))) == 1


def test_without_a_check_nothing_is_changed():
    plan = plan_pruning(View(dim_head=8), X, 0.5, self_check=False)
    assert plan.attributes == ()


def test_nothing_is_searched_where_nothing_fails(trials):
    class Unneeded(Layers):
        def between(self, y: Tensor) -> Tensor:
            assert self.own_width
            return y

    numbers, failures = tried(Unneeded(own_width=8), X)
    assert (numbers, failures) == ({"a": set()}, {})
    assert trials == []  # all passes at once, in evaluation and in training


def test_layers_of_one_class_cost_one_trial_each(trials):
    class Noted(View):
        def between(self, y: Tensor) -> Tensor:
            assert self.note + self.other
            return super().between(y)

    count = 6
    layers = [nn.Sequential(Noted(dim_head=8, note=8, other=8), nn.Linear(3, 6)) for _ in range(count)]
    model = nn.Sequential(*layers)
    plain = len(trials)
    tried(model, X, change_attributes=False)
    plain, trials[:] = len(trials) - plain, []
    _, failures = tried(model, X)
    assert failures == {}
    assert len(trials) - plain <= count + 6


def test_a_hopeless_group_has_a_limit(trials):
    class Many(Layers):
        def between(self, y: Tensor) -> Tensor:
            assert sum(getattr(self, f"n{number}") for number in range(12))
            return y.view(-1, 8)

    model = Many(**{f"n{number}": 8 for number in range(12)})
    assert tried(model, X)[1].keys() == {"a"}
    assert len(trials) <= 60


def test_what_failed_once_is_not_searched_again(trials):
    class Several(Layers):
        def between(self, y: Tensor) -> Tensor:
            assert self.one + self.two + self.three
            return y.view(len(y), 8)

    def blocks() -> nn.Module:
        layers = [nn.Sequential(Several(one=8, two=8, three=8), nn.Linear(3, 6)) for _ in range(4)]
        return nn.Sequential(*layers)

    tried(blocks(), X, change_attributes=False)
    plain, trials[:] = len(trials), []
    assert len(tried(blocks(), X)[1]) == 4
    # One for each of two kinds, two for groups of one size together, and one search, for the first of the four.
    assert len(trials) - plain <= 2 + 2 + 9


# ---- what a search leaves behind: nothing


def test_classes_are_as_before():
    model = FromConfig(Config())
    kinds = [FromConfig, Config, Sizes, nn.Linear]
    before = [dict(vars(kind)) for kind in kinds]
    assert tried(model, X)[1] == {}
    assert [dict(vars(kind)) for kind in kinds] == before
    assert model.config == Config()


def test_own_attribute_access_is_kept():
    """As configs of transformers have it, with other names for some fields."""

    class AliasConfig:
        attribute_map: ClassVar = {"hidden_size": "n_embd"}

        def __init__(self) -> None:
            self.n_embd = 8

        def __getattribute__(self, name: str) -> object:
            aliases = super().__getattribute__("attribute_map")
            return super().__getattribute__(aliases.get(name, name))

    class Net(Layers):
        def between(self, y: Tensor) -> Tensor:
            return y.view(-1, self.config.hidden_size)

    access = AliasConfig.__getattribute__
    model = Net(config=AliasConfig())
    assert tried(model, X) == ({"a": {("", "config.n_embd", 1)}}, {})
    assert AliasConfig.__getattribute__ is access


# ---- plans, checkpoints, copies


def test_the_plan_names_them():
    plan = plan_pruning(nn.Sequential(View(dim_head=8), nn.Linear(3, 6), View(dim_head=8)), X, {"*.a": 0.5})
    assert "number changed: dim_head 8 -> 4 in 0, 2" in str(plan).splitlines()
    assert PruningPlan.from_dict(plan.to_dict()).attributes == plan.attributes


@pytest.mark.parametrize("kind", [tuple, list])
def test_a_sequence_keeps_its_type_and_is_not_changed_in_place(kind):
    sizes = kind([4, 4])
    model = EqualParts(split_sizes=sizes)
    prune(model, X, 0.5)
    assert model.split_sizes == kind([2, 2])
    assert sizes == kind([4, 4])
    model(X)


def test_pruned_twice():
    model = FromConfig(Config())
    prune(model, X, 0.25)
    prune(model, X, 0.3)
    width = model.a.out_features
    assert width < 6
    assert model.config == Config(width, 8, Sizes((width, 5)))
    model(X)


def test_a_copy_of_a_pruned_model_is_its_own():
    model = FromConfig(Config())
    prune(model, X, 0.5)
    twin = copy.deepcopy(model)
    prune(twin, X, 0.5)
    assert (model.config.width, twin.config.width) == (4, 2)
    model(X), twin(X)


class Loaded(FromConfig):
    def __init__(self) -> None:
        super().__init__(Config())


def test_a_checkpoint_and_back():
    pruned = make_resizable(Loaded())
    original = copy.deepcopy(pruned.state_dict())
    prune(pruned, X, 0.5)
    file = io.BytesIO()
    torch.save(pruned.state_dict(), file)
    file.seek(0)
    fresh = load_pruned(Loaded, file)
    assert fresh.config == pruned.config == Config(4, 8, Sizes((4, 5)))
    assert torch.equal(fresh(X), pruned(X))
    fresh.load_state_dict(original)
    assert fresh.config == Config()
    fresh(X)


def test_loading_leaves_the_users_config_alone():
    config = Config()
    pruned, fresh, other = (make_resizable(FromConfig(config)) for _ in range(3))
    prune(pruned, X, 0.5)
    fresh.load_state_dict(pruned.state_dict())
    assert fresh.config.width == 4
    assert other.config is config
    assert config == Config()


def test_tensors_alone_do_not_say_which_number():
    pruned, smaller = make_resizable(Loaded()), make_resizable(Loaded())
    prune(pruned, X, 0.5)
    prune(smaller, X, 0.7)
    with pytest.raises(ValueError, match=r"shapes do not tell what became of 'config\.width'"):
        pruned.load_state_dict(dict(smaller.state_dict()))


def test_a_snapshot_puts_the_config_back():
    config = Config()
    model = FromConfig(config)
    before = Snapshot(model)
    prune(model, X, 0.5)
    before.restore()
    assert model.config is config
    model(X)


def test_a_plan_for_another_config_changes_nothing():
    plan = plan_pruning(FromConfig(Config()), X, 0.5)
    model = FromConfig(Config())
    model.config.width = 9
    with pytest.raises(ValueError, match=r"Expected 'config\.width' of module '' to be 8 but got 9"):
        apply_changes(model, plan.changes, plan.attributes)
    assert model.a.out_features == 8


@pytest.mark.parametrize("name", ["gone", "config.gone", "config.sizes.hidden[7]", "config.sizes", "a.gone"])
def test_a_count_of_nothing_is_a_clear_error(name):
    model = FromConfig(Config())
    (group,) = find_groups(model, X)
    group = group.with_counts([Count("", name, 1)])
    with pytest.raises(ValueError, match=re.escape(f"Expected {name!r} of module '' to be an integer")):
        remove_channels(model, group, [0])
    assert model.a.out_features == 8


def test_hyperparameters_of_lightning_are_not_touched():
    """They say how the model is built when a checkpoint is loaded."""
    import lightning.pytorch as pl

    class Module(pl.LightningModule):
        def __init__(self, width: int = 8) -> None:
            super().__init__()
            self.save_hyperparameters()
            self.a, self.b = nn.Linear(6, width), nn.Linear(width, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.b(self.a(x).view(-1, self.hparams.width).relu())

    model = Module()
    assert tried(model, X)[1].keys() == {"a"}
    model._hparams = SimpleNamespace(width=8)  # Lightning keeps a config of OmegaConf as it is
    assert tried(model, X)[1].keys() == {"a"}
    assert model.hparams.width == 8


def test_pieces_are_not_pruned_without_a_trial(monkeypatch):
    model = nn.Sequential(Pieces(), nn.Linear(3, 5), nn.Linear(5, 2))
    structure, example = analyse(model, X), Example.of(X)

    def no_memory(*_: object, **__: object) -> None:
        raise torch.OutOfMemoryError("no memory left")

    monkeypatch.setattr(Trial, "__init__", no_memory)
    with pytest.warns(UserWarning, match=r"could not be run \(OutOfMemoryError: no memory left\); give self_check"):
        assert verified(model, structure, example).groups == ()


def test_pieces_of_a_parameter_that_no_layer_makes():
    class Learned(Pieces):
        def __init__(self) -> None:
            super().__init__()
            self.tokens = nn.Parameter(torch.randn(1, 20))

        def forward(self, x: Tensor) -> Tensor:
            learned = zip(self.layers, self.cut(self.tokens), strict=True)
            return super().forward(x) + sum(layer(piece) for layer, piece in learned)

    model = Learned()
    assert {group.name for group in checked(model, X).groups} <= {"a", "a#2", "a#3"}
    assert all(group.by_role("producer") for group in analyse(model, X, unequal_pieces=True).groups)

    class Only(Learned):
        def forward(self, x: Tensor) -> Tensor:
            return sum(layer(piece) for layer, piece in zip(self.layers, self.cut(self.tokens), strict=True)) + x[:, :3]

    assert checked(nn.Sequential(Only(), nn.Linear(3, 2)), X).groups == ()


def test_groups_of_another_analysis_that_overlap_are_not_taken():
    structure = analyse(nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)), X)
    (group,) = structure.groups
    other = replace(structure, groups=(replace(group, name="another"),))
    assert structure.joined(other).groups == (group,)
    assert replace(structure, groups=()).joined(other).groups == other.groups
    assert structure.joined(replace(structure, groups=())).groups == (group,)
