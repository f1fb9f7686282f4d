"""Views of compressed labels are views of the written-out ones."""

from __future__ import annotations

import math
import random

import pytest
import torch
from breadth import some_of

from lightning_coreset.structure.ops.views import reshape_labels


def some_factors(product: int, choose: random.Random) -> list[int]:
    """Dimensions that come to a product, some of them 1."""
    dims = []
    while product > 1:
        factor = choose.choice([own for own in range(2, product + 1) if product % own == 0])
        dims.append(factor)
        product //= factor
    for _ in range(choose.randint(0, 2)):
        dims.insert(choose.randint(0, len(dims)), 1)
    return dims or [1]


@pytest.mark.parametrize("seed", some_of(range(200), *range(50)))
def test_any_view(seed):
    choose = random.Random(seed)
    product = choose.choice([1, 6, 12, 16, 24, 36])
    old, new = some_factors(product, choose), some_factors(product, choose)
    shape = [size if choose.random() < 0.5 else 1 for size in old]
    labels = torch.randint(1, 99, shape)
    found = reshape_labels(labels, torch.Size(old), torch.Size(new))
    assert found.dim() == len(new)
    assert torch.equal(found.expand(new), labels.expand(old).reshape(new))


def test_what_does_not_vary_is_not_written_out():
    labels = torch.arange(1, 1 + 12 * 64).view(1, 12, 1, 64)
    found = reshape_labels(labels, torch.Size([2, 12, 197, 64]), torch.Size([24, 197, 64]))
    assert found.shape == (24, 1, 64)
    assert math.prod(found.shape) == 2 * labels.numel()
