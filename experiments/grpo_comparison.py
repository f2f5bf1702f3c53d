"""GRPO with a reward for reflecting (SRPO) against plain GRPO, from one model of the reasoning world.

    python -m experiments.grpo_comparison --model tiny-reasoner --out out/grpo --name tiny-reasoner

Both runs see the same questions for the same number of steps. One asks for a reflection and pays by the
preset `default`; the other asks for an answer and pays only for a right one (`plain`). Measured are single
answers, and the mode `reflect` without a gate: how many wrong first answers it mends, how many right ones it
breaks. Finished runs and measurements are not repeated.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from experiments.reasoning.reasoning_measures import CORRECTIONS, KEEP, MeasuredMode, Measurer
from experiments.reasoning.reasoning_recipe import REFLECTION, ReasoningRecipe
from experiments.recipe_arguments import read_recipe
from reverse.data.drafts.draft_record import DraftRecord
from reverse.data.scenes.reasoning import (
    draw_reasoning_picture,
    make_reasoning_picture,
    make_reasoning_questions,
)
from reverse.decoding.asks import Conversation
from reverse.evaluation.modes.mode_effects import cost, first_answers, transitions
from reverse.evaluation.modes.question_means import estimate_mean, is_right
from reverse.evaluation.runs.environment import describe_environment
from reverse.evaluation.stats.intervals import Interval
from reverse.files.atomic_write import atomic_write, json_bytes, write_json
from reverse.files.json_values import replace_non_finite
from reverse.files.text_reading import read_json
from reverse.models import load
from reverse.models.devices import default_device
from reverse.modes import Reflect
from reverse.training.recipes.recipe import load_recipe
from reverse.training.views.grpo_views import view_prompts

__all__ = ["GRPOSettings", "compute_claims", "write_rows"]

RESULTS = Path("benchmarks/results/selftraining.json")
FIRST_PICTURE = 4_000_000  # of those that are trained on
RUNS = {"reflection": "default", "plain": "plain"}  # and the preset of their rewards


@dataclass(frozen=True)
class GRPOSettings:
    """Everything that decides what comes out."""

    model: str = "tiny-reasoner"  # a folder, or the name of a bundled model
    out: str = "out/grpo"
    name: str = ""  # under which the claims go to the results; empty: they go to OUT alone
    steps: int = 60
    questions: int = 16  # of a step, one a picture
    generations: int = 8  # completions of a question
    lr: float = 5e-5
    batch: int = 64  # completions that are processed at once
    most_tokens: int = 160  # of a completion
    test_questions: int = 2_000
    sequences: int = 128  # decoded side by side while measuring
    seed: int = 0

    def smoke(self) -> GRPOSettings:
        """The same in miniature."""
        return replace(self, steps=2, questions=2, generations=2, batch=4, most_tokens=32, test_questions=3)


def write_rows(settings: GRPOSettings, folder: Path) -> None:
    """Write the pictures and, for each run, its questions as rows for GRPO."""
    rows: dict[str, list[bytes]] = {name: [] for name in RUNS}
    folder.mkdir(parents=True, exist_ok=True)
    for index in range(FIRST_PICTURE, FIRST_PICTURE + settings.steps * settings.questions):
        picture = make_reasoning_picture("train", index)
        question = make_reasoning_questions(picture)[0]
        image = f"{picture.id}.png"
        Image.fromarray(draw_reasoning_picture(picture)).save(folder / image)
        ask: Any = Reflect(instruction=REFLECTION).ask(Conversation(None, question.text))
        for name, text in (("reflection", ask.prompt), ("plain", question.text)):
            record = DraftRecord(id=question.id, question=text, images=(image,), gold=question.gold)
            rows[name] += [json_bytes(row) for row in view_prompts(record)]
    for name, lines in rows.items():
        with atomic_write(folder / f"{name}.jsonl") as file:
            file.write(b"\n".join(line.strip() for line in lines) + b"\n")


def train(settings: GRPOSettings, name: str, rows: Path) -> dict[str, Any]:
    """Run GRPO with the rewards of a run; its manifest. A finished run is not repeated."""
    from reverse.training.rl.rl_run import run_rl_recipe

    recipe = load_recipe(
        "srpo_grpo",
        [
            f"model={settings.model}", f"output={Path(settings.out) / name}",
            f"data.records={rows / name}.jsonl", f"data.images={rows}",
            f"grpo.rewards={RUNS[name]}", "grpo.rollout=keep_phrases",
            f"grpo.generations={settings.generations}",
            f"grpo.max_new_tokens={settings.most_tokens}", "grpo.pass_rate_low=0", "grpo.pass_rate_high=1",
            f"optim.lr={settings.lr}", f"optim.steps={settings.steps}",
            f"optim.global_batch={settings.questions}", f"optim.batch={settings.batch}",
            "data.workers=0", "compute.checkpoint_activations=false",
            "compute.precision=float32", "compute.save_dtype=float32",
            "log.save_steps=20", f"seed={settings.seed}",
        ],
    )  # fmt: skip
    return run_rl_recipe(recipe)


def measure(
    settings: GRPOSettings, name: str, checkpoint: str | Path, say: Callable[[str], None]
) -> dict[str, list[DraftRecord]]:
    """Single answers, and reflections unless the model was not trained for them, by mode."""
    model, processor = load(checkpoint, device=default_device(), dtype="float32")
    recipe = ReasoningRecipe(test_questions=settings.test_questions, sequences=settings.sequences)
    measurer = Measurer(model, processor, recipe, Path(settings.out) / "measure" / name, say)
    modes = {"plain": MeasuredMode(KEEP)}
    if name != "plain":
        modes["reflect"] = MeasuredMode(CORRECTIONS["reflect"])
    for mode, measured in modes.items():
        measurer.answer("test", mode, measured)
    return {mode: measurer.read("test", mode) for mode in modes}


def compute_claims(found: dict[str, dict[str, list[DraftRecord]]]) -> dict[str, Any]:
    """Figures from the records of "start", "reflection" and "plain" by mode; shares of the questions."""
    claims: dict[str, Any] = {}
    for model, runs in found.items():
        claims[f"{model}_accuracy"] = _show(estimate_mean(runs["plain"], _values(runs["plain"])))
        if "reflect" not in runs:
            continue
        change = transitions(first_answers(runs["reflect"]), runs["reflect"])
        claims[f"{model}_reflect_accuracy"] = _show(change.after)
        claims[f"{model}_fix_rate"] = _show(change.wrong_to_right)
        claims[f"{model}_break_rate"] = _show(change.right_to_wrong)
        claims[f"{model}_reflect_tokens"] = _show(cost(runs["reflect"]).tokens)
    own = found["reflection"]["reflect"]
    for name, other in (("plain", found["plain"]["plain"]), ("start", found["start"]["plain"])):
        claims[f"grpo_reflection_over_{name}"] = _show(estimate_mean(own, _values(own) - _values(other)))
    plain, start = found["plain"]["plain"], found["start"]["plain"]
    claims["plain_grpo_gain"] = _show(estimate_mean(plain, _values(plain) - _values(start)))
    claims["break_rate_after_grpo"] = claims["reflection_break_rate"]
    return claims


def _values(records: Sequence[DraftRecord]) -> np.ndarray:
    return np.array([is_right(record) for record in records], dtype=float)


def _show(interval: Interval) -> list[float]:
    return [round(float(each), 5) for each in (interval.point, interval.low, interval.high)]


def run(settings: GRPOSettings, say: Callable[[str], None]) -> dict[str, Any]:
    """Write rows, train both runs and measure all three models."""
    out = Path(settings.out)
    rows = out / "rows"
    write_rows(settings, rows)
    found, trained = {"start": measure(settings, "start", settings.model, say)}, {}
    for name in RUNS:
        manifest = train(settings, name, rows)
        trained[name] = {key: manifest[key] for key in ("steps", "seconds", "log") if key in manifest}
        say(f"{name}: {manifest.get('seconds')} s")
        found[name] = measure(settings, name, out / name, say)
    return {
        "claims": compute_claims(found),
        "settings": {
            name: getattr(settings, name) for name in settings.__dataclass_fields__ if name != "out"
        },
        "trained": trained,
        **describe_environment(default_device()),
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point of `python -m experiments.grpo_comparison`."""
    settings = read_recipe(GRPOSettings, "python -m experiments.grpo_comparison", __doc__, arguments)
    found = replace_non_finite(run(settings, lambda line: print(line, flush=True)))
    write_json(Path(settings.out) / "grpo.json", found)
    if settings.name:
        results = read_json(RESULTS)
        kept = (
            "grpo_reflection_over_plain",
            "grpo_reflection_over_start",
            "plain_grpo_gain",
            "break_rate_after_grpo",
        )
        results["claims"].setdefault(settings.name, {}).update({name: found["claims"][name] for name in kept})
        results["parts"][f"grpo_{settings.name}"] = found
        write_json(RESULTS, results)
    print(f"{settings.out}/grpo.json")


if __name__ == "__main__":
    main()
