"""Find descriptions of pictures in texts that hold them, for teachers that cannot see pictures (SRPO).

    cot100k     what LLaVA-CoT-100k has between <CAPTION> and </CAPTION>
    mulberry    what Mulberry has below "### Image Description:"

or what a regular expression of the caller's own finds: its first group, or the whole match. It runs with
a time
limit, so that no expression can hold up a run.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import regex

from reverse.data.drafts.draft_record import DraftRecord
from reverse.errors import RequestError
from reverse.selftrain.curation.sent_pictures import MAX_DESCRIPTION

__all__ = ["PATTERNS", "DescriptionPattern", "FoundDescription", "find_descriptions"]

PATTERNS = {
    "cot100k": r"<CAPTION>\s*(.*?)\s*</CAPTION>",
    "mulberry": r"###\s*Image Description:?\s*(.*?)\s*(?=###|\Z)",
}
MAX_PATTERN = 2000  # characters
SECONDS = 1.0  # that an expression may take for one text


@dataclass(frozen=True)
class DescriptionPattern:
    """A regular expression that finds descriptions; `named` is a key of PATTERNS or an expression.

    Raises RequestError for an expression that is none or too long.
    """

    named: str = "cot100k"
    _compiled: regex.Pattern[str] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        text = PATTERNS.get(self.named, self.named)
        if not text or len(text) > MAX_PATTERN:
            raise RequestError(
                f"--pattern must have 1 to {MAX_PATTERN} characters, got {len(text)}: shorten it"
            )
        try:
            compiled = regex.compile(text, regex.DOTALL)
        except (regex.error, RecursionError, OverflowError) as error:
            raise RequestError(
                f"--pattern {text[:60]!r} is not one of {', '.join(PATTERNS)} and no regular expression: "
                f"{error}"
            ) from error
        object.__setattr__(self, "_compiled", compiled)

    def find(self, text: str) -> str | None:
        """Return the description in a text, or None. Raises TimeoutError if the expression takes too long."""
        found = self._compiled.search(text, timeout=SECONDS)
        if found is None:
            return None
        kept = found[1] if self._compiled.groups else found[0]
        return (kept or "").strip()[:MAX_DESCRIPTION] or None


@dataclass(frozen=True)
class FoundDescription:
    """The result for a record: its pictures with their description, or the reason why there is none."""

    record: str
    images: tuple[str, ...] = ()
    description: str = ""
    reason: str = ""


def find_descriptions(
    records: Iterable[DraftRecord], pattern: DescriptionPattern, counts: Counter[str]
) -> Iterator[FoundDescription]:
    """Search the drafts of each record, and then its question, for a description of its picture.

    A record without a picture, or with several, which one description cannot tell apart, gives none.
    """
    for record in records:
        counts["records"] += 1
        if len(record.images) != 1:
            reason, found = f"{len(record.images)}_pictures", None
        else:
            reason, found = _search(record, pattern)
        counts[f"failed.{reason}" if found is None else "descriptions"] += 1
        if found is None:
            yield FoundDescription(record.id, reason=reason)
        else:
            yield FoundDescription(record.id, record.images, found)


def _search(record: DraftRecord, pattern: DescriptionPattern) -> tuple[str, str | None]:
    """("", the first description in the record's texts), or the reason and None."""
    try:
        for text in (*(draft.text for draft in record.drafts), record.question):
            found = pattern.find(text)
            if found is not None:
                return "", found
    except TimeoutError:
        return "timeout", None
    return "no_match", None
