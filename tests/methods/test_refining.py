"""Which producers move: the smallest groups first, as far as the time goes."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from lightning_coreset.layers import GroupView
from lightning_coreset.methods.refining import Refining
from lightning_coreset.structure import Example, analyse
from lightning_coreset.surgery import named_tensors


def chain(*widths: int) -> list[GroupView]:
    """The hidden layers of a network of these widths."""
    layers: list[nn.Module] = []
    for before, after in zip((4, *widths), (*widths, 3), strict=True):
        layers += [nn.Linear(before, after), nn.ReLU()]
    network = nn.Sequential(*layers[:-1])
    found = analyse(network, Example.of(torch.randn(2, 4)))
    return [GroupView(group, named_tensors(network)) for group in found.groups]


def widths_that_move(asked: bool | None, widths: tuple[int, ...], keep: float) -> list[int]:
    views = chain(*widths)
    moving = Refining.of(asked).pairs(views, {view.name: round(keep * view.size) for view in views})
    return [view.size for view in views if view.name in moving]


@pytest.mark.parametrize(
    ("asked", "keep", "expected"),
    [
        (None, 0.5, [500, 30, 400, 450]),  # 1380 of 1500 channels: 512 more are too many
        (None, 0.7, []),
        (True, 0.7, [500, 30, 512, 400, 450, 600]),
        (False, 0.5, []),
    ],
)
def test_the_smallest_move_first(asked, keep, expected):
    assert widths_that_move(asked, (500, 30, 512, 400, 450, 600), keep) == expected


def test_large_groups_stay_by_default():
    assert widths_that_move(None, (513, 8), 0.5) == [8]
    assert widths_that_move(True, (1025, 8), 0.5) == [8]
