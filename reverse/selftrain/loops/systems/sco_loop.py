"""LLaVA-SCo (CVPR 2025 workshop): answers, corrections that are re-verified, two-turn fine-tuning, in rounds.

    questions  [rows-0  train-0]  measure-0
    sample-R  pool-R  correct-R  rows-R  train-R  measure-R        for R = 1, 2, …
    report

Differences to the release: corrections are graded (published ones are not), wrong answers are corrected as
well as right ones (`pairs: published` keeps to right ones, unverified), and the second turn is really asked.
From the second round on the model corrects itself with `later: model`.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from reverse.selftrain.loops.loop_recipe import LoopRecipe, LoopSampling
from reverse.selftrain.loops.stage import LoopPlan
from reverse.selftrain.loops.systems.loop_parts import LoopParts

__all__ = ["ScoRecipe", "make_sco_plan"]


class ScoRecipe(LoopRecipe):
    """A loop of LLaVA-SCo."""

    rounds: int = Field(default=1, ge=1, le=20)
    sampling: LoopSampling = LoopSampling(n=1, temperature=0.7)  # of first answers
    # Who corrects: "records" (drafts with the role "correction"), "endpoint", or a checkpoint.
    corrections: str = "records"
    later: Literal["same", "model"] = "same"  # who corrects from the second round on
    pairs: Literal["verified", "published"] = "verified"
    right_share: float = Field(
        default=0.3, ge=0, le=1
    )  # of the right first answers that are trained to be kept
    rehearse: bool = True  # train on the newest right answers too, so that solving is not forgotten


def make_sco_plan(recipe: ScoRecipe) -> LoopPlan:
    """The stages of the loop."""
    parts = LoopParts(recipe)
    parts.questions(keep_roles=("correction",) if recipe.corrections == "records" else ())
    model = parts.warmup()
    _measure(parts, 0, model)
    for r in range(1, recipe.rounds + 1):
        by = "model" if r > 1 and recipe.later == "model" else recipe.corrections
        pool = _answer(parts, recipe, r, model, by)
        pairs = parts.correct(f"correct-{r}", pool, "pool.jsonl", by, pairs=recipe.pairs)
        own = _own_parts(parts, recipe)
        rows = parts.add(
            f"rows-{r}", "rows", {"parts": own}, {"questions": "questions", "pairs": pairs, "pool": pool}
        )
        model = parts.train(f"train-{r}", {rows: [parts.weigh(part["name"]) for part in own]})
        _measure(parts, r, model)
    return parts.plan("sco", (model,))


def _answer(parts: LoopParts, recipe: ScoRecipe, r: int, model: str, by: str) -> str:
    """First answers; with the model's own corrections if it corrects itself."""
    if by == "model":
        run: dict[str, Any] = {"name": "answers", "mode": "self_correct"}
        run["settings"] = {**parts.inner, "stop_when_same": False}
        samples = parts.answer(f"sample-{r}", model, [run])
        roles = ["first", "correction"]
        return parts.pool(f"pool-{r}", samples, None, run="answers", iteration=r, roles=roles, chains=True)
    run = {"name": "answers", "mode": "select", "settings": parts.select("vote", recipe.sampling)}
    return parts.pool(
        f"pool-{r}", parts.answer(f"sample-{r}", model, [run]), None, run="answers", iteration=r
    )


def _measure(parts: LoopParts, r: int, model: str) -> None:
    correct = {"name": "self-correct", "mode": "self_correct", "settings": parts.inner}
    parts.answer(f"measure-{r}", model, [parts.greedy(), correct], on="test", measures=True)


def _own_parts(parts: LoopParts, recipe: ScoRecipe) -> list[dict[str, Any]]:
    tagged = {"tagged": recipe.data.tagged}
    share = 1.0 if recipe.pairs == "published" else recipe.right_share
    own = [
        *parts.warmup_parts(),
        {
            "name": "correct", "view": "self_correct", "input": "pairs", "file": "pairs.jsonl",
            "selection": "corrections", "settings": {**tagged, "right_share": share},
        },
    ]  # fmt: skip
    if recipe.rehearse:
        solve = {"name": "solve", "view": "cot", "input": "pool", "file": "pool.jsonl"}
        own.append({**solve, "selection": "newest right", "settings": tagged})
    return own
