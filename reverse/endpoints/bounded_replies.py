"""Read what a server sends within bounds on bytes, compression and nesting, whatever its headers promise.

    body = await read_body(response)                   # of an httpx response that is streamed
    completion = read_completion(body)                 # text and token counts of a chat completion

Every fault of a reply is a `BadReplyError`, which the caller counts; no reply ends a run.
"""

from __future__ import annotations

import json
import zlib
from typing import Any

from reverse.errors import DataError
from reverse.files.text_reading import MAX_DEPTH, is_deeper, replace_surrogates

__all__ = ["MAX_REPLY_BYTES", "BadReplyError", "plain_line", "read_body", "read_completion"]

MAX_REPLY_BYTES = 4 << 20  # of one reply, both as sent and unpacked
MAX_CHUNKS = 20_000  # of one reply; each costs tens of microseconds, also a chunk of one byte
MAX_TOKENS = 1 << 40  # that a reply may report as used
_PACKINGS = ("gzip", "x-gzip", "deflate")


class BadReplyError(Exception):
    """A reply that is not a chat completion or breaks a bound; the message says which."""


async def read_body(response: Any, most: int = MAX_REPLY_BYTES, *, cut: bool = False) -> bytes:
    """Read and unpack the body of a streamed httpx response.

    Bytes are unpacked here because httpx would unpack a whole chunk, however large it grows.

    Args:
        response: an httpx response whose body has not been read.
        most: largest number of bytes, both as sent and unpacked.
        cut: drop what exceeds `most` instead of raising.

    Raises BadReplyError for a body that is too large, damaged, or packed other than by gzip or deflate.
    """
    packing = response.headers.get("content-encoding", "identity").strip().lower() or "identity"
    if packing not in ("identity", *_PACKINGS):
        raise BadReplyError(f"it is packed as {plain_line(packing, 40)!r}: only gzip and deflate are read")
    unpacker = zlib.decompressobj(wbits=47) if packing in _PACKINGS else None  # 47: gzip or zlib, as it comes
    body = bytearray()
    sent = chunks = 0
    async for chunk in response.aiter_raw():
        sent, chunks = sent + len(chunk), chunks + 1
        try:
            body += chunk if unpacker is None else unpacker.decompress(chunk, most + 1 - len(body))
        except zlib.error as error:
            raise BadReplyError(f"its {packing} is damaged: {error}") from error
        if max(sent, len(body)) > most:
            if cut:
                return bytes(body[:most])
            raise BadReplyError(f"it is larger than {most:,} bytes")
        if chunks > MAX_CHUNKS:
            raise BadReplyError(f"it comes in more than {MAX_CHUNKS:,} pieces")
    return bytes(body)


def read_completion(body: bytes) -> tuple[str, int, int]:
    """Return the text, the tokens read and the tokens written of a chat completion.

    Lone surrogates in the text are replaced, because no request could send them back. Raises BadReplyError
    for anything that is not a completion, such as JSON that is nested too deeply or impossible token counts.
    """
    try:
        content = json.loads(body, parse_constant=_refuse_constant)
        if is_deeper(content, MAX_DEPTH):
            raise RecursionError
        text = content["choices"][0]["message"]["content"]
        usage = content.get("usage") or {}
        read, written = (_read_count(usage.get(name)) for name in ("prompt_tokens", "completion_tokens"))
    except RecursionError:
        raise BadReplyError(f"its JSON is nested more than {MAX_DEPTH} deep") from None
    except (ValueError, KeyError, IndexError, TypeError, AttributeError, OverflowError) as error:
        raise BadReplyError(
            f"it is not a chat completion ({type(error).__name__}: {str(error)[:100]})"
        ) from None
    if not isinstance(text, str):
        raise BadReplyError(f"its content is not a text but {type(text).__name__}")
    return replace_surrogates(text), read, written


def _read_count(value: Any) -> int:
    count = int(value or 0)
    if not 0 <= count <= MAX_TOKENS:
        raise DataError(f"{str(value)[:40]} is not a number of tokens")
    return count


def _refuse_constant(name: str) -> Any:
    raise DataError(f"{name} is not JSON")


def plain_line(text: str, longest: int = 200) -> str:
    """Return the beginning of a foreign text on one line without control characters, for a message."""
    return "".join(c if c.isprintable() else " " for c in replace_surrogates(text[:longest])).strip()
