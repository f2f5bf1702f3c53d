"""Teach a captioner of scenes to judge what it says itself, without changing what it says.

    python -m experiments.caption_judge --model tiny-llava --out out/judge-llava --compile --workers 14
    python -m experiments.scenes_comparison --tagged out/judge-llava --twin TWIN --split shift --out out/eval

The published training shows the model wrong phrases that somebody else wrote. Here it writes captions of new
pictures, at temperature 1; each phrase is compared with the truth; and only the closing tags are trained
(`targets` "closing"). The annotator's answers are replayed without their closing tags (`"content"`), so the
model says what it said before.
"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch

from experiments.reasoning.base_sampling import compute_features, sample_answers
from experiments.reasoning.pool_training import PoolConfig, PoolGroup, PoolPart, train_pools
from experiments.reasoning.reasoning_rows import Array, MadeRows, find_first, join_rows, load_encoder
from experiments.recipe_arguments import read_recipe
from experiments.scene_dataset import SceneDataset, ScenePictures
from experiments.uniform_passes import UniformPass
from reverse.data.scenes import Scene, find_objects, make_scene, render_scene
from reverse.files.atomic_write import atomic_write_dir, write_json
from reverse.models import load
from reverse.models.devices import default_device
from reverse.tokens import find_token_ids
from reverse.tokens.spans import CN, UN, add_tags, parse_tags
from reverse.training.checkpoints.saving import versions
from reverse.training.data.encoding import Encoder, Turn
from reverse.training.data.labels import IGNORE
from reverse.training.data.training_hints import choose_hints

__all__ = ["JudgeRecipe", "label_caption", "teach"]

PROMPT = "Describe this image."
CHUNK = 256


@dataclass(frozen=True)
class JudgeRecipe:
    """Everything that decides what comes out."""

    model: str = "tiny-llava"  # a tagged checkpoint
    out: str = "out/judge"  # folder that is written
    pictures: int = 100_000
    first: int = 8_000_000  # index of the first picture
    samples: int = 2  # captions a picture
    steps: int = 3_000
    lr: float = 3e-4
    step_pictures: int = 80
    judge_rows: int = 2  # a picture in a step
    replay_rows: int = 2
    judge_weight: float = 4.0
    hint_share: float = 0.2  # of the rows name suspect phrases, as at test time after a rejection
    seed: int = 0
    side: int = 112
    workers: int = 0  # 0: in this process
    compile: bool = False


def label_caption(scene: Scene, tagged: str) -> tuple[str, list[str]]:
    """A tagged caption with the true closing tags, and its wrong phrases.

    A phrase is wrong if it names an object that the scene does not hold; one without objects is right.
    """
    found = parse_tags(tagged)
    judged, wrong = [], []
    for phrase in found.phrases:
        is_wrong = any(mention.name not in scene.truth for mention in find_objects(phrase.text))
        wrong += [phrase.text.strip()] if is_wrong else []
        judged.append(replace(phrase, confident=not is_wrong))
    return add_tags(found.text, judged), wrong


def teach(recipe: JudgeRecipe, say: Callable[[str], None] = print) -> dict[str, Any]:
    """Sample, verify, train and write the model; the manifest. Raises OutputExistsError."""
    model, processor = load(recipe.model, device=default_device(), dtype="float32")
    with atomic_write_dir(Path(recipe.out)) as folder:
        checkpoint = folder / "processor"
        model.config.save_pretrained(checkpoint)
        processor.save_pretrained(checkpoint)
        made = _make_rows(recipe, str(checkpoint), [()] * recipe.pictures)
        passes = UniformPass(model, processor, side=recipe.side, first=made.first, count=made.count)
        features = compute_features(passes, torch.from_numpy(made.pictures))
        captions = _sample(recipe, model, processor, passes, features, made, say)
        made = _make_rows(recipe, str(checkpoint), captions)
        say(", ".join(f"{len(pool):,} rows of {name}" for name, pool in made.pools.items()))
        for module in (passes.family.vision_tower(model), passes.family.image_projector(model)):
            for parameter in module.parameters():
                parameter.requires_grad_(False)
        parts = [
            PoolPart(made.pools["judge"], recipe.judge_rows, recipe.judge_weight),
            PoolPart(made.pools["replay"], recipe.replay_rows),
        ]
        group = PoolGroup(parts, recipe.step_pictures)
        config = PoolConfig(
            f"{recipe.out}.state.safetensors",
            recipe.steps,
            recipe.lr,
            seed=recipe.seed,
            checkpoint_steps=1000,
            compile=recipe.compile,
        )
        manifest = train_pools(passes, [group], config, features=features, say=say)
        model.to(torch.bfloat16).save_pretrained(folder)
        processor.save_pretrained(folder)
        for path in checkpoint.iterdir():
            path.unlink()
        checkpoint.rmdir()
        manifest |= {"recipe": asdict(recipe), "versions": versions()}
        write_json(folder / "training.json", manifest)
    return manifest


def _sample(
    recipe: JudgeRecipe,
    model: Any,
    processor: Any,
    passes: UniformPass,
    features: torch.Tensor,
    made: MadeRows,
    say: Callable[[str], None],
) -> list[tuple[str, ...]]:
    """Tagged captions of each picture, every phrase closed by `</CN>`."""
    ids, ends = find_token_ids(processor.tokenizer), model.generation_config.eos_token_id
    said = sample_answers(
        passes,
        features,
        made.pools["prompt"],
        {ends} if isinstance(ends, int) else set(ends),
        samples=recipe.samples,
        merged=(ids.cn, ids.un),
        seed=recipe.seed,
        say=say,
    )
    decode = processor.tokenizer.decode
    return [tuple(decode(answer).strip() for answer in answers) for answers in said]


def _make_rows(recipe: JudgeRecipe, checkpoint: str, captions: Sequence[tuple[str, ...]]) -> MadeRows:
    """Pictures and rows; without captions only prompts are made."""
    starts = range(0, len(captions), CHUNK)
    jobs = [(recipe, checkpoint, at, captions[at : at + CHUNK]) for at in starts]
    if recipe.workers:
        with ProcessPoolExecutor(recipe.workers, mp_context=get_context("spawn")) as pool:
            chunks = list(pool.map(_make_chunk, *zip(*jobs, strict=True)))
    else:
        chunks = [_make_chunk(*job) for job in jobs]
    rows: dict[str, list[tuple[Array, Array, int]]] = defaultdict(list)
    for _, found in chunks:
        for name, made in found.items():
            rows[name] += made
    encoder = load_encoder(checkpoint)
    pools = {name: join_rows(made) for name, made in rows.items()}
    pictures = np.concatenate([drawn for drawn, _ in chunks])
    return MadeRows(
        pictures, pools, find_first(pools.values(), encoder.image_id), _count_ids(encoder, recipe)
    )


def _make_chunk(
    recipe: JudgeRecipe, checkpoint: str, start: int, captions: Sequence[tuple[str, ...]]
) -> tuple[Array, dict[str, list[tuple[Array, Array, int]]]]:
    encoder = load_encoder(checkpoint)
    replay = SceneDataset(encoder, seed=recipe.seed, side=recipe.side, negatives=False)
    tokens = _count_ids(encoder, recipe)
    rows: dict[str, list[tuple[Array, Array, int]]] = defaultdict(list)
    drawn = np.empty((len(captions), recipe.side, recipe.side, 3), np.uint8)
    for at, said in enumerate(captions):
        number = start + at
        scene = make_scene("train", recipe.first + number, recipe.seed, recipe.side)
        drawn[at] = render_scene(scene)
        if not said:
            row = encoder.row([Turn(PROMPT, "x")], tokens)
            begin = int((row.labels != IGNORE).argmax())
            rows["prompt"].append(
                (row.ids[:begin].astype(np.int16), row.labels[:begin].astype(np.int16), number)
            )
            continue
        turns = [("judge", [turn]) for turn in _judge_turns(recipe, scene, said)]
        turns += [("replay", [replace(turn, targets="content")]) for turn in replay.turns(scene)]
        for pool, conversation in turns:
            row = encoder.row(conversation, tokens)
            rows[pool].append((row.ids.astype(np.int16), row.labels.astype(np.int16), number))
    return drawn, rows


def _judge_turns(recipe: JudgeRecipe, scene: Scene, captions: Sequence[str]) -> Iterator[Turn]:
    """Distinct captions with their true closing tags; some with hints, which may be right or wrong."""
    rng = random.Random(f"{recipe.seed} judge {scene.index}")
    labelled = [label_caption(scene, caption) for caption in dict.fromkeys(captions)]
    wrong = [phrase for _, phrases in labelled for phrase in phrases]
    for text, own in labelled:
        if CN not in text and UN not in text:
            continue
        hints: tuple[str, ...] = ()
        if wrong and rng.random() < recipe.hint_share:
            hints = choose_hints(rng, text, own=own or wrong[:1], pool=wrong)
        yield Turn(PROMPT, text, hints=hints, targets="closing")


def _count_ids(encoder: Encoder, recipe: JudgeRecipe) -> int:
    return ScenePictures(encoder.processor)(np.zeros((recipe.side, recipe.side, 3), np.uint8))[1]


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point of `python -m experiments.caption_judge`."""
    teach(read_recipe(JudgeRecipe, "python -m experiments.caption_judge", __doc__, arguments))


if __name__ == "__main__":
    main()
