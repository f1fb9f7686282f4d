"""The API reference is complete. That the names in it exist is checked by Sphinx, which is run with ``-W``."""

import re

import pytest
from pages import ROOT

import lightning_coreset
from lightning_coreset import coreset

_DIRECTIVE = re.compile(
    r"^\.\. (?:(?:currentmodule:: (?P<module>\S+))|(?:auto(?:class|function):: (?P<name>\S+)))$", re.M
)


def documented() -> set[str]:
    """The names under which the pages of ``docs/api`` document classes and functions."""
    names = set()
    for page in (ROOT / "docs" / "api").glob("*.md"):
        module = ""
        for directive in _DIRECTIVE.finditer(page.read_text(encoding="utf-8")):
            if directive["module"]:
                module = directive["module"]
            else:
                names.add(directive["name"] if "." in directive["name"] else f"{module}.{directive['name']}")
    return names


@pytest.mark.parametrize("module", [lightning_coreset, coreset], ids=lambda module: module.__name__)
def test_every_public_name_is_in_the_reference(module):
    missing = {f"{module.__name__}.{name}" for name in module.__all__} - documented()

    assert not missing


@pytest.mark.parametrize("page", ["docs/architecture.md", "CONTRIBUTING.md"])
def test_files_named_for_contributors_exist(page):
    named = re.findall(r"`([\w./-]+(?:/|\.(?:py|md|toml)))`", (ROOT / page).read_text(encoding="utf-8"))

    assert named
    assert not [
        path for path in named if not any((base / path).exists() for base in (ROOT, ROOT / "lightning_coreset"))
    ]


def test_every_picture_is_in_the_gallery_with_a_command_that_exists():
    gallery = (ROOT / "docs" / "gallery.md").read_text(encoding="utf-8")
    pictures = {path.name for path in (ROOT / "docs" / "images").iterdir()}

    assert set(re.findall(r"\(images/([\w.]+)\)", gallery)) == pictures
    scripts = re.findall(r"`python ([\w/]+\.py)", gallery)
    assert len(scripts) == len(pictures)
    assert all((ROOT / script).exists() for script in scripts)
