"""One wrong phrase for a right answer: by rules and a lexicon, or by a language model.

    >>> records, counts, failures = next(make_lexicon_negatives(records, seed=0))

`conversation_turns` splits records into answers and pairs them with their negatives; `rule_negatives` writes
wrong phrases; `negative_filters` rejects those that are not negatives; `llm_negatives` and `negative_prompt`
use a language model behind an OpenAI-compatible address (`reverse.endpoints.client`).
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
    "AnswerTurn", "NegativeAnswer", "NegativeOutcome", "find_pairs", "make_lexicon_negatives",
    "make_negative", "make_record_pair", "read_turns",
]  # fmt: skip


def make_lexicon_negatives(
    records: Iterable[Mapping[str, Any]], seed: int = 0, pairs: Collection[int] = frozenset()
) -> Iterator[tuple[list[dict[str, Any]], Counter[str], list[dict[str, Any]]]]:
    """Yield for each tagged record the records made from it, its counts, and a line for each answer without a
    negative.

    The result for a record depends only on the record, the seed, and whether it is one of `pairs` (see
    `find_pairs`).
    """
    for record in records:
        turns = read_turns(record, pairs)
        yield make_record_pair(record, turns, [make_negative(turn, seed) for turn in turns], seed)
