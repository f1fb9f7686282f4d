"""Two atoms for each dimension: classes formed of these few are those of all."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from zoo import ZOO

from lightning_coreset.structure import Structure, analyse
from lightning_coreset.structure.union_find import ChannelUnionFind


def both(build, inputs, monkeypatch) -> list[Structure]:
    """A network's structure by few atoms and by all, or nothing where few do not do."""
    condense, condensed = ChannelUnionFind.condensed, []

    def noted(atoms: ChannelUnionFind) -> ChannelUnionFind:
        few = condense(atoms)
        condensed.append(few is not atoms)
        return few

    with monkeypatch.context() as patch:
        patch.setattr(ChannelUnionFind, "condensed", noted)
        few = analyse(build(), inputs)
        patch.setattr(ChannelUnionFind, "condensed", lambda atoms: atoms)
        return [few, analyse(build(), inputs)] if any(condensed) else []


@pytest.mark.slow
def test_structures_are_those_of_all_atoms(monkeypatch, recwarn):
    found = {}
    for name, entry in ZOO.items():
        if name.startswith("hf/") or entry.slow:
            continue

        def build(entry=entry) -> nn.Module:
            torch.manual_seed(0)
            return entry.build()

        found[name] = both(build, entry.inputs(torch.Generator().manual_seed(0)), monkeypatch)
    pairs = {name: pair for name, pair in found.items() if pair}
    assert len(pairs) > 50
    assert [name for name, (few, every) in pairs.items() if few != every] == []
    assert sum(bool(few.groups) for few, _ in pairs.values()) > 30


def test_a_convolutional_network_is_condensed(monkeypatch):
    def build() -> nn.Module:
        torch.manual_seed(0)
        layers = [nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 6, 3), nn.ReLU()]
        return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 2))

    few, every = both(build, torch.randn(2, 3, 8, 8), monkeypatch)
    assert few == every
    assert [(group.name, group.size) for group in few.groups] == [("0", 8), ("3", 6)]
    assert few.refused == {"7": "makes outputs of the network"}
