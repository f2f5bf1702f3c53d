"""View of prompts: rows for GRPO in the shape that TRL reads, with the answer key that rewards need.

    view_prompts(record)
    # [{"id", "prompt": [user], "images": ["1.png"], "answers": ["3"], "kind": "number", "choices": [], …}]

TRL gives every column but `prompt` and `images` to the reward functions; `read_gold` makes the answer key of
them again. `pass_rate` is the share of right ones among a model's own answers, null where it is not known; a
recipe leaves out what lies outside of its band (`grpo.pass_rate_low`, `pass_rate_high`). All rows
have the same columns.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from reverse.data.drafts.draft_record import DraftRecord, GoldAnswer
from reverse.errors import RequestError
from reverse.training.views.preference_views import make_prompt
from reverse.training.views.view_rows import SAMPLES

__all__ = ["find_pass_rate", "read_gold", "view_prompts"]


def view_prompts(
    record: DraftRecord,
    *,
    system: str = "",
    band: tuple[float, float] = (0.0, 1.0),
    least_samples: int = 2,
) -> list[dict[str, Any]]:
    """Make one row, or none if the right answer is not known or the question is outside the band.

    Args:
        system: text of a system turn before the question.
        band: least and largest share of right answers among the model's own drafts of the record; (0.1, 0.9)
        leaves out questions that it solves always or never, whose groups have equal rewards. least_samples:
        with fewer judged drafts the share is not known, and the question is kept.

    Raises RequestError for an invalid band.
    """
    low, high = band
    if not 0 <= low <= high <= 1:
        raise RequestError(
            f"band must be two shares between 0 and 1 in order, got {band!r:.80}: try (0.1, 0.9)"
        )
    if record.gold is None:
        return []
    rate = find_pass_rate(record, least_samples=least_samples)
    if rate is not None and not low <= rate <= high:
        return []
    gold = record.gold
    return [
        {
            "id": record.id,
            "prompt": make_prompt(record, system),
            "images": list(record.images),
            "answers": list(gold.answers),
            "kind": gold.kind,
            "choices": list(gold.choices),
            "tolerance": gold.tolerance,
            "unit": gold.unit,
            "pass_rate": rate,
        }
    ]


def read_gold(row: Mapping[str, Any]) -> GoldAnswer:
    """Return the right answer of a row, for `reverse.grading.grade(text, read_gold(row).key())`."""
    return GoldAnswer(
        kind=row["kind"],
        answers=tuple(row["answers"]),
        choices=tuple(row["choices"]),
        tolerance=row["tolerance"],
        unit=row["unit"],
    )


def find_pass_rate(
    record: DraftRecord, *, roles: Sequence[str] = SAMPLES, least_samples: int = 1
) -> float | None:
    """Return the share of right answers among a model's own judged ones; None if there are too few."""
    verdicts = [
        draft.verdict for draft in record.drafts if draft.role in roles and draft.verdict != "unknown"
    ]
    if len(verdicts) < max(least_samples, 1):
        return None
    return verdicts.count("right") / len(verdicts)
