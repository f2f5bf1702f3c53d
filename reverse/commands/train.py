"""`reverse train RECIPE`: a thin command over `reverse.training.run`.

reverse train llava_v15_lora --set data.records=reverse_ft.json --set data.images=playground/data
"""

from __future__ import annotations

from typing import Annotated

import typer

__all__ = ["register"]


def register(app: typer.Typer) -> None:
    """Add the command to `app`."""

    @app.command()
    def train(
        recipe: Annotated[
            str | None, typer.Argument(help="A YAML file, or the name of a shipped recipe (--list).")
        ] = None,
        settings: Annotated[
            list[str] | None, typer.Option("--set", help="key=value over the recipe's; repeat it.")
        ] = None,
        restart: Annotated[
            bool, typer.Option("--restart", help="Begin anew where a stopped run has checkpoints.")
        ] = False,
        show: Annotated[bool, typer.Option("--show", help="Print the whole recipe and leave.")] = False,
        names: Annotated[bool, typer.Option("--list", help="Print the shipped recipes and leave.")] = False,
        quiet: Annotated[bool, typer.Option("--quiet", help="No progress.")] = False,
    ) -> None:
        """Train a model as a recipe says; a run that was stopped goes on."""
        from reverse.training.recipe import RECIPES, as_yaml, load_recipe, recipe_names

        if names or recipe is None:
            for name in recipe_names():
                first = (RECIPES / f"{name}.yaml").read_text(encoding="utf-8").split("\n", 1)[0]
                typer.echo(f"{name:20} {first.removeprefix('# ')}")
            if recipe is None and not names:
                raise ValueError("name a recipe of the list above, or a YAML file")
            return
        chosen = load_recipe(recipe, settings or [])
        if show:
            typer.echo(as_yaml(chosen), nl=False)
            return
        from reverse.cli import _hush

        _hush()
        from reverse.training.parallel import is_first
        from reverse.training.run import run_recipe

        manifest = run_recipe(chosen, resume=not restart, quiet=quiet)
        if is_first():
            steps, seconds, loss = manifest["steps"], manifest["seconds"], manifest["final_loss"]
            typer.echo(f"{chosen.output}: {steps} steps in {seconds:.0f} s, loss {loss}")
