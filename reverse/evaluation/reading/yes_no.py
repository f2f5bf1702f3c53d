"""Read yes or no by words.

    read_strictly("His eyes are blue.")     # "other"
    read_strictly("No, it isn't.")          # "no"

The published scripts look for letters instead: POPE's takes every answer that does not deny for yes, AMBER's
finds "yes" in "eyes", MME's looks at four letters (`read_pope`, `read_amber` and `read_mme` in the
benchmarks' files).
"""

from __future__ import annotations

import re
from typing import Literal

from reverse.evaluation.reading.english import is_english
from reverse.evaluation.reading.markup import LONGEST, extract_plain_text

__all__ = ["Reading", "read_strictly"]

Reading = Literal["yes", "no", "other", "empty", "unread"]

_WORD = re.compile(r"[^\W_]+(?:['’][^\W_]+)*")
_SENTENCE = re.compile(r"[.!?\n]")
_YES = frozenset({"yes", "yeah", "yep", "yup"})
_NO = frozenset({"no", "nope"})
_DENIALS = frozenset({"not", "cannot", "none", "never", "neither", "nor", "without", "nothing", "nobody"})


def read_strictly(text: str) -> Reading:
    """Read an answer by its words, after removing reasoning, JSON and markup.

    The first yes, no or denial (not, n't, none, without …) of the first sentence counts; without one, the
    first later sentence that begins with yes or no. "empty" means no word at all, "other" neither yes nor no,
    and "unread" another language than English or more than `LONGEST` characters.
    """
    said = extract_plain_text(text)
    if len(said) > LONGEST:
        return "unread"
    lowered = said.lower().replace("’", "'")
    sentences = [words for part in _SENTENCE.split(lowered) if (words := _WORD.findall(part))]
    if not sentences:
        return "empty"
    if sentences[0][0] not in _YES and not is_english([word for words in sentences for word in words]):
        return "unread"
    for word in sentences[0]:
        if word in _YES:
            return "yes"
        if word in _NO or word in _DENIALS or word.endswith("n't"):
            return "no"
    for first, *_ in sentences[1:]:
        if first in _YES | _NO:
            return "yes" if first in _YES else "no"
    return "other"
