"""One cell of a grid of trainings: a tagged model and its plain twin, side by side, from a base of their own
or one that several cells share.

A base is a process, a cell one or two. The leader trains the tagged model; the follower trains the twin in
step with it, so that both take the same number of steps of the same pictures. Both compile their step while
the base is still being trained, and take its weights when they are there. Ends are moments of the clock
that all cells share: who starts late trains less and ends with the others.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from experiments.scene_models import SceneRecipe, build_base, build_tokenizer, dataset_settings
from experiments.scene_packs import RowSettings

__all__ = [
    "VARIANTS",
    "Cell",
    "Variant",
    "prepare_processors",
    "row_settings_of",
    "train_base",
    "train_leader",
    "train_twin",
]


@dataclass(frozen=True)
class Variant:
    """What an ablation changes of the second stage."""

    recipe: Mapping[str, Any] = field(default_factory=dict)  # fields of SceneRecipe
    dataset: Mapping[str, Any] = field(default_factory=dict)  # settings of SceneDataset, of the tagged model
    negative_share: float = 1.0
    frozen_rows: bool = False
    init: str = "mean"  # of the three tokens' rows: "mean", or "random" as a plain resize leaves them


VARIANTS: dict[str, Variant] = {
    "main": Variant(),
    "rows_frozen_random": Variant(frozen_rows=True, init="random"),
    "rows_trained_random": Variant(init="random"),
    "negatives_0.5": Variant(negative_share=0.5),
    "negatives_0.2": Variant(negative_share=0.2),
    "hints_0": Variant(dataset={"write_hints": False}),  # the same answers, no hint before them
    "hints_0.5": Variant(recipe={"hint_share": 0.5}),
    "hints_prejudiced": Variant(recipe={"hinted_prejudice": 0.6}),  # after a hint the annotator errs as ever
}


@dataclass(frozen=True)
class Cell:
    """One training, and where and how long."""

    family: str
    seed: int
    variant: str
    work: str  # folder of everything that may be lost
    shards: tuple[
        tuple[str, ...], tuple[str, ...]
    ]  # of the base and of the second stage, in this cell's order
    device: str
    twin_device: str
    base_until: float  # moments of time.time()
    until: float
    recipe: SceneRecipe
    base_seed: int  # of the base that it starts from
    twin: bool = True
    jitter: float = 0.5  # share of pictures, see experiments.resident_training
    steps: int = 0  # of either stage, for rehearsals; 0: as many as time allows

    @property
    def name(self) -> str:
        return f"{self.family}-{self.seed}-{self.variant}"

    @property
    def base(self) -> Path:
        return Path(self.work) / f"base-{self.family}-{self.base_seed}"

    def folder(self, stage: str) -> Path:
        return Path(self.work) / self.name / stage


def prepare_processors(work: str | Path, recipes: Mapping[str, SceneRecipe]) -> None:
    """Write each family's processor without and with the three tokens, `processor-FAMILY[-tags]`."""
    from reverse.tokens import add_tokens

    for family, recipe in recipes.items():
        folder = Path(work) / f"processor-{family}"
        tokenizer = build_tokenizer(recipe)
        small = replace(recipe, vision_layers=1, text_layers=1)
        model, processor = build_base(small, tokenizer)
        for target in (folder, folder.with_name(f"{folder.name}-tags")):
            if target != folder:
                add_tokens(model, processor)
            processor.save_pretrained(target)
            model.config.save_pretrained(target)


def row_settings_of(
    work: str | Path, variants: Sequence[str], recipes: Mapping[str, SceneRecipe]
) -> tuple[dict[str, RowSettings], dict[str, RowSettings]]:
    """What is drawn for the base and for the second stage, named FAMILY.STAGE or FAMILY.VARIANT."""
    base, second = {}, {}
    for family, recipe in recipes.items():
        plain, tagged = (str(Path(work) / f"processor-{family}{end}") for end in ("", "-tags"))
        base[f"{family}.base"] = RowSettings(plain, dataset_settings(recipe, "base"))
        second[f"{family}.twin"] = RowSettings(plain, dataset_settings(recipe, "twin"))
        for variant in variants:
            changed = VARIANTS[variant]
            settings = dataset_settings(replace(recipe, **changed.recipe), "tags") | dict(changed.dataset)
            second[f"{family}.{_rows_name(variant)}"] = RowSettings(tagged, settings)
    return base, second


def _rows_name(variant: str) -> str:
    """Variants that see the same rows share them."""
    return variant if VARIANTS[variant].recipe or VARIANTS[variant].dataset else "main"


def train_base(cell: Cell) -> None:
    """Train the base that the cell starts from and write it to `cell.base`."""
    _quiet(cell.device)
    recipe = replace(cell.recipe, seed=cell.base_seed)
    model, processor = _untrained(cell, recipe)
    _train(cell, "base", model.to(cell.device), processor, recipe)


def train_leader(cell: Cell, barrier: Any, stop: Any) -> None:
    """Train the tagged model from the base, which may still be in the making."""
    _quiet(cell.device)
    from reverse.tokens import add_tokens

    recipe = replace(cell.recipe, seed=cell.seed)
    model, processor = _untrained(cell, recipe)
    add_tokens(model, processor)

    def take_base(model: Any) -> None:
        base, its_processor = _await_base(cell)
        ids = add_tokens(base, its_processor, seed=cell.seed)
        if VARIANTS[cell.variant].init == "random":
            _randomise(base, list(ids), cell.seed)
        model.load_state_dict(base.state_dict())

    barrier = _make_barrier(barrier, stop, leads=True)
    _train(cell, "tags", model.to(cell.device), processor, recipe, barrier, take_base)


def train_twin(cell: Cell, barrier: Any, stop: Any) -> None:
    """Train the plain twin from the base, in step with the leader."""
    _quiet(cell.twin_device)
    recipe = replace(cell.recipe, seed=cell.seed)
    model, processor = _untrained(cell, recipe)

    def take_base(model: Any) -> None:
        model.load_state_dict(_await_base(cell)[0].state_dict())

    barrier = _make_barrier(barrier, stop, leads=False)
    _train(cell, "twin", model.to(cell.twin_device), processor, recipe, barrier, take_base)


def _await_base(cell: Cell) -> tuple[Any, Any]:
    """The base and its processor, on the CPU."""
    from reverse.models import load

    end = max(cell.base_until, time.time()) + 120
    while not cell.base.exists():
        if time.time() > end:
            raise TimeoutError(f"no base in {cell.base}: did its training fail?")
        time.sleep(0.1)
    return load(cell.base, device="cpu", require_tokens=False, dtype="float32")


def _make_barrier(barrier: Any, stop: Any, leads: bool) -> Any:
    from experiments.resident_training import StepBarrier

    return None if barrier is None else StepBarrier(barrier, stop, leads)


def _train(
    cell: Cell,
    stage: str,
    model: Any,
    processor: Any,
    recipe: SceneRecipe,
    barrier: Any = None,
    late: Callable[[Any], None] | None = None,
) -> None:
    from experiments.resident_training import ResidentConfig, train_resident

    base = stage == "base"
    variant = VARIANTS[cell.variant] if stage == "tags" else Variant()
    rows_name = {"base": "base", "twin": "twin"}.get(stage, _rows_name(cell.variant))
    config = ResidentConfig(
        output=str(cell.base if base else cell.folder(stage)),
        rows=f"{cell.family}.{rows_name}",
        # The follower ends when the leader does.
        until=None if cell.steps else cell.base_until if base else cell.until,
        steps=cell.steps or None,
        batch=recipe.base_batch if base else recipe.tags_batch,
        lr=recipe.base_lr if base else recipe.tags_lr,
        weight_decay=recipe.weight_decay,
        negative_share=variant.negative_share,
        jitter=cell.jitter,
        frozen_rows=variant.frozen_rows,
        save_dtype="bfloat16",
        compile=cell.recipe.compile,
        seed=recipe.seed,
    )
    Path(config.output).parent.mkdir(parents=True, exist_ok=True)
    notes = {"recipe": json.loads(json.dumps(recipe.__dict__)), "variant": cell.variant}
    shards = cell.shards[0 if base else 1]
    train_resident(
        model, processor, shards, config, notes=notes, barrier=barrier, late=late,
        say=lambda line: print(f"{cell.name} {line}", flush=True),
    )  # fmt: skip


def _untrained(cell: Cell, recipe: SceneRecipe) -> tuple[Any, Any]:
    """A model with random weights and no tags, with the tokenizer that the packs were written with."""
    from transformers import AutoTokenizer

    folder = Path(cell.work) / f"processor-{cell.family}"
    return build_base(recipe, AutoTokenizer.from_pretrained(folder, trust_remote_code=False))


def _randomise(model: Any, ids: list[int], seed: int) -> None:
    """Rows as a plain `resize_token_embeddings` leaves them: normal, with the model's own spread."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    spread = getattr(model.config.get_text_config(), "initializer_range", 0.02)
    weights = [model.get_input_embeddings().weight]
    if model.get_output_embeddings().weight is not weights[0]:
        weights.append(model.get_output_embeddings().weight)
    for weight in weights:
        weight.data[ids] = spread * torch.randn(len(ids), weight.shape[1], generator=generator)


def _quiet(device: str) -> None:
    """One thread a process, and no bars: many such processes share a machine."""
    import torch
    from transformers.utils import logging

    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    torch.set_num_threads(1)
    if device != "cpu":
        torch.cuda.set_device(device)
    torch.backends.cuda.matmul.allow_tf32 = True
    logging.disable_progress_bar()
