"""Answer the reasoning world's questions with every mode, through the library, and keep all drafts.

Each mode's drafts are one file, `measure/SPLIT/NAME.jsonl`; one that is there is not answered again. Gates
and the threshold are chosen on `val` (`choose_gate`, `choose_threshold`), never on a test split.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from experiments.reasoning.reasoning_recipe import REFLECTION, ReasoningRecipe
from reverse import Engine, Request
from reverse.data.drafts.draft_files import read_drafts, write_drafts
from reverse.data.drafts.draft_record import DraftRecord, DraftSegment, RecordedCost, RecordedDraft
from reverse.data.scenes.reasoning import (
    ReasoningQuestion,
    draw_reasoning_picture,
    make_reasoning_picture,
    make_reasoning_questions,
    verify_rationale,
)
from reverse.decoding.config import ResamplingConfig
from reverse.decoding.result import Draft, Result
from reverse.evaluation.modes.mode_effects import cost
from reverse.evaluation.modes.question_means import final_draft, is_right
from reverse.grading import grade
from reverse.modes import Auto, Plain, Refine, Reflect, Select, SelfCorrect, Tree
from reverse.modes.mode import Budget

__all__ = [
    "AUTO_BUDGETS",
    "CORRECTIONS",
    "MeasuredMode",
    "Measurer",
    "choose_gate",
    "choose_threshold",
    "list_modes",
]

KEEP = Plain(keep_phrases=True)
WARM: dict[str, Any] = {"inner": KEEP, "temperature": 1.0, "top_k": 0, "top_p": 1.0}
CORRECTIONS: dict[str, Any] = {
    "refine": Refine(inner=KEEP),
    "self_correct": SelfCorrect(inner=KEEP),
    "reflect": Reflect(inner=KEEP, instruction=REFLECTION),
}
THRESHOLDS = (0.1, 0.3, 0.5, 0.7, 0.9)
AUTO_BUDGETS = (60, 120, 240)  # tokens


@dataclass(frozen=True)
class MeasuredMode:
    """A mode and the settings of resampling that it is measured with."""

    mode: Any
    config: ResamplingConfig = field(default_factory=lambda: ResamplingConfig(hints=0))


@dataclass(frozen=True)
class AskedQuestion:
    """A question and its picture, uint8 (side, side, 3)."""

    question: ReasoningQuestion
    picture: np.ndarray


class Measurer:
    """Answers the questions of a split with one model.

    Args:
        folder: of the drafts.
        say: called with a line of progress.
    """

    def __init__(
        self, model: Any, processor: Any, recipe: ReasoningRecipe, folder: Path, say: Callable[[str], None]
    ):
        self.recipe, self.folder, self.say = recipe, folder, say
        self.engine = Engine(model, processor, max_sequences=recipe.sequences)
        self._asked: dict[str, list[AskedQuestion]] = {}

    def answer(self, split: str, name: str, measured: MeasuredMode) -> list[DraftRecord]:
        """The records of a mode on a split: one a question, in order."""
        path = self.folder / split / f"{name}.jsonl"
        if not path.is_file():
            path.parent.mkdir(parents=True, exist_ok=True)
            questions = self._ask(split)
            handles = [self.engine.submit(self._make_request(each, measured)) for each in questions]
            records = [
                make_draft_record(each.question, handle.result(), name)
                for each, handle in zip(questions, handles, strict=True)
            ]
            write_drafts(path, records)
        records = list(read_drafts(path))
        right = np.mean([is_right(record) for record in records])
        tokens = cost(records).tokens.point
        self.say(f"{self.folder.name} {split} {name}: {right:.1%} right, {tokens:.0f} tokens a question")
        return records

    def _ask(self, split: str) -> list[AskedQuestion]:
        if split not in self._asked:
            count = self.recipe.val_questions if split == "val" else self.recipe.test_questions
            pictures = (make_reasoning_picture(split, index) for index in range(count))
            self._asked[split] = [
                AskedQuestion(make_reasoning_questions(picture)[0], draw_reasoning_picture(picture))
                for picture in pictures
            ]
        return self._asked[split]

    def _make_request(self, asked: AskedQuestion, measured: MeasuredMode) -> Request:
        mode = measured.mode
        if hasattr(mode, "answer_format"):
            mode = replace(mode, answer_format=asked.question.gold.key().format)
        picture = Image.fromarray(asked.picture)
        return Request(
            picture,
            asked.question.text,
            mode=mode,
            config=measured.config,
            max_new_tokens=self.recipe.most_tokens,
        )


def make_draft_record(question: ReasoningQuestion, result: Result, name: str) -> DraftRecord:
    """A result with its drafts graded, and the steps of single answers verified."""
    drafts = [_record_draft(question, draft) for draft in result.drafts]
    if not drafts:
        drafts = [_record_answer(question, result)]
    usage = result.usage
    spent = RecordedCost(mode=name, tokens=usage.kept + usage.discarded, seconds=usage.seconds)
    return DraftRecord(
        id=question.id,
        question=question.text,
        images=(question.id.rpartition("-")[0],),  # intervals are over pictures
        gold=question.gold,
        drafts=tuple(drafts),
        cost=spent,
    )


def _record_draft(question: ReasoningQuestion, draft: Draft) -> RecordedDraft:
    text = draft.answer if draft.answer is not None else draft.text
    return RecordedDraft(
        text=draft.text,
        role=draft.role,
        answer=draft.answer,
        verdict=grade(text, question.gold.key()).verdict,
        judged_by="grading",
        confidence=draft.confidence,
        accepted=draft.accepted,
        tokens=draft.tokens,
        seconds=draft.seconds,
        segments=verify_rationale(draft.text, question),
    )


def _record_answer(question: ReasoningQuestion, result: Result) -> RecordedDraft:
    """A single answer, with p(`</UN>`) of each phrase that is also a phrase of the verified text."""
    read = {(phrase.start, phrase.end): phrase.p_un for phrase in result.phrases}
    found = grade(result.text, question.gold.key())
    segments = [_with_p(segment, read) for segment in verify_rationale(result.text, question)]
    ps = [phrase.p_un for phrase in result.phrases if phrase.p_un is not None]
    return RecordedDraft(
        text=result.text,
        role="first",
        answer=found.extracted,
        verdict=found.verdict,
        judged_by="grading",
        confidence=1 - max(ps) if ps else None,
        accepted=True,
        tokens=result.usage.kept + result.usage.discarded,
        seconds=result.usage.seconds,
        segments=tuple(segments),
    )


def _with_p(segment: DraftSegment, read: Mapping[tuple[int, int], float | None]) -> DraftSegment:
    if segment.kind != "phrase":
        return segment
    return segment.model_copy(update={"p_un": read.get((segment.start, segment.end))})


# ---------------------------------------------------------------------- modes, and what is chosen on val
def list_modes(threshold: float, gates: Mapping[str, float], most_samples: int) -> dict[str, MeasuredMode]:
    """Every mode that is measured on a test split."""
    checked = ResamplingConfig.for_rationales(threshold=threshold)
    modes = {"plain": MeasuredMode(KEEP), "resample": MeasuredMode("resample", checked)}
    modes["resample_defaults"] = MeasuredMode("resample", ResamplingConfig(threshold=threshold, hints=0))
    for name, mode in CORRECTIONS.items():
        modes[name] = MeasuredMode(mode)
        modes[f"{name}_gated"] = MeasuredMode(replace(mode, gate=gates[name]))
    modes["samples"] = MeasuredMode(Select(n=most_samples, judge="vote", confidence="product", **WARM))
    for n in (3, 8):
        modes[f"select{n}"] = MeasuredMode(Select(n=n, judge="self", confidence="product", **WARM))
    modes["tree"] = MeasuredMode(Tree(beams=3, branch=4, tau=0.0, **WARM))
    modes["tree2"] = MeasuredMode(Tree(beams=2, branch=2, tau=0.0, **WARM))
    for rounds in (2, 3):
        again = SelfCorrect(inner=KEEP, rounds=rounds, stop_when_same=False)
        modes[f"self_correct_rounds{rounds}"] = MeasuredMode(again)
    for tokens in AUTO_BUDGETS:
        auto = Auto(budget=Budget(max_tokens_total=tokens), gate=gates["auto"])
        modes[f"auto{tokens}"] = MeasuredMode(auto, checked)
    return modes


def choose_threshold(measurer: Measurer) -> float:
    """The threshold of resampling that is right most often on val; of equals the one with fewer tokens."""
    found = {}
    for threshold in THRESHOLDS:
        config = ResamplingConfig.for_rationales(threshold=threshold)
        records = measurer.answer("val", f"resample_{threshold:g}", MeasuredMode("resample", config))
        found[threshold] = (sum(map(is_right, records)), -cost(records).tokens.point)
    return max(found, key=lambda threshold: found[threshold])


def choose_gate(first: Sequence[DraftRecord], corrected: Sequence[DraftRecord]) -> float:
    """The gate with which a correction is right most often on val; of equals the lowest.

    Args:
        first: single answers. corrected: the same questions with the correction always on.
    """
    confidence = np.array([final_draft(record).confidence or 0.0 for record in first])
    before = np.array([is_right(record) for record in first])
    after = np.array([is_right(record) for record in corrected])
    gates = np.unique(np.clip(np.quantile(confidence, np.linspace(0.02, 0.6, 30)), 1e-6, 1.0))
    right = [np.where(confidence < gate, after, before).sum() for gate in gates]
    return float(gates[int(np.argmax(right))])
