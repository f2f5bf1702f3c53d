"""Options that several commands have, declared once.

@dataclass(frozen=True)
class EvalOptions:
    seed: Seed = 0
    device: Device = None
"""

from __future__ import annotations

from typing import Annotated

import typer

from reverse.decoding.mode_names import JUDGE_NAMES, list_names

__all__ = [
    "Candidates",
    "Device",
    "Dtype",
    "Gate",
    "Hints",
    "Judge",
    "Limit",
    "ListRecipes",
    "OnExhausted",
    "PriceIn",
    "PriceOut",
    "RecipeSettings",
    "Rounds",
    "SampledTemperature",
    "Samples",
    "Seed",
    "ShowRecipe",
    "Timeout",
]

Seed = Annotated[int, typer.Option(help="Random seed.")]
Device = Annotated[str | None, typer.Option(help="Device as torch names it. Default: cuda or cpu.")]
Limit = Annotated[
    int | None, typer.Option(min=1, help="Number of records to read, from the first. Default: all.")
]
Dtype = Annotated[
    str | None, typer.Option(help="float32, bfloat16 or float16. Default: the checkpoint's dtype.")
]

# Decoding and its modes.
Samples = Annotated[int | None, typer.Option("--n", help="Number of samples of select and auto.")]
Rounds = Annotated[int | None, typer.Option(help="Number of rounds of self_correct, refine and reflect.")]
Gate = Annotated[
    float | None, typer.Option(help="Stop after the first answer if its confidence is at least this.")
]
Judge = Annotated[str | None, typer.Option(help=f"How select chooses: {list_names(JUDGE_NAMES)}.")]
Hints = Annotated[int, typer.Option(help="Number of rejected phrases that the prompt names. 0 names none.")]
Candidates = Annotated[
    int, typer.Option(help="Number of continuations tried side by side after a rejection.")
]
OnExhausted = Annotated[
    str,
    typer.Option(help="What happens to a phrase that is still suspect after all attempts: best or drop."),
]
SampledTemperature = Annotated[float | None, typer.Option(help="Temperature of --do-sample. Default: 1.")]

# Recipes.
RecipeSettings = Annotated[
    list[str] | None,
    typer.Option("--set", help="Set a key of the recipe: key=value. Repeat the option to set several."),
]
ShowRecipe = Annotated[bool, typer.Option("--show", help="Print the whole recipe and exit.")]
ListRecipes = Annotated[bool, typer.Option("--list", help="Print the shipped recipes and exit.")]

# Models behind addresses.
Timeout = Annotated[float, typer.Option(min=1, help="Time limit of one request in seconds.")]
PriceIn = Annotated[float, typer.Option(min=0, help="Price of a million input tokens, for the cost report.")]
PriceOut = Annotated[
    float, typer.Option(min=0, help="Price of a million output tokens, for the cost report.")
]
