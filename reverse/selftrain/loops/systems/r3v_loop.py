"""R3V (arXiv 2411.00855): sample, verify, train to solve, refine and select, from the base each time.

    questions  [rows-0  train-0]  measure-0
    sample-T  pool-T  rows-T  train-T  measure-T         for T = 1, 2, …
    report

Without a warm-up the base samples first. Differences to the released code: mode `select` shows the model
distinct answers, so of the candidates that are trained on exactly one is right (published: one or two of
three); with `verify: steps` a target is right in all its steps too.
"""

from __future__ import annotations

from typing import Any

from pydantic import Field

from reverse.selftrain.loops.loop_recipe import LoopRecipe, LoopSampling
from reverse.selftrain.loops.stage import LoopPlan
from reverse.selftrain.loops.systems.loop_parts import LoopParts

__all__ = ["R3VRecipe", "make_r3v_plan"]

SHORT = "\nGive the final answer only."  # asks for an answer without a rationale


class R3VRecipe(LoopRecipe):
    """The recipe of a loop of R3V."""

    iterations: int = Field(default=4, ge=1, le=100)  # after the warm-up
    sampling: LoopSampling = LoopSampling()  # of each question to train on, in each iteration
    short_answers: bool = True  # train on the right answers alone too (published), asked for in other words
    refine: bool = True  # False and select=false: solving alone, as STaR
    select: bool = True
    select_rows: int = Field(default=2, ge=1)  # of a question with right and wrong answers
    test: LoopSampling = (
        LoopSampling()
    )  # samples of each test question; n: figures are select@n, vote@n, oracle@n


def make_r3v_plan(recipe: R3VRecipe) -> LoopPlan:
    """Make the stages of the loop."""
    parts = LoopParts(recipe)
    parts.questions()
    short = _short_part(recipe)
    model = parts.warmup(short)
    _measure(parts, recipe, 0, model)
    pool = None
    for t in range(1, recipe.iterations + 1):
        run = {"name": "samples", "mode": "select", "settings": parts.select("vote", recipe.sampling)}
        samples = parts.answer(f"sample-{t}", model, [run])
        pool = parts.pool(f"pool-{t}", samples, pool, run="samples", iteration=t)
        own = [*parts.warmup_parts(), *short, *_own_parts(recipe)]
        rows = parts.add(f"rows-{t}", "rows", {"parts": own}, {"questions": "questions", "pool": pool})
        model = parts.train(f"train-{t}", {rows: [parts.weigh(part["name"]) for part in own]})
        _measure(parts, recipe, t, model)
    return parts.plan("r3v", (model,))


def _measure(parts: LoopParts, recipe: R3VRecipe, t: int, model: str) -> None:
    """Add stages that measure test@1, and select@N with vote@N and oracle@N of the same samples."""
    runs = [
        parts.greedy(),
        {"name": "select", "mode": "select", "settings": parts.select("self", recipe.test)},
    ]
    if recipe.refine:
        runs.append({"name": "refine", "mode": "refine", "settings": parts.inner})
    parts.answer(f"measure-{t}", model, runs, on="test", measures=True)


def _short_part(recipe: R3VRecipe) -> list[dict[str, Any]]:
    if not recipe.short_answers:
        return []
    return [
        {
            "name": "short", "view": "cot", "input": "questions", "file": "train.jsonl",
            "selection": "short answer", "instruction": SHORT, "settings": {"tagged": False},
        }
    ]  # fmt: skip


def _own_parts(recipe: R3VRecipe) -> list[dict[str, Any]]:
    """Return the views that the pool is trained as."""
    tagged = {"tagged": recipe.data.tagged}
    pool = {"input": "pool", "file": "pool.jsonl"}
    found: list[dict[str, Any]] = [
        {**pool, "name": "solve", "view": "cot", "selection": "newest right", "settings": tagged}
    ]
    if recipe.refine:
        settings = {**tagged, "right_share": 0.0}  # published: only wrong answers are refined
        found.append(
            {**pool, "name": "refine", "view": "refine", "selection": "linked", "settings": settings}
        )
    if recipe.select:
        settings = {**tagged, "per_question": recipe.select_rows}
        found.append(
            {**pool, "name": "select", "view": "select", "selection": "unlinked", "settings": settings}
        )
    return found
