"""Stage "mix": choose right and wrong answers in a given share (SRPO: 30 % right, 70 % wrong).

OUT/mix.jsonl       the chosen records, in their order
"""

from __future__ import annotations

from typing import Any

from reverse.errors import DataError
from reverse.selftrain.curation.mix_files import read_verdicts, write_mix
from reverse.selftrain.curation.tasks.rating_task import MixPlan
from reverse.selftrain.loops.stage import StageBody, StageContext

__all__ = ["MIX"]


def choose_answers(context: StageContext) -> dict[str, Any]:
    """Write the chosen records; returns how many there are of each verdict."""
    source, out = context.inputs["answers"] / "pool.jsonl", context.out / "mix.jsonl"
    manifest = context.out / "mix.jsonl.manifest.json"
    for path in (out, manifest):  # of a run that was killed
        path.unlink(missing_ok=True)
    settings = context.settings
    plan = MixPlan(count=settings["count"], share_right=settings["share_right"], seed=context.seed)
    counts = write_mix(source, out, read_verdicts(source), plan)
    if not counts["right"] + counts["wrong"]:
        raise DataError(f"stage {context.name}: no answer has a verdict, so there is nothing to choose from")
    return {"mix": counts}


MIX = StageBody(choose_answers)
