"""Stages that the loops of several systems have, made from a recipe.

parts = LoopParts(recipe)
parts.add(parts.questions())
parts.plan("r3v", results=("train-1",))
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from reverse.errors import MissingFileError
from reverse.files.atomic_write import sha256
from reverse.models.checkpoints.fingerprint import checkpoint_fingerprint
from reverse.selftrain.loops.loop_recipe import LoopRecipe, LoopSampling, loop_as_yaml
from reverse.selftrain.loops.stage import LoopPlan, Stage, draw_seed

__all__ = ["LoopParts"]

TRAINING = ("tune", "optim", "loss", "compute", "log")  # sections of a recipe of training


@dataclass
class LoopParts:
    """The stages of a loop so far. A model is named by the stage that trains it; "" is the base."""

    recipe: LoopRecipe
    stages: list[Stage] = field(default_factory=list)
    base: str = ""  # fingerprint of the base

    def __post_init__(self) -> None:
        self.base = checkpoint_fingerprint(self.recipe.model)

    def add(
        self, name: str, body: str, settings: Mapping[str, Any], inputs: Mapping[str, str] | None = None, *,
        seed: int | None = None, keep: Any = "always", outside: Mapping[str, str] | None = None,
    ) -> str:  # fmt: skip
        """Add a stage and return its name. `seed`: another one than is drawn from the stage's name."""
        plain = json.loads(json.dumps(dict(settings)))
        own = draw_seed(self.recipe.seed, name) if seed is None else seed
        self.stages.append(Stage(name, body, plain, inputs or {}, own, keep, outside or {}))
        return name

    def plan(self, system: str, results: Sequence[str]) -> LoopPlan:
        """All stages, with a report of them at the end."""
        told = [stage.name for stage in self.stages if stage.body != "questions"]
        self.add("report", "report", {"stages": told}, {name: name for name in told})
        models = {stage.name for stage in self.stages if stage.keep == "while needed"}
        kept = models if self.recipe.keep_models else models & set(results)
        return LoopPlan(system, tuple(self.stages), tuple(sorted(kept)), loop_as_yaml(self.recipe))

    # ------------------------------------------------------------------ stages
    def questions(self, keep_roles: Sequence[str] = ()) -> str:
        """Copy the questions; those to train on keep drafts of some roles."""
        given = self.recipe.questions
        files = {"train": given.train, "test": given.test}
        if given.warmup is not None:
            files["warmup"] = given.warmup
        for key, path in files.items():
            if not Path(path).is_file():
                raise MissingFileError(f"questions.{key}: no such file: {path}: name a draft file")
        for key, path in (("images", given.images), ("test_images", given.test_images or given.images)):
            if not Path(path).is_dir():
                raise MissingFileError(
                    f"questions.{key}: no such folder: {path}: name the folder of the pictures"
                )
        settings = {
            "sha256": {key: sha256(Path(path)) for key, path in files.items()},
            "train_limit": given.limit,
            "test_limit": given.test_limit,
            "keep_roles": list(keep_roles),
            "warmup_count": given.warmup_count,
            "warmup_role": given.warmup_role,
            "warmup_verified": given.warmup_verified,
        }
        return self.add("questions", "questions", settings, outside=files)

    def answer(
        self, name: str, model: str, runs: Sequence[Mapping[str, Any]], *, on: str = "train",
        inputs: Mapping[str, str] | None = None, measures: bool = False,
    ) -> str:  # fmt: skip
        """Ask a model the questions of a split."""
        engine = self.recipe.engine
        settings = {
            "questions": on,
            "runs": list(runs),
            "max_new_tokens": engine.max_new_tokens,
            "max_sequences": engine.max_sequences,
            "dtype": engine.dtype,
            "device": engine.device,
            "verifies_steps": self.recipe.verify == "steps",
            "model_name": model or "base",
            **self._base(model),
        }
        return self.add(
            name, "answer", settings, {"questions": "questions", **self._model(model), **(inputs or {})},
            seed=self.recipe.seed if measures else None,  # all measures draw the same questions
            outside=self.outside(on),
        )  # fmt: skip

    def pool(
        self, name: str, samples: str, before: str | None, *, run: str, iteration: int, **more: Any
    ) -> str:
        """Add the samples of a run to the pool before."""
        settings = {
            "run": run,
            "iteration": iteration,
            "roles": ["sample", "chain"],
            "chains": False,
            "verifies_steps": self.recipe.verify == "steps",
            **more,
        }
        inputs = {"questions": "questions", "samples": samples}
        return self.add(name, "pool", settings, inputs | ({} if before is None else {"pool": before}))

    def train(
        self, name: str, rows: Mapping[str, Sequence[Mapping[str, Any]]], model: str = "", **changes: Any
    ) -> str:
        """Train the base, or the model of another stage, on parts of stages of rows.

        `changes` replace sections of the recipe, such as `kind` and `grpo`.
        """
        recipe = self.recipe
        data = recipe.data.model_dump()
        for key in ("tagged", "warmup_weight"):
            del data[key]
        settings = {
            "kind": "sft",
            "parts": [{"input": stage, **part} for stage, parts in rows.items() for part in parts],
            "data": data,
            **{
                name: getattr(recipe, name).model_dump()
                for name in ("tune", "optim", "loss", "compute", "log")
            },
            **self._base(model),
            **changes,
        }
        return self.add(
            name, "train", settings, {**{stage: stage for stage in rows}, **self._model(model)},
            keep="while needed",
            outside=self.outside("train"),
        )  # fmt: skip

    def correct(
        self, name: str, answers: str, file: str, by: str, *, task: str = "correct", pairs: str = "verified",
        second_thinking: bool = True,
    ) -> str:  # fmt: skip
        """Pair answers with corrections. `by`: "records", "model", "endpoint", or a checkpoint."""
        settings: dict[str, Any] = {"by": by, "file": file, "pairs": pairs}
        outside = {"images": self.outside("train")["images"]}
        if by not in ("records", "model"):
            outside["teacher"] = by
            settings |= {"task": task, "second_thinking": second_thinking}
            settings["max_new_tokens"] = self.recipe.engine.max_new_tokens
        return self.add(
            name, "correct", settings, {"questions": "questions", "answers": answers}, outside=outside
        )

    def warmup(self, more: Sequence[Mapping[str, Any]] = ()) -> str:
        """Train on the warm-up rationales; returns the model, the base if there are none."""
        parts = [*self.warmup_parts(), *more]
        if not parts:
            return ""
        rows = self.add("rows-0", "rows", {"parts": parts}, {"questions": "questions"})
        return self.train("train-0", {rows: [self.weigh(part["name"]) for part in parts]})

    def warmup_parts(self) -> list[dict[str, Any]]:
        """The view of the warm-up rationales, if there are some."""
        if self.recipe.questions.warmup is None:
            return []
        settings = {"tagged": self.recipe.data.tagged, "verified": self.recipe.questions.warmup_verified}
        return [
            {
                "name": "warmup",
                "view": "cot",
                "input": "questions",
                "file": "warmup.jsonl",
                "settings": settings,
            }
        ]

    def weigh(self, name: str) -> dict[str, Any]:
        """A part of a training mixture."""
        return {"name": name, "weight": self.recipe.data.warmup_weight if name == "warmup" else 1.0}

    def select(self, judge: str, sampling: LoopSampling) -> dict[str, Any]:
        """Settings of mode `select`."""
        return {"judge": judge, "inner": self.recipe.engine.inner, **sampling.model_dump()}

    def outside(self, split: str) -> dict[str, str]:
        """Where the pictures of a split and the base are."""
        given = self.recipe.questions
        images = (given.test_images or given.images) if split == "test" else given.images
        return {"images": str(Path(images).absolute()), "model": self.recipe.model}

    @property
    def inner(self) -> dict[str, str]:
        """The setting of modes that says what decodes."""
        return {"inner": self.recipe.engine.inner}

    def greedy(self) -> dict[str, Any]:
        """The run that others are compared with."""
        return {"name": "greedy", "mode": self.recipe.engine.inner}

    def _model(self, model: str) -> dict[str, str]:
        return {"model": model} if model else {}

    def _base(self, model: str) -> dict[str, str]:
        return {} if model else {"base": self.base}
