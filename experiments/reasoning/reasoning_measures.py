"""Answer the reasoning world's questions with every mode, through the library, and keep all drafts.

Each mode's drafts are one file, `measure/STAGE/SPLIT/NAME.jsonl`; one that is there is not answered again.
Several processes may answer one folder: each takes the modes that no other one has begun.
Gates and the threshold are chosen on `val` (`choose_settings`), never on a test split.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from experiments.reasoning.reasoning_recipe import AUTO_BUDGETS, REFLECTION, ReasoningRecipe
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
from reverse.decoding.calls.handles import Handle
from reverse.decoding.config import ResamplingConfig
from reverse.decoding.result import Draft, Result, Usage
from reverse.evaluation.modes.mode_effects import cost, first_answers
from reverse.evaluation.modes.question_means import final_draft, is_right
from reverse.files.file_lock import OutputInUseError, output_lock
from reverse.grading import grade
from reverse.modes import Auto, Plain, Refine, Reflect, Select, SelfCorrect, Tree
from reverse.modes.mode import Budget

__all__ = [
    "CORRECTIONS",
    "MeasuredMode",
    "Measurer",
    "ask_questions",
    "choose_gate",
    "choose_settings",
    "list_modes",
    "make_answered_record",
    "make_draft_record",
    "make_request",
    "write_results",
]

KEEP = Plain(keep_phrases=True)
WARM: dict[str, Any] = {"inner": KEEP, "temperature": 1.0, "top_k": 0, "top_p": 1.0}
CORRECTIONS: dict[str, Any] = {
    "refine": Refine(inner=KEEP),
    "self_correct": SelfCorrect(inner=KEEP),
    "reflect": Reflect(inner=KEEP, instruction=REFLECTION),
}
THRESHOLDS = (0.1, 0.3, 0.5, 0.7, 0.9)


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


@dataclass(frozen=True)
class _AskedMode:
    """Questions of a split that were asked with a mode, and the lock on the file of its drafts."""

    split: str
    name: str
    handles: list[Handle]
    lock: ExitStack


class Measurer:
    """Answers the questions of a split with one model.

    Args:
        folder: of the drafts.
        say: called with a line of progress.
        writer: process that grades results and writes drafts meanwhile; None: this one does.
    """

    def __init__(
        self,
        model: Any,
        processor: Any,
        recipe: ReasoningRecipe,
        folder: Path,
        say: Callable[[str], None],
        writer: ProcessPoolExecutor | None = None,
    ):
        self.recipe, self.folder, self.say, self.writer = recipe, folder, say, writer
        self.engine = Engine(model, processor, max_sequences=recipe.sequences)
        self._asked: _AskedMode | None = None
        self._written: dict[Path, Future[None]] = {}

    def answer(self, split: str, name: str, measured: MeasuredMode) -> None:
        """Ask the questions of a split with a mode, unless its drafts exist or another process makes them.

        The answers are collected after the next call has asked its questions: an engine without work forgets
        the pictures that it has encoded.
        """
        path = self._path(split, name)
        if self._asked is not None and self._asked.name == name and self._asked.split == split:
            return
        if path.is_file() or path in self._written:
            return
        with ExitStack() as stack:
            try:
                stack.enter_context(output_lock(path))
            except OutputInUseError:
                return
            if path.is_file():
                return
            asked = ask_questions(split, self.recipe.count_questions(split))
            handles = [
                self.engine.submit(make_request(each, measured, self.recipe.most_tokens)) for each in asked
            ]
            self._collect()
            self._asked = _AskedMode(split, name, handles, stack.pop_all())

    def answer_all(self, work: Sequence[tuple[str, str]], modes: Mapping[str, MeasuredMode]) -> None:
        """Ask the questions of all (split, mode), and wait until everything is written.

        What another process has begun is awaited, and done here if that process stopped.
        """
        for split, name in work:
            self.answer(split, name, modes[name])
        for split, name in work:
            self._await(split, name, modes[name])

    def read(self, split: str, name: str, measured: MeasuredMode) -> list[DraftRecord]:
        """The records of a mode on a split, one a question, in order; made first if they are not there."""
        self._await(split, name, measured)
        return list(read_drafts(self._path(split, name)))

    def _await(self, split: str, name: str, measured: MeasuredMode) -> None:
        """Return once the drafts of a mode are written, by whichever process."""
        path = self._path(split, name)
        self.finish()  # another process may wait for what this one has begun
        while not path.is_file():
            with output_lock(path, wait=-1):
                pass
            self.answer(split, name, measured)
            self.finish()

    def finish(self) -> None:
        """Wait until everything is written."""
        self._collect()
        for path in list(self._written):
            self._written.pop(path).result()

    def _collect(self) -> None:
        """Wait for the answers that were asked for last, and have them written."""
        if self._asked is None:
            return
        asked, self._asked = self._asked, None
        with ExitStack() as stack:
            stack.push(asked.lock)
            began, path = time.monotonic(), self._path(asked.split, asked.name)
            results = [handle.result() for handle in asked.handles]
            tokens = sum(result.usage.kept + result.usage.discarded for result in results)
            name = f"{self.folder.name} {asked.split} {asked.name}"
            each = tokens / len(results)
            self.say(f"{name}: {each:.0f} tokens a question, {time.monotonic() - began:.1f} s")
            if self.writer is None:
                write_results(path, asked.split, asked.name, results)
                return
            written = self.writer.submit(write_results, path, asked.split, asked.name, results)
            self._written[path] = written
            lock = stack.pop_all()
            written.add_done_callback(lambda _: lock.close())

    def _path(self, split: str, name: str) -> Path:
        return self.folder / split / f"{name}.jsonl"


@lru_cache(maxsize=4)
def ask_questions(split: str, count: int) -> list[AskedQuestion]:
    """The first question about each of the first `count` pictures of a split."""
    pictures = (make_reasoning_picture(split, index) for index in range(count))
    return [
        AskedQuestion(make_reasoning_questions(picture)[0], draw_reasoning_picture(picture))
        for picture in pictures
    ]


def make_request(asked: AskedQuestion, measured: MeasuredMode, most_tokens: int) -> Request:
    """The request that asks a question with a mode; modes that vote are told the form of the answer."""
    mode = measured.mode
    if hasattr(mode, "answer_format"):
        mode = replace(mode, answer_format=asked.question.gold.key().format)
    return Request(
        Image.fromarray(asked.picture),
        asked.question.text,
        mode=mode,
        config=measured.config,
        max_new_tokens=most_tokens,
    )


def write_results(path: Path, split: str, name: str, results: Sequence[Result]) -> None:
    """Grade the results of a mode on a split and write its drafts."""
    asked = ask_questions(split, len(results))
    records = [
        make_draft_record(each.question, result, name) for each, result in zip(asked, results, strict=True)
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    write_drafts(path, records)


def make_draft_record(question: ReasoningQuestion, result: Result, name: str) -> DraftRecord:
    """A result with its drafts graded, and the steps of single answers verified."""
    drafts = [_record_draft(question, draft) for draft in result.drafts]
    if not drafts:
        drafts = [_record_answer(question, result)]
    return make_answered_record(question, drafts, name, result.usage)


def make_answered_record(
    question: ReasoningQuestion, drafts: Sequence[RecordedDraft], name: str, usage: Usage
) -> DraftRecord:
    """The record of a question that was answered with a mode, and what that cost."""
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


def choose_settings(measurer: Measurer) -> tuple[float, dict[str, float]]:
    """The threshold of resampling and the gate of each correction, chosen on val."""
    # The highest gate: what is corrected always, and shows its first answer beside.
    corrections = {name: MeasuredMode(replace(mode, gate=1.0)) for name, mode in CORRECTIONS.items()}
    resampled = {
        f"resample_{each:g}": MeasuredMode("resample", ResamplingConfig.for_rationales(threshold=each))
        for each in THRESHOLDS
    }
    modes = corrections | resampled
    measurer.answer_all([("val", name) for name in modes], modes)
    gates = {name: choose_gate(measurer.read("val", name, mode)) for name, mode in corrections.items()}
    return choose_threshold(measurer, resampled), gates | {"auto": gates["refine"]}


def choose_threshold(measurer: Measurer, resampled: Mapping[str, MeasuredMode]) -> float:
    """The threshold of resampling that is right most often on val; of equals the one with fewer tokens."""
    found = {}
    for threshold, (name, mode) in zip(THRESHOLDS, resampled.items(), strict=True):
        records = measurer.read("val", name, mode)
        found[threshold] = (sum(map(is_right, records)), -cost(records).tokens.point)
    return max(found, key=lambda threshold: found[threshold])


def choose_gate(corrected: Sequence[DraftRecord]) -> float:
    """The gate with which a correction is right most often on val; of equals the lowest.

    Args:
        corrected: answers with a gate of 1; their first drafts are the answers without the correction.
    """
    first = first_answers(corrected)
    confidence = np.array([final_draft(record).confidence or 0.0 for record in first])
    before = np.array([is_right(record) for record in first])
    after = np.array([is_right(record) for record in corrected])
    gates = np.unique(np.clip(np.quantile(confidence, np.linspace(0.02, 0.6, 30)), 1e-6, 1.0))
    right = [np.where(confidence < gate, after, before).sum() for gate in gates]
    return float(gates[int(np.argmax(right))])
