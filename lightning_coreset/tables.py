"""Tables of text, and of HTML for notebooks: names to the left, numbers to the right."""

from __future__ import annotations

import re
from collections.abc import Sequence
from html import escape

Rows = Sequence[Sequence[str]]

_NUMBER = r"[-+]?[\d.,]+(e[-+]?\d+)?%?"
_NUMBERS = re.compile(rf"({_NUMBER}( -> {_NUMBER})?( [kMG]?B| m?s)?)?|-?(nan|inf)")


def number_columns(rows: Rows, *, names: bool = True) -> list[bool]:
    """Which columns hold numbers, such as ``"1,024"``, ``"-3.1%"`` or ``"64 -> 48"``, which are aligned to the right.

    Args:
        rows: The cells; the first row is the headings.
        names: Whether the first column holds names, which may look like numbers.
    """
    columns = zip(*rows[1:], strict=True) if len(rows) > 1 else ([] for _ in rows[0])
    numbers = [all(_NUMBERS.fullmatch(cell) for cell in column) for column in columns]
    return [False, *numbers[1:]] if names else numbers


def text_table(rows: Rows, *, names: bool = True) -> str:
    """Align cells in columns.

    Args:
        rows: The cells; the first row is the headings.
        names: Whether the first column holds names.

    Example:
        >>> print(text_table([("group", "channels"), ("conv1", "64 -> 8"), ("fc", "1,024 -> 512")]))
        group      channels
        -------------------
        conv1       64 -> 8
        fc     1,024 -> 512
    """
    numbers = number_columns(rows, names=names)
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "  ".join(
            cell.rjust(width) if number else cell.ljust(width)
            for cell, width, number in zip(row, widths, numbers, strict=True)
        ).rstrip()
        for row in rows
    ]
    return "\n".join([lines[0], "-" * max(map(len, lines)), *lines[1:]])


def html_table(rows: Rows, *, names: bool = True) -> str:
    """The same as a table of HTML, with all cells escaped."""
    sides = ["right" if number else "left" for number in number_columns(rows, names=names)]

    def line(cells: Sequence[str], tag: str) -> str:
        made = (
            f'<{tag} style="text-align: {side}">{escape(cell)}</{tag}>' for cell, side in zip(cells, sides, strict=True)
        )
        return f"<tr>{''.join(made)}</tr>"

    head, *body = rows
    cells = "".join(line(row, "td") for row in body)
    return f"<table><thead>{line(head, 'th')}</thead><tbody>{cells}</tbody></table>"


def html_lines(lines: Sequence[str]) -> str:
    """Lines of text as a paragraph of HTML."""
    return f"<p>{'<br>'.join(map(escape, lines))}</p>" if lines else ""


def html_details(summary: str, content: str) -> str:
    """Content that is folded away below a line of text."""
    return f"<details><summary>{escape(summary)}</summary>{content}</details>"


def shortened(text: str, width: int) -> str:
    """A text of at most so many characters, of which the middle is left out, since names differ at both ends.

    Example:
        >>> shortened("encoder.layer.11.attention.self.query", 20)
        'encode....self.query'
    """
    if len(text) <= width or width < 8:
        return text
    head = (width - 3) * 2 // 5
    return f"{text[:head]}...{text[len(text) - (width - 3 - head) :]}"
