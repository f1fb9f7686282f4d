"""Finds the parts of a module that are copies of trained parts of it: momentum encoders, target networks, averages.

A copy has the structure of a trained part, by names and shapes, and nothing trains it. Its values show which part it is
a copy of: they are near to the original's, or move towards them while nothing trains them. What is neither, such as a
pretrained teacher of the student's architecture, is no copy.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from lightning_coreset.structure import Copy
from lightning_coreset.surgery import named_tensors
from lightning_coreset.training.copy_candidates import CopyCandidates
from lightning_coreset.training.nearness import distance_if_near
from lightning_coreset.training.trained import untrained_modules

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
        untrained = {name: one for name, one in model.named_parameters() if id(one) not in trained and not is_lazy(one)}
        alike = CopyCandidates(model, trained)
        kept: list[str] = []
        for path in untrained_modules(model, trained):
            for name, originals in alike.below(path):
                matrices = sum(one.dim() > 1 for one in model.get_submodule(name).parameters())
                if matrices > 1 and (name not in known or len(originals) > 1):
                    kept.append(f"{name}.")
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
    candidates, tensors = CopyCandidates(model, trained), named_tensors(model)
    found: dict[str, str] = {}
    for path in untrained_modules(model, trained):
        for name, originals in candidates.below(path):
            copies = [Copy.of_module(model, name, original) for original in originals]
            original = _original(copies, tensors, earlier, list(found.values()))
            if original is not None:
                found[name] = original
    return found


def _original(
    copies: Iterable[Copy], tensors: Mapping[str, Tensor], earlier: EarlierValues, taken: list[str]
) -> str | None:
    """What a module is a copy of, if its values show that it is one."""
    near: list[tuple[bool, float, float, int, str]] = []
    for copy in copies:
        distance = distance_if_near([(tensors[name], tensors[other]) for name, other in copy.tensors])
        towards = _moves_towards(copy, tensors, earlier)
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


def _norm(tensor: Tensor) -> float:
    return float(torch.linalg.vector_norm(tensor.detach(), dtype=torch.float64)) if tensor.is_floating_point() else 0.0
