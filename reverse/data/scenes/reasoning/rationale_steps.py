"""Check every step of a rationale against the truth, whoever wrote it and however malformed it is.

A step is a sentence, with or without "Step 1:" before it. Its phrase is what a model marks with the three
tokens; the space before it belongs to the phrase, so that the tokens of the text stay those of plain text:
"Step 1: there are<SPAN> 4 cows</CN>. Step 2:<SPAN> 4 - 3 = 1</CN>. Answer:<SPAN> 1</CN>".

- A step that reads a number ("there are 4 cows", "the red bar is 7") is right if the question asks for cows
  and the number is theirs. Errors: "object" (it is not there, or not asked for), else "count" in scenes and
  "reading" in tables and charts.
- A step that points ("cows at 41 43", "red bar at 3") is right if all places are. Errors: "object"; "place".
- A step that calculates ("4 - 3 = 1", "4 > 3", "4 is even", "the most is 4") is right if it is true, if it is
  what the question asks for, and if it takes the numbers that *this text* has read. Error: "arithmetic", or
  that of reading if the text has read nothing before.
- The answer is right if `reverse.grading` says so. Its error is that of the first wrong step; "arithmetic"
  if there is none.

So a step that calculates correctly from wrongly read numbers is right: the error is where the number was
read. The answer is judged only by the truth. A step that cannot be parsed is "unknown" and has no phrase.

    >>> tag_segments(text, verify_rationale(text, question))
    'Step 1: there are<SPAN> 5 cows</UN>. Answer:<SPAN> 5</UN>'
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from reverse.data.drafts.draft_record import DraftSegment, RecordedDraft, Verdict
from reverse.data.scenes.object_names import COCO_IDS, make_plural
from reverse.data.scenes.reasoning.reasoning_charts import BAR_COLOURS
from reverse.data.scenes.reasoning.reasoning_pictures import (
    NOWHERE,
    PictureKind,
    ReasoningPicture,
)
from reverse.data.scenes.reasoning.reasoning_questions import ReasoningQuestion
from reverse.grading.grader import grade

__all__ = ["make_verified_draft", "verify_caption", "verify_rationale"]

LONGEST_RATIONALE = 20_000  # characters that are read; the rest has no segments
MOST_STEPS = 256

_ANSWER = re.compile(r"\banswer\s?:", re.IGNORECASE)
# Up to a stop that ends a sentence; a stop inside "4.5" does not.
_SENTENCE = re.compile(r"[^.!?\n]+(?:[.!?](?=\d)[^.!?\n]*)*[.!?]?")
_NUMBER = re.compile(r"\s*(?:step \d{1,4}\s?:)?", re.IGNORECASE)
_OBJECTS = re.compile(
    r"there (?:is|are)(?P<phrase> (?P<n>\d{1,6}|no) (?P<name>[a-z][a-z ]{0,30}))", re.IGNORECASE
)
_BAR = re.compile(r"the (?P<name>[a-z]{1,20}) bar is(?P<phrase> (?P<n>\d{1,6}))", re.IGNORECASE)
_PLACES = re.compile(
    r"(?P<name>[a-z][a-z ]{0,30}?)(?: bar)? at"
    r"(?P<phrase> (?P<places>none|row \d{1,3}|\d{1,3}(?: \d{1,3}){0,24}))",
    re.IGNORECASE,
)
_EQUATION = re.compile(r"(?P<left>\d{1,6}(?: [+-] \d{1,6}){1,9}) = (?P<n>-?\d{1,7})")
_COMPARISON = re.compile(r"(?P<a>\d{1,6}) (?P<sign>[<>=]) (?P<b>\d{1,6})")
_PARITY = re.compile(r"(?P<n>\d{1,6}) is (?P<claim>even|odd)", re.IGNORECASE)
_MOST = re.compile(r"the most is(?P<phrase> (?P<n>\d{1,6}))", re.IGNORECASE)
_NAMES = (
    {make_plural(name): name for name in COCO_IDS}
    | {name: name for name in COCO_IDS}
    | {colour: colour for colour in BAR_COLOURS}
)


def verify_rationale(text: str, question: ReasoningQuestion) -> tuple[DraftSegment, ...]:
    """Return the steps and phrases of a rationale with their verdicts, in the order of the text.

    Each step is followed by its phrase, which has the same verdict. Text behind 20,000 characters or 256
    steps has no segments.
    """
    text = text[:LONGEST_RATIONALE]
    check = _StepCheck(question.picture_kind, question.truth, question)
    marker = None
    for marker in _ANSWER.finditer(text):  # noqa: B007
        pass
    segments = list(_verify_sentences(text, 0, marker.start() if marker else len(text), check))
    if marker is not None:
        segments += _verify_answer(text, marker, check, segments)
    return tuple(segments)


def verify_caption(text: str, picture: ReasoningPicture) -> tuple[DraftSegment, ...]:
    """Do the same for a caption, which may state every number of the picture."""
    text = text[:LONGEST_RATIONALE]
    return tuple(_verify_sentences(text, 0, len(text), _StepCheck(picture.kind, picture.truth, None)))


def make_verified_draft(question: ReasoningQuestion, text: str, **fields: Any) -> RecordedDraft:
    """Make a draft with verified segments. Its answer and verdict come from `reverse.grading`.

    Args:
        fields: other fields of the draft, such as `role` and `made_by`.
    """
    result = grade(text, question.gold.key())
    return RecordedDraft(
        text=text,
        segments=verify_rationale(text, question),
        answer=result.extracted,
        verdict=result.verdict,
        judged_by="grading",
        **fields,
    )


@dataclass
class _StepCheck:
    """The truth, and the readings that the text has made so far."""

    picture_kind: PictureKind
    truth: Mapping[str, int]
    question: ReasoningQuestion | None
    stated: dict[str, int] = field(default_factory=dict)

    @property
    def reading_error(self) -> str:
        return "count" if self.picture_kind == "scene" else "reading"

    def check_reading(self, form: str, value: int) -> str:
        """Return the error of a step that reads `value` for a written name; "" if the step is right."""
        name = _NAMES.get(" ".join(form.lower().split()))
        if name is None or (name in BAR_COLOURS) != (self.picture_kind == "chart"):
            return "object"
        self.stated[name] = value
        if self.question is not None and name not in self.question.names:
            return "object"
        right = self.truth.get(name, 0)
        if value == right:
            return ""
        return self.reading_error if right else "object"

    def check_places(self, form: str, places: str) -> str:
        """Return the error of a step that points at the places of a written name; "" if the step is right."""
        name = _NAMES.get(" ".join(form.lower().split()))
        if name is None or self.question is None or name not in self.question.names:
            return "object"
        return "" if places == self.question.places.get(name, NOWHERE) else "place"

    def check_calculation(self, kinds: tuple[str, ...], used: list[int], is_true: bool) -> str:
        """Return the error of a step that calculates with the numbers `used`, for questions of `kinds`."""
        question = self.question
        if question is None or question.kind not in kinds or not is_true:
            return "arithmetic"
        values = [self.stated.get(name, self.truth.get(name, 0)) for name in question.names]
        if question.kind == "diff":
            expected = [max(values), min(values)]
        elif question.kind == "left":
            expected = [values[0], question.amount]
        elif question.kind == "most":
            expected = [max(values)]
        else:
            expected, used = sorted(values), sorted(used)
        if used == expected:
            return ""
        return "arithmetic" if self.has_read_all else self.reading_error

    @property
    def has_read_all(self) -> bool:
        return self.question is not None and all(name in self.stated for name in self.question.names)


def _verify_sentences(text: str, start: int, end: int, check: _StepCheck) -> Iterator[DraftSegment]:
    count = 0
    for sentence in _SENTENCE.finditer(text, start, end):
        begin, stop = sentence.span()
        begin += len(sentence[0]) - len(sentence[0].lstrip())
        while stop > begin and (text[stop - 1].isspace() or text[stop - 1] in ".!?"):
            stop -= 1
        if stop == begin:
            continue
        if (count := count + 1) > MOST_STEPS:
            return
        number = _NUMBER.match(text, begin, stop)
        at = number.end() if number else begin
        while at < stop and text[at].isspace():
            at += 1
        found = _check_step(text, at, stop, check)
        last = min(end, stop + (text[stop : stop + 1] in (".", "!", "?")))
        yield from _make_segments(text, (begin, last), found)


def _check_step(text: str, at: int, stop: int, check: _StepCheck) -> tuple[int, int, str] | None:
    """Return start, end and error of the phrase of a step; None if the step cannot be parsed."""
    for pattern in (_OBJECTS, _BAR):
        if step := pattern.fullmatch(text, at, stop):
            value = 0 if step["n"].lower() == "no" else int(step["n"])
            return *step.span("phrase"), check.check_reading(step["name"], value)
    if step := _PLACES.fullmatch(text, at, stop):
        return *step.span("phrase"), check.check_places(step["name"], step["places"].lower())
    if step := _EQUATION.fullmatch(text, at, stop):
        first, *others = step["left"].replace("- ", "-").replace("+ ", "+").split()
        numbers = [int(first), *(int(number) for number in others)]
        kinds: tuple[str, ...] = ("sum", "total")
        if any(number.startswith("-") for number in others):
            kinds = ("diff", "left") if len(others) == 1 else ()
        is_true = sum(numbers) == int(step["n"])
        return at, stop, check.check_calculation(kinds, [abs(number) for number in numbers], is_true)
    if step := _COMPARISON.fullmatch(text, at, stop):
        a, b = int(step["a"]), int(step["b"])
        is_true = {"<": a < b, ">": a > b, "=": a == b}[step["sign"]]
        return at, stop, check.check_calculation(("more",), [a, b], is_true)
    if step := _PARITY.fullmatch(text, at, stop):
        number = int(step["n"])
        is_true = (number % 2 == 0) == (step["claim"].lower() == "even")
        return at, stop, check.check_calculation(("parity",), [number], is_true)
    if step := _MOST.fullmatch(text, at, stop):
        return *step.span("phrase"), check.check_calculation(("most",), [int(step["n"])], True)
    return None


def _verify_answer(
    text: str, marker: re.Match[str], check: _StepCheck, before: list[DraftSegment]
) -> list[DraftSegment]:
    """Return the segments of the text after the last "Answer:", up to the end of its line."""
    line_end = text.find("\n", marker.end())
    stop = len(text) if line_end < 0 else line_end
    while stop > marker.end() and (text[stop - 1].isspace() or text[stop - 1] == "."):
        stop -= 1
    at = marker.end()
    while at < stop and text[at].isspace():
        at += 1
    assert check.question is not None
    if at == stop:
        return []
    result = grade(text, check.question.gold.key())
    if result.verdict == "unknown":
        return [*_make_segments(text, (marker.start(), stop), (at, stop, ""), "unknown")]
    error = ""
    if result.verdict == "wrong":
        wrong = [segment.error for segment in before if segment.verdict == "wrong"]
        error = wrong[0] if wrong else "arithmetic" if check.has_read_all else check.reading_error
    return [*_make_segments(text, (marker.start(), stop), (at, stop, error))]


def _make_segments(
    text: str, step: tuple[int, int], found: tuple[int, int, str] | None, verdict: Verdict | None = None
) -> Iterator[DraftSegment]:
    """Return the segments of a step and, if it was parsed, of its phrase with the space before it."""
    if found is None:
        yield DraftSegment(start=step[0], end=step[1], kind="step")
        return
    start, end, error = found
    if text[start] != " " and start > step[0] and text[start - 1] == " ":
        start -= 1
    verdict = verdict or ("wrong" if error else "right")
    yield DraftSegment(start=step[0], end=step[1], kind="step", verdict=verdict, error=error)
    yield DraftSegment(start=start, end=end, verdict=verdict, error=error)
