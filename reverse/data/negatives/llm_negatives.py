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
    NegativeAnswer,
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
    read_reply,
)
from reverse.data.records.schema import ANSWER_TYPE
from reverse.endpoints.client import ChatClient
from reverse.endpoints.repeated_asking import MAX_SILENT, SilenceWatch, ask_until_usable
from reverse.errors import DataError

RecordNegatives = tuple[list[dict[str, Any]], Counter[str], list[dict[str, Any]]]


async def request_negatives(
    records: Iterable[Mapping[str, Any]],
    client: ChatClient,
    seed: int = 0,
    concurrency: int = 16,
    max_silent: int = MAX_SILENT,
    pairs: Collection[int] = frozenset(),
) -> AsyncIterator[RecordNegatives]:
    """Yield what is made from each record, in order; at most 4 × `concurrency` records are processed at a
    time.

    Answers that got no reply count as failures. Everything from the first of them on is held back until
    another answer gets a reply, so that no answer is lost if the server has stopped. Records of `pairs` (see
    `find_pairs`) are passed on as they are.

    Raises `ServerGone` after `max_silent` answers in a row without a reply.
    """
    source = iter(records)
    running: deque[asyncio.Task[RecordNegatives]] = deque()
    held: list[RecordNegatives] = []
    watch = SilenceWatch(client.endpoint.shown_url, max_silent)
    try:
        while True:
            while len(running) < 4 * concurrency and (record := next(source, None)) is not None:
                running.append(asyncio.ensure_future(_process_record(record, client, seed, pairs)))
            if not running:
                break
            made = await running.popleft()
            unreachable = made[1]["without_negative.unreachable"]
            detail = next((line["detail"] for line in made[2] if line["reason"] == "unreachable"), "")
            watch.add(unreachable, made[1]["replies"], detail)
            held.append(made)
            if watch.silent == 0:
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
    rejected: Counter[str] = Counter()
    reason = detail = ""

    def read(text: str) -> NegativeAnswer:
        nonlocal reason, detail
        try:
            at, new = read_reply(text, offered)
        except ValueError:
            reason, detail = "garbage", text[:200]
            raise
        rejection = find_rejection(phrases[at].text, new, turn.make_context(phrases[at]))
        if rejection is not None:
            rejected[rejection] += 1
            reason, detail = "trivial", f"{rejection}: {new}"[:200]
            raise DataError(REASONS[rejection])
        return build_negative(turn.answer, at, new)

    own: Counter[str] = Counter()
    made = await ask_until_usable(client, build_messages(turn, offered), read, own, keeps_all=True)
    del own["cached"]  # a second run counts as the first
    own["garbage"] -= sum(rejected.values())
    usage.update(+own)
    if made.value is not None:
        return NegativeOutcome(made.value, None, rejected)
    if made.kind != "garbage":
        reason, detail = made.kind, made.detail
    return NegativeOutcome(None, reason, rejected, detail)
