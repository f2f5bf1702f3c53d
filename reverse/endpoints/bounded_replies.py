"""Read what a server sends within bounds: bytes, compression and nesting, whatever its headers promise.

    body = await read_body(response, MOST_BYTES)       # of an httpx response that is streamed
    completion = read_completion(body)                 # text and token counts of a chat completion

Every fault of a reply is a `BadReply`, so that one reply can never end a run: the caller asks again and
counts it. The time of an exchange is bounded by its caller (`reverse.endpoints.client`).
"""

from __future__ import annotations

import json
import zlib
from typing import Any

from reverse.errors import DataError
from reverse.files.text_reading import MAX_DEPTH, is_deeper, replace_surrogates

__all__ = ["MOST_BYTES", "BadReply", "plain_line", "read_body", "read_completion"]

MOST_BYTES = 4 << 20  # of one reply, as it is sent and as it is unpacked
MOST_CHUNKS = 20_000  # in which it may be sent: each costs tens of microseconds, of one byte too
MOST_TOKENS = 1 << 40  # that a reply may say it cost
_PACKED = ("gzip", "x-gzip", "deflate")


class BadReply(Exception):
    """A reply that is no chat completion, or that breaks a bound; the message says which."""


async def read_body(response: Any, most: int = MOST_BYTES, *, cut: bool = False) -> bytes:
    """The body of a streamed httpx response, unpacked.

    Bytes are unpacked here and not by httpx, which would unpack a whole chunk, however large it grows.

    Args:
        response: of `httpx.AsyncClient.stream`.
        most: bytes, both as sent and unpacked.
        cut: leave out what is beyond `most` instead of refusing it.

    Raises BadReply for a body that is larger, damaged, or packed otherwise than by gzip or deflate.
    """
    packing = response.headers.get("content-encoding", "identity").strip().lower() or "identity"
    if packing not in ("identity", *_PACKED):
        raise BadReply(f"it is packed as {plain_line(packing, 40)!r}: only gzip and deflate are read")
    unpack = zlib.decompressobj(wbits=47) if packing in _PACKED else None  # 47: gzip or zlib, as it comes
    body = bytearray()
    sent = chunks = 0
    async for chunk in response.aiter_raw():
        sent, chunks = sent + len(chunk), chunks + 1
        try:
            body += chunk if unpack is None else unpack.decompress(chunk, most + 1 - len(body))
        except zlib.error as error:
            raise BadReply(f"its {packing} is damaged: {error}") from error
        if max(sent, len(body)) > most:
            if cut:
                return bytes(body[:most])
            raise BadReply(f"it is larger than {most:,} bytes")
        if chunks > MOST_CHUNKS:
            raise BadReply(f"it comes in more than {MOST_CHUNKS:,} pieces")
    return bytes(body)


def read_completion(body: bytes) -> tuple[str, int, int]:
    """Text, tokens read and tokens written of a chat completion.

    Halves of surrogate pairs in the text are replaced, since no request can send them back.

    Raises BadReply for anything else, such as JSON that is nested too deeply or token counts that are none.
    """
    try:
        content = json.loads(body, parse_constant=_refuse_constant)
        if is_deeper(content, MAX_DEPTH):
            raise RecursionError
        text = content["choices"][0]["message"]["content"]
        usage = content.get("usage") or {}
        read, written = (_count(usage.get(name)) for name in ("prompt_tokens", "completion_tokens"))
    except RecursionError:
        raise BadReply(f"its JSON is nested more than {MAX_DEPTH} deep") from None
    except (ValueError, KeyError, IndexError, TypeError, AttributeError, OverflowError) as error:
        raise BadReply(f"it is no chat completion ({type(error).__name__}: {str(error)[:100]})") from None
    if not isinstance(text, str):
        raise BadReply(f"its content is no text but {type(text).__name__}")
    return replace_surrogates(text), read, written


def _count(value: Any) -> int:
    """A number of tokens; 0 where none is given. Raises ValueError, TypeError or OverflowError."""
    count = int(value or 0)
    if not 0 <= count <= MOST_TOKENS:
        raise DataError(f"{str(value)[:40]} is no number of tokens")
    return count


def _refuse_constant(name: str) -> Any:
    raise DataError(f"{name} is no JSON")


def plain_line(text: str, most: int = 200) -> str:
    """The beginning of a foreign text, for a message: one line, without control characters."""
    return "".join(c if c.isprintable() else " " for c in replace_surrogates(text[:most])).strip()
