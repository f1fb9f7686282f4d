"""The self-check: what no structure can know is found on a copy, and the model is left alone."""

from __future__ import annotations

import copy
import random
from collections.abc import Sequence
from dataclasses import replace

import lightning.pytorch as pl
import pytest
import torch
import torch.utils.checkpoint
from breadth import crossed
from networks import NETWORKS, assert_same_random, assert_untouched, make, random_states, snapshot
from torch import Tensor, nn
from torch.nn import functional
from zoo import ZOO
from zoo.oracle import build

from lightning_coreset import prune
from lightning_coreset.structure import ChannelGroup, Example, Member, analyse, find_groups
from lightning_coreset.structure.records import one_each
from lightning_coreset.verification import describe_failures, failing_groups, tried_groups, verified
from lightning_coreset.verification.removed import removed_classes, unlike_classes


def failures(model: nn.Module, x: Tensor, groups: Sequence[ChannelGroup] | None = None) -> dict[str, str]:
    return failing_groups(model, find_groups(model, x) if groups is None else groups, Example.of(x))


@pytest.mark.parametrize(("name", "dtype"), crossed(NETWORKS, [torch.float64, torch.float32, torch.bfloat16]))
def test_right_groups_pass(name, dtype):
    model, x = make(name, dtype)
    assert find_groups(model, x)
    assert failures(model, x) == {}


@pytest.mark.parametrize("name", ["mlp", "vgg", "mobilenet", "attention"])
def test_it_only_reads(name):
    model, x = make(name)
    model.train()
    next(iter(model.children())).eval()
    model(x).sum().backward()
    gradients = [parameter.grad.clone() for parameter in model.parameters()]
    flags = [module.training for module in model.modules()]
    groups = find_groups(model, x)
    before, randomness = snapshot(model), random_states()
    failures(model, x, groups)
    assert_untouched(model, before)
    assert [module.training for module in model.modules()] == flags
    assert_same_random(randomness)
    for parameter, gradient in zip(model.parameters(), gradients, strict=True):
        torch.testing.assert_close(parameter.grad, gradient, rtol=0, atol=0)


class Pair(nn.Module):
    """``a`` is free; ``between`` stands behind ``b``."""

    def __init__(self, between) -> None:
        super().__init__()
        self.a, self.b, self.c, self.between = nn.Linear(6, 10), nn.Linear(10, 8), nn.Linear(8, 3), between

    def forward(self, x: Tensor) -> Tensor:
        return self.c(self.between(self.b(self.a(x).relu()).relu()))


WIDTHS = {
    "view": (lambda y: y.view(-1, 8), "does not run"),
    "reshape that fits": (lambda y: y.reshape(-1, 8)[: len(y)] if y.shape[1] == 8 else y.tanh(), "changes what"),
    "division": (lambda y: y / y.shape[1], "changes what"),
    "root of the width": (lambda y: y * y.shape[-1] ** -0.5, "changes what"),
    "dynamic": (lambda y: y if y.shape[1] == 8 else 2 * y, "changes what"),
    "assertion": (lambda y: functional.layer_norm(y.T, [len(y)]).T if y.shape[1] == 8 else 1 / 0, "division by zero"),
    "slow drift": (lambda y: y * (1 + 1e-4 * y.shape[1]), "changes what"),
}


@pytest.mark.parametrize("width", WIDTHS)
def test_widths_in_the_code_are_caught(width):
    between, reason = WIDTHS[width]
    model = Pair(between)
    x = torch.randn(4, 6)
    assert [group.name for group in find_groups(model, x)] == ["a", "b"]
    found = failures(model, x)
    assert list(found) == ["b"]
    assert reason in found["b"]


def test_a_masked_output_does_not_hide_a_difference():
    """Logits of minus infinity are the same before and after; the others are still compared."""

    class Masked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(6, 10), nn.Linear(10, 4)
            self.register_buffer("mask", torch.tensor([False, False, False, True]))

        def forward(self, x: Tensor) -> Tensor:
            x = self.a(x).relu()
            return (self.b(x) / x.shape[1]).masked_fill(self.mask, float("-inf"))

    assert list(failures(Masked(), torch.randn(4, 6))) == ["a"]


class Joint(nn.Module):
    """Each of two layers may shrink a little, but not both."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.head = nn.Linear(4, 10), nn.Linear(4, 10), nn.Linear(20, 2)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.cat([self.a(x).relu(), self.b(x).relu()], 1)
        return self.head(2 * y if y.shape[1] < 16 else y)


def test_what_fails_only_together_is_caught():
    assert failures(Joint(), torch.randn(4, 4))


class Branches(nn.Module):
    """Many groups side by side, some of them divided by their width."""

    def __init__(self, bad: Sequence[int]) -> None:
        super().__init__()
        self.bad = bad
        self.first = nn.ModuleList(nn.Linear(4, 6) for _ in range(7))
        self.second = nn.ModuleList(nn.Linear(6, 2) for _ in range(7))

    def forward(self, x: Tensor) -> Tensor:
        parts = []
        for number, (first, second) in enumerate(zip(self.first, self.second, strict=True)):
            y = first(x).relu()
            parts.append(second(y / y.shape[1] if number in self.bad else y))
        return torch.stack(parts)


@pytest.mark.parametrize("bad", [(), (0,), (6,), (2, 3), (0, 3, 6), tuple(range(7))])
def test_the_ones_to_blame_are_found(bad):
    assert list(failures(Branches(bad), torch.randn(3, 4))) == [f"first.{number}" for number in bad]


# ---- groups made wrong on purpose


def shifted(member: Member, by: int = 1) -> Member:
    return replace(member, index=member.index[by:] + member.index[:by])


def with_members(group: ChannelGroup, change) -> ChannelGroup:
    return replace(group, members=tuple(filter(None, map(change, group.members))))


def wrong(group: ChannelGroup, name: str, how: str) -> ChannelGroup:
    def change(member: Member) -> Member | None:
        if member.name != name:
            return member
        return {"shifted": shifted(member), "forgotten": None}[how]

    return with_members(group, change)


@pytest.mark.parametrize("how", ["shifted", "forgotten"])
@pytest.mark.parametrize("name", ["3.weight", "3.bias", "6.weight"])
def test_wrong_groups_of_a_convolution(name, how):
    model, x = make("lenet")
    group = find_groups(model, x)[1]
    assert failures(model, x, [group]) == {}
    assert list(failures(model, x, [wrong(group, name, how)])) == ["3"]


@pytest.mark.parametrize("how", ["shifted", "forgotten"])
@pytest.mark.parametrize("name", ["1.weight", "1.bias", "1.running_mean", "1.running_var", "3.weight"])
def test_wrong_groups_of_a_norm(name, how):
    model, x = make("vgg")
    group = find_groups(model, x)[0]
    assert list(failures(model, x, [wrong(group, name, how)])) == ["0"]


def test_a_fresh_norm_does_not_hide_a_wrong_index():
    """Before training all statistics are 0 and 1, and so are scales and shifts: the check has to move them."""
    model = nn.Sequential(nn.Linear(6, 8, bias=False), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))
    x = torch.randn(4, 6)
    (group,) = find_groups(model, x)
    for name in ("1.weight", "1.bias", "1.running_mean", "1.running_var"):
        assert list(failures(model, x, [wrong(group, name, "shifted")])) == ["0"], name


def test_a_reader_that_was_missed_is_a_leak():
    class Branch(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = nn.Linear(6, 8), nn.Linear(8, 3), nn.Linear(8, 3)

        def forward(self, x: Tensor) -> Tensor:
            y = self.a(x).relu()
            return self.b(y) + self.c(y)

    model, x = Branch(), torch.randn(4, 6)
    (group,) = find_groups(model, x)
    found = failures(model, x, [with_members(group, lambda member: None if member.name == "c.weight" else member)])
    assert "reach further" in found["a"]


def test_a_group_without_influence_is_named():
    class Unused(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(6, 8), nn.Linear(8, 3)
            self.c, self.d = nn.Linear(6, 8), nn.Linear(8, 3)

        def forward(self, x: Tensor) -> Tensor:
            self.d(self.c(x).relu())
            return self.b(self.a(x).relu())

    model, x = Unused(), torch.randn(4, 6)
    assert [group.name for group in find_groups(model, x)] == ["c", "a"]
    found = failures(model, x)
    assert list(found) == ["c"]
    assert "no influence" in found["c"]


def test_influence_without_gradients_counts():
    """Under ``no_grad``, through ``detach`` or a rounding, an output has no gradient but depends on the channels."""

    class Detached(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(6, 8), nn.Linear(8, 8)
            self.c, self.d = nn.Linear(8, 8), nn.Linear(8, 3)

        def forward(self, x: Tensor) -> Tensor:
            with torch.no_grad():
                x = self.b(self.a(x).relu()).relu()
            return self.d(self.c(x).relu())

    model, x = Detached(), torch.randn(4, 6)
    assert [group.name for group in find_groups(model, x)] == ["a", "b", "c"]
    assert failures(model, x) == {}


def test_whole_numbers_as_outputs_prove_nothing():
    class Classes(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(6, 8), nn.Linear(8, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.b(self.a(x).relu()).argmax(1)

    model, x = Classes(), torch.randn(4, 6)
    found = failures(model, x)
    assert list(found) == ["a"]
    assert "cannot be tried" in found["a"]


# ---- networks that are hard to run twice


def test_codes_among_floating_numbers():
    """Other values than the user's may not be possible: then the example alone has to do."""

    class Table(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.a, self.b = nn.Embedding(5, 6), nn.Linear(9, 10), nn.Linear(10, 5)

        def forward(self, x: Tensor) -> Tensor:
            return self.b(self.a(torch.cat([self.embed(x[:, 0].long()), x[:, 1:]], 1)).relu())

    model, x = Table(), torch.randn(5, 4)
    x[:, 0] = torch.arange(5)
    assert failures(model, x) == {}


def test_a_network_that_makes_single_precision_itself():
    class Single(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(6, 10), nn.Linear(10, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.b(torch.ones(len(x), 1) @ self.a(x.float()).relu().mean(0, keepdim=True))

    assert failures(Single(), torch.randn(4, 6)) == {}


def test_complex_buffers_stay_complex():
    class Rotary(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(6, 10), nn.Linear(10, 4)
            self.register_buffer("turn", torch.polar(torch.ones(2), torch.tensor([0.3, 0.9])))

        def forward(self, x: Tensor) -> Tensor:
            pairs = torch.view_as_complex(self.b(self.a(x).relu()).reshape(-1, 2, 2))
            return torch.view_as_real(pairs * self.turn)

    assert failures(Rotary(), torch.randn(4, 6)) == {}


def test_a_weight_of_one_element():
    model = nn.Sequential(nn.Linear(1, 8), nn.ReLU(), nn.Linear(8, 1), nn.Tanh(), nn.Linear(1, 1))
    assert failures(model, torch.randn(4, 1)) == {}


@pytest.mark.parametrize("rate", [0.3, 0.5])
def test_random_numbers_are_the_same_in_every_run(rate):
    """Noise that evaluation mode does not switch off."""
    model = Pair(lambda y: functional.dropout(y, rate, training=True) + 0 * random.random() * y)
    x = torch.randn(4, 6)
    groups = find_groups(model, x)
    # The mask is drawn for the width at hand, so ``b`` cannot be compared; ``a`` in front of it can.
    assert "a" not in failures(model, x, groups)


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_any_gradient_mode(context):
    model, x = make("vgg")
    groups = find_groups(model, x)
    with context():
        assert failures(model, x, groups) == {}


def test_inputs_made_in_inference_mode_are_copied():
    with torch.inference_mode():
        example = Example.of((torch.randn(2, 6), {"mask": torch.ones(2)}))
    assert not example.inputs[0].is_inference()
    assert not example.inputs[1]["mask"].is_inference()


class Module(pl.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))

    def training_step(self, batch: Tensor, index: int = 0) -> Tensor:
        y = self.net(batch)
        return (y * (1 + self.trainer.current_epoch)).pow(2).mean()

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


def test_a_lightning_module_without_a_trainer():
    model = Module()
    assert failures(model, torch.randn(4, 6)) == {}
    assert model._trainer is None


def test_a_copy_of_a_lightning_module_knows_its_trainer():
    model = Module()
    trainer = pl.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False)
    model._trainer = trainer
    x = torch.randn(4, 6)
    example = Example(x, run=lambda module, batch: (module(batch), module.training_step(batch)))
    groups = analyse(model, example).groups
    assert [group.name for group in groups] == ["net.0"]
    assert failing_groups(model, groups, example) == {}
    assert model.trainer is trainer


# ---- words


class Gated(nn.Module):
    """A gated block on a residual stream: its products grow with the square of what they read."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.gate, self.up = nn.LayerNorm(16), nn.Linear(16, 24), nn.Linear(16, 24)
        self.down = nn.Linear(24, 16)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(x)
        return x + self.down(self.gate(y) * self.up(y))


def test_removed_channels_do_not_feed_each_other_in_deep_networks():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 16), *(Gated() for _ in range(10)), nn.LayerNorm(16), nn.Linear(16, 3))
    assert not failures(model, torch.randn(4, 6))


def test_no_groups_no_trial():
    assert failing_groups(nn.Linear(2, 2), (), Example.of(torch.randn(3))) == {}


def test_verified_takes_the_failures_out_and_warns():
    model, x = Pair(lambda y: y.view(-1, 8)), torch.randn(4, 6)
    example = Example.of(x)
    structure = analyse(model, example)
    with pytest.warns(UserWarning, match=r"(?s)not pruned.*\n  b: without some of its channels"):
        checked = verified(model, structure, example)
    assert [group.name for group in checked.groups] == ["a"]
    assert "written as a number" in checked.refused["b"]
    assert checked.macs == structure.macs
    assert [group.name for group in structure.groups] == ["a", "b"]


def test_failures_in_words():
    text = describe_failures({"a": "it does not run", "b.0": "it leaks"})
    assert text.splitlines()[1:] == ["  a: it does not run", "  b.0: it leaks"]


class SameWidth(nn.Module):
    """Views what one layer makes by the width of another: both have to lose as many channels."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.head = nn.Linear(4, 12), nn.Linear(4, 12), nn.Linear(12, 2)
        self.other = nn.Linear(12, 2)

    def forward(self, x: Tensor) -> Tensor:
        a = self.a(x).relu()
        return self.head(a) + self.other(self.b(x).relu().reshape(len(x), a.shape[1]))


def test_groups_that_have_to_lose_as_many_are_pruned_as_one():
    """If every group lost the same fraction in a trial, nobody would see that they must."""
    model, x = SameWidth().double(), torch.randn(5, 4, dtype=torch.float64)
    assert set(failing_groups(model, analyse(model, x).groups, Example.of(x))) == {"a", "b"}
    before = copy.deepcopy(model)
    plan = prune(model, x, 0.4, method="magnitude")
    (group,) = plan.groups
    assert group.method == "magnitude (L2), as many as of b"
    assert model.a.out_features == model.b.out_features < 12
    kept = {change.name: change.kept for change in plan.changes}
    with torch.no_grad():
        for name in ("head.weight", "other.weight"):
            gone = torch.tensor([place for place in range(12) if place not in kept[name][1]])
            before.get_parameter(name).index_fill_(1, gone, 0.0)
    torch.testing.assert_close(model(x), before(x), rtol=0, atol=1e-12)
    assert kept["head.weight"][1].tolist() != kept["other.weight"][1].tolist()  # each its own


def test_classes_that_are_unlike_the_others_go_in_one_trial_and_stay_in_another():
    halves = tuple((number, number + 6) for number in range(5))
    group = ChannelGroup("a", (Member("w", 0, "producer", one_each(6)), Member("v", 1, "consumer", (*halves, (5,)))))
    plain = ChannelGroup("b", (Member("u", 0, "producer", one_each(6)),))
    assert unlike_classes(group) == {5}
    assert unlike_classes(plain) == set()
    assert 5 in removed_classes([group, plain], unlike=True)["a"]
    assert 5 not in removed_classes([group, plain], unlike=False)["a"]


def test_two_halves_that_a_slice_cuts_to_an_odd_width_stay():
    class Ghost(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.out, self.first, self.last = 21, nn.Linear(6, 11), nn.Linear(21, 3)

        def forward(self, x: Tensor) -> Tensor:
            x = self.first(x)
            return self.last(torch.cat([x, x.tanh()], 1)[:, : self.out])

    for seed in range(3):
        torch.manual_seed(seed)
        model, x = Ghost(), torch.randn(4, 6)
        with pytest.raises(ValueError, match="channels that can be pruned"):
            prune(model, x, 0.3)
        model(x)


def test_every_group_loses_another_fraction_in_a_trial():
    groups = [ChannelGroup(str(number), (Member("w", 0, "producer", one_each(12)),)) for number in range(6)]
    assert sorted(map(len, removed_classes(groups).values())) == [1, 2, 3, 4, 5, 6]


class Flat(nn.Module):
    """Attention over fresh weights so small that it takes the mean, of however many heads of four dimensions."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v, self.o = (nn.Linear(12, 16, bias=False) for _ in range(4))
        self.o = nn.Linear(16, 12)
        for parameter in self.parameters():
            nn.init.normal_(parameter, std=1e-4)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (part(x).view(*x.shape[:2], -1, 4).transpose(1, 2) for part in (self.q, self.k, self.v))
        return self.o(((q @ k.transpose(-1, -2)).softmax(-1) @ v).transpose(1, 2).flatten(2))


def test_small_weights_do_not_hide_wrong_heads():
    """Four heads of three dimensions would be viewed as three of four."""
    model, x = Flat(), torch.randn(2, 5, 12)
    groups = analyse(model, x, heads="within").groups
    assert [group.size for group in groups] == [4, 4]
    assert tried_groups(model, groups, Example.of(x))[1].keys() == {"q", "v"}


class _NoGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx, grad: Tensor) -> Tensor:
        raise RuntimeError("this network is for inference only")


class Literal(nn.Module):
    """A width in the code, between functions of several kinds."""

    def __init__(self, after=lambda y: y, wrap=lambda function, x: function(x)) -> None:
        super().__init__()
        self.first, self.mid, self.last = nn.Linear(6, 8), nn.Linear(8, 8), nn.Linear(8, 2)
        self.after, self.wrap = after, wrap

    def block(self, x: Tensor) -> Tensor:
        y = self.mid(self.first(x).relu().view(-1, 8)).view(-1, 2, 1, 8)
        return functional.scaled_dot_product_attention(y, y, y).flatten(1, 2)[:, 0]

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.after(self.wrap(self.block, x)))


CHECKPOINTED = {"wrap": lambda function, x: torch.utils.checkpoint.checkpoint(function, x, use_reentrant=False)}


@pytest.mark.parametrize("options", [{"after": _NoGradient.apply}, CHECKPOINTED], ids=["no gradient", "checkpointed"])
def test_what_failed_stays_so_whatever_the_gradient_does(options):
    """Whether channels have any influence is asked of the gradient, and of the outputs where there is none."""
    model, x = Literal(**options), torch.randn(4, 6)
    assert failures(model, x).keys() == {"first"}


class TrainingOnly(nn.Module):
    def __init__(self, dropout: float = 0.0) -> None:
        super().__init__()
        self.first, self.last, self.dropout = nn.Linear(6, 8), nn.Linear(8, 2), dropout

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x).relu()
        if self.training and not self.dropout:
            y = y.view(-1, 8)
        return self.last(functional.dropout(y, self.dropout, self.training) + 0 * torch.randn_like(y))


def test_groups_are_tried_in_training_mode_as_well():
    assert failures(TrainingOnly(), torch.randn(4, 6))["first"].startswith("in training mode, without some of its")


def test_random_numbers_in_training_are_no_reason():
    """Fewer channels draw fewer random numbers, so that all that follow are others."""
    assert failures(TrainingOnly(dropout=0.5), torch.randn(4, 6)) == {}


@pytest.mark.parametrize("value", [0, 3])
def test_equal_inputs_are_made_different(value):
    generator = torch.Generator().manual_seed(0)
    other = Example.of((torch.full((2, 9), value), torch.zeros(2, 4), torch.ones(2, 9, dtype=torch.long)))
    tokens, floats, mask = other.other(generator).inputs
    assert set(tokens.unique().tolist()) == {0, value or 1}
    assert floats.std() > 0.3
    assert mask.all()


def test_gradients_are_enabled_afterwards_as_before():
    model, x = make("mlp")
    groups = find_groups(model, x)
    failures(model, x, groups)
    assert torch.is_grad_enabled()
    with torch.no_grad():
        failures(model, x, groups)
        assert not torch.is_grad_enabled()


def test_where_outputs_are_no_numbers_no_attribute_is_to_blame():
    class Broken(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(4, 8), nn.Linear(8, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.b(self.a(x).relu()) * float("nan")

    model, x = Broken(), torch.randn(2, 4)

    _, failures = tried_groups(model, analyse(model, x).groups, Example.of(x))

    assert failures == {"a": "no output is a finite number, so that nothing can be compared"}


@pytest.mark.parametrize("name", ["weight_standardisation", "scaled_weight_standardisation", "dora"])
def test_weights_that_are_standardised_are_tried_with_the_statistics_of_what_stays(name):
    entry = ZOO[f"traps/{name}"]
    model, inputs = build(entry), entry.inputs(torch.Generator().manual_seed(0))
    groups = analyse(model, inputs).groups
    assert any(group.standardised for group in groups)
    assert failing_groups(model, groups, Example.of(inputs)) == {}
