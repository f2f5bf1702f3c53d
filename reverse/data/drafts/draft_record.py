"""The draft record: one question about pictures, its right answer, and drafts of answers with verdicts.

A draft file holds one record per line (`draft_files`). Curation writes it, self-training extends it, and
views turn it into training rows (`reverse.training.views`).

    >>> record = DraftRecord(
    ...     id="test-000001-count",
    ...     question="How many dogs are there?",
    ...     gold=GoldAnswer(kind="number", answers=("2",)),
    ...     drafts=(RecordedDraft(text="There are 3 dogs. Answer: 3", verdict="wrong", judged_by="grading"),),
    ... )
    >>> record.gold.key().answers
    ('2',)
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from reverse.errors import DataError
from reverse.grading.answer_key import AnswerKey, Kind
from reverse.tokens.spans import CN, SPAN, UN

__all__ = [
    "FORMAT_VERSION",
    "DraftLink",
    "DraftRecord",
    "DraftSegment",
    "GoldAnswer",
    "RecordedCost",
    "RecordedDraft",
    "RecordedSampling",
    "Verdict",
    "parse_draft_record",
    "tag_segments",
]

FORMAT_VERSION = 1  # as in `DraftRecord.version`
MOST_DRAFTS = 4096  # of one question
LONGEST_TEXT = 200_000  # characters of a question or draft

Verdict = Literal["right", "wrong", "unknown"]
Probability = Annotated[float, Field(ge=0, le=1)]
Text = Annotated[str, Field(max_length=LONGEST_TEXT)]


class _Part(BaseModel):
    """Base class of the parts of a record: immutable, unknown keys and NaN are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class GoldAnswer(_Part):
    """The right answer of a question, and how answers to it are compared."""

    kind: Kind = "text"
    answers: tuple[str, ...]  # any of them is right
    choices: tuple[str, ...] = ()  # texts of the options A, B, C, …
    tolerance: float = Field(default=0.0, ge=0)  # relative, of a number
    absolute: float = Field(default=1e-6, ge=0)  # tolerance of a number
    unit: str = ""

    def key(self) -> AnswerKey:
        """Return the answer key for `reverse.grading.grade`.

        Raises RequestError if the answer does not fit its kind.
        """
        return AnswerKey(self.kind, self.answers, self.choices, self.tolerance, self.absolute, self.unit)


class RecordedSampling(_Part):
    """How a draft was sampled."""

    temperature: float = Field(default=0.0, ge=0)  # 0: the most probable token
    top_k: int | None = None
    top_p: float | None = None
    seed: int | None = None


class DraftSegment(_Part):
    """A part of a draft: `draft.text[start:end]`. A phrase is what the three tokens enclose."""

    start: int = Field(ge=0)
    end: int = Field(ge=0)
    kind: Literal["phrase", "step", "stage"] = "phrase"
    verdict: Verdict = "unknown"
    error: str = ""  # kind of error of a wrong segment, such as "count", "object", "arithmetic", "reading"
    p_un: Probability | None = None  # p(`</UN>`) at its end
    value: Probability | None = None  # of the text up to its end, from a value head or a tree


class RecordedDraft(_Part):
    """One answer. `parent` is the index of the draft that it corrects or continues."""

    text: Text  # without the three tokens
    role: str = "sample"  # rationale, first, sample, correction, refinement, reflection, judge, chain
    parent: int | None = Field(default=None, ge=0)
    iteration: int = Field(default=0, ge=0)  # of self-training
    made_by: str = ""  # model or annotator
    sampling: RecordedSampling | None = None
    segments: tuple[DraftSegment, ...] = ()
    answer: str | None = None  # extracted, in normal form
    verdict: Verdict = "unknown"
    judged_by: str = ""  # grading, truth, human, or "judge:" with a model's name
    confidence: Probability | None = None
    value: float | None = None
    accepted: bool = False  # its answer was returned
    tokens: int | None = Field(default=None, ge=0)  # generated, discarded ones included
    seconds: float | None = Field(default=None, ge=0)

    def steps_are_right(self) -> bool:
        """Whether the draft has segments with verdicts, and all of these are right."""
        verdicts = [segment.verdict for segment in self.segments]
        return bool(verdicts) and all(verdict == "right" for verdict in verdicts)


class DraftLink(_Part):
    """Drafts that belong together for a purpose; `drafts` are indices.

    Of "refine" and "reflect": the first answer, then its correction. Of "prefer": the better one, then the
    worse one. Of "select": the candidates in the order they are shown in.
    """

    kind: Literal["refine", "reflect", "select", "prefer"]
    drafts: tuple[int, ...] = Field(min_length=2)


class RecordedCost(_Part):
    """The total cost of all drafts of a record, which one mode made."""

    mode: str = ""
    tokens: int = Field(ge=0)  # generated, discarded ones included
    seconds: float = Field(ge=0)


class DraftRecord(_Part):
    """One line of a draft file."""

    version: Literal[1] = 1
    id: str = Field(min_length=1, max_length=1000)
    question: Text
    images: tuple[str, ...] = ()  # paths relative to the folder of pictures
    gold: GoldAnswer | None = None  # None: nobody knows it
    drafts: tuple[RecordedDraft, ...] = Field(default=(), max_length=MOST_DRAFTS)
    links: tuple[DraftLink, ...] = ()
    cost: RecordedCost | None = None  # None: not measured
    source: dict[str, Any] = {}  # what a published format says beyond this; exporters write it back

    @model_validator(mode="after")
    def _check_indices(self) -> DraftRecord:
        for at, draft in enumerate(self.drafts):
            if draft.parent is not None and draft.parent >= at:
                raise ValueError(
                    f"draft {at} has parent {draft.parent}: a parent stands before the drafts that "
                    "continue it"
                )
            end = 0
            for segment in draft.segments:
                if not (segment.start <= segment.end <= len(draft.text)):
                    raise ValueError(
                        f"a segment of draft {at} is [{segment.start}, {segment.end}) of "
                        f"{len(draft.text)} characters"
                    )
                if segment.kind == "phrase":
                    if segment.start < end:
                        raise ValueError(f"two phrases of draft {at} overlap at character {segment.start}")
                    end = segment.end
        for link in self.links:
            if max(link.drafts) >= len(self.drafts) or min(link.drafts) < 0:
                raise ValueError(f"a {link.kind} link names draft {max(link.drafts)} of {len(self.drafts)}")
        return self


def parse_draft_record(value: Any, where: str) -> DraftRecord:
    """Build a record from a JSON value.

    Raises DataError naming `where`, the key and the value.
    """
    try:
        return DraftRecord.model_validate(value)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        key = ".".join(map(str, first["loc"])) or "the record"
        if key == "version":
            message = (
                f"version {first['input']!r:.40} is not {FORMAT_VERSION}: this file needs another release"
            )
        elif first["type"] == "value_error":
            message = first["msg"].removeprefix("Value error, ")
        else:
            message = f"{key}: {first['msg']}, got {first['input']!r:.80}"
        raise DataError(f"{where}: {message} (see docs/drafts.md)") from None


def tag_segments(text: str, segments: tuple[DraftSegment, ...], *, all_confident: bool = False) -> str:
    """Write the three tokens around the phrases of a text; a wrong phrase closes with `</UN>`.

    Args:
        all_confident: close every phrase with `</CN>`.
    """
    parts, at = [], 0
    for segment in segments:
        if segment.kind != "phrase":
            continue
        closing = UN if segment.verdict == "wrong" and not all_confident else CN
        parts += [text[at : segment.start], SPAN, text[segment.start : segment.end], closing]
        at = segment.end
    return "".join([*parts, text[at:]])
