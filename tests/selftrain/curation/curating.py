"""What tests of curation share: records, a teacher that is scripted, and one behind a server."""

import asyncio
import json
from contextlib import asynccontextmanager

from reverse.data.drafts.draft_files import read_drafts, write_drafts
from reverse.data.drafts.draft_record import DraftRecord, GoldAnswer, RecordedDraft
from reverse.endpoints.client import ChatClient, Endpoint
from reverse.endpoints.reply_cache import ReplyCache
from reverse.selftrain.curation.curation_pass import run_pass
from reverse.selftrain.curation.sent_pictures import SentPictures
from reverse.selftrain.curation.teacher import Teacher, TeacherSampling


def make_record(number, *, answered=None, images=(), **fields):
    """Question `number`, whose answer is the number; `answered`: what a model said, as a draft."""
    drafts = ()
    if answered is not None:
        verdict = "right" if answered == number else "wrong"
        text = f"<think>I count {answered}.</think>\n<answer>{answered}</answer>"
        drafts = (RecordedDraft(text=text, role="first", answer=str(answered), verdict=verdict),)
    gold = GoldAnswer(kind="number", answers=(str(number),))
    return DraftRecord(
        **{"id": f"q{number}", "question": f"What is {number}?", "images": images, "gold": gold,
           "drafts": drafts} | fields
    )  # fmt: skip


def number_of(body):
    """The number that a request asks about."""
    content = body["messages"][1]["content"]
    text = content if isinstance(content, str) else content[-1]["text"]
    return int(text.partition("What is ")[2].partition("?")[0])


@asynccontextmanager
async def teacher_at(server, cache, *, concurrency=4, timeout=5.0, attempts=2, pictures=None, **settings):
    """A teacher behind a server."""
    replies = ReplyCache(cache)
    endpoint = Endpoint(server.url, "m", timeout=timeout, attempts=attempts, backoff=0.001)
    client = ChatClient(endpoint, replies, concurrency, {})
    try:
        yield Teacher(
            client,
            "m",
            pictures or SentPictures(),
            TeacherSampling(**settings),
            origin={"address": server.url},
        )
    finally:
        await client.aclose()
        replies.close()


def curate(task, records, server, folder, *, window=8, **how):
    """(manifest, records written, failures) of a run in a folder; run again, it goes on."""
    folder.mkdir(exist_ok=True)
    source, out = folder / "in.jsonl", folder / "out.jsonl"
    write_drafts(source, records)

    async def run():
        async with teacher_at(server, folder / "replies.jsonl", **how) as teacher:
            return await run_pass(task, source, out, teacher, window=window)

    manifest = asyncio.run(run())
    failed = folder / "out.jsonl.failures.jsonl"
    lines = failed.read_text().splitlines() if failed.exists() else []
    return manifest, list(read_drafts(out)), [json.loads(line) for line in lines]
