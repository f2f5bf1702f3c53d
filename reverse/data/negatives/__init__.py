"""One wrong phrase for a right answer: by rule and lexicon, or by a language model.

    >>> records, counts, failures = next(lexicon_negatives(records, seed=0))

`turns` takes records apart and pairs them, `rules` and `lexicon` say things wrongly, `filters` throws out
what is no negative, `asking` and `prompt` are for a model behind an OpenAI-compatible address
(`reverse.endpoints.client`).
"""

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any

from reverse.data.negatives.conversation_turns import (
    Negative,
    Outcome,
    Turn,
    make_negative,
    pair,
    pairs_in,
    turns_of,
)

__all__ = [
    "Negative", "Outcome", "Turn", "lexicon_negatives", "make_negative", "pair", "pairs_in", "turns_of",
]  # fmt: skip


def lexicon_negatives(
    records: Iterable[Mapping[str, Any]], seed: int = 0, pairs: Collection[int] = frozenset()
) -> Iterator[tuple[list[dict[str, Any]], Counter[str], list[dict[str, Any]]]]:
    """For each tagged record the records that come of it, what to count, and a line for each answer that
    got no negative. The result for a record depends on the record and the seed alone, and on whether it is
    one of `pairs` (see `pairs_in`)."""
    for record in records:
        turns = turns_of(record, pairs)
        yield pair(record, turns, [make_negative(turn, seed) for turn in turns], seed)
