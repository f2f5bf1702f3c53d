"""Yes or no in an answer, in many languages."""

from __future__ import annotations

import re

from reverse.data.tagging import yes_no_words

__all__ = ["read_yes_no"]

_YES = {yes.casefold() for pairs in yes_no_words.PAIRS.values() for yes, _ in pairs}
_NO = {no.casefold() for pairs in yes_no_words.PAIRS.values() for _, no in pairs}
_DENIED = re.compile(
    r"\b(?:not|n't|isn't|aren't|doesn't|don't|no|none|never|false|incorrect)\b", re.IGNORECASE
)
_AFFIRMED = re.compile(r"\b(?:yes|true|correct)\b", re.IGNORECASE)


def read_yes_no(text: str) -> str | None:
    """Return "yes" or "no" if the answer says one of them, None if it says neither or both.

    An answer that begins with the word ("No, there are two.") says it. A word that stands alone counts in
    any of the languages of `reverse.data.tagging.yes_no_words`. In other English texts "yes" or "no" must
    be said as a word, and only one of the two.
    """
    text = text.strip().strip("\"'“”«»()[]*_ ")
    plain = text.rstrip(".!。！").casefold()
    if plain in _YES and plain not in _NO:
        return "yes"
    if plain in _NO and plain not in _YES:
        return "no"
    if plain in ("no", "y", "n"):
        return "yes" if plain == "y" else "no"
    span = yes_no_words.find_yes_no(text)
    if span is not None:
        word = text[slice(*span)].casefold()
        if word in ("no", "non", "nein") or (word in _NO and word not in _YES):
            return "no"
        if word in _YES:
            return "yes"
    words = {word.casefold() for word in re.findall(r"[A-Za-z']+", text)}
    says_yes, says_no = bool(words & {"yes", "true"}), bool(words & {"no", "false"})
    if says_yes != says_no and not (says_yes and _DENIED.search(text)):
        return "yes" if says_yes else "no"
    return None
