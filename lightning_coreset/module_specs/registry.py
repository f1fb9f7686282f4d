"""Which spec a module has: the newest one of its class, or of the nearest class that it derives from."""

from __future__ import annotations

from dataclasses import dataclass
from fnmatch import fnmatchcase
from weakref import WeakKeyDictionary

from torch import nn

from lightning_coreset._registration import Registration
from lightning_coreset.module_specs.spec import ModuleSpec
from lightning_coreset.module_specs.table import TABLE


@dataclass(frozen=True, eq=False)
class _Entry:
    kind: type[nn.Module] | str
    spec: ModuleSpec
    registered: bool = True  # by a user

    def matches(self, cls: type) -> bool:
        if isinstance(self.kind, str):
            return fnmatchcase(f"{cls.__module__}.{cls.__qualname__}", self.kind)
        return cls is self.kind


_UNKNOWN = _Entry(nn.Module, ModuleSpec(), registered=False)
_entries = [_Entry(kind, spec, registered=False) for kind, spec in TABLE.items()]  # the newest last
_found: WeakKeyDictionary[type, _Entry] = WeakKeyDictionary()


def register_module(kind: type[nn.Module] | str, spec: ModuleSpec, *, override: bool = False) -> Registration:
    """Describe a type of modules to the package.

    The analysis, surgery, the self-check and checkpoints read the description. It holds for this process: register it
    where the class is defined, so that processes that load checkpoints or are spawned do so as well.

    Args:
        kind: The class; or its qualified name, for one that is not to be imported just for this. ``*`` in a name
            stands for any text: ``"mypackage.layers.*"``. Classes that derive from it have the same spec, unless they
            have one of their own.
        spec: The description.
        override: Whether it may take the place of another spec of the same ``kind``, such as of ``nn.Linear``.

    Returns:
        A handle: ``handle.remove()``, or the end of ``with register_module(...):``, takes the spec back.

    Raises:
        TypeError: If ``kind`` or ``spec`` is something else.
        ValueError: If ``kind`` is ``nn.Module`` itself, or has a spec already and ``override`` is not set.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from lightning_coreset import prune
        >>> from lightning_coreset.structure import ModuleSpec, register_module
        >>> class MyLinear(nn.Module):
        ...     def __init__(self, inputs, width):
        ...         super().__init__()
        ...         self.width = width
        ...         self.weight = nn.Parameter(torch.randn(width, inputs))
        ...
        ...     def forward(self, x):
        ...         return (x @ self.weight.T).view(-1, self.width)  # after surgery, `width` must be the new one
        >>> model = nn.Sequential(MyLinear(8, 16), nn.ReLU(), nn.Linear(16, 2))
        >>> with register_module(MyLinear, ModuleSpec(sizes={"width": 0})):
        ...     _ = prune(model, torch.randn(4, 8), 0.5)
        >>> model[0].width
        8
    """
    if isinstance(kind, str):
        if "." not in kind:
            raise ValueError(f"Expected a qualified name such as 'mypackage.layers.MyLinear' but got {kind!r}.")
    elif not (isinstance(kind, type) and issubclass(kind, nn.Module)):
        raise TypeError(f"Expected a class of modules or its qualified name but got {kind!r}.")
    elif kind is nn.Module:
        raise ValueError("Expected a class of modules but got nn.Module, from which every module derives.")
    if not isinstance(spec, ModuleSpec):
        raise TypeError(f"Expected a ModuleSpec but got {spec!r}.")
    if not override and any(entry.kind == kind for entry in _entries):
        raise ValueError(f"{kind!r} has a ModuleSpec already. Remove that one first, or pass override=True.")
    entry = _Entry(kind, spec)
    _entries.append(entry)
    _found.clear()

    def undo() -> None:
        _entries.remove(entry)
        _found.clear()

    return Registration(undo)


def module_spec(kind: nn.Module | type[nn.Module]) -> ModuleSpec:
    """The spec of a module or a class of modules, such as to register the same for another class.

    Without a spec of its own or of a base class, it is ``ModuleSpec()``.

    Example:
        >>> from lightning_coreset.structure import module_spec
        >>> module_spec(nn.Linear).sizes
        {'out_features': 0, 'in_features': 1}
    """
    return find(kind if isinstance(kind, type) else type(kind)).spec


def find(cls: type) -> _Entry:
    """The entry of a class."""
    entry = _found.get(cls)
    if entry is None:
        entry = next(
            (entry for base in cls.__mro__ for entry in reversed(_entries) if entry.matches(base)),
            _UNKNOWN,
        )
        _found[cls] = entry
    return entry
