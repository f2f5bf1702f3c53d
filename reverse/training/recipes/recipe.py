"""A training run as one YAML file: read strictly, so that a misspelt key is an error and not a default.

    recipe = load_recipe("llava_v15_lora", ["optim.lr=1e-4", "output=out/mine"])

Names without a suffix are those of the recipes that come with the package; anything else is a path. Every key
has a default but `model`, `output` and `data.records`, and `Recipe` is where all of them stand.
"""

from __future__ import annotations

import difflib
import math
import operator
import types
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import MISSING, asdict, dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any, Union, get_args, get_origin, get_type_hints

from reverse.errors import MissingFileError, RequestError
from reverse.files.text_reading import read_text
from reverse.training.optim.trainable_weights import Tuning
from reverse.training.recipes.recipe_yaml import MAX_BYTES, parse_recipe_yaml, show_value

__all__ = [
    "RECIPES",
    "Compute",
    "Data",
    "Log",
    "Loss",
    "Optim",
    "Recipe",
    "as_yaml",
    "load_recipe",
    "recipe_names",
]

LONGEST_KEY = 200  # characters that are compared with known ones
MOST = (1 << 63) - 1  # of a whole number
RECIPES = Path(__file__).resolve().parent


@dataclass
class Data:
    """What is trained on."""

    records: str  # a JSON list or JSONL in the published shape
    images: str = "."  # what the records' pictures are relative to
    limit: int | None = None  # the first so many records, for a trial
    skip_bad: bool = False  # leave out records that cannot be trained, and list them; else they are an error
    hint_share: float = 0.2  # of the positive general answers name wrong phrases
    max_length: int | None = 2048  # ids of a row, the picture's included
    min_pixels: int | None = None  # of a picture, for processors that keep its size (Qwen2.5-VL)
    max_pixels: int | None = None
    pad_to_square: bool = False  # pictures on a square ground of the processor's mean colour (LLaVA)
    workers: int = 4  # processes that prepare data, for each device


@dataclass
class Optim:
    """AdamW; a linear rise, then half a cosine."""

    lr: float = 2e-5  # highest
    projector_lr: float | None = None  # of the projector or merger; none: lr
    weight_decay: float = 0.0  # of matrices
    warmup: float = 0.03  # share of the run
    beta2: float = 0.999
    clip: float = 1.0  # largest norm of the gradient
    epochs: float = 1.0
    steps: int | None = None  # instead of epochs
    global_batch: int = 128  # samples an optimizer step, over all devices
    batch: int = 8  # samples that a device takes at once; accumulation follows


@dataclass
class Loss:
    """Cross entropy of the targets."""

    confidence_weight: float = 1.0  # of closing tags; 1 is the published objective
    kernel: str = "auto"  # liger where it is installed, else chunked


@dataclass
class Compute:
    """Where and how it runs; changes speed and memory, the outcome only by rounding."""

    parallel: str = "none"  # none, ddp, fsdp, zero2, zero3
    precision: str = "bfloat16"  # of computing, on a GPU
    weights: str = "float32"  # of what is loaded; LoRA and the projector are trained in float32 in any case
    attention: str = "sdpa"  # or flash_attention_2, eager
    checkpoint_activations: bool = True  # less memory, a third more time
    group_by_length: bool = False
    packing: bool = False
    compile: bool = False
    save_dtype: str | None = "bfloat16"  # of a full model on disk; an adapter stays as it is trained


@dataclass
class Log:
    """What is shown and kept while it runs."""

    steps: int = 10  # between two lines
    save_steps: int = 500  # between two checkpoints: what a killed run loses at most
    report_to: str = "none"  # tensorboard, wandb, trackio


@dataclass
class Recipe:
    """One run."""

    model: str  # folder or hub id; without the three tokens they are added
    output: str  # folder that is written
    data: Data
    tune: Tuning = field(default_factory=Tuning)
    optim: Optim = field(default_factory=Optim)
    loss: Loss = field(default_factory=Loss)
    compute: Compute = field(default_factory=Compute)
    log: Log = field(default_factory=Log)
    seed: int = 0


def recipe_names() -> list[str]:
    """The recipes that come with the package."""
    return sorted(path.stem for path in RECIPES.glob("*.yaml"))


def as_yaml(recipe: Recipe) -> str:
    """The whole recipe, defaults written out, as `load_recipe` reads it."""
    import yaml

    return yaml.safe_dump(asdict(recipe), sort_keys=False, allow_unicode=True)


def load_recipe(name_or_path: str, settings: Sequence[str] = ()) -> Recipe:
    """Read a recipe and put `settings` ("optim.lr=1e-4") over it.

    Raises:
        FileNotFoundError: no such recipe or file.
        ValueError: not YAML, larger or deeper than a recipe is, an unknown key, a value of the wrong type or
            out of its range, or a key that is missing.
    """
    path = _find(name_or_path)
    given = parse_recipe_yaml(read_text(path, max_bytes=MAX_BYTES), str(path))
    if not isinstance(given, dict):
        kind = type(given).__name__
        raise RequestError(f"{path} must hold keys and values, got {kind}: see docs/training.md")
    for setting in settings:
        key, found, text = setting.partition("=")
        if not found:
            raise RequestError(f"--set takes key=value, got {show_value(setting)}: --set optim.lr=1e-4")
        key = key.strip()
        _put(given, key, parse_recipe_yaml(text, f"the value of --set {key[:40]}"))
    recipe = _build(Recipe, given, "")
    _check_ranges(recipe)
    return recipe


_LEAST = {
    "data.limit": 1, "data.max_length": 1, "data.workers": 0, "data.hint_share": 0, "optim.lr": 0,
    "optim.epochs": 0, "optim.steps": 1, "optim.global_batch": 1, "optim.batch": 1, "optim.weight_decay": 0,
    "optim.projector_lr": 0, "optim.warmup": 0, "optim.beta2": 0, "optim.clip": 0, "tune.rank": 1,
    "tune.alpha": 0, "tune.dropout": 0, "log.steps": 1, "log.save_steps": 0, "data.min_pixels": 1,
    "data.max_pixels": 1,
}  # fmt: skip
_MOST = {"data.hint_share": 1, "tune.dropout": 1}
_BELOW = {"optim.warmup": 1, "optim.beta2": 1}
_SAVED = ("float32", "bfloat16", "float16", None)


def _check_ranges(recipe: Recipe) -> None:
    for bounds, words, within in (
        (_LEAST, "at least", operator.ge), (_MOST, "at most", operator.le), (_BELOW, "below", operator.lt)
    ):  # fmt: skip
        for key, bound in bounds.items():
            section, name = key.split(".")
            value = getattr(getattr(recipe, section), name)
            if value is not None and not within(value, bound):
                raise RequestError(f"{key} must be {words} {bound}, got {show_value(value)}")
    if not 0 <= recipe.seed < 1 << 32:
        raise RequestError(f"seed must lie between 0 and {(1 << 32) - 1}, got {show_value(recipe.seed)}")
    if recipe.compute.save_dtype not in _SAVED:  # of an adapter it is not looked at
        kinds = ", ".join(map(str, _SAVED[:-1]))
        raise RequestError(
            f"compute.save_dtype must be one of {kinds} or none, got {show_value(recipe.compute.save_dtype)}"
        )
    for key, text in (
        ("model", recipe.model), ("output", recipe.output), ("data.records", recipe.data.records),
        ("data.images", recipe.data.images),
    ):  # fmt: skip
        if not text.strip():
            raise RequestError(f"{key} is empty: name a file or folder")


def _find(name_or_path: str) -> Path:
    if name_or_path in recipe_names():
        return RECIPES / f"{name_or_path}.yaml"
    path = Path(name_or_path)
    try:
        found = path.is_file()
    except (OSError, ValueError):  # a name that no file can have
        found = False
    if not found:
        raise MissingFileError(
            f"no recipe {show_value(name_or_path)}: give a YAML file, or one of {', '.join(recipe_names())}"
        )
    return path


def _put(given: dict[str, Any], key: str, value: Any) -> None:
    known = dict(_leaves(Recipe, ""))
    if key not in known:
        raise RequestError(_unknown(key, list(known)))
    *sections, last = key.split(".")
    for section in sections:
        inner = given.setdefault(section, {})
        if not isinstance(inner, dict):
            raise RequestError(f"{section} must hold keys and values, got {show_value(inner)}")
        given = inner
    given[last] = value


def _leaves(kind: Any, prefix: str) -> Iterator[tuple[str, Any]]:
    """Every key of a recipe that has a value, with its type."""
    for name, hint in get_type_hints(kind).items():
        if is_dataclass(hint):
            yield from _leaves(hint, f"{prefix}{name}.")
        else:
            yield prefix + name, hint


def _unknown(key: str, known: Sequence[str]) -> str:
    """What to say of a key: the nearest known one, where a word of it is right or nearly so."""
    key = key[:LONGEST_KEY]
    short = key.rpartition(".")[2]
    near = [name for name in known if name.rpartition(".")[2] == short]
    near = near or difflib.get_close_matches(key, known, n=1, cutoff=0.6)
    if not near:
        close = difflib.get_close_matches(short, [name.rpartition(".")[2] for name in known], n=1)
        near = [name for name in known if close and name.rpartition(".")[2] == close[0]]
    hint = f"did you mean {' or '.join(near)}?" if near else f"known are {', '.join(known)}"
    return f"unknown key {show_value(key)} in the recipe: {hint}"


def _build(kind: Any, given: Any, prefix: str) -> Any:
    """A dataclass from a mapping, every key and type checked."""
    if not isinstance(given, Mapping):
        raise RequestError(
            f"{prefix.rstrip('.') or 'a recipe'} must hold keys and values, got {show_value(given)}"
        )
    hints = get_type_hints(kind)
    for key in given:
        if key not in hints:
            leaves = [name for name, _ in _leaves(Recipe, "")]
            raise RequestError(_unknown(f"{prefix}{key}", leaves))
    values = {}
    for item in fields(kind):
        name, key = item.name, prefix + item.name
        if name not in given:
            if item.default is MISSING and item.default_factory is MISSING:
                raise RequestError(f"the recipe lacks {key}: add it, or give --set {key}=…")
            continue
        hint = hints[name]
        section = is_dataclass(hint)
        values[name] = _build(hint, given[name], f"{key}.") if section else _value(given[name], hint, key)
    return kind(**values)


def _value(value: Any, hint: Any, key: str) -> Any:
    """`value` as `hint` has it. YAML reads 2e-5 as a text, so texts that are numbers pass for numbers."""
    kinds = get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)
    if value is None and type(None) in kinds:
        return None
    if value == "none" and type(None) in kinds:
        return None
    for kind in kinds:
        if kind is float and not isinstance(value, bool):
            try:
                number = float(value)
            except (TypeError, ValueError, OverflowError):
                continue
            if not math.isfinite(number):
                raise RequestError(f"{key} must be a finite number, got {show_value(value)}")
            return number
        if kind is int and isinstance(value, float) and value.is_integer() and abs(value) <= MOST:
            return int(value)
        if type(value) is kind:
            if kind is int and abs(value) > MOST:
                raise RequestError(f"{key} must be at most {MOST}, got {show_value(value)}")
            if kind is str and any(unicodedata.category(c) in ("Cc", "Cs") for c in value):
                raise RequestError(f"{key} holds control characters or half a character: {show_value(value)}")
            return value
    wanted = " or ".join("none" if kind is type(None) else kind.__name__ for kind in kinds)
    raise RequestError(f"{key} must be of type {wanted}, got {show_value(value)}")
