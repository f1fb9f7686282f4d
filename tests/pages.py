"""The code blocks of a page of documentation, for tests that run them."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]

_PARTS = re.compile(r"^## (?P<title>[^\n]+)$|^```(?P<language>\w+)\n(?P<code>.*?)^```$", re.M | re.S)


@dataclass(frozen=True)
class Block:
    """One fenced block.

    Attributes:
        section: The heading of the second level that it stands under, empty if under none.
        language: What the fence says it is.
        code: What stands in it.
    """

    section: str
    language: str
    code: str


def blocks_of(page: str) -> list[Block]:
    """All fenced blocks of a page of ``docs/`` that say their language, in order."""
    section, blocks = "", []
    for part in _PARTS.finditer((ROOT / "docs" / page).read_text(encoding="utf-8")):
        if part["title"]:
            section = part["title"]
        else:
            blocks.append(Block(section, part["language"], part["code"]))
    assert blocks, f"docs/{page} has no code"
    return blocks
