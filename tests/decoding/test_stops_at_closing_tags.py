"""Stops that fell inside a phrase are told at its closing tag, in time that grows with the phrase."""

from random import Random

import torch

from reverse.decoding.text.stopping import Stops
from reverse.tokens.spans import TokenIds

TAGS = TokenIds(1, 2, 3)
LETTERS = {10: "a", 11: "b", 12: "c"}


def make_stops(decode, strings=("ab",)):
    return Stops(torch.tensor([0]), decode, TAGS, strings=strings)


def decode(ids):
    return "".join(LETTERS.get(token, "") for token in ids)


def test_segments_stop_where_whole_answers_do():
    """A segment remembers where its phrase opens; a wrong place would lose a stop, or invent one."""
    rng = Random(0)
    for _ in range(400):
        stops = make_stops(decode, rng.choice([("ab",), ("abc", "cc"), ("aaa",)]))
        prefix = rng.choices([1, 2, 10, 11, 12], k=rng.randrange(4))
        asked = stops.after(prefix)
        segment: list[int] = []
        for _ in range(12):
            segment.append(rng.choice([1, 2, 3, 10, 11, 12, 10, 11]))
            told = asked(segment)
            # As a whole, a closing tag without a phrase asks about all text once more, the prefix's too.
            inside = [token for token in [*prefix, *segment][:-1] if token in TAGS][-1:] == [TAGS.span]
            if inside or segment[-1] not in TAGS.closing:
                assert told == stops([*prefix, *segment]), (prefix, segment)
            if told:
                break


def test_closing_tags_read_no_more_than_their_phrase():
    """32 kB of closing tags took eight seconds: each read the whole answer again."""
    decoded = 0

    def count(ids):
        nonlocal decoded
        decoded += len(ids)
        return decode(ids)

    asked = make_stops(count).after([])
    answer: list[int] = []
    for token in [10, 1, 12, 2, 3, 12, 3] * 60:
        answer.append(token)
        assert not asked(answer)
    assert decoded < 60 * len(answer)
