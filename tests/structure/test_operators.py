"""Rules against torch: the operators of torch's own tests give what the labels say, or are refused."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from functools import cache
from typing import Any

import pytest
import torch
from structure.operator_samples import Findings, check

from lightning_coreset.structure.registry import find_rule

SHARDS = 8
PARTICULAR = frozenset({"cov"})
"""``cov`` of one variable is a number: the shape of its result depends on more than the shape of its input."""


@cache
def operators() -> tuple[Any, ...]:
    """The entries of torch's database that have a floating-point result."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            from torch.testing._internal.common_methods_invocations import op_db
        except ModuleNotFoundError as error:  # such as expecttest, with torch 2.6
            pytest.skip(f"torch's own tests need {error.name}")
    known = (op for op in op_db if torch.float64 in op.dtypes and op.name not in PARTICULAR)
    return tuple(op for op in known if not op.name.startswith("jiterator"))  # on CUDA only


def checked(shard: int, most: int | None) -> Findings:
    found = Findings()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for op in operators()[shard::SHARDS]:
            try:
                one = check(op, most)
            except Exception as error:
                raise AssertionError(f"{op.full_name}: {error}") from error
            found.verdicts += one.verdicts
            found.proven += one.proven
            found.wrong += one.wrong
    return found


@pytest.mark.parametrize("shard", range(SHARDS))
def test_operators_on_cut_inputs_give_what_the_labels_say(shard: int) -> None:
    found = checked(shard, most=2)
    assert not found.wrong, "\n".join(found.wrong)
    assert found.verdicts["agrees"] > 50


@pytest.mark.slow
@pytest.mark.parametrize("shard", range(SHARDS))
def test_operators_on_all_samples(shard: int) -> None:
    found = checked(shard, most=None)
    assert not found.wrong, "\n".join(found.wrong)


REFUSED = {
    "makes a tensor of nothing": "arange empty empty_strided full rand randn randperm scalar_tensor",
    "reads a size": "sym_is_contiguous sym_numel sym_storage_offset sym_stride",
    "is a derivative": """
        _adaptive_avg_pool2d_backward avg_pool2d_backward convolution_backward embedding_dense_backward
        max_pool2d_with_indices_backward native_group_norm_backward native_layer_norm_backward
    """,
    "has a result whose size depends on values": "nonzero",
    "compares all rows over all channels": "_pdist_forward",
    "makes other sizes of the same memory": "resize",
}
"""The core operators without a rule: what enters them stays, by the reason that no rule can say more."""


def core_operators() -> Iterator[Any]:
    for schema in torch._C._jit_get_all_schemas():
        namespace, _, name = schema.name.partition("::")
        packet = getattr(torch.ops.aten, name, None) if namespace == "aten" else None
        function = getattr(packet, schema.overload_name or "default", None)
        if torch.Tag.core in getattr(function, "tags", ()):
            yield function


def test_every_core_operator_has_a_rule_or_a_reason_to_have_none() -> None:
    refused = {name for names in REFUSED.values() for name in names.split()}
    functions = list(core_operators())
    without = {function.overloadpacket.__name__.rstrip("_") for function in functions if find_rule(function) is None}
    assert len(functions) > 150
    assert without <= refused, without - refused
