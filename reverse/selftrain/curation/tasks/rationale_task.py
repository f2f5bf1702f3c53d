"""Let a teacher write rationales for warm-up training (TSST, R3V); only verified ones are kept.

    tsst    an opening sentence, lines "Step 1: …", "Step 2: …", and a last line "Final Answer: …"
    r3v     numbered lines "1. …", "2. …", and a last line "Answer: …"

Each line with a step, and the last line, become segments; step k of K has the value k/K (TSST's warm-up
of the
value model).
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from typing import Literal

from reverse.data.drafts.draft_record import DraftRecord, DraftSegment, RecordedDraft
from reverse.errors import DataError, RequestError
from reverse.selftrain.curation.curation_pass import RecordOutcome, fail
from reverse.selftrain.curation.tasks.task_parts import clean_reply, extend_record, require_right
from reverse.selftrain.curation.teacher import Teacher

__all__ = ["RationaleTask", "find_steps"]

MOST_STEPS = 50
_STEP = {"tsst": re.compile(r"Step (\d{1,3}):\s*\S"), "r3v": re.compile(r"(\d{1,3})[.)]\s+\S")}
_LAST = {"tsst": re.compile(r"Final Answer:\s*\S"), "r3v": re.compile(r"Answer:\s*\S")}


@dataclass(frozen=True)
class RationaleTask:
    """Rationales for questions whose answer is known.

    Args:
        style: `"tsst"` or `"r3v"`, see above.
        shows_answer: tell the teacher the right answer. Otherwise it must find it.
    """

    style: Literal["tsst", "r3v"] = "tsst"
    shows_answer: bool = True
    instruction: str = (
        "Explain how to answer the question about the picture, step by step, in a few short steps. Each "
        "step says one "
        "thing that can be seen in the picture or follows from the steps before."
    )
    form_tsst: str = (
        "Write one opening sentence on a line of its own, then each step on a line that begins with "
        '"Step 1: ", "Step 2: " and so on, and a last line "Final Answer: " with the answer alone.'
    )
    form_r3v: str = (
        'Write each step on a line that begins with its number ("1. ", "2. " and so on), and a last line '
        '"Answer: " with the answer alone.'
    )
    answer_hint: str = "The right answer is: {answer}. Reason towards it without saying that you were told."

    name = "rationale"

    def __post_init__(self) -> None:
        if self.style not in _STEP:
            raise RequestError(f"--style must be tsst or r3v, got {self.style!r:.80}")

    async def process(self, record: DraftRecord, teacher: Teacher) -> RecordOutcome:
        """Add a verified rationale to a record."""
        counts: Counter[str] = Counter()
        if record.gold is None:
            return fail(
                record, "no_gold", counts, "the right answer is not known, so nothing can be verified"
            )
        form = self.form_tsst if self.style == "tsst" else self.form_r3v
        prompt = f"Question: {record.question}"
        if self.shows_answer:
            prompt += "\n\n" + self.answer_hint.replace("{answer}", record.gold.answers[0])

        def read(reply: str) -> tuple[str, tuple[DraftSegment, ...], str]:
            text = clean_reply(reply)
            return text, find_steps(text, self.style), require_right(text, record)

        found = await teacher.ask(
            f"{self.instruction}\n\n{form}", prompt, record.images, read, counts, demand=form
        )
        if found.value is None:
            return fail(record, found.kind, counts, found.detail)
        text, segments, answer = found.value
        counts.update(rationales=1, steps=len(segments))
        rationale = RecordedDraft(
            text=text,
            role="rationale",
            made_by=teacher.name,
            sampling=teacher.sampling.recorded(),
            segments=segments,
            answer=answer,
            verdict="right",
            judged_by="grading",
        )
        return RecordOutcome.of(extend_record(record, rationale), counts)


def find_steps(text: str, style: str) -> tuple[DraftSegment, ...]:
    """Return the steps of a rationale, its last line included, with the values k/K.

    Raises DataError for a text that does not have the form.
    """
    spans: list[tuple[int, int]] = []
    at = 0
    is_ended = False
    for line in text.splitlines(keepends=True):
        start, at = at, at + len(line)
        shown = line.strip()
        if not shown:
            continue
        if is_ended:
            raise DataError("nothing may stand behind the last line with the answer")
        step, is_ended = _STEP[style].match(shown), _LAST[style].match(shown) is not None
        if step is not None and int(step[1]) != len(spans) + 1:
            raise DataError(f"step {len(spans) + 1} is missing, got {shown[:40]!r}")
        if step is not None or is_ended:
            spans.append((start, start + len(line.rstrip())))
        elif spans:  # a step of several lines
            spans[-1] = (spans[-1][0], start + len(line.rstrip()))
    if not is_ended or not 2 <= len(spans) <= MOST_STEPS + 1:
        raise DataError(f"it must have 1 to {MOST_STEPS} numbered steps and a last line with the answer")
    return tuple(
        DraftSegment(start=start, end=end, kind="step", value=number / len(spans))
        for number, (start, end) in enumerate(spans, 1)
    )
