"""All bodies of stages by the names that stages use."""

from __future__ import annotations

from reverse.selftrain.loops.bodies.answer_body import ANSWER
from reverse.selftrain.loops.bodies.correct_body import CORRECT
from reverse.selftrain.loops.bodies.mix_body import MIX
from reverse.selftrain.loops.bodies.pool_body import POOL
from reverse.selftrain.loops.bodies.question_body import QUESTIONS
from reverse.selftrain.loops.bodies.report_body import REPORT
from reverse.selftrain.loops.bodies.rows_body import ROWS
from reverse.selftrain.loops.bodies.train_body import TRAIN
from reverse.selftrain.loops.bodies.value_body import VALUE
from reverse.selftrain.loops.stage import StageBody

__all__ = ["BODIES"]

BODIES: dict[str, StageBody] = {
    "answer": ANSWER,
    "correct": CORRECT,
    "mix": MIX,
    "pool": POOL,
    "questions": QUESTIONS,
    "report": REPORT,
    "rows": ROWS,
    "train": TRAIN,
    "value": VALUE,
}
