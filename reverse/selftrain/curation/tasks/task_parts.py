"""Common parts of curation tasks: the answer to work on, and reading and grading of replies."""

from __future__ import annotations

from typing import Any

from reverse.data.drafts.draft_record import LONGEST_TEXT, DraftRecord, RecordedDraft
from reverse.errors import DataError
from reverse.files.text_reading import replace_surrogates
from reverse.grading import grade
from reverse.tokens.spans import remove_tags

__all__ = ["ANSWERS", "clean_reply", "extend_record", "find_newest_answer", "require_right"]

ANSWERS = ("first", "sample", "chain")  # roles of drafts that a model gave as its own answer


def find_newest_answer(record: DraftRecord, *, judged: bool = False) -> int | None:
    """Return the index of the newest answer of a model itself; `judged`: only with a known verdict."""
    found = [
        i
        for i, draft in enumerate(record.drafts)
        if draft.role in ANSWERS and not (judged and draft.verdict == "unknown")
    ]
    return found[-1] if found else None


def clean_reply(text: str) -> str:
    """Clean a reply for a draft: remove the three tokens, and replace lone surrogates.

    Raises DataError for a reply that is empty or too long.
    """
    text = remove_tags(replace_surrogates(text)).strip()
    if not text:
        raise DataError("it is empty, without any words")
    if len(text) > LONGEST_TEXT:
        raise DataError(f"it has {len(text):,} characters, at most {LONGEST_TEXT:,} are read")
    return text


def require_right(text: str, record: DraftRecord) -> str:
    """Return the final answer of a text if it is right.

    Otherwise raise DataError, which does not reveal it.
    """
    assert record.gold is not None
    found = grade(text, record.gold.key())
    if found.verdict != "right" or found.extracted is None:
        raise DataError(
            "it gives no final answer that can be read"
            if found.verdict == "unknown"
            else "its final answer is wrong"
        )
    return found.extracted


def extend_record(record: DraftRecord, *drafts: RecordedDraft, link: str = "", first: int = 0) -> DraftRecord:
    """Return the record with further drafts, and a link of the answer at `first` with the last of them."""
    whole = (*record.drafts, *drafts)
    links: list[Any] = list(record.links)
    if link:
        links.append({"kind": link, "drafts": (first, len(whole) - 1)})
    return DraftRecord.model_validate({**dict(record), "drafts": whole, "links": links})
