"""Surgery: removal is zeroing made physical, in place, and all or nothing."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from networks import NETWORKS, assert_untouched, make, snapshot, structure_of, zero_consumers
from torch import Tensor, nn

from lightning_coreset.plan import AttributeChange, ParameterChange
from lightning_coreset.structure import ChannelGroup, Member, find_groups
from lightning_coreset.surgery import (
    Snapshot,
    apply_changes,
    index_dims,
    named_tensors,
    remove_channels,
    scale_counts,
    slice_members,
)

EVERY_GROUP = [(name, group.name) for name in NETWORKS for group in structure_of(name).groups]


def group_named(network: str, name: str) -> ChannelGroup:
    return next(group for group in structure_of(network).groups if group.name == name)


def compare(cut: nn.Module, whole: nn.Module, zeroed: nn.Module, x: Tensor) -> None:
    with torch.no_grad():
        expected = zeroed(x)
        torch.testing.assert_close(cut(x), expected, rtol=1e-10, atol=1e-10)
        assert not torch.allclose(whole(x), expected, rtol=1e-6, atol=1e-6), "zeroing moved nothing: nothing was tested"


@pytest.mark.parametrize(("network", "name"), EVERY_GROUP)
def test_pruned_network_equals_the_one_with_zeroed_columns(network, name):
    model, x = make(network)
    group = group_named(network, name)
    cut, zeroed = copy.deepcopy(model), copy.deepcopy(model)
    removed = range(0, group.size - 1, 2)
    zero_consumers(zeroed, group, removed)
    changes = remove_channels(cut, group, removed)
    compare(cut, model, zeroed, x)
    before, after = named_tensors(model), named_tensors(cut)
    assert {change.name for change in changes} == {member.name for member in group.members}
    assert {name for name in before if before[name].shape != after[name].shape} == {change.name for change in changes}
    for change in changes:
        assert tuple(after[change.name].shape) == change.new_shape
        assert after[change.name].numel() < before[change.name].numel()
        torch.testing.assert_close(after[change.name], index_dims(before[change.name], change.kept), rtol=0, atol=0)


@pytest.mark.parametrize("network", NETWORKS)
def test_all_groups_at_once_leave_smaller_modules_that_still_fit(network):
    model, x = make(network)
    groups = structure_of(network).groups
    cut, zeroed = copy.deepcopy(model), copy.deepcopy(model)
    kept = [(group, list(range(0, group.size, 2))) for group in groups]
    for group in groups:
        zero_consumers(zeroed, group, range(1, group.size, 2))
    changes = slice_members(named_tensors(cut), kept)
    apply_changes(cut, changes, scale_counts(cut, kept))
    compare(cut, model, zeroed, x)
    assert list(wrong_sizes(cut)) == []
    assert list(wrong_sizes(model)) == []
    cut.train()(x).sum().backward()
    assert all(p.grad is not None and p.grad.shape == p.shape for p in cut.parameters())


def wrong_sizes(model: nn.Module):
    for name, module in model.named_modules():
        for attribute, actual in sizes(module).items():
            if getattr(module, attribute) != actual:
                yield f"{name}.{attribute} is {getattr(module, attribute)} instead of {actual}"


def sizes(module: nn.Module) -> dict[str, int]:
    """What a module's attributes have to be by its tensors."""
    shape = tuple(module.weight.shape) if isinstance(getattr(module, "weight", None), Tensor) else ()
    if isinstance(module, nn.Linear):
        return {"out_features": shape[0], "in_features": shape[1]}
    if isinstance(module, nn.modules.conv._ConvTransposeNd):
        return {"in_channels": shape[0], "out_channels": shape[1] * module.groups}
    if isinstance(module, nn.modules.conv._ConvNd):
        return {"out_channels": shape[0], "in_channels": shape[1] * module.groups}
    if isinstance(module, nn.modules.batchnorm._NormBase):
        return {"num_features": shape[0]}
    names = {nn.GroupNorm: "num_channels", nn.PReLU: "num_parameters", nn.Embedding: "embedding_dim"}
    return {names[type(module)]: shape[-1]} if type(module) in names else {}


@pytest.mark.parametrize(
    ("network", "group", "channels", "expected"),
    [
        ("mlp", "0", [1, 2], {"0.out_features": 14, "2.in_features": 14}),
        ("lenet", "3", [0], {"3.out_channels": 7, "6.in_features": 28}),
        ("vgg", "0", [5], {"0.out_channels": 5, "1.num_features": 5, "3.in_channels": 5}),
        (
            "mobilenet",
            "expand",
            [0, 1],
            {
                "expand.out_channels": 4,
                "depthwise.groups": 4,
                "depthwise.in_channels": 4,
                "depthwise.out_channels": 8,
                "bn2.num_features": 8,
                "excite.out_channels": 8,
            },
        ),
        ("mobilenet", "expand", [0, 1, 2, 3, 4], {"depthwise.groups": 1, "depthwise.out_channels": 2}),
        ("densenet", "stem", [0, 3], {"bn3.num_features": 12, "conv2.in_channels": 8, "head.in_features": 12}),
        ("unet", "up", [4], {"up.out_channels": 4, "merge.in_channels": 10}),
        ("grouped", "second", [0], {"second.out_channels": 6, "third.in_channels": 6, "third.groups": 3}),
        ("grouped", "third", [0], {"third.out_channels": 3, "last.in_channels": 3}),
        ("normed", "a", [0, 2], {"group_norm.num_groups": 2, "group_norm.num_channels": 4, "b.in_channels": 4}),
        ("normed", "b", [0, 2], {"instance_norm.num_features": 4}),
        ("normed", "c", [0], {"prelu.num_parameters": 4}),
        ("attention", "embed", [0, 1, 2], {"embed.embedding_dim": 7, "embed.num_embeddings": 11, "q.in_features": 7}),
        ("attention", "q", [1], {".num_heads": 3, "q.out_features": 9, "out.in_features": 9}),
    ],
)
def test_modules_remember_the_new_sizes(network, group, channels, expected):
    model, _ = make(network)
    remove_channels(model, group_named(network, group), channels)
    modules = dict(model.named_modules())
    found = {name: getattr(modules[name.rpartition(".")[0]], name.rpartition(".")[2]) for name in expected}
    assert found == expected


@settings(max_examples=20)
@given(
    network=st.sampled_from(["lenet", "mobilenet", "densenet", "grouped", "attention"]),
    number=st.integers(0, 10),
    data=st.data(),
)
def test_any_subset_of_any_group(network, number, data):
    model, x = make(network)
    groups = structure_of(network).groups
    group = groups[number % len(groups)]
    removed = data.draw(st.sets(st.integers(0, group.size - 1), max_size=group.size - 1))
    zeroed = copy.deepcopy(model)
    zero_consumers(zeroed, group, removed)
    remove_channels(model, group, removed)
    with torch.no_grad():
        torch.testing.assert_close(model(x), zeroed(x), rtol=1e-10, atol=1e-10)


def test_one_removal_after_another_equals_both_at_once():
    model, x = make("vgg")
    at_once = copy.deepcopy(model)
    remove_channels(at_once, find_groups(model, x)[1], [0, 3, 4])
    remove_channels(model, find_groups(model, x)[1], [3])
    remove_channels(model, find_groups(model, x)[1], [0, 3])  # the former 4
    for name, tensor in named_tensors(model).items():
        torch.testing.assert_close(tensor, named_tensors(at_once)[name], rtol=0, atol=0)


def test_removing_nothing_changes_nothing():
    model, x = make("vgg")
    before = snapshot(model)
    assert remove_channels(model, find_groups(model, x)[0], []) == ()
    assert_untouched(model, before)


def test_objects_ties_flags_and_hooks_stay():
    model, x = make("mlp")
    model[2].weight.requires_grad_(False)
    model.register_parameter("alias", model[2].weight)
    model[0].bias.requires_grad_(False)
    calls = []
    model[0].weight.register_hook(lambda grad: calls.append(tuple(grad.shape)))
    model[0].weight.register_post_accumulate_grad_hook(lambda p: calls.append(tuple(p.grad.shape)))
    before = {name: id(tensor) for name, tensor in model.named_parameters()}
    kinds = {name: (type(p), p.requires_grad, p.is_leaf, p.dtype) for name, p in model.named_parameters()}
    remove_channels(model, find_groups(model, x)[0], [0, 5])
    assert {name: id(tensor) for name, tensor in model.named_parameters()} == before
    assert {name: (type(p), p.requires_grad, p.is_leaf, p.dtype) for name, p in model.named_parameters()} == kinds
    assert model.alias is model[2].weight
    model(x).sum().backward()
    assert calls == [(14, 6), (14, 6)]
    assert model[2].weight.grad is None


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.complex64])
def test_data_type_stays(dtype):
    model = nn.Sequential(nn.Linear(6, 8, dtype=dtype), nn.Identity(), nn.Linear(8, 3, dtype=dtype))
    model[0].weight.grad = torch.randn(8, 6).to(dtype)
    whole = copy.deepcopy(model)
    (group,) = find_groups(nn.Sequential(nn.Linear(6, 8), nn.Linear(8, 3)).eval(), torch.randn(1, 6))
    members = tuple(replace(member, name=member.name.replace("1.", "2.")) for member in group.members)
    remove_channels(model, replace(group, members=members), [0, 7])
    assert {parameter.dtype for parameter in model.parameters()} == {dtype}
    assert model[0].weight.grad.dtype == dtype
    torch.testing.assert_close(model[2].weight, whole[2].weight[:, 1:7], rtol=0, atol=0)


@pytest.mark.parametrize("ndim", [4, 5])
def test_memory_format_stays(ndim):
    formats = {4: (nn.Conv2d, torch.channels_last), 5: (nn.Conv3d, torch.channels_last_3d)}
    convolution, memory_format = formats[ndim]
    model = nn.Sequential(convolution(4, 6, 3), nn.ReLU(), convolution(6, 5, 3)).to(memory_format=memory_format)
    x = torch.randn(2, 4, *[6] * (ndim - 2))
    model(x).sum().backward()
    changes = remove_channels(model, find_groups(model, x)[0], [2])
    for layer in (model[0], model[2]):
        assert layer.weight.is_contiguous(memory_format=memory_format)
        assert layer.weight.grad.is_contiguous(memory_format=memory_format)
    # A value made for another layout is brought into the tensor's own.
    (change,) = [change for change in changes if change.name == "2.weight"]
    value = torch.randn(change.new_shape)
    again = replace(change, old_shape=change.new_shape, kept={}, value=value)
    apply_changes(model, [again])
    assert model[2].weight.is_contiguous(memory_format=memory_format)
    torch.testing.assert_close(model[2].weight.detach(), value, rtol=0, atol=0)


def test_contiguous_weights_stay_contiguous():
    model, x = make("vgg")
    remove_channels(model, find_groups(model, x)[1], [0, 1])
    assert all(parameter.is_contiguous() for parameter in model.parameters())


def test_gradients_are_sliced_along():
    model, x = make("lenet")
    model(x).sum().backward()
    gradients = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
    groups = find_groups(model, x)
    changes = {change.name: change for group in groups[:1] for change in remove_channels(model, group, [0, 4])}
    for name, parameter in model.named_parameters():
        kept = changes[name].kept if name in changes else {}
        torch.testing.assert_close(parameter.grad, index_dims(gradients[name], kept), rtol=0, atol=0)
    assert model[0].weight.grad.shape == (4, 1, 3, 3)


@pytest.mark.parametrize("reweighted", [False, True])
def test_a_graph_from_before_does_not_spoil_the_next_backward(reweighted):
    model, x = make("mlp")
    old = model(x).sum()  # keeps autograd's accumulators of the old shapes alive
    changes = slice_members(named_tensors(model), [(find_groups(model, x)[0], range(3, 16))])
    if reweighted:
        named = named_tensors(model)
        changes = [replace(change, value=2 * index_dims(named[change.name], change.kept)) for change in changes]
    apply_changes(model, changes)
    model(x).sum().backward()
    assert all(parameter.grad.shape == parameter.shape for parameter in model.parameters())
    assert old.requires_grad


def test_a_removal_under_inference_mode_can_be_trained():
    model, x = make("mlp")
    group = find_groups(model, x)[0]
    model(x).sum().backward()
    with torch.inference_mode():
        remove_channels(model, group, [0, 1])
    assert not any(parameter.is_inference() or parameter.grad.is_inference() for parameter in model.parameters())
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    model(x).sum().backward()
    optimizer.step()


def test_sparse_gradients_of_an_embedding():
    model = nn.Sequential(nn.Embedding(7, 6, sparse=True), nn.ReLU(), nn.Linear(6, 2))
    tokens = torch.tensor([[1, 3, 1]])
    model(tokens).sum().backward()
    dense = model[0].weight.grad.to_dense()
    remove_channels(model, find_groups(model, tokens)[0], [0, 5])
    torch.testing.assert_close(model[0].weight.grad.to_dense(), dense[:, 1:5])


@pytest.mark.parametrize(
    ("channels", "message"),
    [([16], r"in \[0, 16\) but got \[16\]"), ([-1, 2], r"got \[-1\]"), (range(16), "all 16 would go"), ([0.5], "0.5")],
)
def test_bad_channels_leave_the_model_alone(channels, message):
    model, x = make("mlp")
    before = snapshot(model)
    with pytest.raises(ValueError, match=message):
        remove_channels(model, find_groups(model, x)[0], channels)
    assert_untouched(model, before)


@pytest.mark.parametrize("index", [0, 1])
def test_a_group_found_before_another_removal(index):
    """A group that is stale is refused; what the model has become is left alone."""
    model, x = make("mlp")
    groups = find_groups(model, x)
    remove_channels(model, groups[index], [0, 1])
    before = snapshot(model)
    with pytest.raises(ValueError, match="Find the groups of the model as it is now"):
        remove_channels(model, groups[index], [2])
    assert_untouched(model, before)


class Triplets(nn.Module):
    """Three layers side by side into one."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c, self.head = (nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(12, 2))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.cat([self.a(x), self.b(x), self.c(x)], 1).relu())


def test_a_stale_sibling_does_not_hit_the_columns_of_another():
    """When the first of three siblings shrank, the second's columns have moved: its old positions mean others."""
    model = Triplets()
    groups = find_groups(model, torch.randn(2, 4))
    remove_channels(model, groups[0], [0, 1, 2])
    before = snapshot(model)
    with pytest.raises(ValueError, match="Find the groups of the model as it is now"):
        remove_channels(model, groups[1], [0])
    assert_untouched(model, before)


def one_wrong(model: nn.Module, changes: tuple[ParameterChange, ...], how: str) -> list[ParameterChange]:
    last = changes[-1]
    wrong = {
        "another shape": replace(last, old_shape=(99, *last.old_shape[1:])),
        "another name": replace(last, name="nowhere.weight"),
    }
    return [*changes[:-1], wrong[how]]


@pytest.mark.parametrize("how", ["another shape", "another name"])
def test_a_plan_for_another_model_changes_nothing(how):
    model, x = make("vgg")
    changes = slice_members(named_tensors(model), [(find_groups(model, x)[0], [0, 1])])
    before = snapshot(model)
    with pytest.raises(ValueError, match="The plan was made for another model"):
        apply_changes(model, one_wrong(model, changes, how))
    assert_untouched(model, before)


def test_a_plan_cannot_be_applied_twice():
    model, x = make("vgg")
    changes = slice_members(named_tensors(model), [(find_groups(model, x)[0], [0, 1])])
    apply_changes(model, changes)
    before = snapshot(model)
    with pytest.raises(ValueError, match="or for this one before it was pruned"):
        apply_changes(model, changes)
    assert_untouched(model, before)


@pytest.mark.parametrize("module", ["", "nowhere"])
def test_attributes_of_another_model_change_nothing(module):
    model, x = make("vgg")
    changes = slice_members(named_tensors(model), [(find_groups(model, x)[0], [0, 1])])
    before = snapshot(model)
    with pytest.raises(ValueError, match="num_heads"):
        apply_changes(model, changes, [AttributeChange(module, "num_heads", 4, 2)])
    assert_untouched(model, before)


def test_a_member_of_no_tensor_is_named():
    model, _ = make("mlp")
    group = ChannelGroup("made up", (Member("nowhere", 0, "producer", ((0,), (1,))),))
    before = snapshot(model)
    with pytest.raises(ValueError, match=r"'nowhere'.*'made up'.*None"):
        remove_channels(model, group, [0])
    assert_untouched(model, before)


def test_returned_parameters_are_the_changed_ones():
    model, x = make("vgg")
    changes = slice_members(named_tensors(model), [(find_groups(model, x)[0], [0, 1])])
    found = apply_changes(model, changes)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    assert {names[id(parameter)]: change.name for parameter, change in found.items()} == {
        name: name for name in ("0.weight", "1.weight", "1.bias", "3.weight")
    }


class Untouched(nn.Linear):
    """Says it is wider than its own packed weight, as quantised layers of other packages do."""

    def __init__(self) -> None:
        super().__init__(3, 2)
        self.weight = nn.Parameter(torch.randn(6, 1))

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x, self.weight.view(2, 3), self.bias)


def test_modules_that_a_plan_does_not_touch_keep_their_sizes():
    model, x = make("mlp")
    whole = nn.Sequential(model, Untouched().double())
    remove_channels(whole, find_groups(whole, x)[0], [0])
    assert (whole[1].in_features, whole[1].out_features) == (3, 2)
    assert whole[0][0].out_features == 15


def test_spectral_norm_elsewhere_is_not_run():
    last = nn.utils.parametrizations.spectral_norm(nn.Linear(12, 3, dtype=torch.float64))
    model, x = make("mlp")
    model[4] = last
    model.train()
    group = find_groups(model, x)[0]
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    remove_channels(model, group, [0])
    for name, buffer in model.named_buffers():
        torch.testing.assert_close(buffer, before[name], rtol=0, atol=0)


def test_channels_may_come_as_a_tensor():
    model = nn.Sequential(nn.Linear(3, 6), nn.ReLU(), nn.Linear(6, 2))
    (group,) = find_groups(model, torch.randn(1, 3))
    remove_channels(model, group, torch.tensor([1, 4]))
    assert model[0].out_features == 4


@pytest.mark.parametrize(
    ("shape", "dims"),
    [((5, 4, 6), (0, 1)), ((5, 4, 6), (0, 2)), ((5, 4, 6), (1, 2)), ((5, 4, 6), (0, 1, 2)), ((3, 4, 1 << 16), (0, 1))],
)
def test_positions_of_several_dimensions(shape, dims):
    """The last one has rows that are longer than what is copied at a time."""
    tensor, kept = torch.randn(shape), {dim: torch.tensor([2, 0]) for dim in dims}
    expected = tensor
    for dim, positions in kept.items():
        expected = expected[(slice(None),) * dim + (positions,)]
    assert torch.equal(index_dims(tensor, kept), expected)


def test_a_member_without_a_length_must_fit_by_its_positions():
    model = nn.Sequential(nn.Linear(3, 6), nn.ReLU(), nn.Linear(6, 2))
    group = ChannelGroup("made up", (Member("0.weight", 0, "producer", ((0,), (6,))),))
    with pytest.raises(ValueError, match=r"'0\.weight' to have at least 7 positions along dimension 0"):
        remove_channels(model, group, [0])


@pytest.mark.parametrize("copied", [False, True])
def test_a_snapshot_undoes_surgery(copied):
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 3))
    example = torch.randn(2, 3, 8, 8)
    model(example).sum().backward()
    objects, before = named_tensors(model), copy.deepcopy(model)
    grads = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
    expected = model.eval()(example)
    snapshot = Snapshot(model, copy=copied)
    (group,) = find_groups(model, example)
    for channels in ([0, 3], [1, 2, 5]):  # one snapshot serves many times
        remove_channels(model, group, channels)
        snapshot.restore()
        assert torch.equal(model(example), expected)
        assert str(model) == str(before)
        for name, tensor in named_tensors(model).items():
            assert tensor is objects[name]
            assert tensor.grad is None if name not in grads else torch.equal(tensor.grad, grads[name])


def test_a_snapshot_with_copies_undoes_training():
    model = nn.Sequential(nn.Linear(3, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 4))
    before = copy.deepcopy(model.state_dict())
    snapshot = Snapshot(model, copy=True)
    (group,) = find_groups(model, torch.randn(2, 3))
    for step in range(3):
        if step == 1:
            remove_channels(model, group, [0])
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        model(torch.randn(4, 3)).sum().backward()
        optimizer.step()
        model.eval()
        snapshot.restore()
        assert model.training
        assert all(parameter.grad is None for parameter in model.parameters())
        for name, tensor in model.state_dict().items():
            assert torch.equal(tensor, before[name]), name


def test_what_is_restored_is_a_copy_that_may_change_as_well():
    model = nn.Linear(3, 2)
    model(torch.randn(4, 3)).sum().backward()
    model.bias.requires_grad_(False)
    snapshot, gradient = Snapshot(model, copy=True), model.weight.grad.clone()
    for _ in range(2):
        model.requires_grad_(True)
        model(torch.randn(4, 3)).sum().backward()  # adds to the gradient in place
        snapshot.restore()
        assert torch.equal(model.weight.grad, gradient)
        assert (model.weight.requires_grad, model.bias.requires_grad) == (True, False)


def test_a_snapshot_takes_back_what_surgery_records_on_a_model():
    model = nn.Sequential(nn.Linear(3, 6), nn.ReLU(), nn.Linear(6, 2))
    snapshot, attributes = Snapshot(model), vars(model).keys() | set()
    remove_channels(model, find_groups(model, torch.randn(1, 3))[0], [1])
    assert vars(model).keys() != attributes
    snapshot.restore()
    assert vars(model).keys() == attributes
