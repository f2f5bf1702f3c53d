"""GRPO with a reward for reflecting (SRPO) against plain GRPO, from one model of the reasoning world.

    python -m experiments.grpo_comparison --model tiny-reasoner --out out/grpo --name tiny-reasoner

Both runs see the same questions for the same number of steps. One asks for a reflection and pays by the
preset `default`; the other asks for an answer and pays only for a right one (`plain`). Measured are single
answers, and whole turns that reflect, as GRPO trains them: how many wrong first answers they mend, how many
right ones they break. Finished runs and measurements are not repeated.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from PIL import Image

from experiments.claim_files import add_claims
from experiments.reasoning.reasoning_measures import (
    KEEP,
    MeasuredMode,
    ask_questions,
    make_answered_record,
    make_request,
)
from experiments.reasoning.reasoning_recipe import REFLECTION
from experiments.recipe_arguments import read_recipe
from reverse import Engine
from reverse.data.drafts.draft_files import read_drafts, write_drafts
from reverse.data.drafts.draft_record import DraftRecord, RecordedDraft, Verdict
from reverse.data.scenes.reasoning import (
    ReasoningQuestion,
    draw_reasoning_picture,
    make_reasoning_picture,
    make_reasoning_questions,
)
from reverse.decoding.asks import Conversation
from reverse.decoding.result import Usage
from reverse.evaluation.modes.mode_effects import cost, first_answers, transitions
from reverse.evaluation.modes.question_means import estimate_mean, is_right
from reverse.evaluation.runs.environment import describe_environment
from reverse.evaluation.stats.intervals import Interval
from reverse.files.atomic_write import atomic_write, json_bytes, write_json
from reverse.files.json_values import replace_non_finite
from reverse.models import load
from reverse.models.devices import default_device
from reverse.modes import Reflect
from reverse.training.recipes.recipe import load_recipe
from reverse.training.rl.attempt_text import find_verdicts, read_attempt
from reverse.training.views.grpo_views import view_prompts

__all__ = ["GRPOSettings", "compute_claims", "write_rows"]

RESULTS = Path("benchmarks/results/selftraining.json")
FIRST_PICTURE = 4_000_000  # number of the first picture that is trained on
RUNS = {"reflection": "default", "plain": "plain"}  # presets of rewards
VERDICTS: dict[bool, Verdict] = {True: "right", False: "wrong"}


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

    @property
    def digest(self) -> str:
        """Hash of the settings that measurements depend on; it names their folder."""
        left_out = ("out", "name", "sequences")
        told = {name: value for name, value in asdict(self).items() if name not in left_out}
        return hashlib.sha256(json.dumps(told).encode()).hexdigest()[:12]

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
            file.writelines(line + b"\n" for line in lines)


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
    """Answers of a model to the test questions: single ones, and those of whole turns that reflect."""
    model, processor = load(checkpoint, device=default_device(), dtype="float32")
    engine = Engine(model, processor, max_sequences=settings.sequences)
    found = {}
    for mode in ("plain", "reflect") if name != "plain" else ("plain",):
        path = Path(settings.out) / f"measure-{settings.digest}" / name / f"{mode}.jsonl"
        if not path.is_file():
            path.parent.mkdir(parents=True, exist_ok=True)
            write_drafts(path, answer_questions(engine, mode, settings))
        found[mode] = list(read_drafts(path))
        right = sum(map(is_right, found[mode])) / len(found[mode])
        say(f"{name} {mode}: {100 * right:.1f} % right")
    return found


def answer_questions(engine: Engine, mode: str, settings: GRPOSettings) -> list[DraftRecord]:
    """Ask the test questions. A turn that reflects is one draft for its first answer and one for its last."""
    asked = ask_questions("test", settings.test_questions)
    how = KEEP if mode == "plain" else Reflect(inner=KEEP, instruction=REFLECTION)
    measured = MeasuredMode(how)
    handles = [engine.submit(make_request(each, measured, settings.most_tokens)) for each in asked]
    results = [handle.result() for handle in handles]
    return [
        make_turn_record(each.question, result.text, mode, result.usage)
        for each, result in zip(asked, results, strict=True)
    ]


def make_turn_record(question: ReasoningQuestion, text: str, mode: str, usage: Usage) -> DraftRecord:
    """A record of one answer, or of a turn with its first and its last answer."""
    first, last = find_verdicts(read_attempt(text), question.gold.key())
    drafts = [RecordedDraft(text=text, role="first", verdict=VERDICTS[first], accepted=mode == "plain")]
    if mode != "plain":
        drafts.append(RecordedDraft(text=text, role="reflection", verdict=VERDICTS[last], accepted=True))
    return make_answered_record(question, drafts, mode, usage)


def compute_claims(found: Mapping[str, Mapping[str, list[DraftRecord]]]) -> dict[str, Any]:
    """Figures from the records of "start", "reflection" and "plain" by mode; shares of the questions."""
    claims: dict[str, Any] = {}
    for model, runs in found.items():
        claims[f"{model}_accuracy"] = _show(estimate_mean(runs["plain"], list(map(is_right, runs["plain"]))))
        claims[f"{model}_tokens"] = _show(cost(runs["plain"]).tokens)
        if "reflect" in runs:
            change = transitions(first_answers(runs["reflect"]), runs["reflect"])
            claims[f"{model}_reflect_first_accuracy"] = _show(change.before)
            claims[f"{model}_reflect_accuracy"] = _show(change.after)
            claims[f"{model}_fix_rate"] = _show(change.wrong_to_right)
            claims[f"{model}_break_rate"] = _show(change.right_to_wrong)
            claims[f"{model}_reflect_tokens"] = _show(cost(runs["reflect"]).tokens)
    start, reflection, plain = (found[name] for name in ("start", "reflection", "plain"))
    gains = {
        "grpo_reflection_over_plain": (plain["plain"], reflection["reflect"]),
        "grpo_reflection_gain": (start["reflect"], reflection["reflect"]),  # by training alone
        "grpo_reflection_over_start": (start["plain"], reflection["reflect"]),  # by training and the mode
        "grpo_plain_gain": (start["plain"], plain["plain"]),
    }
    claims |= {name: _show(transitions(*pair).net) for name, pair in gains.items()}
    claims["break_rate_after_grpo"] = claims["reflection_break_rate"]
    return claims


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
        claims = {name: value for name, value in found["claims"].items() if "grpo" in name}
        add_claims(RESULTS, settings.name, claims, {f"grpo_{settings.name}": found})
    print(f"{settings.out}/grpo.json")


if __name__ == "__main__":
    main()
