"""Names of files and people as they can be shown in a terminal, whatever is in them."""

from __future__ import annotations

import unicodedata


def printable(text: str) -> str:
    r"""Text with all that would not be seen, or would move the cursor, written as in Python: \n, \x1b, \u202e."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def columns(text: str) -> int:
    """How many columns of a terminal a printable text takes."""
    return sum(0 if unicodedata.combining(c) else 2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in text)


def fit(text: str, most: int) -> str:
    """A text made printable and, where it takes more columns than ``most``, shortened in the middle by "…"."""
    text = printable(text)
    if columns(text) <= most:
        return text
    head, tail = text[: most // 3], text[-most:]
    while columns(head) + 1 + columns(tail) > most:
        tail = tail[1:]
    return f"{head}…{tail}"
