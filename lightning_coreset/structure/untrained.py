"""Parts of a network that nothing trains: frozen ones, and copies of other parts of it.

Copies, such as momentum encoders and shadow weights, are averages, or earlier states, of what they mirror, and have to
lose the same channels. Frozen parts, such as a teacher, stay as they are.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from lightning_coreset.qualified_names import common_module

if TYPE_CHECKING:
    from lightning_coreset.structure.records import ChannelGroup


@dataclass(frozen=True)
class Copy:
    """A copy of a part of a network.

    Attributes:
        name: Qualified name of the copy, a module; of shadow weights, the module that holds them.
        original: Qualified name of the module that it is a copy of.
        tensors: Names of the copy's parameters and buffers, each with the name of the one that it mirrors.
        modules: Names of modules of the copy, each with the name of its original; none for shadow weights.
        misfits: Names of tensors of the original, or the copy, beside which the other one has none of the same shape.
    """

    name: str
    original: str
    tensors: tuple[tuple[str, str], ...]
    modules: tuple[tuple[str, str], ...] = ()
    misfits: tuple[str, ...] = ()

    @classmethod
    def of_module(cls, model: nn.Module, name: str, original: str) -> Copy:
        """A module that mirrors another one: what both have by the same name and, of tensors, of the same shape."""
        copied, mirrored = model.get_submodule(name), model.get_submodule(original)
        names = {id(tensor): known for known, tensor in _tensors(model).items()}  # the first of several
        theirs, inside = _tensors(mirrored, all_names=True), dict(mirrored.named_modules())
        tensors, misfits = {}, {}
        for path, tensor in _tensors(copied).items():
            other = theirs.get(path)
            if other is None or other is tensor:
                continue
            (tensors if other.shape == tensor.shape else misfits)[names[id(tensor)]] = names[id(other)]
        return cls(
            name,
            original,
            tuple(tensors.items()),
            tuple((_join(name, path), _join(original, path)) for path, _ in copied.named_modules() if path in inside),
            (*misfits, *misfits.values()),
        )

    @classmethod
    def of_tensors(cls, tensors: Mapping[str, str]) -> Copy:
        """Shadow weights: tensors by name, each with the name of the one that it mirrors."""
        holders, originals = ({name.rpartition(".")[0] for name in names} for names in (tensors, tensors.values()))
        return cls(common_module(holders), common_module(originals), tuple(tensors.items()))

    @cached_property
    def copy_of(self) -> Mapping[str, str]:
        """The name of the copy of each tensor and module, by the original's."""
        return {original: name for name, original in (*self.modules, *self.tensors)}

    def renamed(self, name: str) -> str | None:
        """What a tensor of the original, or a weight that one of its modules makes, is called in the copy."""
        if name in self.copy_of:
            return self.copy_of[name]
        module, _, attribute = name.rpartition(".")
        return _join(self.copy_of[module], attribute) if self.modules and module in self.copy_of else None


@dataclass(frozen=True)
class Untrained:
    """What of a network nothing trains; empty for a network that is not in training.

    Attributes:
        copies: Copies of parts of the network.
        frozen: Names of the other parameters that nothing trains.
        counted: Those of them that count as parameters and multiply-accumulates nevertheless.
    """

    copies: tuple[Copy, ...] = ()
    frozen: frozenset[str] = frozenset()
    counted: frozenset[str] = frozenset()

    def holds(self, group: ChannelGroup) -> bool:
        """Whether all that makes the channels of a group is frozen."""
        makers = [member.name for member in group.by_role("producer") or group.members]
        return all(name in self.frozen for name in makers)

    @cached_property
    def mirrored(self) -> Mapping[str, str]:
        """The names of all tensors of copies, each with the name of the one that it mirrors."""
        return mirrored_tensors(self.copies)

    @cached_property
    def uncounted(self) -> frozenset[str]:
        """The names of tensors that do not count."""
        return frozenset(self.mirrored) | (self.frozen - self.counted)


NOTHING_UNTRAINED = Untrained()


def mirrored_tensors(copies: Iterable[Copy]) -> dict[str, str]:
    """The names of all tensors of copies, each with the name of the one that it mirrors."""
    return {name: original for copy in copies for name, original in copy.tensors}


def _tensors(module: nn.Module, *, all_names: bool = False) -> dict[str, Tensor]:
    """Parameters and buffers by name; tied ones by the first of theirs, or by all."""
    named = (
        *module.named_parameters(remove_duplicate=not all_names),
        *module.named_buffers(remove_duplicate=not all_names),
    )
    return {name: one for name, one in named if not is_lazy(one)}


def _join(prefix: str, name: str) -> str:
    return f"{prefix}.{name}" if prefix and name else prefix or name
