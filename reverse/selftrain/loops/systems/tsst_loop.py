"""TSST: a policy and a value head that guide each other in a beam search over sentences.

    questions  rows-0  train-0  value-0  measure-0
    search-T  pool-T  rows-T  train-T  value-T  measure-T        for T = 1, 2, …
    report

D+ is the best verified chain of each question; Dv are the values of all nodes of the tree of its chains. The
value head reads the policy's own hidden states (published: a second model of 7B). Chains are graded, not
judged by a language model; votes need no right answer; beams are drawn without replacement.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from reverse.errors import RequestError
from reverse.selftrain.loops.loop_recipe import LoopRecipe
from reverse.selftrain.loops.stage import LoopPlan
from reverse.selftrain.loops.systems.loop_parts import LoopParts
from reverse.training.recipes.recipe_section import Section

__all__ = ["BeamSearch", "TsstRecipe", "ValueTraining", "make_tsst_plan"]


class BeamSearch(Section):
    """The search, as of `reverse.modes.Tree`."""

    beams: int = Field(default=5, ge=1)
    branch: int = Field(default=5, ge=1)
    finished: int = Field(default=7, ge=1)
    depth: int = Field(default=30, ge=1)
    step_tokens: int = Field(default=256, ge=1)
    temperature: float = Field(default=0.7, gt=0)
    tau: float = Field(default=0.5, ge=0)
    scorer: Literal["value", "confidence", "likelihood"] = "value"


class ValueTraining(Section):
    """How the value head is trained, as of `reverse.training.value_training.ValueConfig`."""

    epochs: int = Field(default=20, ge=1)
    lr: float = Field(default=1e-3, gt=0)
    batch: int = Field(default=8, ge=1)
    held_out: float = Field(default=0.1, ge=0, lt=1)


class TsstRecipe(LoopRecipe):
    """A loop of TSST."""

    iterations: int = Field(default=2, ge=1, le=100)
    search: BeamSearch = BeamSearch()
    value: ValueTraining = ValueTraining()


def make_tsst_plan(recipe: TsstRecipe) -> LoopPlan:
    """The stages of the loop. Raises RequestError without a warm-up: the value head begins with it."""
    if recipe.questions.warmup is None:
        raise RequestError("questions.warmup is none: the policy and the value head of TSST begin with it")
    parts = LoopParts(recipe)
    parts.questions()
    model = parts.warmup()
    value = _train_value(parts, recipe, 0, model, None)
    _measure(parts, recipe, 0, model, value)
    pool = None
    for t in range(1, recipe.iterations + 1):
        run = {"name": "chains", "mode": "tree", "settings": _search(parts, recipe, "top")}
        chains = parts.answer(f"search-{t}", model, [run], inputs={"value": value})
        pool = parts.pool(f"pool-{t}", chains, pool, run="chains", iteration=t)
        solve = {"name": "solve", "view": "cot", "input": "pool", "file": "pool.jsonl"}
        settings = {"tagged": recipe.data.tagged}
        own = [*parts.warmup_parts(), {**solve, "selection": "best right", "settings": settings}]
        rows = parts.add(f"rows-{t}", "rows", {"parts": own}, {"questions": "questions", "pool": pool})
        model = parts.train(f"train-{t}", {rows: [parts.weigh(part["name"]) for part in own]})
        value = _train_value(parts, recipe, t, model, pool)
        _measure(parts, recipe, t, model, value)
    return parts.plan("tsst", (model,))


def _search(parts: LoopParts, recipe: TsstRecipe, pick: str) -> dict[str, Any]:
    return {**recipe.search.model_dump(), **parts.inner, "pick": pick}


def _train_value(parts: LoopParts, recipe: TsstRecipe, t: int, model: str, pool: str | None) -> str:
    settings = {
        "value": recipe.value.model_dump(),
        "tagged": recipe.data.tagged,
        "dtype": recipe.engine.dtype,
        "device": recipe.engine.device,
    }
    inputs = {"questions": "questions", "model": model} | ({} if pool is None else {"pool": pool})
    return parts.add(f"value-{t}", "value", settings, inputs, outside=parts.outside("train"))


def _measure(parts: LoopParts, recipe: TsstRecipe, t: int, model: str, value: str) -> None:
    """Direct answers, and the search with its best chain and with the vote of its chains."""
    runs = [
        parts.greedy(),
        {"name": "tree-top", "mode": "tree", "settings": _search(parts, recipe, "top")},
        {"name": "tree-vote", "mode": "tree", "settings": _search(parts, recipe, "vote")},
    ]
    parts.answer(f"measure-{t}", model, runs, on="test", measures=True, inputs={"value": value})
