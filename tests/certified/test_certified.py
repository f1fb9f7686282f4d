"""Certified predictions: certified <= exact <= attacked, what is returned, and what is refused."""

import copy
import random

import pytest
import torch
from certified.searching import in_ball
from certified.zoo import network
from torch import Tensor, nn

from lightning_coreset import Agreement, certified_agreement, output_change, prune
from lightning_coreset.structure import register_activation


def classifiers(seed: int, classes: int = 3) -> tuple[nn.Module, nn.Module, Tensor]:
    torch.manual_seed(seed)
    first = nn.Sequential(nn.Linear(2, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, classes))
    with torch.no_grad():
        for weight in first.parameters():
            weight *= 2.5
        first[4].bias -= first(torch.randn(200, 2)).mean(0)  # so that all classes occur
    second = copy.deepcopy(first)
    with torch.no_grad():
        for weight in second.parameters():
            weight += 0.15 * weight.abs().mean() * torch.randn_like(weight)
    return first, second, torch.randn(12, 2)


def kept_classes(model: nn.Module, prediction: Tensor, x: Tensor, radius: float) -> Tensor:
    """Whether a fine sample of the ball is given this class everywhere, (n,)."""
    points = torch.cat([x.double()[None], in_ball(x, radius, 4000)])
    scores = copy.deepcopy(model).double()(points.flatten(0, 1)).unflatten(0, points.shape[:2])
    return (scores.argmax(2) == prediction).all(0)


@pytest.mark.parametrize("radius", [0.0, 0.05, 0.2, 0.8])
def test_between_what_is_certified_and_what_is_attacked_lies_the_truth(radius):
    proven = refuted = unknown = 0
    for seed in range(4):
        first, second, x = classifiers(seed)
        result = certified_agreement(first, second, x, radius=radius)
        found = result.per_sample
        assert torch.equal(found.prediction, first(x).argmax(1))
        for certified, attacked, model in (
            (found.certified, found.attacked, second),
            (found.original_certified, found.original_attacked, first),
        ):
            sampled = kept_classes(model, found.prediction, x, radius)
            assert not bool((certified & ~sampled).any())
            assert not bool((certified & ~attacked).any())
            # In two dimensions so many points find nearly all that there is, and so does the attack.
            assert int((attacked & ~sampled).sum()) <= 1
            proven, refuted = proven + int(certified.sum()), refuted + int((~attacked).sum())
            unknown += int((attacked & ~certified).sum())
        assert 0 <= result.certified <= result.attacked <= 1
        assert result.both_certified <= min(result.certified, result.original_certified)
        assert bool((found.found_change <= found.change).all())
        assert result.change == float(found.change.max()) >= result.found_change
    # Of 4 x 12 samples and two networks; if all were of one kind, nothing would be shown.
    least_proven, least_refuted, most_unknown = {
        0.0: (70, 5, 0),
        0.05: (60, 10, 3),
        0.2: (40, 25, 6),
        0.8: (15, 45, 16),
    }[radius]
    assert proven >= least_proven
    assert refuted >= least_refuted
    assert unknown <= most_unknown


def test_at_radius_zero_it_is_plain_agreement():
    first, second, x = classifiers(5)
    with torch.no_grad():
        second[4].bias += torch.tensor([0.3, 0.0, -0.3])
    agree = (first(x).argmax(1) == second(x).argmax(1)).double().mean()
    change = (first(x) - second(x)).abs().amax().detach()
    result = certified_agreement(first, second, x)
    assert 0 < float(agree) < 1
    assert result.certified == result.attacked == float(agree)
    assert result.original_certified == result.original_attacked == 1
    assert result.change == pytest.approx(float(change), rel=1e-5)
    assert result.found_change == pytest.approx(float(change), rel=1e-5)


def test_the_margin_of_a_linear_classifier_is_known():
    model = nn.Linear(2, 2, bias=False)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[1.0, 0.0], [-1.0, 0.0]]))
    x = torch.tensor([[0.5, 0.0], [-0.5, 3.0]])
    for radius, kept in ((0.499, 1.0), (0.501, 0.0)):
        result = certified_agreement(model, copy.deepcopy(model), x, radius=radius)
        assert result.certified == result.attacked == result.original_certified == result.original_attacked == kept
        assert result.change < 1e-9


def test_a_tie_is_never_certified():
    model = nn.Linear(2, 2, bias=False)
    with torch.no_grad():
        model.weight.copy_(torch.ones(2, 2))
    result = certified_agreement(model, copy.deepcopy(model), torch.ones(1, 2))
    assert (result.certified, result.attacked) == (0.0, 1.0)


def test_batches_with_and_without_labels_are_the_same_samples():
    first, second, x = classifiers(1)
    whole = certified_agreement(first, second, x, radius=0.1)
    labels = torch.zeros(5, dtype=torch.long)
    for inputs in ([x[:5], x[5:]], [(x[:5], labels), [x[5:], labels]], iter(x.split(5))):
        parts = certified_agreement(first, second, inputs, radius=0.1)
        assert torch.equal(parts.per_sample.certified, whole.per_sample.certified)
        torch.testing.assert_close(parts.per_sample.change, whole.per_sample.change, rtol=1e-9, atol=0)


def test_more_samples_than_are_bounded_at_once():
    first, second, x = classifiers(2)
    many = output_change(first, second, x.repeat(4, 1), radius=0.1)
    torch.testing.assert_close(many.high, output_change(first, second, x, radius=0.1).high.repeat(4, 1))


def test_a_network_that_was_pruned_by_the_package():
    torch.manual_seed(0)
    model = nn.Sequential(
        *(nn.Conv2d(1, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.AvgPool2d(2)),
        *(nn.Conv2d(6, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(32, 4)),
    )
    x = torch.randn(6, 1, 10, 10)
    pruned = copy.deepcopy(model)
    prune(pruned, x, 0.3)
    result = certified_agreement(model, pruned, x, radius=0.02)
    assert isinstance(result, Agreement)
    assert result.found_change <= result.change < 1.5 * result.found_change


def state(model: nn.Module) -> list[object]:
    modes = [one.training for one in model.modules()]
    return [modes, [(name, one.clone(), one.dtype) for name, one in model.state_dict().items()], model.calls[:]]


class Stateful(nn.Module):
    """Counts calls, draws random numbers, and keeps a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.norm, self.drop, self.calls = nn.Linear(3, 2), nn.BatchNorm1d(3), nn.Dropout(), []
        self.register_buffer("count", torch.zeros(()))
        self.layer.register_forward_hook(lambda module, inputs, output: self.calls.append(len(output)))

    def forward(self, x: Tensor) -> Tensor:
        self.count += 1
        random.random()
        torch.rand(1)
        return self.layer(self.drop(self.norm(x)))


@pytest.mark.parametrize("fails", [False, True])
def test_networks_and_random_states_stay_as_they_were(fails):
    first = Stateful()
    first.norm.eval()
    second = nn.Sequential(copy.deepcopy(first), nn.Softmax(1)) if fails else copy.deepcopy(first)
    second.calls = []
    before, numbers, drawn = (state(first), state(second)), torch.get_rng_state(), random.getstate()
    grad = first.layer.weight.grad = torch.ones(2, 3)
    if fails:
        with pytest.raises(ValueError, match="_softmax"):
            certified_agreement(first, second, torch.randn(4, 3, generator=torch.Generator().manual_seed(0)))
    else:
        certified_agreement(first, second, torch.zeros(4, 3), radius=0.1)
    for old, new in zip(before, (state(first), state(second)), strict=True):
        assert str(old) == str(new)
    assert torch.equal(numbers, torch.get_rng_state())
    assert random.getstate() == drawn
    assert first.layer.weight.grad is grad
    assert torch.equal(grad, torch.ones(2, 3))


def test_works_in_inference_mode_and_without_gradients():
    first, second, x = classifiers(3)
    plain = certified_agreement(first, second, x, radius=0.1)
    for mode in (torch.inference_mode, torch.no_grad):
        with mode():
            other = certified_agreement(first, second, x + 0, radius=0.1)
        torch.testing.assert_close(other.per_sample.change, plain.per_sample.change)
        torch.testing.assert_close(other.per_sample.found_change, plain.per_sample.found_change)


class Forward(nn.Module):
    """Has a linear layer and does something to what comes out of it."""

    def __init__(self, function) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(3, 4), nn.ReLU())
        self.function = function

    def forward(self, x):
        return self.function(self.body(x))


def assigned(x: Tensor) -> Tensor:
    out = torch.zeros(len(x), 4, dtype=x.dtype)
    out[:] = x
    return out


def overwritten(x: Tensor) -> Tensor:
    part = x[:, :2]
    x.mul_(2)
    return part + 1


def taken(x: Tensor) -> Tensor:
    values, indices = nn.functional.max_pool1d(x[:, None], 2, return_indices=True)
    return values[:, 0] * indices[:, 0]


REFUSED = {
    "a product of two activations": (lambda x: x * x.sigmoid(), "aten.mul in the forward"),
    "a square": (lambda x: x.square(), "aten.pow|aten.square"),
    "softmax": (lambda x: x.softmax(1), "aten._softmax in the forward"),
    "layer norm": (lambda x: nn.functional.layer_norm(x, (4,)), "aten.native_layer_norm"),
    "a quotient": (lambda x: 1 / (x + 1), "aten.reciprocal|aten.div"),
    "a comparison": (lambda x: torch.where(x > 0.5, x, 0.0), "aten.gt"),
    "a number that leaves torch": (lambda x: x * float(x.sum()), "aten._local_scalar_dense"),
    "matrix product of two": (lambda x: x @ x.T, "aten.mm"),
    "assignment": (assigned, "aten.copy"),
    "overwritten memory": (overwritten, "aten.add"),
    "indices of maxima": (taken, "aten.mul"),
    "statistics": (
        lambda x: nn.functional.batch_norm(torch.stack([x, -x], 2), None, None, training=True),
        "aten.native_batch_norm",
    ),
    "whole numbers": (lambda x: x.long().double(), "aten._to_copy"),
    "a norm": (lambda x: x.norm(dim=1, keepdim=True), "aten.linalg_vector_norm"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_followed_is_refused_with_its_name(name):
    function, operator = REFUSED[name]
    plain, other = Forward(lambda x: x), Forward(function)
    for first, second, which in ((plain, other, "pruned"), (other, plain, "original")):
        with pytest.raises(ValueError, match=rf"({operator}).* of the {which} network is neither"):
            output_change(first, second, torch.randn(3, 3), radius=0.1)


def test_a_refusal_names_the_module():
    model = nn.Sequential(nn.Linear(3, 4), nn.Sequential(nn.ReLU(), nn.LayerNorm(4)))
    with pytest.raises(ValueError, match=r"aten.native_layer_norm in '1\.1' of the original network"):
        output_change(model, model, torch.randn(2, 3))


def test_outputs_that_are_not_those_of_single_samples_are_refused():
    for function in (lambda x: x - x.mean(0), lambda x: x + torch.rand(()), lambda x: x.sum(0, keepdim=True)):
        model = Forward(function)
        with pytest.raises(ValueError, match="every sample alike and by itself"):
            output_change(model, model, torch.randn(3, 3), radius=0.1)


def test_numbers_that_pass_torch_by_are_noticed():
    model = Forward(lambda x: x + torch.tensor(x.detach().cpu().numpy().copy()))
    with pytest.raises(ValueError, match="every sample alike and by itself"):
        output_change(model, model, torch.randn(3, 3), radius=0.1)


@torch.library.custom_op("agreement_tests::bent", mutates_args=())
def bent(x: Tensor) -> Tensor:
    return torch.relu(x) + 0.5 * torch.tanh(x)


def test_registered_activations_are_bounded_where_they_were_checked():
    torch.manual_seed(0)
    model = Forward(torch.ops.agreement_tests.bent)
    other = copy.deepcopy(model)
    nn.init.normal_(other.body[0].weight)
    x = torch.randn(2, 3)
    with pytest.raises(ValueError, match="agreement_tests::bent in the forward"):
        output_change(model, other, x, radius=0.1)
    function = lambda z: torch.relu(z) + 0.5 * torch.tanh(z)  # noqa: E731
    with register_activation(torch.ops.agreement_tests.bent, function, lipschitz=1.5, turning_points=()):
        proven = output_change(model, other, x, radius=0.1)
        points = in_ball(x, 0.1, 500).flatten(0, 1)
        change = (copy.deepcopy(model).double()(points) - copy.deepcopy(other).double()(points)).unflatten(0, (500, 2))
        assert bool((change <= proven.high).all() and (change >= proven.low).all())
        with pytest.raises(ValueError, match=r"between -50 and 50, where its constants were checked, but"):
            output_change(model, other, x, radius=1e3)


def dictionary(x: Tensor) -> dict[str, Tensor]:
    return {"scores": x}


def test_wrong_arguments():
    first, second, x = classifiers(0)
    for radius in (-1, float("nan"), float("inf"), True, "1"):
        with pytest.raises(ValueError, match="Expected radius to be a number"):
            output_change(first, second, x, radius=radius)
    for name in ("restarts", "steps"):
        for value in (0, 1.5, True):
            with pytest.raises(ValueError, match=f"Expected {name} to be a positive whole number"):
                certified_agreement(first, second, x, **{name: value})
    for inputs, message in (
        (3, "an iterable of batches but got int"),
        ([], "at least one sample"),
        (x[:0], "at least one sample"),
        (x.long(), "floating-point inputs.*torch.int64"),
        ([{"x": x}], "floating-point inputs.*dict"),
        ([x, x[:, :1]], "samples of one shape"),
        (x * torch.inf, "Expected finite inputs"),
    ):
        with pytest.raises(ValueError, match=message):
            output_change(first, second, inputs)
    with pytest.raises(ValueError, match="Expected model to be"):
        output_change(first, nn.Linear, x)
    with pytest.raises(ValueError, match="outputs of the same shape"):
        output_change(first, classifiers(0, classes=2)[0], x)
    with pytest.raises(ValueError, match="two classes or more"):
        certified_agreement(first[:1], first[:1], torch.randn(2, 2, 2))
    with pytest.raises(ValueError, match="two classes or more"):
        certified_agreement(nn.Linear(2, 1), nn.Linear(2, 1), x)
    with pytest.raises(ValueError, match="to return one tensor but got dict"):
        output_change(Forward(dictionary), Forward(dictionary), torch.randn(2, 3))
    with pytest.raises(ValueError, match="to be computed from its input"):
        output_change(Forward(lambda x: torch.zeros(len(x), 2)), Forward(lambda x: x), torch.randn(2, 3))


@pytest.mark.gpu
def test_on_a_gpu_the_results_are_those_of_the_cpu():
    for name in ("relu", "gelu", "max pool", "residual block"):
        first, second, x = network(name)
        expected = certified_agreement(first, second, x, radius=0.2)
        result = certified_agreement(first.cuda(), second.cuda(), x, radius=0.2)
        assert result.per_sample.change.is_cuda
        torch.testing.assert_close(result.per_sample.change.cpu(), expected.per_sample.change, rtol=1e-6, atol=1e-9)
        assert result.certified == expected.certified
