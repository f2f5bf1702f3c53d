"""Stage "train": fine-tuning on the rows of one or several stages, or GRPO, as `reverse train` does it.

    OUT/model/           the model, an adapter being merged; with training.json and recipe.yaml
    OUT/adapter/         the adapter, if LoRA was trained
    OUT/training.json    losses of every step, versions, data

Paths below the loop's folder are written relative to it. A killed run goes on from its last checkpoint, which
names files of the place it was begun in: in another place it begins anew.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from reverse.errors import DataError
from reverse.files.atomic_write import replace_file, write_json
from reverse.files.text_reading import read_json
from reverse.selftrain.loops.bodies.answer_body import find_model
from reverse.selftrain.loops.stage import Stage, StageBody, StageContext
from reverse.training.recipes.recipe import Recipe, as_yaml

__all__ = ["TRAIN", "make_training_recipe"]

MANIFEST = "training.json"  # beside the model, and at the top; there it comes when all else is done


def make_training_recipe(context: StageContext) -> Recipe:
    """The recipe of the run. Raises DataError if there is nothing to train on."""
    parts = list(_find_parts(context))
    if not parts:
        raise DataError(f"stage {context.name}: no row to train on")
    is_lora = context.settings["tune"]["method"] == "lora"
    return _make_recipe(
        context.settings,
        context.place.world,
        model=find_model(context),
        output=str(context.out / ("adapter" if is_lora else "model")),
        records=parts,
        images=context.outside["images"],
        seed=context.seed,
    )


def _make_recipe(
    settings: Mapping[str, Any],
    processes: int,
    *,
    model: str,
    output: str,
    records: list[dict[str, Any]],
    images: str,
    seed: int,
) -> Recipe:
    compute = dict(settings["compute"])
    if processes > 1 and compute["parallel"] == "none":
        compute["parallel"] = "ddp"
    is_rl = settings["kind"] != "sft"
    sections = {name: settings[name] for name in ("tune", "optim", "loss", "log", "grpo") if name in settings}
    return Recipe.model_validate(
        {
            "kind": settings["kind"],
            "model": model,
            "output": output,
            "data": {
                **settings["data"],
                "records": records[0]["records"] if is_rl else records,
                "images": images,
            },
            **sections,
            "compute": compute,
            "seed": seed,
        }
    )


def check_training(stage: Stage, processes: int) -> None:
    """Check what needs neither rows nor a model: packages, devices, and settings that exclude each other."""
    from reverse.training.rl.trl_setup import check_recipe
    from reverse.training.training_run import check_recipe_settings

    base = stage.outside["model"]
    parts = [{"records": f"{part['name']}.jsonl"} for part in stage.settings["parts"]]
    recipe = _make_recipe(
        stage.settings, processes, model=base, output=stage.name, records=parts,
        images=stage.outside["images"], seed=stage.seed,
    )  # fmt: skip
    if recipe.kind != "sft":
        check_recipe(recipe)
    check_recipe_settings(recipe, count=processes)


def _find_parts(context: StageContext) -> Iterator[dict[str, Any]]:
    for part in context.settings["parts"]:
        path = context.inputs[part["input"]] / f"{part['name']}.jsonl"
        if path.stat().st_size:
            yield {"records": str(path), "weight": part.get("weight", 1.0), "repeat": part.get("repeat", 1.0)}


def train_model(context: StageContext) -> None:
    """Train; of a parallel run in every process."""
    if (context.out / MANIFEST).exists():  # killed behind the end of the run
        return
    recipe = make_training_recipe(context)
    if recipe.kind == "sft":
        from reverse.training.training_run import run_recipe

        run_recipe(recipe, quiet=context.quiet)
    else:
        from reverse.training.rl.rl_run import run_rl_recipe

        run_rl_recipe(recipe, quiet=context.quiet)


def finish_model(context: StageContext) -> dict[str, Any]:
    """Merge an adapter, and write relative paths."""
    trained = context.out / ("adapter" if context.settings["tune"]["method"] == "lora" else "model")
    if trained.name == "adapter" and not (context.out / "model").exists():
        from reverse.models.adapters.merging import merge_adapter

        merge_adapter(trained, context.out / "model", base=find_model(context))
    if not (context.out / MANIFEST).exists():
        write_json(context.out / MANIFEST, _make_relative(read_json(trained / MANIFEST), context))
    manifest = read_json(context.out / MANIFEST)
    recipe = Recipe.model_validate(_make_relative(make_training_recipe(context).model_dump(), context))
    with replace_file(trained / "recipe.yaml") as stream:
        stream.write(as_yaml(recipe).encode())
    write_json(trained / MANIFEST, manifest)
    return {
        "steps": manifest["steps"],
        "loss": manifest["final_loss"],
        "parameters": manifest["trained_parameters"],
    }


def _make_relative(value: Any, context: StageContext) -> Any:
    """A JSON value whose paths below the loop's folder are relative to it."""
    if isinstance(value, dict):
        return {key: _make_relative(each, context) for key, each in value.items()}
    if isinstance(value, list):
        return [_make_relative(each, context) for each in value]
    if isinstance(value, str):
        root = context.out.parent
        for folder in dict.fromkeys((str(root), str(root.resolve()))):
            if value.startswith(f"{folder}/"):
                value = value[len(folder) + 1 :].replace(context.out.name, context.name, 1)
    return value


TRAIN = StageBody(finish_model, train_model, is_parallel=True, is_movable=False, check=check_training)
