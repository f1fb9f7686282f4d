"""Which sizes of groups are steps where time is counted, and which channels cost none."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import SimpleNamespace
from typing import Any

import torch

from lightning_coreset.planning.allocation import uniform_steps
from lightning_coreset.planning.allowed_sizes import AllowedSizes
from lightning_coreset.planning.latency_sizes import free_widths, hull, nearer, worthwhile


def cost(seconds: Callable[[Mapping[str, int]], float], noise: float = 0.0) -> Any:
    """What these functions ask of a cost model; every layer is around every group."""
    return SimpleNamespace(seconds_around=lambda _, sizes: seconds(sizes), noise=noise)


def group(name: str, *sizes: int) -> AllowedSizes:
    return AllowedSizes(name, sizes[0], sizes)


def test_only_sizes_that_are_faster_than_all_larger_ones_are_steps():
    times = {5: 4.0, 4: 5.0, 3: 4.0, 2: 3.0, 1: 3.5}

    (found,) = worthwhile([group("a", 5, 4, 3, 2, 1)], cost(lambda sizes: times[sizes["a"]]))

    assert found.sizes == (5, 2)
    assert not found.is_even


def test_a_size_is_a_step_if_it_is_faster_beside_small_neighbours():
    def seconds(sizes: Mapping[str, int]) -> float:
        return 10.0 if sizes["b"] == 4 else float(sizes["a"])

    found, _ = worthwhile([group("a", 4, 3, 2), group("b", 4, 2)], cost(seconds))

    assert found.sizes == (4, 3, 2)


def test_what_differs_by_noise_is_no_step():
    times = {4: 1.0, 3: 0.99, 2: 0.9}

    (found,) = worthwhile([group("a", 4, 3, 2)], cost(lambda sizes: times[sizes["a"]], noise=0.03))

    assert found.sizes == (4, 2)


def test_uneven_steps_are_timed_by_their_own_middles():
    uneven = group("a", 16, 15, 14, 8, 4).only([16, 15, 4])
    even = AllowedSizes("b", 16, (16, 14, 12), 2)

    # a has lost 3% and 41% half-way of its steps, b 6% and 19%.
    assert uniform_steps([uneven, even]).tolist() == [0, 1, 1, 0]


def test_a_step_that_saves_little_for_its_error_is_skipped_for_one_behind_it():
    times, errors = {4: 10.0, 3: 9.9, 2: 2.0, 1: 1.0}, torch.tensor([0.0, 1.0, 2.0, 9.0])

    (found,) = hull([group("a", 4, 3, 2, 1)], {"a": errors}, cost(lambda sizes: times[sizes["a"]]))

    assert found.sizes == (4, 2, 1)


def test_groups_without_a_known_error_keep_their_sizes():
    (found,) = hull([group("a", 4, 3, 2)], {}, cost(lambda sizes: 1.0))

    assert found.sizes == (4, 3, 2)


def test_channels_that_cost_no_time_come_back():
    def seconds(sizes: Mapping[str, int]) -> float:
        return -(-sizes["a"] // 4) * (2.0 if sizes["b"] > 4 else 1.0) + sizes["b"]

    allowed = [group("a", 8, 7, 6, 5, 4, 3), group("b", 8, 6, 4)]

    assert free_widths({"a": 5, "b": 4}, allowed, cost(seconds)) == {"a": 8, "b": 4}
    assert free_widths({"a": 3, "b": 6}, allowed, cost(seconds)) == {"a": 4, "b": 6}


def test_one_group_goes_a_step_to_come_nearer():
    allowed = [group("a", 10, 7, 4), group("b", 10, 9, 8)]

    assert nearer({"a": 7, "b": 9}, allowed, lambda sizes: abs(sizes["a"] + sizes["b"] - 15)) == {"a": 7, "b": 8}
    assert nearer({"a": 7, "b": 9}, allowed, lambda sizes: abs(sizes["a"] + sizes["b"] - 16)) == {"a": 7, "b": 9}
