"""Negatives by a language model: which answers it is asked about, and what becomes of its replies.

Yes and no, numbers and letters go by rule, as without a model. For any other answer up to six phrases,
drawn by the seed, are offered; the model picks one and says it wrongly. A reply that is no valid JSON, or a
negative that is trivial, is handed back with the reason, twice at most; then the answer goes without a
negative, and says so.

    async for records, counts, failures in request_negatives(records, client, seed=0): ...
"""

from __future__ import annotations

import asyncio
from collections import Counter, deque
from collections.abc import AsyncIterator, Collection, Iterable, Mapping
from typing import Any

from reverse.data.negatives.conversation_turns import (
    AnswerTurn,
    NegativeOutcome,
    make_negative,
    make_record_pair,
    order_phrases,
    read_turns,
    write_negative,
)
from reverse.data.negatives.negative_filters import find_rejection, repeats_question
from reverse.data.negatives.negative_prompt import (
    MOST_PHRASES,
    MOST_TEXT,
    build_messages,
    build_retry,
    read_reply,
)
from reverse.data.records.schema import ANSWER_TYPE
from reverse.data.tagging.lexicon import load_lexicon
from reverse.endpoints.client import Client, Unanswered
from reverse.errors import DataError

REPLIES = 3  # for one answer, the first included
IN_A_ROW = 20  # answers without a reply, one after the other: the server is gone

Made = tuple[list[dict[str, Any]], Counter[str], list[dict[str, Any]]]


class ServerGone(DataError):
    """The model has stopped answering; what was made before is kept."""


async def request_negatives(
    records: Iterable[Mapping[str, Any]],
    client: Client,
    seed: int = 0,
    concurrency: int = 16,
    in_a_row: int = IN_A_ROW,
    pairs: Collection[int] = frozenset(),
) -> AsyncIterator[Made]:
    """What comes of each record, in order; at most 4 × `concurrency` records are in hand at a time.

    Answers that got no reply count as failures; what follows the first of them is held back until another
    answer gets a reply, so that a server which went away costs nothing. Records of `pairs` (see `find_pairs`)
    are passed on as they are.

    Raises ServerGone after `in_a_row` of them without a reply between.
    """
    source = iter(records)
    running: deque[asyncio.Task[Made]] = deque()
    held: list[Made] = []
    silent = 0
    try:
        while True:
            while len(running) < 4 * concurrency and (record := next(source, None)) is not None:
                running.append(asyncio.ensure_future(_of_record(record, client, seed, pairs)))
            if not running:
                break
            made = await running.popleft()
            unreachable = made[1]["without_negative.unreachable"]
            silent = silent + unreachable if unreachable else (0 if made[1]["replies"] else silent)
            if silent >= in_a_row:
                detail = next(line["detail"] for line in made[2] if line["reason"] == "unreachable")
                raise ServerGone(
                    f"{silent} answers in a row got no reply from {client.endpoint.shown_url} ({detail}): "
                    "see that it runs and start again; what was made so far is kept"
                )
            held.append(made)
            if silent == 0:
                for ready in held:
                    yield ready
                held.clear()
        for ready in held:
            yield ready
    finally:
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)


async def _of_record(record: Mapping[str, Any], client: Client, seed: int, pairs: Collection[int]) -> Made:
    turns = read_turns(record, pairs)
    spent: Counter[str] = Counter()
    outcomes = await asyncio.gather(*(_of_turn(turn, client, seed, spent) for turn in turns))
    records, counts, failures = make_record_pair(record, turns, outcomes, seed)
    counts.update(spent)
    return records, counts, failures


async def _of_turn(turn: AnswerTurn, client: Client, seed: int, spent: Counter[str]) -> NegativeOutcome:
    if turn.problem or turn.kind != ANSWER_TYPE:
        return make_negative(turn, seed)
    rng = turn.rng(seed, "offered")
    lexicon = load_lexicon()
    phrases = turn.answer.phrases
    shown = [at for at in order_phrases(turn, rng) if phrases[at].end <= MOST_TEXT]
    telling = [at for at in shown if not repeats_question(phrases[at].text, turn.question, lexicon)]
    offered = sorted((telling or shown)[:MOST_PHRASES])
    if not offered:
        return NegativeOutcome(None, "nothing_to_swap", Counter())
    chat = build_messages(turn, offered)
    refused: Counter[str] = Counter()
    reason = detail = ""
    for _ in range(REPLIES):
        try:
            reply = await client.ask(chat)
        except Unanswered as error:
            return NegativeOutcome(None, error.kind, refused, error.detail)
        spent.update(replies=1, tokens_in=reply.tokens_in, tokens_out=reply.tokens_out)
        try:
            at, new = read_reply(reply.text, offered)
        except ValueError as error:
            reason, detail, why = "garbage", reply.text[:200], str(error)
            spent["garbage"] += 1
        else:
            phrase = phrases[at]
            trifle = find_rejection(phrase.text, new, turn.context(phrase), lexicon)
            if trifle is None:
                return NegativeOutcome(write_negative(turn.answer, at, new), None, refused)
            refused[trifle] += 1
            reason, detail, why = "trivial", f"{trifle}: {new}"[:200], _WHY[trifle]
        chat = [*chat, *build_retry(reply.text, why)]
    return NegativeOutcome(None, reason, refused, detail)


_WHY = {
    "empty": "the phrase is empty or holds a tag",
    "same": "the phrase is unchanged",
    "case_only": "only upper and lower case differ",
    "article_or_pronoun": "only an article or a pronoun differs",
    "plural_only": "only singular and plural differ",
    "synonym": "it may be true of the same thing",
    "part_of": "it is the same phrase made longer or shorter",
    "repeated": "it says a word twice",
    "in_question": "the question says it already",
    "in_answer": "the answer says elsewhere that it is there",
}
