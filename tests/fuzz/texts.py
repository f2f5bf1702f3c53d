"""Tagged texts: `reverse.tokens.spans` against a slow reader that holds characters and marks in one list."""

from __future__ import annotations

import re
from random import Random

from reverse.tokens import spans
from reverse.tokens.spans import CN, SPAN, TAGS, UN
from tests.fuzz.mutating import ODD_TEXTS, mutate_text
from tests.fuzz.running import Target, expect

PIECES = (
    *TAGS,
    *TAGS,
    SPAN,
    "a dog",
    "two cups",
    ".",
    " ",
    "<",
    ">",
    "/",
    "SPAN",
    "CN",
    "UN",
    "<SP",
    "AN>",
    "</C",
    "N>",
    "</U",
    "</",
    "N",
    "\u3000",
    "狗",
    "é",
    "<span>",
    "</cn>",
    "</ CN>",
    "< SPAN >",
    "<b>",
    "\n",
    "a<b",
    "\x85",
)


def make(rng: Random) -> str:
    draw = rng.random()
    if draw < 0.02:  # long, and of one kind
        return rng.choice(PIECES) * rng.randint(50, 1000) + rng.choice(PIECES) * rng.randint(0, 1000)
    if draw < 0.3:
        return mutate_text(rng, f"I see {SPAN}two cups{CN} and {SPAN}a dog{UN}. {SPAN}It{CN} barks.")
    words = PIECES if draw < 0.9 else (*PIECES, *ODD_TEXTS)
    return "".join(rng.choices(words, k=rng.choice((2, 5, 12, 40))))


def read_slowly(tagged: str) -> tuple[str, list[tuple[int, int, bool]]]:
    """Clean text and (start, end, confident) of phrases: characters in a list, tags left in it as marks."""
    out: list[str] = []  # one character, or a whole tag that was taken out
    for char in tagged:
        out.append(char)
        for tag in TAGS if char == ">" else ():
            letters, places = [], []
            for i in range(len(out) - 1, -1, -1):
                if len(out[i]) == 1:
                    letters.append(out[i])
                    places.append(i)
                if len(letters) == len(tag):
                    break
            if "".join(reversed(letters)) == tag:
                for i in places:
                    del out[i]
                out.append(tag)
    text = "".join(item for item in out if len(item) == 1)
    found, start, at = [], None, 0
    for item in out:
        if len(item) == 1:
            at += 1
        elif item == SPAN:
            start = at
        elif start is not None:
            found.append((start, at, item == CN))
            start = None
    return text, found


def check(tagged: str) -> str:
    parsed = spans.parse_tags(tagged)
    clean = spans.remove_tags(tagged)
    expect(parsed.text == clean, "parse and strip differ", parsed.text, clean)
    expect(not any(tag in clean for tag in TAGS), "a tag is left", clean)
    again = tagged
    while (shorter := re.sub("|".join(TAGS), "", again)) != again:
        again = shorter
    expect(again == clean, "not what deleting tags until none is left gives", clean, again)
    phrases = [(p.start, p.end, p.confident) for p in parsed.phrases]
    expect(all(p.text == clean[p.start : p.end] for p in parsed.phrases), "a phrase is not where it says")
    if len(tagged) <= 300:
        text, slow = read_slowly(tagged)
        expect((text, slow) == (clean, phrases), "not what the slow reader finds", phrases, slow)
    back = spans.parse_tags(spans.add_tags(clean, parsed.phrases))
    expect(back == parsed, "rendered and parsed again it is another text", back, parsed)
    problems = spans.find_problems(tagged)
    expect(all(0 <= each.offset <= len(tagged) for each in problems), "a problem outside the text", problems)
    wrong = [each for each in problems if each.kind not in ("near_tag", "empty_phrase")]
    if not wrong:
        opened = tagged.count(SPAN)
        expect(opened <= len(phrases), "a phrase is lost without a problem", opened, len(phrases))
    if re.fullmatch(spans.WELL_FORMED, tagged):
        expect(not problems, "well-formed, and a problem all the same", problems)
    return "read" if not problems else "refused"


TARGET = Target("spans", make, check, share=0.4, quick=1500)
