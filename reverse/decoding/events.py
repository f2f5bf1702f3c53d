"""What happens to an answer while it is made: every append and retraction, and the text that is final.

A user interface keeps one text a row and does what it is told; the ids go the same way:

    text = text[: event.keep] if isinstance(event, Retract) else text + event.text     # Append, Retract
    ids = ids[: event.to] if isinstance(event, Retract) else ids + event.ids

When the row has finished, `text == result.text` and `ids == result.ids`. What a `Commit` covers is never
retracted. A stream is told the text of commits and nothing else. Of candidates decoded side by side the
first is shown as it grows; another that is adopted comes at once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from reverse.decoding.policies.policy import Answer, Attempt
from reverse.decoding.result import Result
from reverse.decoding.text.incremental_detokenizer import ShownText
from reverse.tokens.spans import TokenIds, break_tags

__all__ = ["Append", "Commit", "Event", "EventEmitter", "Finish", "Retract"]


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


class EventEmitter:
    """Follows one answer and tells of it.

    Args: `row` the number of the request; `half` and `decode` as for `ShownText`; `eos` the ids that end a
    text; `on_event` is called with every event, `on_text` with final ids (without tags) and their clean text;
    `keeps_open` holds everything back for as long as the answer is blank, because the question may be asked
    again.
    """

    def __init__(
        self,
        row: int,
        decode: Callable[[list[int]], str],
        tags: TokenIds,
        *,
        half: int | None = None,
        eos: frozenset[int] = frozenset(),
        on_event: Callable[[Event], None] | None = None,
        on_text: Callable[[Sequence[int], str], None] | None = None,
        is_checked: bool = True,
        keeps_open: bool = False,
    ):
        self.row, self.decode, self.tags, self.is_checked = row, decode, tags, is_checked
        self.on_event, self.on_text, self.keeps_open = on_event, on_text, keeps_open
        self.ids: list[int] = []  # told by events
        self.committed = 0  # of them are final
        self.is_blank = False  # it has ended without text, and nothing of it stands
        self._text = ShownText(decode, half, eos, tags)
        self._final = ShownText(decode, half, eos, tags)
        self._held_ids: list[int] = []  # final, not yet told as text
        self._held_text = ""
        self._attempts = 0
        self._again = 0

    def token(self, candidate: int, token: int, p: float) -> None:
        """An id was chosen, with p(`</UN>`) at that step."""
        if self._again:  # decoded once more after memory ran out: unchecked text is final when it is told
            self._again -= 1
        elif candidate == 0:
            self._append((token,), p)
            if not self.is_checked:
                self._commit(len(self.ids))

    def action(self, answer: Answer, finished: bool) -> None:
        """The policy has decided: make what was told agree with its answer."""
        # What the policy had before and has not cut since is what was told.
        same = min(answer.unchanged_length, len(self.ids), len(answer.ids))
        while same < min(len(self.ids), len(answer.ids)) and self.ids[same] == answer.ids[same]:
            same += 1
        answer.unchanged_length = len(answer.ids)
        if not self.is_checked and not finished:
            self._again = len(self.ids) - same
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
        """Tell what was held back to the last: half characters and the end of the text."""
        rest = result.text[self._text.length :]
        if rest:
            self._tell(Append(self.row, (), rest, None))
        if self.keeps_open and not result.text.strip():
            self._tell(Retract(self.row, 0, 0, "cut", "", None, None))
            self.is_blank = True
            return
        left = result.text[self._final.length :]
        self._release(left)
        if left or not self.committed:
            self._tell(Commit(self.row, len(result.ids), len(result.text)))

    def tell_whole(self, result: Result) -> None:
        """Tell an answer that was not followed while it was made."""
        self._append(result.ids, None)
        self._commit(len(result.ids))
        self.finish(result)

    def _tell(self, event: Event) -> None:
        if self.on_event is not None:
            self.on_event(event)

    def _append(self, ids: tuple[int, ...], p: float | None) -> None:
        self.ids.extend(ids)
        if self.on_event is not None:
            self.on_event(Append(self.row, ids, self._text.feed(ids), p))

    def _retract(self, to: int, attempt: Attempt | None) -> None:
        del self.ids[to:]
        if self.on_event is None:
            return
        keep = self._text.cut(to)
        if attempt is None:
            self.on_event(Retract(self.row, to, keep, "cut", "", None, None))
        else:
            phrase = break_tags(self.decode(list(attempt.phrase)).strip())
            self.on_event(Retract(self.row, to, keep, attempt.kind, phrase, attempt.p, attempt.temperature))

    def _commit(self, to: int) -> None:
        fresh = self.ids[self.committed : to]
        self.committed = to
        self._held_ids.extend(i for i in fresh if i not in self.tags)
        text = self._final.feed(fresh)
        if self.keeps_open and not (self._held_text + text).strip():
            self._held_text += text  # should it stay blank, it will be taken back after all
            return
        self._release(text)
        self._tell(Commit(self.row, to, self._final.length))

    def _release(self, text: str) -> None:
        ids, text = self._held_ids, self._held_text + text
        self._held_ids, self._held_text = [], ""
        self.keeps_open = self.keeps_open and not text.strip()
        if self.on_text is not None:
            self.on_text(ids, text)
