"""Negatives by a model, against a server of our own on 127.0.0.1: what it may do wrong, and what it costs."""

import asyncio
import json
import time
from collections import Counter

import pytest
from typer.testing import CliRunner

from reverse.cli import app
from reverse.data.negatives import make_lexicon_negatives
from reverse.data.negatives.conversation_turns import read_turns
from reverse.data.negatives.llm_negatives import request_negatives
from reverse.data.negatives.negative_prompt import build_messages, read_reply
from reverse.data.records.published_set import read_records
from reverse.data.records.record_rules import check_shape
from reverse.data.records.schema import make_record
from reverse.endpoints.client import ChatClient, Endpoint
from reverse.endpoints.reply_cache import Reply, ReplyCache
from reverse.tokens.spans import CN, SPAN, UN, find_problems
from tests.warm_python import start_python

ANIMALS = ("dog", "cat", "horse", "cow", "sheep", "pig", "goat", "bear")


def good(body):
    """A reply as it should be: another animal for phrase number 1."""
    asked = body["messages"][1]["content"]
    other = next(name for name in ANIMALS if name not in asked)
    return json.dumps({"index": 1, "phrase": f"a {other}"})


@pytest.fixture
def serve(chat_server):
    """Servers; `behave(n, body)` gives (status, text, headers) of request number n, or seconds of silence."""

    def make(behave=None):
        def respond(handler, body):
            done = server.behave(handler.number, body)
            if isinstance(done, (int, float)):
                time.sleep(done)
                done = (200, good(body), {})
            status, text, headers = done
            is_completion = status == 200 and not text.startswith("RAW")
            if is_completion:
                server.answered[json.dumps(body["messages"])] += 1
            handler.give(text if is_completion else text.encode(), status, **headers)

        server = chat_server(respond)
        server.behave = behave or (lambda n, body: (200, good(body), {}))
        server.answered = Counter()
        return server

    return make


def records(n):
    return [
        make_record(str(i), "a.png", f"What is number {i}?", f"There is {SPAN}a dog{CN}.") for i in range(n)
    ]


def ask(server, tmp_path, wanted, concurrency=4, attempts=3, timeout=5.0, max_silent=20):
    """(made, client) of records; `made` as ask_for_negatives gives it."""

    async def run():
        cache = ReplyCache(tmp_path / "replies.jsonl")
        endpoint = Endpoint(server.url, "m", "key", timeout=timeout, attempts=attempts, backoff=0.001)
        client = ChatClient(endpoint, cache, concurrency)
        try:
            source = request_negatives(wanted, client, 0, concurrency, max_silent)
            return [made async for made in source], client
        finally:
            await client.aclose()
            cache.close()

    return asyncio.run(run())


def wrong_answers(made):
    values = [turn["value"] for out, _, _ in made for record in out for turn in record["conversations"]]
    return [value for value in values if UN in value]


def test_negatives_come_from_the_model(serve, tmp_path):
    """Without it: the reply is put in the wrong place, order is lost, or the key is not sent."""
    server = serve()
    made, client = ask(server, tmp_path, records(9))
    for i, (out, counts, failures) in enumerate(made):
        assert {record["id"] for record in out} == {str(i), f"{i}-neg"} and not failures
        assert counts["replies"] == 1 and counts["tokens_in"] == 100 and counts["tokens_out"] == 10
        for record in out:
            check_shape(record)
    assert wrong_answers(made) == [f"There is {SPAN}a cat{UN}"] * 9
    assert client.asked == 9 and server.keys == {"Bearer key"}


def test_rules_need_no_model(serve, tmp_path):
    """Without it: money is spent on flipping yes and no."""
    server = serve()
    plain = [
        make_record("1", "a.png", "Is it red?", f"{SPAN}Yes{CN}", "yes_no"),
        make_record("2", "a.png", "How many?", f"{SPAN}Two{CN}", "number"),
        make_record("3", "a.png", "What?", "Nothing to mark."),
    ]
    made, _ = ask(server, tmp_path, plain)
    assert len(wrong_answers(made)) == 2 and not server.asked


def test_never_more_requests_at_a_time(serve, tmp_path):
    """Without it: a limited server is flooded."""
    server = serve(lambda n, body: 0.02)
    ask(server, tmp_path, records(24), concurrency=3)
    assert server.most <= 3


def test_what_passes_is_tried_again(serve, tmp_path):
    """Without it: one 429, one broken or silent connection costs an answer."""
    trouble = [
        (429, "slow down", {"Retry_After": "0"}),
        (503, "busy", {}),
        (200, "RAW not json", {}),
        (200, 'RAW {"choices": []}', {}),
        0.6,
    ]
    server = serve(lambda n, body: trouble[n - 1] if n <= len(trouble) else (200, good(body), {}))
    made, client = ask(server, tmp_path, records(2), concurrency=1, attempts=8, timeout=0.3)
    assert len(wrong_answers(made)) == 2
    assert client.retries["429"] == client.retries["503"] == 1 and client.retries["200"] == 2
    assert client.retries["ReadTimeout"] == 1


@pytest.mark.parametrize(
    ("replies", "reason", "filtered"),
    [
        (["no json", '{"index": 9, "phrase": "a cat"}', '{"index": true, "phrase": "a cat"}'], "garbage", {}),
        (['{"index": 1, "phrase": "a cat", "why": "x"}', "[]", '{"index": 1, "phrase": 3}'], "garbage", {}),
        (['{"index": 1, "phrase": "a dog"}', '{"index": 1, "phrase": "a brown dog"}'] * 2, "trivial",
         {"same": 2, "part_of": 1}),
    ],
)  # fmt: skip
def test_bad_replies_are_refused_and_counted(serve, tmp_path, replies, reason, filtered):
    """Without it: garbage gets into the data, or an answer disappears in silence."""
    server = serve(lambda n, body: (200, replies[n - 1], {}))
    [(out, counts, failures)], _ = ask(server, tmp_path, records(1))
    assert sum(server.asked.values()) == 3 and len(server.asked) == 3  # each time with the reason added
    assert len(out) == 1 and not wrong_answers([(out, counts, failures)])
    assert counts[f"without_negative.{reason}"] == 1 and counts["replies"] == 3
    assert failures[0]["id"] == "0" and failures[0]["reason"] == reason and failures[0]["detail"]
    assert {
        key.removeprefix("filtered."): n for key, n in counts.items() if key.startswith("filtered.")
    } == filtered


def test_a_second_reply_may_mend_the_first(serve, tmp_path):
    """Without it: one slip of the model costs the answer."""
    server = serve(lambda n, body: (200, "Sure! Here it is" if n == 1 else good(body), {}))
    made, _ = ask(server, tmp_path, records(1))
    assert len(wrong_answers(made)) == 1 and made[0][1]["garbage"] == 1


def test_nothing_is_asked_twice(serve, tmp_path):
    """Without it: a second run pays for everything again, or the same question is paid for twice at once."""
    server = serve(lambda n, body: 0.01)
    wanted = records(6) + [record | {"id": f"twin {record['id']}"} for record in records(6)]
    first, _ = ask(server, tmp_path, wanted)
    assert set(server.asked.values()) == {1} and len(server.asked) == 6
    again, client = ask(server, tmp_path, wanted)
    assert client.asked == 0 and sum(server.asked.values()) == 6
    assert again == first


def test_a_server_that_is_gone_stops_the_run(serve, tmp_path):
    """Without it: a million answers are written off as failures while the server restarts."""
    server = serve(lambda n, body: (200, good(body), {}) if n <= 3 else (500, "gone", {}))
    with pytest.raises(ValueError, match=r"4 answers in a row got no reply.*kept"):
        ask(server, tmp_path, records(30), concurrency=1, attempts=2, max_silent=4)
    server.behave = lambda n, body: (200, good(body), {})
    made, client = ask(server, tmp_path, records(30))
    assert len(wrong_answers(made)) == 30 and client.asked == 27


def test_single_failures_are_written_down(serve, tmp_path):
    """Without it: an answer that the server chokes on stops the run, or vanishes."""

    def choke(n, body):
        return (400, "too long", {}) if "number 2?" in str(body) else (200, good(body), {})

    server = serve(choke)
    made, _ = ask(server, tmp_path, records(5))
    assert [failure["reason"] for _, _, failures in made for failure in failures] == ["refused"]
    assert len(wrong_answers(made)) == 4


@pytest.mark.parametrize(("status", "message"), [(401, "refuses the key"), (404, "REVERSE_LLM_MODEL")])
def test_what_can_never_work_is_said_at_once(serve, tmp_path, status, message):
    """Without it: a wrong key is tried a million times."""
    server = serve(lambda n, body: (status, "no", {}))
    with pytest.raises(ValueError, match=message):
        ask(server, tmp_path, records(5), concurrency=1)
    assert sum(server.asked.values()) <= 5


def test_a_reply_is_read_strictly():
    """Without it: a phrase with tags, a line break or an index of another list gets through."""
    assert read_reply('```json\n{"index": 2, "phrase": " a cat "}\n```', [4, 7]) == (7, "a cat")
    bads = (
        "",
        "null",
        '{"index": 0, "phrase": "x"}',
        '{"index": 1, "phrase": ""}',
        '{"index": 1, "phrase": "a\\nb"}',
        '{"index": 1, "phrase": "</UN>"}',
        '{"index": "1", "phrase": "x"}',
        f'{{"index": 1, "phrase": "{"x" * 300}"}}',
        '{"index": 1, "phrase": "x"} and more',
    )
    for bad in bads:
        with pytest.raises(ValueError):
            read_reply(bad, [4, 7])


def test_the_prompt_shows_no_tags_and_few_phrases():
    """Without it: the model sees <SPAN> and writes it, or a long answer costs a page of phrases."""
    answer = " ".join(f"{SPAN}a thing{i}{CN}" for i in range(40))
    [turn] = read_turns(make_record("1", "a.png", "What?", answer))
    chat = build_messages(turn, [3, 5])
    assert "<" not in chat[1]["content"] and "a thing3" in chat[1]["content"] and "1. " in chat[1]["content"]


def test_a_torn_cache_keeps_what_is_whole(tmp_path):
    """Without it: a kill in the middle of a write makes the cache unreadable, with all that was paid for."""
    path = tmp_path / "replies.jsonl"
    cache = ReplyCache(path)
    cache.put("00" * 16, Reply("one\n", 1, 2))
    cache.put("11" * 16, Reply("zwei ü \u2028", 3, 4))
    cache.close()
    path.write_bytes(path.read_bytes() + b'{"key": "22')
    cache = ReplyCache(path)
    assert len(cache) == 2 and cache.get("11" * 16) == Reply("zwei ü \u2028", 3, 4, cached=True)
    cache.put("22" * 16, Reply("three", 5, 6))
    cache.close()
    cache = ReplyCache(path)
    assert [cache.get(key * 16).text for key in ("00", "11", "22")] == ["one\n", "zwei ü \u2028", "three"]
    cache.close()
    (tmp_path / "other.json").write_text('{"a": 1}\n')
    with pytest.raises(ValueError, match="another file"):
        ReplyCache(tmp_path / "other.json")


def run(monkeypatch, server, *arguments):
    monkeypatch.setenv("REVERSE_LLM_BASE_URL", server.url)
    monkeypatch.setenv("REVERSE_LLM_MODEL", "m")
    monkeypatch.setenv("REVERSE_LLM_KEY", "secret-key")
    return CliRunner().invoke(app, ["data", "negatives", *map(str, arguments), "--by", "llm"])


def test_the_command_says_what_it_cost(serve, tmp_path, monkeypatch):
    """Without it: nobody knows what a run cost, or the key is written to disk."""
    source = tmp_path / "tagged.json"
    source.write_text(json.dumps(records(5)))
    result = run(
        monkeypatch, serve(), source, tmp_path / "out.json", "--price-in", "2", "--price-out", "1000"
    )
    assert result.exit_code == 0, result.output
    assert "5 replies, 500 tokens in, 50 out, 0.05 money" in result.output
    assert not any(b"secret-key" in path.read_bytes() for path in tmp_path.iterdir())
    manifest = json.loads((tmp_path / "out.json.manifest.json").read_text())
    assert manifest["counts"]["tokens_in"] == 500 and manifest["prompt"] == 1 and manifest["model"] == "m"


def test_no_money_is_spent_on_pairs(serve, tmp_path, monkeypatch):
    """A set that has its negatives would be paid for again, and hold each of them twice."""
    source, server = tmp_path / "tagged.json", serve()
    paired = [made for pair, _, _ in make_lexicon_negatives(records(5)) for made in pair]
    source.write_text(json.dumps(paired + [record | {"id": "new"} for record in records(1)]))
    assert run(monkeypatch, server, source, tmp_path / "out.json").exit_code == 0
    made = list(read_records(tmp_path / "out.json"))
    assert made[:10] == paired and {record["id"] for record in made[10:]} == {"new", "new-neg"}
    assert len(server.asked) == 1


def test_without_an_address_the_variables_are_named(tmp_path, monkeypatch):
    """Without it: a KeyError."""
    for name in ("REVERSE_LLM_BASE_URL", "REVERSE_LLM_MODEL"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "in.json").write_text(json.dumps(records(1)))
    result = CliRunner().invoke(
        app, ["data", "negatives", str(tmp_path / "in.json"), str(tmp_path / "out.json"), "--by", "llm"]
    )
    assert result.exit_code == 2 and "REVERSE_LLM_BASE_URL is not set" in result.output


def test_killed_at_any_moment_nothing_is_lost_or_paid_for_twice(serve, tmp_path):
    """Without it: a SIGKILL costs replies that had come, or the file ends differently.

    What was under way when the process died may have to be asked again: at most two requests a kill.
    """
    server = serve(lambda n, body: 0.02)
    source, out = tmp_path / "tagged.jsonl", tmp_path / "out.jsonl"
    source.write_text("".join(json.dumps(record) + "\n" for record in records(150)))
    environment = {"REVERSE_LLM_BASE_URL": server.url, "REVERSE_LLM_MODEL": "m"}
    command = ["-m", "reverse", "data", "negatives", source, out, "--by", "llm", "--concurrency", "2"]
    kills = 0
    for target in (20, 70):
        process = start_python(*command, **environment)
        deadline = time.monotonic() + 60
        while sum(server.answered.values()) < target and time.monotonic() < deadline:
            time.sleep(0.005)
        process.kill()
        process.join()
        kills += 1
        assert not out.exists()
    process = start_python(*command, **environment)
    process.join()
    assert process.exitcode == 0
    made = list(read_records(out))
    assert [record["id"].removesuffix("-neg") for record in made][::2] == [str(i) for i in range(150)]
    assert all(not find_problems(turn["value"]) for record in made for turn in record["conversations"])
    assert len(server.asked) == 150
    assert sum(server.asked.values()) <= 150 + 2 * kills
    replies = (tmp_path / "out.jsonl.replies.jsonl").read_text().splitlines()
    assert len(replies) == 150


def test_a_cache_has_one_writer(tmp_path):
    """Replies of two runs that share a file would be told for each other's questions."""
    from reverse.endpoints.reply_cache import Reply, ReplyCache

    path = tmp_path / "replies.jsonl"
    first = ReplyCache(path)
    first.put("aa", Reply("one", 1, 1))
    with pytest.raises(ValueError, match="being written by another process"):
        ReplyCache(path)
    first.close()
    second = ReplyCache(path)
    second.put("bb", Reply("two", 1, 1))
    assert (second.get("aa").text, second.get("bb").text) == ("one", "two")
    second.close()
