"""Ask a language model at an OpenAI-compatible address, with bounded retries, and cache every reply.

    REVERSE_LLM_BASE_URL=http://127.0.0.1:8000/v1  REVERSE_LLM_MODEL=qwen3  REVERSE_LLM_KEY=…
    REVERSE_LLM_BASE_URL=https://NAME.openai.azure.com  REVERSE_LLM_API_VERSION=2024-10-21  …   # Azure

Requests go through the openai client, whose HTTP client bounds bytes and time
(`reverse.endpoints.bounded_http`). Every reply is written to a cache before it is used, under the hash of
all that was asked (model, settings, messages): a run that is killed and started again asks only what had not
been answered. Retries happen here and not in the openai client, because a reply that is not a chat completion
is tried again too, and each retry is counted by its reason. No reply ends a run: what fails at every attempt
is one `UnansweredError`.
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
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import Any
from urllib.parse import urlsplit, urlunsplit

from reverse.endpoints.bounded_replies import BadReplyError, plain_line, read_completion
from reverse.endpoints.reply_cache import Reply, ReplyCache
from reverse.errors import DataError, MissingPackageError
from reverse.files.text_reading import replace_surrogates

__all__ = ["ChatClient", "Endpoint", "UnansweredError", "check_installed"]

BASE_URL, MODEL, KEY = "REVERSE_LLM_BASE_URL", "REVERSE_LLM_MODEL", "REVERSE_LLM_KEY"
API_VERSION = "REVERSE_LLM_API_VERSION"
SETTINGS: Mapping[str, Any] = {"temperature": 0, "max_tokens": 256}
LONGEST_WAIT = 60.0  # seconds between two attempts
MAX_DENIED = 20  # refusals in a row of the key or the address, after which they are wrong for every request


@dataclass(frozen=True)
class Endpoint:
    """An address, the name of its model, and how to ask it.

    Raises DataError for a key that no HTTP header can hold.
    """

    base_url: str
    model: str
    key: str | None = None
    timeout: float = 120.0  # seconds of one attempt, from its start to the last byte of the reply
    attempts: int = 6  # of one request
    backoff: float = 1.0  # seconds of the first wait between two attempts; later waits double
    names: tuple[str, ...] = (BASE_URL, MODEL, KEY)  # of the environment variables, for errors
    api_version: str | None = None  # of an Azure resource, whose deployment `model` names; None: no Azure

    def __post_init__(self) -> None:
        place = next((i for i, c in enumerate(self.key or "", 1) if not "!" <= c <= "~"), None)
        if place is not None:  # the key itself is not shown
            raise DataError(
                f"{self.names[2]} has a character at place {place} of {len(self.key or '')} that no HTTP "
                "header can hold (a space, a line end or a non-ASCII character): copy the key anew"
            )

    @classmethod
    def from_environment(
        cls, prefix: str = "REVERSE_LLM", otherwise: str = "; or use --by lexicon", **settings: Any
    ) -> Endpoint:
        """Read address, model and key from the environment; another `prefix` falls back to REVERSE_LLM_….

        Raises DataError naming what is missing; the message ends with `otherwise`.
        """
        names = tuple(name.replace("REVERSE_LLM", prefix) for name in (BASE_URL, MODEL, KEY))
        base_url, model, key = (
            os.environ.get(own, "").strip() or os.environ.get(shared, "").strip()
            for own, shared in zip(names, (BASE_URL, MODEL, KEY), strict=True)
        )
        for name, value in zip(names, (base_url, model), strict=False):
            if not value:
                raise DataError(
                    f"{name} is not set: set {names[0]} to the model's address (such as "
                    f"http://127.0.0.1:8000/v1), by the name {names[1]}, with {names[2]} if it wants a "
                    f"key{otherwise}"
                )
        if urlsplit(base_url).scheme not in ("http", "https"):
            raise DataError(f"{names[0]} must begin with http:// or https://, got {base_url[:80]!r}")
        # The version goes with the address, which may be that of REVERSE_LLM_….
        owner = prefix if os.environ.get(names[0], "").strip() else "REVERSE_LLM"
        version = API_VERSION.replace("REVERSE_LLM", owner)
        settings["api_version"] = os.environ.get(version, "").strip() or None
        return cls(base_url.rstrip("/"), model, key or None, names=names, **settings)

    @property
    def shown_url(self) -> str:
        """The address without what may be secret in it."""
        parts = urlsplit(self.base_url)
        return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))


class UnansweredError(Exception):
    """A request got no reply. `kind` is "unreachable" (after all attempts) or "refused" (by the server)."""

    def __init__(self, kind: str, detail: str):
        super().__init__(detail)
        self.kind, self.detail = kind, detail


class ChatClient:
    """Asks an endpoint, at most `concurrency` requests at a time, through a cache.

    429, 5xx, timeouts, broken connections and bad replies are tried again, with waits that double, with
    jitter, never above a minute; a Retry-After is respected. `retries` counts them by reason, `asked` the
    replies that were paid for in this process.

    Args:
        settings: fields of every request (temperature, seed, …), which are part of the cache's key.
        identity: further parts of the cache's key.
        fresh: take nothing from the cache; new replies replace those in it.

    Raises MissingPackageError if openai is not installed, DataError for an address that is none.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        cache: ReplyCache,
        concurrency: int = 16,
        settings: Mapping[str, Any] = SETTINGS,
        identity: Mapping[str, Any] = {},
        fresh: bool = False,
    ):
        check_installed()
        import openai

        from reverse.endpoints.bounded_http import BoundedHTTPClient, httpx2

        if concurrency < 1:
            raise DataError(f"concurrency must be at least 1, got {concurrency}")
        self.endpoint, self.cache, self.settings = endpoint, cache, dict(settings)
        self.identity, self.fresh = dict(identity), fresh
        self._invalid_url, self._status_error = httpx2.InvalidURL, openai.APIStatusError
        self._connection_error = openai.APIConnectionError  # it wraps the errors of httpx2 and of the bounds
        try:
            self._openai = _make_openai(endpoint, BoundedHTTPClient(endpoint.timeout, concurrency))
        except httpx2.InvalidURL as error:
            raise self._refuse_address(error) from error
        # What OPENAI_… variables of the environment say is for another server.
        hidden = ["OpenAI-Organization", "OpenAI-Project", *([] if endpoint.key else ["Authorization"])]
        self._headers = dict.fromkeys(hidden, openai.Omit())
        self._free = asyncio.Semaphore(concurrency)
        self._running: dict[str, asyncio.Task[Reply]] = {}
        self._jitter = random.Random(0)
        self.retries: Counter[str] = Counter()
        self.asked = self._denied = 0

    async def ask(
        self,
        messages: Sequence[Mapping[str, Any]],
        keep: bool = True,
        settings: Mapping[str, Any] = {},
    ) -> Reply:
        """Return the reply to a chat, and keep it in the cache unless `keep` is false.

        `settings` are further fields, which those of the client replace; None leaves a field out. Raises
        UnansweredError, and DataError if no request can succeed (key, address).
        """
        body = self._body(messages, settings)
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

    def cached(self, messages: Sequence[Mapping[str, Any]], settings: Mapping[str, Any] = {}) -> Reply | None:
        """Return the reply to a chat that is in the cache, or None; always None for a `fresh` client."""
        return None if self.fresh else self.cache.get(self._key(self._body(messages, settings)))

    def keep(
        self, messages: Sequence[Mapping[str, Any]], reply: Reply, settings: Mapping[str, Any] = {}
    ) -> None:
        """Put a reply into the cache as the one to this chat."""
        self.cache.put(self._key(self._body(messages, settings)), reply)

    async def aclose(self) -> None:
        await self._openai.close()

    def _body(self, messages: Sequence[Mapping[str, Any]], settings: Mapping[str, Any]) -> dict[str, Any]:
        fields = {"model": self.endpoint.model, **settings, **self.settings, "messages": list(messages)}
        return {name: value for name, value in fields.items() if value is not None}

    def _key(self, body: Mapping[str, Any]) -> str:
        asked = {**self.identity, **body}
        return hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()[:32]

    async def _request(self, body: dict[str, Any], key: str | None) -> Reply:
        """Return one reply, after several attempts if needed; cache it under `key` unless that is None."""
        sent = json.loads(replace_surrogates(json.dumps(body, ensure_ascii=False)))
        trouble = ""
        for attempt in range(self.endpoint.attempts):
            wait = 0.0
            async with self._free:
                try:
                    reply = await self._exchange(sent)
                except self._status_error as error:
                    status, said = error.status_code, plain_line(error.response.text)
                    self._give_up_if_hopeless(status, said)
                    reason, trouble = str(status), f"HTTP {status}: {said}"
                    wait = _read_retry_after(error.response.headers.get("retry-after"))
                except Exception as error:  # whatever a reply makes the libraries raise
                    reason, trouble = self._explain(error)
                else:
                    if key is not None:
                        self.cache.put(key, reply)
                    self.asked += 1
                    self._denied = 0
                    return reply
            self.retries[reason] += 1
            if attempt + 1 < self.endpoint.attempts:
                drawn = self.endpoint.backoff * 2**attempt * (0.5 + self._jitter.random())
                await asyncio.sleep(min(LONGEST_WAIT, max(drawn, wait)))
        raise UnansweredError("unreachable", f"{self.endpoint.attempts} attempts, the last: {trouble}")

    async def _exchange(self, sent: Mapping[str, Any]) -> Reply:
        settings = {name: value for name, value in sent.items() if name not in ("model", "messages")}
        got = await self._openai.chat.completions.with_raw_response.create(
            model=sent["model"], messages=sent["messages"], extra_body=settings, extra_headers=self._headers
        )
        if got.status_code != 200:
            raise BadReplyError(f"its status is {got.status_code}")
        return Reply(*read_completion(got.content))

    def _explain(self, error: BaseException) -> tuple[str, str]:
        """Return the reason for a failed attempt, as it is counted, and in words."""
        if isinstance(error, self._connection_error):
            error = error.__cause__ or error
        if isinstance(error, self._invalid_url):
            raise self._refuse_address(error) from error
        if isinstance(error, BadReplyError):
            return "200", f"HTTP 200, but {error}"
        if isinstance(error, TimeoutError):
            return "ReadTimeout", f"no whole reply in {self.endpoint.timeout:g} s"
        reason = type(error).__name__
        return reason, f"{reason} {plain_line(str(error))}".strip()

    def _refuse_address(self, error: BaseException) -> DataError:
        return DataError(f"{self.endpoint.names[0]} {self.endpoint.shown_url!r} is not an address: {error}")

    def _give_up_if_hopeless(self, status: int, said: str) -> None:
        """Raise DataError if no request can succeed, UnansweredError if this one cannot."""
        base_url, model, key = self.endpoint.names
        if status in (401, 403, 404):
            self._denied += 1
            # Others get replies, so it is one server of several, or one chat.
            if self.asked and self._denied < MAX_DENIED:
                raise UnansweredError("refused", f"HTTP {status}: {said}")
        if status in (401, 403):
            raise DataError(f"{self.endpoint.shown_url} refuses the key (HTTP {status}): set {key}")
        if status == 404 and self.endpoint.api_version is not None:
            raise DataError(
                f"{self.endpoint.shown_url} has no deployment {self.endpoint.model!r} for API version "
                f"{self.endpoint.api_version!r} (HTTP 404): check {base_url}, such as "
                f"https://NAME.openai.azure.com, {model} and {API_VERSION}"
            )
        if status == 404:
            raise DataError(
                f"{self.endpoint.shown_url}/chat/completions with model {self.endpoint.model!r} is not there "
                f"(HTTP 404): check {base_url}, which usually ends in /v1, and {model}"
            )
        if 300 <= status < 500 and status not in (408, 409, 425, 429):
            raise UnansweredError("refused", f"HTTP {status}: {said}")


def _make_openai(endpoint: Endpoint, http_client: Any) -> Any:
    """Make the openai client of an address, or of an Azure resource if an API version is given."""
    import openai

    settings = {"api_key": endpoint.key or "none", "max_retries": 0, "http_client": http_client}
    if endpoint.api_version is None:
        return openai.AsyncOpenAI(base_url=endpoint.base_url, **settings)
    return openai.AsyncAzureOpenAI(
        azure_endpoint=endpoint.base_url, api_version=endpoint.api_version, **settings
    )


def check_installed(extra: str = "llm") -> None:
    """Raise MissingPackageError, naming the extra to install, if the openai client is not there."""
    try:
        import openai  # noqa: F401
    except ImportError as error:
        remedy = f'pip install "reverse-vlm[{extra}]"'
        raise MissingPackageError(f"asking a model needs openai: {remedy}") from error


def _read_retry_after(value: str | None) -> float:
    """Return the seconds of a Retry-After header (a number or a date); 0 if there is none."""
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
