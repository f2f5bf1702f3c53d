"""Let a teacher check a model's answer and correct it (LLaVA-SCo); grading decides what is kept.

The published pairs go from right to right, are not verified, and their teacher was told that the first answer
is right. Here the teacher is not told, wrong answers are corrected too, and a pair is kept only if the second
answer is right.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from typing import Literal

from reverse.data.drafts.draft_record import DraftRecord, RecordedDraft
from reverse.errors import DataError, RequestError
from reverse.modes.grammar.answer_stages import STAGES
from reverse.selftrain.curation.curation_pass import RecordOutcome, fail
from reverse.selftrain.curation.tasks.task_parts import (
    clean_reply,
    extend_record,
    find_newest_answer,
    require_right,
)
from reverse.selftrain.curation.teacher import Teacher

__all__ = ["CorrectionTask"]

_STAGED = re.compile(r"\s*".join(rf"<{stage}>(?P<{stage}>.*?)</{stage}>" for stage in STAGES), re.DOTALL)


@dataclass(frozen=True)
class CorrectionTask:
    """Second answers to the newest answer of each record.

    Args:
        schema: `"cot4"` wants the four stages SUMMARY, CAPTION, REASONING and CONCLUSION in tags; None
        wants the
            reasoning and a last line "Answer: …".
        first: correct only answers that are `"right"`, only those that are `"wrong"`, or `"any"`.
    """

    schema: Literal["cot4"] | None = "cot4"
    first: Literal["any", "right", "wrong"] = "any"
    instruction: str = (
        "You get a question, perhaps its picture, and an answer that may be right or wrong. Check every "
        "step of it "
        "against the picture and the question, keep what is right, mend what is wrong, and give the whole "
        "answer "
        "again, better reasoned. Do not speak about the first answer."
    )
    form_cot4: str = (
        "Write exactly four parts: <SUMMARY>how you will go about it</SUMMARY> <CAPTION>what the picture "
        "shows "
        "of what matters</CAPTION> <REASONING>the reasoning, step by step</REASONING> <CONCLUSION>the final "
        "answer alone</CONCLUSION>"
    )
    form_plain: str = (
        'Write the reasoning step by step, then a last line: "Answer: " and the final answer alone.'
    )

    name = "self-correction"

    def __post_init__(self) -> None:
        if self.schema not in (None, "cot4"):
            raise RequestError(f"--schema must be cot4 or plain, got {self.schema!r:.80}")
        if self.first not in ("any", "right", "wrong"):
            raise RequestError(f"--first must be any, right or wrong, got {self.first!r:.80}")

    async def process(self, record: DraftRecord, teacher: Teacher) -> RecordOutcome:
        """Add a verified second answer to a record."""
        counts: Counter[str] = Counter()
        first = find_newest_answer(record)
        if first is None:
            return fail(record, "no_answer", counts, "no model has answered it: `reverse curate answer-eval`")
        if record.gold is None:
            return fail(
                record, "no_gold", counts, "the right answer is not known, so nothing can be verified"
            )
        draft = record.drafts[first]
        if self.first not in ("any", draft.verdict):
            counts[f"left_out.{draft.verdict}"] += 1
            return RecordOutcome(None, counts)
        form = self.form_cot4 if self.schema else self.form_plain
        prompt = f"Question: {record.question}\n\nThe answer to check:\n{draft.text}"

        def read(text: str) -> tuple[str, str]:
            text = self._read(text)
            return text, require_right(text, record)

        found = await teacher.ask(
            f"{self.instruction}\n\n{form}", prompt, record.images, read, counts, demand=form
        )
        if found.value is None:
            return fail(record, found.kind, counts, found.detail)
        counts[f"pairs.{draft.verdict}_right"] += 1
        text, answer = found.value
        second = RecordedDraft(
            text=text,
            role="correction",
            parent=first,
            made_by=teacher.name,
            sampling=teacher.sampling.recorded(),
            answer=answer,
            verdict="right",
            judged_by="grading",
        )
        return RecordOutcome.of(extend_record(record, second, link="refine", first=first), counts)

    def _read(self, reply: str) -> str:
        """Check the form of a reply. Raises DataError for another form."""
        text = clean_reply(reply)
        if self.schema is None:
            return text
        found = _STAGED.fullmatch(text)
        if found is None or any(text.count(f"<{stage}>") != 1 for stage in STAGES):
            raise DataError(
                f"it must have the parts {', '.join(STAGES)} in tags, each once, and nothing else"
            )
        if any(not found[stage].strip() for stage in STAGES):
            raise DataError("one of its parts is empty")
        return text
