"""What the self-check costs: runs of the network, operations that modes see, and memory."""

from __future__ import annotations

import mmap
import weakref
from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from networks import make
from torch import Tensor, nn
from torch.nn import functional

from lightning_coreset import prune
from lightning_coreset._compat import DispatchMode
from lightning_coreset.state import FreedMemory, freed_memory
from lightning_coreset.structure import ChannelGroup, Example, Member, analyse, find_groups
from lightning_coreset.verification import (
    check,
    depthwise,
    failing_groups,
    runs,
    saved_activations,
    tried_groups,
    virtual,
)
from lightning_coreset.verification.concerned import WhereConcerned
from lightning_coreset.verification.layers_of_modes import LayeredMode
from lightning_coreset.verification.saved_activations import _packed
from lightning_coreset.verification.trial import Trial
from lightning_coreset.verification.twin import TwinRun
from lightning_coreset.verification.virtual import VirtualWeights
from lightning_coreset.verification.ways import on_a_copy_without_weights, ways_for

RUNS: list[bool] = []


class Noted(nn.Module):
    """Two groups; whether it is in training mode is noted in every run."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.first, self.second = nn.Embedding(5, 6), nn.Linear(6, 12), nn.Linear(12, 9)
        self.last = nn.Linear(9, 2)

    def forward(self, x: Tensor) -> Tensor:
        RUNS.append(self.training)
        x = x if x.is_floating_point() else self.embed(x)
        return self.last(self.second(self.first(x).relu()).relu())


def runs_of_self_check(model: nn.Module, x: Tensor) -> int:
    groups = analyse(model, x).groups
    RUNS.clear()
    assert failing_groups(model, groups, Example.of(x)) == {}
    return len(RUNS)


def test_a_self_check_runs_the_network_twice_on_each_input_in_each_mode():
    """With all channels, in two versions at once, and without some: on the example and on another like it."""
    torch.manual_seed(0)
    assert runs_of_self_check(Noted(), torch.randn(4, 6)) == 2 * 2 * 2
    assert RUNS == [False, False] + [False, True, True] * 2  # the first run by itself


def test_an_example_of_tokens_is_not_tried_twice():
    torch.manual_seed(0)
    assert runs_of_self_check(Noted(), torch.randint(0, 5, (4, 3))) == 2 * 2


def test_runs_of_a_default_event():
    torch.manual_seed(0)
    model, x = Noted(), torch.randn(4, 6)
    RUNS.clear()
    prune(model, x, 0.3, self_check=False)
    without = len(RUNS)
    RUNS.clear()
    torch.manual_seed(0)
    prune(Noted(), x, 0.3)
    assert len(RUNS) == without + 8


class Counting(nn.Module):
    """A width that is written in the code."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.last = nn.Linear(6, 12), nn.Linear(12, 9), nn.Linear(9, 2)

    def forward(self, x: Tensor) -> Tensor:
        RUNS.append(self.training)
        return self.last(self.second(self.first(x).relu().reshape(-1, 12)).relu())


def test_what_fails_in_the_first_run_is_not_tried_in_the_others():
    torch.manual_seed(0)
    model, x = Counting().double(), torch.randn(4, 6, dtype=torch.float64)
    trial = Trial(model, Example.of(x))
    (group,) = (one for one in analyse(model, x).groups if one.name == "first")
    RUNS.clear()
    reason = trial.attempt([group])
    assert reason is not None
    assert len(RUNS) == 2  # in two versions at once, and without some channels
    RUNS.clear()
    assert trial.explained([group], reason) == reason
    assert len(RUNS) == 3  # and on the other inputs, which may show a weightier error


class Keeping(Noted):
    """Keeps a number of its last run, so that every run of a trial is repeated."""

    def forward(self, x: Tensor) -> Tensor:
        self.kept = x.sum()
        return super().forward(x)


def test_what_is_screened_runs_once():
    torch.manual_seed(0)
    model, x = Keeping().double(), torch.randn(4, 6, dtype=torch.float64)
    trial = Trial(model, Example.of(x))
    groups = analyse(model, x).groups
    RUNS.clear()
    with trial.screening():
        assert trial.attempt(groups) is None
    assert len(RUNS) == 2
    RUNS.clear()
    assert trial.attempt(groups) is None  # all of it again, twice in a row
    assert len(RUNS) == 2 * 4


def test_few_groups_are_tried_until_an_output_differs():
    """That takes fewer runs than a gradient, and less memory."""
    torch.manual_seed(0)
    model, x = Noted().double(), torch.randn(4, 6, dtype=torch.float64)
    trial = Trial(model, Example.of(x))
    groups = analyse(model, x).groups
    RUNS.clear()
    assert trial.without_effect(groups) == {}
    assert len(RUNS) == 1 + len(groups)


class Head(nn.Module):
    """Keeps its width as a number; in blocks, the second input of a trial needs another number than the first."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(6, 12), nn.Linear(12, 6)
        self.width = self.width_of_others = 12

    def forward(self, x: Tensor, known: Tensor) -> Tensor:
        width = self.width if torch.equal(x[0], known) else self.width_of_others
        return self.last(self.first(x).relu().reshape(-1, width))


class Heads(nn.Module):
    def __init__(self, known: Tensor) -> None:
        super().__init__()
        self.heads = nn.ModuleList(Head() for _ in range(4))
        self.register_buffer("known", known)

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([head(x, self.known) for head in self.heads]).sum(0)


def test_a_number_that_the_first_run_does_not_read_is_found_all_the_same():
    """Screening says that one number suffices; the trial of all groups in all runs does not."""
    torch.manual_seed(0)
    x = torch.randn(4, 6, dtype=torch.float64)
    model = Heads(x[0]).double()
    groups, failures = tried_groups(model, analyse(model, x).groups, Example.of(x))
    assert failures == {}
    for group in groups:
        path = group.name.rpartition(".")[0]
        assert {count.name for count in group.counts if count.module == path} >= {"width", "width_of_others"}


# ---- several errors at once


def planted(group: ChannelGroup, name: str, how: str) -> ChannelGroup:
    def change(member: Member) -> Iterator[Member]:
        if member.name != name:
            yield member
        elif how == "shifted":
            yield replace(member, index=member.index[1:] + member.index[:1])

    return replace(group, members=tuple(one for member in group.members for one in change(member)))


@pytest.mark.parametrize("how", ["shifted", "forgotten"])
def test_of_errors_in_several_groups_each_is_named(how):
    torch.manual_seed(0)
    layers = [nn.Linear(6, 10)]
    for _ in range(6):
        layers += [nn.ReLU(), nn.Linear(10, 10)]
    model, x = nn.Sequential(*layers), torch.randn(4, 6)
    groups = find_groups(model, x)
    assert len(groups) == 6
    wrong = {groups[1].name, groups[2].name, groups[5].name}
    names = {group.name: f"{group.name}.bias" for group in groups}
    found = [planted(group, names[group.name], how) if group.name in wrong else group for group in groups]
    assert set(failing_groups(model, found, Example.of(x))) == wrong


class OneModeEach(nn.Module):
    """A width that is written in the code for training mode, one for evaluation mode, and one for neither."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c, self.d = nn.Linear(6, 8), nn.Linear(8, 9), nn.Linear(9, 10), nn.Linear(10, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x).relu()
        x = self.b(x * (1.0 if self.training else 8.0 / x.shape[1])).relu()
        x = self.c(x).relu()
        return self.d(x * (10.0 / x.shape[1] if self.training else 1.0))


def test_errors_in_different_modes_are_each_named():
    torch.manual_seed(0)
    model, x = OneModeEach(), torch.randn(4, 6)
    found = failing_groups(model, analyse(model, x).groups, Example.of(x))
    assert found.keys() == {"a", "c"}
    assert found["c"].startswith("in training mode")
    assert not found["a"].startswith("in training mode")


# ---- modes


def test_an_operation_goes_through_one_mode_where_nothing_else_concerns_it(monkeypatch):
    """In two versions that was three times as many: every mode takes longer than most operations."""
    seen: list[str] = []
    for kind in (WhereConcerned, LayeredMode):
        own = kind.__torch_dispatch__

        def noted(self, func, types, args=(), kwargs=None, own=own):
            seen.append(func.overloadpacket.__name__)
            return own(self, func, types, args, kwargs)

        monkeypatch.setattr(kind, "__torch_dispatch__", noted)
    torch.manual_seed(0)
    model, x = Noted().double(), torch.randn(4, 6, dtype=torch.float64)
    trial = Trial(model, Example.of(x))
    groups = analyse(model, x).groups
    seen.clear()
    with trial.screening():
        trial.attempt(groups)
    operations = ["t", "addmm", "relu", "t", "addmm", "relu", "t", "addmm"]
    assert [name for name in seen if name in operations] == operations * 2


class Multiplications(DispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def concerns(self, function) -> bool:
        return function.overloadpacket is torch.ops.aten.mul

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.seen.append(func.overloadpacket.__name__)
        return func(*args, **(kwargs or {}))


def test_a_mode_sees_only_what_concerns_it():
    mode = Multiplications()
    with WhereConcerned([mode]):
        result = (torch.ones(2) + 1) * 3
    assert result.tolist() == [6, 6]
    assert mode.seen == ["mul"]


# ---- kernels


@pytest.mark.parametrize("ndim", [1, 2, 3])
@pytest.mark.parametrize(
    ("kernel", "stride", "padding", "dilation", "bias"),
    [(3, 1, 1, 1, True), (1, 2, 0, 1, False), (4, 2, 1, 1, True), (3, 1, 2, 2, False), (3, 3, 0, 2, True)],
)
def test_depthwise_convolutions_are_those_of_torch(monkeypatch, ndim, kernel, stride, padding, dilation, bias):
    own = {name: getattr(depthwise, name) for name in ("_forward", "_backward")}
    called: list[str] = []
    for name, function in own.items():
        monkeypatch.setattr(depthwise, name, lambda *args, n=name, f=function: (called.append(n), f(*args))[1])
    torch.manual_seed(0)
    made = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}[ndim]
    layer = made(5, 5, kernel, stride, padding, dilation, groups=5, bias=bias).double()
    x = torch.randn(2, 5, *(9, 8, 7)[:ndim], dtype=torch.float64, requires_grad=True)
    wanted = (x, *layer.parameters())
    expected = layer(x)
    weights = torch.randn_like(expected)
    derivatives = torch.autograd.grad(expected, wanted, weights)
    with depthwise.DepthwiseConvolutions():
        result = layer(x)
        its = torch.autograd.grad(result, wanted, weights)
    assert called == ["_forward", "_backward"]
    for one, other in zip((result, *its), (expected, *derivatives), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)
        assert one.stride() == other.stride()


def test_what_is_no_depthwise_convolution_of_fitting_shapes_is_left_to_torch(monkeypatch):
    monkeypatch.setattr(depthwise, "_forward", lambda *_: pytest.fail("not for this"))
    x, weight = torch.randn(2, 6, 5, 5, dtype=torch.float64), torch.randn(6, 1, 3, 3, dtype=torch.float64)
    with depthwise.DepthwiseConvolutions():
        functional.conv2d(x, torch.randn(6, 2, 3, 3, dtype=torch.float64), groups=3)
        functional.conv2d(x, torch.randn(12, 1, 3, 3, dtype=torch.float64), groups=6)
        functional.conv2d(x.float(), weight.float(), groups=6)
        functional.conv2d(x.repeat(1, 1, 8, 8), weight, groups=6)  # a large map
        functional.conv_transpose2d(x, weight, groups=6)
        for wrong in (weight[:5], weight.repeat(1, 2, 1, 1)):  # as where a layer was not cut
            with pytest.raises(RuntimeError):
                functional.conv2d(x, wrong, groups=6)


# ---- memory


@pytest.fixture
def every_weight_is_large(monkeypatch):
    monkeypatch.setattr(virtual, "MANY", 0)
    monkeypatch.setattr(virtual, "LARGE", 0)
    monkeypatch.setattr(check, "ways_for", lambda model: (on_a_copy_without_weights,))


@pytest.mark.skipif(not hasattr(mmap, "MAP_ANONYMOUS"), reason="memory cannot be reserved")
@pytest.mark.parametrize(("elements", "without_weights"), [(4096, True), (4097, False)])
def test_networks_from_a_size_on_are_tried_without_a_copy_of_their_weights(monkeypatch, elements, without_weights):
    monkeypatch.setattr(virtual, "MANY", elements)
    monkeypatch.setattr(virtual, "LARGE", 1024)
    model = nn.Sequential(nn.Linear(32, 64, bias=False), nn.ReLU(), nn.Linear(64, 32), nn.Linear(32, 2))
    assert (ways_for(model)[0] is on_a_copy_without_weights) == without_weights


@pytest.mark.usefixtures("every_weight_is_large")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", ["mlp", "vgg", "attention"])
def test_groups_pass_on_a_copy_without_weights(name, dtype):
    model, x = make(name, dtype)
    groups = find_groups(model, x)
    assert failing_groups(model, groups, Example.of(x)) == {}
    for group in groups:
        reader = group.by_role("consumer")[0]
        assert list(failing_groups(model, [planted(group, reader.name, "shifted")], Example.of(x))) == [group.name]


def test_what_is_kept_for_a_gradient_takes_two_bytes_a_number():
    """Not parameters, small tensors, and what bfloat16 cannot hold, whose derivatives would be no numbers."""
    large, wide = (torch.randn(64, 128, dtype=torch.float64) for _ in range(2))
    kept = [_packed(one) for one in (large, wide * 1e200, nn.Parameter(large), nn.Parameter(large).t(), large[0])]
    assert [version is None for _, version in kept] == [True, False, False, False, False]
    assert kept[0][0].nbytes * 4 == large.nbytes
    torch.manual_seed(0)
    model, x = Noted().double(), torch.randn(1024, 6, dtype=torch.float64)
    groups = analyse(model, x).groups
    trial = Trial(model, Example.of(x))
    bytes_of_activations: list[int] = []

    def noted(tensor: Tensor) -> tuple[Tensor, int | None]:
        result = _packed(tensor)
        if tensor.shape[0] == len(x):
            bytes_of_activations.append(result[0].nbytes)
        return result

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(saved_activations, "_packed", noted)
        trial._influence.look(trial._network.runs[0], groups)
    assert sum(bytes_of_activations) == 2 * len(x) * (2 * 12 + 2 * 9 + 6)  # each layer's input, and each ReLU's result
    assert trial.without_effect(groups) == {}


@pytest.mark.usefixtures("every_weight_is_large")
def test_memory_goes_back_to_the_system_while_a_large_network_is_tried(monkeypatch):
    returned: list[int] = []
    monkeypatch.setattr(freed_memory, "return_freed_memory", lambda: returned.append(1))
    monkeypatch.setattr(freed_memory, "_LARGE", 0)
    monkeypatch.setattr(freed_memory, "_MOST", 1 << 12)
    model, x = make("vgg")
    assert failing_groups(model, find_groups(model, x), Example.of(x)) == {}
    assert len(returned) > 8 * 4


@pytest.mark.usefixtures("every_weight_is_large")
def test_weights_of_such_a_copy_are_those_of_a_real_one():
    """Made anew by the same steps: noise, zeros, another precision, and fewer channels."""
    model, x = make("vgg")
    groups = find_groups(model, x)
    real, other = (Trial(make("vgg")[0], Example.of(x)), None)
    with on_a_copy_without_weights(model) as usable:
        other = Trial(usable.model, Example.of(x), virtual=usable.virtual)
        weights = usable.virtual
        assert weights is not None
        made = [one for one in other.model.parameters() if one in weights]
        assert len(made) == sum(one.dim() > 1 for one in model.parameters())
        for one, its in zip(real.run(), other.run(), strict=True):
            assert torch.equal(one, its)
        assert other.passes(groups)
        for one, its in zip(real.model.parameters(), other.model.parameters(), strict=True):
            assert torch.equal(one, its)
    for one in made:  # nothing was written there
        assert not one.any()


class Average(nn.Module):
    """A step that writes into a large weight."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(6, 8), nn.Linear(8, 2)
        self.average = nn.Linear(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            self.average.weight.sub_(0.1)
        return self.last(self.first(self.average(x)).relu())


def test_a_network_that_writes_into_its_weights_is_tried_on_a_real_copy(monkeypatch):
    monkeypatch.setattr(virtual, "MANY", 0)
    monkeypatch.setattr(virtual, "LARGE", 0)
    torch.manual_seed(0)
    model, x = Average(), torch.randn(4, 6)
    before = model.average.weight.detach().clone()
    groups = [group for group in analyse(model, x).groups if group.name == "first"]
    assert tried_groups(model, groups, Example.of(x))[1] == {}
    assert torch.equal(model.average.weight, before)


def test_virtual_weights_say_what_cannot_be_written():
    weights = VirtualWeights(nn.Linear(2, 3))
    with weights:
        one = weights.new((2, 3), torch.float32, lambda which: torch.ones(2, 3)[which])
        assert torch.equal(one.t()[1], torch.ones(2))
        one.mul_(torch.tensor(2.0))
        assert (one + 1).tolist() == [[3.0] * 3] * 2
        with pytest.raises(RuntimeError, match="writes into a weight that has no memory"):
            one.sub_(1)
        with pytest.raises(NotImplementedError, match="into a part of a weight that has no memory"):
            one[0].mul_(torch.tensor(2.0))
        with pytest.raises(RuntimeError, match="reads a weight that has no memory"):
            one.tolist()


# ---- what is looked up once


class States:
    """Counts how often it is looked up what a network holds."""

    def __init__(self, monkeypatch) -> None:
        self.count = 0
        own = runs.ModuleState

        def counted(model):
            self.count += 1
            return own(model)

        monkeypatch.setattr(runs, "ModuleState", counted)


class Remembering(Noted):
    """Keeps something of a run, or changes its weights in it."""

    def __init__(self, keeps: bool, writes: bool) -> None:
        super().__init__()
        self.keeps, self.writes, self.kept = keeps, writes, torch.zeros(())
        self.register_buffer("scale", torch.ones(9))

    def forward(self, x: Tensor) -> Tensor:
        if self.keeps:
            self.kept = x.sum().detach()
        if self.writes:
            with torch.no_grad():
                self.second.weight.mul_(0.5)
        return self.last(self.second(self.first(x).relu()).relu() * self.scale)


@pytest.mark.parametrize("keeps", [False, True])
def test_what_a_network_holds_is_looked_up_once_for_all_its_runs(monkeypatch, keeps):
    """And once for every run without some channels, of which nothing is kept."""
    torch.manual_seed(0)
    states, x = States(monkeypatch), torch.randn(4, 6, dtype=torch.float64)
    model = Remembering(keeps, writes=False).double()
    trial = Trial(model, Example.of(x))
    assert states.count == 1
    groups = analyse(model, x).groups
    with trial.screening():
        for _ in range(3):
            assert trial.attempt(groups) is None
    assert states.count == 1 + 3


def test_a_network_that_changes_its_weights_is_looked_at_anew(monkeypatch):
    torch.manual_seed(0)
    states, x = States(monkeypatch), torch.randn(4, 6, dtype=torch.float64)
    model = Remembering(False, writes=True).double()
    trial = Trial(model, Example.of(x))
    groups = [one for one in analyse(model, x).groups if one.name == "first"]
    expected = trial.run()
    for _ in range(2):
        assert trial.attempt(groups) is None
        for one, other in zip(trial.run(), expected, strict=True):
            assert torch.equal(one, other)
    assert states.count > 4


def test_a_group_with_which_a_network_does_not_run_is_tried_once(monkeypatch):
    """In the first trial of all groups: the second would raise the same."""
    torch.manual_seed(0)
    model, x = Counting().double(), torch.randn(4, 6, dtype=torch.float64)
    groups = tuple(one for one in analyse(model, x).groups if one.name == "first")
    trial = Trial(model, Example.of(x), prepare=False)
    assert not trial.passes(groups)
    trial.prepare()
    RUNS.clear()
    reason = trial.attempt_after(groups)
    assert reason is not None
    assert RUNS == []
    assert trial.attempt(groups) == reason


class OneModeOnly(Counting):
    """The width is read in training mode alone."""

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x).relu()
        return self.last(self.second(y.reshape(-1, 12) if self.training else y).relu())


class Drawing(Counting):
    """Draws random numbers."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + 0 * torch.rand(1, dtype=x.dtype)


@pytest.mark.parametrize("kind", [OneModeOnly, Drawing])
def test_it_is_tried_again_where_that_may_show_something_else(kind):
    torch.manual_seed(0)
    model, x = kind().double(), torch.randn(4, 6, dtype=torch.float64)
    groups = tuple(one for one in analyse(model, x).groups if one.name == "first")
    trial = Trial(model, Example.of(x), prepare=False)
    assert not trial.passes(groups)
    trial.prepare()
    before = trial.runner.count
    assert (trial.attempt_after(groups) is None) == (kind is OneModeOnly)
    assert trial.runner.count > before


class Gates(nn.Module):
    """Small results that their own derivatives need, beside large activations."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.gate = nn.Linear(6, 12), nn.Linear(12, 12)
        self.second, self.last = nn.Linear(12, 9), nn.Linear(9, 2)

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x).relu()
        return self.last(self.second(y * self.gate(y.mean(0, keepdim=True)).sigmoid()).relu())


def test_nothing_is_left_of_a_run_for_derivatives(monkeypatch):
    """Also where derivatives are asked of few parameters, so that backward does not go through all of it."""
    torch.manual_seed(0)
    model, x = Gates().double(), torch.randn(1024, 6, dtype=torch.float64)
    (group,) = (one for one in analyse(model, x).groups if one.name == "second")
    trial = Trial(model, Example.of(x))
    kept: list[weakref.ref[Tensor]] = []
    own = saved_activations._packed

    def noted(tensor: Tensor) -> tuple[Tensor, int | None]:
        result = own(tensor)
        if result[0].dtype is torch.bfloat16:
            kept.append(weakref.ref(result[0]))
        return result

    monkeypatch.setattr(saved_activations, "_packed", noted)
    trial._influence.look(trial._network.runs[0], [group])
    assert len(kept) > 2
    assert not any(one() is not None for one in kept)


def test_memory_goes_back_once_as_much_was_made_as_a_large_network_has(monkeypatch):
    returned: list[int] = []
    monkeypatch.setattr(freed_memory, "return_freed_memory", lambda: returned.append(1))
    monkeypatch.setattr(freed_memory, "_LARGE", 400)
    small, large = FreedMemory(nn.Linear(9, 9)), FreedMemory(nn.Linear(9, 10))  # 360 and 400 bytes
    for _ in range(10):
        small.count(torch.zeros(50))
    assert returned == []
    large.count(torch.zeros(50))
    assert returned == []
    large.count(torch.zeros(1))  # more than half of its bytes
    assert returned == [1]
    with large.sparing():
        large.count(torch.zeros(13))
        assert returned == [1, 1]
    assert returned == [1, 1, 1]


# ---- products of two versions


@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize("meet", [False, True])
def test_a_product_leaves_out_what_differs_in_both_of_its_factors(with_bias, meet):
    """As queries and keys that lose dimensions; a column in which a weight does not differ is read as it is."""
    torch.manual_seed(0)
    x, other = torch.randn(2, 6, 5, dtype=torch.float64)
    weight, its = torch.randn(4, 5, dtype=torch.float64), torch.randn(4, 5, dtype=torch.float64)
    other[:, 2:] = x[:, 2:]  # the first two differ
    column = 1 if meet else 3
    its[:, column + 1 :], its[:, :column] = weight[:, column + 1 :], weight[:, :column]
    mask = torch.arange(5) == column
    bias = torch.ones(4, dtype=torch.float64)
    twins = TwinRun([(x, lambda: other), (weight, lambda: its)], [], columns=[(weight, mask)])
    with LayeredMode([twins]):
        made = functional.linear(x, weight, bias if with_bias else None)
        twin = twins.twin(made)
    kept = ~mask if meet else torch.ones(5, dtype=torch.bool)
    assert twin is not None
    for found, one, two in ((made, x, weight), (twin, other, its)):
        expected = one[:, kept] @ two[:, kept].T + (bias if with_bias else 0)
        torch.testing.assert_close(found, expected)


def test_a_weight_that_was_written_into_is_compared(monkeypatch):
    torch.manual_seed(0)
    x, other = torch.randn(2, 6, 5, dtype=torch.float64)
    weight = torch.randn(4, 5, dtype=torch.float64)
    its = weight.clone()
    twins = TwinRun([(x, lambda: other), (weight, its.clone)], [], columns=[(weight, torch.zeros(5, dtype=torch.bool))])
    seen: list[bool] = []
    own = TwinRun._sums_over_all

    def noted(self, func, args, twins):
        found = own(self, func, args, twins)
        seen.extend([found] if func.overloadpacket is torch.ops.aten.mm else [])
        return found

    monkeypatch.setattr(TwinRun, "_sums_over_all", noted)
    with LayeredMode([twins]):
        functional.linear(x, weight)
        weight[:, 1].add_(x[:4, 1])
        functional.linear(x, weight)
    assert seen == [True, False]
