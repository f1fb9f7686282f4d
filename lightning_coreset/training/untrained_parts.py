"""What of a module nothing trains, as names for checkpoints: copies of trained parts, and frozen parts."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, TypeAlias

from torch import nn

from lightning_coreset.planning import Rule, RuleMatcher
from lightning_coreset.qualified_names import lies_in
from lightning_coreset.structure import ChannelGroup, Copy, Untrained
from lightning_coreset.structure.records import layer_of
from lightning_coreset.surgery import named_tensors
from lightning_coreset.training.copies import EarlierValues, find_copies
from lightning_coreset.training.shadows import registered_shadows
from lightning_coreset.training.trained import untrained_modules

Copies: TypeAlias = Mapping[str, str] | Literal["find", "none"]


@dataclass(frozen=True)
class UntrainedParts:
    """The parts of a module that nothing trains, by qualified names.

    Attributes:
        copies: Modules that are copies, each with its original.
        shadows: Collections of tensors that mirror weights, such as shadow weights: the names of both, for each.
        frozen: The largest modules in which nothing is trained, and single parameters beside trained ones.
        counted: Parameters of these that count nevertheless, such as of layers that read channels that go.
    """

    copies: Mapping[str, str] = field(default_factory=dict)
    shadows: tuple[Mapping[str, str], ...] = ()
    frozen: tuple[str, ...] = ()
    counted: tuple[str, ...] = ()

    def of(self, model: nn.Module) -> Untrained:
        """The same for a model as it is now; what it does not have any more is left out."""
        modules = dict(model.named_modules())
        pairs = [(name, other) for name, other in self.copies.items() if name in modules and other in modules]
        copies = tuple(Copy.of_module(model, name, original) for name, original in pairs)
        shapes = {name: tensor.shape for name, tensor in named_tensors(model).items()}
        for shadow in self.shadows:
            left = {name: full for name, full in shadow.items() if name in shapes and shapes[name] == shapes.get(full)}
            copies += (Copy.of_tensors(left),) if left else ()
        mirrored = {name for copy in copies for name, _ in copy.tensors}
        frozen = [name for name, _ in model.named_parameters() if _is_below(name, self.frozen) and name not in mirrored]
        return Untrained(copies, frozenset(frozen), frozenset(self.counted))

    def counting(self, model: nn.Module, groups: Iterable[ChannelGroup]) -> UntrainedParts:
        """The same, where layers count that groups reach, and so do single parameters beside trained ones.

        Args:
            model: The module.
            groups: The groups that can be pruned.
        """
        untrained = self.of(model)
        free = [group for group in groups if not untrained.holds(group)]
        reached = {layer_of(member.name) for group in free for member in group.members}
        counted = [name for name in untrained.frozen if layer_of(name) in reached or name in self.frozen]
        return replace(self, counted=tuple(sorted(counted)))

    def same_parts(self, other: UntrainedParts) -> bool:
        """Whether another one has the same copies and frozen parts."""
        return replace(self, counted=()) == replace(other, counted=())

    def has(self, name: str) -> bool:
        """Whether a module lies in one of these parts."""
        return _is_below(name, (*self.copies, *self.frozen))

    def to_dict(self) -> dict[str, Any]:
        """Strings, lists and dicts."""
        shadows = [dict(shadow) for shadow in self.shadows]
        return {
            "copies": dict(self.copies),
            "shadows": shadows,
            "frozen": list(self.frozen),
            "counted": list(self.counted),
        }


def find_untrained(
    model: nn.Module,
    trained: set[int],
    earlier: EarlierValues,
    *,
    idle: Collection[int] = (),
    copies: Copies = "find",
    held: Sequence[Mapping[str, str]] = (),
    only: Sequence[Rule] = (),
) -> UntrainedParts:
    """Find out what of a module nothing trains.

    Args:
        model: The module.
        trained: Its trained parameters, by id.
        earlier: What the others were before: what has other values by now is trained by hand.
        idle: Trained parameters, by id, that get no gradients: what consists of these may be a copy.
        copies: Which modules are copies of which; ``"find"`` to find out.
        held: Shadow weights that are not registered.
        only: Rules for the layers that are pruned: what they name is not taken for frozen.
    """
    if copies == "find":
        pairs = find_copies(model, trained.difference(idle), earlier)
    else:
        pairs = {} if copies == "none" else dict(copies)
    shadows = () if copies == "none" else (*registered_shadows(model, trained, pairs), *held)
    mirrored = {name for pair in pairs.items() for name, _ in Copy.of_module(model, *pair).tensors}
    mirrored |= {name for shadow in shadows for name in shadow}
    matcher = RuleMatcher(model)
    asked = {name for rule in only for name in matcher.modules(rule)}
    active = {
        id(parameter)
        for name, parameter in model.named_parameters()
        if name not in mirrored and (layer_of(name) in asked or any(matcher.means(rule, name) for rule in only))
    }
    active |= trained | earlier.moved(model)
    copied = {id(parameter) for name, parameter in model.named_parameters() if name in mirrored}
    frozen = untrained_modules(model, active | copied)
    single = [
        name
        for name, parameter in model.named_parameters()
        if id(parameter) not in active | copied and not _is_below(name, frozen)
    ]
    return UntrainedParts(pairs, shadows, (*frozen, *single))


def _is_below(name: str, paths: Sequence[str]) -> bool:
    return any(lies_in(name, path) for path in paths)
