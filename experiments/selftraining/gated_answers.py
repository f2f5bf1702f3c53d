"""What a gate gains on a self-trained model: its own answers, refined where their confidence is low.

The engine answers and refines every question of `val` and `test`. The gate is chosen on `val`; where a first
answer is at least as confident, the refinement and its tokens do not count.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from experiments.reasoning.reasoning_measures import CORRECTIONS, MeasuredMode, Measurer, choose_gate
from experiments.reasoning.reasoning_recipe import ReasoningRecipe
from reverse.data.drafts.draft_record import DraftRecord
from reverse.evaluation.modes.mode_effects import first_answers
from reverse.evaluation.modes.question_means import final_draft, is_right

__all__ = ["apply_gate", "measure_gate"]

VAL_QUESTIONS = 480


def measure_gate(
    model: Any, processor: Any, folder: Path, questions: int, say: Callable[[str], None]
) -> dict[str, dict[str, Any]]:
    """The first answers, all refined ones and gated ones of a model on the test split.

    Args:
        folder: where drafts are kept; those that are there are not made again.

    Returns:
        As `measure_modes`; also the gate, and the confidence of each first answer.
    """
    recipe = ReasoningRecipe(test_questions=questions, val_questions=VAL_QUESTIONS)
    measurer = Measurer(model, processor, recipe, folder, say)
    always = MeasuredMode(replace(CORRECTIONS["refine"], gate=1.0))
    measurer.answer_all([("val", "refine"), ("test", "refine")], {"refine": always})
    gate = choose_gate(measurer.read("val", "refine", always))
    return apply_gate(measurer.read("test", "refine", always), gate)


def apply_gate(refined: Sequence[DraftRecord], gate: float) -> dict[str, dict[str, Any]]:
    """What would be answered with a gate, from records that hold a first answer and its refinement."""
    first = first_answers(refined)
    confidence = [final_draft(record).confidence or 0.0 for record in first]
    before, after = ([is_right(record) for record in records] for records in (first, refined))
    is_refined = [each < gate for each in confidence]
    gated = np.where(is_refined, after, before).tolist()
    tokens = [[draft.tokens or 0 for draft in record.drafts] for record in refined]
    spent = sum(sum(each) if counts else each[0] for each, counts in zip(tokens, is_refined, strict=True))
    return {
        "greedy": {
            "right": _digits(before),
            "tokens": sum(each[0] for each in tokens),
            "confidence": confidence,
        },
        "refine": {"right": _digits(after), "tokens": sum(map(sum, tokens))},
        "refine_gated": {"right": _digits(gated), "tokens": spent, "gate": gate},
    }


def _digits(right: Sequence[bool]) -> str:
    return "".join("01"[bool(each)] for each in right)
