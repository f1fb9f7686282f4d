"""State dicts that lost their metadata: equal to the bit with a record or where shapes tell, an error otherwise."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from breadth import some_of
from fitting import assert_same, mlp
from networks import assert_untouched, snapshot
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel
from zoo import THIRD_PARTY, ZOO
from zoo.oracle import build as build_entry
from zoo.running import call, results

from lightning_coreset import load_pruned, make_plain, make_resizable, prune, resizable
from lightning_coreset.checkpoint import KEY, resize_to_state_dict
from lightning_coreset.checkpoint.read_names import names_read
from lightning_coreset.structure import ModuleSpec, register_module
from lightning_coreset.surgery import ModelShapes

safetensors = pytest.importorskip("safetensors.torch")

X = torch.randn(2, 5, 32, generator=torch.Generator().manual_seed(0))


class Attention(nn.Module):
    """Its number of heads is in no tensor's shape."""

    def __init__(self) -> None:
        super().__init__()
        self.heads = 4
        self.q, self.k, self.v, self.o = (nn.Linear(32, 32) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        return self.attend(x, self.heads)

    def attend(self, x: Tensor, heads: int) -> Tensor:
        q, k, v = (layer(x).unflatten(2, (heads, -1)).transpose(1, 2) for layer in (self.q, self.k, self.v))
        y = (q @ k.transpose(2, 3) / q.shape[3] ** 0.5).softmax(3) @ v
        return x + self.o(y.transpose(1, 2).flatten(2))


class Net(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(nn.Linear(32, 32), Attention(), nn.Linear(32, 3))


@pytest.fixture(scope="module")
def pruned_once() -> Net:
    model = Net()
    prune(model, X, {"1.*": 0.5})
    return model


@pytest.fixture
def pruned(pruned_once: Net) -> Net:
    """Pruned, with its record as a tensor: 2 heads of 8 where 4 of 4 would have the same shapes."""
    model = copy.deepcopy(pruned_once)
    assert model[1].heads == 2
    return make_resizable(model, record="tensor")


def without_record(state: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in state.items() if not name.endswith(KEY)}


def assert_computes_the_same(model: nn.Module, other: nn.Module, x: Tensor = X) -> None:
    assert torch.equal(model.eval()(x), other.eval()(x))
    assert not ModelShapes.of(model).differs_from(ModelShapes.of(other))


# ---- ways by which tensors travel


def through_safetensors(state, folder):
    safetensors.save_file(dict(state), folder / "file.safetensors")
    return safetensors.load_file(folder / "file.safetensors")


def through_torch(state, folder):
    torch.save({"epoch": 3, "weights": dict(state)}, folder / "file.pt")
    return torch.load(folder / "file.pt", weights_only=True)["weights"]


def cloned(state, folder):
    return {name: value.clone() for name, value in state.items()}


def renamed_and_back(state, folder):
    lightning = {f"model.{name}": value for name, value in state.items()}
    return {name.removeprefix("model."): value for name, value in lightning.items()}


WAYS = (through_safetensors, through_torch, cloned, renamed_and_back)


@pytest.mark.parametrize("way", WAYS)
def test_the_record_goes_along_as_a_tensor(pruned, way, tmp_path):
    fresh = make_resizable(Net())
    assert fresh.load_state_dict(way(pruned.state_dict(), tmp_path)) == ([], [])
    assert_computes_the_same(fresh, pruned)
    # What was loaded says it again.
    again = Net()
    with resizable():
        again.load_state_dict(through_torch(make_resizable(fresh, record="tensor").state_dict(), tmp_path))
    assert_computes_the_same(again, pruned)


@pytest.mark.parametrize("way", WAYS)
def test_without_a_record_nothing_is_guessed(pruned, way, tmp_path):
    fresh = make_resizable(Net())
    before = snapshot(fresh)
    with pytest.raises(ValueError, match=r"do not tell what became of '1\.heads' \(4 as built\), but got one that"):
        fresh.load_state_dict(way(without_record(pruned.state_dict()), tmp_path))
    assert_untouched(fresh, before)


def test_metadata_is_enough_and_prune_leaves_it(pruned_once, tmp_path):
    model, fresh = pruned_once, make_resizable(Net())
    torch.save(model.state_dict(), tmp_path / "net.pt")
    fresh.load_state_dict(torch.load(tmp_path / "net.pt", weights_only=True))
    assert_computes_the_same(fresh, model)
    assert not any(name.endswith(KEY) for name in model.state_dict())


def test_numbers_may_be_given(pruned):
    state = without_record(pruned.state_dict())
    fresh = make_resizable(Net())
    resize_to_state_dict(fresh, state, sizes={"*.heads": 2})
    fresh.load_state_dict(state)
    assert_computes_the_same(fresh, pruned)


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        (["1.heads"], r"Expected `sizes` to be a dict of names and numbers but got \['1\.heads'\]"),
        ({"1.head": 2}, "Expected names in `sizes` of numbers that the model remembers but got '1.head'"),
        ({"1.heads": 5}, "Expected at most 4 in `sizes`, which '1.heads' is without pruning, but got 5"),
        ({"1.heads": 0}, "but got 0"),
        ({"1.heads": True}, "but got True"),
        ({"1.heads": (2,)}, r"but got \(2,\)"),
    ],
)
def test_wrong_numbers_are_refused(pruned, sizes, message):
    fresh = make_resizable(Net())
    before = snapshot(fresh)
    with pytest.raises(ValueError, match=message):
        resize_to_state_dict(fresh, without_record(pruned.state_dict()), sizes=sizes)
    assert_untouched(fresh, before)


def test_numbers_may_not_be_given_beside_a_record(pruned):
    for state in (pruned.state_dict(), dict(pruned.state_dict())):
        with pytest.raises(ValueError, match="Expected no `sizes` for a state dict that says itself"):
            resize_to_state_dict(Net(), state, sizes={"1.heads": 2})


def test_the_whole_model_is_loaded_as_ever_without_a_record(pruned, tmp_path):
    plain = Net()
    for model in (make_resizable(Net()), copy.deepcopy(pruned)):
        model.load_state_dict(through_safetensors(plain.state_dict(), tmp_path))
        assert_computes_the_same(model, plain)
        assert model.state_dict().keys() == plain.state_dict().keys()  # no record is left of it


def test_the_record_is_where_all_of_it_lies(pruned):
    """So a part that is taken out of a state dict takes it along."""
    whole = nn.ModuleDict({"net": nn.Sequential(pruned), "other": nn.Linear(2, 2)})
    state = dict(whole.state_dict())
    assert {name for name in state if name.endswith(KEY)} == {f"net.0.1.{KEY}"}
    part = {name.removeprefix("net.0."): value for name, value in state.items() if name.startswith("net.0.")}
    (fresh := make_resizable(Net())).load_state_dict(part)
    assert_computes_the_same(fresh, pruned)
    fresh = make_resizable(nn.ModuleDict({"net": nn.Sequential(Net()), "other": nn.Linear(2, 2)}))
    assert fresh.load_state_dict(state) == ([], [])
    assert_computes_the_same(fresh["net"], pruned)


def test_a_part_that_was_asked_to_says_it_itself(tmp_path):
    """Surgery is done on the whole, of which the part is saved."""
    whole = nn.Sequential(nn.Sequential(Net()))
    part = make_resizable(whole[0][0], record="tensor")
    prune(whole, X, {"*1.*": 0.5})
    (fresh := make_resizable(Net())).load_state_dict(through_safetensors(part.state_dict(), tmp_path))
    assert_computes_the_same(fresh, part)
    assert part.state_dict()._metadata[""][KEY]["original"]["sizes"]["1.heads"] == 4


class Whole(nn.Module):
    """As a LightningModule holds its network."""

    def __init__(self) -> None:
        super().__init__()
        self.net, self.other = nn.Sequential(Net()), Net()


@pytest.mark.parametrize("paths", [("net",), ("net.0",), ("net", "other"), ("other", "net.0")])
def test_the_whole_is_loaded_though_its_parts_alone_were_pruned(paths, tmp_path):
    """As a LightningModule whose network ``prune`` was called on: only the network's metadata says it."""
    whole = Whole()
    for path in paths:
        prune(whole.get_submodule(path), X, {"*1.*": 0.5})
    torch.save(whole.state_dict(), tmp_path / "whole.pt")
    state = torch.load(tmp_path / "whole.pt", weights_only=True)

    (asked := make_resizable(Whole())).load_state_dict(state)
    resize_to_state_dict(resized := Whole(), state)
    resized.load_state_dict(state)
    with resizable():
        (everywhere := Whole()).load_state_dict(state)

    for fresh in (asked, resized, everywhere, load_pruned(Whole, tmp_path / "whole.pt")):
        assert fresh.net[0][1].heads == whole.net[0][1].heads
        assert_computes_the_same(fresh.net, whole.net)
        assert_computes_the_same(fresh.other, whole.other)
    assert asked.state_dict()._metadata[""][KEY]["original"]["sizes"]


def test_what_is_said_of_the_whole_is_said_of_its_parts():
    """The record of a part may be older, as of one that was pruned before the whole was."""
    whole = make_resizable(Whole())
    prune(whole.net, X, {"*1.*": 0.25})
    prune(whole.net, X, {"*1.*": 0.34})
    state = whole.state_dict()
    state._metadata["net"] = {**state._metadata["net"], KEY: "not read"}

    (fresh := make_resizable(Whole())).load_state_dict(state)

    assert_computes_the_same(fresh.net, whole.net)


@pytest.mark.parametrize("change", [Tensor.half, Tensor.bfloat16, Tensor.double, Tensor.cfloat])
def test_a_record_that_was_converted_with_the_weights_is_read(pruned, change):
    fresh = make_resizable(Net())
    state = {name: change(value) for name, value in pruned.state_dict().items()}
    if change is Tensor.cfloat:
        with pytest.raises(ValueError, match="cannot read it"):
            fresh.load_state_dict(state)
        return
    fresh.load_state_dict(state)
    assert fresh[1].heads == 2


def test_a_record_that_was_averaged_with_the_weights_is_read(pruned, tmp_path):
    fresh = make_resizable(Net())
    state = dict(pruned.state_dict())
    mean = {name: 0.1 * value.float() + 0.9 * value.float() for name, value in state.items()}
    fresh.load_state_dict(mean)
    assert fresh[1].heads == 2


def test_bfloat16(pruned, tmp_path):
    fresh = make_resizable(Net().bfloat16())
    fresh.load_state_dict(through_safetensors(pruned.bfloat16().state_dict(), tmp_path))
    assert_computes_the_same(fresh, pruned, X.bfloat16())


def test_copies_keep_it_and_averages_have_it(pruned, tmp_path):
    average = AveragedModel(pruned)
    fresh = AveragedModel(make_resizable(Net()))
    fresh.load_state_dict(through_safetensors(average.state_dict(), tmp_path))
    assert_computes_the_same(fresh.module, pruned)


def test_what_is_not_pruned_has_no_more_entries():
    model = make_resizable(make_resizable(Net(), record="tensor"), record="tensor")
    assert model.state_dict().keys() == Net().state_dict().keys()
    assert len(model._state_dict_hooks) == 2


def test_a_plain_model_gets_none_and_reports_one(pruned):
    state, small = pruned.state_dict(), make_plain(copy.deepcopy(pruned))
    assert small.state_dict().keys() == Net().state_dict().keys()
    with pytest.raises(RuntimeError, match=f"Unexpected key.*{KEY}"):
        small.load_state_dict(state)
    small.load_state_dict(without_record(state))


def test_where_the_record_goes_is_checked():
    with pytest.raises(ValueError, match=r"Expected record to be one of \('metadata', 'tensor'\) but got 'item'"):
        make_resizable(Net(), record="item")


# ---- safetensors' own functions, tied tensors, `load_pruned`


class Causal(nn.Module):
    """Its layer stands in two places."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Linear(32, 16)
        self.causal, self.out = nn.Sequential(self.conv, nn.ReLU()), nn.Linear(16, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.causal(x))


class Tied(nn.Module):
    """Two layers have one weight."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right, self.out = nn.Linear(32, 16), nn.Linear(32, 16), nn.Linear(16, 3)
        self.right.weight = self.left.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.left(x).relu() * self.right(x).relu())


@pytest.mark.parametrize("within", [False, True])
@pytest.mark.parametrize("cls", [Net, Causal, Tied])
def test_save_model_and_load_model(cls, within, tmp_path):
    model, path = cls(), tmp_path / "model.safetensors"
    prune(model, X, {"1.*": 0.5} if cls is Net else 0.3)
    safetensors.save_model(make_resizable(model, record="tensor"), path)
    fresh = cls()
    if within:
        with resizable():
            assert safetensors.load_model(fresh, path) == (set(), [])
    else:
        assert safetensors.load_model(make_resizable(fresh), path) == (set(), [])
    assert_computes_the_same(fresh, model)
    assert_computes_the_same(load_pruned(cls, path), model)


def test_a_tied_tensor_that_is_missing_under_all_of_its_names_is_missing(tmp_path):
    model, path = Causal(), tmp_path / "model.safetensors"
    prune(model, X, 0.3)
    safetensors.save_file({name: value for name, value in model.state_dict().items() if "out" in name}, path)
    fresh = make_resizable(Causal())
    before = snapshot(fresh)
    with pytest.raises(ValueError, match=r"'conv\.weight' is missing"):
        safetensors.load_model(fresh, path)
    with pytest.raises(ValueError, match=r"'conv\.weight' is missing"):
        load_pruned(Causal, path)
    assert_untouched(fresh, before)


def test_one_name_of_a_tied_tensor_is_not_enough_where_all_names_are_asked_for():
    model = Causal()
    prune(model, X, 0.3)
    state = {name: value for name, value in model.state_dict().items() if "conv" not in name}
    before = snapshot(fresh := Causal())
    with resizable(), pytest.raises(ValueError, match=r"'conv\.weight' is missing"):
        fresh.load_state_dict(state)
    assert_untouched(fresh, before)


def test_a_damaged_file_of_safetensors(pruned, tmp_path):
    path = tmp_path / "file.safetensors"
    safetensors.save_file(dict(pruned.state_dict()), path)
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(ValueError, match=r"Expected a checkpoint in .* but cannot read it"):
        load_pruned(Net, path)


# ---- heads of torch's attention follow where only one number of them fits


class Encoder(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(width, 4, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.attention(x, x, x, need_weights=False)[0]


@pytest.mark.parametrize(("width", "known"), [(28, True), (24, False)])
def test_heads_of_torch_follow_where_one_number_fits(width, known):
    """14 channels are two heads of 7, since no head grows; 12 are two of 6, three of 4 or four of 3."""
    model, fresh, x = Encoder(width), make_resizable(Encoder(width)), X[..., :width]
    prune(model, x, {"attention*": 0.5})
    state = dict(model.state_dict())
    assert model.attention.num_heads == 2
    if known:
        fresh.load_state_dict(state)
        assert_computes_the_same(fresh, model, x)
    else:
        with pytest.raises(ValueError, match=r"'attention\.num_heads' \(4 as built\)"):
            fresh.load_state_dict(state)


@pytest.mark.parametrize(("width", "known"), [(28, True), (24, False)])
def test_heads_of_a_described_module_follow_where_one_number_fits(width, known):
    class Heads(Attention):
        def __init__(self) -> None:
            nn.Module.__init__(self)
            self.parts = 4
            self.q, self.k, self.v, self.o = (nn.Linear(width, width) for _ in range(4))

        def forward(self, x: Tensor) -> Tensor:
            return self.attend(x, self.parts)

    def build() -> nn.Module:
        return nn.Sequential(nn.Linear(32, width), Heads(), nn.Linear(width, 3))

    spec = ModuleSpec(head_counts=("parts",), head_widths=lambda shapes: (shapes["q.weight"][0], shapes["v.weight"][0]))
    with register_module(Heads, spec):
        model, fresh = build(), make_resizable(build())
        prune(model, X, {"1.*": 0.5})
        assert model[1].parts == 2
        if known:
            fresh.load_state_dict(dict(model.state_dict()))
            assert_computes_the_same(fresh, model)
        else:
            with pytest.raises(ValueError, match=r"'1\.parts' \(4 as built\)"):
                fresh.load_state_dict(dict(model.state_dict()))


# ---- which numbers may have changed


class Reader(nn.Module):
    """Keeps numbers that its code reads, or does not."""

    def __init__(self, number: int, reads: bool = True) -> None:
        super().__init__()
        self.kept, self.reads = number, reads
        self.first, self.second = nn.Linear(32, 48), nn.Linear(48, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.hidden(x))

    def hidden(self, x: Tensor) -> Tensor:
        return self.first(x).relu()


class ReadsInAMethod(Reader):
    def hidden(self, x: Tensor) -> Tensor:
        assert self.kept
        return super().hidden(x)


def checked(function):
    def wrapper(self, x):
        return function(self, x)

    return wrapper


class ReadsBehindADecorator(Reader):
    @checked
    def forward(self, x: Tensor) -> Tensor:
        assert self.kept
        return super().forward(x)


def helper(module: nn.Module) -> int:
    return module.kept  # type: ignore[return-value]


class ReadsInAFunction(Reader):
    def forward(self, x: Tensor) -> Tensor:
        assert helper(self)
        return super().forward(x)


class ReadsInAProperty(Reader):
    @property
    def width(self) -> int:
        return self.kept

    def forward(self, x: Tensor) -> Tensor:
        assert self.width
        return super().forward(x)


class ReadsElsewhere(Reader):
    def extra(self) -> int:
        return self.kept


@pytest.mark.parametrize(
    ("cls", "is_read"),
    [
        (Reader, False),
        (ReadsElsewhere, False),
        (ReadsInAMethod, True),
        (ReadsBehindADecorator, True),
        (ReadsInAFunction, True),
        (ReadsInAProperty, True),
    ],
)
def test_numbers_that_the_code_reads_are_known(cls, is_read):
    read = names_read(cls(8))
    assert read is not None
    assert ("kept" in read) is is_read

    model, fresh = cls(8), make_resizable(cls(8))
    prune(model, X, {"first": 0.5})
    if is_read:
        with pytest.raises(ValueError, match=r"'kept' \(8 as built\)"):
            fresh.load_state_dict(dict(model.state_dict()))
    else:
        fresh.load_state_dict(dict(model.state_dict()))
        assert_same(fresh.state_dict(), model.state_dict())


@pytest.mark.parametrize(
    ("number", "possible"), [(0, False), (1, False), (5, False), (7, False), (2, True), (48, True)]
)
def test_numbers_that_cannot_count_channels_stay(number, possible):
    """48 channels become 24, and 5 or 7 of something are no part of them."""
    model, fresh = ReadsInAMethod(8), make_resizable(ReadsInAMethod(number or 1))
    fresh.kept = number
    prune(model, X, {"first": 0.5})
    if possible:
        with pytest.raises(ValueError, match="'kept'"):
            fresh.load_state_dict(dict(model.state_dict()))
    else:
        fresh.load_state_dict(dict(model.state_dict()))
        assert fresh.kept == number


def test_code_that_is_not_pythons_may_read_anything():
    class Foreign(Reader):
        forward = len  # any function without code of Python

    assert names_read(Foreign(8)) is None


class Scaled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(32, 6), nn.Linear(6, 2)
        self.register_buffer("scale", torch.arange(1.0, 7.0), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.scale * self.a(x))


def test_constants_come_from_the_record_alone(tmp_path):
    model, fresh = Scaled(), make_resizable(Scaled())
    prune(model, X, {"a": 0.5})
    with pytest.raises(ValueError, match=r"'scale' \(\(6,\) as built\)"):
        fresh.load_state_dict(dict(model.state_dict()))
    fresh.load_state_dict(through_safetensors(make_resizable(model, record="tensor").state_dict(), tmp_path))
    assert_computes_the_same(fresh, model)


@pytest.mark.parametrize("norm", [nn.LayerNorm(12, elementwise_affine=False), nn.InstanceNorm1d(12)])
def test_sizes_of_modules_without_tensors(norm):
    def build() -> nn.Module:
        return nn.Sequential(nn.Conv1d(5, 12, 3), nn.ReLU(), copy.deepcopy(norm), nn.Conv1d(12, 4, 1))

    if isinstance(norm, nn.LayerNorm):
        build = lambda: nn.Sequential(nn.Linear(32, 12), copy.deepcopy(norm), nn.Linear(12, 4))  # noqa: E731
    model, fresh = build(), make_resizable(build())
    prune(model, X, {"0": 0.5}, include_residual=True)
    name = "1.normalized_shape" if isinstance(norm, nn.LayerNorm) else "2.num_features"
    with pytest.raises(ValueError, match=f"'{name}'"):
        fresh.load_state_dict(dict(model.state_dict()))


# ---- files that were put together, cut, or damaged


def recorded(change):
    """A change to the text of the record."""

    def changed(state):
        (name,) = (name for name in state if name.endswith(KEY))
        plain = json.loads(bytes(state[name].tolist()))
        text = json.dumps(change(plain) or plain)
        return {**state, name: torch.tensor(list(text.encode()), dtype=torch.uint8)}

    return changed


def deeper(state):
    return {**state, "3.weight": torch.ones(3, 3), "3.bias": torch.ones(3)}


def with_whole(*names):
    whole = Net().state_dict()
    return lambda state: {**state, **{name: whole[name] for name in names}}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: {**s, f"1.{KEY}": torch.ones(3)}, "cannot read it"),
        (lambda s: {**s, f"1.{KEY}": torch.full((3,), 0.5)}, "Expected a record of integers but got other numbers"),
        (lambda s: {**s, f"1.{KEY}": torch.full((3,), 1000)}, "cannot read it"),
        (lambda s: {**s, f"1.{KEY}": "text"}, "cannot read it"),
        (lambda s: {**s, f"1.{KEY}": s[f"1.{KEY}"][:-9]}, "cannot read it"),
        (lambda s: {**s, KEY: s[f"1.{KEY}"]}, "is recorded, but the model has no such tensor"),
        (recorded(lambda r: [r]), "cannot read it"),
        (recorded(lambda r: {"original": r["original"]}), "cannot read it"),
        (recorded(lambda r: r["pruned"]["sizes"].update(heads=9)), "no part of the original 4"),
        (recorded(lambda r: r["pruned"]["sizes"].clear()), "recorded only before or only after"),
        (recorded(lambda r: r["original"]["sizes"].update(heads=8)), "is 8 before pruning where the model's is 4"),
        (recorded(lambda r: r["original"]["shapes"].update({"q.weight": [99, 32]})), "before pruning"),
        (recorded(lambda r: r["pruned"]["constants"].update(x={"dtype": "load", "shape": []})), "cannot read it"),
        (deeper, "'3.weight' is not one of the model's"),
        (with_whole("1.q.weight"), r"'1\.q\.weight' has shape \(32, 32\) where \(16, 32\) is recorded"),
        (lambda s: {n: v for n, v in s.items() if n != "1.k.bias"}, "'1.k.bias' is missing"),
    ],
)
def test_what_was_changed_is_refused_and_changes_nothing(pruned, change, message):
    fresh = make_resizable(Net())
    before = snapshot(fresh)
    state = change(dict(pruned.state_dict()))
    with pytest.raises(ValueError, match=message):
        fresh.load_state_dict(state)
    assert_untouched(fresh, before)


def test_two_records_that_contradict_each_other(pruned):
    fresh = make_resizable(Net())
    state = pruned.state_dict()
    state[f"1.{KEY}"] = recorded(lambda r: r["pruned"]["sizes"].update(heads=4))(dict(state))[f"1.{KEY}"]
    with pytest.raises(ValueError, match=r"Expected one record .* but got two: of '1\.heads' one says 2, the other"):
        fresh.load_state_dict(state)
    fresh.load_state_dict(without_record(state) | {KEY: pruned.state_dict()._metadata[""][KEY]})  # as version 0.1
    assert_computes_the_same(fresh, pruned)


def test_records_of_two_models_side_by_side(pruned):
    other = Net()
    prune(other, X, {"1.*": 0.75})
    make_resizable(other, record="tensor")
    nets = {"a": pruned, "b": other}
    both = {f"{key}.{name}": value for key, net in nets.items() for name, value in net.state_dict().items()}
    fresh = make_resizable(nn.ModuleDict({"a": Net(), "b": Net()}))
    assert fresh.load_state_dict(both) == ([], [])
    assert_computes_the_same(fresh["a"], pruned)
    assert_computes_the_same(fresh["b"], other)


def test_half_of_one_model_and_half_of_another(pruned):
    other = Net()
    prune(other, X, {"1.*": 0.75})
    mixed = {**pruned.state_dict(), **{n: v for n, v in other.state_dict().items() if n.startswith("1.q")}}
    before = snapshot(fresh := make_resizable(Net()))
    with pytest.raises(ValueError, match="is recorded"):
        fresh.load_state_dict(mixed)
    assert_untouched(fresh, before)


@pytest.mark.parametrize("record", [True, False])
def test_loading_that_is_not_strict(pruned, record):
    state = {name: value for name, value in pruned.state_dict().items() if not name.startswith("2.")}
    state = {**(state if record else without_record(state)), "extra": torch.ones(1)}
    with resizable():
        if record:
            (fresh := Net()).load_state_dict(state, strict=False)
            assert_same(fresh[1].state_dict(), pruned[1].state_dict())
            assert fresh[1].heads == 2
        else:
            with pytest.raises(ValueError, match=r"what became of '1\.heads'"):
                Net().load_state_dict(state, strict=False)


# ---- models that are built with the smaller sizes


def test_a_model_of_the_smaller_sizes_takes_the_record_over(pruned, tmp_path):
    """As one that is a pickled hyperparameter: it has the sizes, but not what they were before."""
    small = make_resizable(make_plain(copy.deepcopy(pruned)))
    assert KEY not in small.state_dict()._metadata[""]
    small.load_state_dict(pruned.state_dict())
    assert small.state_dict()._metadata[""][KEY] == pruned.state_dict()._metadata[""][KEY]
    (fresh := make_resizable(Net())).load_state_dict(small.state_dict())
    assert_computes_the_same(fresh, pruned)


def test_a_record_that_cannot_be_is_not_taken_over(pruned):
    small = make_resizable(make_plain(copy.deepcopy(pruned)))
    change = recorded(lambda r: r["original"]["shapes"].update({"q.bias": [1]}))
    small.load_state_dict(change(dict(pruned.state_dict())))
    assert KEY not in small.state_dict()._metadata[""]


# ---- all networks


FAST = ("classic/resnet_bottleneck", "classic/shufflenet_v2", "classic/Vit", "classic/lstm_with_projection")
REFUSED = (
    *("classic/Vit", "classic/transformer_encoder", "classic/ClassTokenVit", "classic/SimpleVit", "classic/Twins"),
    *("classic/PlainPositions", "classic/x_encoder_positions", "classic/x_decoder_vector_norm"),
    *("classic/x_decoder_scale_norm", "classic/x_cross_attention", "traps/cosine_heads"),  # heads
    *("classic/ghostnet", "traps/width_of_attribute", "traps/stream_remembered_shape"),  # widths in attributes
    *("classic/conv_lstm", "classic/conv_gru"),
    *("classic/dgcnn", "classic/pointnet2"),  # numbers of neighbours and of chosen points
    *("traps/instance_norm", "traps/stream_LayerNorm_without_weights", "traps/stream_RMSNorm_without_weights"),
    # Numbers that pruning leaves alone, but that might have counted channels: paddings, channels of zeros.
    *("classic/resnet_option_a", "classic/resnet_option_b", "classic/tcn"),
)


@pytest.mark.parametrize("name", some_of([name for name in ZOO if not name.startswith("hf/")], *FAST))
@pytest.mark.filterwarnings(*THIRD_PARTY)
@pytest.mark.filterwarnings("ignore:The channels of these layers are not pruned", "ignore:.*did not run on the example")
@pytest.mark.filterwarnings("ignore:.*leaves next to nothing of these layers")
def test_every_network_is_the_same_or_refused(name, tmp_path):
    entry = ZOO[name]
    model, inputs = build_entry(entry).eval(), entry.inputs(torch.Generator().manual_seed(0))
    fresh, other = (make_resizable(build_entry(entry).eval()) for _ in range(2))
    try:
        plan = prune(model, inputs, 0.4, include_residual=True)
        expected = run(model, inputs)
    except (ValueError, RuntimeError):
        pytest.skip("cannot be pruned by so much, or copied")
    if not plan.changes:
        pytest.skip("nothing can go")
    state = {key: value.clone() for key, value in make_resizable(model, record="tensor").state_dict().items()}
    fresh.load_state_dict(state)
    assert all(map(torch.equal, run(fresh, inputs), expected))
    if name in REFUSED:
        with pytest.raises(ValueError, match="shapes do not tell"):
            other.load_state_dict(without_record(state))
        return
    other.load_state_dict(without_record(state))
    assert all(map(torch.equal, run(other, inputs), expected))
    assert not ModelShapes.of(other).differs_from(ModelShapes.of(model))


def run(model: nn.Module, inputs: Any) -> list[Tensor]:
    """Of tensors that start where torch lets them start: elsewhere, kernels may round differently."""
    model = copy.deepcopy(model)
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        for tensor in (*model.parameters(), *model.buffers()):
            tensor.data = tensor.data.clone()
        return list(results(call(model, inputs)))


def test_mlp_needs_no_record(tmp_path: Path):
    model, fresh = mlp(32, 16, 12, 3), make_resizable(mlp(32, 16, 12, 3))
    prune(model, X, 0.5)
    fresh.load_state_dict(through_safetensors(model.state_dict(), tmp_path))
    assert_computes_the_same(fresh, model)
