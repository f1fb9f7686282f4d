"""Ids: which inputs are rows of embeddings, and which rows there are."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from lightning_coreset.probes import synthetic_inputs
from lightning_coreset.structure import Example


def probes_of(model, inputs, samples=256):
    return synthetic_inputs(model, Example.of(inputs), samples, torch.Generator().manual_seed(0)).inputs


class Forward(nn.Module):
    """A function of embeddings and inputs."""

    def __init__(self, run, *sizes, **options):
        super().__init__()
        self.run = run
        self.tables = nn.ModuleList(nn.Embedding(size, 4, **options) for size in sizes)

    def forward(self, *args):
        return self.run(self.tables, *args)


def seen(ids):
    return sorted(set(ids.flatten().tolist()))


WAYS = {
    "as they are": lambda tables, ids: tables[0](ids),
    "as a view": lambda tables, ids: tables[0](ids.view(-1)),
    "of another dtype": lambda tables, ids: tables[0](ids.to(torch.int32)),
    "in turns": lambda tables, ids: torch.stack([tables[0](one) for one in ids.unbind(1)]),
    "through a function": lambda tables, ids: nn.functional.embedding(ids, tables[0].weight),
    "in bags": lambda tables, ids: nn.functional.embedding_bag(ids, tables[0].weight),
}


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
def test_ids_are_uniform_over_the_vocabulary(way):
    ids = probes_of(Forward(way, 7), torch.zeros(2, 5, dtype=torch.long))

    assert (ids.shape, ids.dtype) == ((256, 5), torch.long)
    counts = torch.bincount(ids.flatten(), minlength=7)
    assert len(counts) == 7
    assert (counts / ids.numel() - 1 / 7).abs().max() < 0.05


def test_ids_leave_out_the_one_for_padding():
    ids = probes_of(Forward(WAYS["as they are"], 7, padding_idx=2), torch.zeros(2, 5, dtype=torch.long))

    assert seen(ids) == [0, 1, 3, 4, 5, 6]


def test_ids_of_two_embeddings_are_rows_of_both():
    ids = probes_of(Forward(lambda tables, ids: tables[0](ids) + tables[1](ids), 9, 4), torch.zeros(2, 5).long())

    assert seen(ids) == [0, 1, 2, 3]


def test_every_column_has_its_own_vocabulary():
    def fields(tables, ids):
        return tables[0](ids[:, 0]) + tables[1](ids[:, 1])

    ids = probes_of(Forward(fields, 3, 50), torch.tensor([[0, 0, 8], [0, 0, 9]]))

    assert seen(ids[:, 0]) == [0, 1, 2]
    assert ids[:, 1].max() > 40
    assert seen(ids[:, 2]) == [8, 9]  # it enters no embedding


def test_what_the_network_adds_before_the_look_up_counts():
    """One table for all fields, as of recommenders: each has an offset."""
    ids = probes_of(Forward(lambda tables, ids: tables[0](ids + torch.tensor([0, 10])), 16), torch.zeros(2, 2).long())

    assert seen(ids[:, 0]) == list(range(16))
    assert seen(ids[:, 1]) == list(range(6))


def test_columns_of_floats_that_are_looked_up_are_ids():
    def tabular(tables, x):
        return tables[0](x[:, 1].long()) * x[:, :1]

    x = probes_of(Forward(tabular, 5), torch.zeros(2, 3))

    assert seen(x[:, 1]) == [0, 1, 2, 3, 4]
    assert abs(x[:, 2].std() - 1) < 0.2


def test_positions_and_targets_stay():
    class Text(nn.Module):
        def __init__(self):
            super().__init__()
            self.words, self.places = nn.Embedding(20, 4), nn.Embedding(8, 4)

        def forward(self, input_ids, position_ids, labels):
            x = self.words(input_ids) + self.places(position_ids)
            return nn.functional.cross_entropy(x.flatten(0, 1), labels.flatten())

    positions = torch.arange(5).expand(2, 5)
    inputs = {"input_ids": torch.zeros(2, 5).long(), "position_ids": positions, "labels": torch.full((2, 5), -100)}

    made = probes_of(Text(), inputs)

    assert seen(made["input_ids"]) == list(range(20))
    assert torch.equal(made["position_ids"], torch.arange(5).expand(256, 5))
    assert (made["labels"] == -100).all()


def test_ids_of_gpt2_are_within_its_vocabulary():
    transformers = pytest.importorskip("transformers")
    sizes = {"n_embd": 8, "n_layer": 1, "n_head": 2, "vocab_size": 30, "n_positions": 16}
    model = transformers.GPT2LMHeadModel(transformers.GPT2Config(**sizes, bos_token_id=0, eos_token_id=0))
    inputs = {"input_ids": torch.zeros(2, 6).long(), "attention_mask": torch.tensor([[1] * 6, [1] * 4 + [0] * 2])}

    made = probes_of(model, inputs)

    assert seen(made["input_ids"]) == list(range(30))
    assert torch.equal(made["attention_mask"][:2], inputs["attention_mask"])
    model(**made)


def test_types_of_tokens_of_bert_stay_within_theirs():
    transformers = pytest.importorskip("transformers")
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
    model = transformers.BertModel(transformers.BertConfig(**sizes, vocab_size=30, pad_token_id=0, type_vocab_size=2))
    zeros = torch.zeros(2, 6).long()

    made = probes_of(model, {"input_ids": zeros, "token_type_ids": zeros, "attention_mask": zeros + 1})

    assert seen(made["input_ids"]) == list(range(1, 30))
    assert seen(made["token_type_ids"]) == [0, 1]
    model(**made)
