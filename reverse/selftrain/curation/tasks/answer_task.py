"""Let a model answer the questions of a draft file, and grade its answers (SRPO: own rationales).

Answers that grading cannot decide are unknown. With a judge these, and only these, are put to it; a
judge that
gives no verdict leaves them unknown.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from dataclasses import dataclass

from reverse.data.drafts.draft_record import DraftRecord, RecordedDraft, Verdict
from reverse.endpoints.repeated_asking import Answered
from reverse.errors import DataError, RequestError
from reverse.evaluation.scoring.judge import find_object
from reverse.grading import grade
from reverse.selftrain.curation.curation_pass import RecordOutcome, fail
from reverse.selftrain.curation.tasks.task_parts import clean_reply, extend_record
from reverse.selftrain.curation.teacher import Teacher

__all__ = ["AnswerTask", "VerdictQuestion"]

MAX_SHOWN = 8000  # characters of an answer that a judge is shown


@dataclass(frozen=True)
class VerdictQuestion:
    """The question to a judge whether an answer is right."""

    instruction: str = (
        "You compare an answer with the right answer to a question. Judge only the final answer, not how "
        "it was "
        'found. Reply with one JSON object and nothing else: {"verdict": "right"}, {"verdict": "wrong"}, or '
        '{"verdict": "unknown"} if the answer gives none or several.'
    )

    async def ask(self, record: DraftRecord, text: str, judge: Teacher, counts: Counter[str]) -> Verdict:
        """Return the verdict of a judge on an answer; unknown if it gives none."""
        assert record.gold is not None
        prompt = (
            f"Question: {record.question[:MAX_SHOWN]}\n\nRight answer: {' or '.join(record.gold.answers)}\n\n"
            f"Answer: {text[-MAX_SHOWN:]}"
        )
        found = await judge.ask(self.instruction, prompt, (), read_verdict_reply, counts)
        counts[f"judged.{found.value or 'nothing'}"] += 1
        return found.value or "unknown"


def read_verdict_reply(text: str) -> Verdict:
    """Return the verdict in the JSON object of a reply. Raises DataError for anything else."""
    verdict = find_object(text).get("verdict")
    if verdict not in ("right", "wrong", "unknown"):
        raise DataError('"verdict" must be "right", "wrong" or "unknown"')
    return verdict


@dataclass(frozen=True)
class AnswerTask:
    """Answers with verdicts.

    Args:
        instruction: the system turn, which says in what form to answer; "" for checkpoints that know.
        samples: answers to each question; with more than one the temperature must be above 0.
        judge_instruction: of the teacher's judge, see `VerdictQuestion`.
    """

    instruction: str = (
        "Think step by step about the picture and the question. Write your reasoning between <think> and "
        "</think>, "
        "then the final answer alone between <answer> and </answer>."
    )
    samples: int = 1
    judge_instruction: str = VerdictQuestion.instruction

    name = "answer-eval"

    def __post_init__(self) -> None:
        if not 1 <= self.samples <= 1000:
            raise RequestError(f"--samples must lie in [1, 1000], got {self.samples}")

    async def process(self, record: DraftRecord, teacher: Teacher) -> RecordOutcome:
        """Add the teacher's answers to a record."""
        counts: Counter[str] = Counter()
        replies = await asyncio.gather(
            *(self._answer(record, teacher, number, counts) for number in range(self.samples))
        )
        drafts = []
        for number, reply in enumerate(replies):
            if reply.value is None:
                return fail(record, reply.kind, counts, reply.detail)
            drafts.append(await self._grade(record, reply.value, teacher, number, counts))
        return RecordOutcome.of(extend_record(record, *drafts), counts)

    async def _answer(
        self, record: DraftRecord, teacher: Teacher, number: int, counts: Counter[str]
    ) -> Answered[str]:
        return await teacher.ask(
            self.instruction,
            record.question,
            record.images,
            clean_reply,
            counts,
            demand="Answer the question.",
            number=number,
        )

    async def _grade(
        self, record: DraftRecord, text: str, teacher: Teacher, number: int, counts: Counter[str]
    ) -> RecordedDraft:
        verdict: Verdict = "unknown"
        extracted, judged_by = None, ""
        if record.gold is not None:
            found = grade(text, record.gold.key())
            verdict, extracted, judged_by = found.verdict, found.extracted, "grading"
            if verdict == "unknown" and teacher.judge is not None:
                question = VerdictQuestion(self.judge_instruction)
                verdict = await question.ask(record, text, teacher.judge, counts)
                judged_by = f"judge:{teacher.judge.name}"
        counts[f"answers.{verdict}"] += 1
        return RecordedDraft(
            text=text,
            role="first" if self.samples == 1 else "sample",
            made_by=teacher.name,
            sampling=teacher.sampling.recorded(number),
            answer=extracted,
            verdict=verdict,
            judged_by="" if verdict == "unknown" else judged_by,
        )
