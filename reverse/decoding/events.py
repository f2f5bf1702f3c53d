"""What happens to an answer while it is made: every append and retraction, and the text that is final.

A user interface keeps one text a row and does what it is told; the ids go the same way:

    text = text[: event.keep] if isinstance(event, Retract) else text + event.text     # Append, Retract
    ids = ids[: event.to] if isinstance(event, Retract) else ids + event.ids

When the row has finished, `text == result.text` and `ids == result.ids`. What a `Commit` covers is never
retracted. A stream is told the text of commits and nothing else. Of candidates decoded side by side the
first is shown as it grows; another that is adopted comes at once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch

from reverse.decoding.policy import Attempt, Policy
from reverse.decoding.shown import ShownText
from reverse.decoding.trace import Result
from reverse.tokens.spans import TokenIds, break_tags

__all__ = ["Append", "Commit", "Event", "Finish", "Retract", "Sink", "Watch", "sinks_of", "telling"]


@dataclass(frozen=True, slots=True)
class Append:
    """The answer grows."""

    row: int
    ids: tuple[int, ...]  # tags included
    text: str  # clean; "" where no character is complete yet
    p: float | None  # p(</UN>) at the step that chose the only id; at a closing tag this is the phrase's


@dataclass(frozen=True, slots=True)
class Retract:
    """The end of the answer is taken back, or a candidate that was never shown is rejected."""

    row: int
    to: int  # ids that remain
    keep: int  # characters of text that remain
    kind: Literal["rejected", "unclosed", "malformed", "cut"]  # "cut": no attempt, the end or a tag put right
    phrase: str  # in question; "" where there is none
    p_un: float | None
    temperature: float | None  # at which it was decoded


@dataclass(frozen=True, slots=True)
class Commit:
    """What stands before is final."""

    row: int
    to: int  # ids
    keep: int  # characters


@dataclass(frozen=True, slots=True)
class Finish:
    """The row's answer is complete."""

    row: int
    result: Result


Event = Append | Retract | Commit | Finish


class Sink(Protocol):
    """Takes the final text of one row."""

    closed: bool  # nobody listens any more: the row may end

    def begin(self, prompt: Sequence[int]) -> None:
        """The row's prompt, before anything else."""

    def final(self, ids: Sequence[int], text: str) -> None:
        """More of the answer: ids without tags, and their clean text."""

    def done(self, result: Result) -> None:
        """The answer is complete, and all of it was told."""

    def fail(self, error: BaseException) -> None:
        """There will be no more."""


class _Streamer:
    """A sink for an object with the interface of transformers' streamers, `put(ids)` and `end()`."""

    closed = False

    def __init__(self, streamer: Any):
        self.streamer = streamer
        self._begun = False

    def begin(self, prompt: Sequence[int]) -> None:
        self._begun = True
        self.streamer.put(torch.tensor(prompt))  # as `model.generate()` does: `skip_prompt` counts on it

    def final(self, ids: Sequence[int], text: str) -> None:
        if ids:
            self.streamer.put(torch.tensor(ids))

    def done(self, result: Result) -> None:
        self._begun = False  # a streamer may be used again
        self.streamer.end()

    def fail(self, error: BaseException) -> None:
        if self._begun:
            self._begun = False
            self.streamer.end()


def sinks_of(stream: Any) -> list[Sink]:
    """The sinks behind `stream=`: None, one, or a list of them. Raises TypeError for what is no stream."""
    if stream is None:
        return []
    return [_sink_of(one) for one in (stream if isinstance(stream, (list, tuple)) else [stream])]


@contextmanager
def telling(sinks: Sequence[Sink]) -> Iterator[None]:
    """Let those who wait for the end of a stream know of an error."""
    try:
        yield
    except BaseException as error:
        for sink in sinks:
            sink.fail(error)
        raise


def _sink_of(stream: Any) -> Sink:
    channel = getattr(stream, "channel", stream)
    if all(hasattr(channel, name) for name in ("begin", "final", "done", "fail", "closed")):
        return channel
    if hasattr(stream, "put") and hasattr(stream, "end"):
        return _Streamer(stream)
    raise TypeError(
        f"stream must be a reverse.TextStream or have put() and end() as transformers' streamers do, got "
        f"{type(stream).__name__}: try stream=TextStreamer(processor.tokenizer, skip_prompt=True)"
    )


class Watch:
    """Follows one row and tells its story; `token` and `action` are the hooks of a `Request`.

    Args: `decode` and `half` as for `ShownText`; `eos` the ids that end a text; `prompt` what the sink is
    told first; `keep_open` leaves it open when the answer is blank, because the question is asked again.
    """

    def __init__(
        self,
        row: int,
        policy: Policy,
        decode: Callable[[list[int]], str],
        tags: TokenIds,
        *,
        half: int | None = None,
        eos: frozenset[int] = frozenset(),
        events: Callable[[Event], None] | None = None,
        sink: Sink | None = None,
        prompt: Sequence[int] = (),
        keep_open: bool = False,
    ):
        self.row, self.policy, self.decode, self.tags = row, policy, decode, tags
        self.events, self.sink, self.prompt, self.keep_open = events, sink, prompt, keep_open
        self.ids: list[int] = []  # told by events
        self.committed = 0  # of them are final
        self._text = ShownText(decode, half, eos, tags)
        self._final = ShownText(decode, half, eos, tags)
        self._held_ids: list[int] = []  # final, not yet told to the sink
        self._held_text = ""
        self._attempts = 0
        self._begun = False
        self._again = 0

    def token(self, candidate: int, token: int, p: float) -> None:
        """An id was chosen, with p(`</UN>`) at that step."""
        if self._again:  # decoded once more after memory ran out: unchecked text is final when it is told
            self._again -= 1
        elif candidate == 0:
            self._append((token,), p)
            if not self.policy.checking:
                self._commit(len(self.ids))

    def action(self, policy: Policy, finished: bool) -> None:
        """The policy has decided: make what was told agree with its answer."""
        # What the policy had before and has not cut since is what was told.
        same = min(policy.unchanged, len(self.ids), len(policy.ids))
        while same < min(len(self.ids), len(policy.ids)) and self.ids[same] == policy.ids[same]:
            same += 1
        policy.unchanged = len(policy.ids)
        if not policy.checking and not finished:
            self._again = len(self.ids) - same
            return
        attempts, self._attempts = policy.attempts[self._attempts :], len(policy.attempts)
        if attempts or same < len(self.ids):
            self._retract(same, attempts[-1] if attempts else None)
        if same < len(policy.ids):
            self._append(tuple(policy.ids[same:]), None)
        floor = len(policy.ids) if finished else policy.floor
        if floor > self.committed:
            self._commit(floor)

    def finish(self, result: Result) -> None:
        """Tell what was held back to the last: half characters and the end of the text."""
        rest = result.text[self._text.length :]
        if rest:
            self._tell(Append(self.row, (), rest, None))
        if self.keep_open and not result.text.strip():
            self._tell(Retract(self.row, 0, 0, "cut", "", None, None))
            return
        left = result.text[self._final.length :]
        self._release(left)
        if left or not self.committed:
            self._tell(Commit(self.row, len(result.ids), len(result.text)))
        self._tell(Finish(self.row, result))
        if self.sink is not None:
            self.sink.done(result)

    def _tell(self, event: Event) -> None:
        if self.events is not None:
            self.events(event)

    def _append(self, ids: tuple[int, ...], p: float | None) -> None:
        self.ids.extend(ids)
        if self.events is not None:
            self.events(Append(self.row, ids, self._text.feed(ids), p))

    def _retract(self, to: int, attempt: Attempt | None) -> None:
        del self.ids[to:]
        if self.events is None:
            return
        keep = self._text.cut(to)
        if attempt is None:
            self.events(Retract(self.row, to, keep, "cut", "", None, None))
        else:
            phrase = break_tags(self.decode(list(attempt.phrase)).strip())
            self.events(Retract(self.row, to, keep, attempt.kind, phrase, attempt.p, attempt.temperature))

    def _commit(self, to: int) -> None:
        fresh = self.ids[self.committed : to]
        self.committed = to
        self._held_ids.extend(i for i in fresh if i not in self.tags)
        text = self._final.feed(fresh)
        if self.keep_open and not (self._held_text + text).strip():
            self._held_text += text  # should it stay blank, it will be taken back after all
            return
        self._release(text)
        self._tell(Commit(self.row, to, self._final.length))

    def _release(self, text: str) -> None:
        ids, text = self._held_ids, self._held_text + text
        self._held_ids, self._held_text = [], ""
        self.keep_open = self.keep_open and not text.strip()
        if self.sink is None:
            return
        if not self._begun:
            self._begun = True
            self.sink.begin(self.prompt)
        self.sink.final(ids, text)
