"""Finds the parts of a module that are copies of trained parts of it: momentum encoders, target networks, averages.

A copy has the structure of a trained part, by names and shapes, and nothing trains it. Its values show which part it is
a copy of: they are near to the original's, or move towards them while nothing trains them. What is neither, such as a
pretrained teacher of the student's architecture, is no copy.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from lightning_coreset.followers import hold_weights, weight_distance
from lightning_coreset.structure import Copy
from lightning_coreset.surgery import named_tensors
from lightning_coreset.training.trained import untrained_modules

_ENOUGH = 32
"""Of fewer numbers, some are near to others by chance: then only equal ones count."""
_TOWARDS = 0.2
"""Cosine of a move and the way to the original, from which on the move counts as one towards it; 0 by chance."""


@dataclass
class EarlierValues:
    """What untrained parameters were when training began, to see later which of them have moved, and where to.

    Attributes:
        norms: Of every untrained parameter, by name.
        values: Copies, on the CPU, of those of parts that have the structure of a trained part, where it is open of
            which they are copies, or whether.
    """

    norms: dict[str, float] = field(default_factory=dict)
    values: dict[str, Tensor] = field(default_factory=dict)

    @classmethod
    def of(cls, model: nn.Module, trained: Collection[int], known: Collection[str]) -> EarlierValues:
        """The values as they are now.

        Args:
            model: The module.
            trained: Its trained parameters, by id.
            known: Names of modules that are known to be copies.
        """
        untrained = {name: one for name, one in model.named_parameters() if id(one) not in trained}
        alike = _Candidates(model, trained)
        found: dict[str, int] = {}
        for path in untrained_modules(model, trained):
            for name, copies in alike.below(path, skip=found):
                found[name] = len(copies)
        kept = [f"{name}." for name, count in found.items() if name not in known or count > 1]
        values = {
            name: one.detach().to("cpu", copy=True) for name, one in untrained.items() if name.startswith(tuple(kept))
        }
        return cls({name: _norm(one) for name, one in untrained.items()}, values)

    def moved(self, model: nn.Module) -> set[int]:
        """The parameters, by id, that have other values by now."""
        now = dict(model.named_parameters())
        return {id(now[name]) for name, norm in self.norms.items() if name in now and _norm(now[name]) != norm}


def find_copies(model: nn.Module, trained: Collection[int], earlier: EarlierValues) -> dict[str, str]:
    """The modules that are copies, each with the module that it is a copy of, both by name.

    Args:
        model: The module.
        trained: Its trained parameters, by id.
        earlier: What the others were before.
    """
    candidates, tensors = _Candidates(model, trained), named_tensors(model)
    found: dict[str, str] = {}
    for path in untrained_modules(model, trained):
        for name, copies in candidates.below(path, skip=found):
            original = _original(copies, tensors, earlier, list(found.values()))
            if original is not None:
                found[name] = original
    return found


class _Candidates:
    """The trained modules that have the structure of an untrained one."""

    def __init__(self, model: nn.Module, trained: Collection[int]) -> None:
        self._model, self._trained = model, trained
        self._parameters = dict(model.named_parameters())
        self._named: dict[tuple[str, torch.Size], list[str]] = defaultdict(list)
        for name, parameter in model.named_parameters(remove_duplicate=False):
            self._named[name.rpartition(".")[2], parameter.shape].append(name)

    def below(self, path: str, skip: Collection[str] = ()) -> Iterator[tuple[str, list[Copy]]]:
        """The outermost modules at and below ``path`` for which there are any, with these.

        Args:
            path: A module in which nothing is trained.
            skip: Filled by the caller while this goes on: what is in it is not searched further.
        """
        copies = self._of(path)
        if copies:
            yield path, copies
        if path not in skip:
            for child, _ in self._model.get_submodule(path).named_children():
                yield from self.below(f"{path}.{child}", skip)

    def _of(self, path: str) -> list[Copy]:
        own = {name: one for name, one in self._model.get_submodule(path).named_parameters() if one.numel() > 1}
        copies, tensors = [], self._parameters
        for original in self._places(own):
            copy = Copy.of_module(self._model, path, original)
            mirrored = [other for name, other in copy.tensors if name in tensors]
            matches = sum(name in tensors and tensors[name].numel() > 1 for name, _ in copy.tensors)
            trains = any(other in tensors and id(tensors[other]) in self._trained for other in mirrored)
            if trains and 2 * matches >= len(own) and not _inside(copy):
                copies.append(copy)
        most = max((len(copy.tensors) for copy in copies), default=0)
        return [copy for copy in copies if len(copy.tensors) == most]

    def _places(self, own: Mapping[str, Tensor]) -> list[str]:
        """Where there are parameters of the same names and shapes, by a few of them."""
        some = list(own.items())
        places: dict[str, None] = {}
        for name, parameter in (some[:1] + some[len(some) // 2 :][:1] + some[-1:]) if some else ():
            for other in self._named[name.rpartition(".")[2], parameter.shape]:
                if other == name or other.endswith(f".{name}"):
                    places[other[: len(other) - len(name)].removesuffix(".")] = None
        return list(places)


def _inside(copy: Copy) -> bool:
    """Whether what it would be a copy of lies in it."""
    return any(original.startswith(f"{copy.name}.") for _, original in copy.tensors)


def _original(
    copies: Iterable[Copy], tensors: Mapping[str, Tensor], earlier: EarlierValues, taken: list[str]
) -> str | None:
    """What a module is a copy of, if its values show that it is one."""
    near: list[tuple[bool, float, float, int, str]] = []
    for copy in copies:
        distance, towards = _distance(copy, tensors), _moves_towards(copy, tensors, earlier)
        if distance is not None or towards > _TOWARDS:
            # If several are near, as all are that were equal at the beginning, names tell, of "critic1_target" that it
            # is of "critic1"; else where it went, which tells more than where it is; and each mostly has one copy.
            far = 1 - towards if towards else distance or 0.0
            alike = len(_words(copy.name) & _words(copy.original)) / len(_words(copy.original) or {""})
            near.append((alike < 1, round(far, 6), -alike, taken.count(copy.original), copy.original))
    return min(near, key=lambda one: one[:4])[4] if near else None


def _words(name: str) -> set[str]:
    """The words and numbers of a name: of ``"critic1_target"`` critic, 1 and target."""
    return set(re.findall(r"[a-z]+|[0-9]+", name.lower()))


def _distance(copy: Copy, tensors: Mapping[str, Tensor]) -> float | None:
    """How far a copy is from its original; ``None`` if nothing shows that it is one."""
    pairs = [(tensors[name], tensors[other]) for name, other in copy.tensors]
    telling = [(one, other) for one, other in pairs if one.dim() > 1 and _varies(one) and _varies(other)]
    telling = telling or [(one, other) for one, other in pairs if _varies(one) and _varies(other)]
    if not telling:
        return None
    if all(torch.equal(one.detach(), other.detach().to(one.device, one.dtype)) for one, other in telling):
        return 0.0
    if sum(one.numel() for one, _ in telling) < _ENOUGH:
        return None
    return weight_distance(telling) if hold_weights(telling) else None


def _moves_towards(copy: Copy, tensors: Mapping[str, Tensor], earlier: EarlierValues) -> float:
    """The cosine of the way that a copy went and the way from where it was to the original; 0 if it did not move."""
    product = went = way = 0.0
    for name, original in copy.tensors:
        before = earlier.values.get(name)
        if before is not None and before.dim() > 1 and before.shape == tensors[name].shape:
            start = before.double()
            step = tensors[name].detach().cpu().double() - start
            whole = tensors[original].detach().cpu().double() - start
            product += float((step * whole).sum())
            went += float(step.square().sum())
            way += float(whole.square().sum())
    return product / (went * way) ** 0.5 if went * way > 0 else 0.0


def _varies(tensor: Tensor) -> bool:
    """Whether a tensor has values of its own, unlike ones and zeros."""
    if tensor.numel() < 2 or not tensor.is_floating_point():
        return False
    return bool((tensor != tensor.reshape(-1)[0]).any())


def _norm(tensor: Tensor) -> float:
    return float(torch.linalg.vector_norm(tensor.detach(), dtype=torch.float64)) if tensor.is_floating_point() else 0.0
