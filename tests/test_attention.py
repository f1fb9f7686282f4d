"""``nn.MultiheadAttention`` that loses heads and width: what it computes, and which class it has."""

from __future__ import annotations

import copy
import io
import itertools
import pickle
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from breadth import crossed
from torch import Tensor, nn

from lightning_coreset import make_plain, make_resizable, plan_pruning, prune
from lightning_coreset.module_specs import NarrowAttention, module_spec
from lightning_coreset.structure import ChannelGroup, analyse, find_groups
from lightning_coreset.surgery import ModelShapes, Snapshot, apply_changes, remove_channels, resize

HEADS, SAMPLES, QUERIES, KEYS = 4, 3, 5, 6
# Warnings of torch's Transformer about nested tensors.
pytestmark = pytest.mark.filterwarnings("ignore:enable_nested_tensor is True:UserWarning", "ignore:.*nested tensors")


# ---- the same results as torch's


def as_narrow(module: nn.MultiheadAttention) -> NarrowAttention:
    """A copy of the other class with the same weights."""
    narrow = copy.deepcopy(module)
    narrow.__class__ = NarrowAttention
    assert isinstance(narrow, NarrowAttention)
    return narrow


def randomised(module: nn.Module) -> nn.Module:
    generator = torch.Generator().manual_seed(0)
    for parameter in module.double().parameters():
        parameter.data.copy_(torch.randn(parameter.shape, generator=generator) * 0.4)
    return module


def masks(batched: bool) -> Iterator[dict[str, Any]]:
    """All kinds of masks and hints."""
    allowed = torch.rand(QUERIES, KEYS, generator=torch.Generator().manual_seed(1)) < 0.3
    allowed[:, 0] = False
    each = allowed.expand(HEADS * (SAMPLES if batched else 1), -1, -1).clone()
    each[0, 2, 3] ^= True
    padding = torch.zeros((SAMPLES, KEYS) if batched else (KEYS,), dtype=torch.bool)
    padding[..., -2:] = True
    added = torch.randn(QUERIES, KEYS, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    causal = torch.ones(QUERIES, KEYS, dtype=torch.bool).triu(1)
    yield {}
    yield {"attn_mask": allowed}
    yield {"attn_mask": each}
    yield {"attn_mask": added}
    yield {"attn_mask": added, "key_padding_mask": added[0].expand(padding.shape)}
    yield {"key_padding_mask": padding}
    yield {"attn_mask": allowed, "key_padding_mask": padding}
    yield {"attn_mask": causal, "is_causal": True}
    yield {"attn_mask": causal, "is_causal": True, "key_padding_mask": padding}


RESULTS = ({"need_weights": False}, {}, {"average_attn_weights": False})


def calls(module: nn.MultiheadAttention, batched: bool) -> Iterator[tuple[tuple[Tensor, ...], dict[str, Any]]]:
    generator = torch.Generator().manual_seed(3)

    def tokens(length: int, width: int) -> Tensor:
        shape = ((SAMPLES, length) if module.batch_first else (length, SAMPLES)) if batched else (length,)
        return torch.randn(*shape, width, generator=generator, dtype=torch.float64)

    key = tokens(KEYS, module.kdim)
    value = tokens(KEYS, module.vdim)
    inputs = [(tokens(QUERIES, module.embed_dim), key, value)]
    if module.kdim == module.vdim == module.embed_dim:
        inputs.append((inputs[0][0], key, key))
    for one, mask, results in itertools.product(inputs, masks(batched), RESULTS):
        yield one, mask | results
    if module.kdim == module.vdim == module.embed_dim:
        for results in RESULTS:
            yield (key, key, key), results


WIDTHS = ({}, {"kdim": 7, "vdim": 10}, {"vdim": 10})
ADDED = ((), ("add_bias_kv",), ("add_zero_attn",), ("add_bias_kv", "add_zero_attn"))


@pytest.mark.parametrize(
    ("bias", "options", "widths", "batch_first", "train"),
    crossed((True, False), ADDED, WIDTHS, (True, False), (False, True)),
)
def test_with_the_sizes_of_torchs_it_computes_the_same(bias, options, widths, batch_first, train):
    torchs = nn.MultiheadAttention(
        8, HEADS, dropout=0.3, bias=bias, batch_first=batch_first, **widths, **dict.fromkeys(options, True)
    )
    randomised(torchs).train(train)
    narrow = as_narrow(torchs)

    for batched in (True, False):
        for inputs, keywords in calls(torchs, batched):
            found, expected = [], []
            for module, results in ((narrow, found), (torchs, expected)):
                module.zero_grad()
                torch.manual_seed(0)
                output, weights = module(*inputs, **keywords)
                output.square().sum().backward()
                results += [output, weights, *(parameter.grad for parameter in module.parameters())]
            torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


def test_torch_is_left_before_its_fused_kernels():
    """They would compute nonsense, or fail, with other sizes."""
    module = randomised(nn.MultiheadAttention(8, HEADS, batch_first=True)).eval()
    assert as_narrow(module)._qkv_same_embed_dim is False
    narrow = as_narrow(module)
    narrow.__class__ = nn.MultiheadAttention
    assert narrow._qkv_same_embed_dim is True


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"is_causal": True}, "Expected attn_mask with is_causal=True"),
        ({"attn_mask": torch.zeros(6, 5)}, r"attn_mask to have shape \[5, 6\] but got \[6, 5\]"),
        ({"attn_mask": torch.zeros(6, 5, 6)}, r"attn_mask to have shape \[12, 5, 6\]"),
        ({"key_padding_mask": torch.zeros(6, 3)}, r"key_padding_mask to have shape \[3, 6\] but got \[6, 3\]"),
        ({"key_padding_mask": torch.zeros(3, 6, dtype=torch.int64)}, "booleans or floating-point numbers but got"),
    ],
)
def test_wrong_masks_are_refused_as_torch_refuses_them(keywords, message):
    torchs = nn.MultiheadAttention(8, HEADS, batch_first=True)
    inputs = torch.randn(3, 5, 8), torch.randn(3, 6, 8), torch.randn(3, 6, 8)
    with pytest.raises((RuntimeError, AssertionError)):
        torchs(*inputs, **keywords)
    with pytest.raises(ValueError, match=message):
        as_narrow(torchs)(*inputs, **keywords)


# ---- heads and widths of networks


class Between(nn.Module):
    """An attention between Linears, without norms and with a shortcut."""

    def __init__(self, batch_first: bool = True, memory: int | None = None, **options: Any) -> None:
        super().__init__()
        self.first, self.batch_first = nn.Linear(6, 16), batch_first
        self.memory = None if memory is None else nn.Linear(6, memory)
        widths = {} if memory is None else {"kdim": memory, "vdim": memory}
        self.attention = nn.MultiheadAttention(16, HEADS, batch_first=batch_first, **widths, **options)
        self.last = nn.Linear(16, 5)

    def forward(self, x: Tensor, other: Tensor | None = None, **keywords: Any) -> Tensor:
        x = torch.tanh(self.first(x))
        other = x if other is None else torch.tanh((self.memory or self.first)(other))
        found, _ = self.attention(x, other, other, **keywords)
        return self.last(torch.relu(x + found))


def inputs_of(model: Between, *, cross: bool) -> tuple[Tensor, ...]:
    shapes = [(SAMPLES, QUERIES), (SAMPLES, KEYS)][: 1 + cross]
    shapes = shapes if model.batch_first else [shape[::-1] for shape in shapes]
    return tuple(torch.randn(*shape, 6, dtype=torch.float64) for shape in shapes)


def zeroed(model: nn.Module, group: ChannelGroup, removed: Sequence[int]) -> nn.Module:
    """A copy in which nothing reads these classes."""
    model = copy.deepcopy(model)
    tensors = dict(model.named_parameters())
    for member in group.by_role("consumer"):
        places = [place for number in removed for place in member.index[number]]
        tensors[member.name].data.index_fill_(member.dim, torch.tensor(places), 0.0)
    return model


CASES: dict[str, tuple[dict[str, Any], bool]] = {
    "self": ({}, False),
    "cross": ({}, True),
    "other widths": ({"memory": 12}, True),
    "no bias": ({"bias": False}, False),
    "bias_kv": ({"add_bias_kv": True}, False),
    "zero_attn": ({"add_zero_attn": True}, True),
    "all": ({"memory": 12, "add_bias_kv": True, "add_zero_attn": True, "bias": False}, True),
    "sequence first": ({"batch_first": False}, False),
    "sequence first, other widths": ({"batch_first": False, "memory": 12}, True),
    "dropout": ({"dropout": 0.3}, False),
}


@pytest.mark.parametrize("need_weights", [False, True])
@pytest.mark.parametrize("case", CASES)
def test_every_group_is_right(case, need_weights):
    options, cross = CASES[case]
    model = randomised(Between(**options)).eval()
    inputs = inputs_of(model, cross=cross)
    example = {"x": inputs[0], "need_weights": need_weights} | ({"other": inputs[1]} if cross else {})
    structure = analyse(model, example)

    sizes = {group.name: group.size for group in structure.groups}
    heads = "attention.q_proj_weight" if "memory" in options else "attention.in_proj_weight"
    assert sizes == {"first": 16, heads: HEADS} | ({"memory": 12} if "memory" in options else {})
    for group in structure.groups:
        removed = [0, 2] if group.size == HEADS else [1, 2, 5, 9, 11]
        expected = zeroed(model, group, removed)
        cut = copy.deepcopy(model)
        remove_channels(cut, group, removed)
        padding = torch.zeros(SAMPLES, inputs[-1].shape[1 if model.batch_first else 0], dtype=torch.bool)
        padding[:, -1] = True
        for keywords in ({}, {"key_padding_mask": padding}):
            torch.testing.assert_close(
                cut(**example, **keywords), expected(**example, **keywords), rtol=1e-9, atol=1e-9
            )
        check_sizes(cut.attention)
        # And once more, what is left of it.
        again = {one.name: one for one in find_groups(cut, example)}[group.name]
        assert again.size == group.size - len(removed)
        expected = zeroed(cut, again, [1])
        remove_channels(cut, again, [1])
        torch.testing.assert_close(cut(**example), expected(**example), rtol=1e-9, atol=1e-9)
        check_sizes(cut.attention)
        cut.train()(**example).sum().backward()


def check_sizes(module: nn.MultiheadAttention) -> None:
    """All attributes say what the tensors do."""
    query, key, value = (
        (module.in_proj_weight,) * 3
        if module.in_proj_weight is not None
        else (module.q_proj_weight, module.k_proj_weight, module.v_proj_weight)
    )
    assert [module.embed_dim, module.kdim, module.vdim] == [part.shape[1] for part in (query, key, value)]
    assert [module.out_proj.out_features, module.out_proj.in_features] == list(module.out_proj.weight.shape)
    assert module.head_dim == 4  # of which the scale is made
    assert module.out_proj.in_features == module.num_heads * 4
    if isinstance(module, NarrowAttention):
        assert module.qk_head_dim == module.v_head_dim == 4


@pytest.mark.parametrize("case", CASES)
def test_every_dimension_within_heads_is_right(case):
    """Of values and of queries and keys; in each head another one, and the scale of logits stays."""
    options, cross = CASES[case]
    model = randomised(Between(**options)).eval()
    inputs = inputs_of(model, cross=cross)
    example = {"x": inputs[0]} | ({"other": inputs[1]} if cross else {})
    groups = [group for group in analyse(model, example, heads="within").groups if group.size == 4]

    assert len(groups) == 2  # values, and queries with keys
    for group in groups:
        cut, expected = copy.deepcopy(model), zeroed(model, group, [1])
        tensors = dict(expected.named_parameters())
        for member in group.by_role("producer"):  # queries and keys have no consumer: without these products, then
            tensors[member.name].data.index_fill_(member.dim, torch.tensor(member.index[1]), 0.0)
        for member in group.by_role("channelwise"):
            tensors[member.name].data.index_fill_(member.dim, torch.tensor(member.index[1]), 0.0)
        remove_channels(cut, group, [1])
        torch.testing.assert_close(cut(**example), expected(**example), rtol=1e-9, atol=1e-9)
        assert sorted([cut.attention.qk_head_dim, cut.attention.v_head_dim]) == [3, 4]
        assert (cut.attention.num_heads, cut.attention.head_dim) == (4, 4)
        assert not torch.allclose(cut(**example), model(**example), atol=1e-3)

    fresh = make_resizable(copy.deepcopy(model))
    cut = make_resizable(copy.deepcopy(model))
    for number in range(2):
        group = next(one for one in analyse(cut, example, heads="within").groups if one.size == 4)
        remove_channels(cut, group, [number])
    fresh.load_state_dict(cut.state_dict())
    assert [fresh.attention.qk_head_dim, fresh.attention.v_head_dim] == [3, 3]
    torch.testing.assert_close(fresh(**example), cut(**example), rtol=0, atol=0)


def test_heads_of_queries_keys_and_values_are_those_of_the_attention():
    (group,) = (group for group in find_groups(Between(), torch.randn(2, 3, 6)) if group.size == HEADS)
    (rows,) = (member for member in group.members if member.name == "attention.in_proj_weight")
    assert rows.index[1] == (*range(4, 8), *range(20, 24), *range(36, 40))


@pytest.mark.parametrize("average", [False, True])
def test_weights_that_are_seen_keep_their_heads(average):
    class Seen(Between):
        def forward(self, x: Tensor) -> Any:
            return self.attention(self.first(x), *(self.first(x),) * 2, average_attn_weights=average)

    structure = analyse(Seen(), torch.randn(2, 3, 6))
    assert [group.size for group in structure.groups] == [16]
    assert "output" in structure.refused["attention.in_proj_weight"]


@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("shape", [(1, 1), (2, 1), (1, 2)])
def test_any_number_of_samples_and_tokens_shows_the_heads(shape, batch_first):
    structure = analyse(Between(batch_first=batch_first), torch.randn(*shape, 6))
    assert [group.size for group in structure.groups] == [16, HEADS]


def test_heads_that_a_given_mask_numbers_stay():
    model, x = Between(), torch.randn(2, 3, 6)
    structure = analyse(model, {"x": x, "attn_mask": torch.randn(2 * HEADS, 3, 3)})
    assert [group.size for group in structure.groups] == [16]


@pytest.mark.parametrize("same", [True, False])
def test_the_layer_before_counts_the_projection_as_one_layer_if_all_three_read_it(same):
    """And heads are ranked: what stands between queries and the output is no activation."""

    class Before(Between):
        def forward(self, x: Tensor) -> Tensor:
            x = self.first(x)
            return self.last(self.attention(x if same else x.relu(), x, x)[0])

    methods = {group.name: group.method for group in plan_pruning(Before(), torch.randn(2, 3, 6), 0.4).groups}
    ranked = "rank (derived weight stands between its producer and its consumer)"
    assert methods["first"] == ("reconstruction" if same else ranked)
    assert methods["attention.in_proj_weight"] == ranked


def test_products_of_attention_are_counted():
    model = Between()
    structure = analyse(model, {"x": torch.randn(2, 3, 6), "need_weights": False})
    assert structure.macs["attention.in_proj_weight"] == 3 * 3 * 16 * 16
    assert structure.macs["attention.out_proj.weight"] == 3 * 16 * 16
    assert structure.macs[""] == 2 * 3 * 3 * 16
    assert structure.product_macs == {("attention.in_proj_weight",): 2 * 3 * 3 * 16}


# ---- the class


def pruned(model: nn.Module, name: str, removed: Sequence[int], example: Any) -> nn.Module:
    (group,) = (group for group in find_groups(model, example) if group.name == name)
    remove_channels(model, group, removed)
    return model


def test_it_is_torchs_again_where_the_sizes_agree():
    model, x = randomised(Between()), torch.randn(SAMPLES, QUERIES, 6, dtype=torch.float64)
    parameters, attention = list(model.named_parameters()), model.attention

    pruned(model, "attention.in_proj_weight", [1, 3], x)
    assert type(model.attention) is NarrowAttention
    expected = model(x)
    before = Snapshot(model)
    structure = {group.name: group for group in find_groups(model, x)}
    remove_channels(model, structure["first"], range(8))

    assert type(model.attention) is nn.MultiheadAttention
    assert model.attention is attention
    assert [(name, id(parameter)) for name, parameter in parameters] == [
        (name, id(parameter)) for name, parameter in model.named_parameters()
    ]
    check_sizes(model.attention)
    assert model(x).shape == expected.shape
    before.restore()
    assert type(model.attention) is NarrowAttention
    torch.testing.assert_close(model(x), expected, rtol=0, atol=0)


def test_an_odd_number_of_heads_is_torchs_again_only_where_it_was_odd():
    """An encoder that was made with an even number sends nested tensors, which torch's refuses with an odd one."""
    model, x = Between(), torch.randn(2, 3, 6)
    for name, removed in (("attention.in_proj_weight", [1]), ("first", range(4))):
        pruned(model, name, removed, x)
    assert model.attention.embed_dim == 12 == 3 * model.attention.head_dim
    assert type(model.attention) is NarrowAttention

    odd = nn.Sequential(nn.MultiheadAttention(12, 3))
    original = ModelShapes.of(odd)
    plan = {"0.in_proj_weight": (24, 12), "0.in_proj_bias": (24,), "0.out_proj.weight": (12, 8)}
    resize(odd, ModelShapes(plan, {"0.num_heads": 2, "0.out_proj.in_features": 8}))
    assert type(odd[0]) is NarrowAttention
    resize(odd, original)
    assert type(odd[0]) is nn.MultiheadAttention


def test_the_scale_of_logits_is_that_of_the_original():
    """With other query-key dimensions within heads, which a plan may remove one day, it does not follow them."""
    module = randomised(nn.MultiheadAttention(8, 2, bias=False, batch_first=True))
    kept = torch.tensor([0, 1, 2, 4, 5, 6])  # of each head three of four
    rows = torch.cat([kept, 8 + kept, torch.arange(16, 24)])
    narrow = as_narrow(module)
    module.in_proj_weight.data[[3, 7, 11, 15]] = 0.0
    narrow.in_proj_weight.data = narrow.in_proj_weight.data[rows]
    x = torch.randn(2, 3, 8, dtype=torch.float64)

    assert (narrow.qk_head_dim, narrow.v_head_dim) == (3, 4)
    for keywords in RESULTS:
        torch.testing.assert_close(narrow(x, x, x, **keywords), module(x, x, x, **keywords), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("memory", [None, 12])
def test_snapshots_and_other_sizes_of_a_model(memory):
    model = Between(memory=memory)
    x, other = torch.randn(2, 3, 6), torch.randn(2, 4, 6)
    fresh, before, expected = copy.deepcopy(model), Snapshot(model), model(x, other)
    attributes = dict(vars(model.attention))

    prune(model, (x, other), 0.5, include_residual=True)

    assert type(model.attention) is NarrowAttention
    resize(fresh, ModelShapes.of(model))
    assert type(fresh.attention) is NarrowAttention
    check_sizes(fresh.attention)
    fresh.load_state_dict(model.state_dict())
    torch.testing.assert_close(fresh(x, other), model(x, other), rtol=0, atol=0)
    before.restore()
    assert type(model.attention) is nn.MultiheadAttention
    assert vars(model.attention) == attributes
    torch.testing.assert_close(model(x, other), expected, rtol=0, atol=0)


def test_a_plan_that_fails_leaves_the_class():
    model, x = Between(), torch.randn(2, 3, 6)
    plan = plan_pruning(model, x, 0.3)
    wrong = [replace(one, old=one.old + 1) for one in plan.attributes]
    with pytest.raises(ValueError, match="Expected 'num_heads' of module"):
        apply_changes(model, plan.changes, wrong)
    assert type(model.attention) is nn.MultiheadAttention


def test_copies_pickles_and_state_dicts():
    model, x = make_resizable(Between()), torch.randn(2, 3, 6)
    prune(model, x, 0.5, include_residual=True)
    expected = model(x)

    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    copies = [copy.deepcopy(model), pickle.loads(pickle.dumps(model)), torch.load(file, weights_only=False)]
    fresh = make_resizable(Between())
    file = io.BytesIO()
    torch.save(model.state_dict(), file)
    file.seek(0)
    fresh.load_state_dict(torch.load(file, weights_only=True))

    for one in (*copies, fresh):
        assert type(one.attention) is NarrowAttention
        torch.testing.assert_close(one(x), expected, rtol=0, atol=0)
    fresh.load_state_dict(Between().state_dict())  # back to the original sizes
    assert type(fresh.attention) is nn.MultiheadAttention


def test_a_state_dict_without_metadata_tells_no_heads():
    model, x = Between(), torch.randn(2, 3, 6)
    pruned(model, "attention.in_proj_weight", [0], x)
    fresh = make_resizable(Between())
    with pytest.raises(ValueError, match=r"shapes do not tell what became of 'attention.num_heads'"):
        fresh.load_state_dict(dict(model.state_dict()))
    assert type(fresh.attention) is nn.MultiheadAttention

    model = pruned(Between(), "first", [0, 7], x)
    fresh.load_state_dict(dict(model.state_dict()))
    torch.testing.assert_close(fresh(x), model(x), rtol=0, atol=0)


def test_hooks_stay():
    model, x, seen = Between(), torch.randn(2, 3, 6), []
    model.attention.register_forward_hook(lambda *_: seen.append(1))
    prune(model, x, 0.5)
    seen.clear()
    model(x)
    assert seen == [1]


def test_no_trace_is_left_of_the_analysis():
    model = Between()
    find_groups(model, torch.randn(2, 3, 6))
    assert type(model.attention) is nn.MultiheadAttention
    assert "project" not in vars(model.attention)
    with pytest.raises(RuntimeError):
        find_groups(model, torch.randn(2, 3, 7))
    assert type(model.attention) is nn.MultiheadAttention
    assert "project" not in vars(model.attention)


class Own(nn.MultiheadAttention):
    def forward(self, query: Tensor, *_: Any, **__: Any) -> Any:
        return super().forward(query, query, query)


def test_code_of_its_own_is_left_alone():
    subclass, replaced = Between(), Between()
    subclass.attention = Own(16, HEADS, batch_first=True)
    replaced.attention.forward = replaced.attention.forward
    for model in (subclass, replaced):
        structure = analyse(model, torch.randn(2, 3, 6))
        assert not structure.groups
        assert "code of its own" in structure.refused["attention"]
    assert module_spec(NarrowAttention) is module_spec(nn.MultiheadAttention)


# ---- torch's transformers


class Tagger(nn.Module):
    """An encoder between an embedding and a Linear."""

    def __init__(self, *, dropout: float = 0.1, **options: Any) -> None:
        super().__init__()
        self.tokens, self.places = nn.Embedding(50, 24), nn.Parameter(torch.randn(1, 16, 24))
        layer = nn.TransformerEncoderLayer(24, 4, 36, dropout, batch_first=True, **options)
        self.encoder = nn.TransformerEncoder(layer, 2, norm=nn.LayerNorm(24))
        self.head = nn.Linear(24, 7)

    def forward(self, x: Tensor, padding: Tensor | None = None) -> Tensor:
        y = self.tokens(x) + self.places[:, : x.shape[1]]
        return self.head(self.encoder(y, src_key_padding_mask=padding))


TEXT = torch.randint(0, 50, (3, 7), generator=torch.Generator().manual_seed(0))
PADDING = torch.arange(7) >= torch.tensor([7, 4, 6])[:, None]


@pytest.mark.parametrize("grad", [False, True])
@pytest.mark.parametrize("options", [{}, {"norm_first": True}, {"activation": "gelu"}, {"bias": False}], ids=str)
@pytest.mark.parametrize("removed", [[1], [0, 2]])
def test_an_encoder_with_padding(removed, options, grad):
    """In evaluation, torch's own layers are fused and get nested tensors, and the narrow ones are not and get them."""
    model = randomised(Tagger(**options)).eval()
    (group,) = (
        group for group in find_groups(model, TEXT) if group.name == "encoder.layers.0.self_attn.in_proj_weight"
    )
    expected = zeroed(model, group, removed)
    remove_channels(model, group, removed)

    assert [type(layer.self_attn) for layer in model.encoder.layers] == [NarrowAttention, nn.MultiheadAttention]
    with torch.set_grad_enabled(grad):
        for padding in (None, PADDING):
            found, wanted = model(TEXT, padding), expected(TEXT, padding)
            torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-9)


def watched(forward: Any, nested: list[bool], query: Tensor, *rest: Any, **named: Any) -> Any:
    nested.append(query.is_nested)
    return forward(query, *rest, **named)


def test_the_encoder_still_sends_nested_tensors():
    """What the test before is about."""
    model, nested = Tagger().eval(), []
    prune(model, TEXT, 0.5, include_residual=True)
    for layer in model.encoder.layers:
        forward = layer.self_attn.forward
        layer.self_attn.forward = partial(watched, forward, nested)
    with torch.no_grad():
        output = model(TEXT, PADDING)
    assert nested == [True, True]
    assert output.isfinite().all()


def test_only_one_nested_tensor_is_taken():
    narrow = as_narrow(nn.MultiheadAttention(8, 2, batch_first=True))
    first, second = (torch.nested.nested_tensor([torch.randn(3, 8), torch.randn(2, 8)]) for _ in range(2))
    with pytest.raises(ValueError, match="one nested tensor as query, key and value, and batch_first"):
        narrow(first, second, second)
    output, _ = narrow(first, first, first, need_weights=False)
    expected, _ = narrow(first[1], first[1], first[1], need_weights=False)
    torch.testing.assert_close(output[1], expected)


class Translator(nn.Module):
    """``nn.Transformer`` whole."""

    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.tokens, self.body = nn.Embedding(50, 24), nn.Transformer(24, 4, 2, 2, 36, dropout=0.0, **options)
        self.head = nn.Linear(24, 7)

    def forward(self, source: Tensor, target: Tensor) -> Tensor:
        length = target.shape[1] if self.body.batch_first else target.shape[0]
        mask = nn.Transformer.generate_square_subsequent_mask(length).to(self.head.weight)
        body = self.body(self.tokens(source), self.tokens(target), tgt_mask=mask, tgt_is_causal=True)
        return self.head(body)


@pytest.mark.parametrize("options", [{"batch_first": True}, {"norm_first": True}, {"bias": False}], ids=str)
@pytest.mark.slow
def test_a_transformer_loses_its_width_and_heads(options):
    model = randomised(Translator(**options)).eval()
    source, target = (TEXT, TEXT[:, :5]) if options.get("batch_first") else (TEXT.T, TEXT.T[:5])
    structure = analyse(model, (source, target))

    names = [f"{part}.layers.{number}" for part in ("body.encoder", "body.decoder") for number in (0, 1)]
    heads = {f"{name}.self_attn.in_proj_weight" for name in names}
    heads |= {f"{name}.multihead_attn.in_proj_weight" for name in names[2:]}
    assert {group.name: group.size for group in structure.groups} == {
        "tokens": 24,
        **dict.fromkeys((f"{name}.linear1" for name in names), 36),
        **dict.fromkeys(heads, 4),
    }
    for group in structure.groups:
        if group.name in heads:
            expected, cut = zeroed(model, group, [1]), copy.deepcopy(model)
            remove_channels(cut, group, [1])
            torch.testing.assert_close(cut(source, target), expected(source, target), rtol=1e-9, atol=1e-9)
    (width,) = (group for group in structure.groups if group.name == "tokens")
    cut = copy.deepcopy(model)
    remove_channels(cut, width, [0, 7])
    assert cut.body.d_model == 22
    assert cut(source, target).isfinite().all()
    prune(model.float(), (source, target), 0.6, include_residual=True)
    assert model.body.d_model == model.tokens.embedding_dim == model.head.in_features < 24
    model.train()(source, target).sum().backward()


# ---- exports


def small_tagger() -> Tagger:
    torch.manual_seed(0)
    model = Tagger().eval()
    prune(model, TEXT, 0.5, include_residual=True)
    assert all(type(layer.self_attn) is NarrowAttention for layer in model.encoder.layers)
    return model


def test_torch_export():
    model = small_tagger()
    exported = torch.export.export(model, (TEXT,), dynamic_shapes=({0: torch.export.Dim("samples", min=2)},))
    fewer = TEXT[:2]
    torch.testing.assert_close(exported.module()(fewer), model(fewer))
    # Names of classes in comments are all that an exported program has of this package.
    operators = {node.target for node in exported.graph.nodes if node.op == "call_function"}
    assert {str(operator).partition(".")[0] for operator in operators} <= {"aten", "<built-in function getitem>"}


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.slow
def test_onnx():
    pytest.importorskip("onnxscript")
    runtime = pytest.importorskip("onnxruntime")
    model = small_tagger()
    program = torch.onnx.export(model, (TEXT,), dynamo=True, verbose=False)
    file = io.BytesIO()
    program.save(file)
    session = runtime.InferenceSession(file.getvalue())
    (found,) = session.run(None, {session.get_inputs()[0].name: TEXT.numpy()})
    torch.testing.assert_close(torch.from_numpy(found), model(TEXT), rtol=1e-4, atol=1e-5)


@pytest.mark.filterwarnings(
    "ignore:`torch.jit.* is deprecated:DeprecationWarning", "ignore:'norm' was found:UserWarning"
)
def test_torch_script():
    model = small_tagger()
    scripted = torch.jit.script(model)
    for padding in (None, PADDING):
        torch.testing.assert_close(scripted(TEXT, padding), model(TEXT, padding))


def test_a_plain_model_still_needs_the_package():
    model = small_tagger()
    with pytest.warns(UserWarning, match="'encoder.layers.0.self_attn' runs code of lightning_coreset"):
        make_plain(model)
