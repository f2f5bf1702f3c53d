"""Rows of the reasoning world, tiny bases, and recipes over them."""

import json

from reverse.data.scenes.reasoning import write_reasoning
from reverse.models import add_tokens_to_checkpoint
from reverse.training.recipes.recipe import load_recipe
from reverse.training.views.view_files import write_view


def write_rows(folder, pictures=12):
    """`pairs.jsonl` and `questions.jsonl` beside the world that they are of."""
    write_reasoning(folder / "world", "train", pictures)
    for kind, name in (("dpo", "pairs.jsonl"), ("grpo", "questions.jsonl")):
        write_view(folder / "world/drafts.jsonl", folder / name, kind)


def write_base(folder, build):
    model, processor = build(seed=0)
    model.save_pretrained(folder / "plain")
    processor.save_pretrained(folder / "plain")
    add_tokens_to_checkpoint(folder / "plain", folder / "base")
    return folder / "base"


def make_recipe(kind, base, rows, output, *settings, **sections):
    """A tiny recipe of a kind, as `load_recipe` returns it."""
    given = {
        "kind": kind,
        "model": str(base),
        "output": str(output),
        "data": {
            "records": str(rows / ("pairs.jsonl" if kind == "dpo" else "questions.jsonl")),
            "images": str(rows / "world"),
            "workers": 0,
            "limit": 6,
        },
        "tune": {
            "method": "lora",
            "rank": 4,
            "alpha": 8,
            "dropout": 0.0,
            "tokens": False,
            "projector": False,
        },
        "optim": {"lr": 0.01, "steps": 3, "batch": 2, "global_batch": 2},
        "compute": {"precision": "float32", "weights": "float32", "checkpoint_activations": False},
        "log": {"steps": 1, "save_steps": 0},
        **({"grpo": {"generations": 2, "max_new_tokens": 12}} if kind == "grpo" else {}),
        **sections,
    }
    path = output.parent / f"{output.name}.yaml"
    path.write_text(json.dumps(given))
    return load_recipe(str(path), settings)
