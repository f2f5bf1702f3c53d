"""Mutations of texts, bytes and JSON values, all drawn from a seeded generator."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Callable, Sequence
from random import Random
from typing import Any

ODD_TEXTS = (
    "", " ", "\n", "\0", "\ud83d", "\udc00", "\ufeff", "\u202e", "é", "狗", "🦒", "\x1b[31m", "\u2028", "\r",
    "<SPAN>", "</CN>", "</UN>", "<SPAN>a dog</CN>", "</cn>", "</UN >", "<image>", "<image>\n", "</s>", "null",
    "<|im_end|>", "<|im_start|>assistant", "<think>", "</think>", "```json", "{", "}", "[", "]", '"', "\\",
    "../../etc/passwd", "/etc/passwd", "a" * 300, "yes", "no", "NaN", "1e999", "-0", "2e-5", "~", "&a", "*a",
)  # fmt: skip
ODD_VALUES: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 2**31, 2**63, 2**70, 10**400, -(2**64), 0.5, -0.0, 1e308, float("nan"),
    float("inf"), float("-inf"), [], {}, [[]], [None], {"": None}, "", " ", "\ud83d", "a", [0] * 50,
    {"a": {"b": {"c": []}}}, "x" * 5000, [1, "1", None], "1", "-1", "0", "nan",
)  # fmt: skip
ODD_BYTES = (
    b"", b"\0", b"\xff", b"\xef\xbb\xbf", b"\xff\xfe", b"\xe9", b"\xed\xa0\x80", b"\n", b"\r\n", b" ", b",",
    b"[", b"]", b"{", b"}", b'"', b"\\", b":", b"null", b"NaN", b"Infinity", b"1e999", b"-", b"[" * 60,
    b'{"a":' * 60, b"\\ud83d", b"//", b"'", b"<SPAN>", b"</UN>", b"<image>", b"\x7f\xff\xff\xff", b"\0" * 8,
)  # fmt: skip


def mutate_text(rng: Random, text: str, words: Sequence[str] = ODD_TEXTS) -> str:
    """`text` with one to four changes: words put in, parts cut, repeated, moved or replaced."""
    for _ in range(rng.randint(1, 4)):
        a, b = sorted((rng.randint(0, len(text)), rng.randint(0, len(text))))
        change = rng.randrange(7)
        if change <= 2:
            text = text[:a] + rng.choice(words) + text[a:]
        elif change == 3:
            text = text[:a] + text[min(b, a + 20) :]
        elif change == 4:
            text = text[:b] + text[a:b][:200] * rng.choice((1, 2, 20)) + text[b:]
        elif change == 5:
            text = text[:a] + chr(rng.choice((rng.randrange(32, 127), rng.randrange(0x3000)))) + text[a + 1 :]
        else:
            text = text[:a]
    return text


def mutate_bytes(rng: Random, data: bytes, header: int = 64) -> bytes:
    """`data` with one to six changes; half of them fall into the first `header` bytes."""
    out = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 3, 6))):
        reach = len(out) if rng.random() < 0.5 else min(len(out), header)
        a = rng.randint(0, reach)
        change = rng.randrange(8)
        if change == 0 and a < len(out):
            out[a] ^= 1 << rng.randrange(8)
        elif change == 1 and a < len(out):
            out[a] = rng.choice((0, 1, 127, 128, 255, rng.randrange(256)))
        elif change == 2:
            size = rng.choice((2, 4, 8))
            number = rng.choice((0, 1, -1, 2 ** (8 * size - 1) - 1, rng.getrandbits(8 * size - 1)))
            out[a : a + size] = number.to_bytes(size, rng.choice(("big", "little")), signed=True)
        elif change == 3:
            del out[a : a + rng.choice((1, 2, 7, 100))]
        elif change == 4:
            out[a:a] = rng.choice(ODD_BYTES)
        elif change == 5:
            out[a:a] = out[a : a + rng.choice((1, 8, 64, 300))]
        elif change == 6:
            b = rng.randint(0, len(out))
            out[a:a] = out[b : b + 40]
        else:
            del out[rng.randint(0, len(out)) :]
    return bytes(out)


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The paths of all values inside a JSON value, its own among them."""
    found = [path]
    if len(path) > 30:
        return found
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        found += places(inner, (*path, key))
    return found


def mutate_json(rng: Random, value: Any, odd: Sequence[Any] = ODD_VALUES) -> Any:
    """A copy of a JSON value with one to three values replaced, dropped, renamed, repeated or wrapped."""
    value = json.loads(json.dumps(value))
    for _ in range(rng.choice((1, 1, 2, 3))):
        path = rng.choice(places(value))
        value = _changed(value, path, lambda old: _replaced(rng, old, odd), rng)
    return value


def _changed(value: Any, path: tuple[Any, ...], new: Callable[[Any], Any], rng: Random) -> Any:
    if not path:
        return new(value)
    holder = value
    for key in path[:-1]:
        holder = holder[key]
    last, change = path[-1], rng.randrange(8)
    if change == 0:
        del holder[last]
    elif change == 1 and isinstance(holder, dict):
        holder[rng.choice(ODD_TEXTS)] = holder.pop(last)
    elif change == 2 and isinstance(holder, list):
        holder.insert(last, holder[last])
    else:
        holder[last] = new(holder[last])
    return value


def _replaced(rng: Random, old: Any, odd: Sequence[Any]) -> Any:
    change = rng.randrange(8)
    if isinstance(old, str) and change < 4:
        return mutate_text(rng, old)
    if isinstance(old, (int, float)) and not isinstance(old, bool) and change < 3:
        return rng.choice(
            (-old, old + 1, old * 1000, str(old), old / 2 if abs(old) < 2**60 else 0.5, old - 1)
        )
    if change == 4:
        return [old]
    if change == 5:
        return nested(rng.choice((5, 200, 3000)), rng.choice(("list", "dict")))
    return copy.deepcopy(rng.choice(odd))  # lists would be changed in later cases, or hold themselves


def nested(depth: int, kind: str = "list") -> Any:
    """A list in a list in a list, or so with objects; a mark for `dumps` where Python could not walk it."""
    if depth > 30:
        return f"@nested {kind} {depth}@"
    value: Any = 0
    for _ in range(depth):
        value = [value] if kind == "list" else {"a": value}
    return value


def dumps(value: Any, rng: Random | None = None) -> str:
    """JSON of a value however deep; with `rng`, with or without escapes and indentation."""
    ascii_only = rng is None or rng.random() < 0.5
    text = json.dumps(value, ensure_ascii=ascii_only, indent=rng.choice((None, 1)) if rng else None)
    return _NESTED.sub(_brackets, text) if "@nested" in text else text


_NESTED = re.compile(r'"@nested (list|dict) (\d+)@"')


def _brackets(match: re.Match[str]) -> str:
    opening, closing = ("[", "]") if match[1] == "list" else ('{"a":', "}")
    depth = min(int(match[2]), 100_000)  # a mutated digit may make it huge
    return opening * depth + "0" + closing * depth


def encode(rng: Random, text: str) -> bytes:
    """UTF-8 mostly, at times with a byte-order mark, in Latin-1 or UTF-16."""
    draw = rng.random()
    if draw < 0.02:
        return text.encode("latin-1", "replace")
    if draw < 0.03:
        return text.encode("utf-16", "surrogatepass")
    data = text.encode("utf-8", "surrogatepass")
    return b"\xef\xbb\xbf" + data if draw < 0.08 else data
