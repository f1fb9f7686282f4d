"""What the tests themselves rest on: which cases are fast, and what is shown of a process that hangs."""

from __future__ import annotations

import time
from pathlib import Path

import processes
import pytest
from breadth import crossed, some_of, thinned


def split(cases: list) -> tuple[list, list]:
    """The values of the fast cases and of the slow ones."""
    cases = [case if hasattr(case, "marks") else pytest.param(case) for case in cases]
    fast, slow = ([case.values for case in cases if bool(case.marks) == is_slow] for is_slow in (False, True))
    return fast, slow


def test_some_cases_are_fast_and_all_others_slow() -> None:
    assert split(some_of({"a": 1, "b": 2, "c": 3}, "b")) == ([("b",)], [("a",), ("c",)])
    with pytest.raises(AssertionError, match=r"no such cases: \['d'\]"):
        some_of("abc", "d")


def test_thinned_cases_keep_their_names_and_marks() -> None:
    fast, slow = split(thinned([1, 2, pytest.param(3, marks=pytest.mark.skip), 4, 5], 2))
    assert fast == [(1,), (5,)]  # the third has a mark of its own
    assert slow == [(2,), (3,), (4,)]
    assert [case.id for case in thinned({"a": (1, 2), "b": (3, 4)}, 2)] == ["a", "b"]
    assert split(thinned({"a": (1, 2), "b": (3, 4)}, 2)) == ([(1, 2)], [(3, 4)])
    assert [case.id for case in thinned([pytest.param(1, id="one")], 2)] == ["one"]


def test_the_fast_combinations_have_every_value_of_every_axis_and_no_combination_is_lost() -> None:
    fast, slow = split(crossed("abcd", [1, 2], "xyz"))
    assert fast == [("a", 1, "x"), ("b", 2, "y"), ("c", 1, "z"), ("d", 2, "x")]
    assert len({*fast, *slow}) == len(fast) + len(slow) == 24


def test_a_process_that_hangs_is_ended_and_what_it_printed_is_shown(tmp_path: Path) -> None:
    code = "import pathlib, time; print('so far', flush=True); pathlib.Path('printed').touch(); time.sleep(3600)"
    process = processes.start("-c", code, cwd=tmp_path)
    while not (tmp_path / "printed").exists():
        time.sleep(0.01)
    with pytest.raises(AssertionError, match=r"(?s)still running after 0.1 s, having printed:\nso far"):
        processes.finish(process, seconds=0.1)
    assert process.returncode is not None


def test_a_process_that_fails_shows_what_it_printed(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match=r"(?s)ended with 1:\n.*ZeroDivisionError"):
        processes.finish(processes.start("-c", "1 / 0", cwd=tmp_path))
