"""How users call the package, for pyright in strict mode (tests/test_typed.py); what it has to refuse is marked."""

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from lightning_coreset import (
    AccuracyGuard,
    AccuracyMonitor,
    CoresetPruningCallback,
    PruningPlan,
    PruningSchedule,
    plan_pruning,
    prune,
    sensitivity_scan,
)


def rules(
    model: nn.Module,
    x: Tensor,
    by_name: dict[str, float],
    by_type: dict[type[nn.Linear], int],
    by_any: Mapping[str | re.Pattern[str] | type[nn.Module], float],
) -> PruningPlan:
    mixed = {"stem": 0.5, nn.Linear: 0.3, re.compile("head.*"): 0.1}
    for ratio in (by_name, by_type, by_any, mixed):
        prune(model, x, ratio)
        plan_pruning(model, x, pruning_ratio=ratio, unit="macs", ignore=["stem"], only=[nn.Linear])
        CoresetPruningCallback(ratio, schedule={1: 0.5})
    prune(model, x, {3: 0.5})  # pyright: ignore[reportArgumentType]
    prune(model, x, {"stem": "half"})  # pyright: ignore[reportArgumentType]
    return prune(model, x, {"stem": 0.5, nn.Linear: 1})


def names(model: nn.Module, x: Tensor) -> None:
    prune(model, x, 0.5, self_check=False, max_layer_ratio=0.9)
    prune(model, x, ignor=["stem"])  # pyright: ignore[reportCallIssue]
    prune(model)  # pyright: ignore[reportCallIssue]
    plan_pruning(model, x, unit="flops")  # pyright: ignore[reportArgumentType]
    CoresetPruningCallback(self_chek=False)  # pyright: ignore[reportCallIssue]


def old_names(model: nn.Module, x: Tensor) -> None:
    prune(model, x, check=False, max_ratio=0.9)
    plan_pruning(model, x, check=False, max_ratio=0.9)
    sensitivity_scan(model, x, lambda network: 0.0, check=False)
    CoresetPruningCallback(check=False, max_ratio=0.9)


def objects() -> None:
    CoresetPruningCallback(
        schedule=PruningSchedule("linear", start=3),
        guard=AccuracyGuard(0.01, on_failure="halve"),
        accuracy=AccuracyMonitor(monitor="val_acc"),
    )
    CoresetPruningCallback(guard={"max_drop": 0.1})  # pyright: ignore[reportArgumentType]
    PruningSchedule("linear", 3)  # pyright: ignore[reportCallIssue]
    AccuracyGuard()  # pyright: ignore[reportCallIssue]


class LinearOnly(CoresetPruningCallback):
    def __init__(self, **options: Any) -> None:
        super().__init__(only=[nn.Linear], **options)
