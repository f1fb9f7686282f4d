"""Records of events: from plans, to checkpoints, files and tables."""

import csv
import io
import sys
from dataclasses import replace

import pytest
import torch

from lightning_coreset.training.report import GroupRecord, History


def test_a_record_compares_the_plan_with_the_original(make_plan, original):
    history = History()
    plan = make_plan({"net.0": 4, "net.2": 10}, before={"net.0": 8})

    record = history.add(plan, original, epoch=3, step=40, accuracy_before=0.75, accuracy_after=0.5)

    assert history == [record]
    assert (record.epoch, record.step, record.unit, record.requested, record.reached) == (3, 40, "params", 0.5, 0.4)
    assert (record.params, record.params_original, record.macs, record.macs_original) == (600, 1000, 550, 900)
    assert record.sparsity == pytest.approx(0.4)
    assert (record.accuracy_before, record.accuracy_after, record.accuracy_recovered) == (0.75, 0.5, None)
    assert record.groups == (
        GroupRecord("net.0", 4, 16, "uniform", expected_error=0.25),  # of the 16 before the first event
        GroupRecord("net.2", 10, 10, "uniform", expected_error=0.25),
    )
    assert record.groups[0].keep_ratio == 0.25


def test_a_group_that_plans_no_longer_name_stays_in_its_place(make_plan, original):
    history = History()
    first = history.add(make_plan({"net.0": 1, "net.2": 8}), original, epoch=1, step=1)

    second = history.add(make_plan({"net.2": 5}, before={"net.2": 8}), original, epoch=2, step=2)

    assert second.groups == (first.groups[0], GroupRecord("net.2", 5, 10, "uniform", 0.25))


def test_an_event_that_was_taken_back_no_longer_counts(make_plan, original):
    history = History()
    assert history.current is None
    for epoch in (1, 2):
        history.add(make_plan({"net.0": 8, "net.2": 8}), original, epoch=epoch, step=epoch)
    history.recovered(0.5)

    history.revert()
    history.recovered(0.75)

    assert [record.reverted for record in history] == [False, True]
    assert [record.accuracy_recovered for record in history] == [0.75, 0.5]
    assert history.current == history[0]
    history.revert()
    assert history.current is None
    history.revert()  # there is nothing left to take back
    assert [record.reverted for record in history] == [True, True]


def test_the_table_names_what_was_measured(make_record):
    history = History([make_record(accuracy_before=0.75, accuracy_after=0.5)])
    history.metric = "val_loss"

    assert "val_loss before  val_loss after" in str(history)
    assert "accuracy" not in str(history)


def test_it_survives_a_checkpoint_without_pickled_code(make_record):
    history = History([make_record(accuracy_after=0.5), make_record(epoch=2, reverted=True)])
    file = io.BytesIO()
    torch.save(history.to_dicts(), file)
    file.seek(0)

    again = History.from_dicts(torch.load(file, weights_only=True))

    assert again == history
    assert hash(again[0]) == hash(history[0])  # frozen through and through: tuples have not become lists


def test_csv_has_a_row_for_every_event_and_columns_that_pandas_finds(make_record, tmp_path):
    groups = (GroupRecord("net.0", 8, 16, "uniform", certified_error=1.5),)
    history = History(
        [make_record({"net.0": (12, 16), "net.2": (10, 10)}), make_record(epoch=2, groups=groups, accuracy_after=0.5)]
    )

    history.to_csv(tmp_path / "history.csv")

    with open(tmp_path / "history.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["epoch"] for row in rows] == ["1", "2"]
    assert [float(row["sparsity"]) for row in rows] == [0.4, 0.4]
    assert [row["accuracy_after"] for row in rows] == ["", "0.5"]
    assert [row["channels/net.0"] for row in rows] == ["12", "8"]
    assert [row["channels/net.2"] for row in rows] == ["10", ""]
    assert [row["keep_ratio/net.0"] for row in rows] == ["0.75", "0.5"]
    assert [row["certified_error/net.0"] for row in rows] == ["", "1.5"]
    assert [row["reverted"] for row in rows] == ["False", "False"]
    assert not any(column.startswith("found_error") for column in rows[0])  # nothing is known of it


def test_csv_without_events_has_headings_only(tmp_path):
    History().to_csv(tmp_path / "history.csv")

    assert (tmp_path / "history.csv").read_text().split() == ["epoch,step"]


def test_it_prints_as_a_table_of_what_is_known(make_record):
    history = History([make_record(params=1234567, params_original=2000000), make_record(epoch=2)])
    assert str(history).splitlines() == [
        "epoch  step  requested  reached  sparsity     params  MACs",
        "----------------------------------------------------------",
        "    1     7     50.00%   40.00%    38.27%  1,234,567   550",
        "    2     7     50.00%   40.00%    40.00%        600   550",
    ]

    history.recovered(0.98765)
    history.revert()

    assert "recovered" in str(history).splitlines()[0]
    assert "accuracy after" not in str(history)
    assert str(history).splitlines()[-1].split()[-3:] == ["0.9877", "taken", "back"]
    assert str(History()) == "There has been no pruning event yet."


def test_the_old_name_of_the_current_record_warns(make_plan, original):
    history = History()
    history.add(make_plan({"net.0": 8, "net.2": 8}), original, epoch=1, step=10)

    with pytest.warns(DeprecationWarning, match=r"History\.standing was renamed: use current") as caught:
        assert history.standing is history.current
    assert caught[0].filename == __file__


def test_it_shows_itself_in_a_line_and_in_notebooks_as_a_table(make_record):
    history = History([make_record(), make_record(epoch=2, reached=0.456)])

    assert repr(history) == "<History: 2 events, 45.60% of the MACs removed>"
    assert repr(History()) == "<History: no events>"
    assert repr(history[1]) == "<EventRecord: epoch 2, 45.60% of macs removed, 600 of 1,000 parameters left>"
    assert history._repr_html_().count("<tr>") == 3
    assert "no pruning event" in History()._repr_html_()
    for _ in history:
        history.revert()
    assert repr(history) == "<History: 2 events, all taken back>"


def test_a_data_frame_has_a_row_for_every_event_and_types(make_record):
    pytest.importorskip("pandas")
    history = History(
        [make_record({"net.0": (12, 16), "net.2": (10, 10)}), make_record({"net.0": (8, 16)}, epoch=2, reverted=True)]
    )
    history[0] = replace(history[0], accuracy_after=0.5)

    frame = history.to_dataframe()

    assert list(frame["epoch"]) == [1, 2]
    kinds = {name: str(frame[name].dtype) for name in frame}
    assert {kinds[name] for name in ("epoch", "step", "params", "macs", "channels/net.0")} == {"int64"}
    assert {kinds[name] for name in ("sparsity", "accuracy_after", "accuracy_before", "channels/net.2")} == {"float64"}
    assert kinds["reverted"] == "bool"
    assert frame["accuracy_after"].isna().tolist() == [False, True]
    assert not any(name.startswith("certified_error") for name in frame)
    assert list(History().to_dataframe()) == ["epoch", "step"]


def test_without_pandas_the_error_names_the_way_out(make_record, monkeypatch):
    monkeypatch.setitem(sys.modules, "pandas", None)

    with pytest.raises(ImportError, match=r"pip install pandas.*to_csv"):
        History([make_record()]).to_dataframe()
