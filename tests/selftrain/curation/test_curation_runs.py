"""Runs of curation: kills, hostile replies, limits, the cache, and what failed."""

import asyncio
import gzip
import json
import multiprocessing
import os
import random
import time

import pytest

from reverse.data.drafts.draft_files import write_drafts
from reverse.endpoints.bounded_replies import MAX_REPLY_BYTES
from reverse.selftrain.curation.curation_pass import run_pass
from reverse.selftrain.curation.tasks.answer_task import AnswerTask
from reverse.selftrain.curation.tasks.reflection_task import ReflectionTask
from tests.chat_server import completion
from tests.selftrain.curation.curating import curate, make_record, number_of, teacher_at


def reflect(handler, body):
    """A teacher that takes a moment, writes garbage now and then, and refuses one question."""
    number = number_of(body)
    time.sleep(0.002 * (number % 4))
    if number == 23:
        handler.give(b"too long", 400)
    elif number % 7 == 0 and len(body["messages"]) == 2:
        handler.give("Well, let me see.")
    else:
        handler.give(json.dumps({"reflection": f"Look at {number} again."}))


def make_files(folder):
    folder.mkdir()
    write_drafts(folder / "in.jsonl", [make_record(n, answered=n + n % 2) for n in range(60)])


def run_in(folder, server):
    async def run():
        async with teacher_at(server, folder / "replies.jsonl") as teacher:
            await run_pass(ReflectionTask(), folder / "in.jsonl", folder / "out.jsonl", teacher, window=8)

    asyncio.run(run())


def test_killed_at_any_moment_the_file_is_the_same(chat_server, tmp_path):
    """A SIGKILL would cost replies that had come, or the file would end differently."""
    unbroken, killed = tmp_path / "unbroken", tmp_path / "killed"
    for folder in (unbroken, killed):
        make_files(folder)
    server = chat_server(reflect)
    run_in(unbroken, server)
    asked = len(server.bodies)
    dice = random.Random(0)
    kills = 0
    while kills < 20:
        before = len(server.bodies)
        process = multiprocessing.get_context("fork").Process(
            target=run_in, args=(killed, server), daemon=True
        )
        process.start()
        wanted, deadline = before + dice.randrange(1, 9), time.monotonic() + 20
        while len(server.bodies) < wanted and process.is_alive() and time.monotonic() < deadline:
            time.sleep(0.001)
        time.sleep(dice.random() * 0.01)
        process.kill()
        process.join()
        kills += 1
    run_in(killed, server)
    for name in ("out.jsonl", "out.jsonl.failures.jsonl", "out.jsonl.manifest.json"):
        assert (killed / name).read_bytes() == (unbroken / name).read_bytes(), name
    assert not (killed / "out.jsonl.part").exists()
    # A kill costs what was under way (4 requests, one of them a retry), and the refused question.
    assert len(server.bodies) - asked <= asked + 20 * (2 * 4 + 1) + 1


def test_what_failed_is_tried_again(chat_server, tmp_path):
    """A record that failed once would be missing for ever, or all others be paid for again."""
    server = chat_server(reflect)
    records = [make_record(n, answered=1) for n in range(20, 26)]
    manifest, made, (failure,) = curate(ReflectionTask(), records, server, tmp_path)
    assert failure["id"] == "q23" and failure["reason"] == "refused" and "too long" in failure["detail"]
    assert len(made) == 5 and manifest["counts"]["failed.refused"] == 1
    asked = len(server.bodies)
    server.respond = lambda handler, body: handler.give('{"reflection": "now"}')
    manifest, made, failures = curate(ReflectionTask(), records, server, tmp_path)
    assert [record.id for record in made] == [f"q{n}" for n in range(20, 26)] and not failures
    assert len(server.bodies) == asked + 1 and made[3].drafts[1].text == "now"
    assert (
        curate(ReflectionTask(), records, server, tmp_path)[0] == manifest and len(server.bodies) == asked + 1
    )


def test_a_finished_run_asks_nothing(chat_server, tmp_path):
    """The same command would pay twice; so would another output with the same questions and cache."""
    server = chat_server(lambda handler, body: handler.give(f"<answer>{number_of(body)}</answer>"))
    first = curate(AnswerTask(), map(make_record, range(9)), server, tmp_path)
    assert curate(AnswerTask(), map(make_record, range(9)), server, tmp_path) == first
    (tmp_path / "out.jsonl").rename(tmp_path / "before.jsonl")
    (tmp_path / "out.jsonl.manifest.json").unlink()
    assert curate(AnswerTask(), map(make_record, range(9)), server, tmp_path) == first
    assert len(server.bodies) == 9


def test_another_plan_is_refused(chat_server, tmp_path):
    """Half of a file would come from one prompt and half from another."""
    server = chat_server(lambda handler, body: handler.give("<answer>1</answer>"))
    curate(AnswerTask(), [make_record(1)], server, tmp_path)
    with pytest.raises(ValueError, match="was made with settings="):
        curate(AnswerTask(instruction="Be brief."), [make_record(1)], server, tmp_path)


def test_never_more_requests_at_a_time(chat_server, tmp_path):
    """A limited server would be flooded."""

    def respond(handler, body):
        time.sleep(0.02)
        handler.give("<answer>1</answer>")

    server = chat_server(respond)
    curate(AnswerTask(samples=2), map(make_record, range(12)), server, tmp_path, concurrency=3, window=12)
    assert 1 < server.most <= 3


HOSTILE = {
    "huge": lambda h: h.give(b" " * (MAX_REPLY_BYTES + 10)),
    "bomb": lambda h: h.give(gzip.compress(b" " * (30 << 20), 1), Content_Encoding="gzip"),
    "slow": lambda h: time.sleep(1.5),
    "no text": lambda h: h.give(b'{"choices": [{"message": {"content": null}}]}'),
    "no choices": lambda h: h.give(b'{"choices": []}'),
    "nested": lambda h: h.give(b"[" * 50_000),
    "long": lambda h: h.give("x" * 300_000),
    "wrong counts": lambda h: h.give(completion("<answer>1</answer>", -5, 10**15)),
    "blank": lambda h: h.give("  \n"),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_hostile_reply_is_one_failure(chat_server, tmp_path, kind):
    """One reply would end the run, take all memory, or be written into the file."""

    def respond(handler, body):
        if number_of(body) == 1:
            HOSTILE[kind](handler)
        else:
            handler.give(f"<answer>{number_of(body)}</answer>")

    _, made, (failure,) = curate(
        AnswerTask(), map(make_record, range(3)), chat_server(respond), tmp_path, timeout=1.0, attempts=1
    )
    assert [record.id for record in made] == ["q0", "q2"] and failure["id"] == "q1"
    assert failure["reason"] in ("unreachable", "garbage") and len(failure["detail"]) < 500


def test_a_server_that_is_gone_stops_the_run(chat_server, tmp_path):
    """A hundred thousand records would be written off as failures while the server restarts."""
    server = chat_server(
        lambda handler, body: handler.give("<answer>1</answer>" if handler.number <= 5 else b"gone", 200)
    )
    with pytest.raises(ValueError, match="answers in a row got no reply from http"):
        curate(AnswerTask(), map(make_record, range(60)), server, tmp_path, attempts=1, window=4)
    server.respond = lambda handler, body: handler.give("<answer>1</answer>")
    _, made, failures = curate(AnswerTask(), map(make_record, range(60)), server, tmp_path)
    assert len(made) == 60 and not failures


def test_two_runs_do_not_share_an_output(chat_server, tmp_path):
    """Two runs of one command would write into one file."""
    make_files(tmp_path / "a")
    server = chat_server(lambda handler, body: (time.sleep(0.02), handler.give('{"reflection": "r"}')))
    process = multiprocessing.get_context("fork").Process(target=run_in, args=(tmp_path / "a", server))
    process.start()
    while not server.bodies:
        time.sleep(0.005)
    with pytest.raises(ValueError, match="being written by another process"):
        run_in(tmp_path / "a", server)
    process.kill()
    process.join()
    assert os.path.exists(tmp_path / "a" / "in.jsonl")
