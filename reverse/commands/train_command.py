"""`reverse train RECIPE`: a thin command over `reverse.training.training_run`.

reverse train llava_v15_lora --set data.records=reverse_ft.json --set data.images=playground/data
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from reverse.commands.shared_options import ListRecipes, RecipeSettings, ShowRecipe
from reverse.errors import RequestError

if TYPE_CHECKING:
    from reverse.training.recipes.recipe import Recipe
    from reverse.training.rl.rl_run import RLPlan

__all__ = ["register"]


def register(app: typer.Typer) -> None:
    """Add the command to `app`."""

    @app.command()
    def train(
        recipe: Annotated[
            str | None, typer.Argument(help="YAML file, or the name of a shipped recipe (see --list).")
        ] = None,
        settings: RecipeSettings = None,
        restart: Annotated[
            bool, typer.Option("--restart", help="Start over, even if a stopped run has checkpoints.")
        ] = False,
        show: ShowRecipe = False,
        names: ListRecipes = False,
        dry: Annotated[
            bool,
            typer.Option(
                "--dry-run", help="Check everything and print the plan of the run without writing anything."
            ),
        ] = False,
        quiet: Annotated[bool, typer.Option("--quiet", help="Do not show progress.")] = False,
    ) -> None:
        """Train a model as a recipe says. A run that was stopped continues."""
        from reverse.training.recipes.recipe import RECIPES, as_yaml, load_recipe, recipe_names

        if names or recipe is None:
            for name in recipe_names():
                first = (RECIPES / f"{name}.yaml").read_text(encoding="utf-8").split("\n", 1)[0]
                typer.echo(f"{name:20} {first.removeprefix('# ')}")
            if recipe is None and not names:
                raise RequestError("name a recipe of the list above, or a YAML file")
            return
        chosen = load_recipe(recipe, settings or [])
        if show:
            typer.echo(as_yaml(chosen), nl=False)
            return
        from reverse.commands.runtime_setup import silence_libraries

        silence_libraries()
        from reverse.training.optim.parallel import is_first

        if dry and chosen.kind == "value":
            raise RequestError("--dry-run is for the kinds sft, dpo and grpo: leave it out")
        if dry and chosen.kind != "sft":
            from reverse.training.rl.rl_run import plan_rl_run

            _print_rl_plan(chosen.output, plan_rl_run(chosen))
            return
        if dry:
            from reverse.training.dry_run import dry_run

            plan = dry_run(chosen, resume=not restart, quiet=quiet)
            if is_first():
                _print_plan(chosen.output, plan)
            return
        manifest = _run(chosen, resume=not restart, quiet=quiet)
        if is_first():
            steps, seconds, loss = manifest["steps"], manifest["seconds"], manifest["final_loss"]
            typer.echo(f"{chosen.output}: {steps} steps in {seconds:.0f} s, loss {loss}")


def _run(recipe: Recipe, *, resume: bool, quiet: bool) -> dict[str, Any]:
    """Run a recipe of any kind."""
    if recipe.kind == "sft":
        from reverse.training.training_run import run_recipe

        return run_recipe(recipe, resume=resume, quiet=quiet)
    if recipe.kind == "value":
        from reverse.training.value_run import run_value_recipe

        return run_value_recipe(recipe, resume=resume, quiet=quiet)
    from reverse.training.rl.rl_run import run_rl_recipe

    return run_rl_recipe(recipe, resume=resume, quiet=quiet)


def _print_rl_plan(output: str, plan: RLPlan) -> None:
    reasons = ", ".join(f"{reason} ({count:,})" for reason, count in plan.rows.left_out.most_common())
    typer.echo(
        f"rows      {len(plan.rows):,}; left out {plan.rows.left_out.total():,}"
        + (reasons and f": {reasons}")
    )
    batches = f"{plan.accumulate} batch{'' if plan.accumulate == 1 else 'es'}"
    typer.echo(f"steps     {plan.steps:,} of {batches} on each process")
    typer.echo(
        f"{output}: the rows and settings of this run are in order; no model was loaded, nothing was written"
    )


def _print_plan(output: str, plan: dict[str, Any]) -> None:
    if "finished" in plan:
        typer.echo(f"{output}: this run is at its end, after {plan['finished']['steps']} steps")
        return
    records, tokens, parameters, memory = (
        plan[name] for name in ("records", "tokens", "parameters", "memory")
    )
    about = "" if tokens["exact"] else "about "
    lines = {
        "records": f"{records['trained']:,}; left out {records['left_out']:,}, cut {records['cut']:,}",
        "tokens": f"{about}{tokens['each_pass']:,} a pass, {tokens['mean']:,} a record, "
        f"longest of {tokens['counted']:,} counted {tokens['longest']:,}",
        "steps": f"{plan['steps']:,} of {plan['samples_a_step']:,} samples: {plan['accumulate']} "
        f"batch{'' if plan['accumulate'] == 1 else 'es'} of {plan['batch']} on {plan['processes']} "
        f"process{'' if plan['processes'] == 1 else 'es'}",
        "trained": f"{parameters['trained']:,} of {parameters['all']:,} parameters",
        "memory": f"{memory['gib']:.2f} GiB a process (weights {memory['weights']:.2f}, gradients "
        f"{memory['gradients']:.2f}, AdamW {memory['optimizer']:.2f}), activations come on top",
    }
    if plan["goes_on_from"] is not None:
        lines["goes on"] = f"from {plan['goes_on_from']}"
    parts = plan["parts"]
    for number, part in enumerate(parts, 1):
        shared = part["items"] / sum(each["items"] for each in parts)
        typer.echo(
            f"{f'part {number}':9} {part['records']}: {part['items']:,} items a pass ({shared:.1%}) of "
            f"{part['count']:,} records, weight {part['weight']:g}"
        )
    for name, text in lines.items():
        typer.echo(f"{name:9} {text}")
    typer.echo(f"{output}: nothing stands in the way of this run; nothing was written")
