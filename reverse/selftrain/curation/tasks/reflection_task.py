"""Let a teacher criticise a model's answer and lead to the right one (SRPO, stage 1: reflections).

The record gets a draft with the reflection and one with the answer behind it, linked as "reflect" with the
answer that was criticised. Published data has no second thinking: the answer behind the reflection is the
right answer alone. With `second_thinking` the teacher thinks again, and what it then answers must be right.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from reverse.data.drafts.draft_record import DraftRecord, RecordedDraft
from reverse.errors import DataError
from reverse.evaluation.scoring.judge import find_object
from reverse.selftrain.curation.curation_pass import RecordOutcome, fail
from reverse.selftrain.curation.tasks.task_parts import (
    clean_reply,
    extend_record,
    find_newest_answer,
    require_right,
)
from reverse.selftrain.curation.teacher import Teacher
from reverse.tokens.spans import find_problems

__all__ = ["ReflectionTask"]

MAX_REFLECTION = 20_000  # characters
_GRAMMAR = ("<think", "</think", "<answer", "</answer", "<reflection", "</reflection")


@dataclass(frozen=True)
class ReflectionTask:
    """Reflections on the newest answer of each record. The instructions are those of the system turn.

    Args:
        second_thinking: let the teacher think and answer again behind the reflection; that answer is graded.
    """

    second_thinking: bool = False
    instruction: str = (
        "You get a question, perhaps its picture, the right answer, and another model's reasoning and "
        "answer. "
        "Write a short reflection, as if that model looked back at its own work: name the step that is "
        "wrong or "
        "not needed, what was overlooked in the picture, and how to do better. If the answer is right, "
        "say what "
        "supports it and what could be left out. Do not say that you were told the right answer."
    )
    form: str = 'Reply with one JSON object and nothing else: {"reflection": "…"}'
    form_with_thinking: str = (
        "Then think again and answer. Reply with one JSON object and nothing else: "
        '{"reflection": "…", "thinking": "…", "answer": "the final answer alone"}'
    )

    name = "reflection-eval"

    async def process(self, record: DraftRecord, teacher: Teacher) -> RecordOutcome:
        """Add a reflection and the answer behind it to a record."""
        counts: Counter[str] = Counter()
        first = find_newest_answer(record)
        if first is None:
            return fail(record, "no_answer", counts, "no model has answered it: `reverse curate answer-eval`")
        if record.gold is None:
            return fail(record, "no_gold", counts, "the right answer is not known")
        draft = record.drafts[first]
        prompt = (
            f"Question: {record.question}\n\nRight answer: {' or '.join(record.gold.answers)}\n\n"
            f"The model's reasoning and answer:\n{draft.text}\n\n"
            f"The model's final answer: {draft.answer if draft.answer is not None else 'none can be read'}"
        )
        form = self.form_with_thinking if self.second_thinking else self.form

        def read(text: str) -> tuple[str, str, str]:
            return self._read(text, record)

        found = await teacher.ask(f"{self.instruction}\n\n{form}", prompt, record.images, read, counts)
        if found.value is None:
            return fail(record, found.kind, counts, found.detail)
        critique, last, answer = found.value
        counts[f"reflections.{draft.verdict}"] += 1
        recorded = teacher.sampling.recorded()
        reflection = RecordedDraft(
            text=critique, role="reflection", parent=first, made_by=teacher.name, sampling=recorded
        )
        correction = RecordedDraft(
            text=last,
            role="correction",
            parent=len(record.drafts),
            made_by=teacher.name if self.second_thinking else "truth",
            sampling=recorded if self.second_thinking else None,
            answer=answer,
            verdict="right",
            judged_by="grading" if self.second_thinking else "truth",
        )
        return RecordOutcome.of(
            extend_record(record, reflection, correction, link="reflect", first=first), counts
        )

    def _read(self, reply: str, record: DraftRecord) -> tuple[str, str, str]:
        """Read the reflection, the answer with its tags, and the final answer. Raises DataError."""
        assert record.gold is not None
        fields = find_object(reply)
        wanted = ("reflection", "thinking", "answer") if self.second_thinking else ("reflection",)
        texts = {name: _read_field(fields, name) for name in wanted}
        if not self.second_thinking:
            gold = record.gold.answers[0]
            return texts["reflection"], f"<answer>{gold}</answer>", gold
        last = f"<think>{texts['thinking']}</think>\n<answer>{texts['answer']}</answer>"
        return texts["reflection"], last, require_right(last, record)


def _read_field(fields: dict[str, object], name: str) -> str:
    """Read a text of a reply's object.

    Raises DataError for another value, or a text with tags of the grammar.
    """
    value = fields.get(name)
    if not isinstance(value, str) or not value.strip() or len(value) > MAX_REFLECTION:
        raise DataError(f'"{name}" must be a text of 1 to {MAX_REFLECTION} characters')
    if any(tag in value.lower() for tag in _GRAMMAR) or find_problems(value):
        raise DataError(f'"{name}" must hold no tags such as <think> or <answer>')
    return clean_reply(value)
