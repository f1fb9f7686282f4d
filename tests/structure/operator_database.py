"""The operators of torch's own tests, with their samples."""

from __future__ import annotations

import warnings
from functools import cache
from typing import Any

import pytest
import torch

LEFT_OUT = {
    "cov": "of one variable it is a number: the shape of its result depends on more than the shape of its input",
    "diff": "checks that sizes fit also where it does nothing with what has them",
    "linalg.vander": "its result has as many columns as its input has elements",
    "nn.functional.multi_head_attention_forward": "is given its width; nn.MultiheadAttention is followed as a module",
    "tensor_split": "reads the numbers of a tensor without an operation that a dispatch mode could see",
}
"""Entries that say nothing about rules."""


@cache
def operators() -> tuple[Any, ...]:
    """The entries of torch's database that take floating-point numbers."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            from torch.testing._internal.common_methods_invocations import op_db
        except ModuleNotFoundError as error:  # expecttest
            pytest.skip(f"torch's own tests need {error.name}")
    known = (op for op in op_db if torch.float64 in op.dtypes and op.name not in LEFT_OUT)
    return tuple(op for op in known if not op.name.startswith("jiterator"))  # on CUDA only
