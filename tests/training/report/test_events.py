"""What is printed at an event: the model before and after it, and the groups that changed most."""

from dataclasses import replace

import pytest

from lightning_coreset.plan import GroupPlan, PruningPlan
from lightning_coreset.planning import ModelCost
from lightning_coreset.training.report import EventRecord
from lightning_coreset.training.report.events import event_line, event_report

EPOCH = {"epoch": 3, "step": 40}


def event(sizes: dict[str, tuple], unit: str = "params", **when) -> tuple[PruningPlan, EventRecord]:
    """A plan of groups (before, after, parameters and MACs removed, error), and its record."""
    groups = tuple(
        GroupPlan(name, before, after, tuple(range(after)), "rank (why)", error, params_removed=p, macs_removed=m)
        for name, (before, after, p, m, error) in sizes.items()
    )
    plan = PruningPlan(groups, (), {"head": "is a bias"}, 0.45, 0.4, unit, 1000, 800, 600, 700, 550)
    original = ModelCost(1000, 900, 0, {name: 2 * group[0] for name, group in sizes.items()})
    return plan, EventRecord.of(plan, original, None, **EPOCH, **when)


SIZES = {"a": (16, 8, 50, 400, 0.25), "b": (10, 10, 0, 0, 0.5), "c": (8, 6, 150, 300, None)}


def test_it_shows_the_model_and_the_groups_that_lost_most_first():
    report = event_report(*event(SIZES, accuracy_before=0.75, accuracy_after=0.5), "epoch 3")

    assert report.splitlines() == [
        "Pruned at epoch 3: 40.00% of the parameters are removed (45.00% requested).",
        "                 original  before   after   left",
        "------------------------------------------------",
        "parameters          1,000     800     600  60.0%",
        "MACs per sample       900     700     550  61.1%",
        "channels               68      34      24  35.3%",
        "accuracy                   0.7500  0.5000",
        "",
        "group  channels  left  params  MACs   error",
        "-------------------------------------------",
        "c        8 -> 6   38%    -150  -300",
        "a       16 -> 8   25%     -50  -400  25.00%",
        "groups that keep all their channels: 1",
    ]


def test_macs_decide_the_order_where_the_ratio_counts_them():
    lines = event_report(*event(SIZES, unit="macs"), "epoch 3").splitlines()

    assert "of the MACs are removed" in lines[0]
    assert [line[0] for line in lines if line.startswith(("a ", "c "))] == ["a", "c"]
    assert not any(line.startswith("accuracy") for line in lines)  # it was not measured


def test_groups_that_only_differ_in_a_number_are_one_row():
    blocks = {f"layers.{number}.mlp": (64, 32, 70, 7, number / 100) for number in range(12)}
    lines = event_report(*event({**blocks, "last": (8, 4, 10, 1, 0.5)}), "epoch 3").splitlines()

    at = lines.index("")
    assert lines[at + 3].split() == ["layers.0-11.mlp", "(12)", "64", "->", "32", "25%", "-70", "-7", "11.00%"]
    assert lines[at + 4].startswith("last")
    assert lines[at + 5 :] == ["(n): n groups, each with these numbers; of their errors the largest"]


def test_of_many_groups_ten_are_shown():
    sizes = {f"{'abcdefghijklmno'[number]}x": (64, 32, 100 - number, 7, None) for number in range(15)}
    lines = event_report(*event(sizes), "epoch 3").splitlines()

    shown = [line.split()[0] for line in lines if line.endswith("-7")]
    assert shown == list(sizes)[:10]
    assert lines[-1] == "... and 5 more groups, see print(callback.plans[-1])"


def test_an_event_that_removed_nothing_takes_one_line():
    plan, record = event({"a": (16, 16, 0, 0, None)})

    expected = (
        "Nothing to do at epoch 3: 40.00% of the parameters are removed (45.00% requested), and the next step would "
        "miss that by more."
    )
    assert event_report(plan, record, "epoch 3") == event_line(plan, record, "epoch 3") == expected


def test_an_event_that_asks_for_no_more_than_is_gone_says_so():
    plan, record = event({"a": (16, 16, 0, 0, None)})

    report = event_report(plan, replace(record, requested=0.35), "step 7")

    assert report == "Nothing to do at step 7: 40.00% of the parameters are removed already (35.00% requested)."


def test_where_time_is_counted_it_is_shown():
    plan, record = event(SIZES, "latency")
    groups = tuple(replace(group, latency_removed=2e-5 * group.params_removed) for group in plan.groups)
    plan = replace(plan, groups=groups, latency_original=0.02, latency_before=0.016, latency_after=0.012)

    lines = event_report(plan, replace(record, latency_original=0.02, latency=0.012), "epoch 3").splitlines()

    assert lines[0] == "Pruned at epoch 3: 40.00% of the latency is removed (45.00% requested)."
    assert lines[6].split() == ["latency", "in", "ms", "20", "16", "12", "60.0%"]
    row = next(line for line in lines if line.startswith("c "))
    assert row.split()[-3:] == ["-300", "-3", "ms"]


@pytest.mark.parametrize(
    ("measured", "end"),
    [({}, "."), ({"accuracy_before": 0.75, "accuracy_after": 0.5}, ", val_loss 0.7500 -> 0.5000.")],
)
def test_notebooks_get_one_line(measured, end):
    assert event_line(*event(SIZES, **measured), "epoch 3", "val_loss") == (
        "Pruned at epoch 3: 800 -> 600 parameters, 40.00% of the parameters removed" + end
    )
