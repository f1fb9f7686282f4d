"""PyTorch Geometric: convolutions on graphs, with batches of graphs from its own loader."""

from __future__ import annotations

from typing import Any

import pytest

pytest.importorskip("torch_geometric")
import lightning.pytorch as pl
import torch
from client_trials import QUIET, Trial, check
from lightning.pytorch import Trainer
from torch import nn
from torch_geometric import nn as graphs
from torch_geometric.data import Data
from torch_geometric.loader import DataLoader

pytestmark = [pytest.mark.clients, pytest.mark.filterwarnings("ignore")]

COUPLED = (("include_residual", True),)


def mlp(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(inputs, outputs), nn.BatchNorm1d(outputs), nn.ReLU(), nn.Linear(outputs, outputs), nn.ReLU()
    )


CONVOLUTIONS: dict[str, tuple[Any, Any, tuple[tuple[str, Any], ...]]] = {
    "GCNConv": (lambda: graphs.GCNConv(8, 32), lambda: graphs.GCNConv(32, 32), ()),
    "SAGEConv, mean": (lambda: graphs.SAGEConv(8, 32), lambda: graphs.SAGEConv(32, 32), COUPLED),
    "SAGEConv, max": (
        lambda: graphs.SAGEConv(8, 32, aggr="max"),
        lambda: graphs.SAGEConv(32, 32, aggr="max", project=True),
        COUPLED,
    ),
    "GATConv": (lambda: graphs.GATConv(8, 8, 4), lambda: graphs.GATConv(32, 32, 2, concat=False), ()),
    "GATv2Conv": (lambda: graphs.GATv2Conv(8, 8, 4), lambda: graphs.GATv2Conv(32, 32, 2, concat=False), COUPLED),
    "GINConv": (lambda: graphs.GINConv(mlp(8, 32)), lambda: graphs.GINConv(mlp(32, 32), train_eps=True), ()),
    "EdgeConv": (lambda: graphs.EdgeConv(mlp(16, 32)), lambda: graphs.EdgeConv(mlp(64, 32)), ()),
    "DynamicEdgeConv": (
        lambda: graphs.DynamicEdgeConv(mlp(16, 32), 3),
        lambda: graphs.DynamicEdgeConv(mlp(64, 32), 3),
        (),
    ),
}


class Classifier(pl.LightningModule):
    """Two convolutions, the mean over each graph, a class for each."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.save_hyperparameters()
        first, second, _ = CONVOLUTIONS[kind]
        self.first, self.second, self.head = first(), second(), nn.Linear(32, 3)

    def forward(self, x: torch.Tensor, edges: torch.Tensor, batch: torch.Tensor) -> torch.Tensor:
        for convolution in (self.first, self.second):
            given = batch if isinstance(convolution, graphs.DynamicEdgeConv) else edges
            x = convolution(x, given).relu()
        return self.head(graphs.global_mean_pool(x, batch))

    def training_step(self, batch: Any, _: int) -> torch.Tensor:
        return nn.functional.cross_entropy(self(batch.x, batch.edge_index, batch.batch), batch.y)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), 1e-3)


def made_graphs() -> list[Data]:
    generator = torch.Generator().manual_seed(0)

    def graph() -> Data:
        nodes = int(torch.randint(6, 12, (), generator=generator))
        edges = torch.randint(0, nodes, (2, 3 * nodes), generator=generator)
        x = torch.randn(nodes, 8, generator=generator)
        return Data(x=x, edge_index=edges, y=torch.randint(0, 3, (1,), generator=generator))

    return [graph() for _ in range(24)]


@pytest.mark.parametrize("kind", CONVOLUTIONS)
def test_torch_geometric(kind, tmp_path, record_property):
    loader = DataLoader(made_graphs(), batch_size=8)
    sample = next(iter(loader))
    try:
        Classifier(kind)(sample.x, sample.edge_index, sample.batch)
    except ImportError as error:  # pyg-lib or torch-cluster
        pytest.skip(str(error))

    def fit(callback: Any) -> Any:
        trainer = Trainer(max_epochs=5, callbacks=[callback], enable_checkpointing=False, **QUIET)
        model = Classifier(kind)
        trainer.fit(model, loader)
        return model, trainer

    def predict(trained: Any) -> torch.Tensor:
        model = trained[0] if isinstance(trained, tuple) else trained
        with torch.no_grad():
            return model.eval()(sample.x, sample.edge_index, sample.batch)

    trial = Trial(
        "torch_geometric",
        kind,
        fit,
        lambda trained: trained[0],
        predict,
        lambda trained, path: trained[1].save_checkpoint(path / "m.ckpt"),
        lambda path: Classifier.load_from_checkpoint(path / "m.ckpt"),
        notes="`include_residual=True`" if CONVOLUTIONS[kind][2] else "",
        options=CONVOLUTIONS[kind][2],
    )
    check(trial, tmp_path, record_property)
