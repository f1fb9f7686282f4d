"""Batches with sparse tensors, such as the edges of a graph, in training with the callback."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from torch import Tensor, nn

from lightning_coreset import CoresetPruningCallback, plan_pruning

pytestmark = [
    pytest.mark.filterwarnings("ignore:Sparse CSR tensor support is in beta:UserWarning"),
    pytest.mark.filterwarnings("ignore:Sparse invariant checks are implicitly disabled:UserWarning"),
]

NODES = 12


class OnGraphs(pl.LightningModule):
    """Two convolutions on a graph, each a product with its adjacency matrix."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.last = nn.Linear(8, 32), nn.Linear(32, 24), nn.Linear(24, 3)

    def forward(self, x: Tensor, edges: Tensor) -> Tensor:
        x = (edges @ self.first(x)).relu()
        return self.last(torch.sparse.mm(edges, self.second(x)).relu())

    def training_step(self, batch: dict[str, Tensor], _: int) -> Tensor:
        return nn.functional.cross_entropy(self(batch["x"], batch["edges"]), batch["y"])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters())


def graph(by_rows: bool) -> dict[str, Tensor]:
    edges = (torch.rand(NODES, NODES) > 0.7).float()
    edges = edges.to_sparse_csr() if by_rows else edges.to_sparse()
    return {"x": torch.randn(NODES, 8), "edges": edges, "y": torch.randint(0, 3, (NODES,))}


def test_channels_pass_a_sparse_product_and_its_work_is_counted() -> None:
    module, batch = OnGraphs(), graph(by_rows=False)
    plan = plan_pruning(module, (batch["x"], batch["edges"]), 0.5)
    assert {group.name for group in plan.groups} == {"first", "second"}
    edges = batch["edges"]._nnz()
    assert plan.macs_before * NODES == pytest.approx(NODES * (8 * 32 + 32 * 24 + 24 * 3) + edges * (32 + 24), abs=NODES)


@pytest.mark.slow
@pytest.mark.parametrize("by_rows", [False, True])
def test_training_with_sparse_batches(by_rows: bool, tmp_path: Any) -> None:
    callback = CoresetPruningCallback(0.5, verbose=False)
    options: dict[str, Any] = {"accelerator": "cpu", "logger": False, "enable_progress_bar": False}
    trainer = pl.Trainer(
        max_epochs=5, callbacks=[callback], default_root_dir=tmp_path, enable_model_summary=False, **options
    )
    loader = torch.utils.data.DataLoader([graph(by_rows) for _ in range(4)], batch_size=None)
    trainer.fit(OnGraphs(), loader)
    assert callback.plans[-1].sparsity == pytest.approx(0.5, abs=0.03)
