"""One wrong phrase for a right answer: by rule and lexicon, or by a language model.

    >>> records, counts, failures = next(make_lexicon_negatives(records, seed=0))

`turns` takes records apart and pairs them, `rules` and `lexicon` say things wrongly, `filters` throws out
what is no negative, `asking` and `prompt` are for a model behind an OpenAI-compatible address
(`reverse.endpoints.client`).
"""

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any

from reverse.data.negatives.conversation_turns import (
    AnswerTurn,
    NegativeAnswer,
    NegativeOutcome,
    find_pairs,
    make_negative,
    make_record_pair,
    read_turns,
)

__all__ = [
    "AnswerTurn",
    "NegativeAnswer",
    "NegativeOutcome",
    "find_pairs",
    "make_lexicon_negatives",
    "make_negative",
    "make_record_pair",
    "read_turns",
]  # fmt: skip


def make_lexicon_negatives(
    records: Iterable[Mapping[str, Any]], seed: int = 0, pairs: Collection[int] = frozenset()
) -> Iterator[tuple[list[dict[str, Any]], Counter[str], list[dict[str, Any]]]]:
    """For each tagged record the records that come of it, what to count, and a line for each answer that
    got no negative. The result for a record depends on the record and the seed alone, and on whether it is
    one of `pairs` (see `find_pairs`)."""
    for record in records:
        turns = read_turns(record, pairs)
        yield make_record_pair(record, turns, [make_negative(turn, seed) for turn in turns], seed)
