"""`reverse selftrain`: run loops of self-training, and show the status of one.

reverse selftrain r3v r3v_tiny --set output=out/r3v
reverse selftrain status out/r3v
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from reverse.commands.shared_options import ListRecipes, RecipeSettings, ShowRecipe
from reverse.errors import RequestError

__all__ = ["register"]

TITLES = {
    "r3v": "R3V: sample, verify, train to solve, refine and select, from the base each time.",
    "sco": "LLaVA-SCo: answer, correct, verify, train on two turns.",
    "srpo": "SRPO: reflections on answers, a cold start on them, GRPO with a reward for reflecting.",
    "tsst": "TSST: a policy and a value head that guide each other in a search over sentences.",
}


def register(app: typer.Typer) -> None:
    """Add the commands to `app`."""
    loops = typer.Typer(no_args_is_help=True, help="Loops of self-training. A stopped loop continues.")
    app.add_typer(loops, name="selftrain")
    for system, title in TITLES.items():
        _register_system(loops, system, title)

    @loops.command()
    def status(
        folder: Annotated[Path, typer.Argument(help="Output folder of a loop.")],
        as_json: Annotated[bool, typer.Option("--json", help="Print the manifest as JSON.")] = False,
    ) -> None:
        """Show the stages of a loop: what is done, what it cost, what comes next."""
        from reverse.selftrain.loops.loop_manifest import read_manifest

        manifest = read_manifest(folder)
        if as_json:
            typer.echo(json.dumps(manifest, ensure_ascii=False, indent=1))
            return
        _print_stages(manifest["stages"])


def _register_system(loops: typer.Typer, system: str, title: str) -> None:
    @loops.command(system, help=f"{title} A stopped loop continues.")
    def run(
        recipe: Annotated[
            str | None,
            typer.Argument(help="A YAML file, a shipped recipe (--list), or the folder of a loop."),
        ] = None,
        settings: RecipeSettings = None,
        stage: Annotated[
            str | None, typer.Option(help="Run this stage alone; its inputs must be done.")
        ] = None,
        redo: Annotated[
            bool,
            typer.Option(
                "--redo",
                help="Repeat stages made with other settings; with --stage, repeat that stage anyway.",
            ),
        ] = False,
        show: ShowRecipe = False,
        plan_only: Annotated[bool, typer.Option("--plan", help="Print the stages and exit.")] = False,
        names: ListRecipes = False,
        quiet: Annotated[bool, typer.Option("--quiet", help="Show no progress.")] = False,
    ) -> None:
        from reverse.commands.runtime_setup import silence_libraries
        from reverse.selftrain.loops.loop_recipe import loop_as_yaml

        if names or recipe is None:
            _list_recipes(system)
            if recipe is None and not names:
                raise RequestError("name a recipe of the list above, a YAML file, or the folder of a loop")
            return
        silence_libraries()
        from reverse.selftrain.loops.loop_systems import load_system_recipe, plan_loop, run_system_loop

        chosen = load_system_recipe(system, recipe, settings or [])
        if show:
            typer.echo(loop_as_yaml(chosen), nl=False)
            return
        plan = plan_loop(system, chosen)
        if plan_only:
            for each in plan.stages:
                needs = ", ".join(dict.fromkeys(each.inputs.values()))
                typer.echo(f"{each.name:14} {each.body:10} {needs}")
            return
        say = (lambda line: None) if quiet else typer.echo
        manifest = run_system_loop(chosen, plan, only=stage, redo=redo, quiet=quiet, say=say)
        done = sum(each["status"] in ("done", "removed") for each in manifest["stages"])
        typer.echo(f"{chosen.output}: {done} of {len(manifest['stages'])} stages are done")
        report = Path(chosen.output) / "report" / "report.md"
        if stage is None and report.is_file():
            typer.echo(report.read_text(encoding="utf-8"), nl=False)


def _list_recipes(system: str) -> None:
    from reverse.selftrain.loops.loop_recipe import LOOP_RECIPES, loop_recipe_names

    for name in loop_recipe_names(system):
        first = (LOOP_RECIPES / f"{name}.yaml").read_text(encoding="utf-8").split("\n", 1)[0]
        typer.echo(f"{name:12} {first.removeprefix('# ')}")


def _print_stages(stages: list[dict[str, Any]]) -> None:
    typer.echo(f"{'stage':14} {'status':8} {'seconds':>9} {'tokens':>12} {'bytes':>15}  made from")
    for stage in stages:
        seconds = f"{stage['seconds']:,.1f}" if "seconds" in stage else ""
        tokens = f"{stage['tokens']:,}" if stage.get("tokens") is not None else ""
        size = sum(each["bytes"] for each in stage.get("outputs", {}).values())
        shown = f"{size:,}" if stage["status"] == "done" else ""
        needs = ", ".join(dict.fromkeys(stage["inputs"].values()))
        typer.echo(f"{stage['name']:14} {stage['status']:8} {seconds:>9} {tokens:>12} {shown:>15}  {needs}")
        if stage["status"] == "failed":
            typer.echo(f"    {stage['error']}")
