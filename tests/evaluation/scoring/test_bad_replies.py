"""A judge on 127.0.0.1 that sends what no server should: no reply ends a run, fills memory or holds it up."""

import asyncio
import gzip
import json
import time
import zlib

import pytest

from reverse.data.negatives.negative_prompt import read_reply
from reverse.endpoints.bounded_replies import MAX_REPLY_BYTES
from reverse.endpoints.client import ChatClient, Endpoint, UnansweredError
from reverse.endpoints.repeated_asking import REPLIES
from reverse.endpoints.reply_cache import Reply, ReplyCache
from reverse.evaluation.benchmarks import mmhal
from reverse.evaluation.scoring import judge


@pytest.fixture
def serve(chat_server):
    """Servers; `reply(handler, content)` writes the reply to a chat that ends with `content`."""

    def make(reply):
        return chat_server(lambda handler, body: reply(handler, body["messages"][-1]["content"]))

    return make


def completion(text='{"rating": 4}', usage='{"prompt_tokens": 10, "completion_tokens": 2}'):
    content = json.dumps({"choices": [{"message": {"content": text}}]})
    return f'{content[:-1]}, "usage": {usage}}}'.encode()


def drip(handler):
    """A byte now and then, each within the time that one read may take."""
    handler.send_response(200)
    handler.end_headers()
    for byte in completion():
        handler.wfile.write(bytes([byte]))
        handler.wfile.flush()
        time.sleep(0.05)


def in_pieces(handler):
    """More pieces than a reply may come in, a byte each."""
    handler.protocol_version = "HTTP/1.1"
    handler.send_response(200)
    handler.send_header("Transfer-Encoding", "chunked")
    handler.end_headers()
    handler.wfile.write(b"1\r\n \r\n" * 25_000 + b"0\r\n\r\n")


BOMB = gzip.compress(b" " * (40 << 20), 1)  # 40 MB in 180 kB
BAD = {
    "infinite": lambda h: h.give(completion(usage='{"prompt_tokens": Infinity}')),
    "overflowing": lambda h: h.give(completion(usage='{"prompt_tokens": 1e999}')),
    "negative": lambda h: h.give(completion(usage='{"completion_tokens": -3}')),
    "long number": lambda h: h.give(completion(usage='{"prompt_tokens": ' + "9" * 5000 + "}")),
    "no usage": lambda h: h.give(completion(usage="[1]")),
    "nested": lambda h: h.give(b"[" * 100_000),
    "nested a little less": lambda h: h.give(completion(usage="[" * 200 + "]" * 200)),
    "no content": lambda h: h.give(b'{"choices": [{"message": {"content": null}}]}'),
    "no UTF-8": lambda h: h.give(b'{"choices": "\xff\xfe"}'),
    "large": lambda h: h.give(b" " * (MAX_REPLY_BYTES + 10)),
    "gzip bomb": lambda h: h.give(BOMB, Content_Encoding="gzip"),
    "deflate bomb": lambda h: h.give(zlib.compress(b"[" * (20 << 20)), Content_Encoding="deflate"),
    "damaged gzip": lambda h: h.give(BOMB[:50] + b"\0" * 50, Content_Encoding="gzip"),
    "other packing": lambda h: h.give(completion(), Content_Encoding="zstd"),
    "drip": drip,
    "pieces": in_pieces,
    "odd charset": lambda h: h.give(b"\xff\xfe\x00", 500, Content_Type="text/plain; charset=hex"),
    "unknown charset": lambda h: h.give(b"\x1b[2J", 500, Content_Type="text/plain; charset=no-such"),
    "odd dates": lambda h: h.give(b"", 503, Retry_After="Mon, 01 Jan 0000 00:00:00 +9999"),
    "large error": lambda h: h.give(b"x" * (1 << 20), 500),
    "no HTTP": lambda h: h.wfile.write(b"SSH-2.0-OpenSSH_9.0\r\n\r\n"),
    "many headers": lambda h: h.give(completion(), **{f"X{i}": "y" * 900 for i in range(200)}),
}  # fmt: skip


def ask_both(server, path, timeout):
    """What came of a chat that gets a bad reply, and of one that gets a good one."""

    async def run():
        cache = ReplyCache(path)
        client = ChatClient(Endpoint(server.url, "m", timeout=timeout, attempts=2, backoff=0.001), cache)
        try:
            chats = [[{"role": "user", "content": content}] for content in ("bad", "good")]
            return await asyncio.gather(*map(client.ask, chats), return_exceptions=True)
        finally:
            await client.aclose()
            cache.close()

    return asyncio.run(run())


@pytest.mark.parametrize("kind", BAD)
def test_a_bad_reply_is_one_failure(kind, serve, tmp_path):
    """One reply would end a run of thousands, take all memory, or hold it up for hours."""
    server = serve(lambda h, chat: BAD[kind](h) if chat == "bad" else h.give(completion()))
    bad, good = ask_both(server, tmp_path / "c", timeout=0.8 if kind == "drip" else 5.0)
    assert isinstance(bad, UnansweredError) and bad.kind == "unreachable", bad
    assert len(str(bad)) < 400 and str(bad).isprintable()
    assert good == Reply('{"rating": 4}', 10, 2)
    assert len(server.bodies) == 3 and (tmp_path / "c").read_bytes().count(b"\n") == 1


@pytest.mark.parametrize("packing", ["gzip", "deflate"])
def test_packed_replies_are_read(packing, serve, tmp_path):
    """A proxy that packs whatever it passes on would make every reply a bad one."""
    pack = {"gzip": gzip.compress, "deflate": zlib.compress}[packing]
    server = serve(lambda h, chat: h.give(pack(completion("ü" * 500)), Content_Encoding=packing))
    assert ask_both(server, tmp_path / "c", 5.0)[0].text == "ü" * 500


def test_halves_of_surrogate_pairs_can_be_sent(serve, tmp_path):
    """An answer or a reply with half an emoji could not be encoded, and would end the run."""
    server = serve(lambda h, chat: h.give(completion('"\ud83d')))
    one = judge.Judge(Endpoint(server.url, "m", attempts=1), tmp_path / "c")
    found = one.ask([judge.make_chat("s", {"answer": "half \ud83d"})], mmhal.read_rating)
    assert found.values == [None] and found.failures[0].startswith("garbage")
    assert len(server.bodies) == REPLIES and "\ufffd" in str(server.bodies[1])


def test_an_azure_resource_is_asked_in_its_own_way(chat_server, tmp_path, monkeypatch):
    """The deployment would not be a part of the path, or a token of the environment would be sent instead."""
    monkeypatch.setenv("AZURE_OPENAI_AD_TOKEN", "not for this server")
    server = chat_server(lambda handler, body: handler.give("fine"))
    for name, value in (
        ("BASE_URL", server.url.removesuffix("/v1")), ("MODEL", "d 1"), ("KEY", "k"),
        ("API_VERSION", "2024-10-21"),
    ):  # fmt: skip
        monkeypatch.setenv(f"REVERSE_LLM_{name}", value)

    async def ask():
        cache = ReplyCache(tmp_path / "c")
        client = ChatClient(Endpoint.from_environment(attempts=1), cache)
        try:
            return await client.ask([{"role": "user", "content": "?"}])
        finally:
            await client.aclose()
            cache.close()

    assert asyncio.run(ask()).text == "fine" and server.keys == {"k"}
    assert server.paths == {"/openai/deployments/d%201/chat/completions?api-version=2024-10-21"}


@pytest.mark.parametrize("key", ["käse", "a b", "a\nb", "\u2026"])
def test_a_key_that_no_header_holds(key):
    """The first request would end in a UnicodeEncodeError, or an error would show the key."""
    with pytest.raises(ValueError, match="REVERSE_LLM_KEY has a character at place") as caught:
        Endpoint("http://127.0.0.1/v1", "m", key)
    assert key not in str(caught.value)


def judged(server, path, chats, **settings):
    """Verdicts on answers by number, each in a chat of its own."""
    endpoint = Endpoint(server.url, "m", timeout=5.0, attempts=2, backoff=0.001)
    one = judge.Judge(endpoint, path, **settings)
    return one.ask([judge.make_chat("s", {"answer": n}) for n in range(chats)], mmhal.read_rating)


def number(chat):
    return json.loads(chat)["answer"] if chat.startswith("{") else -1


def test_only_verdicts_are_kept(serve, tmp_path):
    """A judge that once gave no verdict would give none for ever: its reply would come from the cache."""
    broken = True

    def reply(handler, chat):
        handler.give(completion("I cannot say." if broken and number(chat) != 0 else '{"rating": 5}'))

    server = serve(reply)
    path = tmp_path / "c"
    found = judged(server, path, 4)
    assert found.values == [5, None, None, None] and len(server.bodies) == 1 + 3 * REPLIES
    assert path.read_bytes().count(b"\n") == 1
    broken = False
    found = judged(server, path, 4)
    assert found.values == [5] * 4 and found.spent["asked"] == 3 and found.spent["cached"] == 1
    asked = len(server.bodies)
    assert judged(server, path, 4).values == [5] * 4 and len(server.bodies) == asked


def test_a_verdict_at_the_second_time_is_found_again(serve, tmp_path):
    """What was handed back would be asked anew each time, and its tokens be forgotten."""

    def reply(handler, chat):
        handler.give(completion("So so." if number(chat) == 0 else '{"rating": 1}'))

    server = serve(reply)
    assert judged(server, tmp_path / "c", 1).values == [1] and len(server.bodies) == 2
    found = judged(server, tmp_path / "c", 1)
    assert found.values == [1] and len(server.bodies) == 2 and found.spent["tokens_in"] == 20


def test_fresh_and_other_addresses_ask_again(serve, tmp_path):
    """Verdicts of one server would be reported as those of another with a model of the same name."""
    first = serve(lambda h, chat: h.give(completion('{"rating": 1}')))
    other = serve(lambda h, chat: h.give(completion('{"rating": 6}')))
    path = tmp_path / "c"
    assert judged(first, path, 2).values == [1, 1]
    assert judged(other, path, 2).values == [6, 6]
    assert judged(first, path, 2, fresh=True).values == [1, 1] and len(first.bodies) == 4
    assert judged(first, path, 2).values == [1, 1] and len(first.bodies) == 4


def test_a_cache_with_garbage_of_before_is_asked_again(serve, tmp_path):
    """Older files hold replies without a verdict, which would be read as if they had just come."""
    server = serve(lambda h, chat: h.give(completion('{"rating": 2}')))
    assert judged(server, tmp_path / "c", 1).values == [2]
    line = json.loads((tmp_path / "c").read_text()) | {"reply": "no verdict"}
    (tmp_path / "c").write_text(json.dumps(line) + "\n")
    assert judged(server, tmp_path / "c", 1).values == [2] and len(server.bodies) == 2


def test_one_refusal_among_replies_is_one_failure(serve, tmp_path):
    """One of several servers behind an address that knows no key would end the run."""
    seen = []

    def reply(handler, chat):
        seen.append(chat)
        handler.give(completion(), 401 if number(chat) == 2 else 200)

    found = judged(serve(reply), tmp_path / "c", 5, concurrency=1)
    assert found.values == [4, 4, None, 4, 4] and found.failures[2].startswith("refused: HTTP 401")
    with pytest.raises(ValueError, match="refuses the key"):
        judged(serve(lambda h, chat: h.give(b"no", 401)), tmp_path / "d", 5)


@pytest.mark.parametrize(
    "text",
    [
        "<think>" * 140_000 + '{"rating": 1}',
        "<think>" + '{"rating": 1}' * 80_000,
        '{"a":' * 200_000,
        '{"a": "' * 120_000,
        '{"a": [' + "1," * 500_000,
        "{" * 1_000_000,
        '{"rating": ' + "[" * 500 + "]" * 500 + "}",
        '{"rating": ' + "9" * 5000 + "}",
        '{"rating": Infinity}',
        '{"rating": "²"}',
        '{"rating": ' + json.dumps([[1] * 3] * 900) + "}",
    ],
    ids=str.__len__,
)
def test_hostile_verdicts(text):
    """A megabyte of braces would be read in quadratic time, a deep value end the run."""
    with pytest.raises(ValueError) as caught:
        mmhal.read_rating(judge.find_object(text))
    assert len(str(caught.value)) < 200


@pytest.mark.parametrize("piece", ["```", "``` ", " ", "{", '{"index": 1, ', "[", "\\"], ids=repr)
def test_hostile_replies_of_the_model_that_makes_negatives(piece):
    """A megabyte of blanks behind a code fence would be read in quadratic time."""
    for text in (piece * (1_000_000 // len(piece)), "```" + piece * (1_000_000 // len(piece)) + "x"):
        with pytest.raises(ValueError, match="not a JSON object"):
            read_reply(text, [1])
