"""peft: LoRA and DoRA in training, saved and merged by peft after their base has become narrower."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest

peft = pytest.importorskip("peft")
pytest.importorskip("transformers")
import lightning.pytorch as pl
import torch
from client_trials import QUIET
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset
from transformers import LlamaConfig, LlamaForCausalLM

from lightning_coreset import CoresetPruningCallback, load_pruned, make_resizable, prune
from lightning_coreset.huggingface import load_pretrained

pytestmark = [pytest.mark.clients, pytest.mark.filterwarnings("ignore")]

IDS = torch.randint(3, 60, (12, 7), generator=torch.Generator().manual_seed(0))
LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
RANK = 4


def base() -> LlamaForCausalLM:
    torch.manual_seed(0)
    sizes = {"vocab_size": 60, "hidden_size": 24, "intermediate_size": 36, "num_hidden_layers": 2}
    return LlamaForCausalLM(LlamaConfig(**sizes, num_attention_heads=4, num_key_value_heads=2, use_cache=False))


def adapted(**settings: Any) -> PeftModel:
    model = get_peft_model(base(), LoraConfig(r=RANK, lora_alpha=8, **{"target_modules": LINEAR} | settings))
    return _with_numbers(model)


def _with_numbers(model: PeftModel) -> PeftModel:
    """What begins as zero is given numbers, so that the adapters count."""
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            nn.init.normal_(parameter, std=0.2)
    return model


def with_two_adapters() -> PeftModel:
    model = adapted()
    model.add_adapter("second", LoraConfig(r=RANK, lora_alpha=2, target_modules=["q_proj", "up_proj"]))
    model.base_model.set_adapter(["default", "second"])
    return _with_numbers(model)


ADAPTERS: dict[str, Callable[[], PeftModel]] = {
    "LoRA": lambda: adapted(lora_dropout=0.1),
    "LoRA of some layers": lambda: adapted(target_modules=["q_proj", "v_proj"], use_rslora=True),
    "LoRA of the embedding": lambda: adapted(target_modules=["embed_tokens", *LINEAR]),
    "two adapters": with_two_adapters,
    "DoRA": lambda: adapted(use_dora=True),
}


class Tuned(pl.LightningModule):
    def __init__(self, model: PeftModel) -> None:
        super().__init__()
        self.model = make_resizable(model)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return self.model(input_ids=batch[0], labels=batch[0]).loss

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam([one for one in self.parameters() if one.requires_grad], lr=0.01)


def logits(model: nn.Module) -> Tensor:
    with torch.no_grad():
        return model.eval()(input_ids=IDS[:2]).logits


def ranks(model: nn.Module) -> set[int]:
    return {one.shape[0] for name, one in model.named_parameters() if "lora_A" in name or "embedding_A" in name}


@pytest.mark.parametrize("name", ADAPTERS)
def test_adapters_lose_the_rows_and_columns_of_their_base_and_keep_their_rank(name, tmp_path):
    module = Tuned(ADAPTERS[name]())
    frozen = {name: one.clone() for name, one in module.named_parameters() if not one.requires_grad}
    callback = CoresetPruningCallback(0.3, include_residual=name != "LoRA of some layers")
    loader = DataLoader(TensorDataset(IDS), batch_size=4)
    trainer = pl.Trainer(max_epochs=3, callbacks=[callback], enable_checkpointing=False, **QUIET)
    trainer.fit(module, loader)
    assert ranks(module) == {RANK}
    narrower = [name for name, one in module.named_parameters() if name in frozen and one.shape != frozen[name].shape]
    assert any("q_proj.base_layer" in one for one in narrower)
    assert all(not one.requires_grad for name, one in module.named_parameters() if name in frozen)
    expected = logits(module.model)

    model = module.model
    model.save_pretrained(tmp_path / "adapters")
    again = PeftModel.from_pretrained(copy.deepcopy(model).unload(), tmp_path / "adapters")
    if name == "two adapters":
        again.load_adapter(tmp_path / "adapters" / "second", "second")
        again.base_model.set_adapter(["default", "second"])
    torch.testing.assert_close(logits(again), expected)

    trainer.save_checkpoint(tmp_path / "last.ckpt")
    loaded = load_pruned(Tuned, tmp_path / "last.ckpt", model=ADAPTERS[name]()).model
    assert torch.equal(logits(loaded), expected)
    merged = loaded.merge_and_unload()
    assert type(merged) is LlamaForCausalLM
    torch.testing.assert_close(logits(merged), expected, rtol=1e-4, atol=1e-5)


def test_the_rank_is_pruned_where_a_rule_names_it():
    model = adapted()
    before, scaling = logits(model), model.base_model.model.model.layers[0].mlp.up_proj.scaling["default"]
    plan = prune(model, {"input_ids": IDS[:2]}, {"*.up_proj.lora_A.*": 0.5})
    assert {name.rpartition("layers.")[2] for name in (group.name for group in plan.groups)} == {
        "0.mlp.up_proj.lora_A.default",
        "1.mlp.up_proj.lora_A.default",
    }
    layer = model.base_model.model.model.layers[0].mlp.up_proj
    assert (layer.lora_A["default"].weight.shape[0], layer.lora_B["default"].weight.shape[1]) == (RANK // 2, RANK // 2)
    assert layer.scaling["default"] == scaling  # alpha / r of the adapter as it was made
    assert layer.base_layer.weight.shape == (36, 24)
    assert not torch.equal(logits(model), before)


def test_a_merged_model_says_that_its_config_is_of_other_names(tmp_path):
    model = adapted()
    prune(model, {"input_ids": IDS[:2]}, 0.3)
    model.merge_and_unload().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="Expected the class of a pruned PeftModel"):
        load_pretrained(LlamaForCausalLM, tmp_path)


def test_what_is_merged_first_is_a_model_as_any_other(tmp_path):
    model = adapted().merge_and_unload()
    prune(model, {"input_ids": IDS[:2]}, 0.3, include_residual=True)
    model.save_pretrained(tmp_path)
    assert torch.equal(logits(load_pretrained(LlamaForCausalLM, tmp_path)), logits(model))
