"""The stages of a reasoning model: from random weights to one model that solves, judges and corrects.

    init     a tokenizer, random weights, the three tokens
    base     trained on the annotator's captions and rationales, and on pointing
    sample   what the base samples for new questions (`answers.safetensors`)
    one      solve rows (the annotator's), judge rows (own samples, closing tags only), corrections (with true
             targets), replay of true captions
    greedy   own samples with every step verified, replay: the honest baseline, one greedy pass
    truth    the true rationales that corrections have as targets, replay: that baseline with all the truth
    sample2  what `greedy` samples for further questions
    half     the model of `one` in half precision, as it is bundled
    two      `greedy` taught to judge and to correct, as `one` was: what modes add to a self-trained model

A stage that is finished with the same settings is not repeated.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from safetensors.numpy import load_file

from experiments.array_files import join_texts, save_arrays, split_texts
from experiments.reasoning.base_sampling import compute_features, sample_answers
from experiments.reasoning.pool_training import PoolConfig, PoolGroup, PoolPart, train_pools
from experiments.reasoning.reasoning_recipe import REFLECTION, ReasoningRecipe
from experiments.reasoning.reasoning_rows import (
    CAPTION,
    AnsweredPicture,
    MadeRows,
    RowPool,
    RowSource,
    answered_rows,
    base_rows,
    make_rows,
    question_prompts,
    share_rows,
)
from experiments.resident_training import save_rounded
from experiments.scene_models import FRAMES
from experiments.tiny_models import build_tiny_llava, build_tiny_qwen, train_tokenizer
from experiments.uniform_passes import UniformPass
from reverse.data.scenes.reasoning import (
    annotate,
    make_reasoning_picture,
    make_reasoning_questions,
    write_pointing,
    write_reasoning_caption,
)
from reverse.errors import MissingFileError
from reverse.files.atomic_write import atomic_write_dir, write_json
from reverse.files.text_reading import read_json
from reverse.models import load
from reverse.models.devices import default_device
from reverse.models.families import LLAVA, QWEN2_5_VL
from reverse.modes import Refine, Select, SelfCorrect
from reverse.tokens import add_tokens
from reverse.tokens.spans import remove_tags
from reverse.training.checkpoints.saving import versions

__all__ = ["make_group", "run_stage"]

MANIFEST = "stage.json"
TOKENIZER_PICTURES = 1_500

Say = Callable[[str], None]


@dataclass(frozen=True)
class Round:
    """One round of sampling and joint training.

    Args:
        start: stage whose model answers, and is trained further. sample: stage of its answers.
        model: stage of the model that comes out. solve: pool of rows that it learns to solve from.
        first: index of the first picture that questions are asked about.
    """

    start: str
    sample: str
    model: str
    solve: str
    first: int


FIRST = Round("base", "sample", "one", "solve", 1_000_000)
SECOND = Round("greedy", "sample2", "two", "own_tagged", 2_000_000)


def run_stage(stage: str, recipe: ReasoningRecipe, say: Say) -> dict[str, Any]:
    """Run one stage, or return the manifest of an earlier run with the same settings.

    Raises MissingFileError if a stage before it was not run.
    """
    out = Path(recipe.out) / stage
    settings = recipe.settings_of(stage)
    if (out / MANIFEST).is_file():
        found = read_json(out / MANIFEST)
        if found["settings"] == settings:
            say(f"{stage}: finished before, in {out}")
            return found
        out.rename(out.with_name(f"{stage}.old-{int(time.time())}"))
    began = time.monotonic()
    with atomic_write_dir(out) as folder:
        made = _STAGES[stage](recipe, folder, lambda line: say(f"{stage}: {line}"))
        device = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
        manifest = {"settings": settings, "versions": versions(), "device": device, **made}
        manifest["seconds_in_all"] = round(time.monotonic() - began, 1)
        write_json(folder / MANIFEST, manifest)
    say(f"{stage}: {manifest['seconds_in_all']} s, in {out}")
    return manifest


def _run_init(recipe: ReasoningRecipe, folder: Path, say: Say) -> dict[str, Any]:
    family = {"llava": LLAVA, "qwen": QWEN2_5_VL}[recipe.family]
    tokenizer = train_tokenizer(_list_texts(recipe), recipe.vocabulary - 3, style="bytes", family=family)
    build = {"llava": _build_llava, "qwen": _build_qwen}[recipe.family]
    model, processor = build(recipe, tokenizer)
    add_tokens(model, processor, seed=recipe.seed)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    count = sum(parameter.numel() for parameter in model.parameters())
    say(f"{count:,} parameters, {len(processor.tokenizer)} ids")
    return {"parameters": count, "ids": len(processor.tokenizer)}


def _list_texts(recipe: ReasoningRecipe) -> Iterator[str]:
    """What the tokenizer learns from: questions, rationales, captions, and what modes ask."""
    frame = FRAMES[recipe.family]
    asked = [Select().instruction, Refine().instruction, SelfCorrect().instruction, REFLECTION]
    for index in range(TOKENIZER_PICTURES):
        picture = make_reasoning_picture("train", index, recipe.data_seed, recipe.tables)
        yield from frame(CAPTION, write_reasoning_caption(picture))
        yield from frame(*write_pointing(picture, next(iter(picture.truth))))
        for question in make_reasoning_questions(picture)[:3]:
            yield from frame(question.text, annotate(picture, question).text)
        if index % 4 == 0:
            yield from frame(asked[index // 4 % len(asked)], "The answer is right.")


def _build_llava(recipe: ReasoningRecipe, tokenizer: Any) -> tuple[Any, Any]:
    model, processor = build_tiny_llava(
        tokenizer,
        seed=recipe.seed,
        vision=_sizes(recipe, "vision"),
        text=_sizes(recipe, "text"),
        image_size=recipe.side,
        patch_size=recipe.patch,
    )
    model.config.vision_feature_layer = -1
    return model, processor


def _build_qwen(recipe: ReasoningRecipe, tokenizer: Any) -> tuple[Any, Any]:
    layers = recipe.sizes["vision_layers"]
    return build_tiny_qwen(
        tokenizer,
        seed=recipe.seed,
        vision=_sizes(recipe, "vision") | {"fullatt_block_indexes": list(range(1, layers))},
        text=_sizes(recipe, "text") | {"num_key_value_heads": 1},
        image_size=recipe.side,
        patch_size=recipe.patch,
    )


def _sizes(recipe: ReasoningRecipe, part: str) -> dict[str, int]:
    names = {"layers": "num_hidden_layers", "hidden": "hidden_size"}
    names |= {"inner": "intermediate_size", "heads": "num_attention_heads"}
    return {name: recipe.sizes[f"{part}_{short}"] for short, name in names.items()}


def _run_base(recipe: ReasoningRecipe, folder: Path, say: Say) -> dict[str, Any]:
    indices, source = range(recipe.base_pictures), _source(recipe, "init")
    made = _share(recipe, "base", lambda: make_rows(base_rows, indices, source, workers=recipe.workers))
    say(f"{len(made.pictures):,} pictures drawn")
    model, processor, passes = _open(recipe, "init", made)
    group = PoolGroup([PoolPart(made.pools["base"], 4)], recipe.base_batch)
    pictures = torch.from_numpy(made.pictures).to(passes.scale.device)
    config = _config(recipe, "base", recipe.base_steps, recipe.base_lr)
    found = train_pools(passes, [group], config, pictures=pictures, say=say)
    _save(model, processor, folder)
    return found


def _run_sample(recipe: ReasoningRecipe, folder: Path, say: Say, turn: Round) -> dict[str, Any]:
    source = _source(recipe, turn.start)
    indices = range(turn.first, turn.first + recipe.question_pictures)
    jobs = [(index, recipe.questions) for index in indices]
    made = _share(
        recipe, turn.sample, lambda: make_rows(question_prompts, jobs, source, workers=recipe.workers)
    )
    model, processor, passes = _open(recipe, turn.start, made)
    features = compute_features(passes, torch.from_numpy(made.pictures))
    ends = model.generation_config.eos_token_id
    answers = sample_answers(
        passes,
        features,
        made.pools["prompt"],
        {ends} if isinstance(ends, int) else set(ends),
        samples=recipe.samples,
        seed=recipe.seed,
        say=say,
    )
    decode = processor.tokenizer.decode
    told = (decode(ids, skip_special_tokens=True) for each in answers for ids in each)
    texts = [remove_tags(text).strip() for text in told]
    arrays: dict[str, npt.NDArray[Any]] = {
        "texts": join_texts(texts),
        "pictures": made.pools["prompt"].pictures + turn.first,
    }
    save_arrays(arrays, folder / "answers.safetensors")
    return {"answers": len(texts)}


def _share(recipe: ReasoningRecipe, name: str, make: Callable[[], MadeRows]) -> MadeRows:
    """Rows that do not depend on the training seed, from the folder that runs share if there is one."""
    if not recipe.shared:
        return make()
    settings = recipe.settings_of("sample") | {"seed": None}
    digest = hashlib.sha256(json.dumps(settings).encode()).hexdigest()[:12]
    return share_rows(Path(recipe.shared) / f"{name}-{digest}.safetensors", make)


def _read_answers(recipe: ReasoningRecipe, turn: Round) -> list[AnsweredPicture]:
    arrays = load_file(Path(recipe.out) / turn.sample / "answers.safetensors")
    texts = iter(split_texts(arrays["texts"]))
    answered: dict[int, list[tuple[str, ...]]] = {}
    for picture in arrays["pictures"].tolist():
        answered.setdefault(picture, []).append(tuple(islice(texts, recipe.samples)))
    # Whatever the share, the first questions are the same ones.
    verified = int(recipe.truth_share * len(answered) + 0.5)
    return [
        AnsweredPicture(picture, tuple(each), number < verified)
        for number, (picture, each) in enumerate(sorted(answered.items()))
    ]


@cache
def _make_question_rows(recipe: ReasoningRecipe, turn: Round) -> MadeRows:
    """Rows of all pools; later stages of one call share them."""
    answers = _read_answers(recipe, turn)
    return make_rows(answered_rows, answers, _source(recipe, turn.start), workers=recipe.workers)


def _run_joint(recipe: ReasoningRecipe, folder: Path, say: Say, turn: Round) -> dict[str, Any]:
    made = _make_question_rows(recipe, turn)
    pools = made.pools
    short = [
        (turn.solve, recipe.solve_rows, 1.0),
        ("judge", recipe.judge_rows, recipe.judge_weight),
        ("replay", recipe.replay_rows, 1.0),
    ]
    long = [
        ("correction", recipe.correction_rows, 1.0),
        ("select", recipe.select_rows, recipe.select_weight),
        ("reflect_judge", recipe.reflect_judge_rows, recipe.judge_weight),
    ]
    groups = [
        make_group(pools, short, recipe.covered, recipe.short_pictures),
        make_group(pools, long, recipe.covered, recipe.long_pictures),
    ]
    return _train_on_features(recipe, folder, turn, made, groups, say)


def _run_baseline(recipe: ReasoningRecipe, folder: Path, say: Say, stage: str, pool: str) -> dict[str, Any]:
    made = _make_question_rows(recipe, FIRST)
    parts = [(pool, recipe.own_rows, 1.0), ("replay", recipe.replay_rows, 1.0)]
    groups = [make_group(made.pools, parts, recipe.covered, recipe.own_pictures)]
    return _train_on_features(recipe, folder, replace(FIRST, model=stage), made, groups, say)


def make_group(
    pools: Mapping[str, RowPool], parts: Sequence[tuple[str, int, float]], covered: float, pictures: int
) -> PoolGroup:
    """Parts of the pools that have rows, from (name, rows a picture, weight); very long rows are left out."""
    found = []
    for name, rows, weight in parts:
        if name in pools:
            most = int(np.quantile(pools[name].lengths, covered, method="higher"))
            found.append(PoolPart(pools[name].shorten(most), rows, weight))
    return PoolGroup(found, pictures)


def _train_on_features(
    recipe: ReasoningRecipe,
    folder: Path,
    turn: Round,
    made: MadeRows,
    groups: Sequence[PoolGroup],
    say: Say,
) -> dict[str, Any]:
    """Train the round's first model, with a frozen tower, on groups of pools."""
    rows = {name: len(pool) for name, pool in made.pools.items()}
    lengths = {name: pool.ids.shape[1] for name, pool in made.pools.items()}
    say(f"rows {rows}, longest {lengths}")
    model, processor, passes = _open(recipe, turn.start, made)
    features = compute_features(passes, torch.from_numpy(made.pictures))
    passes.freeze_tower()
    config = _config(recipe, turn.model, recipe.joint_steps, recipe.joint_lr)
    found = train_pools(passes, groups, config, features=features, say=say)
    _save(model, processor, folder)
    return {"rows": rows, "longest": lengths, **found}


def _run_half(recipe: ReasoningRecipe, folder: Path, say: Say) -> dict[str, Any]:
    """The model of the first round as it is bundled: in half precision, with what it was trained with."""
    trained = read_json(Path(recipe.out) / FIRST.model / MANIFEST)
    model, processor = load(Path(recipe.out) / FIRST.model, dtype="float32")
    save_rounded(model, processor, folder, "float16")
    base = read_json(Path(recipe.out) / "base" / MANIFEST)
    kept = ("steps", "seconds", "losses")
    write_json(
        folder / "training.json",
        {
            "recipe": trained["settings"] | recipe.sizes,
            "device": trained["device"],
            "versions": trained["versions"],
            "parameters": sum(parameter.numel() for parameter in model.parameters()),
            "base": {name: base[name] for name in kept},
            "joint": {name: trained[name] for name in ("rows", *kept)},
        },
    )
    return {}


def _source(recipe: ReasoningRecipe, stage: str) -> RowSource:
    folder = Path(recipe.out) / stage
    if not (folder / MANIFEST).is_file():
        raise MissingFileError(f"there is no {folder}: run the stage {stage} first")
    return RowSource(str(folder), recipe.data_seed, recipe.side, recipe.tables, recipe.pools)


def _open(recipe: ReasoningRecipe, stage: str, made: MadeRows) -> tuple[Any, Any, UniformPass]:
    model, processor = load(Path(recipe.out) / stage, device=default_device(), dtype="float32")
    torch.manual_seed(recipe.seed)
    return (
        model,
        processor,
        UniformPass(model, processor, side=recipe.side, first=made.first, count=made.count),
    )


def _config(recipe: ReasoningRecipe, stage: str, steps: int, lr: float) -> PoolConfig:
    return PoolConfig(
        checkpoint=str(Path(recipe.out) / f"{stage}.state.safetensors"),
        steps=steps,
        lr=lr,
        weight_decay=recipe.weight_decay,
        beta2=recipe.beta2,
        warmup=recipe.warmup,
        seed=recipe.seed,
        checkpoint_steps=recipe.checkpoint_steps,
        compile=recipe.compile,
    )


def _save(model: Any, processor: Any, folder: Path) -> None:
    model.save_pretrained(folder)
    processor.save_pretrained(folder)


_STAGES: dict[str, Callable[[ReasoningRecipe, Path, Say], dict[str, Any]]] = {
    "init": _run_init,
    "base": _run_base,
    "sample": partial(_run_sample, turn=FIRST),
    "one": partial(_run_joint, turn=FIRST),
    "greedy": lambda recipe, folder, say: _run_baseline(recipe, folder, say, "greedy", "own"),
    "truth": lambda recipe, folder, say: _run_baseline(recipe, folder, say, "truth", "truth"),
    "sample2": partial(_run_sample, turn=SECOND),
    "two": partial(_run_joint, turn=SECOND),
    "half": _run_half,
}
