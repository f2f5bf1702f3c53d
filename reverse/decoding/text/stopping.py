"""Ends of an answer that the caller asks for: stop strings, criteria, a deadline, a reader who has left.

A stop inside a phrase takes effect when the phrase is accepted, because a rejected phrase stops nothing. The
deadline and a reader who has left take effect at once. As in transformers, the stop stays in the answer.

    stops = Stops(prompt, decode, tags, strings=("\\n\\n",))
    stops(answer)                     # does the answer end with its last id?
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch

from reverse.decoding.text.incremental_detokenizer import INCOMPLETE, DecodeWindow
from reverse.errors import RequestError, RequestTypeError
from reverse.tokens.spans import TAGS, TokenIds

__all__ = ["Stops", "check_stop_strings"]

_LONGEST = 10_000  # characters of all stop strings: every id of an answer is compared with them
_LOOK_BACK = 8  # ids read before those that could hold the stop, so that joints between words come out right


def check_stop_strings(stop_strings: Any) -> tuple[str, ...]:
    """Return `stop_strings` (None, one text or many) as a tuple. Raises RequestError for other values."""
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
                f"stop_strings holds {text[:80]!r}: stop strings are looked for in text without tags, "
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

    Args: `prompt` its ids as `generate()` knows them, padding included; `decode` maps ids to text; `criteria`
    of transformers are called with the ids of this row and without scores; `deadline` as of `time.time()`;
    `has_left` says whether the reader has gone; `checking` False: no text is taken back.
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
        has_left: Callable[[], bool] | None = None,
        checking: bool = True,
    ):
        self.prompt, self.decode, self.tags, self.checking = prompt, decode, tags, checking
        self.strings, self.criteria = tuple(strings), criteria
        self.deadline, self.has_left = deadline, has_left
        # Every id with text has a byte at least.
        self._reach = max((len(s.encode()) for s in self.strings), default=0) + _LOOK_BACK

    def __bool__(self) -> bool:
        return bool(self.strings or self.criteria or self.deadline is not None or self.has_left is not None)

    def __call__(self, answer: Sequence[int]) -> bool:
        """Return whether the answer ends with its last id.

        Inside a phrase the answer does not end. A stop that fell there takes effect at the closing tag.
        """
        if self.is_abandoned():
            return True
        first = len(answer) - 1
        if self.checking and answer[-1] in self.tags.closing:
            while first > 0 and answer[first] != self.tags.span:
                first -= 1
        elif self.checking and self.is_inside(answer):
            return False
        return self.stops_after(self.open_window(answer[:first]), answer, first)

    def after(self, prefix: Sequence[int]) -> Callable[[Sequence[int]], bool]:
        """Return the stops of a segment after `prefix`, to be called with the whole segment after every id.

        They return what `self(prefix + segment)` would, without reading the answer again for every id.
        """
        return _SegmentStops(self, prefix)

    def is_abandoned(self) -> bool:
        """Return whether the reader has left or the deadline has passed."""
        if self.has_left is not None and self.has_left():
            return True
        return self.deadline is not None and time.time() > self.deadline

    def is_inside(self, answer: Sequence[int]) -> bool:
        """Return whether a phrase is open at the end of the answer."""
        return next((token for token in reversed(answer) if token in self.tags), None) == self.tags.span

    def open_window(self, answer: Sequence[int]) -> DecodeWindow:
        """Return a window at the end of the answer's text without tags."""
        shown = [token for token in answer if token not in self.tags] if self.strings else []
        return DecodeWindow.after(self.decode, shown, self._reach)

    def stops_after(self, window: DecodeWindow, answer: Sequence[int], first: int) -> bool:
        """Return whether a stop string or a criterion ends the answer at or after position `first`."""
        for at in range(first, len(answer)):
            if answer[at] not in self.tags and self.string_stops(window, answer[at]):
                return True
            if self.criterion_stops(answer[: at + 1]):
                return True
        return False

    def string_stops(self, window: DecodeWindow, token: int) -> bool:
        """Add a token to the window and return whether a stop string ends with it."""
        if not self.strings:
            return False
        before = len(window.text.rstrip(INCOMPLETE))
        window.extend((token,))
        text = window.text
        window.take(len(text))
        if len(window.ids) > 8 * self._reach:  # bytes that are not text
            window.restart()
        return any(text.find(s, max(0, before - len(s) + 1)) >= 0 for s in self.strings)

    def criterion_stops(self, answer: Sequence[int]) -> bool:
        """Return whether a criterion of the caller ends the answer with its last id."""
        if not self.criteria:
            return False
        tail = torch.tensor(answer, dtype=self.prompt.dtype, device=self.prompt.device)
        ids = torch.cat((self.prompt, tail)).unsqueeze(0)
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
    """The stops of one segment. It keeps what it has read of the segment."""

    def __init__(self, stops: Stops, prefix: Sequence[int]):
        self.stops, self.prefix = stops, list(prefix)
        self._restart()

    def _restart(self) -> None:
        stops = self.stops
        self._seen = 0
        self._window = stops.open_window(self.prefix)
        self._is_inside = stops.checking and stops.is_inside(self.prefix)
        self._opening: tuple[int, DecodeWindow] | None = None  # of the last phrase that the segment opens

    def __call__(self, segment: Sequence[int]) -> bool:
        stops, tags = self.stops, self.stops.tags
        if stops.is_abandoned():
            return True
        if not (stops.strings or stops.criteria):
            return False
        if len(segment) <= self._seen:  # the segment is decoded once more
            self._restart()
        found, was_inside = False, self._is_inside
        for at in range(self._seen, len(segment)):
            token, found, was_inside = segment[at], False, self._is_inside
            if token not in tags:
                found = stops.string_stops(self._window, token)
            elif stops.checking:
                self._is_inside = token == tags.span
                if self._is_inside:
                    self._opening = at, self._window.copy()
        self._seen = len(segment)
        # A closing tag without a phrase adds no text, and all before it was read already.
        if stops.checking and was_inside and segment[-1] in tags.closing:
            if self._opening is None:  # the phrase opens in the prefix
                return stops([*self.prefix, *segment])
            at, window = self._opening
            return stops.stops_after(window.copy(), [*self.prefix, *segment], len(self.prefix) + at)
        if self._is_inside:
            return False
        return found or (bool(stops.criteria) and stops.criterion_stops([*self.prefix, *segment]))
