"""Which phrases a training sample names as wrong: at most five, all false, none of the answer's own.

Decoding writes the phrases it rejected at the end of the user's turn (`reverse.decoding.rewriting`). A model
that is to make use of them meets the same in training: lower-cased phrases in the same place, and an
answer that avoids them. Known difference from the published recipe, which names one phrase: decoding names
up to five, so training does too.
"""

from __future__ import annotations

import random
import re
from collections.abc import Sequence

from reverse.tokens.spans import CN, SPAN, UN, parse

__all__ = ["MOST", "choose_hints", "said"]

MOST = 5  # as many as decoding names


def choose_hints(
    rng: random.Random, answer: str, own: Sequence[str] = (), pool: Sequence[str] = (), most: int = MOST
) -> tuple[str, ...]:
    """One to `most` phrases for one answer: its `own` first of all, then others drawn from `pool`, shuffled.

    Phrases that the answer stands by are left out; the result is empty where none is left. Lower-cased,
    without repeats.
    """
    own = _unsaid(own, answer)[:most]
    others = [phrase for phrase in _unsaid(pool, answer) if phrase not in own]
    wanted = rng.randint(max(1, len(own)), most)
    chosen = own + rng.sample(others, min(wanted - len(own), len(others)))
    rng.shuffle(chosen)
    return tuple(chosen)


def said(phrase: str, answer: str) -> bool:
    """Whether `answer` says `phrase`, as whole words, elsewhere than in a phrase closed by `</UN>`."""
    trusted = answer
    if UN in answer:
        trusted = re.sub(f"{SPAN}(?:(?!{SPAN}|{CN}).)*?{UN}", " ", answer, flags=re.DOTALL)
    text = " ".join(parse(trusted).text.lower().split())
    wanted = " ".join(phrase.lower().split())
    return re.search(rf"(?<!\w){re.escape(wanted)}(?!\w)", text) is not None


def _unsaid(phrases: Sequence[str], answer: str) -> list[str]:
    distinct = dict.fromkeys(" ".join(phrase.lower().split()) for phrase in phrases)
    return [phrase for phrase in distinct if phrase and not said(phrase, answer)]
