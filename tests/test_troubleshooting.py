"""docs/troubleshooting.md quotes every error, warning and reason of the package, in the words of the code."""

from __future__ import annotations

import re

import pytest
from messages import FILLED, Source, plain
from pages import ROOT, blocks_of

PAGE = ROOT / "docs" / "troubleshooting.md"
MESSAGES = Source(ROOT / "lightning_coreset").messages()


def quotes() -> list[str]:
    """What the page quotes: the paragraphs of its ``text`` blocks, and the code in first cells of tables."""
    blocks = [block.code for block in blocks_of(PAGE.name) if block.language == "text"]
    cells = re.findall(r"^\| (`.+?`) \|", PAGE.read_text(encoding="utf-8"), re.M)
    spoken = [paragraph for block in blocks for paragraph in block.split("\n\n")]
    return [plain(quote) for quote in (*spoken, *(code for cell in cells for code in re.findall(r"`(.+?)`", cell)))]


QUOTES = quotes()


def quotes_template(quote: str, template: str) -> bool:
    """Whether a quote is a message: all of it, or its beginning where the quote ends in something filled in."""
    return quote == template or (quote.endswith(FILLED) and template.startswith(quote[: -len(FILLED)].rstrip()))


def test_every_message_has_an_entry():
    missing = [message for message in MESSAGES if not any(quotes_template(quote, message.template) for quote in QUOTES)]

    assert not missing, (
        "docs/troubleshooting.md has not what these functions say. Quote it there (errors and warnings in a block "
        "of `text`, reasons in the first column of a table; names for {}, … for a rest that is left out), and say when "
        "it comes and what to do." + "".join(f"\n\n{message.where}\n  {message.template}" for message in missing)
    )


def test_every_quote_is_one_message():
    said = {
        quote: {message.template for message in MESSAGES if quotes_template(quote, message.template)}
        for quote in QUOTES
    }
    wrong = {quote: templates for quote, templates in said.items() if len(templates) != 1}

    assert not wrong, "docs/troubleshooting.md quotes what is not exactly one error, warning or reason:" + "".join(
        f"\n\n  {quote}\nwhich could be {templates or 'none'}" for quote, templates in wrong.items()
    )


def test_no_message_is_quoted_twice():
    assert sorted(QUOTES) == sorted(set(QUOTES))


SNIPPETS = {
    'raise ValueError("Expected a but " f"got {b!r}. " + "Do c.")': ["Expected a but got {}. Do c."],
    'raise ValueError(f"{a} {b}" + ("d" if e else "") + "f")': ["{}f"],
    'raise ValueError("Expected a." if b else "Expected c.")': ["Expected a.", "Expected c."],
    "raise ValueError(_helper(a))": ["Told by {}."],
    "raise _made()": ["Made by {}."],
    'message = f"Found {a}"\n    warnings.warn(f"{message}, beware.")': ["Found {}, beware."],
    "for each in _listed():\n        rank_zero_warn(each)": ["Listed {}."],
    'atoms.block(a, "is in the way")': ["is in the way"],
    'raise NotImplementedError("none of a user\'s business")': [],
    "raise": [],
    "raise failure": [],
}
HELPERS = """
def _helper(a):
    return f"Told by {a}."
def _made():
    return ValueError(f"Made by {a}.")
def _listed():
    messages = []
    messages.append(f"Listed {a}.")
    return messages
class Atoms:
    def block(self, labels, reason): ...
"""


@pytest.mark.parametrize(("body", "expected"), SNIPPETS.items())
def test_messages_are_read_from_source(body, expected, tmp_path):
    (tmp_path / "module.py").write_text(f"{HELPERS}\ndef function():\n    {body}\n", encoding="utf-8")

    found = [message for message in Source(tmp_path).messages() if message.where == "module.py:function"]

    assert [message.template for message in found] == expected


def test_a_message_that_cannot_be_read_is_an_error(tmp_path):
    (tmp_path / "module.py").write_text("def function(a):\n    raise ValueError(a)\n", encoding="utf-8")

    with pytest.raises(AssertionError, match=r"cannot read what module\.py:function says"):
        Source(tmp_path).messages()
