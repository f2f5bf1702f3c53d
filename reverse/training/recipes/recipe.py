"""Recipes: a YAML file describes a training run. It is read strictly: a misspelt key is an error.

    recipe = load_recipe("llava_v15_lora", ["optim.lr=1e-4", "output=out/mine"])

A name without a suffix is that of a recipe of the package; anything else is a path. Every key has a default
but `model`, `output` and `data.records`. `Recipe` holds all keys with their types, ranges and defaults.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from types import NoneType
from typing import Annotated, Any, Literal, TypeVar, get_args

from pydantic import BaseModel, Discriminator, Field, Tag, ValidationError
from pydantic_core import ErrorDetails

from reverse.data.records.target_rules import LARGEST_WEIGHT
from reverse.errors import MissingFileError, RequestError
from reverse.files.text_reading import read_text
from reverse.training.recipes.mixture_plan import PartPlan, check_plans
from reverse.training.recipes.recipe_section import Section
from reverse.training.recipes.recipe_yaml import MAX_BYTES, parse_recipe_yaml, show_value, write_recipe_yaml
from reverse.training.recipes.rl_sections import SECTIONS, Preferences, Rewards, Values

__all__ = [
    "RECIPES",
    "Compute",
    "Data",
    "Log",
    "Loss",
    "Optim",
    "Recipe",
    "RecordPart",
    "Section",
    "Tuning",
    "as_settings",
    "as_yaml",
    "check_paths",
    "find_recipe_file",
    "list_keys",
    "load_recipe",
    "read_settings",
    "recipe_names",
]

MOST_PARTS = 64
LONGEST_KEY = 200  # characters that are compared with known ones
Kind = TypeVar("Kind", bound=BaseModel)
RECIPES = Path(__file__).resolve().parent


class RecordPart(Section):
    """One of several sets of records that are trained together."""

    records: str  # as `data.records`
    images: str | None = None  # folder that its pictures are relative to; none: data.images
    share: float | None = Field(default=None, gt=0, le=1)  # of the items of a pass; instead of repeat
    repeat: float = Field(
        default=1.0, gt=0, le=1000
    )  # times that each record comes in a pass; 0.5: half of them
    weight: float = Field(default=1.0, gt=0, le=LARGEST_WEIGHT)  # multiplies the loss of its targets
    limit: int | None = Field(default=None, ge=1)  # the first so many records; none: data.limit

    @property
    def plan(self) -> PartPlan:
        """Return how often its records occur in a pass."""
        return PartPlan(self.share, self.repeat)


class Data(Section):
    """The training data."""

    # A JSON list or JSONL in the published shape, or a list of parts.
    records: Annotated[
        Annotated[str, Tag("file")]
        | Annotated[list[RecordPart], Field(min_length=1, max_length=MOST_PARTS), Tag("mixture")],
        Discriminator(lambda value: "mixture" if isinstance(value, list) else "file"),
    ]
    images: str = "."  # folder that the records' pictures are relative to
    limit: int | None = Field(default=None, ge=1)  # the first so many records, for a trial
    skip_bad: bool = False  # leave out records that cannot be trained, and list them; else they are an error
    hint_share: float = Field(default=0.2, ge=0, le=1)  # of the positive general answers name wrong phrases
    max_length: int | None = Field(default=2048, ge=1)  # ids of a row, the picture's included
    min_pixels: int | None = Field(default=None, ge=1)  # of a picture; Qwen2.5-VL
    max_pixels: int | None = Field(default=None, ge=1)
    pad_to_square: bool = False  # pictures on a square ground of the processor's mean colour (LLaVA)
    workers: int = Field(default=4, ge=0)  # processes that prepare data, for each device


class Tuning(Section):
    """The trained weights, and how they are trained."""

    method: Literal["full", "lora"] = "full"  # the language model's own weights, or low-rank matrices beside
    rank: int = Field(default=128, ge=1)  # of LoRA
    alpha: float = Field(default=256.0, gt=0)  # of LoRA; the matrices count alpha / rank times
    dropout: float = Field(default=0.05, ge=0, lt=1)  # before LoRA's matrices
    tokens: bool = True  # LoRA: train the three tokens' rows, input and output
    projector: bool = True  # train the projector (Qwen2.5-VL: the merger) in full
    vision: bool = False  # train the vision tower; full only
    quantize: Literal["none", "nf4"] = "none"  # "nf4": the frozen weights in four bits (QLoRA)


class Optim(Section):
    """AdamW; a linear rise, then half a cosine or a constant rate."""

    lr: float = Field(default=2e-5, ge=0)  # highest learning rate
    projector_lr: float | None = Field(default=None, ge=0)  # of the projector or merger; none: lr
    weight_decay: float = Field(default=0.0, ge=0)  # of matrices
    warmup: float = Field(default=0.03, ge=0, lt=1)  # share of the run
    schedule: Literal["cosine", "constant"] = "cosine"  # of the rate, after the warm-up
    beta2: float = Field(default=0.999, ge=0, lt=1)
    clip: float = Field(default=1.0, ge=0)  # largest norm of the gradient
    epochs: float = Field(default=1.0, ge=0)
    steps: int | None = Field(default=None, ge=1)  # instead of epochs
    global_batch: int = Field(default=128, ge=1)  # samples an optimizer step, over all devices
    batch: int = Field(default=8, ge=1)  # samples that a device takes at once; accumulation follows


class Loss(Section):
    """Settings of the loss, a cross entropy of the targets."""

    confidence_weight: float = 1.0  # of closing tags; 1 is the published objective
    kernel: Literal["auto", "chunked", "liger"] = "auto"  # auto: liger where it is installed, else chunked


class Compute(Section):
    """Devices and precision: they change speed and memory, and the result only by rounding."""

    parallel: Literal["none", "ddp", "fsdp", "zero2", "zero3"] = "none"
    precision: Literal["float32", "bfloat16", "float16"] = "bfloat16"  # of computing, on a GPU
    # Of the loaded weights; LoRA and the projector are trained in float32 in any case.
    weights: Literal["float32", "bfloat16", "float16"] = "float32"
    attention: Literal["sdpa", "flash_attention_2", "eager"] = "sdpa"
    checkpoint_activations: bool = True  # less memory, a third more time
    group_by_length: bool = False
    packing: bool = False
    compile: bool = False
    # Of a full model on disk; an adapter stays as it is trained.
    save_dtype: Literal["float32", "bfloat16", "float16"] | None = "bfloat16"


class Log(Section):
    """Logs and checkpoints of the run."""

    steps: int = Field(default=10, ge=1)  # between two lines
    save_steps: int = Field(default=500, ge=0)  # between two checkpoints: what a killed run loses at most
    report_to: Literal["none", "tensorboard", "wandb", "trackio"] = "none"


class Recipe(Section):
    """A training run."""

    # Supervised (records), by preferences (pairs), by rewards (questions with answers), or a value head.
    kind: Literal["sft", "dpo", "grpo", "value"] = "sft"
    model: str  # folder or hub id; without the three tokens they are added
    output: str  # folder that is written
    data: Data
    tune: Tuning = Tuning()
    optim: Optim = Optim()
    loss: Loss = Loss()
    dpo: Preferences = Preferences()
    grpo: Rewards = Rewards()
    value: Values = Values()
    compute: Compute = Compute()
    log: Log = Log()
    seed: int = Field(default=0, ge=0, lt=1 << 32)


def recipe_names() -> list[str]:
    """Return the names of the recipes in the package."""
    return sorted(path.stem for path in RECIPES.glob("*.yaml"))


def as_yaml(recipe: Recipe) -> str:
    """Return the recipe as YAML that `load_recipe` reads, with all defaults written out."""
    return write_recipe_yaml(as_settings(recipe))


def as_settings(recipe: Recipe) -> dict[str, Any]:
    """All keys and values of a recipe, without the sections of other kinds."""
    settings = recipe.model_dump()
    for name in SECTIONS:
        if name != recipe.kind:
            del settings[name]
    return settings


def load_recipe(name_or_path: str, settings: Sequence[str] = ()) -> Recipe:
    """Read a recipe and override its values by `settings` ("optim.lr=1e-4").

    Raises:
        FileNotFoundError: no such recipe or file.
        ValueError: not YAML, larger or deeper than a recipe is, an unknown key, a value of the wrong type or
            out of its range, or a key that is missing.
    """
    recipe = read_settings(find_recipe_file(name_or_path, RECIPES, recipe_names()), settings, Recipe)
    check_paths(
        [
            ("model", recipe.model),
            ("output", recipe.output),
            ("data.images", recipe.data.images),
            *_list_record_paths(recipe.data.records),
        ]
    )
    for name in SECTIONS:
        if name in recipe.model_fields_set and name != recipe.kind:
            raise RequestError(f"{name} has no effect on a run of kind {recipe.kind}: set kind={name}")
    if not isinstance(recipe.data.records, str):
        names = [f"data.records.{k}" for k in range(len(recipe.data.records))]
        check_plans([part.plan for part in recipe.data.records], names)
    return recipe


def read_settings(path: Path, settings: Sequence[str], kind: type[Kind]) -> Kind:
    """Read a YAML file of settings of a kind, such as `Recipe`, and put `settings` over it.

    Raises what `load_recipe` raises.
    """
    given = parse_recipe_yaml(read_text(path, max_bytes=MAX_BYTES), str(path))
    if not isinstance(given, dict):
        found = type(given).__name__
        raise RequestError(f"{path} must hold keys and values, got {found}: see docs/training.md")
    for setting in settings:
        key, sign, text = setting.partition("=")
        if not sign:
            raise RequestError(f"--set takes key=value, got {show_value(setting)}: --set optim.lr=1e-4")
        key = key.strip()
        _set_value(given, key, parse_recipe_yaml(text, f"the value of --set {key[:40]}"), kind)
    try:
        return kind.model_validate(given)
    except ValidationError as error:
        # A key that is unknown may be the reason why another one is missing.
        first, *_ = sorted(error.errors(include_url=False), key=lambda e: e["type"] != "extra_forbidden")
        raise RequestError(_describe_error(first, kind)) from None


def check_paths(named: Iterable[tuple[str, str]]) -> None:
    """Raise RequestError for a key whose path is empty. `named`: keys of a recipe and their values."""
    for key, text in named:
        if not text.strip():
            raise RequestError(f"{key} is empty: name a file or folder")


def _list_record_paths(records: str | list[RecordPart]) -> list[tuple[str, str]]:
    """Keys and values that must not be empty."""
    if isinstance(records, str):
        return [("data.records", records)]
    return [
        (f"data.records.{k}.{name}", value)
        for k, part in enumerate(records)
        for name, value in (("records", part.records), ("images", part.images))
        if value is not None
    ]


def find_recipe_file(name_or_path: str, folder: Path, names: Sequence[str], inside: str = "") -> Path:
    """Find the file of a recipe.

    Args:
        name_or_path: one of `names`, a YAML file, or, if `inside` is given, a folder that holds `inside`.
        folder: of the recipes of the package, whose names are `names`.
        inside: name of the recipe in the folder of a run that is to continue.

    Raises MissingFileError.
    """
    if name_or_path in names:
        return folder / f"{name_or_path}.yaml"
    path = Path(name_or_path)
    try:
        if inside and path.is_dir():
            path /= inside
        found = path.is_file()
    except (OSError, ValueError):  # a name that no file can have
        found = False
    if not found:
        others = "a YAML file, the folder of a loop," if inside else "a YAML file,"
        raise MissingFileError(
            f"no recipe {show_value(name_or_path)}: give {others} or one of {', '.join(names)}"
        )
    return path


def _set_value(given: dict[str, Any], key: str, value: Any, kind: type[BaseModel]) -> None:
    if key not in dict(list_keys(kind)):
        raise RequestError(_describe_unknown_key(key, kind))
    *sections, last = key.split(".")
    for section in sections:
        inner = given.setdefault(section, {})
        if not isinstance(inner, dict):
            raise RequestError(f"{section} must hold keys and values, got {show_value(inner)}")
        given = inner
    given[last] = value


def list_keys(section: type[BaseModel] = Recipe, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """List every key of a recipe that has a value, such as "optim.lr", with its type."""
    for name, field in section.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from list_keys(field.annotation, f"{prefix}{name}.")
        else:
            yield prefix + name, field.annotation


def _describe_unknown_key(key: str, kind: type[BaseModel]) -> str:
    """Write the error for an unknown key, with the nearest known key if there is a similar one."""
    key = key[:LONGEST_KEY]
    place = _PART.match(key)
    known = [name for name, _ in (list_keys(RecordPart, place.group()) if place else list_keys(kind))]
    short = key.rpartition(".")[2]
    near = [name for name in known if name.rpartition(".")[2] == short]
    near = near or difflib.get_close_matches(key, known, n=1, cutoff=0.6)
    if not near:
        close = difflib.get_close_matches(short, [name.rpartition(".")[2] for name in known], n=1)
        near = [name for name in known if close and name.rpartition(".")[2] == close[0]]
    hint = f"did you mean {' or '.join(near)}?" if near else f"known are {', '.join(known)}"
    return f"unknown key {show_value(key)} in the recipe: {hint}"


_PART = re.compile(r"data\.records\.\d+\.")
_BOUNDS = {"ge": "at least", "gt": "above", "le": "at most", "lt": "below"}
_TYPES = {"int": "int", "float": "float", "bool": "bool", "string": "str"}


def _describe_error(error: ErrorDetails, recipe: type[BaseModel]) -> str:
    """Write pydantic's error as one sentence with the key, the value and the remedy."""
    kind, context = error["type"], error.get("ctx", {})
    place = [name for name in error["loc"] if name not in ("mixture", "file")]
    key, got = ".".join(map(str, place)), f"got {show_value(error['input'])}"
    if kind in ("extra_forbidden", "invalid_key"):
        return _describe_unknown_key(key.removesuffix(".[key]"), recipe)
    if kind == "missing":
        return f"the recipe lacks {key}: add it, or give --set {key}=…"
    if kind == "model_type":
        return f"{key} must hold keys and values, {got}"
    if key == "seed" and context.keys() & _BOUNDS.keys():
        return f"seed must lie between 0 and {(1 << 32) - 1}, {got}"
    for name, words in _BOUNDS.items():
        if name in context:
            return f"{key} must be {words} {context[name]:g}, {got}"
    if kind == "finite_number":
        return f"{key} must be a finite number, {got}"
    if kind in ("too_short", "too_long"):
        return f"{key} must name a file or list 1 to {MOST_PARTS} parts, {got}"
    part = _PART.match(key)
    known = list_keys(RecordPart, part.group()) if part else list_keys(recipe)
    annotation = dict(known).get(key)
    optional = " or none" if NoneType in get_args(annotation) else ""
    if kind == "literal_error":
        return f"{key} must be one of {', '.join(get_args(_literal(annotation)))}{optional}, {got}"
    if kind in ("range", "text"):
        return f"{key} {error['msg']}, {got}"
    return f"{key} must be of type {_TYPES.get(kind.partition('_')[0], kind)}{optional}, {got}"


def _literal(annotation: Any) -> Any:
    """Return the `Literal` of an annotation that may also allow None."""
    return next((kind for kind in get_args(annotation) if get_args(kind)), annotation)
