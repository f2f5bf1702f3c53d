"""Negatives by a language model.

Yes and no, numbers and letters are handled by rules, as without a model. For any other answer up to six
phrases, drawn by the seed, are offered; the model picks one and makes it wrong. A reply that is not valid
JSON, or whose negative is rejected, is sent back with the reason, twice at most; after that the answer gets
no negative, and the failures say so.

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
    build_negative,
    make_negative,
    make_record_pair,
    order_phrases,
    read_turns,
)
from reverse.data.negatives.negative_filters import REASONS, find_rejection, repeats_question
from reverse.data.negatives.negative_prompt import (
    MAX_OFFERED,
    MAX_SHOWN,
    build_messages,
    build_retry,
    read_reply,
)
from reverse.data.records.schema import ANSWER_TYPE
from reverse.endpoints.client import ChatClient, UnansweredError
from reverse.errors import DataError

MAX_REPLIES = 3  # for one answer, the first included
MAX_SILENT = 20  # answers in a row without a reply before the server counts as gone

RecordNegatives = tuple[list[dict[str, Any]], Counter[str], list[dict[str, Any]]]


class ServerGone(DataError):
    """The model has stopped answering; what was made before is kept."""


async def request_negatives(
    records: Iterable[Mapping[str, Any]],
    client: ChatClient,
    seed: int = 0,
    concurrency: int = 16,
    max_silent: int = MAX_SILENT,
    pairs: Collection[int] = frozenset(),
) -> AsyncIterator[RecordNegatives]:
    """What is made of each record, in order; at most 4 × `concurrency` records are processed at a time.

    Answers that got no reply count as failures. Everything from the first of them on is held back until
    another answer gets a reply, so that nothing is lost if the server is gone. Records of `pairs` (see
    `find_pairs`) are passed on as they are.

    Raises ServerGone after `max_silent` answers in a row without a reply.
    """
    source = iter(records)
    running: deque[asyncio.Task[RecordNegatives]] = deque()
    held: list[RecordNegatives] = []
    silent = 0
    try:
        while True:
            while len(running) < 4 * concurrency and (record := next(source, None)) is not None:
                running.append(asyncio.ensure_future(_process_record(record, client, seed, pairs)))
            if not running:
                break
            made = await running.popleft()
            unreachable = made[1]["without_negative.unreachable"]
            silent = silent + unreachable if unreachable else (0 if made[1]["replies"] else silent)
            if silent >= max_silent:
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


async def _process_record(
    record: Mapping[str, Any], client: ChatClient, seed: int, pairs: Collection[int]
) -> RecordNegatives:
    turns = read_turns(record, pairs)
    usage: Counter[str] = Counter()
    outcomes = await asyncio.gather(*(_process_turn(turn, client, seed, usage) for turn in turns))
    records, counts, failures = make_record_pair(record, turns, outcomes, seed)
    counts.update(usage)
    return records, counts, failures


async def _process_turn(
    turn: AnswerTurn, client: ChatClient, seed: int, usage: Counter[str]
) -> NegativeOutcome:
    if turn.problem or turn.kind != ANSWER_TYPE:
        return make_negative(turn, seed)
    phrases = turn.answer.phrases
    shown = [at for at in order_phrases(turn, turn.make_rng(seed, "offered")) if phrases[at].end <= MAX_SHOWN]
    claims = [at for at in shown if not repeats_question(phrases[at].text, turn.question)]
    offered = sorted((claims or shown)[:MAX_OFFERED])
    if not offered:
        return NegativeOutcome(None, "nothing_to_swap", Counter())
    chat = build_messages(turn, offered)
    rejected: Counter[str] = Counter()
    reason = detail = ""
    for _ in range(MAX_REPLIES):
        try:
            reply = await client.ask(chat)
        except UnansweredError as error:
            return NegativeOutcome(None, error.kind, rejected, error.detail)
        usage.update(replies=1, tokens_in=reply.tokens_in, tokens_out=reply.tokens_out)
        try:
            at, new = read_reply(reply.text, offered)
        except ValueError as error:
            reason, detail, remedy = "garbage", reply.text[:200], str(error)
            usage["garbage"] += 1
        else:
            rejection = find_rejection(phrases[at].text, new, turn.make_context(phrases[at]))
            if rejection is None:
                return NegativeOutcome(build_negative(turn.answer, at, new), None, rejected)
            rejected[rejection] += 1
            reason, detail, remedy = "trivial", f"{rejection}: {new}"[:200], REASONS[rejection]
        chat = [*chat, *build_retry(reply.text, remedy)]
    return NegativeOutcome(None, reason, rejected, detail)
