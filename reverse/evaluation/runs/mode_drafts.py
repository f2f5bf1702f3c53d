"""Make the modes of a run from their names and the form of answers, and write their drafts as draft records.

Beside NAME.jsonl of a graded benchmark, or of a mode that makes drafts, lies NAME.drafts.jsonl: one draft
record per question with all drafts, their verdicts, and the cost of the answer. It is made from all of
NAME.jsonl when the run is complete, so a stopped run has no such file until the same command completes it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, fields, is_dataclass, replace
from pathlib import Path
from typing import Any

from reverse.data.drafts.draft_files import write_drafts
from reverse.data.drafts.draft_record import (
    DraftRecord,
    DraftSegment,
    GoldAnswer,
    RecordedCost,
    RecordedDraft,
)
from reverse.evaluation.benchmarks.benchmark import BenchmarkQuestion
from reverse.evaluation.reading.answers import read_run_answers
from reverse.grading import AnswerFormat, extract_answer, grade

__all__ = [
    "answer_format",
    "describe_mode",
    "drafts_path",
    "make_draft_record",
    "make_mode",
    "set_answer_format",
    "write_run_drafts",
]

TEXT = AnswerFormat("text")


def drafts_path(path: Path) -> Path:
    """Return the path of the file of drafts beside an answers file."""
    return path.with_suffix(".drafts.jsonl")


# ---------------------------------------------------------------------- modes
def make_mode(name: str, settings: Mapping[str, Any]) -> Any:
    """Make the mode of a run.

    Raises RequestError for a setting that the mode does not have, or out of range.
    """
    from reverse.modes import MODES, Plain

    if name == "plain":
        # What a correction is compared with must not end where the model doubts its own phrase.
        return Plain(keep_phrases=True)
    return MODES[name](**settings) if settings else MODES[name]()


def describe_mode(name: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return a mode's settings for the run's record, defaults included."""
    from reverse.modes import MODES

    if name not in MODES or name in ("plain", "resample"):
        return {}
    mode = make_mode(name, settings)
    kept = {each.name: getattr(mode, each.name) for each in fields(mode) if each.name != "answer_format"}
    return {"mode_settings": {key: _describe(value) for key, value in kept.items()}}


def _describe(value: Any) -> Any:
    if is_dataclass(value) and not isinstance(value, type):
        return {"name": type(value).__name__, **{k: _describe(v) for k, v in asdict(value).items()}}
    return value if value is None or isinstance(value, str | int | float | bool) else str(value)


def answer_format(question: BenchmarkQuestion, is_yes_no: bool = False) -> AnswerFormat:
    """Return the form of a question's answers; for a graded benchmark it is that of its answer key."""
    if question.key is not None:
        return question.key.format
    return AnswerFormat("yes_no") if is_yes_no else TEXT


def set_answer_format(mode: Any, form: AnswerFormat) -> Any:
    """Return the mode with this form of answers, which its inner modes get too."""
    changes: dict[str, Any] = {}
    for each in fields(mode):
        value = getattr(mode, each.name)
        if each.name == "answer_format":
            changes[each.name] = form
        elif each.name == "inner" and is_dataclass(value):
            changes[each.name] = set_answer_format(value, form)
    return replace(mode, **changes) if changes else mode


# ---------------------------------------------------------------------- drafts
def write_run_drafts(
    path: Path, questions: Sequence[BenchmarkQuestion], mode: str, model: str
) -> Path | None:
    """Write the drafts of a complete run beside its answers; None if it has none.

    Args: `mode` and `model` are the names that records keep.
    """
    rows = {str(row["question_id"]): row for row in read_run_answers(path).rows}
    if not any(question.key is not None for question in questions) and not any(
        row.get("drafts") for row in rows.values()
    ):
        return None

    def make_records() -> Iterator[DraftRecord]:
        for question in questions:
            yield make_draft_record(question, rows[str(question.id)], mode, model)

    write_drafts(drafts_path(path), make_records())
    return drafts_path(path)


def make_draft_record(
    question: BenchmarkQuestion, row: Mapping[str, Any], mode: str, model: str
) -> DraftRecord:
    """Make the draft record of a row of an answers file. A row without drafts is itself the only draft."""
    key, usage = question.key, row["usage"]
    tokens = usage["kept"] + usage["discarded"]
    seconds = float(row["timing"]["seconds"])
    drafts = row.get("drafts") or [
        {"role": "first", "text": row["text"], "tokens": tokens, "accepted": True, "phrases": row["phrases"]}
    ]
    each_seconds = row["timing"].get("drafts") or [seconds]
    made = [
        _make_draft(question, draft, took, model) for draft, took in zip(drafts, each_seconds, strict=True)
    ]
    gold = None
    if key is not None:
        gold = GoldAnswer(
            kind=key.kind, answers=key.answers, choices=key.choices, tolerance=key.tolerance,
            absolute=key.absolute, unit=key.unit,
        )  # fmt: skip
    return DraftRecord(
        id=str(question.id),
        question=question.prompt,
        images=(question.image,),
        gold=gold,
        drafts=tuple(made),
        cost=RecordedCost(mode=mode, tokens=tokens, seconds=seconds),
        source={"benchmark": row["metadata"]["benchmark"], **dict(question.metadata)},
    )


def _make_draft(
    question: BenchmarkQuestion, draft: Mapping[str, Any], seconds: float, model: str
) -> RecordedDraft:
    text, known = draft["text"], [each["p_un"] for each in draft["phrases"] if each["p_un"] is not None]
    answer = draft["answer"] if "answer" in draft else extract_answer(text, answer_format(question))
    found = grade(text, question.key) if question.key is not None else None
    return RecordedDraft(
        text=text,
        role=draft["role"],
        made_by=model,
        segments=_merge_segments(question.verify(text) if question.verify else (), draft["phrases"]),
        answer=answer,
        verdict="unknown" if found is None else found.verdict,
        judged_by="" if found is None else "grading",
        confidence=draft.get("confidence", 1 - max(known) if known else None),
        accepted=draft["accepted"],
        tokens=draft["tokens"],
        seconds=seconds,
    )


def _merge_segments(
    verified: Sequence[DraftSegment], phrases: Sequence[Mapping[str, Any]]
) -> tuple[DraftSegment, ...]:
    """Merge verified segments with the model's phrases: a segment gets the p(`</UN>`) of the phrase at its
    place.
    """
    left = [DraftSegment(start=each["start"], end=each["end"], p_un=each["p_un"]) for each in phrases]
    merged = []
    for segment in verified:
        if segment.kind == "phrase":
            found = max(left, key=lambda each: _overlap(each, segment), default=None)
            if found is not None and _overlap(found, segment) > 0:
                segment = segment.model_copy(update={"p_un": found.p_un})
                left = [each for each in left if _overlap(each, segment) <= 0]
        merged.append(segment)
    return tuple(sorted([*merged, *left], key=lambda each: each.start))


def _overlap(first: DraftSegment, second: DraftSegment) -> int:
    return min(first.end, second.end) - max(first.start, second.start)
