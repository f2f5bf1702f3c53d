"""Open the teacher that options name: a checkpoint, or the model at the address in the environment.

async with open_teacher(TeacherSource(cache=Path("out.jsonl.replies.jsonl")), SentPictures(), sampling) as t:
    ...
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from reverse.endpoints.client import ChatClient, Endpoint
from reverse.endpoints.repeated_asking import Asker
from reverse.endpoints.reply_cache import ReplyCache
from reverse.errors import RequestError
from reverse.selftrain.curation.sent_pictures import SentPictures
from reverse.selftrain.curation.teacher import Teacher, TeacherSampling

__all__ = ["ENDPOINT", "TeacherSource", "open_teacher"]

ENDPOINT = (
    "endpoint"  # as a model's name: the one at REVERSE_LLM_BASE_URL, of a judge at REVERSE_JUDGE_BASE_URL
)


@dataclass(frozen=True)
class TeacherSource:
    """Where the teacher is, and how many requests it gets at a time.

    Args:
        cache: file of replies.
        model: checkpoint folder, hub id or bundled name; `ENDPOINT`: the model at REVERSE_LLM_BASE_URL.
        judge: the same of a judge, at REVERSE_JUDGE_BASE_URL; None: there is none.
        concurrency: requests at a time; of a checkpoint, answers decoded side by side.
        timeout: seconds of one request.
        extra: fields that replace those of every request to an address; None leaves a field out.
        mode: of a checkpoint, "plain" or "resample".
        load: further arguments of `reverse.load` for a checkpoint.
    """

    cache: Path
    model: str = ENDPOINT
    judge: str | None = None
    concurrency: int = 16
    timeout: float = 120.0
    extra: Mapping[str, Any] = field(default_factory=dict)
    mode: str = "plain"
    load: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.mode not in ("plain", "resample"):
            raise RequestError(f"--mode must be plain or resample, got {self.mode!r:.80}")
        if self.extra and ENDPOINT not in (self.model, self.judge):
            raise RequestError("--extra holds fields of requests to an address, and a checkpoint takes none")
        if self.concurrency < 1:
            raise RequestError(f"--concurrency must be at least 1, got {self.concurrency}")

    def find_endpoints(self) -> dict[str, Endpoint]:
        """Return the needed addresses, of "model" and "judge". Raises DataError if one is not set."""
        found = {}
        if self.model == ENDPOINT:
            found["model"] = Endpoint.from_environment(
                otherwise="; or name a checkpoint with --model", timeout=self.timeout
            )
        if self.judge == ENDPOINT:
            found["judge"] = Endpoint.from_environment("REVERSE_JUDGE", "", timeout=self.timeout)
        return found


@asynccontextmanager
async def open_teacher(
    source: TeacherSource, pictures: SentPictures, sampling: TeacherSampling
) -> AsyncIterator[Teacher]:
    """Yield the teacher.

    Raises DataError if nothing says where it is, OutputInUseError if another process uses the cache.
    """
    endpoints = source.find_endpoints()
    if pictures.url is not None and source.model != ENDPOINT:
        raise RequestError("--image-url is for a server that fetches pictures: give a checkpoint --images")
    async with AsyncExitStack() as stack:
        source.cache.parent.mkdir(parents=True, exist_ok=True)
        cache = ReplyCache(source.cache)
        stack.callback(cache.close)
        opened: dict[str, Asker] = {}  # one engine where teacher and judge are one checkpoint
        judge = None
        if source.judge is not None:
            sampled = replace(sampling, temperature=0.0, top_p=1.0, max_tokens=min(sampling.max_tokens, 400))
            judge = await _open(source, source.judge, endpoints.get("judge"), cache, opened, stack)
            judge = replace(judge, sampling=sampled)
        teacher = await _open(source, source.model, endpoints.get("model"), cache, opened, stack)
        yield replace(teacher, pictures=pictures, sampling=sampling, judge=judge)


async def _open(
    source: TeacherSource,
    model: str,
    endpoint: Endpoint | None,
    cache: ReplyCache,
    opened: dict[str, Asker],
    stack: AsyncExitStack,
) -> Teacher:
    """Open one model; what is opened is closed by the stack."""
    if endpoint is not None:
        identity = {"address": endpoint.base_url}  # a model of the same name elsewhere is another one
        client = ChatClient(endpoint, cache, source.concurrency, source.extra, identity)
        stack.push_async_callback(client.aclose)
        return Teacher(
            client, endpoint.model, origin={"address": endpoint.shown_url, "extra": dict(source.extra)}
        )
    from reverse.models import load
    from reverse.models.checkpoints.fingerprint import checkpoint_fingerprint
    from reverse.selftrain.curation.checkpoint_asker import CheckpointAsker

    fingerprint = checkpoint_fingerprint(model)
    if model not in opened:
        loaded, processor = load(model, require_tokens=source.mode != "plain", **source.load)
        asker = CheckpointAsker(loaded, processor, cache, fingerprint, source.concurrency, source.mode)
        stack.push_async_callback(asker.aclose)
        opened[model] = asker
    return Teacher(
        opened[model], Path(model).name, origin={"fingerprint": fingerprint, "decoding": source.mode}
    )
