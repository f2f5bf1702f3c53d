"""Command-line options of an experiment from its recipe: one for each field, with the field's default.

recipe = read_recipe(SceneRecipe, "python -m experiments.scene_models", __doc__, arguments)
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import fields
from typing import Any, TypeVar

__all__ = ["read_recipe"]

Recipe = TypeVar("Recipe")


def read_recipe(
    kind: type[Recipe], program: str, summary: str | None, arguments: Sequence[str] | None
) -> Recipe:
    """Return the recipe that the arguments describe.

    A recipe with a method `smoke` also has `--smoke`, which takes its miniature.

    Args:
        kind: a dataclass whose fields have defaults of type str, int, float or bool.
        summary: text whose first line describes the program.
        arguments: None for those of the process.
    """
    described = (summary or "").split("\n")[0]
    parser = argparse.ArgumentParser(prog=program, description=described)
    for field in fields(kind):  # type: ignore[arg-type]
        option = "--" + field.name.replace("_", "-")
        if isinstance(field.default, bool):
            parser.add_argument(option, action="store_true")
        else:
            of = type(field.default)
            parser.add_argument(option, type=of, default=field.default, help="default: %(default)s")
    if hasattr(kind, "smoke"):
        parser.add_argument("--smoke", action="store_true", help="a few steps of a miniature")
    given = vars(parser.parse_args(arguments))
    is_smoke = given.pop("smoke", False)
    recipe: Any = kind(**given)
    return recipe.smoke() if is_smoke else recipe
