import math

import numpy as np
import pytest

from lightning_coreset.schedule import check_schedule, pruning_events


@pytest.mark.parametrize("schedule", ["one_shot", "linear", "cubic", "cosine", lambda t: t**0.5])
@pytest.mark.parametrize("epochs", [1, 2, 3, 7, 30, 97])
@pytest.mark.parametrize("every", [1, 3])
def test_events_increase_within_training_and_end_on_the_target(schedule, epochs, every):
    events = pruning_events(schedule, 0.6, every=every, length=epochs)

    assert list(events) == sorted(events)
    assert all(0 <= epoch < epochs for epoch in events)
    assert list(events.values()) == sorted(set(events.values()))
    assert min(events.values()) > 0
    assert list(events.values())[-1] == 0.6


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ("linear", [0.25, 0.5, 0.75, 1.0]),
        ("cubic", [1 - 0.75**3, 1 - 0.5**3, 1 - 0.25**3, 1.0]),
        ("cosine", [(1 - math.cos(math.pi / 4)) / 2, 0.5, (1 + math.cos(math.pi / 4)) / 2, 1.0]),
        ("one_shot", [1.0]),
        (lambda t: t**2, [1 / 16, 1 / 4, 9 / 16, 1.0]),
    ],
)
def test_curves(schedule, expected):
    events = pruning_events(schedule, 0.8, start=2, end=5, length=10)

    assert list(events) == list(range(2, 2 + len(expected)))
    assert list(events.values()) == pytest.approx([0.8 * fraction for fraction in expected], abs=1e-15)


@pytest.mark.parametrize(
    ("start", "end", "every", "epochs", "expected"),
    [
        (0.1, 0.7, 1, 10, [1, 2, 3, 4, 5, 6, 7]),
        (0.25, 0.75, 1, 10, [3, 4, 5, 6, 7]),  # rounded inwards
        (0.1, 0.7, 3, 10, [1, 4, 7]),
        (0.1, 0.7, 4, 10, [1, 5, 7]),  # always one at the last
        (0.1, 0.7, 100, 10, [1, 7]),
        (2, 4, 1, 10, [2, 3, 4]),
        (2, 0.5, 1, 10, [2, 3, 4, 5]),
        (0.8, 9, 1, 10, [8, 9]),
        (0.0, 1.0, 1, 3, [0, 1, 2]),
        (1.0, 1.0, 1, 3, [2]),
        (4, 4, 1, 10, [4]),
        (0.1, 0.7, 1, 1, [0]),  # fast_dev_run
        (0.5, 0.6, 1, 3, [2]),  # no epoch begins in between
        (0.0, 0.29, 28, 100, [0, 28, 29]),  # 0.29 * 100 < 29
        (0.07, 0.5, 43, 100, [7, 50]),  # 0.07 * 100 > 7
        (np.int64(2), np.float32(0.5), np.int32(2), np.int64(10), [2, 4, 5]),
    ],
)
def test_epochs_of_events(start, end, every, epochs, expected):
    assert list(pruning_events("linear", 0.5, start=start, end=end, every=every, length=epochs)) == expected


@pytest.mark.parametrize(("length", "events"), [(10, 7), (20, 13), (25, 15), (27, 9), (300, 11), (100_000, 11)])
def test_there_are_about_ten_events_however_many_epochs_there_are(length, events):
    assert len(pruning_events("linear", 0.5, length=length)) == events


@pytest.mark.parametrize(
    ("start", "end", "every", "steps", "expected"),
    [
        (100, 200, 50, 1000, [100, 150, 200]),
        (0.1, 0.7, 200, 1000, [100, 300, 500, 700]),
        (0.1, 0.7, None, 1000, [100, 160, 220, 280, 340, 400, 460, 520, 580, 640, 700]),
        (0, 5, None, 10, [0, 1, 2, 3, 4, 5]),
        (0, 19, None, 20, [0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 19]),
        (7, 7, None, 10, [7]),
        (0.1, 0.7, None, 1, [0]),
    ],
)
def test_steps_of_events(start, end, every, steps, expected):
    events = pruning_events("linear", 0.5, start=start, end=end, every=every, length=steps, interval="step")

    assert list(events) == expected
    assert list(events.values())[-1] == 0.5


@pytest.mark.parametrize("length", range(1, 400, 7))
def test_by_steps_there_are_at_most_eleven_events_by_default(length):
    assert len(pruning_events("linear", 0.5, start=0.0, end=1.0, length=length, interval="step")) <= 11


def test_one_shot_uses_only_start():
    assert pruning_events("one_shot", 0.5, start=0.9, end=0.1, length=10) == {9: 0.5}
    assert pruning_events("one_shot", 0.5, start=4, end=99, length=10) == {4: 0.5}


def test_mapping_gives_absolute_ratios():
    schedule = {8: 0.6, 2: 0.1, 4: 0.1, 30: 0.9}

    assert pruning_events(schedule, 0.3, start=0.5, end=0.6, length=10) == {2: 0.1, 8: 0.6}


@pytest.mark.parametrize(
    ("schedule", "ratio", "expected"),
    [
        (lambda t: float(t > 0.5), 0.5, {3: 0.5}),
        (lambda t: max(0.0, 2 * t - 1), 0.5, {3: 0.25, 4: 0.5}),
        (lambda t: 1, 0.5, {1: 0.5}),
        (lambda t: t + 1e-12, 0.5, {1: 0.125, 2: 0.25, 3: 0.375, 4: 0.5}),  # a rounding error above 1
        ("linear", 0.0, {}),
        ({2: 0.0}, 0.5, {}),
    ],
)
def test_events_that_remove_nothing_are_dropped(schedule, ratio, expected):
    assert pruning_events(schedule, ratio, start=1, end=4, length=5) == pytest.approx(expected)


GOOD = {"schedule": "cubic", "pruning_ratio": 0.5, "start": 0.1, "end": 0.7, "every": 1}
BAD = [
    ({"pruning_ratio": 1.0}, r"`pruning_ratio` .* within \[0, 1\) but got 1.0"),
    ({"pruning_ratio": -0.1}, "but got -0.1"),
    ({"pruning_ratio": math.nan}, "but got nan"),
    ({"pruning_ratio": True}, "but got True"),
    ({"pruning_ratio": "half"}, "but got 'half'"),
    ({"schedule": "square"}, "'one_shot', 'linear', 'cubic', 'cosine'.*but got 'square'"),
    ({"schedule": 3}, "but got 3"),
    ({"schedule": {}}, "empty mapping"),
    ({"schedule": {1: 1.0}}, r"`schedule\[1\]` .* but got 1.0"),
    ({"schedule": {-1: 0.5}}, "epochs, counted from 0, but got -1"),
    ({"schedule": {0.5: 0.5}}, "epochs, counted from 0, but got 0.5"),
    ({"schedule": {True: 0.5}}, "but got True"),
    ({"schedule": {3: 0.2, 1: 0.4}}, "0.4 at epoch 1 and 0.2 at epoch 3"),
    ({"schedule": lambda t: 1.5 * t}, r"within \[0, 1\], but got 1.005.* at progress 0.67"),
    ({"schedule": lambda t: t / 2}, "to return 1 at progress 1, .* but got 0.5"),
    ({"schedule": lambda t: 1 / 0}, r"at progress 0.01 it raised ZeroDivisionError"),
    ({"schedule": lambda t: None}, "to return a number, .* but got None at progress 0.01"),
    ({"schedule": lambda t: 1.0 - t}, "never to decrease"),
    ({"schedule": lambda: 1.0}, "it raised TypeError"),
    ({"schedule": lambda t: math.nan}, "but got nan"),
    ({"start": 0.8}, "start=0.8 and end=0.7"),
    ({"start": 5, "end": 3}, "start=5 and end=3"),
    ({"start": 1.5}, "To mean an epoch, give an int"),
    ({"end": -0.1}, "`end`, a float"),
    ({"end": -1}, "`end` to be an epoch, counted from 0, but got -1"),
    ({"start": True}, "`start` to be an int .* but got True"),
    ({"end": "0.7"}, "but got '0.7'"),
    ({"end": math.nan}, "but got nan"),
    ({"every": 0}, "`every` to be a positive integer"),
    ({"every": 1.5}, "but got 1.5"),
    ({"every": True}, "but got True"),
]


@pytest.mark.parametrize(("change", "message"), BAD)
def test_bad_arguments_are_refused_before_training_is_known(change, message):
    arguments = GOOD | change
    schedule, ratio = arguments.pop("schedule"), arguments.pop("pruning_ratio")

    with pytest.raises(ValueError, match=message):
        check_schedule(schedule, ratio, **arguments)
    with pytest.raises(ValueError, match=message):
        pruning_events(schedule, ratio, **arguments, length=10)


@pytest.mark.parametrize(
    ("change", "epochs", "message"),
    [
        ({"start": 10, "end": 12}, 10, r"`start` .* 10 epochs of training \(0 to 9\) but got epoch 10"),
        ({"start": 2, "end": 12}, 10, "`end` .* but got epoch 12"),
        ({"schedule": "one_shot", "start": 10}, 10, "`start` .* but got epoch 10"),
        ({"start": 8}, 10, "which are epochs 8 and 7 of 10"),
        ({"start": 0.5, "end": 3}, 10, "which are epochs 5 and 3 of 10"),
        ({"schedule": {10: 0.5, 11: 0.6}}, 10, "never does"),
        ({}, 0, "`length` to be a positive integer but got 0"),
        ({}, -1, "Set `max_epochs`"),
        ({}, None, "but got None"),
        ({}, True, "but got True"),
    ],
)
def test_what_does_not_fit_training_is_refused(change, epochs, message):
    arguments = GOOD | change
    schedule, ratio = arguments.pop("schedule"), arguments.pop("pruning_ratio")

    check_schedule(schedule, ratio, **arguments)
    with pytest.raises(ValueError, match=message):
        pruning_events(schedule, ratio, **arguments, length=epochs)


@pytest.mark.parametrize(
    ("arguments", "length", "warns"),
    [
        ({"start": 0.1, "end": 1}, 5, True),
        ({"start": 0, "end": 1}, 5, True),
        ({"start": 0, "end": 1}, 2, False),  # where it is the end
        ({"start": 1, "end": 1}, 5, False),
        ({"start": 0, "end": 1.0}, 5, False),
    ],
)
def test_an_end_of_1_may_be_meant_as_a_fraction(arguments, length, warns, recwarn):
    pruning_events("linear", 0.5, **arguments, length=length)
    assert any("`end=1` is an int, and so epoch 1" in str(each.message) for each in recwarn) == warns
