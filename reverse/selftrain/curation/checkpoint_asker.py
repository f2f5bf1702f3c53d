"""Let a local checkpoint answer chats as an endpoint does, through the engine and a cache of replies.

All questions that wait are decoded side by side, up to `max_sequences`. An answer does not depend on which
others are decoded with it, so a run that is killed and started again ends with the same file.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from reverse.api import Engine
from reverse.decoding.config import ResamplingConfig
from reverse.decoding.request import Request
from reverse.endpoints.client import UnansweredError
from reverse.endpoints.reply_cache import Reply, ReplyCache
from reverse.errors import DataError, MissingFileError, RequestError, RequestTypeError

__all__ = ["CheckpointAsker"]

_REFUSALS = (RequestError, RequestTypeError, DataError, MissingFileError)  # of one question


class CheckpointAsker:
    """Answers chats with a local model.

    Args:
        model, processor: as `reverse.load` returns them.
        cache: of replies; a reply is written there before it is used.
        identity: part of the cache's key that identifies the checkpoint, such as its fingerprint.
        max_sequences: answers decoded side by side.
        mode: "plain" or "resample".
    """

    def __init__(
        self,
        model: Any,
        processor: Any,
        cache: ReplyCache,
        identity: str,
        max_sequences: int = 8,
        mode: str = "plain",
    ):
        self.cache, self.mode = cache, mode
        self.identity = {"checkpoint": identity, "mode": mode}
        self._engine = Engine(model, processor, max_sequences=max_sequences)
        self._threads = ThreadPoolExecutor(2 * max_sequences, "waits-for-answer")
        self._free = asyncio.Semaphore(2 * max_sequences)
        self._running: dict[str, asyncio.Task[Reply]] = {}
        self.asked = 0

    async def ask(
        self, messages: Sequence[Mapping[str, Any]], keep: bool = True, settings: Mapping[str, Any] = {}
    ) -> Reply:
        """Return the reply to a chat. Raises UnansweredError for a chat that the model cannot take."""
        key = self._key(messages, settings)
        cached = self.cache.get(key)
        if cached is not None:
            return cached
        if key in self._running:  # the same question at the same time: one answer
            reply = await asyncio.shield(self._running[key])
            return Reply(reply.text, reply.tokens_in, reply.tokens_out, cached=True)
        task = asyncio.ensure_future(self._decode(messages, settings))
        self._running[key] = task
        try:
            reply = await task
        finally:
            self._running.pop(key, None)
        if keep:
            self.cache.put(key, reply)
        return reply

    def cached(self, messages: Sequence[Mapping[str, Any]], settings: Mapping[str, Any] = {}) -> Reply | None:
        """Return the reply to a chat that is in the cache, or None."""
        return self.cache.get(self._key(messages, settings))

    def keep(
        self, messages: Sequence[Mapping[str, Any]], reply: Reply, settings: Mapping[str, Any] = {}
    ) -> None:
        """Put a reply into the cache as the one to this chat."""
        self.cache.put(self._key(messages, settings), reply)

    async def aclose(self) -> None:
        """End the threads that wait for answers."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def _decode(self, messages: Sequence[Mapping[str, Any]], settings: Mapping[str, Any]) -> Reply:
        async with self._free:
            handle = None
            try:
                handle = self._engine.submit(_make_request(messages, settings, self.mode))
                wait = asyncio.get_running_loop().run_in_executor(self._threads, handle.result)
                result = await wait
            except _REFUSALS as error:
                raise UnansweredError("refused", str(error)) from error
            except asyncio.CancelledError:
                if handle is not None:
                    handle.cancel()
                raise
        self.asked += 1
        usage = result.usage
        return Reply(result.text, len(handle.prompt_ids), usage.kept + usage.discarded)

    def _key(self, messages: Sequence[Mapping[str, Any]], settings: Mapping[str, Any]) -> str:
        asked = {**self.identity, **settings, "messages": list(messages)}
        return hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()[:32]


def _make_request(messages: Sequence[Mapping[str, Any]], settings: Mapping[str, Any], mode: str) -> Request:
    temperature = float(settings.get("temperature", 0.0))
    chat = []
    for message in messages:
        content = message["content"]
        if not isinstance(content, str):
            content = [_convert_part(part) for part in content]
        chat.append({"role": message["role"], "content": content})
    return Request(
        prompt=chat,
        config=ResamplingConfig(top_p=settings.get("top_p", 1.0)),
        mode=mode,
        max_new_tokens=settings.get("max_tokens", 256),
        do_sample=temperature > 0,
        temperature=temperature if temperature > 0 else 1.0,
        seed=settings.get("seed", 0),
    )


def _convert_part(part: Mapping[str, Any]) -> dict[str, Any]:
    """Convert a part of a message for the chat template: pictures by their data URL."""
    if part.get("type") == "image_url":
        return {"type": "image", "url": part["image_url"]["url"]}
    return dict(part)
