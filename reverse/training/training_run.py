"""Run a recipe from beginning to end: load checkpoint, tokens and data, choose the trained weights, train,
write.

    manifest = run_recipe(load_recipe("llava_v15_lora", ["data.limit=1000"]))

Every process of a run calls it alike. `OUTPUT` holds the model (or adapter), the processor, `training.json`
with versions, data and losses, and `recipe.yaml`, which gives the same run again.
"""

from __future__ import annotations

import json
import os
from contextlib import ExitStack
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from transformers import set_seed

from reverse.errors import OutputExistsError, RequestError
from reverse.files.file_lock import output_lock
from reverse.files.text_reading import read_json
from reverse.models import load
from reverse.progress import show_progress
from reverse.tokens import add_tokens, find_token_ids
from reverse.training.checkpoints.full_disk import explain_full_disk
from reverse.training.checkpoints.resuming import check_same_run, with_later_keys
from reverse.training.checkpoints.saving import MANIFEST
from reverse.training.data.encoding import Encoder
from reverse.training.data.first_pass import Checked
from reverse.training.data.mixture import Mixture
from reverse.training.data.training_sets import RecordDataset
from reverse.training.optim.parallel import check_parallel, check_shared, is_first
from reverse.training.optim.trainable_weights import check_tuning, quantization, select_trained
from reverse.training.recipe_data import (
    check_part_files,
    check_parts,
    describe_checked,
    describe_data,
    forget_checked,
    join_parts,
    open_parts,
)
from reverse.training.recipes.recipe import Recipe, as_settings, as_yaml
from reverse.training.recipes.settings_check import check_kernel, check_settings, check_size, check_writable
from reverse.training.sft import SFTConfig, run_settings, train

__all__ = [
    "Prepared",
    "check_before_loading",
    "check_recipe_settings",
    "load_base",
    "make_config",
    "outcome_settings",
    "pad_to_square",
    "prepare",
    "read_finished",
    "run_recipe",
    "set_pixels",
]

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def run_recipe(recipe: Recipe, *, resume: bool = True, quiet: bool = False) -> dict[str, Any]:
    """Train as `recipe` says, and return the manifest.

    Args:
        recipe: from `load_recipe`.
        resume: continue from the last checkpoint, if there is one; a finished run is not repeated.
            False: start over and replace the results of an earlier run.
        quiet: no progress.

    Raises:
        FileExistsError: the output holds anything but the same run (with `resume=False`: but a run).
        OutputInUseError: another process trains to this output.
        DiskFullError: the disk of the output is full; the last good checkpoint stays.
        ValueError, OSError: something that the recipe names is missing, or cannot run here.
    """
    with ExitStack() as stack:
        config = check_before_loading(recipe, quiet)
        if is_first():
            stack.enter_context(output_lock(recipe.output))
        stack.enter_context(explain_full_disk(recipe.output))
        check_shared(Path(recipe.output))
        return _run(recipe, config, resume, quiet)


@dataclass
class Prepared:
    """Everything that training needs, loaded and checked."""

    model: Any  # not on its device yet
    processor: Any
    dataset: RecordDataset | Mixture
    config: SFTConfig
    data: dict[str, Any]  # what the data are and what a look at them found, for the manifest
    checked: Checked
    added_seed: int | None  # of tokens that had to be added


def _run(recipe: Recipe, config: SFTConfig, resume: bool, quiet: bool) -> dict[str, Any]:
    finished = read_finished(recipe, resume)
    if finished is not None:
        return finished
    ready = prepare(recipe, config, recipe.output, resume=resume, quiet=quiet)
    # Where it runs does not decide what comes out; SFTConfig says which of the rest does.
    notes = {"recipe": outcome_settings(recipe), "data": ready.data}
    files = {"recipe.yaml": as_yaml(recipe)}
    config = replace(config, added_seed=ready.added_seed)
    manifest = train(
        ready.model, ready.processor, ready.dataset, config, resume=resume, notes=notes, files=files
    )
    if is_first():
        forget_checked(recipe, recipe.output)
    return manifest


def prepare(
    recipe: Recipe, config: SFTConfig, found: str | Path, *, resume: bool = True, quiet: bool = False
) -> Prepared:
    """Load the model and check all records; checks that need no record come first.

    Args:
        config: checked settings of `recipe`.
        found: output of the run; results of checking the records are kept beside it.
        resume: use results beside existing checkpoints.
        quiet: no progress.
    """
    data = describe_data(recipe)
    if resume:
        settings = run_settings(config, {"recipe": outcome_settings(recipe), "data": data})
        output = Path(recipe.output)
        folder = output.with_name(output.name + ".checkpoints")
        check_same_run(folder, settings, found=("count", "left_out", "cut"))
    model, processor, added_seed = load_base(recipe)
    set_pixels(processor, recipe)
    if recipe.data.pad_to_square:
        pad_to_square(processor)
    encoder = Encoder(processor, max_length=recipe.data.max_length)
    _check_stops(model, encoder)
    model = select_trained(model, processor, recipe.tune, parallel=recipe.compute.parallel).train()
    check_kernel(config, model)
    sets = open_parts(recipe, encoder)
    check_size(config, check_settings(config), len(join_parts(recipe, sets)))
    shown = is_first() and not quiet
    with show_progress("records checked", shown=shown, transient=True) as progress:
        checked_parts = check_parts(
            recipe,
            sets,
            found,
            data,
            resume=resume,
            say=lambda line: _say(recipe, line) if shown else None,
            progress=progress,
        )
    dataset = join_parts(recipe, sets)
    check_size(config, check_settings(config), len(dataset))
    checked, described = describe_checked(recipe, checked_parts)
    data |= {"count": len(dataset), **described}
    return Prepared(model, processor, dataset, config, data, checked, added_seed)


def check_before_loading(recipe: Recipe, quiet: bool = False) -> SFTConfig:
    """Do the checks that need neither the model nor a record, and return the settings of the run."""
    if recipe.kind != "sft":
        raise RequestError(
            f"this is a run of kind sft, and the recipe's kind is {recipe.kind}: see docs/rl.md"
        )
    check_parallel(recipe.compute.parallel)
    set_seed(recipe.seed)  # of LoRA's matrices too: every process makes its own, and they must be alike
    check_tuning(recipe.tune)
    _check_files(recipe)
    config = make_config(recipe, quiet)
    check_settings(config)
    check_writable(recipe.output)
    return config


def check_recipe_settings(recipe: Recipe, count: int | None = None) -> int:
    """Check settings that need neither files nor a model; return the batches of an optimizer step.

    Args: `count`: number of processes that will train; None: as the launcher says.

    Raises the errors of `check_settings`, `check_tuning` and `quantization`.
    """
    check_tuning(recipe.tune)
    quantization(recipe.tune, recipe.model, torch.float32)
    # A step of GRPO takes so many questions, a batch so many completions.
    each = recipe.grpo.generations if recipe.kind == "grpo" else 1
    config = make_config(recipe, quiet=True)
    return check_settings(replace(config, global_batch=recipe.optim.global_batch * each), count)


def read_finished(recipe: Recipe, resume: bool) -> dict[str, Any] | None:
    """Return the manifest of the same run if it is finished, else None.

    Raises FileExistsError if the output holds something else, which the run would replace.
    """
    output = Path(recipe.output)
    if not output.exists() or (output.is_dir() and not any(output.iterdir())):
        return None
    path = output / MANIFEST
    found = read_json(path) if path.is_file() else {}
    if "recipe" not in found or "data" not in found:
        raise OutputExistsError(
            f"output: {output} holds files that are not of a training run: name a folder for this run alone"
        )
    if not resume:
        return None
    same_data = found["data"].get("sha256") == describe_data(recipe)["sha256"]
    before = with_later_keys(found)["recipe"]
    if before != json.loads(json.dumps(outcome_settings(recipe))) or not same_data:
        raise OutputExistsError(
            f"output: {output} holds a run of another recipe or other data: name another folder, or start "
            "over in its place with --restart"
        )
    return found


def _check_files(recipe: Recipe) -> None:
    """Check the files and packages that a recipe names, before the model is loaded."""
    check_part_files(recipe)
    if recipe.compute.attention == "flash_attention_2" and find_spec("flash_attn") is None:
        raise RequestError(
            "compute.attention is flash_attention_2 but flash-attn is not installed: pip install "
            "'reverse-vlm[flash]', or compute.attention=sdpa"
        )


def load_base(recipe: Recipe) -> tuple[Any, Any, int | None]:
    """Load model and processor; also return the seed of tokens that had to be added."""
    dtype = _DTYPES[recipe.compute.weights]
    options: dict[str, Any] = {}
    quantized = quantization(recipe.tune, recipe.model, dtype)
    if quantized is not None:
        options = {
            "quantization_config": quantized,
            "device_map": {"": int(os.environ.get("LOCAL_RANK", "0"))},
        }
    if not torch.cuda.is_available() or recipe.compute.precision == "float32":
        dtype = torch.float32  # without autocast all weights are of one dtype
    model, processor = load(
        recipe.model,
        dtype=dtype,
        attn_implementation=recipe.compute.attention,
        require_tokens=False,
        **options,
    )
    try:
        find_token_ids(processor.tokenizer)
    except ValueError:
        add_tokens(model, processor, seed=recipe.seed)
        return model, processor, recipe.seed
    return model, processor, None


def _say(recipe: Recipe, line: str) -> None:
    print(f"{Path(recipe.output).name}: {line}", flush=True)


def _check_stops(model: Any, encoder: Encoder) -> None:
    """Check that generation stops at the token that the model learns to end its turns with."""
    known = model.generation_config.eos_token_id
    ends = [] if known is None else [known] if isinstance(known, int) else list(known)
    end = int(encoder.end[0])
    if end not in ends:
        raise RequestError(
            f"the chat template ends a turn with {encoder.end_text!r} (id {end}), and generation stops at "
            f'{ends} only: write "eos_token_id": {[*ends, end]} into the generation_config.json of the model'
        )


def set_pixels(processor: Any, recipe: Recipe) -> None:
    """Set the range of a picture's pixels in the processor, so that decoding uses it too."""
    data, size = recipe.data, dict(processor.image_processor.size)
    if data.min_pixels is None and data.max_pixels is None:
        return
    if "longest_edge" not in size:
        raise RequestError(
            "data.min_pixels and data.max_pixels are for processors that keep a picture's size (Qwen2.5-VL); "
            f"this one makes all pictures {size}: leave them out"
        )
    size["shortest_edge"] = data.min_pixels or size["shortest_edge"]
    size["longest_edge"] = data.max_pixels or size["longest_edge"]
    if size["shortest_edge"] > size["longest_edge"]:
        raise RequestError(
            f"data.min_pixels {size['shortest_edge']} is above data.max_pixels {size['longest_edge']}"
        )
    processor.image_processor.size = type(processor.image_processor.size)(**size)


def pad_to_square(processor: Any) -> None:
    """Pad pictures to squares of the mean colour, as in LLaVA-1.5's training; decoding then does the same."""
    from reverse.models.processors.picture_processors import pil_image_processor

    now = processor.image_processor
    if not hasattr(now, "crop_size") or "shortest_edge" not in now.size:
        raise RequestError(
            "data.pad_to_square is for processors that crop pictures to a square (LLaVA); leave it out"
        )
    names = ("size", "crop_size", "image_mean", "image_std", "resample", "rescale_factor", "do_convert_rgb")
    settings = {name: getattr(now, name) for name in names if getattr(now, name, None) is not None}
    settings = {n: dict(v) if n in ("size", "crop_size") else v for n, v in settings.items()}
    processor.image_processor = pil_image_processor("LlavaImageProcessor", do_pad=True, **settings)


def make_config(recipe: Recipe, quiet: bool) -> SFTConfig:
    optim, compute, full = recipe.optim, recipe.compute, recipe.tune.method == "full"
    return SFTConfig(
        output=recipe.output,
        steps=optim.steps,
        epochs=optim.epochs,
        batch=optim.batch,
        global_batch=optim.global_batch,
        lr=optim.lr,
        projector_lr=optim.projector_lr,
        warmup=optim.warmup,
        schedule=optim.schedule,
        weight_decay=optim.weight_decay,
        beta2=optim.beta2,
        clip=optim.clip,
        confidence_weight=recipe.loss.confidence_weight,
        loss_kernel=recipe.loss.kernel,
        group_by_length=compute.group_by_length,
        packing=compute.packing,
        precision=compute.precision,
        pixels="bfloat16" if torch.cuda.is_available() and compute.precision == "bfloat16" else "float32",
        compile=compute.compile,
        checkpoint_activations=compute.checkpoint_activations,
        parallel=compute.parallel,
        workers=recipe.data.workers,
        log_steps=recipe.log.steps,
        save_steps=recipe.log.save_steps or None,
        save_dtype=compute.save_dtype if full else None,
        report_to=recipe.log.report_to,
        seed=recipe.seed,
        quiet=quiet,
    )


def outcome_settings(recipe: Recipe) -> dict[str, Any]:
    """Return the settings of a recipe that decide its result."""
    settings = as_settings(recipe)
    for name in ("output", "log"):
        del settings[name]
    if recipe.kind == "sft":  # so it was before there were other kinds
        del settings["kind"]
    del settings["data"]["workers"]
    return settings
