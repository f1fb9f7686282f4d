"""All samples of all operators of torch's own tests: minutes, where ``test_operators.py`` takes a few of each."""

from __future__ import annotations

import pytest
from structure.operator_database import operators
from structure.operator_samples import samples_of
from structure.operator_trials import check
from structure.test_operators import without_warnings

SHARDS = 8


@pytest.mark.slow
@pytest.mark.parametrize("shard", range(SHARDS))
def test_operators_on_all_samples(shard: int) -> None:
    with without_warnings():
        wrong = [line for op in operators()[shard::SHARDS] for line in check(samples_of(op)).wrong]
    assert not wrong, "\n".join(wrong)
