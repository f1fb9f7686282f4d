"""Finds shadow weights and the like: tensors that mirror weights of a module, registered or not, and are no module."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from lightning_coreset._compat import own_buffers, own_parameters
from lightning_coreset.held_tensors import Path, TensorCollection, follow_path, held_by, path_name
from lightning_coreset.module_specs import module_spec
from lightning_coreset.qualified_names import lies_in
from lightning_coreset.training.mirrors import Match, Mirrors

_LISTS = (nn.ParameterList, nn.ParameterDict)
_HISTORY = 2
"""More copies of the same weights side by side are a record of training, which stays as it is; and so is a list of
state dicts, for it grows.
"""
_SEVERAL = 3
"""Fewer buffers only mirror weights of their own module, such as ``ema_weight``."""


@dataclass(frozen=True, eq=False)
class Shadow:
    """A collection of tensors that nobody registered and that mirrors weights.

    Attributes:
        paths: The way to each tensor, by its name.
        tensors: The tensors, by name.
        mirrored: The names of the weights that they mirror, by name.
    """

    paths: Mapping[str, Path]
    tensors: Mapping[str, Tensor]
    mirrored: Mapping[str, str]

    @classmethod
    def of(cls, collection: TensorCollection, match: Match, prefix: str = "") -> Shadow:
        """The part of a collection that mirrors something; names begin with ``prefix``."""
        paths = {key: collection.path_to(key) for key in match.names}
        names = {key: prefix + path_name(path) for key, path in paths.items()}
        return cls(
            {names[key]: path for key, path in paths.items()},
            {names[key]: collection.tensors[key] for key in paths},
            {names[key]: match.names[key] for key in paths},
        )


def registered_shadows(
    model: nn.Module, trained: Collection[int], copies: Collection[str]
) -> tuple[dict[str, str], ...]:
    """Collections of buffers and untrained parameters that mirror weights: the names of both, for each.

    Args:
        model: The module.
        trained: Its trained parameters, by id.
        copies: Names of modules that are copies, which are not looked at.
    """
    mirrors, found = Mirrors(model, trained), []
    plain = {name.rpartition(".")[2] for name, _ in model.named_parameters()}
    for path, module in model.named_modules():
        if any(lies_in(path, copy) for copy in copies):
            continue
        statistics, is_list = module_spec(module).running_stats or (), isinstance(module, _LISTS)
        untrained = {name: one for name, one in own_parameters(module).items() if is_list and id(one) not in trained}
        buffers = {name: one for name, one in own_buffers(module).items() if name not in statistics}
        own: dict[str, Tensor] = {**untrained, **buffers}
        if not is_list and plain.issuperset(own):
            continue  # a layer's own, such as of a frozen BatchNorm
        for match in mirrors.of(own, path if len(own) < _SEVERAL else None):
            # A frozen layer has the same names and shapes as a trained one, too.
            marked = match.marked and untrained.keys().isdisjoint(match.names)
            if marked or mirrors.distance(match, own) is not None:
                found.append({f"{path}.{name}" if path else name: full for name, full in match.names.items()})
    return tuple(found)


def held_shadows(
    root: Any, model: nn.Module, mirrors: Mirrors, prefix: str = ""
) -> tuple[list[Shadow], dict[str, nn.Module]]:
    """What an object holds that mirrors weights, and the modules that it holds.

    Args:
        root: The module itself, or a callback.
        model: The module.
        mirrors: Finds what collections of its mirror.
        prefix: What names begin with.

    Returns:
        Collections of tensors, and the modules by name, whether copies or not.
    """
    collections, modules = held_by(root, model)
    matches = [mirrors.of(one.tensors) for one in collections]
    # Fisher information has no values that tell, but mostly lies beside weights under the same keys.
    alike = {tuple(one.tensors): match for one, match in zip(collections, matches, strict=True) if match}
    lying = Counter(
        (one.path[:-1], tuple(one.tensors)) for one, match in zip(collections, matches, strict=True) if match
    )
    shadows = []
    for one, match in zip(collections, matches, strict=True):
        alongside = lying[one.path[:-1], tuple(one.tensors)]
        holder, by_name = follow_path(root, one.path[:-1]), all(isinstance(key, str) for key in one.tensors)
        is_record = by_name and isinstance(holder, list | deque) and alongside == len(holder)
        if is_record or alongside > _HISTORY:
            continue
        for part in match or alike.get(tuple(one.tensors), ()):
            if all(mirrors.fits(one.tensors[key], full) for key, full in part.names.items()):
                shadows.append(Shadow.of(one, part, prefix))
    return shadows, {prefix + name: module for name, module in modules.items()}
