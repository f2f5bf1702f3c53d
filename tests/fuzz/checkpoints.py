"""Hostile checkpoints: mutated config.json, index, tokenizer and processor settings.

Every case is looked at as `load` looks before it reads weights; one in `LOADED` is loaded as a whole.
"""

from __future__ import annotations

import functools
import json
import os
from pathlib import Path
from random import Random
from typing import Any

import reverse
from experiments.tiny_models import build_tiny_llava, build_tiny_qwen
from reverse.models.checkpoints.loading import find_checkpoint
from reverse.tokens import add_tokens
from tests.fuzz.mutating import ODD_VALUES, dumps, encode, mutate_bytes, mutate_json
from tests.fuzz.running import REFUSALS, Target, check_refusal, expect
from tests.fuzz.scratch import folder

SMALL_FILES = ("config.json", "processor_config.json", "tokenizer_config.json", "generation_config.json")
NUMBERS = (*ODD_VALUES, 10**7, 10**12, 3, 7)
LOADED = 40
INDEX = "model.safetensors.index.json"

Case = tuple[str, str, bytes, int]  # family, file, content, a number that decides whether to load


@functools.cache
def bases() -> dict[str, Path]:
    """One tiny checkpoint of each family; files of a case are links to these."""
    made = {}
    for name, build in (("llava", build_tiny_llava), ("qwen", build_tiny_qwen)):
        model, processor = build(seed=0)
        add_tokens(model, processor, seed=0)
        made[name] = folder(f"base-{name}")
        model.save_pretrained(made[name])
        processor.save_pretrained(made[name])
    return made


def make(rng: Random) -> Case:
    family = rng.choice(("llava", "qwen"))
    base = bases()[family]
    names = [name for name in SMALL_FILES if (base / name).is_file()]
    name = rng.choice((*names, "config.json", "config.json", INDEX))
    if name == INDEX:
        tensors = {"a.weight": "model.safetensors", "b.weight": "../model.safetensors"}
        content: Any = {"metadata": {"total_size": 10}, "weight_map": tensors}
        if rng.random() < 0.5:
            file = rng.choice(
                (
                    "/etc/passwd",
                    "../../x",
                    "model.bin",
                    "pytorch_model.pt",
                    "",
                    "\0",
                    "a/b",
                    "none.safetensors",
                )
            )
            content["weight_map"] = {"a.weight": file}
    else:
        content = json.loads((base / name).read_text(encoding="utf-8"))
    if rng.random() < 0.9:
        content = mutate_json(rng, content, NUMBERS)
    data = encode(rng, dumps(content, rng))
    return (
        family,
        name,
        mutate_bytes(rng, data, len(data)) if rng.random() < 0.15 else data,
        rng.randrange(LOADED),
    )


def check(case: Case) -> str:
    family, name, data, draw = case
    path = folder("checkpoint")
    for old in path.iterdir():
        old.unlink()
    for file in bases()[family].iterdir():
        if file.name != name:
            os.link(file, path / file.name)
    (path / name).write_bytes(data)
    try:
        found, _ = find_checkpoint(path)
        expect(Path(found) == path, "another folder", found)
        if draw:
            return "read"
        model, _ = reverse.load(path)
        expect(not model.training, "in train mode")
    except REFUSALS as error:
        return check_refusal(error)
    except ImportError as error:  # names an extra that is not installed
        return check_refusal(error)
    return "read"


TARGET = Target("checkpoints", make, check, share=0.01, quick=60, seconds=6.0, shrinks=False)
