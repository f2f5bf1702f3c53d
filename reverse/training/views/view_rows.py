"""Common parts of views: settings, rows, verified drafts, and pairs of drafts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Any, NamedTuple, TypeVar

from reverse.data.drafts.draft_record import DraftRecord, RecordedDraft, tag_segments
from reverse.data.drafts.tagged_parts import find_first_part
from reverse.data.records.record_rules import find_faults, find_shape_problem
from reverse.data.records.schema import ANSWER_TYPE, IMAGE_TOKEN
from reverse.data.records.target_rules import Targets
from reverse.errors import RequestError

__all__ = [
    "SAMPLES",
    "Pair",
    "ViewRows",
    "ViewSettings",
    "ViewTurn",
    "find_pairs",
    "find_targets",
    "is_verified",
    "list_drafts",
    "mode_of",
    "write_draft",
    "write_prefix",
    "write_thinking",
]

SAMPLES = ("sample", "first", "chain")  # roles of a model's own answers
TRUE_ROLES = ("rationale", "correction", "refinement", "reflection")  # preferred as targets


@dataclass(frozen=True)
class ViewSettings:
    """Settings that decide how drafts become rows."""

    seed: int = 0
    roles: tuple[str, ...] = ()  # of the drafts that a view begins with; empty: those of the view
    verified: bool = False  # "cot": only drafts that are right in their answer and all steps
    tagged: bool = True  # write the three tokens around the phrases of what is trained
    right_share: float = 0.3  # of the right first answers: so many become pairs that keep the answer
    per_question: int | None = None  # the most rows of one question; None: all ("select": 1)
    mode: Any = None  # the mode that will ask, whose instruction is written; None: with its defaults

    def __post_init__(self) -> None:
        if not 0 <= self.right_share <= 1:
            raise RequestError(f"right_share must lie in [0, 1], got {self.right_share!r:.80}: try 0.3")
        if self.per_question is not None and self.per_question < 1:
            raise RequestError(f"per_question must be at least 1, got {self.per_question!r:.80}")

    def random(self, record: DraftRecord, view: str) -> Random:
        """Return the random numbers of one record. They depend only on the seed and the record."""
        return Random(f"{self.seed} {view} {record.id}")


Kind = TypeVar("Kind")


def mode_of(settings: ViewSettings, kind: type[Kind]) -> Kind:
    """Return the mode whose instruction is written. Raises RequestError if it is not of this kind."""
    if settings.mode is None:
        return kind()
    if not isinstance(settings.mode, kind):
        raise RequestError(f"this view needs a mode of the kind {kind.__name__}, got {settings.mode!r:.80}")
    return settings.mode


class ViewTurn(NamedTuple):
    """A question and an answer of a row."""

    question: str
    answer: str
    targets: Targets = "all"
    given: int = 0


@dataclass
class ViewRows:
    """The rows of one draft record, and how many drafts or pairs were left out, by reason."""

    record: DraftRecord
    view: str
    settings: ViewSettings
    rows: list[dict[str, Any]] = field(default_factory=list)
    left_out: Counter[str] = field(default_factory=Counter)
    made: Counter[str] = field(default_factory=Counter)  # rows by kind

    @property
    def is_full(self) -> bool:
        """Whether the record has its largest number of rows."""
        return self.settings.per_question is not None and len(self.rows) >= self.settings.per_question

    def leave_out(self, reason: str) -> None:
        """Count a draft or pair that becomes no row."""
        self.left_out[reason] += 1

    def add(self, kind: str, *turns: ViewTurn) -> None:
        """Add a row, unless it could not be trained or the question has enough of them."""
        if self.is_full:
            self.leave_out("beyond the most rows of a question")
            return
        row = self._make(turns)
        if find_shape_problem(row) is not None:
            self.leave_out("no valid record: path of a picture")
            return
        fault = next(find_faults(row), None)
        if fault is not None:
            self.leave_out(f"no valid record: {fault.kind}")
            return
        self.rows.append(row)
        self.made[kind] += 1

    def _make(self, turns: Sequence[ViewTurn]) -> dict[str, Any]:
        images = list(self.record.images)
        row: dict[str, Any] = {"id": f"{self.record.id}#{self.view}-{len(self.rows)}"}
        if images:
            row |= {"image": images[0]} if len(images) == 1 else {"images": images}
        said: list[dict[str, Any]] = []
        for turn in turns:
            place = f"{IMAGE_TOKEN}\n" if len(images) == 1 and not said else ""
            answer: dict[str, Any] = {
                "from": "gpt",
                "value": turn.answer,
                "A_type": ANSWER_TYPE,
                "hint": None,
            }
            if turn.targets != "all":
                answer["targets"] = turn.targets
            if turn.given:
                answer["given"] = turn.given
            said += [{"from": "human", "value": place + turn.question}, answer]
        return {**row, "conversations": said}


class Pair(NamedTuple):
    """A first answer and the verified one that it is to become."""

    first: RecordedDraft
    target: RecordedDraft

    @property
    def kind(self) -> str:
        return "wrong to right" if self.first.verdict == "wrong" else "right to right"


def is_verified(draft: RecordedDraft) -> bool:
    """Whether the answer is right, and so are all parts of the draft, if it has any."""
    return draft.verdict == "right" and (not draft.segments or draft.steps_are_right())


def write_draft(draft: RecordedDraft, *, tagged: bool) -> str:
    """Return the text of a draft, with all phrases closed by `</CN>` if it is tagged."""
    return tag_segments(draft.text, draft.segments, all_confident=True) if tagged else draft.text


def write_prefix(draft: RecordedDraft, end: int, *, tagged: bool) -> str:
    """The first `end` characters of a draft, with the phrases that are complete there tagged."""
    text = draft.text[:end]
    kept = tuple(segment for segment in draft.segments if segment.end <= end)
    return tag_segments(text, kept, all_confident=True) if tagged else text


def write_thinking(text: str) -> str:
    """What is thought before the answer: the part in `<think>`, what stands before `<answer>`, or all."""
    thought = find_first_part(text, "think")
    return (text.partition("<answer>")[0] if thought is None else thought).strip()


def list_drafts(record: DraftRecord, roles: Sequence[str]) -> list[RecordedDraft]:
    """List the drafts with these roles, in their order; of equal texts only the first."""
    found: dict[str, RecordedDraft] = {}
    for draft in record.drafts:
        if draft.role in roles:
            found.setdefault(draft.text.strip(), draft)
    return list(found.values())


def find_targets(record: DraftRecord) -> list[RecordedDraft]:
    """Return the verified drafts that may be trained as answers: rationales and corrections if any."""
    found = [draft for draft in record.drafts if is_verified(draft)]
    return [draft for draft in found if draft.role in TRUE_ROLES] or found


def find_pairs(rows: ViewRows, link: str) -> list[Pair]:
    """Return pairs of a first answer and a verified target; drafts without a pair are counted.

    Links of this kind say which drafts belong together. Without any, every distinct answer of a model gets
    one of the verified drafts, drawn by the seed. Right first answers are kept as `right_share` says.
    """
    record, settings = rows.record, rows.settings
    random = settings.random(record, rows.view)
    linked = [each.drafts for each in record.links if each.kind == link]
    targets = find_targets(record)
    if linked:
        candidates = [(record.drafts[first], [record.drafts[after]]) for first, after, *_ in linked]
    else:
        firsts = list_drafts(record, settings.roles or SAMPLES)
        candidates = [(first, targets) for first in firsts]
        if not firsts:
            rows.leave_out("no first answer")
    pairs = []
    for first, possible in candidates:
        keeps_right = random.random() < settings.right_share
        target = random.choice(possible) if possible else None
        if not first.text.strip():
            rows.leave_out("blank first answer")
        elif first.verdict == "unknown":
            rows.leave_out("first answer without a verdict")
        elif target is None:
            rows.leave_out("no verified target")
        elif not is_verified(target):
            rows.leave_out("target is not verified")
        elif first.verdict == "right" and not keeps_right:
            rows.leave_out("right first answer beyond its share")
        else:
            pairs.append(Pair(first, target))
    return pairs
