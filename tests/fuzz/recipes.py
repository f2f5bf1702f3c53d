"""Training recipes: YAML that is read strictly, written out and read again."""

from __future__ import annotations

import math
from random import Random
from typing import Any

import yaml

from reverse.training.recipes.recipe import RECIPES, as_yaml, load_recipe
from tests.fuzz.mutating import ODD_TEXTS, ODD_VALUES, encode, mutate_bytes, mutate_json, mutate_text
from tests.fuzz.running import REFUSALS, Target, check_refusal, expect
from tests.fuzz.scratch import folder

SHIPPED = [path.read_text(encoding="utf-8") for path in sorted(RECIPES.glob("*.yaml"))]
SMALL = {
    "model": "tiny-llava",
    "output": "out",
    "data": {"records": "a.json", "limit": 5, "hint_share": 0.5},
    "tune": {"method": "lora", "rank": 4, "alpha": 8},
    "optim": {"lr": "2e-5", "steps": 10, "warmup": 0.1},
    "log": {"steps": 1, "save_steps": 0},
    "seed": 3,
}
BOMB = "a: &a [x, x, x, x, x, x, x, x]\n" + "".join(
    f"{name}: &{name} [{', '.join([f'*{before}'] * 8)}]\n"
    for before, name in zip("abcdefg", "bcdefgh", strict=True)
)
PARTS = (
    *ODD_TEXTS,
    "\n",
    "\n  ",
    ": ",
    "- ",
    "&a ",
    "*a",
    "<<: *a",
    "!!python/object:os.system ",
    "? ",
    "| ",
    "{",
    "[" * 400,
    BOMB,
    "!!binary ",
    "2024-01-01",
    "0x10",
    "1_000",
    "0o17",
    ".inf",
    ".nan",
    "1:30",
    "---\n",
    "...\n",
    "%YAML 9\n",
)


def make(rng: Random) -> bytes:
    draw = rng.random()
    if draw < 0.25:
        text = mutate_text(rng, rng.choice(SHIPPED), PARTS)
    elif draw < 0.75:
        odd = [value for value in ODD_VALUES if not (isinstance(value, str) and len(value) > 100)]
        try:
            text = yaml.safe_dump(
                mutate_json(rng, SMALL, odd), allow_unicode=rng.random() < 0.5, sort_keys=False
            )
        except (yaml.YAMLError, ValueError, TypeError):
            text = yaml.safe_dump(SMALL)
    else:
        text = mutate_text(rng, yaml.safe_dump(SMALL), PARTS)
    data = encode(rng, text)
    return mutate_bytes(rng, data, header=len(data)) if rng.random() < 0.2 else data


def check(data: bytes) -> str:
    path = folder() / "recipe.yaml"
    path.write_bytes(data)
    try:
        recipe = load_recipe(str(path))
    except REFUSALS as error:
        return check_refusal(error)
    for name, value in leaves(recipe.model_dump()):
        if isinstance(value, float):
            expect(math.isfinite(value), f"{name} is not finite", value)
    again = folder() / "again.yaml"
    again.write_text(as_yaml(recipe), encoding="utf-8", errors="surrogatepass")
    expect(load_recipe(str(again)) == recipe, "written out and read again it is another recipe", recipe)
    return "read"


def leaves(value: Any, name: str = "") -> list[tuple[str, Any]]:
    if not isinstance(value, dict):
        return [(name, value)]
    return [leaf for key, inner in value.items() for leaf in leaves(inner, f"{name}.{key}")]


TARGET = Target("recipes", make, check, share=0.015, quick=150)
