"""Ends of an answer that the caller asks for: stop strings, criteria, a time limit, a reader who has left.

A stop inside a phrase waits until the phrase is accepted: text that is taken back has stopped nothing. Only
time and a reader who left wait for nothing. As in transformers, the stop stays in the answer.

    stops = Stops(prompt, decode, tags, strings=("\\n\\n",))
    stops(answer)                     # does the answer end with its last id?
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch

from reverse.errors import RequestError, RequestTypeError
from reverse.tokens.spans import TAGS, TokenIds

__all__ = ["Stops", "stop_texts"]

_HALF = "\ufffd"
_UTF8 = 4  # bytes a character has at most
_LONGEST = 10_000  # characters of all stop strings: each id of an answer is read with so many before it
_LOOK_BACK = 8  # ids read before those that could hold the stop, so that joints come out right


def stop_texts(stop_strings: Any) -> tuple[str, ...]:
    """The caller's `stop_strings`, None, one or many, as a tuple. Raises TypeError, ValueError."""
    if stop_strings is not None and not isinstance(stop_strings, Iterable):
        raise RequestTypeError(
            f"stop_strings must be a text or a list of texts, got {stop_strings!r:.80}: try '\\n'"
        )
    texts = (stop_strings,) if isinstance(stop_strings, str) else tuple(stop_strings or ())
    for text in texts:
        if not isinstance(text, str):
            raise RequestTypeError(
                f"stop_strings must be a text or a list of texts, got {text!r} in it: try '\\n'"
            )
        if not text:
            raise RequestError(
                "stop_strings holds an empty text, which would stop every answer: leave it out"
            )
        tag = next((t for t in TAGS if t in text), None)
        if tag is not None:
            raise RequestError(
                f"stop_strings holds {text[:80]!r}: tags are no part of the text that is looked at, "
                f"take {tag} out"
            )
    length = sum(map(len, texts))
    if length > _LONGEST:
        raise RequestError(
            f"stop_strings holds {length:,} characters in {len(texts)} texts, the first {texts[0][:40]!r}: "
            f"{_LONGEST:,} at most, since every token is compared with them; take shorter ones"
        )
    return texts


class Stops:
    """The stops of one row.

    Args: `prompt` its ids as `generate()` knows them, padding included; `decode` ids to text; `criteria`
    transformers' stopping criteria, asked about the row alone and without scores; `deadline` in the terms of
    `time.time()`; `left` says whether nobody waits for the answer; `checking` False: nothing is taken back.
    """

    def __init__(
        self,
        prompt: torch.Tensor,
        decode: Callable[[list[int]], str],
        tags: TokenIds,
        *,
        strings: Sequence[str] = (),
        criteria: Sequence[Any] = (),
        deadline: float | None = None,
        left: Callable[[], bool] | None = None,
        checking: bool = True,
    ):
        self.prompt, self.decode, self.tags, self.checking = prompt, decode, tags, checking
        self.strings, self.criteria, self.deadline, self.left = tuple(strings), criteria, deadline, left
        # Every id that shows holds a byte at least.
        self._reach = max((len(s.encode()) for s in self.strings), default=0) + _LOOK_BACK

    def __bool__(self) -> bool:
        return bool(self.strings or self.criteria or self.deadline is not None or self.left is not None)

    def __call__(self, answer: Sequence[int]) -> bool:
        """Whether the answer, its ids so far, ends here.

        Inside a phrase nothing stops it; a stop that fell there is told at the closing tag.
        """
        if self.left is not None and self.left():
            return True
        if self.deadline is not None and time.time() > self.deadline:
            return True
        if not (self.strings or self.criteria):
            return False
        first = len(answer) - 1
        if self.checking and answer[-1] in self.tags.closing:
            while first > 0 and answer[first] != self.tags.span:
                first -= 1
        elif self.checking and self._inside(answer):
            return False
        shown = self._before(answer, first)
        for i in range(first, len(answer)):
            if answer[i] not in self.tags:
                shown.append(answer[i])
                if self._text_stops(shown):
                    return True
            if self.criteria and self._criterion_stops(list(answer[: i + 1])):
                return True
        return False

    def after(self, prefix: Sequence[int]) -> Callable[[Sequence[int]], bool]:
        """The stops of a segment that grows behind `prefix`: to be shown all of the segment, after every id.

        Says what `self(prefix + segment)` would, without reading the answer again for every id.
        """
        return _SegmentStops(self, prefix)

    def _before(self, answer: Sequence[int], end: int) -> deque[int]:
        """The last ids before `end` that show, as many as a stop may reach back over."""
        shown: deque[int] = deque(maxlen=self._reach)
        at = end - 1
        while self.strings and at >= 0 and len(shown) < self._reach:
            if answer[at] not in self.tags:
                shown.appendleft(answer[at])
            at -= 1
        return shown

    def _inside(self, answer: Sequence[int]) -> bool:
        last = next((token for token in reversed(answer) if token in self.tags), None)
        return last == self.tags.span

    def _text_stops(self, shown: Sequence[int]) -> bool:
        """Whether a stop string ends with the last id, in the text of the last ids that show."""
        if not self.strings:
            return False
        ids = list(shown)
        begins = _UTF8 if len(ids) == self._reach else 1  # an answer's own start is never inside a character
        for start in range(min(begins, len(ids))):
            text = self.decode(ids[start:])
            if not text.startswith(_HALF):
                break
        before = self.decode(ids[start:-1]).rstrip(_HALF)
        return any(text.find(s, max(0, len(before) - len(s) + 1)) >= 0 for s in self.strings)

    def _criterion_stops(self, answer: list[int]) -> bool:
        if not self.criteria:
            return False
        said = torch.tensor(answer, dtype=self.prompt.dtype, device=self.prompt.device)
        ids = torch.cat((self.prompt, said)).unsqueeze(0)
        for criterion in self.criteria:
            try:
                verdict = criterion(ids, None)
            except (AttributeError, TypeError) as error:
                raise RequestError(
                    f"stopping criterion {type(criterion).__name__} failed on the ids of one row, which are "
                    f"all that is shown to it here: scores are None ({error}); let it look at input_ids alone"
                ) from error
            if bool(torch.as_tensor(verdict).any()):
                return True
        return False


class _SegmentStops:
    """The stops of one segment, which remembers what it was shown of it."""

    def __init__(self, stops: Stops, prefix: Sequence[int]):
        self.stops, self.prefix = stops, prefix
        self._restart()

    def _restart(self) -> None:
        self._seen = 0
        self._shown = self.stops._before(self.prefix, len(self.prefix))
        self._inside = self.stops.checking and self.stops._inside(self.prefix)
        self._opened: int | None = None  # where the last phrase opens in the segment
        self._at_opening: list[int] = []  # what `_shown` held there

    def __call__(self, segment: Sequence[int]) -> bool:
        stops = self.stops
        if stops.left is not None and stops.left():
            return True
        if stops.deadline is not None and time.time() > stops.deadline:
            return True
        if not (stops.strings or stops.criteria):
            return False
        if len(segment) <= self._seen:  # the segment is decoded once more
            self._restart()
        was_inside = self._inside
        for at in range(self._seen, len(segment)):
            token = segment[at]
            if token not in stops.tags:
                self._shown.append(token)
            elif stops.checking:
                was_inside, self._inside = self._inside, token == stops.tags.span
                if self._inside:
                    self._opened, self._at_opening = at, list(self._shown)
        self._seen = len(segment)
        # A closing tag without a phrase tells nothing new: all before it was asked about.
        if stops.checking and was_inside and segment[-1] in stops.tags.closing:
            return self._phrase_stops(segment)
        if self._inside:
            return False
        if segment[-1] not in stops.tags and stops._text_stops(self._shown):
            return True
        return bool(stops.criteria) and stops._criterion_stops([*self.prefix, *segment])

    def _phrase_stops(self, segment: Sequence[int]) -> bool:
        """Whether a stop fell in the phrase that the segment ends with."""
        stops = self.stops
        if self._opened is None:  # it opens in the prefix
            return stops([*self.prefix, *segment])
        shown = deque(self._at_opening, maxlen=stops._reach)
        for at in range(self._opened, len(segment)):
            if segment[at] not in stops.tags:
                shown.append(segment[at])
                if stops._text_stops(shown):
                    return True
            if stops.criteria and stops._criterion_stops([*self.prefix, *segment[: at + 1]]):
                return True
        return False
