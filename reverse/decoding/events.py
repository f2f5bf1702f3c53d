"""Events of an answer while it is made: appends, retractions, commits, and the drafts of a mode.

A user interface keeps one text per row and applies the events; ids work the same way:

    text = text[: event.keep] if isinstance(event, Retract) else text + event.text     # Append, Retract
    ids = ids[: event.to] if isinstance(event, Retract) else ids + event.ids           # no other events

When the row is complete, `text == result.text` and `ids == result.ids`. Committed text is never retracted,
and streams get committed text only. The first of several candidates is emitted as it grows; another one is
emitted at once when the policy accepts it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from reverse.decoding.policies.policy import Answer, Attempt
from reverse.decoding.result import Result
from reverse.decoding.text.codec import TextCodec
from reverse.decoding.text.incremental_detokenizer import IncrementalDetokenizer
from reverse.tokens.spans import break_tags

__all__ = [
    "NO_LABEL",
    "Append", "BeginDraft", "Commit", "Complete", "DraftLabel", "EndDraft", "Event", "EventEmitter",
    "Retract",
]  # fmt: skip


@dataclass(frozen=True, slots=True)
class DraftLabel:
    """Names an answer that a mode asks for.

    `role` says what it is for ("" for the only answer of a request), `round` in which round it is made, 0 for
    the first. `branch` names its place in the mode: pairs of the number of the ask and of the answer among
    those of the ask, the pair of the outermost mode first.
    """

    role: str = ""
    round: int = 0
    branch: tuple[int, ...] = ()


NO_LABEL = DraftLabel()


@dataclass(frozen=True, slots=True)
class Append:
    """Ids are added to the answer."""

    row: int
    ids: tuple[int, ...]  # tags included
    text: str  # without tags; "" while no character is complete
    p: float | None  # p(</UN>) at the step that chose the only id; at a closing tag this is the phrase's
    attempt: int = 0  # rejections in this answer so far
    round: int = 0  # of the mode, and
    branch: tuple[int, ...] = ()  # the answer's place in it, see `DraftLabel`


@dataclass(frozen=True, slots=True)
class Retract:
    """The end of the answer is taken back, or a candidate without events is rejected."""

    row: int
    to: int  # ids that remain
    keep: int  # characters of text that remain
    kind: Literal["rejected", "unclosed", "malformed", "cut"]  # "cut": no attempt was rejected
    phrase: str  # the rejected phrase, or ""
    p_un: float | None
    temperature: float | None  # at which the phrase was decoded
    attempt: int = 0  # number of the attempt that was rejected, from 0
    round: int = 0
    branch: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Commit:
    """The answer is final up to here."""

    row: int
    to: int  # number of final ids
    keep: int  # number of final characters
    round: int = 0
    branch: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class BeginDraft:
    """A mode begins an answer that has a role. Its text is not an event, unless it is final."""

    row: int
    role: str
    round: int
    branch: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class EndDraft:
    """An answer of a mode is complete."""

    row: int
    role: str
    round: int
    branch: tuple[int, ...]
    text: str  # clean, of this part of the turn
    tokens: int  # generated for it, discarded ones included


@dataclass(frozen=True, slots=True)
class Complete:
    """The answer is complete."""

    row: int
    result: Result


Event = Append | Retract | Commit | BeginDraft | EndDraft | Complete


class EventEmitter:
    """Follows one answer and emits its events and its final text.

    Args: `row` the number of the request; `eos` the ids that end a text; `on_event` is called with every
    event, `on_text` with final ids (without tags) and their clean text; `is_checked` False: every token is
    final; `holds_blank`: nothing is final while the answer is blank, because the question may be asked again;
    `label` names the answer within its mode.
    """

    def __init__(
        self,
        row: int,
        codec: TextCodec,
        *,
        eos: frozenset[int] = frozenset(),
        on_event: Callable[[Event], None] | None = None,
        on_text: Callable[[list[int], str], None] | None = None,
        is_checked: bool = True,
        holds_blank: bool = False,
        label: DraftLabel = NO_LABEL,
    ):
        self._place = label.round, label.branch
        self.row, self.codec, self.is_checked = row, codec, is_checked
        self.on_event, self.on_text, self.holds_blank = on_event, on_text, holds_blank
        self.ids: list[int] = []  # of the events so far
        self.committed = 0  # number of ids that are final
        self.is_blank = False  # the answer has ended without text, and its events were retracted
        self._text, self._final = (
            IncrementalDetokenizer(codec.decode, codec.tags, codec.partial_byte_token, eos) for _ in range(2)
        )
        self._held_ids: list[int] = []  # final, and not yet given to `on_text`
        self._held_text = ""
        self._attempts = 0  # number of attempts that were retracted
        self._repeated = 0  # number of tokens to come that were emitted before memory ran out

    def token(self, candidate: int, token: int, p: float) -> None:
        """Take in a chosen id, with p(`</UN>`) at that step."""
        if self._repeated:
            self._repeated -= 1
        elif candidate == 0:
            self._append((token,), p)
            if not self.is_checked:
                self._commit(len(self.ids))

    def action(self, answer: Answer, finished: bool) -> None:
        """Make the events agree with the answer after a decision of the policy."""
        # The policy's ids before `unchanged_length` are those of the events.
        same = min(answer.unchanged_length, len(self.ids), len(answer.ids))
        while same < min(len(self.ids), len(answer.ids)) and self.ids[same] == answer.ids[same]:
            same += 1
        answer.unchanged_length = len(answer.ids)
        if not self.is_checked and not finished:
            self._repeated = len(self.ids) - same
            return
        attempts, self._attempts = answer.attempts[self._attempts :], len(answer.attempts)
        if attempts or same < len(self.ids):
            self._retract(same, attempts[-1] if attempts else None)
        if same < len(answer.ids):
            self._append(tuple(answer.ids[same:]), None)
        final = len(answer.ids) if finished else answer.committed_length
        if final > self.committed:
            self._commit(final)

    def finish(self, result: Result) -> None:
        """Emit what was held back: incomplete characters and the end of the text."""
        rest = result.text[self._text.length :]
        if rest:
            self._emit(Append(self.row, (), rest, None, self._attempts, *self._place))
        if self.holds_blank and not result.text.strip():
            self._emit(Retract(self.row, 0, 0, "cut", "", None, None, self._attempts, *self._place))
            self.is_blank = True
            return
        left = result.text[self._final.length :]
        self._release(left)
        if left or not self.committed:
            self._emit(Commit(self.row, len(result.ids), len(result.text), *self._place))

    def emit_answer(self, result: Result) -> None:
        """Emit an answer that was not followed while it was made."""
        self._attempts = len(result.trace)
        self._append(result.ids, None)
        self._commit(len(result.ids))
        self.finish(result)

    def _emit(self, event: Event) -> None:
        if self.on_event is not None:
            self.on_event(event)

    def _append(self, ids: tuple[int, ...], p: float | None) -> None:
        self.ids.extend(ids)
        if self.on_event is not None:
            self.on_event(Append(self.row, ids, self._text.feed(ids), p, self._attempts, *self._place))

    def _retract(self, to: int, attempt: Attempt | None) -> None:
        del self.ids[to:]
        if self.on_event is None:
            return
        keep = self._text.cut(to)
        if attempt is None:
            place = (self._attempts, *self._place)
            self.on_event(Retract(self.row, to, keep, "cut", "", None, None, *place))
        else:
            phrase = break_tags(self.codec.decode(list(attempt.phrase)).strip())
            why = attempt.kind, phrase, attempt.p, attempt.temperature
            self.on_event(Retract(self.row, to, keep, *why, self._attempts - 1, *self._place))

    def _commit(self, to: int) -> None:
        fresh = self.ids[self.committed : to]
        self.committed = to
        self._held_ids.extend(i for i in fresh if i not in self.codec.tags)
        text = self._final.feed(fresh)
        if self.holds_blank and not (self._held_text + text).strip():
            self._held_text += text  # it is retracted if the answer stays blank
            return
        self._release(text)
        self._emit(Commit(self.row, to, self._final.length, *self._place))

    def _release(self, text: str) -> None:
        ids, text = self._held_ids, self._held_text + text
        self._held_ids, self._held_text = [], ""
        self.holds_blank = self.holds_blank and not text.strip()
        if self.on_text is not None:
            self.on_text(ids, text)
