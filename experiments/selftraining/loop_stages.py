"""The stages of the experiment: sample, train, measure; one that is finished with the same settings is kept.

sample-1               samples of the start, which all systems share
SYSTEM-1               the start, trained on what is right among them
SYSTEM-sample-2        samples of that model
SYSTEM-2               the start again, trained on all samples so far
measure/NAME.json      what a model answers on the test split
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterator
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from safetensors.numpy import load_file
from torch import Tensor

from experiments.array_files import join_texts, save_arrays, split_texts
from experiments.reasoning.base_sampling import compute_features
from experiments.reasoning.pool_training import PoolConfig, train_pools
from experiments.reasoning.reasoning_rows import RowSource, make_rows, question_prompts
from experiments.reasoning.reasoning_stages import make_group
from experiments.selftraining.gated_answers import measure_gate
from experiments.selftraining.loop_rows import PooledPicture, Texts, pooled_rows
from experiments.selftraining.loop_settings import SYSTEMS, LoopSettings
from experiments.selftraining.resident_answers import ResidentModel, draw_test_pictures, measure_modes
from experiments.uniform_passes import UniformPass
from reverse.errors import DataError
from reverse.evaluation.runs.environment import describe_environment
from reverse.files.atomic_write import atomic_write_dir, write_json
from reverse.files.text_reading import read_json
from reverse.models import load
from reverse.models.checkpoints.loading import find_checkpoint
from reverse.models.devices import default_device

__all__ = ["FIRST_PICTURE", "SelfTraining"]

FIRST_PICTURE = 3_000_000  # of those that are trained on
MANIFEST, ANSWERS = "stage.json", "answers.safetensors"
COVERED = 0.99  # share of the rows of a kind that are short enough to be trained


class SelfTraining:
    """The stages of one seed; everything is made from the settings' start.

    Args:
        say: called with a line of progress.
    """

    def __init__(self, settings: LoopSettings, say: Callable[[str], None]):
        self.settings, self.say, self.out = settings, say, Path(settings.out)
        self.start = Path(find_checkpoint(settings.start)[0])
        self.source = RowSource(str(self.start), settings.data_seed, settings.side, settings.tables)
        indices = range(FIRST_PICTURE, FIRST_PICTURE + settings.pictures)
        self.prompts = make_rows(
            question_prompts,
            [(index, settings.questions) for index in indices],
            self.source,
            workers=settings.workers,
        )
        self._features: Tensor | None = None
        self._test_features: Tensor | None = None

    def run(self) -> None:
        """Run all systems."""
        self._measure("start", self.start, ("select", "refine", "self_correct", "reflect"))
        for name in self.settings.systems.split(","):
            self._run_system(name)
        for name in filter(None, self.settings.gated.split(",")):
            self._measure_gate(name)

    def _run_system(self, name: str) -> None:
        system, pools = SYSTEMS[name], [self._sample("sample-1", self.start)]
        for number in self.settings.count(name):
            if number > 1:
                pools.append(self._sample(f"{name}-sample-{number}", self.out / f"{name}-{number - 1}"))
            self._train(f"{name}-{number}", name, pools)
            self._measure(f"{name}-{number}", self.out / f"{name}-{number}", system.modes)

    # ------------------------------------------------------------------ stages
    def _sample(self, stage: str, checkpoint: Path) -> Path:
        """Sample answers of a checkpoint to all questions that are trained on; the file of the texts."""

        def work(folder: Path) -> dict[str, Any]:
            model = self._open_model(checkpoint)
            answers = model.sample(
                self._compute_features(model.passes), self.prompts.pools["prompt"],
                self.settings.samples, seed=self.settings.seed, say=partial(self._tell, stage),
            )  # fmt: skip
            texts = [text for each in answers for text in each.texts]
            save_arrays({"texts": join_texts(texts)}, folder / ANSWERS)
            return {"tokens": sum(each.tokens for each in answers)}

        self._make(stage, work)
        return self.out / stage / ANSWERS

    def _train(self, stage: str, name: str, pools: list[Path]) -> None:
        """Train the start on the rows of a system."""
        system, settings = SYSTEMS[name], self.settings

        def work(folder: Path) -> dict[str, Any]:
            kinds = tuple(kind for kind, _ in (*system.short, *system.long))
            tagged = not settings.untagged
            make = partial(pooled_rows, kinds=kinds, verify=settings.verify, tagged=tagged)
            jobs = list(self._join_pools(pools))
            made = make_rows(make, jobs, self.source, workers=settings.workers, draws=False)
            if not made.pools:
                raise DataError(f"{stage}: no sample is right, so there is nothing to train on: sample more")
            rows = {kind: len(pool) for kind, pool in made.pools.items()}
            self._tell(stage, f"rows {rows}")
            model, processor, passes = self._open(self.start)
            features = self._compute_features(passes)
            passes.freeze_tower()
            groups = [
                make_group(made.pools, [(*part, 1.0) for part in parts], COVERED, settings.batch_pictures)
                for parts in (system.short, system.long)
                if any(kind in made.pools for kind, _ in parts)
            ]
            steps = round(settings.steps * system.step_factor)
            config = PoolConfig(
                str(self.out / f"{stage}.state.safetensors"), steps, settings.lr,
                settings.weight_decay, warmup=settings.warmup, seed=settings.seed, compile=settings.compile,
            )  # fmt: skip
            trained = train_pools(passes, groups, config, features=features, say=partial(self._tell, stage))
            model.save_pretrained(folder)
            processor.save_pretrained(folder)
            return {"rows": rows, "steps": trained["steps"], "seconds_training": trained["seconds"]}

        self._make(stage, work)

    def _make(self, stage: str, work: Callable[[Path], dict[str, Any]]) -> None:
        """Run one stage unless it is finished with the same settings."""
        path, settings = self.out / stage, self.settings.settings_of(stage)
        if (path / MANIFEST).is_file():
            if read_json(path / MANIFEST)["settings"] == settings:
                return
            path.rename(path.with_name(f"{stage}.old-{int(time.time())}"))
        began = time.monotonic()
        with atomic_write_dir(path) as folder:
            found = {"settings": settings, **work(folder)}
            found["seconds"] = round(time.monotonic() - began, 1)
            write_json(folder / MANIFEST, found | describe_environment(default_device()))
        self._tell(stage, f"{found['seconds']} s")

    def _measure(self, stage: str, checkpoint: Path, modes: tuple[str, ...]) -> None:
        """Answer the test split with a model."""

        def work() -> dict[str, Any]:
            model = self._open_model(checkpoint)
            features = self._compute_test_features(model.passes)
            say = partial(self._tell, f"measure {stage}")
            return measure_modes(model, features, self.settings, modes, say=say)

        self._record(stage, work)

    def _measure_gate(self, stage: str) -> None:
        """Answer the test split through the engine, and refine where the confidence is low."""

        def work() -> dict[str, Any]:
            model, processor, _ = self._open(self.start if stage == "start" else self.out / stage)
            key = self.settings.settings_of("measure")
            digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:12]
            folder, say = self.out / "drafts" / f"{stage}-{digest}", partial(self._tell, f"gate {stage}")
            return measure_gate(model, processor, folder, self.settings.test_questions, say)

        self._record(f"{stage}-gated", work)

    def _record(self, name: str, work: Callable[[], dict[str, Any]]) -> None:
        """Write a measurement, unless it is there with the same settings."""
        path, key = self.out / "measure" / f"{name}.json", self.settings.settings_of("measure")
        if path.is_file() and read_json(path)["settings"] == key:
            return
        write_json(path, {"settings": key, **describe_environment(default_device()), "modes": work()})

    # ------------------------------------------------------------------ what stages share
    def _tell(self, stage: str, line: str) -> None:
        self.say(f"{stage}: {line}")

    def _join_pools(self, pools: list[Path]) -> Iterator[PooledPicture]:
        """What was sampled about each picture."""
        settings = self.settings
        samples = [iter(split_texts(load_file(path)["texts"])) for path in pools]
        prompts = self.prompts.pools["prompt"].pictures
        by_picture: dict[int, list[Texts]] = {}
        for picture in prompts.tolist():
            texts = tuple(tuple(islice(each, settings.samples)) for each in samples)
            by_picture.setdefault(picture, []).append(texts)
        # Pictures are counted from 0, as the features are.
        for picture in range(settings.pictures):
            yield PooledPicture(FIRST_PICTURE + picture, tuple(by_picture.get(picture, [])))

    def _open(self, checkpoint: Path) -> tuple[Any, Any, UniformPass]:
        model, processor = load(checkpoint, device=default_device(), dtype="float32")
        torch.manual_seed(self.settings.seed)
        first, count = self.prompts.first, self.prompts.count
        return (
            model,
            processor,
            UniformPass(model, processor, side=self.settings.side, first=first, count=count),
        )

    def _open_model(self, checkpoint: Path) -> ResidentModel:
        return ResidentModel(*self._open(checkpoint), self.settings)

    def _compute_features(self, passes: UniformPass) -> Tensor:
        """Compute the features of the training pictures; all models share the start's frozen tower."""
        if self._features is None:
            self._features = compute_features(passes, torch.from_numpy(self.prompts.pictures), batch=128)
        return self._features

    def _compute_test_features(self, passes: UniformPass) -> Tensor:
        if self._test_features is None:
            pictures = draw_test_pictures(self.settings.test_questions)
            self._test_features = compute_features(passes, pictures, batch=128)
        return self._test_features
