"""Use a language model at an OpenAI-compatible address as a judge, with bounded retries and a cache of
replies.

    REVERSE_JUDGE_BASE_URL=http://127.0.0.1:8000/v1  REVERSE_JUDGE_MODEL=…  REVERSE_JUDGE_KEY=…

(REVERSE_LLM_… where they are not set.) Each verdict is one JSON object. Any other reply is returned to the
judge with the reason, twice at most; requests that fail are repeated with growing waits. What then has no
verdict is counted as failed and stays in every denominator. Replies with a verdict are cached by the request
(model, settings, seed, messages) and its address, so a run that is killed and started again asks only for
missing verdicts. A run in which more than a tenth of the answers got no verdict is not reported, see
`refuse_without_verdicts`.

The judge sees the question, the reference and the answer's text, not how the answer was made.
"""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from reverse.endpoints.client import ChatClient, Endpoint, check_installed
from reverse.endpoints.repeated_asking import MAX_SILENT, SilenceWatch, ask_until_usable
from reverse.endpoints.reply_cache import ReplyCache
from reverse.errors import DataError
from reverse.evaluation.reading.markup import LONGEST, remove_reasoning
from reverse.evaluation.stats.scored_tables import Table
from reverse.files.text_reading import MAX_DEPTH, is_deeper

__all__ = [
    "MOST_WITHOUT_VERDICT",
    "Judge",
    "Verdicts",
    "find_object",
    "make_chat",
    "refuse_without_verdicts",
    "require_judge",
]

MOST_WITHOUT_VERDICT = 0.1  # share of the answers: with more, a score says little of the model
MOST_OBJECTS = 50  # places of a reply where a JSON object may begin
Read = Callable[[Mapping[str, Any]], float]  # the verdict of a reply's object; ValueError says what is wrong


@dataclass(frozen=True)
class Verdicts:
    """`values`: one per answer, None without a verdict; `failures`: reasons by answer; `spent`: costs."""

    values: list[float | None]
    failures: dict[int, str]
    spent: Mapping[str, int]


@dataclass(frozen=True)
class Judge:
    """The model that judges, and its settings. `cache` is a file of replies; prices are for a million tokens.

    `fresh` asks for every verdict again, even if the cache has one, and keeps the new ones.
    """

    endpoint: Endpoint
    cache: Path
    seed: int = 0
    concurrency: int = 8
    max_tokens: int = 400
    price_in: float = 0.0
    price_out: float = 0.0
    extra: Mapping[str, Any] = field(default_factory=dict)  # further fields of the request
    fresh: bool = False

    @classmethod
    def from_environment(cls, cache: str | Path, timeout: float = 120.0, **settings: Any) -> Judge:
        """Make the judge that REVERSE_JUDGE_… or REVERSE_LLM_… name.

        Raises an error naming what is not set.
        """
        endpoint = Endpoint.from_environment("REVERSE_JUDGE", "", timeout=timeout)
        return cls(endpoint, Path(cache), **settings)

    def check(self) -> None:
        """Raise MissingPackageError if the client for asking is not installed."""
        check_installed("eval")

    def ask(
        self,
        chats: Sequence[Sequence[Mapping[str, str]]],
        read: Read,
        progress: Callable[[int, int], None] | None = None,
    ) -> Verdicts:
        """Return a verdict on each chat, in order.

        Raises DataError if no request can succeed (key, address) or the server has stopped answering. Replies
        that came before are in the cache.
        """
        return asyncio.run(self._ask(chats, read, progress))

    async def _ask(
        self,
        chats: Sequence[Sequence[Mapping[str, str]]],
        read: Read,
        progress: Callable[[int, int], None] | None,
    ) -> Verdicts:
        settings = {"temperature": 0, "max_tokens": self.max_tokens, "seed": self.seed, **self.extra}
        self.cache.parent.mkdir(parents=True, exist_ok=True)
        replies = ReplyCache(self.cache)
        # A model of the same name at another address is another judge.
        client = ChatClient(
            self.endpoint,
            replies,
            self.concurrency,
            settings,
            {"address": self.endpoint.base_url},
            self.fresh,
        )
        spent: Counter[str] = Counter()
        values: list[float | None] = [None] * len(chats)
        failures: dict[int, str] = {}
        watch = SilenceWatch(self.endpoint.shown_url, min(MAX_SILENT, len(chats)))
        free = asyncio.Semaphore(2 * self.concurrency)

        async def one(number: int) -> tuple[int, float | None, str]:
            async with free:
                found = await ask_until_usable(
                    client, chats[number], lambda text: read(find_object(text)), spent
                )
                return number, found.value, found.trouble

        tasks = [asyncio.ensure_future(one(number)) for number in range(len(chats))]
        try:
            for done, task in enumerate(asyncio.as_completed(tasks), 1):
                number, values[number], why = await task
                if why:
                    failures[number] = why
                watch.add(int(why.startswith("unreachable")), 1, why)
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
        """Return the description of the judge for reports: model, prompt, failures by reason, cost."""
        money = (
            verdicts.spent.get("tokens_in", 0) * self.price_in
            + verdicts.spent.get("tokens_out", 0) * self.price_out
        ) / 1e6
        return {
            "judge": self.endpoint.model,
            "address": self.endpoint.shown_url,
            "cache": str(self.cache),
            "prompt": prompt,
            "seed": self.seed,
            "failed": len(verdicts.failures),
            "failures": dict(Counter(why.partition(":")[0] for why in verdicts.failures.values())),
            "first_failure": next((f"answer {k + 1}: {why}" for k, why in verdicts.failures.items()), ""),
            "cost": {**verdicts.spent} | ({"money": round(money, 4)} if money else {}),
        }


def refuse_without_verdicts(table: Table) -> None:
    """Raise DataError if too many answers of a scored table have no verdict of the judge."""
    failed = table.columns.get("failed")
    if failed is None or not len(failed) or failed.mean() <= MOST_WITHOUT_VERDICT:
        return
    reasons = ", ".join(f"{many} {why}" for why, many in table.notes.get("failures", {}).items())
    if first := table.notes.get("first_failure"):
        reasons += f"; {first}"
    raise DataError(
        f"{int(failed.sum())} of {len(failed)} answers got no verdict from {table.notes.get('judge')} at "
        f"{table.notes.get('address')} ({reasons}): the figures are those of a judge that failed. Verdicts "
        f"that were given are kept in {table.notes.get('cache')}: `reverse score` asks for the others, "
        "with --fresh for all of them again"
    )


def find_object(text: str) -> dict[str, Any]:
    """Find the JSON object of a reply, which may have reasoning, words or a code fence around it.

    Raises DataError if there is none or several that differ, and for a reply that is too long or holds more
    braces than can be searched in linear time.
    """
    text = remove_reasoning(text)
    if len(text) > LONGEST:
        raise DataError(f"the reply has {len(text):,} characters: at most {LONGEST:,} are read")
    decoder = json.JSONDecoder(parse_constant=_refuse_constant)
    found: list[dict[str, Any]] = []
    tried = 0
    at = text.find("{")
    while at >= 0:
        tried += 1
        if tried > MOST_OBJECTS:
            raise DataError(f"the reply has more than {MOST_OBJECTS} places where an object may begin")
        try:
            value, end = decoder.raw_decode(text, at)
        except (ValueError, RecursionError):
            end = at + 1
        else:
            found.append(value)
        at = text.find("{", end)
    if any(is_deeper(each, MAX_DEPTH) for each in found):
        raise DataError("the JSON of the reply is nested too deeply")
    if not found:
        raise DataError("there is no JSON object in the reply")
    if any(other != found[0] for other in found[1:]):
        raise DataError("there are several JSON objects in the reply")
    return found[0]


def _refuse_constant(name: str) -> Any:
    raise DataError(f"{name} is not JSON")


def make_chat(system: str, fields: Mapping[str, Any]) -> list[dict[str, str]]:
    """Make the chat that a judge gets about one answer: its task, and the fields as JSON."""
    return [
        {"role": "system", "content": system},
        {"role": "user", "content": json.dumps(fields, ensure_ascii=False, indent=1)},
    ]


def require_judge(judge: Judge | None, benchmark: str) -> Judge:
    """Return the judge. Raises DataError if none is given."""
    if judge is None:
        raise DataError(f"{benchmark} is scored by a judge: give one, such as Judge.from_environment(cache)")
    return judge
