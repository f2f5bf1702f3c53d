"""Choose the phrases that a training sample names as wrong: at most five, all false, none from the answer
itself.

Decoding writes the phrases it rejected at the end of the user's turn (`reverse.decoding.text.hints`).
Training shows a model the same, so that it learns to use them: lower-cased phrases in the same place, and an
answer that avoids them. Known difference from the published recipe, which names one phrase: decoding names up
to five, so training does too.
"""

from __future__ import annotations

import random
import re
from collections.abc import Sequence

from reverse.tokens.spans import CN, SPAN, UN, parse_tags

__all__ = ["MOST", "choose_hints", "said"]

MOST = 5  # as many as decoding names
_LONGEST = 200  # characters of a phrase whose places are looked at one by one


def choose_hints(
    rng: random.Random, answer: str, own: Sequence[str] = (), pool: Sequence[str] = (), most: int = MOST
) -> tuple[str, ...]:
    """Choose one to `most` phrases for one answer: first its `own`, then others drawn from `pool`; shuffled.

    Phrases that the answer states as true are left out, so the result may be empty. Lower-cased,
    without repeats.
    """
    own = _unsaid(own, answer)[:most]
    others = [phrase for phrase in _unsaid(pool, answer) if phrase not in own]
    wanted = rng.randint(max(1, len(own)), most)
    chosen = own + rng.sample(others, min(wanted - len(own), len(others)))
    rng.shuffle(chosen)
    return tuple(chosen)


def said(phrase: str, answer: str) -> bool:
    """Whether `answer` contains `phrase`, as whole words, outside phrases closed by `</UN>`.

    A phrase of more than 200 characters counts as said wherever it stands, within words too.
    """
    return _stands_in(" ".join(phrase.lower().split()), _trusted_text(answer))


def _unsaid(phrases: Sequence[str], answer: str) -> list[str]:
    text = _trusted_text(answer)
    distinct = dict.fromkeys(" ".join(phrase.lower().split()) for phrase in phrases)
    return [phrase for phrase in distinct if phrase and not _stands_in(phrase, text)]


def _trusted_text(answer: str) -> str:
    """Return the text of an answer outside phrases closed by `</UN>`, lower-cased, with single blanks."""
    if UN in answer:
        answer = re.sub(f"{SPAN}(?:(?!{SPAN}|{CN}).)*?{UN}", " ", answer, flags=re.DOTALL)
    return " ".join(parse_tags(answer).text.lower().split())


def _stands_in(phrase: str, text: str) -> bool:
    at = text.find(phrase)
    if at < 0 or len(phrase) > _LONGEST:  # each place of a long one would be compared as a whole
        return at >= 0
    return re.search(rf"(?<!\w){re.escape(phrase)}(?!\w)", text) is not None
