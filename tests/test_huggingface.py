"""Pruned models of transformers: their configs, and what ``save_pretrained`` writes, loaded again."""

from __future__ import annotations

import copy
import importlib
import json
import warnings
from pathlib import Path

import pytest
import torch
from breadth import some_of
from pages import blocks_of
from torch import nn
from torch.utils.data import DataLoader
from zoo import ZOO
from zoo.oracle import build
from zoo.running import call, results

from lightning_coreset import CoresetPruningCallback, make_resizable, prune
from lightning_coreset.huggingface import load_pretrained, update_config
from lightning_coreset.huggingface.building import Builder
from lightning_coreset.huggingface.fields import FieldSearch
from lightning_coreset.surgery import ModelShapes, Snapshot
from lightning_coreset.training.rollback import Savepoint

transformers = pytest.importorskip("transformers")

FAST = ("bert", "qwen3", "vit", "t5")
NAMES = (
    *FAST,
    *"distilbert gpt2 llama gemma swin convnext whisper clip wav2vec2 wav2vec2-layer-norm".split(),
    *"mixtral gpt-oss olmoe qwen2-moe deepseek-v3-moe".split(),
)
GENERATING = ("gpt2", "llama", "qwen3", "gemma", "t5")

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*weight_norm:FutureWarning"),
    pytest.mark.filterwarnings("ignore:.*tied weights:UserWarning"),
]
networks = pytest.mark.parametrize("name", some_of(NAMES, *FAST))


def made(name: str):
    model = build(ZOO[f"hf/{name}"]).eval()
    return model, ZOO[f"hf/{name}"].inputs(torch.Generator().manual_seed(0))


def pruned(name: str, ratio=0.5, **options):
    model, inputs = made(name)
    cut(model, inputs, ratio, **options)
    return model, inputs


def cut(model, inputs, ratio=0.5, **options):
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The channels of these layers are not pruned")
        prune(model, inputs, ratio, include_residual=True, **options)


def outputs(model, inputs):
    """Of tensors that start where torch lets them start: elsewhere, as in a file, kernels may round differently."""
    model = copy.deepcopy(model)
    with torch.no_grad():
        for tensor in (*model.parameters(), *model.buffers()):
            tensor.data = tensor.data.clone()
        return results(call(model, inputs))


def assert_same(one, other):
    assert len(one) == len(other)
    assert all(map(torch.equal, one, other))


def fields(config):
    """What a config says, but for what transformers writes into it when it saves and loads."""
    return _without_traces(config.to_dict())


def _without_traces(value):
    traces = ("architectures", "dtype", "torch_dtype", "_name_or_path", "transformers_version")
    if not isinstance(value, dict):
        return value
    return {name: _without_traces(each) for name, each in value.items() if name not in traces}


def loads_alone(model, folder: Path):
    """What plain ``from_pretrained`` loads; ``None`` where it rejects the sizes."""
    try:
        return type(model).from_pretrained(folder)
    except RuntimeError as error:
        if "mismatch" not in str(error):
            raise
        return None


# ---- saved and loaded


@networks
@pytest.mark.parametrize("heads", ["whole", pytest.param("within", marks=pytest.mark.slow)])
def test_what_is_saved_comes_back(name, heads, tmp_path):
    model, inputs = pruned(name, heads=heads)
    expected = outputs(model, inputs)

    update_config(model, inputs)
    assert_same(outputs(model, inputs), expected)
    model.save_pretrained(tmp_path)
    loaded = load_pretrained(type(model), tmp_path)

    assert type(loaded) is type(model)
    assert_same(loaded.state_dict().values(), model.state_dict().values())
    assert_same(outputs(loaded, inputs), expected)
    assert ModelShapes.of(loaded).sizes == ModelShapes.of(model).sizes
    assert fields(loaded.config) == fields(model.config)
    alone = loads_alone(model, tmp_path)
    if alone is not None:
        assert_same(outputs(alone, inputs), expected)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.slow
def test_a_loaded_model_is_pruned_saved_and_loaded_again(name, tmp_path):
    model, inputs = pruned(name, 0.3)
    update_config(model, inputs).save_pretrained(tmp_path / "first")
    model = load_pretrained(type(model), tmp_path / "first")

    cut(model, inputs, 0.6)
    update_config(model, inputs).save_pretrained(tmp_path / "second")

    assert_same(outputs(load_pretrained(type(model), tmp_path / "second"), inputs), outputs(model, inputs))


@pytest.mark.parametrize("name", GENERATING)
@pytest.mark.parametrize(
    "options",
    [{"use_cache": True}, {"cache_implementation": "static"}],
    ids=str,
)
@pytest.mark.slow
def test_a_loaded_model_generates_with_its_caches(name, options, tmp_path):
    model, inputs = pruned(name)
    update_config(model, inputs).save_pretrained(tmp_path)
    prompt = {key: value for key, value in inputs.items() if not key.startswith("decoder")}
    how = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 0}

    loaded = load_pretrained(type(model), tmp_path)

    expected = model.generate(**prompt, **how, use_cache=False)
    assert torch.equal(loaded.generate(**prompt, **how, **options), expected)


def test_an_auto_class_finds_the_class(tmp_path):
    model, inputs = pruned("bert")
    update_config(model, inputs).save_pretrained(tmp_path)
    loaded = load_pretrained(transformers.AutoModelForSequenceClassification, tmp_path)
    assert type(loaded) is type(model)
    assert_same(outputs(loaded, inputs), outputs(model, inputs))


def test_arguments_of_from_pretrained_are_passed_on(tmp_path):
    model, inputs = pruned("qwen3")
    update_config(model, inputs).save_pretrained(tmp_path)
    loaded = load_pretrained(type(model), tmp_path, torch_dtype=torch.bfloat16)
    assert {parameter.dtype for parameter in loaded.parameters()} == {torch.bfloat16}


@pytest.mark.slow
def test_dimensions_within_heads_keep_their_scale_and_angles(tmp_path):
    """A model with heads of 5 dimensions would divide by another number, and turn by other angles."""
    model, inputs = made("qwen3")
    cut(model, inputs, {"*.q_proj": 0.5, "*.v_proj": 0.5}, heads="within")
    assert model.model.layers[0].self_attn.q_proj.out_features < 40
    expected = outputs(model, inputs)

    update_config(model, inputs).save_pretrained(tmp_path)

    assert_same(outputs(load_pretrained(type(model), tmp_path), inputs), expected)
    assert loads_alone(model, tmp_path) is None


@pytest.mark.slow
def test_the_code_of_the_page_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    names = {"__name__": "__main__"}
    for block in blocks_of("huggingface.md"):
        exec(compile(block.code, "huggingface.md", "exec", dont_inherit=True), names)
    assert capsys.readouterr().out.startswith("64 -> ")


# ---- what configs tell


@pytest.mark.slow
def test_a_config_that_can_tell_everything_is_enough(tmp_path):
    model, inputs = pruned("qwen3")
    update_config(model, inputs).save_pretrained(tmp_path)

    layer = model.model.layers[0]
    assert model.config.hidden_size == layer.mlp.gate_proj.in_features < 24
    assert model.config.intermediate_size == layer.mlp.gate_proj.out_features < 36
    assert model.config.num_attention_heads * model.config.head_dim == layer.self_attn.q_proj.out_features
    assert model.config.head_dim == 10
    assert_same(outputs(loads_alone(model, tmp_path), inputs), outputs(model, inputs))


def test_numbers_of_heads_are_found_together(tmp_path):
    """Fewer heads of the keys alone would change how often each is repeated, which is right as it is."""
    model, inputs = made("qwen3")
    cut(model, inputs, {"*.v_proj": 0.5})
    assert model.model.layers[0].self_attn.q_proj.out_features == 20

    update_config(model, inputs).save_pretrained(tmp_path)

    assert (model.config.num_attention_heads, model.config.num_key_value_heads) == (2, 1)
    assert_same(outputs(loads_alone(model, tmp_path), inputs), outputs(model, inputs))


def test_a_field_that_would_be_wrong_somewhere_stays():
    """In BERT, the heads together are as wide as the stream; here each has lost another part."""
    model, inputs = pruned("bert")
    update_config(model, inputs)
    layer = model.bert.encoder.layer[0]
    assert model.config.hidden_size == 24
    assert layer.attention.self.query.in_features != layer.attention.self.query.out_features
    assert model.config.intermediate_size == layer.intermediate.dense.out_features < 36


def test_a_config_that_would_give_another_model_does_not_tell_everything(tmp_path):
    """Gemma multiplies embeddings by a power of the width that it was trained with, which no weight shows."""
    model, inputs = pruned("gemma", round_to=4)
    expected = outputs(model, inputs)
    update_config(model, inputs).save_pretrained(tmp_path)
    layer = model.model.layers[0].mlp.gate_proj
    assert (model.config.hidden_size, model.config.intermediate_size) != (layer.in_features, layer.out_features)
    assert_same(outputs(model, inputs), expected)
    assert loads_alone(model, tmp_path) is None


@pytest.mark.slow
def test_elements_of_lists_are_told():
    model, inputs = pruned("swin", {"*.layers.0.*.q_proj": 0.5})
    sizes = [layer.blocks[0].attention.num_attention_heads for layer in model.swin.encoder.layers]
    update_config(model, inputs)
    assert model.config.num_heads == sizes == [1, 4]


@pytest.mark.slow
def test_objects_of_others_are_not_changed():
    model, inputs = made("t5")
    config, before = model.config, copy.deepcopy(model.config.to_dict())
    other = type(model)(config)
    shapes = ModelShapes.of(other)
    cut(model, inputs)
    update_config(model, inputs)
    assert config.to_dict() == before
    assert other.config is config
    assert model.config is not config
    assert not ModelShapes.of(other).differs_from(shapes)
    assert ModelShapes.of(type(model)(config)).shapes == shapes.shapes


def test_the_global_random_state_stays():
    model, inputs = pruned("qwen3")
    state = torch.get_rng_state()
    update_config(model, inputs)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.slow
def test_a_second_call_changes_nothing():
    model, inputs = pruned("qwen3")
    update_config(model, inputs)
    before = fields(model.config)
    assert fields(update_config(model, inputs).config) == before


def test_what_is_wrong_must_show_in_a_saved_tensor():
    """The only size that this config cannot tell is one that no tensor has."""
    search = FieldSearch(Builder(Counting), Settings(4), Counting(Settings(2)), {"heads"}, (), lambda *_: True)
    assert search.run({"width": [2]}) == {"width": 2}

    other = Counting(Settings(2))
    other.heads = 1
    search = FieldSearch(Builder(Counting), Settings(4), other, {"heads"}, (), lambda *_: True)
    assert search.run({"width": [2]}) == {}


class Settings(transformers.PretrainedConfig):
    def __init__(self, width=4, **others):
        super().__init__(**others)
        self.width = width


class Counting(nn.Module):
    """A number that follows no field."""

    def __init__(self, config):
        super().__init__()
        self.layer, self.heads = nn.Linear(3, config.width), 2


# ---- whole modules, models that are not pruned, and errors


@pytest.mark.slow
def test_the_module_that_was_pruned_knows_of_its_parts(tmp_path):
    network, inputs = made("qwen3")
    whole = Whole(network)
    cut(whole, inputs)
    update_config(whole, inputs)
    network.save_pretrained(tmp_path)

    assert_same(outputs(load_pretrained(type(network), tmp_path), inputs), outputs(network, inputs))


class Whole(nn.Module):
    def __init__(self, network):
        super().__init__()
        self.network = network

    def forward(self, **inputs):
        return self.network(**inputs)


def test_a_model_that_is_not_pruned_stays_as_it_is(tmp_path):
    model, inputs = made("bert")
    config = model.config
    assert update_config(model, inputs).config is config
    model.save_pretrained(tmp_path)
    assert_same(outputs(load_pretrained(type(model), tmp_path), inputs), outputs(model, inputs))


@pytest.mark.parametrize("parts", [(), ("bert", "vit")])
def test_other_modules_are_rejected(parts):
    whole = nn.ModuleList(made(name)[0] for name in parts)
    with pytest.raises(ValueError, match=r"^Expected a model of Hugging Face transformers, or a module that contains"):
        update_config(whole, torch.zeros(1))


def test_a_model_whose_tensors_were_replaced_by_hand_is_rejected():
    network, inputs = made("qwen3")
    layer = network.model.layers[0].mlp
    layer.gate_proj.weight = nn.Parameter(layer.gate_proj.weight[:8].clone())
    with pytest.raises(ValueError, match=r"Expected to find on 'Qwen3ForCausalLM' how it was pruned"):
        update_config(network, inputs)


# ---- saved as it is, without a call in between


@networks
def test_what_is_saved_after_prune_comes_back(name, tmp_path):
    model, inputs = pruned(name, allocation="error")
    model.save_pretrained(tmp_path, max_shard_size="20KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    loaded = load_pretrained(type(model), tmp_path)
    assert_same(loaded.state_dict().values(), model.state_dict().values())
    assert_same(outputs(loaded, inputs), outputs(model, inputs))
    assert ModelShapes.of(loaded).sizes == ModelShapes.of(model).sizes
    assert loads_alone(model, tmp_path) is None


def test_layers_of_different_sizes(tmp_path):
    model, inputs = made("bert")
    cut(model, inputs, {"*.layer.0.*": 0.5})
    model.save_pretrained(tmp_path)
    loaded = load_pretrained(type(model), tmp_path)
    heads = [layer.attention.self.num_attention_heads for layer in loaded.bert.encoder.layer]
    assert heads == [layer.attention.self.num_attention_heads for layer in model.bert.encoder.layer]
    assert len(set(heads)) == 2
    assert_same(outputs(loaded, inputs), outputs(model, inputs))


def test_what_is_pruned_no_more_says_nothing(tmp_path):
    model, inputs = made("bert")
    whole, before = copy.deepcopy(model.state_dict()), Snapshot(model)
    cut(model, inputs)
    assert hasattr(model.config, "lightning_coreset")
    model.load_state_dict(whole)
    assert not hasattr(model.config, "lightning_coreset")
    cut(model, inputs)
    before.restore()
    assert not hasattr(model.config, "lightning_coreset")
    model.save_pretrained(tmp_path)
    assert_same(outputs(loads_alone(model, tmp_path), inputs), outputs(model, inputs))


def test_a_state_dict_of_another_pruning_is_what_is_saved(tmp_path):
    model, inputs = pruned("bert")
    fresh = make_resizable(made("bert")[0])
    fresh.load_state_dict(model.state_dict())
    fresh.save_pretrained(tmp_path)
    assert_same(outputs(load_pretrained(type(model), tmp_path), inputs), outputs(model, inputs))


@pytest.mark.parametrize(
    "package", [pytest.param("lightning.pytorch"), pytest.param("pytorch_lightning", marks=pytest.mark.slow)]
)
@pytest.mark.slow
def test_the_callback_leaves_what_save_pretrained_writes(package, tmp_path):
    pl = importlib.import_module(package)

    class Module(pl.LightningModule):
        def __init__(self):
            super().__init__()
            self.network = made("bert")[0].train()

        def training_step(self, batch, batch_idx):
            return self.network(input_ids=batch).logits.square().mean()

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.01)

    class Around(pl.Callback):
        def on_train_start(self, trainer, pl_module):
            self.savepoint = Savepoint.take(trainer, pl_module)

        def on_train_end(self, trainer, pl_module):
            self.network = copy.deepcopy(pl_module.network).eval()
            pl_module.network.save_pretrained(tmp_path)
            self.savepoint.restore(trainer, pl_module)

    batches = torch.randint(20, (6, 5), generator=torch.Generator().manual_seed(0))
    module, around = Module(), Around()
    pruning = CoresetPruningCallback(0.5, schedule={0: 0.3, 1: 0.5}, verbose=False, eval_batches=0)
    options = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    options |= {"enable_model_summary": False, "accelerator": "cpu", "max_epochs": 2}
    pl.Trainer(callbacks=[pruning, around], **options).fit(module, DataLoader(batches, batch_size=3))

    loaded = load_pretrained(transformers.AutoModelForSequenceClassification, tmp_path)
    assert loaded.num_parameters() < made("bert")[0].num_parameters()
    assert_same(outputs(loaded, {"input_ids": batches}), outputs(around.network, {"input_ids": batches}))
    assert module.network.num_parameters() == made("bert")[0].num_parameters()
    assert not hasattr(module.network.config, "lightning_coreset")  # it was taken back


# ---- heads, and the model without one


@pytest.mark.parametrize("cls", [transformers.BertModel, transformers.AutoModel])
@pytest.mark.parametrize("told", [False, True])
@pytest.mark.slow
def test_the_model_without_its_head(cls, told, tmp_path):
    model, inputs = pruned("bert")
    (update_config(model, inputs) if told else model).save_pretrained(tmp_path / "head")
    loaded = load_pretrained(cls, tmp_path / "head")
    assert type(loaded) is transformers.BertModel
    assert_same(outputs(loaded, inputs), outputs(model.bert, inputs))

    loaded.save_pretrained(tmp_path / "body")
    assert_same(outputs(load_pretrained(cls, tmp_path / "body"), inputs), outputs(model.bert, inputs))


def test_a_part_that_is_saved_alone(tmp_path):
    model, inputs = pruned("bert")
    model.bert.save_pretrained(tmp_path)
    assert_same(outputs(load_pretrained(transformers.AutoModel, tmp_path), inputs), outputs(model.bert, inputs))


@pytest.mark.parametrize(
    "cls", [transformers.BertForMaskedLM, transformers.AutoModelForMaskedLM, transformers.GPT2Model]
)
@pytest.mark.slow
def test_another_class_is_rejected(cls, tmp_path):
    model, _ = pruned("bert")
    model.save_pretrained(tmp_path)
    with pytest.raises(
        ValueError, match=r"^Expected the class of a pruned BertForSequenceClassification or of the model without"
    ):
        load_pretrained(cls, tmp_path)


WRONG_RECORDS = {
    "shape below zero": lambda record: record["shapes"].update({next(iter(record["shapes"])): [-1, 3]}),
    "shape beyond the original": lambda record: record["shapes"].update({next(iter(record["shapes"])): [10**9, 3]}),
    "unknown tensor": lambda record: record["shapes"].update({"nothing.weight": [3]}),
    "unknown size": lambda record: record["sizes"].update({"nothing.heads": 3}),
    "no heads": lambda record: record["sizes"].update(dict.fromkeys(record["sizes"], 0)),
    "more heads": lambda record: record["sizes"].update(dict.fromkeys(record["sizes"], 400)),
    "unknown field": lambda record: record["config"].update({"nothing": 3}),
}


@pytest.mark.parametrize("wrong", WRONG_RECORDS)
@pytest.mark.slow
def test_a_record_of_something_else_is_rejected(wrong, pruned_bert):
    model, folder = pruned_bert
    file = folder / "config.json"
    plain = json.loads(file.read_text())
    record = json.loads(plain["lightning_coreset"])
    WRONG_RECORDS[wrong](record)
    file.write_text(json.dumps({**plain, "lightning_coreset": json.dumps(record)}))
    with pytest.raises(
        ValueError, match=r"^Expected how a model was pruned under 'lightning_coreset' in its config but"
    ):
        load_pretrained(type(model), folder)


@pytest.fixture
def pruned_bert(tmp_path):
    model, _ = pruned("bert")
    model.save_pretrained(tmp_path)
    return model, tmp_path


def test_the_record_of_version_0_1_is_read(pruned_bert):
    model, folder = pruned_bert
    file = folder / "config.json"
    plain = json.loads(file.read_text())
    record = json.loads(plain["lightning_coreset"])
    assert record.pop("load_with").startswith("lightning_coreset.huggingface.load_pretrained")
    file.write_text(json.dumps({**plain, "lightning_coreset": json.dumps(record)}))
    assert_same(load_pretrained(type(model), folder).state_dict().values(), model.state_dict().values())


@pytest.mark.parametrize(
    ("cls", "options", "message"),
    [
        ("bert", {}, "Expected a class of models of transformers but got 'bert'"),
        (nn.Linear, {}, "Expected a class of models of transformers but got"),
        (transformers.BertModel, {"config": 3}, "Expected no `config` for a pruned model"),
    ],
)
@pytest.mark.slow
def test_wrong_arguments(cls, options, message, pruned_bert):
    with pytest.raises(ValueError, match=message):
        load_pretrained(cls, pruned_bert[1], **options)


@pytest.mark.parametrize("text", ["{", "[]", '{"class": "A"}', 3])
@pytest.mark.slow
def test_a_damaged_record_is_rejected(text, tmp_path):
    model, inputs = pruned("qwen3")
    update_config(model, inputs).save_pretrained(tmp_path)
    file = tmp_path / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "lightning_coreset": text}))
    with pytest.raises(
        ValueError, match=r"^Expected how a model was pruned under 'lightning_coreset' in its config but"
    ):
        load_pretrained(type(model), tmp_path)
