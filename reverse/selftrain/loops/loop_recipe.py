"""Read the recipes of loops, as strictly as those of training.

recipe = load_loop_recipe("r3v", "r3v_tiny", ["output=out/r3v", "questions.train=drafts.jsonl"])

A name is that of a recipe of the package, a YAML file, or the folder of a loop to continue.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal, TypeVar

from pydantic import Field

from reverse.training.recipes.recipe import (
    Compute,
    Log,
    Loss,
    Optim,
    Section,
    Tuning,
    check_paths,
    find_recipe_file,
    read_settings,
)
from reverse.training.recipes.recipe_yaml import write_recipe_yaml

__all__ = [
    "LOOP_RECIPES",
    "DecodingSettings",
    "LoopRecipe",
    "LoopSampling",
    "Questions",
    "TrainingData",
    "find_loop_recipe",
    "load_loop_recipe",
    "loop_as_yaml",
    "loop_recipe_names",
]

LOOP_RECIPES = Path(__file__).resolve().parents[1] / "recipes"


class Questions(Section):
    """Draft files with the questions of a loop (`reverse data import`, `reverse data reasoning`)."""

    train: str  # questions with right answers; drafts are left out unless a loop says that it takes them
    test: str  # questions that figures are of
    images: str  # folder of the pictures
    test_images: str | None = None  # of the test questions; none: images
    warmup: str | None = None  # records with rationales to begin with; none: the loop begins with the base
    warmup_count: int | None = Field(default=None, ge=1)  # the first so many of them that have one
    warmup_role: str = "rationale"  # of the drafts that are rationales
    warmup_verified: bool = True  # only those that are right
    limit: int | None = Field(default=None, ge=1)  # the first so many questions to train on
    test_limit: int | None = Field(default=None, ge=1)


class DecodingSettings(Section):
    """Settings of decoding."""

    max_new_tokens: int = Field(default=512, ge=1)
    max_sequences: int = Field(default=16, ge=1)  # side by side
    inner: Literal["plain", "resample"] = "plain"  # "resample" checks phrases; needs the three tokens
    dtype: Literal["float32", "bfloat16", "float16"] | None = None  # none: as `reverse.load`
    device: str | None = None  # none: a GPU for each process, or the CPU


class LoopSampling(Section):
    """Settings of sampling."""

    n: int = Field(default=3, ge=1, le=1024)
    temperature: float = Field(default=0.9, gt=0)
    top_p: float = Field(default=0.95, gt=0, le=1)
    top_k: int = Field(default=50, ge=1)


class TrainingData(Section):
    """Settings of training data, as in recipes of training."""

    max_length: int | None = Field(default=2048, ge=1)
    min_pixels: int | None = Field(default=None, ge=1)
    max_pixels: int | None = Field(default=None, ge=1)
    pad_to_square: bool = False
    workers: int = Field(default=4, ge=0)
    tagged: bool = False  # write the three tokens around verified phrases
    warmup_weight: float = Field(default=1.0, gt=0)  # of the loss of warm-up rows


class LoopRecipe(Section):
    """The settings that all loops have."""

    output: str  # folder of the loop
    model: str  # base: folder, hub id or bundled name
    questions: Questions
    verify: Literal["answer", "steps"] = "answer"  # "steps": of answers whose steps somebody can check
    engine: DecodingSettings = DecodingSettings()
    data: TrainingData = TrainingData()
    tune: Tuning = Tuning()
    optim: Optim = Optim()
    loss: Loss = Loss()
    compute: Compute = Compute()
    log: Log = Log()
    keep_models: bool = False  # keep the models of all iterations, not only the last one
    seed: int = Field(default=0, ge=0, lt=1 << 32)


Kind = TypeVar("Kind", bound=LoopRecipe)


def loop_recipe_names(system: str) -> list[str]:
    """Return the names of the package's recipes of a system."""
    return sorted(path.stem for path in LOOP_RECIPES.glob(f"{system}*.yaml"))


def find_loop_recipe(system: str, name_or_path: str) -> Path:
    """Find the file of a recipe. Raises MissingFileError."""
    return find_recipe_file(name_or_path, LOOP_RECIPES, loop_recipe_names(system), inside="recipe.yaml")


def load_loop_recipe(kind: type[Kind], system: str, name_or_path: str, settings: Sequence[str] = ()) -> Kind:
    """Read the recipe of a loop and override its values by `settings`; for a loop's folder, `output` is that
    folder.

    Raises as `reverse.training.recipes.recipe.load_recipe`.
    """
    path = find_loop_recipe(system, name_or_path)
    own = [f"output={_quote(name_or_path)}"] if Path(name_or_path).is_dir() else []
    recipe = read_settings(path, [*own, *settings], kind)
    given = recipe.questions
    named = {"output": recipe.output, "model": recipe.model}
    named |= {f"questions.{key}": getattr(given, key) for key in ("train", "test", "images")}
    optional = {"questions.test_images": given.test_images, "questions.warmup": given.warmup}
    check_paths([*named.items(), *((key, text) for key, text in optional.items() if text is not None)])
    return recipe


def _quote(text: str) -> str:
    """Write a text as a YAML value."""
    return "'" + text.replace("'", "''") + "'"


def loop_as_yaml(recipe: LoopRecipe) -> str:
    """Return the recipe as YAML with all defaults written out."""
    return write_recipe_yaml(recipe.model_dump())
