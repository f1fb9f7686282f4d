"""What layers are seen to read is what they read, and nothing of the network is disturbed."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lightning_coreset.moments import MeasuringRuns, Unmeasurable
from lightning_coreset.structure import Example

ALL = 10**6
"""More rows than there are: all of them are taken, in order."""


def measured(model, x, weights, norms=None, *, by_batch=False, tensors=None):
    runs = MeasuringRuns(model.eval(), [[Example.of(x)]], by_batch, "probes")
    return runs.measure(weights, norms, tensors)


def rows_by_hook(model, module, x):
    seen = []
    handle = module.register_forward_pre_hook(lambda _, args: seen.append(args[0].detach()))
    with torch.no_grad():
        model(x)
    handle.remove()
    return seen[0]


def test_a_linear_reads_rows_of_any_shape():
    model = nn.Sequential(nn.Linear(5, 6), nn.ReLU(), nn.Linear(6, 3))
    x = torch.randn(2, 4, 5)
    found = measured(model, x, {"2.weight": (1, ALL)}).layers["2.weight"]
    assert torch.equal(found.rows[:, :, 0], rows_by_hook(model, model[2], x).reshape(-1, 6))
    assert found.bias == "2.bias"


@pytest.mark.parametrize("shape", [(2, 5, 4), (2, 3, 5, 4)])
def test_views_that_are_not_contiguous(shape):
    class Mixer(nn.Module):
        def __init__(self):
            super().__init__()
            self.mix = nn.Linear(5, 3)

        def forward(self, x):
            return self.mix(x.transpose(-1, -2))

    model, x = Mixer(), torch.randn(*shape)
    found = measured(model, x, {"mix.weight": (1, ALL)}).layers["mix.weight"]
    assert torch.equal(found.rows[:, :, 0], x.transpose(-1, -2).reshape(-1, 5))


@pytest.mark.parametrize(
    "conv",
    [
        nn.Conv2d(3, 4, 3, padding=1),
        nn.Conv2d(3, 4, (3, 2), stride=2, bias=False),
        nn.Conv2d(3, 4, 3, padding=2, dilation=2),
        nn.Conv2d(3, 4, 1),
    ],
)
def test_a_convolution_reads_patches(conv):
    x = torch.randn(2, 3, 9, 8)
    found = measured(nn.Sequential(conv), x, {"0.weight": (1, ALL)}).layers["0.weight"]
    patches = F.unfold(x, conv.kernel_size, conv.dilation, conv.padding, conv.stride)
    k = conv.kernel_size[0] * conv.kernel_size[1]
    assert torch.equal(found.rows, patches.transpose(1, 2).reshape(-1, 3, k))
    # Patches times weights are what the convolution makes.
    made = found.rows.flatten(1) @ conv.weight.flatten(1).T + (0 if conv.bias is None else conv.bias)
    assert torch.allclose(made, conv(x).movedim(1, -1).reshape(-1, 4), atol=1e-5)


@pytest.mark.parametrize("dims", [1, 3])
def test_convolutions_of_other_dimensions(dims):
    conv = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[dims - 1](2, 3, 3, padding=1)
    x = torch.randn(2, 2, *[5] * dims)
    found = measured(nn.Sequential(conv), x, {"0.weight": (1, ALL)}).layers["0.weight"]
    made = found.rows.flatten(1) @ conv.weight.flatten(1).T + conv.bias
    assert torch.allclose(made, conv(x).movedim(1, -1).reshape(-1, 3), atol=1e-5)


def test_transposed_and_grouped_convolutions_say_so():
    model = nn.Sequential(nn.ConvTranspose2d(4, 6, 2, stride=2), nn.Conv2d(6, 4, 3, groups=2))
    x = torch.randn(1, 4, 5, 5)
    found = measured(model, x, {"0.weight": (0, ALL), "1.weight": (1, ALL)}).layers
    assert found["0.weight"].transposed
    assert torch.equal(found["0.weight"].rows[:, :, 0], x.movedim(1, -1).reshape(-1, 4))
    assert found["1.weight"].groups == 2
    assert found["1.weight"].rows.shape == (64, 6, 9)


def test_products_that_are_no_modules():
    class Own(nn.Module):
        def __init__(self):
            super().__init__()
            self.a = nn.Parameter(torch.randn(5, 6))
            self.b = nn.Parameter(torch.randn(3, 6))
            self.c = nn.Parameter(torch.randn(4, 3))

        def forward(self, x):
            x = x @ self.a
            x = torch.einsum("bi,oi->bo", x, self.b)
            return (self.c @ x.T).T

    model, x = Own(), torch.randn(7, 5)
    found = measured(model, x, {"a": (0, ALL), "b": (1, ALL), "c": (1, ALL)}).layers
    assert torch.equal(found["a"].rows[:, :, 0], x)
    assert torch.allclose(found["b"].rows[:, :, 0], x @ model.a, atol=1e-5)
    assert torch.allclose(found["c"].rows[:, :, 0], x @ model.a @ model.b.T, atol=1e-5)


def test_parts_of_one_weight_read_what_they_read():
    attention = nn.MultiheadAttention(8, 2, batch_first=True)

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.attention = attention

        def forward(self, x):
            return self.attention(x, x, x)[0]

    x = torch.randn(2, 3, 8)
    found = measured(Net(), x, {"attention.in_proj_weight": (1, ALL)}).layers["attention.in_proj_weight"]
    rows = found.rows[:, :, 0]
    assert torch.equal(rows[:6].sort(dim=0).values, x.reshape(-1, 8).sort(dim=0).values)


@pytest.mark.filterwarnings("ignore:.*weight_norm.* is deprecated:FutureWarning")
@pytest.mark.parametrize("norm", [nn.utils.parametrizations.weight_norm, nn.utils.weight_norm])
def test_the_direction_of_a_normalised_weight_stands_for_it(norm):
    model = nn.Sequential(nn.Linear(5, 6), nn.ReLU(), norm(nn.Linear(6, 3)))
    (direction,) = (name for name, one in model.named_parameters() if name.startswith("2") and one.shape == (3, 6))
    x = torch.randn(7, 5)
    found = measured(model, x, {direction: (1, ALL)}).layers[direction]
    assert torch.equal(found.rows[:, :, 0], model[:2](x).detach())


def test_layers_that_read_one_tensor_share_their_sample():
    class Both(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.c = nn.Linear(4, 4), nn.Linear(4, 2), nn.Linear(4, 2)

        def forward(self, x):
            return self.b(x) + self.c(x) + self.b(self.a(x))

    found = measured(Both(), torch.randn(50, 4), {"a.weight": (1, 9), "c.weight": (1, 9), "b.weight": (1, 9)}).layers
    assert found["a.weight"].rows is found["c.weight"].rows
    assert found["a.weight"].rows.shape == (9, 4, 1)
    assert found["b.weight"].rows.shape == (18, 4, 1)  # of both calls


def test_samples_of_two_runs_are_the_same_rows():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 5, 3))
    x = torch.randn(3, 3, 12, 12)
    twice = [measured(model, x, {"2.weight": (1, 20)}).layers["2.weight"].rows for _ in range(2)]
    assert torch.equal(*twice)
    assert len(twice[0]) == 20


def test_batch_norms_take_the_statistics_of_the_batch_and_keep_their_own():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 2, 1))
    model[1].running_mean.fill_(3.0)
    nn.init.uniform_(model[1].weight, 0.5, 2)
    x = torch.randn(6, 3, 8, 8)
    before = {name: one.clone() for name, one in model.state_dict().items()}
    found = measured(model, x, {"3.weight": (1, ALL)}, {"1.running_mean": ALL}, by_batch=True)
    expected = F.batch_norm(model[0](x), None, None, model[1].weight, model[1].bias, training=True)
    assert torch.allclose(found.normed["1.running_mean"], expected.movedim(1, -1).reshape(-1, 4), atol=1e-5)
    assert torch.allclose(
        found.layers["3.weight"].rows[:, :, 0], expected.relu().movedim(1, -1).reshape(-1, 4), atol=1e-5
    )
    assert all(torch.equal(before[name], one) for name, one in model.state_dict().items())
    by_running = measured(model, x, {"3.weight": (1, ALL)})
    assert not torch.allclose(by_running.layers["3.weight"].rows, found.layers["3.weight"].rows, atol=0.1)


def test_nothing_is_disturbed():
    model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.ReLU(), nn.Linear(8, 2))
    model.train()
    model[2].eval()
    model[0].weight.grad = torch.ones_like(model[0].weight)
    calls = []
    model[0].register_forward_hook(lambda *_: calls.append(torch.rand(1)))
    state, random = {n: t.clone() for n, t in model.state_dict().items()}, torch.get_rng_state()
    runs = MeasuringRuns(model, [[Example.of(torch.randn(16, 4))] * 2], True, "probes")
    random = torch.get_rng_state()
    runs.measure({"4.weight": (1, 8)})
    assert torch.equal(torch.get_rng_state(), random)
    assert [module.training for module in model] == [True, True, False, True, True]
    assert torch.equal(model[0].weight.grad, torch.ones_like(model[0].weight))
    assert all(torch.equal(state[name], one) for name, one in model.state_dict().items())


def test_tensors_take_the_place_of_the_network_s_own():
    model = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2))
    x = torch.randn(5, 4)
    other = {"0.weight": torch.zeros(3, 4, dtype=torch.float64), "0.bias": torch.arange(3.0)}
    found = measured(model, x, {"1.weight": (1, ALL)}, tensors=other).layers["1.weight"]
    assert torch.equal(found.rows[:, :, 0], torch.arange(3.0).expand(5, 3))
    assert model[0].weight.any()


def test_what_cannot_run_or_is_not_finite_is_said():
    model = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2))
    with pytest.raises(Unmeasurable, match="cannot be run on probes: RuntimeError"):
        measured(model, torch.randn(5, 7), {"1.weight": (1, ALL)})
    nn.init.constant_(model[0].weight, float("nan"))
    with pytest.raises(Unmeasurable, match=r"make NaN or infinity where 1\.weight reads"):
        measured(model, torch.randn(5, 4), {"1.weight": (1, ALL)})


def test_what_ranks_find_is_put_together_in_their_order():
    model = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2)).eval()
    parts = [torch.randn(6, 4), torch.randn(6, 4)]
    apart = [MeasuringRuns(model, [[Example.of(part)]], False, "batches") for part in parts]
    found = [runs.measure({"1.weight": (1, 4)}) for runs in apart]

    def gather(own):
        assert own.layers["1.weight"].rows.shape == (4, 3, 1)  # this rank's share of eight
        return found

    together = MeasuringRuns(model, [[Example.of(parts[0])]], False, "batches", gather=gather, ranks=2)
    rows = together.measure({"1.weight": (1, 8)}).layers["1.weight"].rows
    assert torch.equal(rows, torch.cat([one.layers["1.weight"].rows for one in found]))


def test_a_rank_that_cannot_measure_tells_the_others():
    model = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2)).eval()
    told = []

    def gather(own):
        told.append(own)
        return [own, own]

    runs = MeasuringRuns(model, [[Example.of(torch.randn(5, 7))]], False, "batches", gather=gather, ranks=2)
    with pytest.raises(Unmeasurable, match="cannot be run on batches"):
        runs.measure({"1.weight": (1, 8)})
    assert isinstance(told[0], Unmeasurable)


def test_another_way_of_running_is_only_tried_for_what_the_first_does_not_show():
    calls = []

    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(4, 3), nn.Linear(4, 2)

    def run(model, inputs):
        calls.append(inputs[0])
        return model.a(inputs[1]) if inputs[0] == "a" else model.b(inputs[1])

    ways = [[Example((name, torch.randn(5, 4)), run, 5)] for name in "ab"]
    runs = MeasuringRuns(Two().eval(), ways, False, "probes")
    assert runs.measure({"a.weight": (1, 8)}).layers.keys() == {"a.weight"}
    assert calls == ["a"]
    assert runs.measure({"a.weight": (1, 8), "b.weight": (1, 8)}).layers.keys() == {"a.weight", "b.weight"}


def test_weights_are_found_under_autocast():
    model = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2)).eval()
    with torch.autocast("cpu", torch.bfloat16):
        found = measured(model, torch.randn(5, 4), {"1.weight": (1, ALL)})
    assert "1.weight" in found.layers


class Tail(nn.Module):
    """Prints how many samples reach the end of a network; what it kept would be put back."""

    def forward(self, x):
        print(len(x))
        return x


def test_later_runs_end_where_they_would_show_nothing_more(capsys):
    model = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 6), Tail()).eval()
    x = torch.randn(12, 4)
    runs = MeasuringRuns(model, [[Example.of(part) for part in x.split(4)]], False, "probes")
    found = runs.measure({"0.weight": (1, ALL), "2.weight": (1, ALL)})
    assert capsys.readouterr().out == "4\n"
    assert len(found.outputs) == 1
    torch.testing.assert_close(found.layers["0.weight"].rows[:, :, 0], x)
    torch.testing.assert_close(found.layers["2.weight"].rows[:, :, 0], model[:2](x).detach())


def test_weights_that_a_later_run_reads_less_often_are_seen():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(4, 4)

        def forward(self, x):
            return self.layer(self.layer(x)) if len(x) > 3 else self.layer(x)

    x = torch.randn(7, 4)
    runs = MeasuringRuns(Twice().eval(), [[Example.of(x[:4]), Example.of(x[4:])]], False, "probes")
    rows = runs.measure({"layer.weight": (1, ALL)}).layers["layer.weight"].rows[:, :, 0]
    assert len(rows) == 4 + 4 + 3
    assert torch.equal(rows[-3:], x[4:])


def test_independent_rows_are_taken_of_the_first_runs_that_have_enough(capsys):
    class Head(nn.Module):
        def forward(self, x):
            print(len(x))
            return x

    model = nn.Sequential(Head(), nn.LayerNorm(4), nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 6)).eval()
    parts = torch.randn(40, 4).split(10)
    runs = MeasuringRuns(model, [[Example.of(part) for part in parts]], True, "probes", True, True)
    found = runs.measure({"2.weight": (1, 15), "4.weight": (1, 8)})
    assert capsys.readouterr().out == "10\n10\n"
    assert [len(found.layers[name].rows) for name in ("2.weight", "4.weight")] == [20, 8]
    alone = runs.measure({"4.weight": (1, 8)})
    assert torch.equal(alone.layers["4.weight"].rows, found.layers["4.weight"].rows)


def test_a_run_ends_early_where_an_earlier_one_has_shown_how_often_weights_are_read(capsys):
    model = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 6), Tail()).eval()
    x = torch.randn(12, 4)
    runs = MeasuringRuns(model, [[Example.of(x)]], False, "probes")
    first = runs.measure({"0.weight": (1, ALL), "2.weight": (1, ALL)})
    again = runs.measure({"2.weight": (1, ALL)})
    assert capsys.readouterr().out == "12\n"
    assert torch.equal(again.layers["2.weight"].rows, first.layers["2.weight"].rows)
    assert not again.outputs
    whole = runs.measure({"2.weight": (1, ALL)}, to_the_end=True)
    assert len(whole.outputs) == 1
    assert runs.measure({"0.weight": (0, ALL)}).layers == {}  # along another dimension: not known before
    assert capsys.readouterr().out == "12\n12\n"


def test_norms_behind_the_last_weight_are_seen_in_a_later_measurement():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).eval()
    runs = MeasuringRuns(model, [[Example.of(torch.randn(2, 3, 5, 5))]], False, "probes")
    runs.measure({"0.weight": (1, ALL)})
    assert "1.running_mean" in runs.measure({"0.weight": (1, ALL)}, {"1.running_mean": ALL}).normed
    model = nn.Sequential(nn.Linear(4, 8), nn.LayerNorm(8)).eval()
    runs = MeasuringRuns(model, [[Example.of(torch.randn(6, 4))]], False, "probes")
    runs.measure({"0.weight": (1, ALL)})
    assert "1.weight" in runs.measure({"0.weight": (1, ALL)}, channel_norms={"1.weight": ALL}).channel_norms


@pytest.mark.parametrize("fixed", [False, True])
def test_rows_of_a_run_are_counted_on_few_samples(capsys, fixed):
    class Fixed(nn.Module):
        def forward(self, x):
            return x.reshape(20, *x.shape[1:]) if fixed else x

    class Flat(nn.Module):
        def forward(self, x):
            return x.mean(dim=(2, 3))

    body = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), Flat(), nn.Linear(4, 2))
    model = nn.Sequential(Fixed(), *body, Tail()).eval()
    examples = [Example.of(x) for x in torch.randn(2, 20, 3, 6, 6)]
    runs = MeasuringRuns(model, [examples], True, "probes")
    weights = {"1.weight": (1, ALL), "4.weight": (1, ALL)}
    counted = runs.rows_of_one_run(weights)
    assert {name: rows for name, (rows, _) in counted.items()} == {"1.weight": 20 * 36, "4.weight": 20}
    assert counted["1.weight"][1] != counted["4.weight"][1]
    assert capsys.readouterr().out == ("20\n" if fixed else "2\n")
    found = runs.measure(weights)  # which takes nothing from the run of few samples
    assert {name: len(read.rows) for name, read in found.layers.items()} == {"1.weight": 40 * 36, "4.weight": 40}
    assert capsys.readouterr().out == "20\n"


def test_a_run_that_fails_half_way_is_not_taken_for_one_that_has_shown_everything():
    class Fixed(nn.Module):
        def forward(self, x):
            return x.reshape(-1, 5)

    model = nn.Sequential(nn.Linear(4, 5), Fixed(), nn.Linear(5, 5), nn.Linear(5, 2)).eval()
    runs = MeasuringRuns(model, [[Example.of(torch.randn(6, 4))]], False, "probes")
    weights = {"0.weight": (1, ALL), "2.weight": (1, ALL)}
    runs.measure(weights)
    wide = {"0.weight": torch.randn(7, 4), "0.bias": torch.randn(7), "2.weight": torch.randn(5, 7)}
    with pytest.raises(Unmeasurable):  # which is tried a second time, with gradients
        runs.measure(weights, tensors=wide)
    with pytest.raises(Unmeasurable):  # at the product behind which all would have been seen
        runs.measure(weights, tensors={"2.weight": torch.randn(5, 7)})
