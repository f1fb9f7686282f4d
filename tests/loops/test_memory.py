"""Long schedules: past events hold no tensors, and checkpoints hold little of them."""

from __future__ import annotations

import io
from dataclasses import replace

import pytest
import torch
from fitting import Classifier, make_loader, make_trainer
from torch import Tensor

from lightning_coreset import CoresetPruningCallback
from lightning_coreset.plan import GroupPlan, PruningPlan
from lightning_coreset.planning import ModelCost
from lightning_coreset.position_runs import PositionRuns
from lightning_coreset.training.progress import Progress


def tensors_in(value: object, seen: set[int]) -> list[Tensor]:
    """All tensors that an object of ours refers to, through whatever it holds."""
    if id(value) in seen:
        return []
    seen.add(id(value))
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, dict):
        held = [*value.keys(), *value.values()]
    elif isinstance(value, (list, tuple)):
        held = list(value)
    else:
        held = list(vars(value).values()) if hasattr(value, "__dict__") else []
    return [tensor for one in held for tensor in tensors_in(one, seen)]


class Sees(CoresetPruningCallback):
    """Keeps the tables of the plans that ``on_prune`` gets."""

    def __init__(self, **options):
        super().__init__(**options)
        self.tables = []

    def on_prune(self, plan, trainer, pl_module):
        assert any(change.value is not None for change in plan.changes)
        self.tables.append((str(plan), [group.kept for group in plan.groups]))


def test_plans_of_past_events_hold_no_tensors():
    callback = Sees(schedule={1: 0.2, 2: 0.35, 3: 0.5}, verbose=False, self_check=False)

    make_trainer(callback, max_epochs=4).fit(Classifier(), make_loader(8))

    assert [(str(plan), [group.kept for group in plan.groups]) for plan in callback.plans] == callback.tables
    assert len(callback.tables) == 3
    assert tensors_in(callback._run.progress, set()) == []


def test_plans_of_a_dry_run_hold_no_tensors():
    callback = CoresetPruningCallback(schedule={1: 0.2, 2: 0.5}, verbose=False, self_check=False)

    dry = callback.dry_run(make_trainer(max_epochs=4), Classifier(), next(iter(make_loader(8))))

    assert [len(plan.groups) for plan in dry.plans.values()] == [2, 2]
    assert tensors_in(dry, set()) == []


# ---- 1000 events


def long_run(groups: int, channels: int, events: int) -> Progress:
    """A run whose events take a few channels, far from each other, from some of the groups each."""
    names = [f"backbone.layers.{number}.conv" for number in range(groups)]
    width = channels // groups
    progress = Progress(original=ModelCost(10**7, 10**9, channels, dict.fromkeys(names, width)))
    left, each = dict.fromkeys(names, width), channels // events // groups // 2
    skipped = {f"heads.{number}": "makes outputs of the network" for number in range(20)}
    for event in range(events - 1):
        rows = []
        for number, name in enumerate(names):
            before = left[name]
            left[name] = before - each
            runs = [before // each - 2 + (number + event) % 2, 1] * each
            kept = PositionRuns.from_lengths([*runs, before - sum(runs)] if before > sum(runs) else runs[:-1])
            error = 1 / (3 + event + number)
            rows.append(GroupPlan(name, before, left[name], kept, "reconstruction", expected_error=error))
        plan = PruningPlan(tuple(rows), (), skipped, event / events, event / events, "params", 10**7, 2, 1, 4, 3)
        progress.add(plan, {event: event / events}, epoch=event, step=10 * event, accuracy_after=1 / (event + 1))
    return progress


@pytest.mark.parametrize("groups", [1, 10])
@pytest.mark.slow
def test_a_thousand_events_on_forty_thousand_channels_take_less_than_a_megabyte(groups):
    progress = long_run(groups, 40_000, 1000)
    file = io.BytesIO()

    torch.save(progress.to_dict(), file)

    assert file.tell() < 1_000_000
    file.seek(0)
    read = Progress.from_dict(torch.load(file, weights_only=True))
    assert read.history == progress.history
    for place in (0, 500, -1):
        assert read.plans[place].groups == progress.plans[place].groups
        assert str(read.plans[place]) == str(progress.plans[place])
    assert read.to_dict() == progress.to_dict()


def test_a_run_that_goes_on_writes_what_the_uninterrupted_one_writes():
    whole = long_run(2, 400, 20)
    part = Progress.from_dict(
        long_run(2, 400, 20).to_dict() | {"plans": [0, 1], "history": whole.to_dict()["history"][:2]}
    )

    for number, (plan, record) in list(enumerate(zip(whole.plans, whole.history, strict=True)))[2:]:
        when = {"epoch": record.epoch, "step": record.step, "accuracy_after": record.accuracy_after}
        part.add(plan, {number: plan.requested}, **when)

    assert part.to_dict()["history"] == whole.to_dict()["history"]


def test_an_event_that_is_taken_back_stays_in_the_history_without_its_plan():
    progress = long_run(1, 100, 5)
    plan = progress.plans[-1]

    progress.undo(3, {0: 0.1})
    read = Progress.from_dict(progress.to_dict())
    read.add(plan, {4: 0.5}, epoch=4, step=1)
    again = Progress.from_dict(read.to_dict())

    assert [record.reverted for record in again.history] == [False, False, False, True, False]
    assert [str(one) for one in again.plans] == [str(one) for one in (*progress.plans[:3], plan)]


# ---- damage


@pytest.mark.parametrize("at", [0, 10, -3])
def test_a_text_that_is_damaged_is_an_error(at):
    plain = long_run(1, 100, 5).to_dict()
    text = plain["history"][1][0]
    place = at % len(text)
    plain["history"][1][0] = text[:place] + ("A" if text[place] != "A" else "B") + text[place + 1 :]

    with pytest.raises(ValueError, match="Expected the text of pruning event 1 as it was written"):
        Progress.from_dict(plain)


def test_positions_are_ascending():
    with pytest.raises(ValueError, match="Expected ascending positions but got 1 after 2"):
        replace(GroupPlan("a", 3, 2, (0, 1), "random"), kept=(0, 2, 1))
    with pytest.raises(ValueError, match="Expected positive lengths of runs"):
        PositionRuns.from_lengths([3, 0, 2])
    group = GroupPlan("a", 6, 3, (1, 2, 5), "random")
    assert (group.kept, group.kept_runs().lengths()) == ((1, 2, 5), [0, 1, 2, 2, 1])
    assert isinstance(group.kept, tuple)
