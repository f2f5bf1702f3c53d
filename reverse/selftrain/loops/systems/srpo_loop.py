"""SRPO (arXiv 2506.01713): answers are reflected on, a cold start learns to reflect, GRPO rewards it.

    questions  [rows-0  train-0]  measure-0
    sample-1  pool-1  mix-1  correct-1  rows-1  train-1  measure-1           cold start
    [sample-2  pool-2]  rows-2  train-2  measure-2                            GRPO

Differences to the release: with `second_thinking` the cold start has the grammar that the reward asks for
(published data have no second think), and the band of pass rates is applied to the share of right attempts
before training, not to graded rewards during it. GRPO needs the extra `rl`.
"""

from __future__ import annotations

from typing import Any

from pydantic import Field

from reverse.selftrain.loops.loop_recipe import LoopRecipe, LoopSampling
from reverse.selftrain.loops.stage import LoopPlan
from reverse.selftrain.loops.systems.loop_parts import LoopParts
from reverse.training.recipes.recipe import Optim, Tuning
from reverse.training.recipes.rl_sections import Rewards

__all__ = ["SrpoRecipe", "make_srpo_plan"]


class SrpoRecipe(LoopRecipe):
    """Curation, cold start and GRPO."""

    sampling: LoopSampling = LoopSampling(n=1, temperature=0.2)  # of answers that are reflected on
    mix: int = Field(default=10_000, ge=1)  # answers that are chosen
    share_right: float = Field(default=0.3, ge=0, le=1)  # of them
    # Who reflects: "endpoint", a checkpoint, or "records": their corrections, with the first wrong step.
    corrections: str = "endpoint"
    second_thinking: bool = True  # False: think, answer, reflection, answer, as published
    plain_grpo: bool = False  # leave out the cold start: GRPO from the base, to compare with
    grpo: Rewards = Rewards()
    grpo_tune: Tuning = Tuning(projector=False)
    grpo_optim: Optim = Optim(lr=1e-6)
    attempts: int = Field(
        default=0, ge=0, le=1024
    )  # of each question, for the band of pass rates; 0: no band
    with_grpo: bool = True  # False: stop behind the cold start


def make_srpo_plan(recipe: SrpoRecipe) -> LoopPlan:
    """The stages of the loop."""
    parts = LoopParts(recipe)
    parts.questions(keep_roles=("correction",) if recipe.corrections == "records" else ())
    model = parts.warmup()
    _measure(parts, recipe, 0, model)
    results = []
    if not recipe.plain_grpo:
        model = _start_cold(parts, recipe, model)
        _measure(parts, recipe, 1, model)
        results.append(model)
    if recipe.with_grpo:
        model = _reinforce(parts, recipe, model)
        _measure(parts, recipe, 2, model)
        results.append(model)
    return parts.plan("srpo", results)


def _start_cold(parts: LoopParts, recipe: SrpoRecipe, model: str) -> str:
    run = {"name": "answers", "mode": "select", "settings": parts.select("vote", recipe.sampling)}
    pool = parts.pool("pool-1", parts.answer("sample-1", model, [run]), None, run="answers", iteration=1)
    mix = parts.add(
        "mix-1", "mix", {"count": recipe.mix, "share_right": recipe.share_right}, {"answers": pool}
    )
    pairs = parts.correct(
        "correct-1", mix, "mix.jsonl", recipe.corrections, task="reflect",
        second_thinking=recipe.second_thinking,
    )  # fmt: skip
    reflect: dict[str, Any] = {
        "name": "reflect", "view": "reflect", "input": "pairs", "file": "pairs.jsonl",
        "selection": "reflections", "mode": {"schema": _schema(recipe)},
        "settings": {"tagged": recipe.data.tagged, "right_share": 1.0},  # the mix has chosen already
    }  # fmt: skip
    rows = parts.add("rows-1", "rows", {"parts": [reflect]}, {"pairs": pairs})
    return parts.train("train-1", {rows: [{"name": "reflect"}]}, model)


def _reinforce(parts: LoopParts, recipe: SrpoRecipe, model: str) -> str:
    source, file = "questions", "train.jsonl"
    if recipe.attempts:
        sampling = LoopSampling(n=recipe.attempts, temperature=recipe.grpo.temperature)
        run = {"name": "attempts", "mode": "select", "settings": parts.select("vote", sampling)}
        samples = parts.answer("sample-2", model, [run])
        source = parts.pool("pool-2", samples, None, run="attempts", iteration=2)
        file = "pool.jsonl"
    part = {"name": "prompts", "view": "grpo", "input": "source", "file": file}
    rows = parts.add("rows-2", "rows", {"parts": [part]}, {"source": source})
    changes = {
        "kind": "grpo",
        "grpo": recipe.grpo.model_dump(),
        "tune": recipe.grpo_tune.model_dump(),
        "optim": recipe.grpo_optim.model_dump(),
    }
    return parts.train("train-2", {rows: [{"name": "prompts"}]}, model, **changes)


def _measure(parts: LoopParts, recipe: SrpoRecipe, number: int, model: str) -> None:
    reflect = {"name": "reflect", "mode": "reflect", "settings": {**parts.inner, "schema": _schema(recipe)}}
    parts.answer(f"measure-{number}", model, [parts.greedy(), reflect], on="test", measures=True)


def _schema(recipe: SrpoRecipe) -> str:
    return "tarta" if recipe.second_thinking else "taranswer"
