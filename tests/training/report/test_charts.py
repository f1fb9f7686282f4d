"""Pictures: what is drawn is what the records say, pixel by pixel."""

import math
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import ImageColor

from lightning_coreset.training.report.charts import _CUT, _NOW, _RULE, _Axis, accuracy_chart, widths_chart


def where(image, color):
    """Rows and columns of the pixels of a colour."""
    return np.argwhere((np.asarray(image) == ImageColor.getrgb(color)).all(-1))


def bars(image):
    """Lengths of the bars in pixels: what is left, and the original."""
    now, cut = where(image, _NOW), where(image, _RULE)
    lengths = []
    for row in range(image.height):
        left = int((now[:, 0] == row).sum())
        lengths.append((left, left + int((cut[:, 0] == row).sum())))
    runs = [length for before, length in pairwise([(0, 0), *lengths]) if length != before and length[1]]
    return runs


def test_bars_are_as_long_as_their_groups_are_wide(make_record):
    groups = {"a": (50, 100), "b": (200, 200), "c": (1, 80)}

    found = bars(widths_chart(make_record(groups)))

    scale = found[1][1] / 200
    assert len(found) == 3
    for (left, whole), sizes in zip(found, groups.values(), strict=True):
        assert (left, whole) == pytest.approx((scale * sizes[0], scale * sizes[1]), abs=2)


@pytest.mark.parametrize("name", ["a", "encoder.layers.11." * 10 + "fc1"])
def test_long_names_leave_room_for_the_bars(make_record, name):
    (left, whole) = bars(widths_chart(make_record({name: (50, 100)})))[0]

    assert whole > 250
    assert left == pytest.approx(whole / 2, abs=2)


def test_a_chart_shows_a_limited_number_of_groups(make_record):
    def height(count):
        return widths_chart(make_record({f"layer{i}": (1, 2) for i in range(count)})).height

    assert height(0) < height(1) < height(60) < height(61) == height(500) < 3200


def test_accuracy_is_drawn_against_sparsity(make_record):
    first = make_record(params=800, accuracy_before=0.9, accuracy_after=0.7)
    second = make_record(params=500, accuracy_before=0.8, accuracy_after=0.6, accuracy_recovered=0.9)
    image = accuracy_chart([first, second])
    assert image is not None

    points = where(image, _NOW)
    points = points[points[:, 0] > 130]  # below the legend
    left, right = points[:, 1].min(), points[:, 1].max()
    cuts = where(image, _CUT)
    cuts = cuts[cuts[:, 0] > 130]
    lowest = cuts[cuts[:, 0] == cuts[:, 0].max()]  # 0.6 at a sparsity of 50%
    assert abs(lowest[:, 1].mean() - (right - 9)) <= 2
    higher = cuts[cuts[:, 1] < (left + right) / 2]  # 0.7 at 20%
    assert (higher[:, 1].mean() - left - 9) / (right - left - 18) == pytest.approx(0.4, abs=0.02)
    top, bottom, middle = points[:, 0].min(), cuts[:, 0].max(), higher[:, 0].max()
    assert (bottom - middle) / (bottom - 18 - top) == pytest.approx(1 / 3, abs=0.03)


def test_no_accuracy_no_chart(make_record):
    assert accuracy_chart([]) is None
    assert accuracy_chart([make_record(), make_record(accuracy_after=math.nan)]) is None


def test_events_taken_back_are_not_drawn(make_record):
    kept = make_record(params=800, accuracy_before=0.9, accuracy_after=0.7, accuracy_recovered=0.85)
    gone = make_record(params=100, accuracy_before=0.8, accuracy_after=0.1, reverted=True)

    with_it, without = accuracy_chart([kept, gone]), accuracy_chart([kept])

    assert with_it is not None
    assert without is not None
    assert np.array_equal(with_it, without)


def test_another_metric_has_its_name_on_the_chart(make_record):
    record = make_record(accuracy_after=2.5)

    accuracy, loss = accuracy_chart([record]), accuracy_chart([record], "val_loss")

    assert accuracy is not None
    assert loss is not None
    assert not np.array_equal(accuracy, loss)


@given(st.lists(st.floats(-1e4, 1e4), min_size=1), st.sampled_from([1e-4, 1e-2, 1.0]))
def test_axes_hold_all_values_and_few_ticks(values, scale):
    values = [scale * value for value in values]

    axis = _Axis(values, 500, 100)

    assert 2 <= len(axis.ticks) <= 9
    slack = 1e-9 * (axis.ticks[-1] - axis.ticks[0])
    assert axis.ticks[0] - slack <= min(values)
    assert max(values) <= axis.ticks[-1] + slack
    assert max(values) > 1 or axis.ticks[-1] <= 1 + 1e-9
    labels = [f"{tick:.{axis.decimals}f}" for tick in axis.ticks]
    assert len(set(labels)) == len(labels)
    assert (axis(axis.ticks[0]), axis(axis.ticks[-1])) == (500, 100)
