from __future__ import annotations

import pytest

from lightning_coreset.plan import GroupPlan, PruningPlan
from lightning_coreset.planning import ModelCost
from lightning_coreset.training.report import EventRecord, GroupRecord

ORIGINAL = ModelCost(params=1000, macs=900, channels=26, widths={"net.0": 16, "net.2": 10})


@pytest.fixture
def original():
    """What the network of the plans below was before any event."""
    return ORIGINAL


@pytest.fixture
def make_plan():
    """A plan that keeps so many channels of each group."""

    def make(kept: dict[str, int], before: dict[str, int] | None = None, params: int = 600) -> PruningPlan:
        before = dict(ORIGINAL.widths) | (before or {})
        groups = [
            GroupPlan(name, before[name], count, tuple(range(count)), "uniform", expected_error=0.25)
            for name, count in kept.items()
        ]
        return PruningPlan(
            groups=tuple(groups),
            changes=(),
            skipped={"head": "reaches the output"},
            requested=0.5,
            reached=0.4,
            unit="params",
            params_original=1000,
            params_before=800,
            params_after=params,
            macs_before=700,
            macs_after=550,
        )

    return make


@pytest.fixture
def make_record():
    """A record of an event after which so many channels of so many are left, by group."""

    def make(widths: dict[str, tuple[int, int]] | None = None, params: int = 600, **options) -> EventRecord:
        widths = {"net.0": (8, 16), "net.2": (10, 10)} if widths is None else widths
        numbers = {
            "epoch": 1,
            "step": 7,
            "unit": "macs",
            "requested": 0.5,
            "reached": 0.4,
            "params": params,
            "params_original": 1000,
            "macs": 550,
            "macs_original": 900,
            "groups": tuple(GroupRecord(name, *sizes, "uniform") for name, sizes in widths.items()),
        }
        return EventRecord(**(numbers | options))

    return make
