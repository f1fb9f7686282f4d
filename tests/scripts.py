"""Load a script of the repository that is in no package, such as an example."""

from __future__ import annotations

import importlib.util
import sys
from types import ModuleType

from pages import ROOT


def load_script(path: str, name: str | None = None) -> ModuleType:
    """The module that a script makes.

    Args:
        path: Where it lies in the repository.
        name: What the module is called; the file's name by default.
    """
    file = ROOT / path
    spec = importlib.util.spec_from_file_location(name or file.stem, file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module
