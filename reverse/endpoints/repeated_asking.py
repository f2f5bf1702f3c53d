"""The common rule for asking a model again, used for judges, negatives and curation.

A reply that cannot be used is sent back with the reason, twice at most. A server that leaves twenty questions
in a row without a reply is gone, and the run stops.

    answer = await ask_until_usable(client, chat, read, spent)  # read(text) raises ValueError with a reason
    answer.value, answer.trouble                                # None and the reason if nothing was usable
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

from reverse.endpoints.bounded_replies import plain_line
from reverse.endpoints.client import UnansweredError
from reverse.endpoints.reply_cache import Reply
from reverse.errors import DataError
from reverse.files.text_reading import replace_surrogates

__all__ = [
    "JSON_ALONE",
    "MAX_SILENT",
    "REPLIES",
    "Answered",
    "Asker",
    "ServerGone",
    "SilenceWatch",
    "ask_until_usable",
    "build_retry",
]

REPLIES = 3  # to one question, the first included
MAX_SILENT = 20  # questions in a row without a reply before the server counts as gone
MAX_QUOTED = 4000  # characters of an unusable reply that are sent back
JSON_ALONE = "Reply with the JSON object alone."

Chat = Sequence[Mapping[str, Any]]
Value = TypeVar("Value")


class Asker(Protocol):
    """Something that answers chats: a `ChatClient`, or a checkpoint."""

    async def ask(self, messages: Chat, keep: bool = True, settings: Mapping[str, Any] = {}) -> Reply:
        """Return a reply, from the cache if it has one. Raises UnansweredError."""

    def cached(self, messages: Chat, settings: Mapping[str, Any] = {}) -> Reply | None:
        """Return the reply that is in the cache, or None."""

    def keep(self, messages: Chat, reply: Reply, settings: Mapping[str, Any] = {}) -> None:
        """Put a reply into the cache."""


class ServerGone(DataError):
    """The model has stopped answering. Results made before are kept."""


@dataclass(frozen=True)
class Answered(Generic[Value]):
    """The outcome of a question.

    `value` is None if there was no usable reply; `kind` then says why: unreachable, refused or garbage.
    """

    value: Value | None
    kind: str = ""
    detail: str = ""

    @property
    def trouble(self) -> str:
        """Kind and detail in one line, or ""."""
        return f"{self.kind}: {self.detail}" if self.kind else ""


async def ask_until_usable(
    client: Asker,
    chat: Chat,
    read: Callable[[str], Value],
    spent: Counter[str],
    *,
    demand: str = JSON_ALONE,
    keeps_all: bool = False,
    settings: Mapping[str, Any] = {},
) -> Answered[Value]:
    """Ask, and ask again with the reason while `read` refuses the reply.

    Args:
        read: the value of a reply. It raises ValueError with the reason that the model is told.
        spent: counts replies, cached, garbage, tokens_in and tokens_out as they come.
        demand: the last sentence of what the model is told.
        keeps_all: put every reply into the cache, also unusable ones, so that a second run repeats the first.
            Otherwise only a usable reply is kept, with the tokens of all replies before it, and a second run
            asks anew where the first one got nothing.
    """
    known = None if keeps_all else client.cached(chat, settings)
    if known is not None:
        try:
            value = read(known.text)
        except ValueError:
            pass  # of another reader: asked again
        else:
            _count(spent, known)
            return Answered(value)
    why = ""
    total = Reply("", 0, 0, replies=0)
    messages = list(chat)
    for _ in range(REPLIES):
        try:
            reply = await client.ask(messages, keeps_all, settings)
        except UnansweredError as error:
            return Answered(None, error.kind, error.detail)
        _count(spent, reply)
        total = Reply(
            reply.text,
            total.tokens_in + reply.tokens_in,
            total.tokens_out + reply.tokens_out,
            replies=total.replies + reply.replies,
        )
        try:
            value = read(reply.text)
        except ValueError as error:
            why = plain_line(str(error))
            spent["garbage"] += 1
        else:
            if not (keeps_all or reply.cached):  # else the question with the same text keeps it
                client.keep(chat, total, settings)
            return Answered(value)
        messages += build_retry(reply.text, why, demand)
    return Answered(None, "garbage", why)


def _count(spent: Counter[str], reply: Reply) -> None:
    spent.update(
        replies=reply.replies,
        cached=int(reply.cached),
        tokens_in=reply.tokens_in,
        tokens_out=reply.tokens_out,
    )
    if reply.replies > 1:
        spent["garbage"] += reply.replies - 1


def build_retry(reply: str, reason: str, demand: str = JSON_ALONE) -> list[dict[str, str]]:
    """Return the messages that are sent after an unusable reply."""
    return [
        {"role": "assistant", "content": replace_surrogates(reply[:MAX_QUOTED]) or "(empty)"},
        {"role": "user", "content": f"That cannot be used: {reason}. {demand}"},
    ]


class SilenceWatch:
    """Counts questions in a row without a reply. `add` raises ServerGone when there are `most`."""

    def __init__(self, address: str, most: int = MAX_SILENT):
        self.address, self.most = address, most
        self.silent = 0

    def add(self, unreachable: int, replies: int, detail: str) -> None:
        """Take the outcomes of further questions."""
        if unreachable:
            self.silent += unreachable
        elif replies:
            self.silent = 0
        if self.silent >= self.most:
            raise ServerGone(
                f"{self.silent} answers in a row got no reply from {self.address} ({detail}): see that it "
                "runs and start again; answers so far are kept"
            )
