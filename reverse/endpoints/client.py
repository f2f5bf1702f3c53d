"""A model behind an OpenAI-compatible address, asked politely and never twice.

    REVERSE_LLM_BASE_URL=http://127.0.0.1:8000/v1  REVERSE_LLM_MODEL=qwen3  REVERSE_LLM_KEY=…

Every reply is appended to a cache (JSON lines) and flushed before it is used, under the hash of all that
was asked (model, settings, messages): a run that is killed and started again asks only what had not been
answered. The cache keeps the tokens of every reply, so that the cost of a pass survives with it. Its index
takes about 150 MB a million replies; the replies themselves stay on disk.

No reply ends a run. A reply is bounded in bytes (`reverse.endpoints.bounded_replies`), an attempt in total
time
(`Endpoint.timeout`); whatever is wrong with one is tried again and at last counted as a failure.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import random
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

from reverse.endpoints.bounded_replies import BadReply, plain_line, read_body, read_completion
from reverse.errors import DataError, MissingPackageError, RequestTypeError
from reverse.files.file_lock import output_lock
from reverse.files.text_reading import replace_surrogates

BASE_URL, MODEL, KEY = "REVERSE_LLM_BASE_URL", "REVERSE_LLM_MODEL", "REVERSE_LLM_KEY"
SETTINGS: Mapping[str, Any] = {"temperature": 0, "max_tokens": 256}
LONGEST_WAIT = 60.0  # seconds between two attempts
ERROR_BYTES = 4096  # that are read of a reply which is an error
DENIED = 20  # refusals of the key or the address, one after the other: they are wrong now


@dataclass(frozen=True)
class Endpoint:
    """Where to ask and how: `attempts` of one request, `timeout` in seconds of each from start to the last
    byte of its reply, first wait `backoff`.

    Raises ValueError for a key that no HTTP header can hold.
    """

    base_url: str
    model: str
    key: str | None = None
    timeout: float = 120.0
    attempts: int = 6
    backoff: float = 1.0
    names: tuple[str, ...] = (BASE_URL, MODEL, KEY)  # of the variables it came from, for errors

    def __post_init__(self) -> None:
        place = next((i for i, c in enumerate(self.key or "", 1) if not "!" <= c <= "~"), None)
        if place is not None:  # the key itself is not shown
            raise DataError(
                f"{self.names[2]} has a character at place {place} of {len(self.key or '')} that no HTTP "
                "header can hold (a space, a line end, or none of ASCII): copy the key anew"
            )

    @classmethod
    def from_environment(
        cls, prefix: str = "REVERSE_LLM", otherwise: str = "; or use --by lexicon", **settings: Any
    ) -> Endpoint:
        """Address, model and key from the environment; those of another `prefix` fall back to REVERSE_LLM_….

        Raises ValueError naming what is missing; `otherwise` ends its sentence.
        """
        names = tuple(name.replace("REVERSE_LLM", prefix) for name in (BASE_URL, MODEL, KEY))
        base_url, model, key = (
            os.environ.get(own, "").strip() or os.environ.get(shared, "").strip()
            for own, shared in zip(names, (BASE_URL, MODEL, KEY), strict=True)
        )
        for name, value in zip(names, (base_url, model), strict=False):
            if not value:
                raise DataError(
                    f"{name} is not set: a model is asked at {names[0]} (such as http://127.0.0.1:8000/v1), "
                    f"by the name {names[1]}, with {names[2]} if it wants a key{otherwise}"
                )
        if urlsplit(base_url).scheme not in ("http", "https"):
            raise DataError(f"{names[0]} must begin with http:// or https://, got {base_url[:80]!r}")
        return cls(base_url.rstrip("/"), model, key or None, names=names, **settings)

    @property
    def shown_url(self) -> str:
        """The address without what may be secret in it."""
        parts = urlsplit(self.base_url)
        return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))


@dataclass(frozen=True)
class Reply:
    text: str
    tokens_in: int
    tokens_out: int
    cached: bool = False


class Unanswered(Exception):
    """One request got no reply: `kind` is "unreachable" (after all attempts) or "refused" (by the server)."""

    def __init__(self, kind: str, detail: str):
        super().__init__(detail)
        self.kind, self.detail = kind, detail


class Cache:
    """Replies by the hash of what was asked, in a file of JSON lines that only grows.

    A last line torn by a kill is cut off when the file is opened. One process at a time: several runs share
    it one after the other. Raises ValueError where the file is none of ours, or another process writes it.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self._places: dict[bytes, int] = {}
        self._lock = ExitStack()
        self._lock.enter_context(output_lock(self.path, reentrant=False))
        try:
            self._read()
        except BaseException:
            self._lock.close()
            raise

    def _read(self) -> None:
        self._file = self.path.open("a+b")
        self._file.seek(0)
        good = 0
        for line in self._file:
            try:
                key = _entry(line)[0] if line.endswith(b"\n") else None
                if key is not None:
                    self._places[key] = good
            except (ValueError, KeyError, TypeError, RecursionError) as error:
                if line.endswith(b"\n"):
                    raise DataError(
                        f"{self.path}, byte {good}: no reply of a model: is it another file?"
                    ) from error
                key = None
            if key is None:
                break
            good += len(line)
        self._file.truncate(good)

    def __len__(self) -> int:
        return len(self._places)

    def get(self, key: str) -> Reply | None:
        place = self._places.get(bytes.fromhex(key))
        if place is None:
            return None
        self._file.seek(place)
        return _entry(self._file.readline())[1]

    def put(self, key: str, reply: Reply) -> None:
        """On disk when this returns (against a kill; a power cut may cost the last seconds)."""
        line = {"key": key, "reply": reply.text, "tokens_in": reply.tokens_in, "tokens_out": reply.tokens_out}
        written = json.dumps(line, ensure_ascii=True).encode() + b"\n"
        place = self._file.seek(0, os.SEEK_END)
        self._file.write(written)
        self._file.flush()
        self._places[bytes.fromhex(key)] = place

    def close(self) -> None:
        self._file.close()
        self._lock.close()


def _entry(line: bytes) -> tuple[bytes, Reply]:
    """Key and reply of a line of the cache. Raises ValueError, KeyError or TypeError for another line."""
    content = json.loads(line)
    text, spent = content["reply"], (content["tokens_in"], content["tokens_out"])
    if not isinstance(text, str) or not all(isinstance(count, int) for count in spent):
        raise RequestTypeError(f"no reply of a model: {line[:60]!r}")
    return bytes.fromhex(content["key"]), Reply(text, *spent, cached=True)


class Client:
    """Asks an endpoint, at most `concurrency` requests at a time, through a cache.

    429, 5xx, timeouts, broken connections and replies that are no chat completion are tried again, with waits
    that double, with jitter, never above a minute; a Retry-After is kept to. `retries` counts them by reason,
    `asked` the replies that were paid for in this process.

    `settings` go into every request (temperature, seed, …) and into the key of the cache, `identity` into the
    key alone. With `fresh` nothing is taken from the cache; new replies take the place of those in it. Raises
    ImportError where httpx is not installed.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        cache: Cache,
        concurrency: int = 16,
        settings: Mapping[str, Any] = SETTINGS,
        identity: Mapping[str, Any] = {},
        fresh: bool = False,
    ):
        try:
            import httpx
        except ImportError as error:
            raise MissingPackageError('asking a model needs httpx: pip install "reverse-vlm[llm]"') from error
        if concurrency < 1:
            raise DataError(f"concurrency must be at least 1, got {concurrency}")
        self._invalid = httpx.InvalidURL
        self.endpoint, self.cache, self.settings = endpoint, cache, dict(settings)
        self.identity, self.fresh = dict(identity), fresh
        # Unpacked replies are bounded whatever comes; most servers then send them as they are.
        headers = {"Content-Type": "application/json", "Accept-Encoding": "identity"}
        if endpoint.key:
            headers["Authorization"] = f"Bearer {endpoint.key}"
        limits = httpx.Limits(max_connections=concurrency, max_keepalive_connections=concurrency)
        self._http = httpx.AsyncClient(
            headers=headers, timeout=endpoint.timeout, limits=limits, trust_env=True
        )
        self._free = asyncio.Semaphore(concurrency)
        self._running: dict[str, asyncio.Task[Reply]] = {}
        self._jitter = random.Random(0)
        self.retries: Counter[str] = Counter()
        self.asked = self._denied = 0

    async def ask(self, messages: Sequence[Mapping[str, str]], keep: bool = True) -> Reply:
        """The reply to a chat, kept in the cache unless `keep` is false (see `keep`).

        Raises Unanswered; ValueError where no request can succeed (key, address).
        """
        body = self._body(messages)
        key = self._key(body)
        cached = None if self.fresh else self.cache.get(key)
        if cached is not None:
            return cached
        if key in self._running:  # the same question at the same time: one request
            reply = await asyncio.shield(self._running[key])
            return Reply(reply.text, reply.tokens_in, reply.tokens_out, cached=True)
        task = asyncio.ensure_future(self._request(body, key if keep else None))
        self._running[key] = task
        try:
            return await task
        finally:
            self._running.pop(key, None)

    def cached(self, messages: Sequence[Mapping[str, str]]) -> Reply | None:
        """The reply to a chat that is in the cache; None without one, and for a `fresh` client."""
        return None if self.fresh else self.cache.get(self._key(self._body(messages)))

    def keep(self, messages: Sequence[Mapping[str, str]], reply: Reply) -> None:
        """Put a reply into the cache as the one to this chat."""
        self.cache.put(self._key(self._body(messages)), reply)

    async def aclose(self) -> None:
        await self._http.aclose()

    def _body(self, messages: Sequence[Mapping[str, str]]) -> dict[str, Any]:
        return {"model": self.endpoint.model, **self.settings, "messages": list(messages)}

    def _key(self, body: Mapping[str, Any]) -> str:
        asked = {**self.identity, **body}
        return hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()[:32]

    async def _request(self, body: dict[str, Any], key: str | None) -> Reply:
        """One reply, after as many attempts as it takes; put into the cache under `key`, None: not kept."""
        data = replace_surrogates(json.dumps(body, ensure_ascii=False)).encode()
        trouble = ""
        for attempt in range(self.endpoint.attempts):
            wait = 0.0
            async with self._free:
                try:
                    status, content, again_after = await self._exchange(data)
                    reply = Reply(*read_completion(content)) if status == 200 else None
                except self._invalid as error:
                    raise DataError(
                        f"{self.endpoint.names[0]} {self.endpoint.shown_url!r} is no address: {error}"
                    ) from error
                except BadReply as error:
                    trouble, reason = f"HTTP 200, but {error}", "200"
                except TimeoutError:
                    trouble, reason = f"no whole reply in {self.endpoint.timeout:g} s", "ReadTimeout"
                except Exception as error:  # of httpx, or whatever a reply makes it raise
                    reason = type(error).__name__
                    trouble = f"{reason} {plain_line(str(error))}".strip()
                else:
                    if reply is not None:
                        if key is not None:
                            self.cache.put(key, reply)
                        self.asked += 1
                        self._denied = 0
                        return reply
                    said = plain_line(content.decode(errors="replace"))
                    self._give_up_if_hopeless(status, said)
                    reason, trouble = str(status), f"HTTP {status}: {said}"
                    wait = _retry_after(again_after)
            self.retries[reason] += 1
            if attempt + 1 < self.endpoint.attempts:
                drawn = self.endpoint.backoff * 2**attempt * (0.5 + self._jitter.random())
                await asyncio.sleep(min(LONGEST_WAIT, max(drawn, wait)))
        raise Unanswered("unreachable", f"{self.endpoint.attempts} attempts, the last: {trouble}")

    async def _exchange(self, data: bytes) -> tuple[int, bytes, str | None]:
        """Status, body and Retry-After of one request, within its time as a whole and not by the chunk."""
        url = f"{self.endpoint.base_url}/chat/completions"
        async with (
            asyncio.timeout(self.endpoint.timeout),
            self._http.stream("POST", url, content=data) as got,
        ):
            if got.status_code == 200:
                return 200, await read_body(got), None
            try:
                said = await read_body(got, ERROR_BYTES, cut=True)
            except BadReply as error:
                said = str(error).encode()
            return got.status_code, said, got.headers.get("retry-after")

    def _give_up_if_hopeless(self, status: int, said: str) -> None:
        """Raise ValueError where no request can succeed, Unanswered where this one cannot."""
        base_url, model, key = self.endpoint.names
        if status in (401, 403, 404):
            self._denied += 1
            if self.asked and self._denied < DENIED:  # others get replies: one server of several, or one chat
                raise Unanswered("refused", f"HTTP {status}: {said}")
        if status in (401, 403):
            raise DataError(f"{self.endpoint.shown_url} refuses the key (HTTP {status}): set {key}")
        if status == 404:
            raise DataError(
                f"{self.endpoint.shown_url}/chat/completions with model {self.endpoint.model!r} is not there "
                f"(HTTP 404): check {base_url}, which usually ends in /v1, and {model}"
            )
        if 300 <= status < 500 and status not in (408, 409, 425, 429):
            raise Unanswered("refused", f"HTTP {status}: {said}")


def _retry_after(value: str | None) -> float:
    """Seconds of a Retry-After header (a number or a date); 0 where there is none."""
    if not value:
        return 0.0
    try:
        return max(0.0, float(value))
    except ValueError:
        pass
    try:
        return max(0.0, parsedate_to_datetime(value).timestamp() - time.time())
    except Exception:  # a date of the year 0 or 99999 overflows, an odd zone is a TypeError
        return 0.0
