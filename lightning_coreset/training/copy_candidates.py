"""Finds the trained modules that have the structure of an untrained one, without a look at all pairs of modules."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterator, Sequence

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from lightning_coreset.qualified_names import lies_in

_FEW = 8
"""So many places are looked at whatever the values are; of more, those with values that are near in a few elements."""
_SAMPLE = 256


class CopyCandidates:
    """The trained modules that have the structure of an untrained one.

    Args:
        model: The module.
        trained: Its trained parameters, by id.
    """

    def __init__(self, model: nn.Module, trained: Collection[int]) -> None:
        self._model, self._trained = model, trained
        named = model.named_parameters(remove_duplicate=False)
        self._parameters = {name: one for name, one in named if not is_lazy(one)}
        self._named: dict[tuple[str, torch.Size], list[str]] = defaultdict(list)
        for name, one in self._parameters.items():
            if id(one) in trained:
                self._named[name.rpartition(".")[2], one.shape].append(name)
        self._samples: dict[tuple[str, torch.Size], Tensor] = {}

    def below(self, path: str) -> Iterator[tuple[str, list[str]]]:
        """The outermost modules at and below ``path`` that have the structure of others, with the names of these.

        Args:
            path: A module in which nothing is trained.
        """
        originals = self._of(path)
        if originals:
            yield path, originals
        else:
            for child, _ in self._model.get_submodule(path).named_children():
                yield from self.below(f"{path}.{child}")

    def _of(self, path: str) -> list[str]:
        """The modules that have most of the parameters of this one, by names and shapes."""
        own = {
            name: one
            for name, one in self._model.get_submodule(path).named_parameters()
            if not is_lazy(one) and one.numel() > 1
        }
        matches: dict[str, int] = {}
        for place in self._places(own):
            prefix = f"{place}." if place else ""
            inside = lies_in(place, path)
            found = [(one, self._parameters.get(prefix + name)) for name, one in own.items()]
            same = [other for one, other in found if other is not None and other.shape == one.shape]
            if not inside and 2 * len(same) >= len(own) and any(id(one) in self._trained for one in same):
                matches[place] = len(same)
        most = max(matches.values(), default=0)
        return [place for place, same in matches.items() if same == most]

    def _places(self, own: dict[str, nn.Parameter]) -> list[str]:
        """Where there are trained parameters of the same names and shapes, by a few of them."""
        some = [item for item in own.items() if item[1].dim() > 1] or list(own.items())
        places: dict[str, None] = {}
        for name, parameter in (some[:1] + some[len(some) // 2 :][:1] + some[-1:]) if some else ():
            key = name.rpartition(".")[2], parameter.shape
            others = self._named[key]
            if len(others) > _FEW and len(own) <= _FEW:
                others = [other for other, near in zip(others, self._near(key, parameter), strict=True) if near]
            for other in others:
                if other == name or other.endswith(f".{name}"):
                    places[other[: len(other) - len(name)].removesuffix(".")] = None
        return list(places)

    def _near(self, key: tuple[str, torch.Size], parameter: Tensor) -> Sequence[bool]:
        """Which of the trained parameters of a name and shape are near to one, in a few of their elements."""
        if key not in self._samples:
            self._samples[key] = torch.stack([_sample(self._parameters[name]) for name in self._named[key]])
        others, own = self._samples[key], _sample(parameter)
        distance = (others - own).square().sum(1)
        return (distance < 0.8 * (others.square().sum(1) + own.square().sum())).tolist()


def _sample(tensor: Tensor) -> Tensor:
    return tensor.detach().reshape(-1)[:_SAMPLE].to("cpu", torch.float32)
