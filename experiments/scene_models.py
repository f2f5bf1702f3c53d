"""The embedded world's models: a tiny LLaVA or Qwen2.5-VL that sees, the same with the tokens, its twin.

    python -m experiments.scene_models --out out/scenes            # base, tags, twin: ten minutes on one GPU
    python -m experiments.scene_models --out out/smoke --smoke     # the same in seconds; learns nothing

Stages, each written to a folder of its name below `--out`:

    base    a tokenizer and a model from scratch: plain captions by the prejudiced annotator, and questions
    tags    the base with `<SPAN>`, `</CN>`, `</UN>`: positive answers, each with its negative, and hints
    twin    the base again: the same pictures and positive answers as `tags`, as many steps, no tags

Tags come second because a model that does not see yet learns them badly (taught from nothing in the same
time, CHAIRi was 36 % instead of 13 %). A stage that is finished with the same settings is not repeated, and
one that was stopped goes on from its last checkpoint. `twin` takes its number of steps from `tags`.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from experiments.recipe_arguments import read_recipe
from experiments.scene_dataset import SceneDataset
from experiments.tiny_models import build_tiny_llava, build_tiny_qwen, train_tokenizer
from reverse.data.scenes import make_scene, make_scene_records
from reverse.data.scenes.captions import PREJUDICE
from reverse.data.scenes.text_questions import make_text_question
from reverse.files.text_reading import read_json
from reverse.models import load
from reverse.models.families import LLAVA, QWEN2_5_VL
from reverse.tokens import add_tokens, remove_tags
from reverse.training.data.encoding import Encoder
from reverse.training.data.record_turns import turns_of
from reverse.training.sft import MANIFEST, SFTConfig, train

__all__ = ["SceneRecipe", "build_base", "run"]

STAGES = ("base", "tags", "twin")
SECOND_STAGE = 5_000_000  # index of the first picture of `tags` and `twin`: none that the base saw


# At most 2.95M parameters each, so that both models take less than 12 MB in bfloat16.
SIZES = {
    "llava": {
        "vision_layers": 6, "vision_hidden": 160, "vision_inner": 448, "vision_heads": 5,
        "text_layers": 4, "text_hidden": 160, "text_inner": 352, "text_heads": 5,
    },
    "qwen": {
        "vision_layers": 6, "vision_hidden": 160, "vision_inner": 272, "vision_heads": 5,
        "text_layers": 4, "text_hidden": 160, "text_inner": 320, "text_heads": 5,
    },
}  # fmt: skip


@dataclass
class SceneRecipe:
    """Everything that decides what comes out."""

    out: str = "out/scenes"  # folder of the stages' folders
    family: str = "llava"  # or "qwen"
    stages: str = "base,tags,twin"  # which to run, in this order
    base_seconds: float = 265.0  # of training; 0: as long as base_steps take
    tags_seconds: float = 165.0
    base_steps: int = 0  # at most; 0: as many as the seconds allow
    tags_steps: int = 0
    base_batch: int = 256  # pictures a step
    tags_batch: int = 96  # pictures a step, each with a positive and a negative row
    base_lr: float = 1.5e-3
    tags_lr: float = 6e-4
    weight_decay: float = 0.05
    prejudice: float = PREJUDICE  # share of captions that name an absent object
    hint_share: float = 0.2  # of the pictures of `tags`, see SceneDataset
    hinted_prejudice: float = 0.0  # `prejudice` of those pictures, in `tags` and `twin`
    answers: int = 1  # positive answers a picture
    caption_share: float = 0.8  # of the answers are captions
    several_share: float = 0.1  # of the items are conversations of two or three turns
    text_share: float = 0.03  # of the items are about no picture
    vision_layers: int = 0  # sizes, 0: the family's, see SIZES
    vision_hidden: int = 0
    vision_inner: int = 0
    vision_heads: int = 0
    text_layers: int = 0
    text_hidden: int = 0
    text_inner: int = 0
    text_heads: int = 0
    side: int = 112  # pixels of a picture
    patch: int = 8  # pixels of a patch: 196 ids a picture, 49 where four patches are merged
    vocabulary: int = 640  # ids, the three tokens included
    tokenizer_scenes: int = 2000  # whose text the tokenizer is learnt from
    workers: int = -1  # -1: all processors but two, sixteen at most
    log_steps: int = 50
    save_steps: int = 1000  # steps between checkpoints; 0: none
    compile: bool = False  # torch.compile
    seed: int = 0

    def __post_init__(self) -> None:
        if self.family not in SIZES:
            raise ValueError(f"family must be one of {', '.join(SIZES)}, got {self.family!r}")
        for name, size in SIZES[self.family].items():
            setattr(self, name, getattr(self, name) or size)

    def smoke(self) -> SceneRecipe:
        """The same recipe in miniature: a few steps of a model that learns nothing."""
        return replace(
            self, base_seconds=0.0, tags_seconds=0.0,
            base_steps=self.base_steps or 6, tags_steps=self.tags_steps or 4, base_batch=4, tags_batch=2,
            vision_layers=1, vision_hidden=32, vision_inner=32, vision_heads=2,
            text_layers=1, text_hidden=32, text_inner=32, text_heads=2,
            patch=16, vocabulary=400, tokenizer_scenes=50, workers=0, log_steps=2, save_steps=0,
        )  # fmt: skip


def run(recipe: SceneRecipe, quiet: bool = False) -> dict[str, dict[str, Any]]:
    """Run the recipe's stages; the manifest of each, by its name.

    Raises:
        ValueError: an unknown stage, or a bound missing on both seconds and steps.
        FileNotFoundError: `tags` or `twin` without a base.
    """
    wanted = recipe.stages.split(",")
    unknown = set(wanted) - set(STAGES)
    if unknown:
        raise ValueError(f"unknown stages {', '.join(sorted(unknown))}: there are {', '.join(STAGES)}")
    manifests = {}
    for stage in STAGES:
        if stage in wanted:
            manifests[stage] = _run_stage(stage, recipe, quiet)
    return manifests


def build_base(recipe: SceneRecipe, tokenizer: Any = None) -> tuple[Any, Any]:
    """A tiny model of the recipe's family with random weights, and its processor.

    `tokenizer`: a byte-level one, by default learnt from the text of scenes.
    """
    tokenizer = tokenizer or build_tokenizer(recipe)
    return _BUILDERS[recipe.family](recipe, tokenizer)


def build_tokenizer(recipe: SceneRecipe) -> Any:
    """A byte-level tokenizer with the family's special tokens, learnt from the text of scenes."""
    return train_tokenizer(
        _texts(recipe), recipe.vocabulary - 3, style="bytes", family=FAMILIES[recipe.family]
    )


def _build_llava(recipe: SceneRecipe, tokenizer: Any) -> tuple[Any, Any]:
    model, processor = build_tiny_llava(
        tokenizer,
        seed=recipe.seed,
        vision=_sizes(recipe, "vision"),
        text=_sizes(recipe, "text"),
        image_size=recipe.side,
        patch_size=recipe.patch,
    )
    # Features are the tower's last layer: LLaVA-1.5 takes the last but one, of a tower that was trained for
    # something else; here nothing would train the last.
    model.config.vision_feature_layer = -1
    return model, processor


def _build_qwen(recipe: SceneRecipe, tokenizer: Any) -> tuple[Any, Any]:
    # The first layer attends within windows, the others over the whole picture: it has 49 ids.
    whole = list(range(1, recipe.vision_layers)) or [0]
    return build_tiny_qwen(
        tokenizer,
        seed=recipe.seed,
        vision=_sizes(recipe, "vision") | {"fullatt_block_indexes": whole},
        text=_sizes(recipe, "text") | {"num_key_value_heads": 1},
        image_size=recipe.side,
        patch_size=recipe.patch,
    )


FAMILIES = {"llava": LLAVA, "qwen": QWEN2_5_VL}
_BUILDERS = {"llava": _build_llava, "qwen": _build_qwen}


def _run_stage(stage: str, recipe: SceneRecipe, quiet: bool) -> dict[str, Any]:
    out = Path(recipe.out)
    output = out / stage
    settings = _settings(stage, recipe)
    finished = _finished(output, settings)
    if finished is not None:
        _say(quiet, f"{stage}: finished before, in {output}")
        return finished
    if stage == "base":
        model, processor = build_base(recipe)
    else:
        if not (out / "base" / MANIFEST).is_file():
            raise FileNotFoundError(f"no trained base in {out / 'base'}: run the stage base first")
        model, processor = load(out / "base", require_tokens=False)
    if stage == "tags":
        add_tokens(model, processor, seed=recipe.seed)
    model.train()
    dataset = _dataset(stage, recipe, Encoder(processor))
    config = _config(stage, recipe, output, quiet)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    _say(quiet, f"{stage}: {parameters:,} parameters, {config.batch} pictures a step")
    manifest = train(model, processor, dataset, config, notes={"recipe": settings})
    steps, seconds, loss = manifest["steps"], manifest["seconds"], manifest["final_loss"]
    _say(quiet, f"{stage}: {steps} steps in {seconds:.0f} s, loss {loss}, written to {output}")
    return manifest


def _dataset(stage: str, recipe: SceneRecipe, encoder: Encoder) -> SceneDataset:
    return SceneDataset(
        encoder,
        start=0 if stage == "base" else SECOND_STAGE,
        seed=recipe.seed,
        side=recipe.side,
        **dataset_settings(recipe, stage),
    )


def dataset_settings(recipe: SceneRecipe, stage: str) -> dict[str, Any]:
    """The settings of `SceneDataset` that a stage sees scenes with."""
    return {
        "tagged": stage == "tags",
        "negatives": stage == "tags",
        "prejudice": recipe.prejudice,
        "answers": recipe.answers,
        "caption_share": recipe.caption_share,
        # The twin carries no hints, but sees the annotator where `tags` does.
        "hint_share": 0.0 if stage == "base" else recipe.hint_share,
        "hinted_prejudice": recipe.hinted_prejudice,
        "several_share": recipe.several_share,
        "text_share": recipe.text_share,
    }


def _config(stage: str, recipe: SceneRecipe, output: Path, quiet: bool) -> SFTConfig:
    base = stage == "base"
    seconds, steps = _bounds(stage, recipe, output)
    processors = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    workers = recipe.workers if recipe.workers >= 0 else max(1, min(16, processors - 2))
    return SFTConfig(
        output=str(output),
        seconds=seconds,
        steps=steps,
        batch=recipe.base_batch if base else recipe.tags_batch,
        lr=recipe.base_lr if base else recipe.tags_lr,
        weight_decay=recipe.weight_decay,
        shuffle=False,  # scenes have no order, and so the twin meets the same ones
        compile=recipe.compile,
        workers=workers,
        log_steps=recipe.log_steps,
        save_steps=recipe.save_steps or None,
        save_dtype=None if base else "bfloat16",
        seed=recipe.seed,
        quiet=quiet,
    )


def _bounds(stage: str, recipe: SceneRecipe, output: Path) -> tuple[float | None, int | None]:
    """(seconds, steps). The twin does what `tags` did, where `tags` is there to be asked."""
    tags = output.with_name("tags") / MANIFEST
    if stage == "twin" and tags.is_file():
        return None, int(read_json(tags)["steps"])
    if stage == "base":
        seconds, steps = recipe.base_seconds, recipe.base_steps
    else:
        seconds, steps = recipe.tags_seconds, recipe.tags_steps
    if not seconds and not steps:
        raise ValueError(f"{stage} has neither seconds nor steps: give one")
    return seconds or None, steps or None


def _settings(stage: str, recipe: SceneRecipe) -> dict[str, Any]:
    """What the outcome of a stage depends on; not where it runs."""
    elsewhere = {"out", "stages", "workers", "log_steps", "save_steps", "compile"}
    settings = {name: value for name, value in asdict(recipe).items() if name not in elsewhere}
    if stage == "base":
        later = ("tags_", "hint_")
        settings = {name: value for name, value in settings.items() if not name.startswith(later)}
    return settings


def _finished(output: Path, settings: dict[str, Any]) -> dict[str, Any] | None:
    manifest = output / MANIFEST
    if not manifest.is_file():
        return None
    found = read_json(manifest)
    return found if found.get("recipe") == settings else None


def _texts(recipe: SceneRecipe) -> Iterator[str]:
    """Questions and answers of scenes, with the template's and the hints' own words as often as they come."""
    for index in range(recipe.tokenizer_scenes):
        if index % 10 == 0:
            asked = make_text_question(index)
            yield from FRAMES[recipe.family](asked.question, remove_tags(asked.answer))
        for record in make_scene_records(
            make_scene("train", index, recipe.seed, recipe.side), negatives=False
        ):
            wrong = record["conversations"][1]["hint"]
            hint = f" (Hint: potential incorrect phrases -> {wrong}, {wrong})" if index % 5 == 0 else ""
            turn = turns_of(record)[0]
            yield from FRAMES[recipe.family](f"{turn.question}{hint}", remove_tags(turn.answer))


def _llava_frame(question: str, answer: str) -> tuple[str, ...]:
    return f"USER: \n{question} ASSISTANT:", f" {answer}"


def _qwen_frame(question: str, answer: str) -> tuple[str, ...]:
    return "system\nYou are a helpful assistant.", f"user\n{question}", "assistant\n", answer


FRAMES = {"llava": _llava_frame, "qwen": _qwen_frame}


def _sizes(recipe: SceneRecipe, part: str) -> dict[str, int]:
    names = {
        "layers": "num_hidden_layers",
        "hidden": "hidden_size",
        "inner": "intermediate_size",
        "heads": "num_attention_heads",
    }
    return {name: getattr(recipe, f"{part}_{short}") for short, name in names.items()}


def _say(quiet: bool, line: str) -> None:
    if not quiet:
        print(line, flush=True)


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point of `python -m experiments.scene_models`."""
    run(read_recipe(SceneRecipe, "python -m experiments.scene_models", __doc__, arguments))


if __name__ == "__main__":
    main()
