"""Which weights a collection of tensors mirrors: shadow weights, anchors, Fisher information and the like.

Such a collection has a tensor for each parameter of a module, in their order or under names that are made of theirs:
``"shadow_0weight"``, ``"0__weight_fisher"``.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from lightning_coreset.training.nearness import distance_if_near


@dataclass(frozen=True)
class Match:
    """What a part of a collection mirrors.

    Attributes:
        names: The names of the weights, by key.
        marked: Whether the keys say that it is no layer: they have other text around the names of the weights.
    """

    names: Mapping[Any, str]
    marked: bool = False


class Mirrors:
    """Finds what collections of tensors mirror.

    Args:
        model: The module.
        trained: Its trained parameters, by id.
        shapes: Shapes that weights had before, by name, to find what mirrored them then.
    """

    def __init__(
        self, model: nn.Module, trained: Collection[int], shapes: Mapping[str, tuple[int, ...]] | None = None
    ) -> None:
        named = (*model.named_parameters(), *model.named_buffers())
        self.tensors: dict[str, Tensor] = {name: one for name, one in named if not is_lazy(one)}
        self._shapes = {name: tuple(one.shape) for name, one in self.tensors.items()} | dict(shapes or {})
        names = {id(tensor): name for name, tensor in self.tensors.items()}
        self._trained = trained
        self._parts: list[tuple[str, dict[str, str]]] = []
        """Every module by name, with the names of its tensors in it, each with that in the model; parameters first."""
        known: set[tuple[tuple[str, str], ...]] = set()
        for path, module in model.named_modules():
            own = {name: names.get(id(one)) for name, one in (*module.named_parameters(), *module.named_buffers())}
            part = {name: full for name, full in own.items() if full is not None}
            if tuple(part.items()) not in known and any(self._is_trained(full) for full in part.values()):
                known.add(tuple(part.items()))
                self._parts.append((path, part))

    def of(self, collection: Mapping[Any, Tensor], path: str | None = None) -> list[Match]:
        """The parts of a collection that mirror weights.

        Args:
            collection: Tensors by name, or in their order.
            path: The only module whose weights it may mirror, if that is known.
        """
        parts = [part for name, part in self._parts if path is None or name == path]
        usable = (item for item in collection.items() if not is_lazy(item[1]))
        collection = {key: one for key, one in usable if one.dim() > 0 and one.is_floating_point()}
        found = []
        while named := self._by_names(collection, parts):
            found.append(named)
            collection = {key: one for key, one in collection.items() if key not in named.names}
        if not found and (ordered := self._in_order(collection, parts)):
            found.append(ordered)
        return found

    def _by_names(self, collection: Mapping[Any, Tensor], parts: Sequence[Mapping[str, str]]) -> Match | None:
        """The largest part of a collection whose keys are names of one module with the same text around them."""
        keys = {key: _letters(key) for key in collection if isinstance(key, str) and _letters(key)}
        found: list[tuple[int, int, Match]] = []
        for part in parts:
            names = {_letters(name): full for name, full in part.items()}
            for before, behind in self._surroundings(keys, names, collection):
                matches = {}
                for key, text in keys.items():
                    full = names.get(text.removeprefix(before)[: len(text) - len(before) - len(behind)])
                    around_it = text.startswith(before) and text.endswith(behind)
                    if full is not None and around_it and self._fits(collection[key], full):
                        matches[key] = full
                around = len(before) + len(behind)
                if len(matches) > 1 or (matches and len(part) == 1):
                    found.append((len(matches), around, Match(matches, around > 0)))
        return self._best(found, collection)

    def _surroundings(
        self, keys: Mapping[Any, str], names: Mapping[str, str], collection: Mapping[Any, Tensor]
    ) -> set[tuple[str, str]]:
        """What may stand around the names of a module in the keys, as it does around the name in some of them."""
        around: set[tuple[str, str]] = set()
        for key in list(keys)[:1] + list(keys)[-1:] + list(keys)[len(keys) // 2 :][:1]:
            for name, full in names.items():
                before, found, behind = keys[key].rpartition(name)
                if found and self._fits(collection[key], full):
                    around.add((before, behind))
        return around

    def _in_order(self, collection: Mapping[Any, Tensor], parts: Sequence[Mapping[str, str]]) -> Match | None:
        """A whole collection of at least two tensors that has the shapes of all of a module's tensors, in order."""
        shapes = [tuple(one.shape) for one in collection.values()]
        found = []
        for part in parts if len(shapes) > 1 else ():
            for fulls in self._orders(list(part.values())):
                if [self._shapes[full] for full in fulls] == shapes:
                    found.append((len(shapes), 0, Match(dict(zip(collection, fulls, strict=True)))))
        return self._best(found, collection)

    def _orders(self, fulls: Sequence[str]) -> Iterator[list[str]]:
        """Tensors of a module as code lists them: parameters, those that are trained, all of floating numbers."""
        parameters = [full for full in fulls if isinstance(self.tensors[full], nn.Parameter)]
        yield parameters
        yield [full for full in parameters if self._is_trained(full)]
        yield [full for full in parameters if self.tensors[full].requires_grad]

    def _best(self, found: Sequence[tuple[int, int, Match]], collection: Mapping[Any, Tensor]) -> Match | None:
        """The largest match, with the least around its names; of several, the one whose values are near."""
        most = max((count for count, _, _ in found), default=0)
        largest = [(around, match) for count, around, match in found if count == most]
        least = min((around for around, _ in largest), default=0)
        best = [match for around, match in largest if around == least]
        different = [match for place, match in enumerate(best) if match not in best[:place]]
        if len(different) < 2:
            return different[0] if different else None
        distances = [(self.distance(match, collection), match) for match in different]
        near = [(distance, match) for distance, match in distances if distance is not None]
        return min(near, key=lambda one: one[0])[1] if near else None

    def distance(self, match: Match, collection: Mapping[Any, Tensor]) -> float | None:
        """How far a collection is from the weights that it mirrors, if it is near to them."""
        pairs = [(collection[key], self.tensors[full]) for key, full in match.names.items()]
        return distance_if_near(pairs) if all(one.shape == other.shape for one, other in pairs) else None

    def fits(self, tensor: Tensor, full: str) -> bool:
        """Whether a tensor has the shape of a weight."""
        return self._shapes[full] == tuple(tensor.shape)

    def _fits(self, tensor: Tensor, full: str) -> bool:
        return self.fits(tensor, full) and self.tensors[full] is not tensor

    def _is_trained(self, full: str) -> bool:
        return id(self.tensors[full]) in self._trained


def _letters(key: Any) -> str:
    """A name without what replaces its dots: letters and digits only."""
    return re.sub(r"[^a-z0-9]", "", str(key).lower())
