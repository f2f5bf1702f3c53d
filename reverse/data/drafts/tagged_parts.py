"""Find parts of texts between tags, in time that grows with the text and no faster.

A regular expression such as `<a>(.*?)</a>` reads a text of many opening tags once for each of them; published
files come from anywhere.
"""

from __future__ import annotations

__all__ = ["find_first_part", "find_last_part", "read_part"]


def find_first_part(text: str, tag: str) -> str | None:
    """What stands between the first opening tag and the closing tag behind it; None if there is none."""
    begin = text.find(f"<{tag}>")
    end = text.find(f"</{tag}>", begin) if begin >= 0 else -1
    return text[begin + len(tag) + 2 : end] if end >= 0 else None


def find_last_part(text: str, tag: str) -> str | None:
    """What stands between the last closing tag and the opening tag before it; None if there is none."""
    end = text.rfind(f"</{tag}>")
    begin = text.rfind(f"<{tag}>", 0, end) if end >= 0 else -1
    return text[begin + len(tag) + 2 : end] if begin >= 0 else None


def read_part(text: str, at: int, tag: str) -> tuple[str, int] | None:
    """The part that begins at `at`, but for space before it, and where it ends; None if none begins there."""
    begin = at
    while begin < len(text) and text[begin].isspace():
        begin += 1
    opening, closing = f"<{tag}>", f"</{tag}>"
    if not text.startswith(opening, begin):
        return None
    end = text.find(closing, begin)
    return (text[begin + len(opening) : end], end + len(closing)) if end >= 0 else None
