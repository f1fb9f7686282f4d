"""docs/arguments.md has every argument of the callback, in the order of its signature, with its default."""

import inspect
import re

from pages import ROOT

from lightning_coreset import CoresetPruningCallback, prune
from lightning_coreset._calls import OLD_ARGUMENTS

PAGE = (ROOT / "docs" / "arguments.md").read_text(encoding="utf-8")
DEFAULTS = {name: one.default for name, one in inspect.signature(CoresetPruningCallback).parameters.items()}
ROWS = re.findall(r"^\| (\*?)`(\w+)`\*? \| `(.+?)` \| .+ \| .+ \|$", PAGE, re.M)


def test_every_argument_is_there_with_its_default() -> None:
    shown = [(name, default) for _, name, default in ROWS]
    assert shown == [(name, repr(default)) for name, default in DEFAULTS.items() if name not in OLD_ARGUMENTS]


def test_arguments_of_prune_are_marked() -> None:
    # A Trainer has data.
    of_prune = inspect.signature(prune).parameters.keys() - {"model", "data"} - OLD_ARGUMENTS.keys()
    assert {name for mark, name, _ in ROWS if mark} == of_prune


def test_old_names_are_there() -> None:
    table = PAGE.partition("## Old names")[2]
    assert dict(re.findall(r"^\| `(\w+)` \| `(\w+)` \| .+ \|$", table, re.M)) == OLD_ARGUMENTS
