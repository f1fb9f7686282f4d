"""Sphinx configuration: ``sphinx-build -W --keep-going -b html docs <output>`` builds the site.

It needs what ``pip install ".[dev]"`` installs and no network. As in the tests, the package is imported from the source
tree, even if another copy is installed. With DOCS_INTERSPHINX=1 in the environment, names of Python, torch and
Lightning become links to their documentation; this downloads their inventories.
"""

from __future__ import annotations

import inspect
import os
import re
import sys
from contextlib import suppress
from functools import reduce
from operator import or_
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from sphinx.application import Sphinx

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "docs")]

project = "lightning-coreset"
release = version = re.search(r'^__version__ = "(.+)"', (ROOT / "lightning_coreset/__init__.py").read_text(), re.M)[1]
html_show_copyright = False

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.mathjax",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
]
myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 3
html_theme = "furo"
html_title = f"{project} {release}"
html_static_path = ["_static"]
html_css_files = ["site.css"]
pygments_dark_style = "github-dark"
highlight_language = "none"  # a fence without a language does not contain code

napoleon_numpy_docstring = False
napoleon_use_ivar = True  # as separate entries, attributes would be described twice
napoleon_use_rtype = False
autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
python_use_unqualified_type_names = True

# A broken reference to a name of this package is a warning. Names of other packages need their inventories.
nitpicky = True
nitpick_ignore = [
    ("py:class", "lightning_coreset.checkpoint.hooks.Model"),  # type variables
    ("py:class", "lightning_coreset.checkpoint.loading.Model"),
    ("py:class", "lightning_coreset.checkpoint.metadata.PruningMetadata"),
    ("py:class", "lightning_coreset.huggingface.updating.Model"),
    ("py:class", "lightning_coreset.expressions.Expression"),  # of attributes that no extension needs
    ("py:class", "lightning_coreset.moments.runs.MeasuringRuns"),
    ("py:class", "lightning_coreset.probes.leaf.IdRange"),
    ("py:class", "Tensor"),  # of functions whose annotations Sphinx cannot evaluate
    ("py:class", "nn.Module"),
    ("py:exc", "MisconfigurationException"),
]
nitpick_ignore_regex = [("py:class", r"(collections|lightning|os|re|torch|torchmetrics|types)\..*")]

if os.environ.get("DOCS_INTERSPHINX") == "1":
    extensions.append("sphinx.ext.intersphinx")
    intersphinx_mapping = {
        "python": ("https://docs.python.org/3", None),
        "torch": ("https://docs.pytorch.org/docs/stable", None),
        "lightning": ("https://lightning.ai/docs/pytorch/stable", None),
    }


def literals_last(hint: Any) -> Any:
    """Move the ``Literal`` of a union to the end: Sphinx makes no links of what follows a ``Literal``."""
    if get_origin(hint) not in (Union, UnionType):
        return hint
    parts = sorted(get_args(hint), key=lambda part: (part is NoneType, get_origin(part) is Literal))
    return reduce(or_, parts)


def with_annotations(signature: inspect.Signature, hints: dict[str, Any]) -> inspect.Signature:
    """The same signature with other annotations."""
    parameters = signature.parameters.values()
    return signature.replace(
        parameters=[one.replace(annotation=hints.get(one.name, one.annotation)) for one in parameters],
        return_annotation=hints.get("return", signature.return_annotation),
    )


def evaluate_annotations(app: Sphinx, function: Any, bound_method: bool) -> None:
    """Evaluate annotations that are strings, also in classes, where Sphinx itself does not."""
    if inspect.isfunction(function):
        with suppress(NameError):  # imported for type checkers only
            hints = get_type_hints(function)
            function.__annotations__ = {name: literals_last(hint) for name, hint in hints.items()}
            if hasattr(function, "__wrapped__"):  # its signature is that of another function
                function.__signature__ = with_annotations(inspect.signature(function), function.__annotations__)


def add_notebook(app: Sphinx, exception: Exception | None) -> None:
    """Put the tutorial beside its page as a notebook, for downloading."""
    from make_tutorial import write_notebook

    if exception is None and app.builder.format == "html":
        write_notebook(Path(app.outdir) / "tutorial.ipynb")


def setup(app: Sphinx) -> None:
    app.connect("autodoc-before-process-signature", evaluate_annotations)
    app.connect("build-finished", add_notebook)
