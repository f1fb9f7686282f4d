"""Layers that nothing has run, and the groups of channels that they could read or write, by their widths and places."""

from __future__ import annotations

import warnings
from collections.abc import Collection, Iterable, Mapping, Sequence

from torch import Tensor, nn

from lightning_coreset._calls import level_of_caller
from lightning_coreset._compat import is_torch_loss, own_parameters, own_tensors
from lightning_coreset.module_specs import module_spec
from lightning_coreset.planning.layer_rules import Rule, matches
from lightning_coreset.planning.problem import prunable
from lightning_coreset.planning.request import Request
from lightning_coreset.qualified_names import common_module, lies_in, listed
from lightning_coreset.structure import ChannelGroup, Structure, layer_of

_INPUT_SIZES = (
    *("in_features", "in_channels", "in1_features", "in2_features"),
    *("input_size", "embed_dim", "kdim", "vdim", "nx"),
)
"""Names under which layers of any type keep how wide their inputs are."""
_OUTPUT_SIZES = ("out_features", "out_channels", "hidden_size", "proj_size", "embed_dim", "nf")
"""The same for what they make."""


def layers_that_never_ran(model: nn.Module, structure: Structure, rules: Sequence[Rule] = ()) -> list[str]:
    """Layers with tensors of their own of which none was used, where one may read or write channels all the same.

    Torch's own losses are left out, copies, and layers that read indices. A layer that a module has under two names is
    listed under both, since each is a place where code may run it; what holds for one name holds for the other.

    Args:
        model: The network.
        structure: What was found in it by running it.
        rules: What is never run, or reads no channels: modules that a rule names, and all that is in them.
    """
    copies = (name for copy in structure.untrained.copies for name in copy.misfits)
    modules = dict(model.named_modules(remove_duplicate=False))
    accounted = {*structure.used, *structure.untrained.mirrored, *copies}
    prefixes = tuple(
        f"{path}."
        for path, module in modules.items()
        if is_torch_loss(module) or (path and any(matches(rule, path, module) for rule in rules))
    )
    exempt = {id(module) for path, module in modules.items() if f"{path}.".startswith(prefixes)}
    return [
        path
        for path, tensors in layers_with_tensors(model).items()
        if accounted.isdisjoint(tensors)
        # The network's own, and buffers alone, such as class weights or a queue, are data and no layer.
        and path
        and own_parameters(modules[path])
        and id(modules[path]) not in exempt
        and module_spec(modules[path]).reads != "indices"
    ]


def possible_readers(model: nn.Module, groups: Iterable[ChannelGroup], layers: Collection[str]) -> dict[str, list[str]]:
    """For each group, the layers that never ran and could read or write its channels; groups without any are left out.

    A layer could read channels that are as many as it takes, and lie where code that runs it may get at them: the code
    of the module that it belongs to, of one around that, or of one that this module calls. It could make some in the
    place of a layer that ran, such as an expert that no row was sent to in the place of another, or anywhere within
    reach where the network writes them by an index.

    Args:
        model: The network.
        groups: The groups.
        layers: What :func:`layers_that_never_ran` returns.
    """
    tree, groups = _Tree(model), list(groups)
    tensors = layers_with_tensors(model)
    idle = {*layers}
    widths = {one.length for group in groups for one in group.members} | {
        size for path, own in tensors.items() if path not in idle for tensor in own.values() for size in tensor.shape
    }
    found: dict[str, list[str]] = {}
    for path in layers:
        module, own = tree.modules[path], tensors[path].values()
        read, made = _widths(module, own, _INPUT_SIZES), _widths(module, own, _OUTPUT_SIZES)
        reads, makes = (not tree.adjoins_another(path, idle, before=before) for before in (True, False))
        for group in groups:
            may_read = reads and any(_fits(size, group, size in widths) for size in read)
            may_make = makes and any(_fits(size, group, True) for size in made)
            may_write = may_make and (tree.can_replace(path, group) or (group.routed and tree.can_reach(path, group)))
            if may_write or (may_read and tree.can_reach(path, group)):
                found.setdefault(group.name, []).append(path)
    return found


def layers_with_tensors(model: nn.Module) -> dict[str, dict[str, Tensor]]:
    """The parameters and buffers of every module that has some of its own, by their first names."""
    first: dict[int, str] = {}
    found: dict[str, dict[str, Tensor]] = {}
    for path, module in model.named_modules(remove_duplicate=False):
        for own, tensor in own_tensors(module).items():
            name = f"{path}.{own}" if path else own
            found.setdefault(layer_of(name), {})[first.setdefault(id(tensor), name)] = tensor
    return found


def _widths(module: nn.Module, tensors: Iterable[Tensor], names: Iterable[str]) -> set[int]:
    """How wide a module's inputs or outputs may be: what it says itself, or any size of its tensors."""
    told = {value for name in names if isinstance(value := getattr(module, name, None), int)}
    sizes = told or {size for tensor in tensors for size in tensor.shape}
    return {size for size in sizes if size > 1}


def _fits(size: int, group: ChannelGroup, is_known: bool) -> bool:
    """Whether an input of this size may be the group's channels, or, where nothing else is so wide, a multiple."""
    if any(member.length == size for member in group.members):
        return True
    return not is_known and size % group.size == 0


class _Tree:
    """Where modules lie: a container, which has no code of its own, is no place."""

    def __init__(self, model: nn.Module) -> None:
        self.modules = dict(model.named_modules(remove_duplicate=False))

    def adjoins_another(self, path: str, idle: Collection[str], *, before: bool) -> bool:
        """Whether a layer that never ran has another one before or behind it in an ``nn.Sequential`` of such layers."""
        around = path
        while around:
            inner, around = around, around.rpartition(".")[0]
            module = self.modules[around]
            if isinstance(module, nn.Sequential) and not self._ran(around, idle):
                prefix = f"{around}." if around else ""
                children = [f"{prefix}{name}" for name, _ in module.named_children()]
                place = children.index(inner) if inner in children else None
                beside = [] if place is None else children[:place] if before else children[place + 1 :]
                if any(lies_in(other, child) for child in beside for other in idle):
                    return True
        return False

    def can_reach(self, path: str, group: ChannelGroup) -> bool:
        """Whether code that runs a layer may get at the channels of a group."""
        own, place = self._place(path.rpartition(".")[0]), self._place(common_module(map(layer_of, _names(group))))
        return lies_in(own, place) or (place != "" and self._place(place.rpartition(".")[0]) == own)

    def can_replace(self, path: str, group: ChannelGroup) -> bool:
        """Whether code may run a layer instead of one that makes channels of a group.

        The same module's code runs both, and the channels leave the sequence that makes them; or they have the same
        place in two modules that lie side by side, and the channels leave these.
        """
        makers = {layer_of(member.name) for member in group.members if member.role == "producer"}
        own = self._place(path.rpartition(".")[0])
        whole = common_module(map(layer_of, _names(group)))

        def leaves(around: str | None) -> bool:
            return around is not None and not lies_in(whole, around)

        for other in makers:
            sequence, twin = self._sequence(other, path), _twin_around(path, other)
            is_near = own == self._place(other.rpartition(".")[0])
            if leaves(twin) or (is_near and (sequence is None or leaves(sequence))):
                return True
        return False

    def _sequence(self, path: str, other: str) -> str | None:
        """The largest ``nn.Sequential`` around a layer, and not around another one; code runs it as a whole."""
        found, around = None, path.rpartition(".")[0]
        while around and not lies_in(other, around):
            if isinstance(self.modules[around], nn.Sequential):
                found = around
            around = around.rpartition(".")[0]
        return found

    def _ran(self, path: str, idle: Collection[str]) -> bool:
        return any(
            lies_in(other, path) and other not in idle and own_tensors(module) for other, module in self.modules.items()
        )

    def _place(self, path: str) -> str:
        """The nearest module around here that has code of its own."""
        while path and _is_container(self.modules[path]):
            path = path.rpartition(".")[0]
        return path


def _twin_around(path: str, other: str) -> str | None:
    """Of paths that differ in one name only, as ``experts.0.up`` and ``experts.1.up``, the second one up to there."""
    names, its = path.split("."), other.split(".")
    differ = [number for number, pair in enumerate(zip(names, its, strict=False)) if pair[0] != pair[1]]
    return ".".join(its[: differ[0] + 1]) if len(names) == len(its) and len(differ) == 1 else None


def _is_container(module: nn.Module) -> bool:
    return isinstance(module, nn.Sequential) or type(module).forward is nn.Module.forward


def _names(group: ChannelGroup) -> list[str]:
    return [member.name for member in group.members]


def unread_groups(
    model: nn.Module, structure: Structure, request: Request, rules: Sequence[Rule] = ()
) -> dict[str, list[str]]:
    """What :func:`possible_readers` says of the groups that a request prunes."""
    groups, _ = prunable(model, structure, request)
    return possible_readers(model, groups, layers_that_never_ran(model, structure, rules))


def without_unread(model: nn.Module, structure: Structure, request: Request, never_run: Sequence[Rule]) -> Structure:
    """The structure without groups that a layer could read or write which no example input runs, with a warning.

    Args:
        model: The network.
        structure: What was found in it.
        request: What is asked.
        never_run: What is never run.
    """
    readers = unread_groups(model, structure, request, never_run)
    if not readers:
        return structure
    warnings.warn(_describe(readers), stacklevel=level_of_caller())
    return without_read(structure, readers)


def without_read(structure: Structure, readers: Mapping[str, Sequence[str]]) -> Structure:
    """The structure without the groups that :func:`possible_readers` names."""
    return structure.without({group: _may_be_read(own) for group, own in readers.items()})


def names_of(readers: Mapping[str, Sequence[str]]) -> tuple[str, str]:
    """The layers that :func:`possible_readers` names, and the groups, for messages."""
    layers = dict.fromkeys(layer for own in readers.values() for layer in own)
    return _some(list(layers)), _some(list(readers))


def _describe(readers: Mapping[str, Sequence[str]]) -> str:
    """A warning that names the layers that example inputs do not run, and the groups that stay because of them."""
    layers, groups = names_of(readers)
    return (
        f"{layers} did not run on the example inputs, and could read or write the channels of {groups}, by width and "
        "place: these stay. Give example inputs that run them, or say never_run=[...]."
    )


def _may_be_read(layers: Sequence[str]) -> str:
    reason = f"could be read or written by {layers[0]}, which has not run so far"
    return reason


def _some(names: Sequence[str]) -> str:
    return listed([*map(repr, names)])
