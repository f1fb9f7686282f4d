"""`synthetic_inputs`: which law each input gets, and what is promised of all of them."""

from __future__ import annotations

import random
from dataclasses import dataclass
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from breadth import some_of
from torch import nn

from lightning_coreset.probes import ProbesUnavailable, synthetic, synthetic_inputs
from lightning_coreset.probes.observation import observe, why_not_run
from lightning_coreset.probes.registry import kind_of
from lightning_coreset.structure import Example


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def probes_of(model, inputs, samples=64, seed=0):
    example = Example.of(inputs)
    return synthetic_inputs(model, example, samples, rng(seed))


def kinds_of(model, inputs):
    return [kind_of(leaf)[0] for leaf in observe(model, Example.of(inputs))]


def correlation(a, b):
    return torch.corrcoef(torch.stack([a.flatten(), b.flatten()]))[0, 1].item()


class Forward(nn.Module):
    """Parts by keyword, and a function of the network and the inputs."""

    def __init__(self, run, **parts):
        super().__init__()
        self.run = run
        for name, part in parts.items():
            setattr(self, name, part)

    def forward(self, *args, **kwargs):
        return self.run(self, *args, **kwargs)


KINDS = {
    "images": (nn.Conv2d(3, 4, 3), (2, 3, 8, 8), "images"),
    "volumes": (nn.Conv3d(2, 4, 3), (2, 2, 6, 6, 6), "images"),
    "flattened images": (nn.Sequential(nn.Flatten(), nn.Linear(64, 4)), (2, 1, 8, 8), "images"),
    "channels last": (
        Forward(lambda net, x: net.a(x.permute(0, 3, 1, 2)), a=nn.Conv2d(5, 4, 3)),
        (2, 8, 8, 5),
        "images",
    ),
    "images without channels": (Forward(lambda net, x: net.a(x[:, None]), a=nn.Conv2d(1, 4, 3)), (2, 8, 8), "images"),
    "frames": (Forward(lambda net, x: net.a(x.flatten(0, 1)), a=nn.Conv2d(3, 4, 3)), (2, 6, 3, 8, 8), "images"),
    "one place": (nn.ConvTranspose2d(10, 4, 3), (2, 10, 1, 1), "vectors"),
    "series for a convolution": (nn.Conv1d(2, 4, 3), (2, 2, 20), "series"),
    "series for a product": (nn.Linear(6, 4), (2, 9, 6), "series"),
    "series for a recurrence": (nn.GRU(6, 4, batch_first=True), (2, 9, 6), "series"),
    "series in rows": (Forward(lambda net, x: net.a(x[:, None]), a=nn.Conv1d(1, 4, 3)), (2, 20), "series"),
    "points": (nn.Conv1d(3, 8, 1), (2, 3, 20), "points"),
    "vectors": (nn.Linear(6, 4), (2, 6), "vectors"),
    "a vector without a batch": (nn.Linear(6, 4), (6,), "vectors"),
    "numbers": (Forward(lambda net, x: net.a(x[:, None]), a=nn.Linear(1, 4)), (2,), "vectors"),
}


@pytest.mark.parametrize(("model", "shape", "kind"), KINDS.values(), ids=KINDS)
def test_every_kind_of_input(model, shape, kind):
    inputs = torch.zeros(shape)  # their values say nothing
    batched = shape != (6,)

    probes = probes_of(model, inputs, 40)

    assert kinds_of(model, inputs) == [kind]
    assert probes.inputs.shape == ((40, *shape[1:]) if batched else shape)
    assert probes.batch_size == (40 if batched else 6)
    assert probes.inputs.dtype == inputs.dtype
    if batched:
        assert abs(probes.inputs.mean()) < 0.6
        assert abs(probes.inputs.std() - 1) < 0.3
    model(probes.inputs)


@pytest.mark.parametrize(
    ("name", "channel", "along"),
    [
        ("images", 1, (2, 3)),
        ("channels last", 3, (1, 2)),
        ("frames", 2, (1, 3, 4)),
        ("series for a convolution", 1, (2,)),
        ("series for a product", 2, (1,)),
        ("series for a recurrence", 2, (1,)),
    ],
)
def test_neighbours_are_alike_along_space_and_time_only(name, channel, along):
    model, shape, _ = KINDS[name]
    made = probes_of(model, torch.zeros(shape), 512).inputs

    beside = {dim: correlation(made.narrow(dim, 0, 1), made.narrow(dim, 1, 1)) for dim in range(1, len(shape))}
    apart = {dim: correlation(made.narrow(dim, 0, 1), made.narrow(dim, shape[dim] - 1, 1)) for dim in along}
    assert all(beside[dim] > apart[dim] + 0.1 for dim in along)
    expected = 0.3 if "series" in name else 0.89
    assert abs(beside[channel] - expected) < 0.06
    assert abs(correlation(made[:-1], made[1:])) < 0.1  # samples are independent


def test_values_of_the_example_say_nothing():
    model = KINDS["images"][0]
    examples = (torch.zeros(2, 3, 8, 8), torch.ones(2, 3, 8, 8), torch.randn(2, 3, 8, 8), torch.full((2, 3, 8, 8), 9.0))

    made = [probes_of(model, one).inputs for one in examples]

    assert all(torch.equal(made[0], other) for other in made[1:])


def test_the_same_generator_gives_the_same_inputs_and_another_others():
    model = KINDS["images"][0]
    x = torch.randn(2, 3, 8, 8)

    assert torch.equal(probes_of(model, x).inputs, probes_of(model, x).inputs)
    assert not torch.equal(probes_of(model, x).inputs, probes_of(model, x, seed=1).inputs)


def test_the_network_and_global_random_states_are_left_as_they_were():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout(), nn.ReLU()).train()
    model[3].eval()
    before = {name: one.clone() for name, one in model.state_dict().items()}
    modes = [module.training for module in model.modules()]
    x = torch.randn(2, 3, 8, 8)
    states = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].copy()
    kept = x.clone()

    probes_of(model, x)

    assert all(torch.equal(one, model.state_dict()[name]) for name, one in before.items())
    assert [module.training for module in model.modules()] == modes
    assert torch.equal(torch.get_rng_state(), states[0])
    assert random.getstate() == states[1]
    assert (np.random.get_state()[1] == states[2]).all()
    assert torch.equal(x, kept)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_dtypes_stay(dtype):
    made = probes_of(nn.Linear(6, 4).to(dtype), torch.zeros(2, 6, dtype=dtype)).inputs

    assert made.dtype == dtype


@pytest.mark.gpu
def test_devices_stay_and_numbers_are_those_of_the_cpu():
    model, inputs = nn.Embedding(20, 4), torch.zeros(2, 5, dtype=torch.long)
    expected = probes_of(model, inputs).inputs

    made = probes_of(model.cuda(), inputs.cuda()).inputs

    assert made.is_cuda
    assert torch.equal(made.cpu(), expected)


def test_requires_grad_stays():
    assert probes_of(nn.Linear(6, 4), torch.zeros(2, 6, requires_grad=True)).inputs.requires_grad
    assert not probes_of(nn.Linear(6, 4), torch.zeros(2, 6)).inputs.requires_grad


def test_bytes_are_images_of_bytes():
    model = Forward(lambda net, x: net.a((x.float() / 255 - 0.5) / 0.25), a=nn.Conv2d(3, 4, 3))
    made = probes_of(model, torch.zeros(2, 3, 16, 16, dtype=torch.uint8), 256).inputs

    assert made.dtype == torch.uint8
    assert abs(made.float().mean() - 128) < 10
    assert abs(made.float().std() - 64) < 10


def test_keywords_and_nested_inputs_keep_their_containers():
    model = Forward(
        lambda net, image, rest: net.a(image).mean((2, 3)) + net.b(rest[0]["x"]),
        a=nn.Conv2d(3, 4, 3),
        b=nn.Linear(5, 4),
    )
    inputs = {"image": torch.zeros(2, 3, 8, 8), "rest": [{"x": torch.zeros(2, 5), "name": "text"}]}

    made = probes_of(model, inputs, 7).inputs

    assert made.keys() == inputs.keys()
    assert made["rest"][0]["name"] == "text"
    assert (made["image"].shape, made["rest"][0]["x"].shape) == ((7, 3, 8, 8), (7, 5))


def masked(net, x, mask):
    return (net.b(net.a(x) * mask[..., None])).sum(1) / mask.sum(1, keepdim=True)


def whole(net, x, mask):
    return masked(net, x, mask.float())


def moved(net, x, time):
    return net.a(x) * torch.cos(time * torch.arange(1, 9)[:, None]).T[:, None]


def attends(net, x, mask):
    return torch.softmax(net.a(x) @ net.a(x).mT + mask, -1) @ x


KEPT = {
    "a floating mask": (masked, torch.tensor([[1.0, 1, 0, 1], [1, 0, 0, 1]])),
    "a mask of ones": (masked, torch.ones(2, 4)),
    "a mask of truth values": (whole, torch.tensor([[True, False]] * 2)[:, [0, 1, 0, 0]]),
    "a whole mask": (whole, torch.tensor([[1, 1, 0, 0], [1, 1, 1, 1]])),
    "an additive mask": (attends, torch.tensor([0.0, 0, -torch.inf, 0]).expand(2, 4, 4)),
    "lengths": (lambda net, x, n: net.a(x)[torch.arange(len(x)), n - 1], torch.tensor([3, 1])),
    "a time": (moved, torch.tensor([0.3, 7.0])),
    "an adjacency": (lambda net, x, adjacency: adjacency @ net.a(x), torch.randn(2, 4, 4)),
}


@pytest.mark.parametrize(("forward", "given"), KEPT.values(), ids=KEPT)
def test_what_cannot_be_made_up_is_repeated(forward, given):
    model = Forward(forward, a=nn.Linear(6, 8), b=nn.Linear(8, 2))

    x, made = probes_of(model, (torch.zeros(2, 4, 6), given), 5).inputs

    assert x.shape == (5, 4, 6)
    assert torch.equal(made, given[[0, 1, 0, 1, 0]])


def test_what_has_no_batch_dimension_stays():
    table = torch.randn(3, 6)
    model = Forward(lambda net, x, table, number: net.a(x)[:, None] * table * number, a=nn.Linear(6, 6))

    x, kept, number = probes_of(model, (torch.zeros(2, 6), table, torch.tensor(2.0)), 5).inputs

    assert x.shape == (5, 6)
    assert torch.equal(kept, table)
    assert number.item() == 2.0


def test_nodes_of_a_graph_are_made_up_and_its_edges_stay():
    def gather(net, x, edges):
        return torch.zeros(len(x), 4).index_add(0, edges[1], net.a(x)[edges[0]])

    edges = torch.tensor([[0, 1, 2, 4], [1, 2, 3, 0]])
    probes = probes_of(Forward(gather, a=nn.Linear(6, 4)), (torch.zeros(5, 6), edges), 64)

    assert probes.batch_size == 5
    assert abs(probes.inputs[0].std() - 1) < 0.5
    assert torch.equal(probes.inputs[1], edges)


def test_nodes_without_an_edge_are_not_added():
    """A network runs on more nodes than its edges name, but they would be no part of the graph."""
    edges = torch.tensor([[0, 1], [1, 0]])
    model = Forward(lambda net, x, edges: net.a(x)[edges[0]], a=nn.Linear(6, 4))

    assert probes_of(model, (torch.zeros(5, 6), edges), 64).batch_size == 5


def test_places_beyond_the_end_are_never_tried(monkeypatch):
    """On a GPU they would end the process. The network computes others of them, so they are not seen to be places."""
    tried = []

    def note(model, example):
        tried.append(example.batch_size)
        return why_not_run(model, example)

    monkeypatch.setattr(synthetic, "why_not_run", note)
    model = Forward(lambda net, x, edges: net.a(x)[(edges * edges).sqrt().long()], a=nn.Linear(6, 4))

    probes_of(model, (torch.zeros(5, 6), torch.tensor([0, 4, 2])), 64)

    assert tried == [6]


def test_a_network_that_takes_its_own_batch_size_only_gets_that():
    model = Forward(lambda net, x: net.a(x.view(2, 6)), a=nn.Linear(6, 4))
    example, generator = Example.of(torch.zeros(2, 6)), rng()

    first, second = (synthetic_inputs(model, example, 64, generator) for _ in range(2))

    assert first.batch_size == second.batch_size == 2
    assert first.inputs.shape == (2, 6)
    assert not torch.equal(first.inputs, second.inputs)


def test_padded_and_normalised_images_are_still_images_to_their_layer():
    def forward(net, x):
        x = (x - net.mean) / net.deviation
        return net.a(nn.functional.pad(x.permute(0, 3, 1, 2), (1, 1, 1, 1)))

    parts = {"mean": nn.Parameter(torch.zeros(5)), "deviation": nn.Parameter(torch.ones(5))}
    made = probes_of(Forward(forward, a=nn.Conv2d(5, 4, 3), **parts), torch.zeros(2, 9, 9, 5), 256).inputs

    assert correlation(made[..., 0], made[..., 1]) > 0.8  # the last dimension is that of channels


class Field:
    """A field of a dataclass that looks at every value it is given, as those of anomalib's batches do."""

    def __init__(self, most: int) -> None:
        self.most = most

    def __get__(self, batch, owner=None):
        if batch is None:
            raise AttributeError  # so that it has no default
        return batch.__dict__["x"]

    def __set__(self, batch, value) -> None:
        if not isinstance(value, torch.Tensor) or len(value) > self.most:
            raise TypeError(f"Expected at most {self.most} rows of a tensor but got {type(value).__name__}")
        batch.__dict__["x"] = value


@dataclass
class Checked:
    x: torch.Tensor = Field(64)


@dataclass
class Small:
    x: torch.Tensor = Field(2)


def test_batches_that_look_at_what_is_put_into_them_are_made_up():
    model = Forward(lambda net, batch: net.a(batch.x), a=nn.Linear(6, 4))

    made = probes_of(model, (Checked(torch.zeros(2, 6)),), 64)

    assert made.batch_size == 64
    assert made.inputs[0].x.shape == (64, 6)
    assert made.inputs[0].x.std() > 0.5


def test_batches_that_refuse_what_was_made_up_say_so():
    model = Forward(lambda net, batch: net.a(batch.x), a=nn.Linear(6, 4))

    with pytest.raises(ProbesUnavailable, match=r"tuple raised TypeError: Expected at most 2 rows.*Give probes="):
        probes_of(model, (Small(torch.zeros(2, 6)),), 64)


REFUSED = {
    "complex": (nn.Identity(), torch.zeros(2, 6, dtype=torch.complex64), r"inputs, complex64 of shape \(2, 6\)"),
    "six dimensions": (
        nn.Linear(6, 4),
        torch.zeros(2, 1, 1, 3, 3, 6),
        r"inputs, float32 of shape \(2, 1, 1, 3, 3, 6\)",
    ),
    "only numbers": (nn.Identity(), {"n": torch.tensor([1, 2])}, r"only what is taken from the example: inputs\['n'\]"),
    "an object": (nn.Identity(), (SimpleNamespace(x=torch.zeros(2, 3)),), "tensors within other objects, in tuple"),
    "nested": (
        nn.Identity(),
        (torch.nested.nested_tensor([torch.zeros(2)], layout=torch.jagged),),
        r"inputs\[0\] is a nested one",
    ),
    "does not run": (nn.Linear(6, 4), torch.randn(2, 5), "it raised: mat1 and mat2 shapes cannot be multiplied"),
}


@pytest.mark.parametrize(("model", "inputs", "words"), REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_made_up_at_all_is_refused_with_the_way_out(model, inputs, words):
    example = Example(inputs, batch_size=2)

    with pytest.raises(ProbesUnavailable, match=words) as raised:
        synthetic_inputs(model, example, 8, rng())

    assert 'probes=function to make them yourself, or use moments="closed_form"' in str(raised.value)


@pytest.mark.parametrize("samples", some_of([0, -3, 2.5], 0))
def test_samples_are_a_positive_number(samples):
    with pytest.raises(ValueError, match=f"samples to be a positive whole number but got {samples}"):
        probes_of(nn.Linear(6, 4), torch.zeros(2, 6), samples)
