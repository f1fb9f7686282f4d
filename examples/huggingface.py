"""Fine-tune a text classifier of Hugging Face transformers, and prune its width, attention heads and neurons.

    pip install ".[examples,huggingface]"
    python examples/huggingface.py   # a small DistilBERT, trained from scratch: no download
    python examples/huggingface.py --model distilbert-base-uncased --dataset imdb --limit 5000   # from the Hub
    python examples/huggingface.py --model folder --dataset texts.csv   # a file with the columns text and label

By default the texts are docstrings of the installed numpy, scipy, scikit-learn and torch, and the label is the library.
``--dataset`` needs the package ``datasets``.

What to expect: the number of attention heads or neurons left in every group, then a table. Half of the MACs have been
removed, and the accuracy is within a few points of the value before. Both are moderate, about 70 % (chance is 25 %),
because the model has only seen a few thousand docstrings and is tested on those of other files.

Saving: ``update_config`` lets the config tell what it can, and ``save_pretrained`` writes a folder that
``load_pretrained`` loads. ``from_pretrained`` alone rejects it unless the config can tell all sizes, which that of
DistilBERT cannot: its heads have together the width of the stream. See docs/huggingface.md.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

import lightning as L
import torch
import transformers
from report import Result, quiet, show
from texts import Split, Texts, dataset, docstrings
from tokenizers import BertWordPieceTokenizer
from torch import Tensor
from torch.utils.data import DataLoader
from torchmetrics.classification import MulticlassAccuracy
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lightning_coreset import CoresetPruningCallback
from lightning_coreset.huggingface import load_pretrained, update_config

LENGTH = 64  # longer texts are truncated to so many tokens


class Classifier(L.LightningModule):
    """An ordinary LightningModule, without any code for pruning."""

    def __init__(self, network: PreTrainedModel, lr: float) -> None:
        super().__init__()
        self.network = network
        self.lr = lr
        self.accuracy = MulticlassAccuracy(num_classes=network.config.num_labels, average="micro")

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        return self.network(**batch).loss

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        self.accuracy(self.network(**batch).logits, batch["labels"])
        self.log("val_acc", self.accuracy)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), self.lr)


def small_model(texts: Texts) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A DistilBERT with random weights, and a tokenizer trained on the texts."""
    words = BertWordPieceTokenizer()
    words.train_from_iterator(texts.train[0], vocab_size=4000, show_progress=False)
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=words._tokenizer,
        **{f"{name}_token": f"[{name.upper()}]" for name in ("pad", "unk", "cls", "sep", "mask")},
        model_input_names=["input_ids", "attention_mask"],
    )
    config = transformers.DistilBertConfig(
        vocab_size=len(tokenizer), dim=64, n_layers=2, n_heads=4, hidden_dim=256, num_labels=texts.classes
    )
    return transformers.DistilBertForSequenceClassification(config), tokenizer


def pretrained_model(name: str, texts: Texts) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load a model from the Hub or a folder; a head for another number of labels is initialised randomly."""
    network = transformers.AutoModelForSequenceClassification.from_pretrained(
        name, num_labels=texts.classes, ignore_mismatched_sizes=True
    )
    return network.train(), transformers.AutoTokenizer.from_pretrained(
        name
    )  # it is loaded in eval mode, without dropout


def loader(split: Split, tokenizer: PreTrainedTokenizerBase, batch_size: int, *, shuffle: bool = False) -> DataLoader:
    """Batches of token ids, each padded to its longest text."""
    encoded = tokenizer(split[0], truncation=True, max_length=LENGTH)
    rows: Any = [{**{key: encoded[key][i] for key in encoded}, "labels": label} for i, label in enumerate(split[1])]
    return DataLoader(rows, batch_size, shuffle=shuffle, collate_fn=transformers.DataCollatorWithPadding(tokenizer))


def train(model: Classifier, loaders: tuple[DataLoader, DataLoader], epochs: int, callbacks: list[L.Callback]) -> float:
    """Train, and return the accuracy on the test texts."""
    trainer = L.Trainer(
        max_epochs=epochs,
        devices=1,
        callbacks=callbacks,
        logger=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        enable_progress_bar=False,
    )
    trainer.fit(model, *loaders)
    return trainer.callback_metrics["val_acc"].item()


def main() -> None:
    """Train, fine-tune while pruning, compare, save."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", help="a name on the Hub or a folder (default: a small new DistilBERT)")
    parser.add_argument("--dataset", help="a name on the Hub, a folder or a file (default: docstrings)")
    parser.add_argument("--limit", type=int, help="docstrings per library (1000), or texts per split of --dataset")
    parser.add_argument(
        "--epochs", type=int, default=4, help="epochs before pruning, and with pruning (default: %(default)s)"
    )
    parser.add_argument(
        "--ratio", type=float, default=0.5, help="fraction of the MACs to remove (default: %(default)s)"
    )
    parser.add_argument("--lr", type=float, help="learning rate (default: 5e-5 with --model, else 1e-3)")
    parser.add_argument("--save", type=Path, help="folder for the pruned model (default: a temporary one)")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    quiet()
    L.seed_everything(args.seed, verbose=False)
    texts = dataset(args.dataset, args.limit) if args.dataset else docstrings(args.limit or 1000)
    network, tokenizer = pretrained_model(args.model, texts) if args.model else small_model(texts)
    loaders = loader(texts.train, tokenizer, 32, shuffle=True), loader(texts.test, tokenizer, 128)
    example = tokenizer(
        texts.test[0][:1], padding="max_length", truncation=True, max_length=LENGTH, return_tensors="pt"
    )
    model = Classifier(network, args.lr or (5e-5 if args.model else 1e-3))

    accuracy = train(model, loaders, args.epochs, [])
    before = Result.of(network.cpu(), dict(example), accuracy)
    # MACs, because most parameters of such a model are in embeddings, which cannot be pruned.
    pruning = CoresetPruningCallback(args.ratio, unit="macs", include_residual=True)
    accuracy = train(model, loaders, args.epochs, [pruning])
    after = Result.of(network.cpu(), dict(example), accuracy)

    for group in pruning.history[-1].groups:
        print(f"{group.name}: {group.channels} of {group.channels_original} left")
    show(f"{type(network).__name__}, {args.epochs} + {args.epochs} epochs", before, after)
    with tempfile.TemporaryDirectory() as temporary:
        folder = args.save or Path(temporary)
        update_config(model, dict(example))  # the module that was pruned
        network.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        again = load_pretrained(type(network), folder)
        # Not to the last bit: kernels round differently where a tensor starts at another place in memory.
        same = torch.allclose(again(**example).logits, network.eval()(**example).logits, rtol=1e-4, atol=1e-6)
        print(f"saved, and loaded again: {'the same' if same else 'OTHER'} answers")


if __name__ == "__main__":
    main()
