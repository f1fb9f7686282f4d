"""Checkpoints of pruned models: what state dicts say, models that follow them, and errors that change nothing."""

from __future__ import annotations

import copy
import dataclasses
import io
import pickle
import re
import threading
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from breadth import crossed
from fitting import assert_same, make_trainer, mlp
from networks import NETWORKS, Attention, assert_untouched, make, snapshot
from torch import nn
from torch.nn.utils import parametrizations
from torch.optim.swa_utils import AveragedModel

from lightning_coreset import PrunedCheckpointMixin, load_pruned, make_plain, make_resizable, prune
from lightning_coreset.checkpoint import store_metadata_as_item
from lightning_coreset.structure import find_groups
from lightning_coreset.surgery import (
    ModelShapes,
    Snapshot,
    apply_changes,
    named_tensors,
    original_shapes,
    resize,
    scale_counts,
    slice_members,
)


def cut(model: nn.Module, x: torch.Tensor) -> nn.Module:
    """Take every second channel of every group."""
    kept = [(group, list(range(0, group.size, 2))) for group in find_groups(model, x)]
    apply_changes(model, slice_members(named_tensors(model), kept), scale_counts(model, kept))
    return model


def sizes_of(name: str) -> list[nn.Module]:
    """The same network in three sizes, the largest first, each with weights of its own; all resizable."""
    models = []
    for times in range(3):
        model, x = make(name)
        make_resizable(model)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter))
        for _ in range(times):
            cut(model, x)
        models.append(model)
    return models


def through_a_file(state):
    """What ``torch.load`` makes of a saved state dict, with no code unpickled."""
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def assert_twins(one: nn.Module, other: nn.Module) -> None:
    """Two models have the same tensors and remember the same sizes, and so compute the same."""
    assert_same(one.state_dict(), other.state_dict())
    assert str(one) == str(other)
    assert ModelShapes.of(one).sizes == ModelShapes.of(other).sizes


# ---- loading smaller and larger


@pytest.mark.parametrize(("network", "events"), crossed(NETWORKS, [(0, 1), (0, 2), (1, 0), (1, 2), (2, 0), (2, 1)]))
def test_a_model_follows_what_it_loads(network, events):
    of, into = events
    models, x = sizes_of(network), make(network)[1]
    source, model = models[of], models[into]
    objects = {name: id(parameter) for name, parameter in model.named_parameters()}
    assert ModelShapes.of(source).differs_from(ModelShapes.of(model))

    model.load_state_dict(through_a_file(source.state_dict()))

    assert_twins(model, source)
    assert torch.equal(model(x), source(x))
    assert {name: id(parameter) for name, parameter in model.named_parameters()} == objects
    model.train()(x).sum().backward()
    assert all(p.grad is not None and p.grad.shape == p.shape for p in model.parameters())


@pytest.mark.parametrize(
    ("network", "events"),
    crossed([name for name in NETWORKS if name != "attention"], [(0, 2), (1, 2), (2, 0), (2, 1)]),
)
def test_shapes_tell_where_there_is_no_metadata(network, events):
    of, into = events
    models = sizes_of(network)
    models[into].load_state_dict(dict(models[of].state_dict()))
    assert_twins(models[into], models[of])


@pytest.mark.parametrize("assign", [True, False])
@pytest.mark.parametrize(("of", "into"), [(0, 2), (2, 0)])
def test_assigned_tensors_are_those_of_the_state_dict(assign, of, into):
    models = sizes_of("mobilenet")
    state = models[of].state_dict()
    models[into].load_state_dict(state, assign=assign)
    assert_twins(models[into], models[of])
    assert (models[into].head.weight.data_ptr() == state["head.weight"].data_ptr()) is assign


def test_a_model_without_memory_follows_when_tensors_are_assigned():
    _, small, _ = sizes_of("mobilenet")
    with torch.device("meta"):
        model = make_resizable(NETWORKS["mobilenet"].build())
    model.load_state_dict(small.state_dict(), assign=True)
    assert_twins(model, small)


def test_parameters_stay_what_they_are():
    model, x = make("vgg", torch.float32)
    pruned = cut(make_resizable(copy.deepcopy(model)), x)
    make_resizable(model).to(torch.bfloat16).to(memory_format=torch.channels_last)
    model[0].weight.requires_grad_(False)
    before = {name: (p, p.requires_grad, p.dtype) for name, p in model.named_parameters()}

    model.load_state_dict(pruned.state_dict())

    for name, parameter in model.named_parameters():
        assert (parameter, parameter.requires_grad, parameter.dtype) == before[name]
    assert model[3].weight.is_contiguous(memory_format=torch.channels_last)
    assert model[3].weight.shape == pruned[3].weight.shape


class Tied(nn.Module):
    """A language model whose head is its embedding, which stands in two places."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Embedding(11, 10), nn.Linear(10, 11)
        self.head.weight = self.embed.weight
        self.again = self.embed

    def forward(self, tokens):
        return self.head(self.embed(tokens).relu())


def test_tied_weights_stay_tied():
    pruned, model, tokens = make_resizable(Tied()), make_resizable(Tied()), torch.arange(11)[None]
    cut(pruned, tokens)
    model.load_state_dict(through_a_file(pruned.state_dict()))
    assert model.head.weight is model.embed.weight is model.again.weight
    assert model.head.weight.shape == (11, 5)
    assert_twins(model, pruned)
    assert torch.equal(model(tokens), pruned(tokens))


def test_tied_weights_of_two_shapes_are_an_error():
    model = make_resizable(Tied())
    state, before = dict(cut(copy.deepcopy(model), torch.arange(11)[None]).state_dict()), snapshot(model)
    state["head.weight"] = model.head.weight.detach()
    with pytest.raises(ValueError, match="tied"):
        model.load_state_dict(state)
    assert_untouched(model, before)


class Scaled(nn.Module):
    """Has a constant per channel that no state dict holds."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 6), nn.Linear(6, 2)
        self.register_buffer("scale", torch.arange(1.0, 7.0), persistent=False)

    def forward(self, x):
        return self.b(self.scale * self.a(x))


def test_constants_that_are_not_saved_follow_too():
    x, pruned, model = torch.randn(3, 4), make_resizable(Scaled()), make_resizable(Scaled())
    original = copy.deepcopy(model)
    apply_changes(pruned, slice_members(named_tensors(pruned), [(find_groups(pruned, x)[0], [1, 4])]))
    model.load_state_dict(through_a_file(pruned.state_dict()))
    assert model.scale.tolist() == [2, 5]
    assert torch.equal(model(x), pruned(x))
    model.load_state_dict(original.state_dict())
    assert model.scale.tolist() == [1, 2, 3, 4, 5, 6]
    assert torch.equal(model(x), original(x))


# ---- what state dicts say


def test_a_state_dict_tells_before_and_after():
    model = make_resizable(nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)))
    prune(model, torch.randn(2, 4), 0.5)
    assert model.state_dict()._metadata[""]["lightning_coreset"] == {
        "original": {
            "shapes": {"0.weight": [8, 4], "0.bias": [8], "2.weight": [2, 8]},
            "sizes": {"0.out_features": 8, "2.in_features": 8},
            "constants": {},
        },
        "pruned": {
            "shapes": {"0.weight": [4, 4], "0.bias": [4], "2.weight": [2, 4]},
            "sizes": {"0.out_features": 4, "2.in_features": 4},
            "constants": {},
        },
    }


def test_the_original_is_that_before_the_first_pruning():
    model = make_resizable(mlp(4, 16, 2))
    for ratio in (0.5, 0.5):
        prune(model, torch.randn(2, 4), ratio)
    record = model.state_dict()._metadata[""]["lightning_coreset"]
    assert record["original"]["shapes"]["0.weight"] == [16, 4]
    assert record["pruned"]["shapes"]["0.weight"] == [4, 4]


@pytest.mark.parametrize("history", ["never pruned", "loaded back", "put back"])
def test_what_is_not_pruned_is_saved_as_ever(history):
    plain = make("mobilenet")[0]
    model = make_resizable(copy.deepcopy(plain))
    before = Snapshot(model)
    if history != "never pruned":
        cut(model, make("mobilenet")[1])
        model.load_state_dict(plain.state_dict()) if history == "loaded back" else before.restore()
    files = io.BytesIO(), io.BytesIO()
    torch.save(plain.state_dict(), files[0])
    torch.save(model.state_dict(), files[1])
    assert files[0].getvalue() == files[1].getvalue()


def test_nothing_of_ours_is_a_parameter_a_buffer_or_a_name():
    plain, x = make("mlp")
    model = cut(make_resizable(make_resizable(copy.deepcopy(plain))), x)
    assert model.state_dict().keys() == plain.state_dict().keys()
    assert len(model._state_dict_hooks) == len(model._load_state_dict_pre_hooks) == 1


def test_an_average_tells_in_its_items(pruned_average):
    """Whatever is made of the items, as by Lightning's WeightAveraging, heads are known again."""
    average, small = pruned_average
    state = {name[7:]: value for name, value in average.state_dict().items() if name.startswith("module.")}
    assert state.keys() - small.state_dict().keys() == {"lightning_coreset"}
    fresh = make_resizable(make("attention")[0])
    assert fresh.load_state_dict(through_a_file(state)) == ([], [])
    assert_twins(fresh, small)
    fresh = AveragedModel(make_resizable(make("attention")[0]))
    fresh.load_state_dict({"module." + name: value for name, value in state.items()} | {"n_averaged": torch.tensor(0)})
    assert_twins(fresh.module, small)
    assert "lightning_coreset" in state


@pytest.fixture
def pruned_average():
    """A pruned model, and its average, which tells so in its items, too."""
    _, small, _ = sizes_of("attention")
    average = AveragedModel(small)
    store_metadata_as_item(store_metadata_as_item(average.module))
    return average, small


def test_an_average_that_is_not_pruned_has_no_more_items(pruned_average):
    average, _ = pruned_average
    average.module.load_state_dict(make("attention")[0].state_dict())
    assert average.state_dict().keys() == AveragedModel(make("attention")[0]).state_dict().keys()


def test_what_is_made_plain_is_saved_as_ever(pruned_average):
    plain = make_plain(pruned_average[0].module)
    state = plain.state_dict()
    assert state.keys() == make("attention")[0].state_dict().keys()
    assert state._metadata[""] == {"version": 1}
    with pytest.raises(RuntimeError, match="size mismatch"):
        plain.load_state_dict(make("attention")[0].state_dict())


# ---- copies, parts and wholes


def compiled(model: nn.Module) -> nn.Module:
    return torch.compile(model, backend="eager")


@pytest.mark.parametrize(
    "duplicate",
    [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model)), lambda model: AveragedModel(model).module],
    ids=["deepcopy", "pickle", "averaged"],
)
def test_copies_do_the_same_and_are_their_own(duplicate):
    large, small, _ = sizes_of("resnet")
    twin = duplicate(small)
    twin.load_state_dict(large.state_dict())
    assert_twins(twin, large)
    assert small.conv1.out_channels < large.conv1.out_channels
    twin.load_state_dict(small.state_dict())
    assert_twins(twin, small)


@pytest.mark.parametrize("whole", [AveragedModel, nn.Sequential, compiled, lambda model: nn.ModuleDict({"net": model})])
def test_a_part_of_a_model_follows_as_well(whole):
    large, small, _ = sizes_of("resnet")
    wholes = whole(small), whole(large)  # an averaged model is a copy, which must do the same
    states = [through_a_file(each.state_dict()) for each in wholes]
    for model, state in zip(wholes, reversed(states), strict=True):
        model.load_state_dict(state)
        assert_same(model.state_dict(), state)


@pytest.mark.parametrize("kind", ["whole", "part"])
def test_compiled_models_prune_and_load(kind):
    def build():
        model = mlp(6, 16, 12, 3)
        return compiled(model) if kind == "whole" else nn.Sequential(compiled(model))

    x, pruned, fresh = torch.randn(2, 6), make_resizable(build()), make_resizable(build())
    prune(pruned, x, 0.5)
    fresh.load_state_dict(through_a_file(pruned.state_dict()))
    assert torch.equal(fresh(x), pruned(x))
    assert [p.shape for p in fresh.parameters()] == [p.shape for p in pruned.parameters()]


def test_a_network_pruned_before_it_became_a_part():
    net, x = make("attention")
    fresh = make_resizable(nn.Sequential(copy.deepcopy(net)))
    whole = make_resizable(nn.Sequential(cut(net, x)))
    cut(whole, x)
    fresh.load_state_dict(through_a_file(whole.state_dict()))
    assert_twins(fresh, whole)
    fresh.load_state_dict(nn.Sequential(make("attention")[0]).state_dict())
    assert fresh[0].num_heads == 4


def test_exchanged_modules_are_remembered_by_name():
    """As Lightning does it for ``sync_batchnorm``, between loading a checkpoint and training on."""
    large, small, _ = sizes_of("vgg")
    model = nn.SyncBatchNorm.convert_sync_batchnorm(copy.deepcopy(small))
    large.load_state_dict(through_a_file(model.state_dict()))
    assert_same(large.state_dict(), small.state_dict())
    model.load_state_dict(make("vgg")[0].state_dict())
    assert model[1].num_features == 6


def test_a_copy_can_be_given_the_layout_of_its_model():
    _, small, smaller = sizes_of("attention")
    resize(small, ModelShapes.of(smaller))
    assert str(small) == str(smaller)
    assert small.num_heads == smaller.num_heads
    assert small.state_dict()._metadata[""]["lightning_coreset"]["original"]["sizes"]["num_heads"] == 4


# ---- errors that change nothing


def without(state, *names):
    return {name: value for name, value in state.items() if name not in names}


def shortened(name, plain=False):
    def changed(state):
        state = dict(state) if plain else copy.copy(state)
        state[name] = state[name][:1]
        return state

    return changed


def recorded(change):
    """A change to the record, as of a damaged file."""

    def changed(state):
        state = copy.deepcopy(state)
        change(state._metadata[""]["lightning_coreset"])
        return state

    return changed


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: without(s, "bn1.weight"), "'bn1.weight' is missing"),
        (lambda s: {**s, "extra": torch.ones(1)}, "'extra' is not one of the model's"),
        (lambda s: {**s, "bn1.bias": "text"}, "'bn1.bias' is no tensor but of type str"),
        (
            lambda s: {**s, "stem.weight": torch.ones(7, 2, 3, 3)},
            r"\(7, 2, 3, 3\), which is not a part of the original",
        ),
        (lambda s: {**s, "stem.weight": torch.ones(6, 2)}, r"\(6, 2\), which is not a part of"),
        (
            lambda s: {**s, "stem.weight": torch.ones(0, 2, 3, 3)},
            r"\(0, 2, 3, 3\), which is not a part of the original",
        ),
        (shortened("bn1.weight", plain=True), "'bn1.bias' has shape .4,. where its module has 1 channels"),
        (shortened("head.bias", plain=True), "'head.bias' has shape .1,. where its module has 3 channels"),
        (shortened("conv1.weight"), "'conv1.weight' has shape .* where .* is recorded"),
        (shortened("head.bias"), r"'head.bias' has shape \(1,\) before pruning where the model's is \(3,\)"),
        (recorded(lambda r: r["original"]["shapes"].update({"bn1.weight": [9]})), r"has shape \(9,\) before pruning"),
        (recorded(lambda r: r["original"]["sizes"].update({"conv1.out_channels": 9})), "is 9 before pruning"),
        (recorded(lambda r: r["original"]["sizes"].update({"conv1.heads": 9})), "is 9 before pruning .* is None"),
        (
            recorded(lambda r: r["pruned"]["sizes"].update({"conv1.out_channels": 3})),
            r"does not fit groups=1, in_channels=3, out_channels=3",
        ),
        (
            recorded(lambda r: r["pruned"]["sizes"].update({"conv1.groups": 0})),
            r"does not fit groups=0, in_channels=3, out_channels=4",
        ),
        (recorded(lambda r: r.pop("pruned")), "cannot read it .KeyError.'pruned'"),
        (recorded(lambda r: r["pruned"].update(sizes=[1])), "cannot read it"),
        (recorded(lambda r: r["pruned"].update(constants={"a": 1})), "cannot read it"),
    ],
)
@pytest.mark.parametrize("at_hand", [0, 2])
def test_what_cannot_be_this_model_changes_nothing(change, message, at_hand):
    models = sizes_of("resnet")
    state, model = change(models[1].state_dict()), models[at_hand]
    before, record = snapshot(model), copy.deepcopy(model.state_dict()._metadata[""])
    with pytest.raises(ValueError, match=message):
        model.load_state_dict(state)
    assert_untouched(model, before)
    assert model.state_dict()._metadata[""] == record


def test_the_checkpoint_of_a_model_of_another_width_changes_nothing():
    """Its shapes might be a pruned model's, but it says itself that they are of another one."""
    other, model = make_resizable(mlp(4, 16, 2)), make_resizable(mlp(4, 32, 2))
    prune(other, torch.randn(2, 4), 0.5)
    before = snapshot(model)
    with pytest.raises(
        ValueError, match=r"'0.weight' has shape \(16, 4\) before pruning where the model's is \(32, 4\)"
    ):
        model.load_state_dict(other.state_dict())
    assert_untouched(model, before)


def test_heads_are_not_guessed():
    _, small, smaller = sizes_of("attention")
    before = snapshot(small)
    with pytest.raises(ValueError, match="shapes do not tell what became of 'num_heads'"):
        small.load_state_dict(dict(smaller.state_dict()))
    assert_untouched(small, before)
    small.load_state_dict(dict(make("attention")[0].state_dict()))
    assert small.num_heads == 4


def test_another_number_of_heads_in_tensors_of_the_same_shapes():
    model, other = make_resizable(Attention()), make_resizable(Attention())
    cut(other, torch.randint(0, 11, (2, 5)))
    state = model.state_dict()
    state._metadata[""].update(other.state_dict()._metadata[""])
    before = snapshot(model)
    with pytest.raises(ValueError, match="is recorded"):
        model.load_state_dict(state)
    assert_untouched(model, before)


class Replaced(nn.MultiheadAttention):
    pass


@pytest.mark.parametrize(
    ("layer", "names", "reason"),
    [
        (Replaced(4, 2), ("out_proj.weight",), "MultiheadAttention with code of its own"),
        (parametrizations.orthogonal(nn.Linear(4, 6)), ("parametrizations.weight.original",), "parametrized"),
    ],
)
def test_what_is_never_pruned_may_not_shrink(layer, names, reason):
    model = make_resizable(nn.Sequential(layer))
    state = {name: value[:1] if name[2:] in names else value for name, value in model.state_dict().items()}
    before = snapshot(model)
    with pytest.raises(ValueError, match=f"has shape .* where the model's is .*, but it .*{reason}"):
        model.load_state_dict(state)
    assert_untouched(model, before)


def test_without_another_size_torch_decides():
    model = make_resizable(mlp(4, 6, 2))
    state = without(model.state_dict(), "0.bias") | {"extra": torch.ones(1)}
    with pytest.raises(RuntimeError, match=r'Missing key.*"0\.bias"'):
        model.load_state_dict(state)
    assert model.load_state_dict(state, strict=False).missing_keys == ["0.bias"]


class Lenient(PrunedCheckpointMixin):
    def __init__(self, head=True):
        super().__init__()
        self.net = mlp(4, 16, 3)
        if head:
            self.head = nn.Linear(3, 2)

    def forward(self, x):
        return self.net(x)


@pytest.mark.parametrize("told", ["by the mixin", "by strict_loading"])
def test_other_layers_may_be_missing_when_loading_is_not_strict(told):
    pruned, model = Lenient(head=False), Lenient()
    prune(pruned, torch.randn(2, 4), 0.5)
    if told == "by strict_loading":
        model.strict_loading = False
        nn.Module.load_state_dict(model, pruned.state_dict(), strict=False)
    else:
        model.load_state_dict(pruned.state_dict(), strict=False)
    assert_same(model.net.state_dict(), pruned.net.state_dict())
    back = Lenient()
    back.load_state_dict(model.state_dict())
    assert back.head.weight.shape == (2, 3)


@pytest.mark.parametrize(
    "model", [Lenient(), make_resizable(nn.ModuleDict({"net": mlp(4, 16, 3), "head": nn.Linear(3, 2)}))]
)
def test_layers_that_were_pruned_may_not_be_missing(model):
    pruned = Lenient(head=False)
    prune(pruned, torch.randn(2, 4), 0.5)
    state = pruned.state_dict()
    del state["net.0.bias"]
    before = snapshot(model)
    with pytest.raises(ValueError, match=r"'net\.0\.bias' is missing"):
        model.load_state_dict(state, strict=False)
    assert_untouched(model, before)


class Growing(nn.Module):
    """Has a buffer that grows, and a way to load it."""

    def __init__(self, rows=0):
        super().__init__()
        self.register_buffer("rows", torch.zeros(rows, 3))

    def _load_from_state_dict(self, state_dict, prefix, *others):
        self.rows = torch.zeros_like(state_dict[prefix + "rows"])
        super()._load_from_state_dict(state_dict, prefix, *others)

    def forward(self, x):
        return x


def test_modules_that_load_themselves_still_do():
    build = lambda rows: make_resizable(nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2), Growing(rows)))  # noqa: E731
    source, model = build(5), build(0)
    model.load_state_dict(source.state_dict())
    assert model[3].rows.shape == (5, 3)
    prune(source, torch.randn(2, 4), 0.5)
    source[3].rows = torch.ones(7, 3)
    model.load_state_dict(source.state_dict())
    assert_twins(model, source)


# ---- without a Trainer


class Net(nn.Sequential):
    """A plain module with an argument."""

    def __init__(self, width: int = 16) -> None:
        super().__init__(nn.Linear(4, width), nn.ReLU(), nn.Linear(width, 3))


class Module(pl.LightningModule):
    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.net = Net(width)

    def forward(self, x):
        return self.net(x)


class Mixed(PrunedCheckpointMixin, Module):
    pass


class MixedLast(Module, PrunedCheckpointMixin):
    pass


@pytest.fixture
def file_of(tmp_path):
    """Makes a pruned model and its file: a Lightning checkpoint, or a state dict of a plain module."""

    def write(model):
        path = tmp_path / "model.ckpt"
        prune(make_resizable(model), torch.randn(2, 4), 0.5)
        if isinstance(model, pl.LightningModule):
            trainer = make_trainer()
            trainer.strategy.connect(model)
            trainer.save_checkpoint(path, weights_only=True)
        else:
            torch.save(model.state_dict(), path)
        return path

    return write


@pytest.mark.parametrize("cls", [Net, Module, Mixed])
@pytest.mark.parametrize("opened", [False, True])
def test_load_pruned(file_of, cls, opened):
    model = cls(width=24)
    path = file_of(model)
    arguments = {"width": 24} if cls is Net else {}
    with path.open("rb") as file:
        loaded = load_pruned(cls, file if opened else path, **arguments)
    assert type(loaded) is cls
    assert "load_state_dict" not in vars(cls)
    assert_twins(loaded, model)


@pytest.mark.parametrize("cls", [Net, Module])
def test_only_what_was_asked_to_follows(file_of, cls):
    loaded = load_pruned(cls, file_of(cls()))
    with pytest.raises(RuntimeError, match="size mismatch"):
        cls().load_state_dict(loaded.state_dict())


@pytest.mark.parametrize("cls", [Mixed, MixedLast])
def test_load_from_checkpoint_with_the_mixin(file_of, cls):
    model = cls(width=24)
    loaded = cls.load_from_checkpoint(file_of(model))
    assert_twins(loaded, model)


def test_arguments_reach_the_class_and_lightning(file_of):
    path = file_of(Module(width=24))
    with pytest.raises(ValueError, match=r"has shape \(24, 4\) before pruning where the model's is \(16, 4\)"):
        load_pruned(Module, str(path), width=16)
    loaded = load_pruned(Module, str(path), width=24, map_location="cpu", strict=False)
    assert loaded.net[0].out_features < 24


def test_a_state_dict_of_a_lightning_module(file_of, tmp_path):
    model = Module()
    file_of(model)
    torch.save(model.state_dict(), tmp_path / "plain.pt")
    assert_twins(load_pruned(Module, tmp_path / "plain.pt"), model)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore:.*LightningCLI.*args:UserWarning")
@pytest.mark.parametrize("subclasses", [True, False])
def test_a_checkpoint_of_lightning_cli(file_of, tmp_path, subclasses):
    """In subclass mode the checkpoint tells the class."""
    pytest.importorskip("jsonargparse")
    from lightning.pytorch.cli import LightningCLI

    name = f"--model={Module.__module__}.{Module.__qualname__}"
    cli = LightningCLI(
        pl.LightningModule if subclasses else Module,
        subclass_mode_model=subclasses,
        args=[*([name] if subclasses else []), f"--model{'.init_args' * subclasses}.width=24"],
        run=False,
        save_config_callback=None,
        seed_everything_default=False,
        trainer_defaults={"logger": False, "accelerator": "cpu"},
    )
    path = file_of(cli.model)
    hyper_parameters = torch.load(path, weights_only=True)["hyper_parameters"]
    assert hyper_parameters["_instantiator"] == "lightning.pytorch.cli.instantiate_module"

    loaded = load_pruned(pl.LightningModule if subclasses else Module, path)

    assert type(loaded) is Module
    assert_twins(loaded, cli.model)
    assert "load_state_dict" not in vars(pl.LightningModule)


@pytest.mark.parametrize("cls", [Net, Module])
@pytest.mark.parametrize("length", [0, 10, 1000, -1000, -10])
def test_a_file_cut_short_is_a_clear_error(file_of, cls, length):
    path = file_of(cls())
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(ValueError, match=r"Expected a checkpoint in .*model.ckpt.* but cannot read it"):
        load_pruned(cls, path)


@pytest.mark.parametrize(
    ("content", "cls", "message"),
    [
        ({"a": 1}, Net, "Expected a state dict or a checkpoint of Lightning in .* but got something else"),
        ([torch.ones(1)], Module, "got something else"),
        ({"state_dict": {}}, Module, "got something else"),
        (
            {"state_dict": {"net.0.weight": torch.ones(1)}},
            Net,
            "Expected the state dict of a Net .* checkpoint of Light",
        ),
        ({"0.weight": torch.ones(3, 4)}, Net, "'0.bias' is missing"),
        ({"code": Net}, Net, r"holds objects: .*test_checkpoint\.Net\. Reading .* pass weights_only=False"),
    ],
)
def test_a_foreign_file_is_a_clear_error(tmp_path, content, cls, message):
    torch.save(content, tmp_path / "file")
    with pytest.raises(ValueError, match=message):
        load_pruned(cls, tmp_path / "file")


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(FileNotFoundError):
        load_pruned(Net, tmp_path / "nothing")


class Touch:
    """Unpickled, it leaves a trace."""

    ran = False

    def __reduce__(self):
        return (exec, ("import test_checkpoint_trace",))


@pytest.mark.parametrize("cls", [Net, Module])
def test_no_code_of_a_file_runs(file_of, cls):
    path = file_of(cls())
    torch.save({**torch.load(path, weights_only=True), "more": Touch()}, path)
    with pytest.raises(ValueError, match=r"it holds objects: builtins\.exec\. .* if you trust it"):
        load_pruned(cls, path)
    with pytest.raises(ModuleNotFoundError, match="test_checkpoint_trace"):
        load_pruned(cls, path, weights_only=False)


@dataclasses.dataclass
class Settings:
    width: int = 24


class Configured(Module):
    """Its hyperparameter is an object."""

    def __init__(self, settings: Any) -> None:
        super().__init__(settings.width)
        self.save_hyperparameters()


class Wrapping(pl.LightningModule):
    """Its hyperparameter is its network, which is pruned."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.net = net

    def forward(self, x):
        return self.net(x)


def configured(kind: str) -> pl.LightningModule:
    if kind == "module":
        return Wrapping(Net(24))
    if kind == "dataclass":
        return Configured(Settings())
    return Configured(pytest.importorskip("omegaconf").OmegaConf.create({"width": 24}))


@pytest.mark.filterwarnings("ignore:.*is an instance of `nn.Module` and is already saved")
@pytest.mark.parametrize("kind", ["module", "dataclass", "omegaconf"])
def test_hyperparameters_that_are_objects(file_of, kind):
    model = configured(kind)
    path = file_of(model)
    for file in (path, io.BytesIO(path.read_bytes())):
        with pytest.raises(
            ValueError, match=r"Expected tensors and plain data in .*: if you trust it, pass weights_only"
        ):
            load_pruned(type(model), file)
    for file in (path, io.BytesIO(path.read_bytes())):
        loaded = load_pruned(type(model), file, weights_only=False)
        assert_twins(loaded, model)
        assert (
            loaded.state_dict()._metadata[""]["lightning_coreset"]
            == (model.state_dict()._metadata[""]["lightning_coreset"])
        )


def test_classes_that_are_allowed_alone(file_of):
    model = Configured(Settings())
    path = file_of(model)
    with torch.serialization.safe_globals([Settings]):
        assert_twins(load_pruned(Configured, path), model)


def test_a_class_that_is_no_more(file_of, monkeypatch):
    path = file_of(Configured(Settings()))
    monkeypatch.delattr(f"{__name__}.Settings")
    with pytest.raises(ValueError, match=r"cannot read it: it is damaged .* or refers to what is not there.*Settings"):
        load_pruned(Configured, path, weights_only=False)


def test_a_trusted_file_may_hold_more(file_of):
    model = Module(width=24)
    path = file_of(model)
    torch.save({**torch.load(path, weights_only=True), "more": Net}, path)
    assert_twins(load_pruned(Module, path, weights_only=False), model)


def test_threads_do_not_disturb_each_other(file_of):
    model, loaded = Module(), []
    path = file_of(model)
    threads = [threading.Thread(target=lambda: loaded.append(load_pruned(Module, path))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(loaded) == 8
    assert "load_state_dict" not in vars(Module)


def test_an_error_leaves_the_class_as_it_was(file_of):
    path = file_of(Module())
    own = vars(Mixed).get("load_state_dict")
    with pytest.raises(ValueError, match="before pruning"):
        load_pruned(Mixed, path, width=99)
    assert vars(Mixed).get("load_state_dict") is own


@pytest.mark.filterwarnings("ignore:.*exists and is not empty", "ignore:.*does not have many workers")
def test_the_guide_runs(tmp_path, monkeypatch):
    pytest.importorskip("safetensors")
    monkeypatch.chdir(tmp_path)
    guide = Path(__file__).parents[1] / "docs" / "checkpoints.md"
    code = "\n".join(re.findall(r"```python\n(.*?)```", guide.read_text(), flags=re.DOTALL))
    names: dict = {}
    exec(compile(code, str(guide), "exec"), names)
    assert names["model"].net[0].out_features == 32
    assert_same(names["fresh"].state_dict(), names["net"].state_dict())


PICKLED_BY_0_1 = b"""ccopy_reg
_reconstructor
(clightning_coreset.surgery.layout
Layout
c__builtin__
object
Ntp4
R(dVshapes
(dV0.weight
(I16
I4
tsV0.bias
(I16
tsV2.weight
(I2
I16
tssVsizes
(dV0.out_features
I16
sV2.in_features
I16
ssVconstants
(dsb."""
"""What version 0.1 kept on a pruned model, as ``pickle.dumps(..., protocol=0)`` writes it."""


def test_a_whole_model_pickled_by_version_0_1_can_be_loaded(tmp_path):
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    vars(model)["_coreset_originals"] = pickle.loads(PICKLED_BY_0_1)
    for hook in ("_write_record", "_write_item", "_fit"):  # functions that such a model refers to by name
        assert callable(pickle.loads(f"clightning_coreset.checkpoint.hooks\n{hook}\n.".encode()))

    assert original_shapes(model).shapes["0.weight"] == (16, 4)
    whole = make_resizable(nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 2)))
    make_resizable(model).load_state_dict(whole.state_dict())
    assert model[0].out_features == 16
    torch.save(model, tmp_path / "model.pt")
    assert b"surgery.layout" not in (tmp_path / "model.pt").read_bytes()
