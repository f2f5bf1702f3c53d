"""The systems whose loops can be run, by name.

recipe, plan = plan_loop("r3v", "r3v_tiny", ["output=out/r3v"])
run_system_loop(recipe, plan)
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from reverse.errors import RequestError
from reverse.selftrain.loops.loop_recipe import LoopRecipe, load_loop_recipe
from reverse.selftrain.loops.loop_run import run_loop
from reverse.selftrain.loops.stage import LoopPlan
from reverse.selftrain.loops.stage_bodies import BODIES
from reverse.selftrain.loops.systems.r3v_loop import R3VRecipe, make_r3v_plan
from reverse.selftrain.loops.systems.sco_loop import ScoRecipe, make_sco_plan
from reverse.selftrain.loops.systems.srpo_loop import SrpoRecipe, make_srpo_plan
from reverse.selftrain.loops.systems.tsst_loop import TsstRecipe, make_tsst_plan

__all__ = ["SYSTEMS", "LoopSystem", "count_processes", "load_system_recipe", "plan_loop", "run_system_loop"]


class LoopSystem(NamedTuple):
    """The recipe class of a system, and the function that makes stages from a recipe."""

    recipe: type[LoopRecipe]
    plan: Callable[[Any], LoopPlan]


SYSTEMS: dict[str, LoopSystem] = {
    "r3v": LoopSystem(R3VRecipe, make_r3v_plan),
    "sco": LoopSystem(ScoRecipe, make_sco_plan),
    "srpo": LoopSystem(SrpoRecipe, make_srpo_plan),
    "tsst": LoopSystem(TsstRecipe, make_tsst_plan),
}


def load_system_recipe(system: str, name_or_path: str, settings: Sequence[str] = ()) -> LoopRecipe:
    """Load the recipe of a loop.

    Raises RequestError for an unknown system, and what `load_loop_recipe` raises.
    """
    if system not in SYSTEMS:
        raise RequestError(f"a system must be one of {', '.join(SYSTEMS)}, got {system!r:.80}")
    return load_loop_recipe(SYSTEMS[system].recipe, system, name_or_path, settings)


def plan_loop(system: str, recipe: LoopRecipe) -> LoopPlan:
    """Plan the stages of a loop. Raises MissingFileError for missing data."""
    return SYSTEMS[system].plan(recipe)


def run_system_loop(recipe: LoopRecipe, plan: LoopPlan, **options: Any) -> dict[str, Any]:
    """Run a loop; `options` are those of `run_loop`."""
    options = {"processes": count_processes(), **options}
    return run_loop(plan, recipe.output, BODIES, **options)


def count_processes() -> int:
    """Return how many processes share a parallel stage: REVERSE_PROCESSES, or one for each GPU.

    Raises RequestError under torchrun: a loop starts its processes itself.
    """
    if int(os.environ.get("WORLD_SIZE", "1") or 1) > 1:
        raise RequestError(
            "WORLD_SIZE is set: a loop starts one process for each GPU by itself, run it without torchrun"
        )
    asked = os.environ.get("REVERSE_PROCESSES")
    if asked is not None:
        if not asked.isdigit() or not 1 <= int(asked) <= 1024:
            raise RequestError(f"REVERSE_PROCESSES must be a number from 1 to 1024, got {asked!r:.40}")
        return int(asked)
    import torch

    return max(1, torch.cuda.device_count())
