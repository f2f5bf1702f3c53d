"""Replies of judges and endpoints: whatever a server sends becomes a reply or a counted failure.

Requests go through the openai client up to the transport, which is replaced: no socket is opened.
"""

from __future__ import annotations

import asyncio
import functools
import gzip
import itertools
import json
import zlib
from random import Random
from typing import Any

from reverse.data.negatives.negative_prompt import read_reply
from reverse.endpoints.client import ChatClient, Endpoint, UnansweredError
from reverse.endpoints.reply_cache import ReplyCache
from reverse.evaluation.benchmarks.haloquest import read_verdict
from reverse.evaluation.benchmarks.mmhal import read_rating
from reverse.evaluation.scoring.judge import find_object
from reverse.selftrain.curation.tasks.answer_task import read_verdict_reply
from reverse.selftrain.curation.tasks.rating_task import read_rating_reply
from reverse.selftrain.curation.tasks.rationale_task import find_steps
from reverse.selftrain.curation.tasks.task_parts import clean_reply
from tests.fuzz.mutating import ODD_TEXTS, dumps, encode, mutate_bytes, mutate_json, mutate_text
from tests.fuzz.running import Target, check_refusal, expect
from tests.fuzz.scratch import folder

SAID = (
    '{"rating": 4}',
    '{"score": 0.5}',
    '{"verdict": "correct"}',
    '{"verdict": "right"}',
    '{"quality": 3}',
    "We look.\nStep 1: I see a dog.\nStep 2: It is one.\nFinal Answer: 1",
    "1. I see a dog.\nAnswer: 1",
    '{"index": 1, "phrase": "a cat"}',
    '<think>{"rating": 1}</think>\n```json\n{"rating": 6}\n```',
    "no",
    '{"rating": 2} {"rating": 3}',
)
STATUS = (200, 200, 200, 200, 200, 200, 204, 301, 400, 401, 404, 408, 418, 429, 500, 503)
HEADERS = (
    ("content-type", "application/json"),
    ("content-type", "text/html; charset=utf-16"),
    ("content-type", "application/json; charset=klingon"),
    ("content-type", "text/plain; charset=\x00"),
    ("retry-after", "0"),
    ("retry-after", "nan"),
    ("retry-after", "inf"),
    ("retry-after", "-5"),
    ("retry-after", "Wed, 21 Oct 2015 07:28:00 GMT"),
    ("retry-after", "soon"),
    ("retry-after", "1e999"),
    ("retry-after", "Wed, 99 Oct 99999 07:28:00 GMT"),
    ("content-length", "99999999999"),
    ("location", "http://127.0.0.1:1/"),
    ("set-cookie", "a=b"),
)

Case = tuple[int, list[tuple[str, str]], bytes]


def make(rng: Random) -> Case | str:
    said = rng.choice(SAID)
    said = (
        mutate_text(rng, said, (*ODD_TEXTS, '{"a":', "[" * 3000, "{" * 500)) if rng.random() < 0.8 else said
    )
    if rng.random() < 0.3:
        return said
    content: Any = {
        "id": "x",
        "object": "chat.completion",
        "choices": [{"index": 0, "message": {"role": "assistant", "content": said}}],
        "usage": {"prompt_tokens": 12, "completion_tokens": 3, "total_tokens": 15},
    }
    if rng.random() < 0.7:
        content = mutate_json(rng, content)
    data = encode(rng, dumps(content, rng))
    if rng.random() < 0.3:
        data = mutate_bytes(rng, data, header=len(data))
    headers = [rng.choice(HEADERS) for _ in range(rng.choice((0, 1, 1, 2)))]
    draw = rng.random()
    if draw < 0.1:
        packed = gzip.compress(data, 1, mtime=0) if draw < 0.05 else zlib.compress(data)
        headers.append(("content-encoding", "gzip" if draw < 0.05 else "deflate"))
        data = mutate_bytes(rng, packed) if rng.random() < 0.3 else packed
    elif draw < 0.102:  # one that is small on the wire and large in memory
        headers.append(("content-encoding", "gzip"))
        data = _bomb()
    return rng.choice(STATUS), headers, data


@functools.cache
def _bomb() -> bytes:
    return gzip.compress(b" " * (48 << 20), 1, mtime=0)


class _Question:
    """One client for all cases; the transport answers with the case at hand."""

    def __init__(self) -> None:
        import httpx2

        self.case: Case = (200, [], b"")
        self.runner = asyncio.Runner()
        self.numbers = itertools.count()

        class Transport(httpx2.AsyncBaseTransport):
            async def handle_async_request(transport, request: httpx2.Request) -> httpx2.Response:
                status, headers, data = self.case
                await request.aread()
                raw = [(name.encode(), value.encode("latin-1", "replace")) for name, value in headers]
                return httpx2.Response(status, headers=raw, stream=_Bytes(data))

        class _Bytes(httpx2.AsyncByteStream):
            def __init__(stream, data: bytes) -> None:
                stream.data = data

            async def __aiter__(stream):
                for at in range(0, len(stream.data), 65536):
                    yield stream.data[at : at + 65536]

        self.transport = Transport()

    def ask(self, case: Case) -> Any:
        self.case = case
        return self.runner.run(self._ask())

    async def _ask(self) -> Any:
        client = self.client
        return await client.ask([{"role": "user", "content": f"case {next(self.numbers)}"}])

    @functools.cached_property
    def client(self) -> ChatClient:
        """The library's client with the transport below it: whatever it does to a response, it does here."""
        from reverse.endpoints import bounded_http

        original, transport = bounded_http.BoundedHTTPClient, self.transport

        class Offline(original):  # type: ignore[valid-type,misc]
            def __init__(client, *bounds: Any) -> None:
                super().__init__(*bounds, transport=transport, trust_env=False)

        endpoint = Endpoint("http://127.0.0.1:9/v1", "m", "key", attempts=1, backoff=0.0)
        bounded_http.BoundedHTTPClient = Offline  # type: ignore[misc]
        try:
            path = folder() / "replies.jsonl"
            return ChatClient(endpoint, ReplyCache(path), concurrency=2)
        finally:
            bounded_http.BoundedHTTPClient = original  # type: ignore[misc]


@functools.cache
def _asking() -> _Question:
    return _Question()


def check(case: Case | str) -> str:
    if isinstance(case, str):
        return check_text(case)
    try:
        reply = _asking().ask(case)
    except UnansweredError as error:
        expect(0 < len(error.detail) < 1000, "a failure without a short reason", error.detail[:200])
        return "refused"
    except ValueError as error:  # no request can succeed: key or address
        expect(case[0] in (401, 403, 404), "a reply ends the whole run", case[0], error)
        return check_refusal(error)
    expect(case[0] == 200, "a reply of a failed request", case[0])
    expect(type(reply.text) is str, "no text", reply)
    expect(
        all(type(n) is int and 0 <= n < 2**63 for n in (reply.tokens_in, reply.tokens_out)), "tokens", reply
    )
    check_text(reply.text)
    return "read"


def check_text(text: str) -> str:
    """What readers make of the words: a verdict, or a ValueError with the reason."""
    outcome = "refused"
    try:
        found = find_object(text)
    except ValueError as error:
        check_refusal(error)
    else:
        outcome = "read"
        expect(isinstance(found, dict), "no object", found)
        if (alone := _json(text)) is not None:
            expect(repr(found) == repr(alone), "another object than the text itself", found, alone)
        for read in (read_rating, read_verdict):
            try:
                value = read(found)
            except ValueError as error:
                check_refusal(error)
            else:
                expect(isinstance(value, float) and 0 <= value <= 6, "a verdict out of range", value)
    try:
        index, phrase = read_reply(text, [1, 2])
    except ValueError as error:
        check_refusal(error)
    else:
        expect(index in (1, 2) and phrase, "no phrase", index, phrase)
    for curated in (read_verdict_reply, read_rating_reply, read_tsst_steps, read_r3v_steps, clean_reply):
        try:
            expect(curated(text), "nothing was read", text)
        except ValueError as error:
            check_refusal(error)
    return outcome


def read_tsst_steps(text: str) -> Any:
    return find_steps(text, "tsst")


def read_r3v_steps(text: str) -> Any:
    return find_steps(text, "r3v")


def _json(text: str) -> Any:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) and "<think>" not in text else None


TARGET = Target("replies", make, check, share=0.2, quick=500, shrinks=False)
