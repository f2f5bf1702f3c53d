"""Wrong values of every key of a training recipe, by --set: what can be seen before anything is loaded."""

from __future__ import annotations

import types
from collections.abc import Iterator
from functools import partial
from typing import Any, Union, get_args, get_origin

from reverse.training.recipes.recipe import list_keys, load_recipe
from tests.bad_inputs.judging import Entry
from tests.bad_inputs.world import World

# Least, most, whether least and most themselves are allowed.
RANGES: dict[str, tuple[float, float, bool, bool]] = {
    "data.limit": (1, 2**63, True, True),
    "data.hint_share": (0, 1, True, True),
    "data.max_length": (1, 2**63, True, True),
    "data.min_pixels": (1, 2**63, True, True),
    "data.max_pixels": (1, 2**63, True, True),
    "data.workers": (0, 2**63, True, True),
    "seed": (0, 2**32 - 1, True, True),
    "tune.rank": (1, 2**31, True, True),
    "tune.dropout": (0, 1, True, False),
    "tune.alpha": (0, 2**31, False, True),
    "optim.lr": (0, 1e9, True, True),
    "optim.projector_lr": (0, 1e9, True, True),
    "optim.weight_decay": (0, 1e9, True, True),
    "optim.warmup": (0, 1, True, False),
    "optim.beta2": (0, 1, True, False),
    "optim.clip": (0, 1e9, True, True),
    "optim.epochs": (0, 1e9, True, True),
    "optim.steps": (1, 2**63, True, True),
    "optim.global_batch": (1, 2**31, True, True),
    "optim.batch": (1, 2**31, True, True),
    "dpo.beta": (0, 1e9, False, True),
    "dpo.label_smoothing": (0, 0.5, True, False),
    "grpo.generations": (2, 2**31, True, True),
    "grpo.temperature": (0, 1e9, False, True),
    "grpo.top_p": (0, 1, False, True),
    "grpo.top_k": (0, 2**31, True, True),
    "grpo.max_new_tokens": (1, 2**31, True, True),
    "grpo.beta": (0, 1e9, True, True),
    "grpo.clip_low": (0, 1e9, False, True),
    "grpo.clip_high": (0, 1e9, False, True),
    "grpo.iterations": (1, 2**31, True, True),
    "grpo.pass_rate_low": (0, 1, True, True),
    "grpo.pass_rate_high": (0, 1, True, True),
    "value.head_lr": (0, 1e9, False, True),
    "value.held_out": (0, 1, True, False),
    "log.steps": (1, 2**63, True, True),
    "log.save_steps": (0, 2**63, True, True),
}
TRIED = ("-1", "abc", ".nan", ".inf", "-.inf", "[1]", "{a: 1}", "true", "", "99999999999999999999999")
CHOICES = (
    "tune.method",
    "loss.kernel",
    "compute.parallel",
    "compute.precision",
    "compute.weights",
    "compute.attention",
    "compute.save_dtype",
    "log.report_to",
)


def entries() -> Iterator[Entry]:
    keys = dict(list_keys())
    for key, hint in keys.items():
        kinds = set(get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,))
        for text in TRIED:
            expected = _expected(key, kinds, text)
            if expected is not None:
                values = (text.strip("[]{}"), text.replace(".", ""), _plain(text), key)
                yield Entry(f"--set {key}={text}", partial(load, key, text), values, expected)
    for key in CHOICES:
        if key in keys:
            yield Entry(f"--set {key}=nonsense", partial(start, key, "nonsense"), ("nonsense",))


def _expected(key: str, kinds: set[type], text: str) -> Any:
    if text in ("", "abc") and str in kinds:
        return None  # a text, judged where it is used
    if text == "":  # YAML's null
        return "good" if type(None) in kinds else "refused"
    if text == "true":
        return "good" if bool in kinds else "refused"
    if text in ("-1", "99999999999999999999999") and kinds & {int, float}:
        value = float(text)
        low, high, _, _ = RANGES.get(key, (-(2.0**63), 2.0**63, True, True))
        if value > 1e20 and not (int in kinds and key == "seed"):
            return "either"
        return "good" if low <= value <= high else "refused"
    return "refused"


def _plain(text: str) -> str:
    try:
        return f"{float(text.replace('.nan', 'nan').replace('.inf', 'inf')):g}"
    except ValueError:
        return text


def load(key: str, text: str, world: World) -> Any:
    return load_recipe(world["recipe"], [f"{key}={text}"])


def start(key: str, text: str, world: World) -> Any:
    """A choice may be judged where it is used, but before any step is made."""
    return world.run(f"train {{recipe}} --quiet --set output={{new}} --set {key}={text}")
