"""Let a judge rate the reasoning of answers, and choose a mix of right and wrong ones by rating (SRPO).

The published set has 10,000 of 100,000 rationales, about 30 % of them right; its rating and choice are not
published. Here the best rated ones of each kind are chosen; the seed decides ties, and all choices without a
judge.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from reverse.data.drafts.draft_record import DraftRecord
from reverse.errors import DataError, RequestError
from reverse.evaluation.scoring.judge import find_object
from reverse.selftrain.curation.curation_pass import RecordOutcome, fail
from reverse.selftrain.curation.tasks.task_parts import find_newest_answer
from reverse.selftrain.curation.teacher import Teacher

__all__ = ["BEST", "MixPlan", "RatingTask", "choose_mix"]

BEST = 5  # of ratings, which begin at 1


@dataclass(frozen=True)
class RatingTask:
    """Ratings of the newest answer of each record whose verdict is known.

    The judge sees the pictures if the teacher's settings say where they are; ratings of text alone will do
    (SRPO's judge reads no pictures).
    """

    instruction: str = (
        "You rate how useful another model's reasoning is for teaching a model to look back at its own "
        "work: 5 is "
        "clear, complete and about the picture, whether its answer is right or wrong by one mistake that "
        "can be "
        "found; 1 is empty, repetitive or unreadable. Reply with one JSON object and nothing else: "
        '{"quality": 1}, 2, 3, 4 or 5.'
    )

    name = "select-mix"

    async def process(self, record: DraftRecord, teacher: Teacher) -> RecordOutcome:
        """Return the rating of a record, with its id and verdict."""
        counts: Counter[str] = Counter()
        at = find_newest_answer(record, judged=True)
        if at is None:
            return fail(record, "no_verdict", counts, "no answer is known to be right or wrong")
        draft = record.drafts[at]
        gold = f"\n\nRight answer: {' or '.join(record.gold.answers)}" if record.gold is not None else ""
        prompt = f"Question: {record.question}{gold}\n\nThe model's reasoning and answer:\n{draft.text}"
        images = record.images if teacher.pictures.is_given else ()
        found = await teacher.ask(self.instruction, prompt, images, read_rating_reply, counts)
        if found.value is None:
            return fail(record, found.kind, counts, found.detail)
        counts[f"quality.{found.value}"] += 1
        return RecordOutcome({"id": record.id, "verdict": draft.verdict, "quality": found.value}, counts)


def read_rating_reply(text: str) -> int:
    """Return the rating in the JSON object of a reply. Raises DataError for anything else."""
    quality = find_object(text).get("quality")
    if isinstance(quality, bool) or not isinstance(quality, int) or not 1 <= quality <= BEST:
        raise DataError(f'"quality" must be a whole number from 1 to {BEST}')
    return quality


@dataclass(frozen=True)
class MixPlan:
    """The number of records to choose, the share with a right answer, and the lowest rating."""

    count: int = 10_000
    share_right: float = 0.3
    least_quality: int = 1
    seed: int = 0

    def __post_init__(self) -> None:
        if self.count < 1:
            raise RequestError(f"--count must be at least 1, got {self.count}")
        if not 0 <= self.share_right <= 1:
            raise RequestError(f"--share-right must lie in [0, 1], got {self.share_right:g}: try 0.3")
        if not 1 <= self.least_quality <= BEST:
            raise RequestError(f"--least-quality must lie in [1, {BEST}], got {self.least_quality}")


def choose_mix(rated: Iterable[Mapping[str, Any]], plan: MixPlan) -> set[str]:
    """Return the ids of the chosen records.

    If there are too few of one kind, fewer of the other are taken too, so that the share stays.

    Args:
        rated: `id`, `verdict` and `quality` of each record.
    """
    kinds: dict[str, list[tuple[int, bytes, str]]] = {"right": [], "wrong": []}
    for each in rated:
        if each["quality"] >= plan.least_quality and each["verdict"] in kinds:
            order = hashlib.sha256(f"{plan.seed}\0{each['id']}".encode("utf-8", "backslashreplace")).digest()
            kinds[each["verdict"]].append((-each["quality"], order, each["id"]))
    shares = {"right": plan.share_right, "wrong": 1 - plan.share_right}
    possible = [len(kinds[kind]) / share for kind, share in shares.items() if share > 0]
    count = min(float(plan.count), *possible)
    right = min(round(count * plan.share_right), len(kinds["right"]))
    wanted = {"right": right, "wrong": min(round(count) - right, len(kinds["wrong"]))}
    return {name for kind, many in wanted.items() for _, _, name in sorted(kinds[kind])[:many]}
