"""The state around a network in training after pruning with both libraries; printed by ``torch_pruning_traps.py``.

Flags, tied weights, an optimizer created before pruning, and a state dict loaded with ``weights_only=True``.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator

import torch
from torch import Generator, nn

from lightning_coreset import make_resizable, plan_pruning
from lightning_coreset.optimizers import slice_optimizer_state
from lightning_coreset.surgery import apply_changes

Prune = Callable[..., None]
"""Takes a network and example inputs."""

X = torch.randn(4, 6, generator=Generator().manual_seed(0))


def in_training(ours: Prune, theirs: Prune) -> Iterator[tuple[str, str, str]]:
    """Each property, and whether it holds after this package and after Torch-Pruning."""
    both = (ours, theirs)
    yield "frozen layers stay frozen", *(_yes(_stays_frozen(prune)) for prune in both)
    yield "tied weights stay tied", *(_yes(_stays_tied(prune)) for prune in both)
    yield "an optimizer made before trains the pruned network", *(_yes(_still_trains(prune)) for prune in both)
    along = (_with_optimizer, lambda model, _: theirs(model, (X,)))  # Torch-Pruning has no support for optimizers
    yield "its momentum is kept", *(_yes(_momentum_is_kept(prune)) for prune in along)
    loads = _loads(ours, make_resizable), _loads(theirs, lambda model: model)
    yield "the state dict fits a fresh model of the original size", *map(_yes, loads)


def _yes(holds: bool) -> str:
    return "yes" if holds else "no"


def _mlp() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 20), nn.ReLU(), nn.Linear(20, 12), nn.ReLU(), nn.Linear(12, 3))


def _stays_frozen(prune: Prune) -> bool:
    model = _mlp()
    model[0].requires_grad_(False)
    prune(model, (X,))
    return not model[0].weight.requires_grad


def _stays_tied(prune: Prune) -> bool:
    model = nn.Sequential(
        nn.Linear(6, 12), nn.Linear(12, 12), nn.ReLU(), nn.Linear(12, 12), nn.ReLU(), nn.Linear(12, 3)
    )
    model[3].weight = model[1].weight
    prune(model, (X,))
    return model[3].weight is model[1].weight


def _still_trains(prune: Prune) -> bool:
    model = _mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    prune(model, (X,))
    before = model[0].weight.detach().clone()
    model(X).square().sum().backward()
    optimizer.step()
    return not torch.equal(model[0].weight, before)


def _momentum_is_kept(prune: Callable[[nn.Module, torch.optim.Optimizer], None]) -> bool:
    model = _mlp()
    optimizer = torch.optim.Adam(model.parameters())
    model(X).square().sum().backward()
    optimizer.step()
    prune(model, optimizer)
    momentum = optimizer.state[model[0].weight].get("exp_avg")
    return momentum is not None and momentum.shape == model[0].weight.shape


def _with_optimizer(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Prune as the callback does, which slices the state of every optimizer of the Trainer."""
    plan = plan_pruning(model, (X,), 0.3)
    slice_optimizer_state(optimizer, apply_changes(model, plan.changes, plan.attributes))


def _loads(prune: Prune, prepared: Callable[[nn.Module], nn.Module]) -> bool:
    model, fresh = prepared(_mlp()), prepared(_mlp())
    prune(model, (X,))
    with tempfile.TemporaryFile() as file:
        torch.save(model.state_dict(), file)
        file.seek(0)
        try:
            fresh.load_state_dict(torch.load(file, weights_only=True))
        except RuntimeError:
            return False
    return torch.equal(fresh(X), model(X))
