"""Rules belong to operators: those of other namespaces are refused by their true names until a rule is registered."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_coreset import coreset
from lightning_coreset.structure import (
    Contraction,
    Elementwise,
    Example,
    Movement,
    OpCall,
    Pinned,
    Propagation,
    Step,
    StepKind,
    TensorInfo,
    analyse,
    register_activation,
    register_rule,
)
from lightning_coreset.verification import failing_groups

HOUSE = torch.library.Library("house", "DEF")
"""Operators named like aten's, which do something else."""

Kernel = Callable[..., Any]


def define(schema: str, kernel: Kernel) -> None:
    HOUSE.define(schema)
    HOUSE.impl(schema.partition("(")[0], kernel, "CPU")


def write(target: Tensor, values: Tensor) -> None:
    target.copy_(values)


def swap_halves(x: Tensor) -> Tensor:
    return torch.cat(x.chunk(2, 1)[::-1], 1)


define("relu(Tensor x) -> Tensor", lambda x: torch.relu(x).square())
define("relu.scaled(Tensor x, float factor) -> Tensor", lambda x, factor: torch.relu(x) * factor)
define("relu_(Tensor(a!) x) -> ()", lambda x: write(x, x.relu().square()))
define("softcap(Tensor x, float cap) -> Tensor", lambda x, cap: cap * torch.tanh(x / cap))
define("add(Tensor x, Tensor y) -> Tensor", lambda x, y: x + y.flip(-1))
define("slope(Tensor x, Tensor slope) -> Tensor", lambda x, slope: torch.where(x > 0, x, slope * x))
define("sum(Tensor x) -> Tensor", lambda x: x.cumsum(1))
define("transpose(Tensor x) -> Tensor", swap_halves)
define("reverse(Tensor x, int[] dims) -> Tensor", lambda x, dims: x.flip(dims))
define("linear(Tensor x, Tensor weight, Tensor bias) -> Tensor", lambda x, weight, bias: F.linear(x, weight, bias))
define("pointwise(Tensor x, Tensor weight, Tensor bias) -> Tensor", lambda x, w, b: F.conv2d(x, w[..., None, None], b))
define("standardize(Tensor x) -> Tensor", lambda x: x - x.mean(-1, keepdim=True))
define("halves(Tensor x) -> (Tensor, Tensor)", lambda x: tuple(one.clone() for one in x.chunk(2, 1)))
define("store(Tensor x, Tensor(a!) out) -> ()", lambda x, out: write(out, x))
define("gain(float gain, Tensor x) -> Tensor", lambda gain, x: gain * torch.relu(x))
define("cap3(Tensor x, float[] gains) -> Tensor", lambda x, gains: gains[0] * torch.relu(x))
define("both(Tensor x) -> (Tensor, Tensor)", lambda x: (torch.relu(x), 7 * torch.relu(x)))
define("softplus2(Tensor x, float beta=1.0) -> Tensor", lambda x, beta=1.0: F.softplus(x, beta))
HOUSE.define("composite(Tensor x) -> Tensor")
HOUSE.impl("composite", torch.tanh, "CompositeImplicitAutograd")
house = torch.ops.house


def save(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def derivatives(ctx: Any, grad: Tensor) -> tuple[Tensor, ...]:
    with torch.enable_grad():
        inputs = [tensor.detach().requires_grad_() for tensor in ctx.saved_tensors]
        return torch.autograd.grad(F.linear(*inputs), inputs, grad)


torch.library.register_autograd("house::linear", derivatives, setup_context=save, lib=HOUSE)


class Net(nn.Module):
    """Two layers with something between them."""

    def __init__(self, between: Callable[[Tensor], Tensor], size: int = 8) -> None:
        super().__init__()
        self.between, self.a, self.b = between, nn.Linear(4, 8), nn.Linear(size, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.between(self.a(x)))


def found(model: nn.Module, *shape: int) -> dict[str, int]:
    """The groups of a network with their sizes; all of them are right."""
    x = torch.randn(shape or (3, 4))
    groups = analyse(model, x).groups
    with torch.no_grad():  # these operators have no derivatives
        assert failing_groups(model, list(groups), Example.of(x)) == {}
    return {group.name: group.size for group in groups}


def steps(model: nn.Module) -> list[str]:
    (group,) = analyse(model, torch.randn(3, 4)).groups
    (path,) = group.paths
    return [step.op for step in path.steps]


def reason(model: nn.Module) -> str:
    structure = analyse(model, torch.randn(3, 4))
    assert structure.groups == ()
    return structure.refused["a"]


# ---- without a rule


@pytest.mark.parametrize(
    ("between", "name"),
    {
        "named like an elementwise one": (house.relu, "house::relu"),
        "an overload": (lambda x: house.relu(x, 2.0), "house::relu.scaled"),
        "an in-place twin": (lambda x: (house.relu_(x), x)[1], "house::relu_"),
        "named like a movement": (house.transpose, "house::transpose"),
        "named like a reduction": (house.sum, "house::sum"),
        "named like a sum": (lambda x: house.add(x, x), "house::add"),
        "several results": (lambda x: torch.cat(house.halves(x), 1), "house::halves"),
        "written into another tensor": (lambda x: (out := x.new_zeros(3, 8), house.store(x, out))[0], "house::store"),
    }.values(),
)
def test_another_namespace_is_refused_by_its_true_name(between, name):
    assert reason(Net(between)) == (
        f"enters an operator without a rule ({name}; lightning_coreset.structure.register_rule adds one)"
    )


def test_made_of_known_operators_is_seen_through():
    class Doubled(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            return x.relu()

        @staticmethod
        def backward(ctx: Any, grad: Tensor) -> Tensor:
            return grad

    assert steps(Net(house.composite)) == ["tanh"]
    assert steps(Net(Doubled.apply)) == ["relu"]


def test_functions_of_higher_order_operators_are_followed_and_their_operands_blocked():
    class Branches(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.inner, self.b, self.c = nn.Linear(4, 8), nn.Linear(8, 6), nn.Linear(6, 8), nn.Linear(8, 2)

        def forward(self, x: Tensor) -> Tensor:
            hidden = self.a(x)
            inside = torch.cond(x.sum() > -99, self.branch, lambda hidden: hidden.tanh(), (hidden,))
            return self.c(inside)

        def branch(self, hidden: Tensor) -> Tensor:
            return self.b(self.inner(hidden).relu())

    try:
        structure = analyse(Branches(), torch.randn(3, 4))
    except NotImplementedError as error:
        assert "no rule registered for HOP" in str(error)  # noqa: PT017 - torch's own words
        pytest.skip("this torch does not show higher-order operators to a dispatch mode")
    assert [(group.name, group.size) for group in structure.groups] == [("inner", 6)]
    assert structure.refused["a"] == structure.refused["b"] == "enters an operator that is given functions (cond)"


# ---- with a rule


@pytest.fixture
def registered() -> Iterator[Callable[..., Any]]:
    with ExitStack() as stack:
        yield lambda *args, **kwargs: stack.enter_context(register_rule(*args, **kwargs))


def test_elementwise(registered):
    registered(house.relu, Elementwise())
    assert found(Net(house.relu)) == {"a": 8}
    assert steps(Net(house.relu)) == ["house::relu"]
    assert steps(Net(lambda x: house.relu(x, 2.0))) == ["house::relu.scaled"]


def test_elementwise_in_place(registered):
    registered(house.relu_, Elementwise())
    between = lambda x: (house.relu_(x), x)[1]  # noqa: E731
    assert found(Net(between)) == {"a": 8}
    assert steps(Net(between)) == ["house::relu_"]


def test_elementwise_with_a_parameter_that_is_cut_along(registered):
    class Slope(nn.Module):
        def __init__(self, size: int) -> None:
            super().__init__()
            self.slope = nn.Parameter(torch.rand(size))

        def forward(self, x: Tensor) -> Tensor:
            return house.slope(x, self.slope)

    registered(house.slope, Elementwise())
    assert found(Net(Slope(8))) == {"a": 8}
    assert "meets a tensor that cannot be cut (house::slope" in reason(Net(lambda x: house.slope(x, torch.rand(8))))


@pytest.mark.parametrize(
    ("op", "between"),
    [
        (house.halves, lambda x: torch.cat(house.halves(x), 1)),
        (house.store, lambda x: (out := x.new_zeros(3, 8), house.store(x, out))[0]),
    ],
)
def test_what_is_not_elementwise_is_not_believed(registered, op, between):
    registered(op, Elementwise())
    assert "in a form that cannot be followed" in reason(Net(between))


def test_movement_like_an_operator_of_aten(registered):
    registered(house.reverse, Movement(like=torch.ops.aten.flip))
    assert found(Net(lambda x: house.reverse(x, [1]))) == {"a": 8}
    assert steps(Net(lambda x: house.reverse(x, [1]))) == []


def test_movement_has_the_limits_of_what_it_is_like(registered):
    registered(house.transpose, Movement(like=lambda labels: swap_halves(labels), pinned=(1,)))
    assert reason(Net(house.transpose)) == "is moved at fixed positions (house::transpose)"
    registered(house.reverse, Movement(like=torch.ops.aten.roll))  # whose second argument are shifts
    assert "is rearranged" in reason(Net(lambda x: house.reverse(x, [1]))) or "is taken apart" in reason(
        Net(lambda x: house.reverse(x, [1]))
    )


def test_halves_that_are_swapped_lose_the_same_channels(registered):
    registered(house.transpose, Movement(like=swap_halves, equal_chunks={1: 2}))
    assert found(Net(house.transpose)) == {"a": 4}


def test_the_self_check_finds_a_wrong_rule(registered):
    registered(house.transpose, Movement(like=swap_halves))
    x = torch.randn(3, 4)
    model = Net(house.transpose)
    groups = list(analyse(model, x).groups)
    assert set(failing_groups(model, groups, Example.of(x))) == {"a"}


def test_labels_that_do_not_fit_the_result_are_refused(registered):
    registered(house.transpose, Movement(like=lambda labels: labels[:, :4]))
    assert "in a form that cannot be followed" in reason(Net(house.transpose))


class Fused(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return house.linear(x, self.weight, self.bias)


@pytest.mark.parametrize("shape", [(3, 4), (3, 5, 4), (4,)])
def test_contraction(registered, shape):
    registered(house.linear, Contraction("...k,mk->...m", weight=1, bias=2))
    model = nn.Sequential(Fused(4, 8), nn.ReLU(), Fused(8, 2))
    assert found(model, *shape) == {"0": 8}
    (group,) = analyse(model, torch.randn(shape)).groups
    (path,) = group.paths
    assert (path.producer.weight, path.producer.bias, path.consumer.weight) == ("0.weight", "0.bias", "2.weight")
    assert (path.producer.in_dim, path.producer.out_dim) == (1, 0)


def test_contraction_whose_channels_are_not_last(registered):
    class Pointwise(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return house.pointwise(x, self.weight, self.bias)

    registered(house.pointwise, Contraction("bkhw,mk->bmhw", weight=1, bias=2))
    model = nn.Sequential(Pointwise(3, 8), nn.ReLU(), nn.Conv2d(8, 2, 1))
    assert found(model, 2, 3, 4, 4) == {"0": 8}
    (group,) = analyse(model, torch.randn(2, 3, 4, 4)).groups
    assert [member.name for member in group.members] == ["0.weight", "0.bias", "2.weight"]


def test_contraction_with_a_weight_that_is_computed_is_refused(registered):
    registered(house.linear, Contraction("...k,mk->...m", weight=1, bias=2))
    computed = Net(lambda x: house.linear(x, x[:1].expand(8, 8), torch.zeros(8)))
    assert "its weight is computed from the input" in reason(computed)


def test_pinned(registered):
    registered(house.standardize, Pinned(dims=(-1,)))
    assert reason(Net(house.standardize)) == "is read at fixed positions (house::standardize)"

    class OverPlaces(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return house.standardize(x)

    model = nn.Sequential(nn.Conv2d(3, 8, 1), OverPlaces(), nn.Conv2d(8, 2, 1))
    assert found(model, 2, 3, 4, 4) == {"0": 8}
    registered(house.standardize, Pinned(), override=True)
    assert analyse(model, torch.randn(2, 3, 4, 4)).groups == ()


def test_a_function_of_ones_own(registered):
    """An elementwise operator by what is documented of the engine."""

    def rule(propagation: Propagation, call: OpCall) -> None:
        (source,), (result,) = call.tensors, call.results
        labels = propagation.info(source).channel_labels
        paths = propagation.producer_paths([source], Step(call.name))
        propagation.set_info(result, TensorInfo(labels, producer_paths=paths))

    registered(house.relu, rule)
    assert found(Net(house.relu)) == {"a": 8}
    assert steps(Net(house.relu)) == ["house::relu"]


# ---- the registration


def test_registrations_are_taken_back():
    plain = reason(Net(house.relu))
    handle = register_rule(house.relu, Elementwise())
    assert found(Net(house.relu)) == {"a": 8}
    handle.remove()
    handle.remove()
    assert reason(Net(house.relu)) == plain
    with pytest.raises(ArithmeticError), register_rule(house.relu, Elementwise()):
        raise ArithmeticError
    assert reason(Net(house.relu)) == plain


def test_the_rule_of_an_overload_is_of_no_other_overload(registered):
    registered(house.relu.scaled, Elementwise())
    assert found(Net(lambda x: house.relu(x, 2.0))) == {"a": 8}
    assert "an operator without a rule (house::relu" in reason(Net(house.relu))


def test_what_is_overridden_counts_again():
    with pytest.raises(ValueError, match=r"Expected an operator without a rule but aten\.relu has one"):
        register_rule(torch.ops.aten.relu, Pinned())
    first = register_rule(torch.ops.aten.relu, Pinned(), override=True)
    second = register_rule(torch.ops.aten.relu, Elementwise(), override=True)
    first.remove()  # in any order
    assert found(Net(torch.relu)) == {"a": 8}
    second.remove()
    assert steps(Net(torch.relu)) == ["relu"]
    with register_rule(house.relu, Elementwise()), pytest.raises(ValueError, match=r"house\.relu has one"):
        register_rule(house.relu, Elementwise())


@pytest.mark.parametrize(
    ("make", "error", "words"),
    [
        (lambda: register_rule(torch.relu, Elementwise()), TypeError, "Expected an operator such as torch.ops.aten"),
        (lambda: register_rule("house::relu", Elementwise()), TypeError, "Expected an operator such as torch.ops"),
        (lambda: register_rule(house.relu, Elementwise), TypeError, "Expected a rule for house.relu such as Elem"),
        (lambda: register_rule(house.relu, "elementwise"), TypeError, "Expected a rule for house.relu such as Elem"),
        (lambda: Movement(like="flip"), TypeError, "Expected like to be an operator or a function"),
        (
            lambda: Movement(like=house.reverse),
            ValueError,
            "Expected like to be an operator of aten that moves elements",
        ),
        (lambda: Movement(torch.ops.aten.relu), ValueError, "that moves elements but got aten.relu"),
        (lambda: Movement(like=torch.ops.aten.squeeze), ValueError, "Expected one overload of aten.squeeze but"),
        (lambda: Movement(swap_halves, equal_chunks={1: 1}), ValueError, "Expected at least 2 equal chunks"),
        (lambda: Contraction("nk,mk->nm", weight=2), ValueError, "Expected two operands, one of them the weight"),
        (lambda: Contraction("nk,mk->nm", bias=1), ValueError, "Expected two operands, one of them the weight"),
        (lambda: Pinned(dims=("x",)), ValueError, "Expected dims to be whole numbers or None"),
        *(
            (
                lambda notation=notation: Contraction(notation),
                ValueError,
                "Expected a product of two operands in einsum",
            )
            for notation in (
                "nk,mk",
                "nk->n",
                "nk,mk,m->nm",
                "nk,mk->n",
                "nn,mn->nm",
                "nk,mk->nmq",
                "...k,mk->m",
                "n1,m1->nm",
            )
        ),
    ],
)
def test_wrong_arguments_are_errors_in_words(make, error, words):
    with pytest.raises(error, match=words):
        make()


# ---- aten's own operators in forms that are not the plain one


class Consumed(nn.Module):
    """The last layer is a product of one's own."""

    def __init__(self, product: Callable[[nn.Module, Tensor], Tensor]) -> None:
        super().__init__()
        self.a, self.b, self.product = nn.Linear(4, 8), nn.Linear(8, 2), product

    def forward(self, x: Tensor) -> Tensor:
        return self.product(self, self.a(x))


@pytest.mark.parametrize(
    ("between", "expected"),
    {
        "clamped by a tensor": (lambda x: torch.clamp(x, max=torch.tensor(0.5)), [StepKind.WRITTEN_OUT]),
        "clamped from below by a tensor": (lambda x: x.clamp_min(torch.tensor(0.5)), [StepKind.WRITTEN_OUT]),
        "clamped by a number": (lambda x: torch.clamp(x, max=0.5), ["clamp"]),
        "rounded": (lambda x: x.int().float(), ["_to_copy", "_to_copy"]),
        "other precision": (lambda x: x.double().float(), []),
        "bits": (lambda x: x.view(torch.int32).view(torch.float32), ["view", "view"]),
        "ones": (torch.ones_like, ["ones_like"]),
        "filled": (lambda x: x.fill_(1.0), ["fill"]),
        "through a view": (lambda x: (x.view(-1).relu_(), x)[1], [StepKind.WRITTEN]),
        "a view of what is written": (lambda x: (x.view(3, -1), x.relu_())[0], [StepKind.WRITTEN]),
        "a copy of what is written": (lambda x: (x.clone(), x.relu_())[0], []),
    }.values(),
)
def test_the_steps_are_what_changes_values(between, expected):
    model = Net(between)
    assert found(model) == {"a": 8}
    assert steps(model) == expected


@pytest.mark.parametrize(
    ("product", "expected"),
    {
        "scaled": (lambda net, h: torch.addmm(net.b.bias, h, net.b.weight.t(), alpha=2), [StepKind.DERIVED_WEIGHT]),
        "scaled bias": (lambda net, h: torch.addmm(net.b.bias, h, net.b.weight.t(), beta=2), [StepKind.DERIVED_WEIGHT]),
        "plain": (lambda net, h: torch.addmm(net.b.bias, h, net.b.weight.t()), []),
        "weight written in place": (
            lambda net, h: (w := net.b.weight.t().clone(), w.mul_(2), h @ w)[2],
            [StepKind.DERIVED_WEIGHT],
        ),
    }.values(),
)
def test_a_product_is_a_layers_only_as_it_is(product, expected):
    assert steps(Consumed(product)) == expected


def test_a_bias_that_is_computed_is_not_left_out():
    class Computed(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return F.linear(x, self.weight, 2 * self.bias)

    model = nn.Sequential(Computed(4, 8), nn.ReLU(), nn.Linear(8, 2))
    assert found(model) == {"0": 8}
    assert steps(model) == [StepKind.DERIVED_WEIGHT, "relu"]


def test_batch_norm_by_the_batch_in_any_mode():
    class ByBatch(nn.BatchNorm1d):
        def forward(self, x: Tensor) -> Tensor:
            return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, training=True)

    assert steps(Net(ByBatch(8))) == [StepKind.NORMALIZATION]
    assert steps(Net(nn.BatchNorm1d(8))) == [StepKind.BATCH_NORM]


def test_padding_by_other_numbers_than_zero():
    class Padded(nn.Module):
        def __init__(self, value: float) -> None:
            super().__init__()
            self.a, self.b, self.value = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 2, 1), value

        def forward(self, x: Tensor) -> Tensor:
            return self.b(F.pad(self.a(x), [1, 1], value=self.value))

    for value, expected in ((0.0, []), (1.0, ["constant_pad_nd"])):
        (group,) = analyse(Padded(value), torch.randn(2, 3, 4, 4)).groups
        assert [step.op for step in group.paths[0].steps] == expected


def test_an_argument_out_is_refused():
    def into(x: Tensor) -> Tensor:
        room = x.new_zeros(3, 16)
        torch.ops.aten.flip(x, [1], out=room[:, :8])
        return room[:, :8]

    assert reason(Net(into)) == "is written into an argument out (aten.flip)"


def test_transposing_in_place_leaves_other_tensors_labels_alone():
    class Transposed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(4, 8), nn.Linear(8, 2)

        def forward(self, x: Tensor) -> Tensor:
            hidden = self.a(x)
            copy = hidden.clone()
            copy.t_()
            return self.b(hidden + copy.t())

    assert found(Transposed()) == {"a": 8}


def test_a_slice_at_an_unaligned_position_is_no_piece():
    class Sliced(nn.Module):
        def __init__(self, start: int) -> None:
            super().__init__()
            self.a, self.b, self.c = nn.Linear(6, 12), nn.Linear(4, 3), nn.Linear(12, 3)
            self.start = start

        def forward(self, x: Tensor) -> Tensor:
            hidden = self.a(x).relu()
            return self.b(hidden[:, self.start : self.start + 4]) + self.c(hidden)

    (group,) = analyse(Sliced(4), torch.randn(2, 6)).groups
    assert group.size == 4
    structure = analyse(Sliced(1), torch.randn(2, 6))
    assert (structure.groups, structure.refused["a"]) == ((), "is cut into unequal pieces (aten.slice)")


# ---- activations


def test_an_activation_is_elementwise_and_known_to_the_mathematics():
    with register_activation(house.relu.default, lambda z: torch.relu(z).square(), turning_points=()):
        activation = coreset.find_activation(*steps(Net(house.relu)))
        assert activation is not None
        assert activation.function(torch.tensor([-1.0, 3.0]).double()).tolist() == [0.0, 9.0]
        assert found(Net(house.relu)) == {"a": 8}
        assert "without a rule" in reason(Net(lambda x: house.relu(x, 2.0)))
    assert coreset.find_activation("house::relu") is None
    assert "without a rule" in reason(Net(house.relu))


def test_the_numbers_of_an_activation_are_passed_on():
    with register_activation(house.softcap, lambda z, cap=1.0: cap * torch.tanh(z / cap)):
        (group,) = analyse(Net(lambda x: house.softcap(x, 3.0)), torch.randn(3, 4)).groups
        (step,) = group.paths[0].steps
        activation = coreset.find_activation(step.op, step.args)
        assert activation is not None
        assert float(activation.function(torch.tensor(1e3).double())) == 3.0


def test_an_activation_of_two_tensors_is_no_scalar_function():
    with register_activation(house.slope, torch.relu):
        (step,) = steps(Net(lambda x: house.slope(x, torch.tensor(0.5))))
        assert coreset.find_activation(step) is None


@pytest.mark.parametrize(
    ("make", "error", "words"),
    [
        (lambda: register_activation(house.relu, torch.relu), ValueError, "Expected one overload of house.relu but"),
        (lambda: register_activation(house.sum, "relu"), TypeError, "Expected a function of a tensor"),
        (
            lambda: register_activation(house.sum, torch.relu, lipschitz=-1),
            ValueError,
            "Expected the lipschitz constant",
        ),
    ],
)
def test_activations_that_are_refused_leave_nothing_behind(make, error, words):
    with pytest.raises(error, match=words):
        make()
    assert coreset.find_activation("house::sum") is None
    assert "an operator without a rule (house::sum" in reason(Net(house.sum))


@pytest.mark.parametrize(
    "between",
    {
        "a second tensor": lambda x: house.slope(x, torch.tensor(0.5)),
        "a number before the tensor": lambda x: house.gain(7.0, x),
        "a list of numbers": lambda x: house.cap3(x, [7.0, 1.0]),
        "several results": lambda x: house.both(x)[1],
    }.values(),
)
def test_a_function_registered_for_the_mathematics_is_that_of_a_plain_call_only(registered, between):
    """The certificate would be that of another function."""
    names = ("slope", "gain", "cap3", "both")
    with ExitStack() as stack:
        for name in names:
            registered(getattr(house, name), Elementwise())
            stack.enter_context(coreset.register_activation(f"house::{name}", torch.relu, turning_points=()))
        (step,) = steps(Net(between))
        assert coreset.find_activation(step) is None


def test_numbers_that_are_defaults_are_no_numbers(registered):
    registered(house.softplus2, Elementwise())
    (group,) = analyse(Net(lambda x: house.softplus2(x, 1.0)), torch.randn(3, 4)).groups
    assert group.paths[0].steps == (Step("house::softplus2"),)
    (group,) = analyse(Net(lambda x: house.softplus2(x, 2.0)), torch.randn(3, 4)).groups
    assert group.paths[0].steps == (Step("house::softplus2", (2.0,)),)


def test_a_function_that_computes_something_else_is_refused():
    with pytest.raises(ValueError, match=r"computes what house.relu.default does but at .* the operator gives"):
        register_activation(house.relu.default, torch.relu, turning_points=())
    assert coreset.find_activation("house::relu") is None


def test_the_newest_rule_counts_whether_of_an_overload_or_of_the_operator(registered):
    registered(house.relu.default, Elementwise())
    with pytest.raises(ValueError, match="Expected an operator without a rule"):
        register_rule(house.relu, Pinned())
    with register_rule(house.relu, Pinned(), override=True):
        assert found(Net(house.relu)) == {}
    assert found(Net(house.relu)) == {"a": 8}


def test_an_activation_is_replaced_with_override():
    with register_activation(house.softplus2, lambda z: F.softplus(z)):
        with register_activation(house.softplus2, F.softplus, turning_points=(), override=True):
            assert coreset.find_activation("house::softplus2").turning_points == ()
        assert coreset.find_activation("house::softplus2").turning_points is None
