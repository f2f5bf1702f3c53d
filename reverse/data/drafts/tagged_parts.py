"""Find parts of texts between tags, in time linear in the length of the text.

A regular expression such as `<a>(.*?)</a>` reads a text with many opening tags once for each of them, and
published files are not trusted.
"""

from __future__ import annotations

__all__ = ["find_first_part", "find_last_part", "read_part"]


def find_first_part(text: str, tag: str) -> str | None:
    """Return the text between the first opening tag and the next closing tag; None if there is none."""
    begin = text.find(f"<{tag}>")
    end = text.find(f"</{tag}>", begin) if begin >= 0 else -1
    return text[begin + len(tag) + 2 : end] if end >= 0 else None


def find_last_part(text: str, tag: str) -> str | None:
    """Return the text between the last closing tag and the opening tag before it; None if there is none."""
    end = text.rfind(f"</{tag}>")
    begin = text.rfind(f"<{tag}>", 0, end) if end >= 0 else -1
    return text[begin + len(tag) + 2 : end] if begin >= 0 else None


def read_part(text: str, at: int, tag: str) -> tuple[str, int] | None:
    """Return the part that begins at `at` (after optional space) and its end; None if none begins there."""
    begin = at
    while begin < len(text) and text[begin].isspace():
        begin += 1
    opening, closing = f"<{tag}>", f"</{tag}>"
    if not text.startswith(opening, begin):
        return None
    end = text.find(closing, begin)
    return (text[begin + len(opening) : end], end + len(closing)) if end >= 0 else None
