"""A language model as a judge, behind any OpenAI-compatible address, asked politely and never twice.

    REVERSE_JUDGE_BASE_URL=http://127.0.0.1:8000/v1  REVERSE_JUDGE_MODEL=…  REVERSE_JUDGE_KEY=…

(REVERSE_LLM_… where they are not set.) Each verdict is one JSON object. A reply that is none is handed back
with the reason, twice at most; requests that fail are repeated with growing waits. What then has no verdict
is counted as failed and stays in every denominator. Replies are cached by all that was asked (model,
settings, seed, messages): a run that is killed and started again asks only for what it lacks.

The judge sees the question, the reference and the answer's text, nothing of how the answer came about.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from reverse.data.llm import Cache, Client, Endpoint, Unanswered

__all__ = ["Judge", "Verdicts", "chat", "object_in"]

REPLIES = 3  # for one answer, the first included
IN_A_ROW = 20  # answers without a reply, one after the other: the server is gone
Read = Callable[[Mapping[str, Any]], float]  # the verdict of a reply's object; ValueError says what is wrong


@dataclass(frozen=True)
class Verdicts:
    """`values`: one an answer, None where there is none; `failures`: answer to why; `spent`: what it cost."""

    values: list[float | None]
    failures: dict[int, str]
    spent: Mapping[str, int]


@dataclass(frozen=True)
class Judge:
    """Who judges and how. `cache` is a file of replies; prices are money a million tokens."""

    endpoint: Endpoint
    cache: Path
    seed: int = 0
    concurrency: int = 8
    max_tokens: int = 400
    price_in: float = 0.0
    price_out: float = 0.0
    extra: Mapping[str, Any] = field(default_factory=dict)  # further fields of the request

    @classmethod
    def from_environment(cls, cache: str | Path, timeout: float = 120.0, **settings: Any) -> Judge:
        """The judge that REVERSE_JUDGE_… or REVERSE_LLM_… name. Raises ValueError naming what is not set."""
        endpoint = Endpoint.from_environment("REVERSE_JUDGE", "", timeout=timeout)
        return cls(endpoint, Path(cache), **settings)

    def ask(
        self,
        chats: Sequence[Sequence[Mapping[str, str]]],
        read: Read,
        progress: Callable[[int, int], None] | None = None,
    ) -> Verdicts:
        """A verdict on each chat, in order. Raises ValueError where no request can succeed (key, address),
        and where the server has stopped answering; replies that came before are in the cache."""
        return asyncio.run(self._ask(chats, read, progress))

    async def _ask(
        self,
        chats: Sequence[Sequence[Mapping[str, str]]],
        read: Read,
        progress: Callable[[int, int], None] | None,
    ) -> Verdicts:
        settings = {"temperature": 0, "max_tokens": self.max_tokens, "seed": self.seed, **self.extra}
        self.cache.parent.mkdir(parents=True, exist_ok=True)
        replies = Cache(self.cache)
        client = Client(self.endpoint, replies, self.concurrency, settings)
        spent: Counter[str] = Counter()
        values: list[float | None] = [None] * len(chats)
        failures: dict[int, str] = {}
        silent = 0
        free = asyncio.Semaphore(2 * self.concurrency)

        async def one(number: int) -> tuple[int, float | None, str]:
            async with free:
                return number, *await _verdict(client, chats[number], read, spent)

        tasks = [asyncio.ensure_future(one(number)) for number in range(len(chats))]
        try:
            for done, task in enumerate(asyncio.as_completed(tasks), 1):
                number, values[number], why = await task
                if why:
                    failures[number] = why
                silent = silent + 1 if why.startswith("unreachable") else 0
                if silent == min(IN_A_ROW, len(chats)):
                    raise ValueError(
                        f"{silent} answers in a row got no reply from {self.endpoint.shown_url} ({why}): "
                        f"see that it "
                        "runs and start again; verdicts that were given are kept"
                    )
                if progress is not None:
                    progress(done, len(chats))
        finally:
            for pending in tasks:
                pending.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await client.aclose()
            replies.close()
        spent["asked"] = client.asked
        spent["retries"] = sum(client.retries.values())
        return Verdicts(values, dict(sorted(failures.items())), dict(spent))

    def notes(self, verdicts: Verdicts, prompt: str) -> dict[str, Any]:
        """What a report says of the judge: who, with what prompt, failures by reason, cost."""
        money = (
            verdicts.spent.get("tokens_in", 0) * self.price_in
            + verdicts.spent.get("tokens_out", 0) * self.price_out
        ) / 1e6
        return {
            "judge": self.endpoint.model,
            "address": self.endpoint.shown_url,
            "prompt": prompt,
            "seed": self.seed,
            "failed": len(verdicts.failures),
            "failures": dict(Counter(why.partition(":")[0] for why in verdicts.failures.values())),
            "cost": {**verdicts.spent} | ({"money": round(money, 4)} if money else {}),
        }


async def _verdict(
    client: Client, chat: Sequence[Mapping[str, str]], read: Read, spent: Counter[str]
) -> tuple[float | None, str]:
    """The verdict, or None and why."""
    why = ""
    messages = list(chat)
    for _ in range(REPLIES):
        try:
            reply = await client.ask(messages)
        except Unanswered as error:
            return None, f"{error.kind}: {error.detail}"
        spent.update(
            replies=1, cached=int(reply.cached), tokens_in=reply.tokens_in, tokens_out=reply.tokens_out
        )
        try:
            return read(object_in(reply.text)), ""
        except ValueError as error:
            why = str(error)
            spent["garbage"] += 1
        messages += [
            {"role": "assistant", "content": reply.text[:2000]},
            {"role": "user", "content": f"That cannot be used: {why}. Answer with the JSON object alone."},
        ]
    return None, f"garbage: {why}"


def object_in(text: str) -> dict[str, Any]:
    """The JSON object of a reply, with or without words or a code fence around it, thoughts taken off.

    Raises ValueError where there is none, or more than one that says something else.
    """
    text = re.sub(r"<think>.*?</think>", "", text, flags=re.DOTALL)
    decoder = json.JSONDecoder()
    found: list[dict[str, Any]] = []
    at = text.find("{")
    while at >= 0:
        try:
            value, end = decoder.raw_decode(text, at)
        except (json.JSONDecodeError, RecursionError):
            end = at + 1
        else:
            if isinstance(value, dict):
                found.append(value)
        at = text.find("{", end)
    if not found:
        raise ValueError("there is no JSON object in the reply")
    if any(other != found[0] for other in found[1:]):
        raise ValueError("there are several JSON objects in the reply")
    return found[0]


def chat(system: str, fields: Mapping[str, Any]) -> list[dict[str, str]]:
    """What a judge is shown of one answer: its task, and the fields as JSON."""
    return [
        {"role": "system", "content": system},
        {"role": "user", "content": json.dumps(fields, ensure_ascii=False, indent=1)},
    ]
