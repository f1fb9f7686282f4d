"""A first hour with the callback and a transformer of Hugging Face: train, prune, keep the best, load it, save it.

    pip install ".[examples,huggingface]"
    python examples/first_hour_transformer.py

It needs no GPU and no download: a small BERT is built from a config, and the texts are docstrings of the installed
numpy, scipy, scikit-learn and torch; the task is to tell which library a docstring is from. To start from a model of
the Hub instead, see examples/huggingface.py.

What to expect: a table of how the network shrank, event by event, and an account of it. Half of the MACs have been
removed: heads, feed-forward units and the width of the model. The test accuracy is within about five points of the
network trained without pruning; both are moderate, about 65 % (chance is 25 %), because the network has only seen some
thousand docstrings. The folder that ``save_pretrained`` writes loads with the same answers.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import lightning as L
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from report import quiet
from texts import Texts, docstrings
from tokenizers import BertWordPieceTokenizer
from torch import Tensor, nn
from torch.utils.data import DataLoader
from torchmetrics.classification import MulticlassAccuracy
from transformers import AutoModelForSequenceClassification, BertConfig, BertForSequenceClassification

from lightning_coreset import CoresetPruningCallback, load_pruned
from lightning_coreset.huggingface import load_pretrained, update_config

VOCABULARY, LENGTH = 4000, 64  # tokens; longer texts are truncated


class TextClassifier(L.LightningModule):
    """A small BERT. Its arguments are plain numbers, which a checkpoint can hold; a config object it could not."""

    def __init__(self, classes: int, width: int = 64, layers: int = 2, heads: int = 4) -> None:
        super().__init__()
        self.save_hyperparameters()  # so that a checkpoint can tell how to build the model
        config = BertConfig(
            vocab_size=VOCABULARY,
            hidden_size=width,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            intermediate_size=4 * width,
            max_position_embeddings=LENGTH,
            num_labels=classes,
        )
        self.network = BertForSequenceClassification(config)
        self.accuracy = MulticlassAccuracy(num_classes=classes, average="micro")

    def forward(self, **inputs: Tensor) -> Tensor:
        return self.network(**inputs).logits

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        return self.network(**batch).loss

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        self.accuracy(self.network(**batch).logits, batch["labels"])
        self.log("val_acc", self.accuracy)

    def test_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        self.accuracy(self.network(**batch).logits, batch["labels"])
        self.log("test_acc", self.accuracy)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=1e-3)


def make_loaders(texts: Texts) -> tuple[DataLoader, DataLoader, DataLoader]:
    """Token ids of the texts: training, validation (half of the texts held out) and test (the other half)."""
    words = BertWordPieceTokenizer()
    words.train_from_iterator(texts.train[0], vocab_size=VOCABULARY, show_progress=False)
    words.enable_truncation(LENGTH)
    words.enable_padding(length=LENGTH)

    def rows(split: tuple[list[str], list[int]]) -> list[dict[str, Tensor]]:
        return [
            {
                "input_ids": torch.tensor(encoded.ids),
                "attention_mask": torch.tensor(encoded.attention_mask),
                "labels": torch.tensor(label),
            }
            for encoded, label in zip(words.encode_batch(split[0]), split[1], strict=True)
        ]

    held_out = rows(texts.test)
    train = DataLoader(rows(texts.train), batch_size=32, shuffle=True)
    return train, DataLoader(held_out[::2], batch_size=128), DataLoader(held_out[1::2], batch_size=128)


def train(texts: Texts, epochs: int, folder: Path, *callbacks: L.Callback) -> tuple[ModelCheckpoint, float]:
    """Train with ``callbacks``; return what kept the best checkpoint, and the test accuracy of this one."""
    L.seed_everything(0, verbose=False)
    train_loader, val_loader, test_loader = make_loaders(texts)
    best = ModelCheckpoint(folder, monitor="val_acc", mode="max")
    trainer = L.Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        callbacks=[*callbacks, best],
        logger=False,
        enable_model_summary=False,
        enable_progress_bar=False,  # leave it on in a terminal of your own
    )
    trainer.fit(TextClassifier(texts.classes), train_loader, val_loader)
    (metrics,) = trainer.test(dataloaders=test_loader, ckpt_path="best", verbose=False)
    return best, metrics["test_acc"]


def parameters(model: nn.Module) -> int:
    """The number of parameters."""
    return sum(parameter.numel() for parameter in model.parameters())


def main() -> None:
    """Train twice, compare, load, save as Hugging Face does."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=6, help="epochs of each training (default: %(default)s)")
    parser.add_argument("--limit", type=int, default=400, help="docstrings per library (default: %(default)s)")
    args = parser.parse_args()
    quiet()
    texts = docstrings(args.limit)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)

        print(f"Training {args.epochs} epochs without pruning ...", flush=True)
        _, accuracy_before = train(texts, args.epochs, folder / "unpruned")

        print(f"Training {args.epochs} epochs, pruning half of the MACs on the way ...", flush=True)
        # MACs, since most parameters of so small a model are in its embedding. include_residual=True prunes the width
        # of the model, too; without it heads and feed-forward units go alone.
        pruning = CoresetPruningCallback(0.5, unit="macs", include_residual=True, verbose=False)
        best, accuracy = train(texts, args.epochs, folder / "pruned", pruning)
        pruning.summary()

        model = load_pruned(TextClassifier, best.best_model_path).eval()
        size_before, size = parameters(TextClassifier(texts.classes)), parameters(model)

        inputs = {"input_ids": torch.randint(VOCABULARY, (2, LENGTH))}
        update_config(model, inputs)  # lets the config tell the new sizes, as far as it can
        model.network.save_pretrained(folder / "classifier")
        loaded = load_pretrained(AutoModelForSequenceClassification, folder / "classifier").eval()
        same = torch.allclose(loaded(**inputs).logits, model(**inputs), rtol=1e-4, atol=1e-6)

        size_of_file = (folder / "classifier" / "model.safetensors").stat().st_size
        last = pruning.history[-1]
        print()
        print(f"MACs:           {last.macs_original:,} -> {last.macs:,} ({last.macs / last.macs_original:.0%} left)")
        print(f"parameters:     {size_before:,} -> {size:,} ({size / size_before:.0%} left)")
        print(f"test accuracy:  {accuracy_before:.1%} -> {accuracy:.1%}")
        print(f"saved:          a folder, {size_of_file / 1e3:,.0f} kB, {'the same' if same else 'OTHER'} answers")


if __name__ == "__main__":
    main()
