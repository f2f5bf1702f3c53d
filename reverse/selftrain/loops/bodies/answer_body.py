"""Stage "answer": ask a model all questions of a file in one or several modes, through the engine.

    OUT/NAME.drafts.jsonl     of each run: draft records with graded drafts and what they cost
    OUT/figures.json          accuracy of each run, and of rules over its samples

Questions are asked as `reverse eval` asks them: in windows, shared among processes, going on after a kill.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from reverse.data.drafts.draft_files import read_drafts
from reverse.data.drafts.draft_record import DraftRecord
from reverse.errors import DataError
from reverse.evaluation.benchmarks.benchmark import Benchmark, PublishedFile, QuestionRow
from reverse.evaluation.benchmarks.graded.graded_benchmark import make_graded
from reverse.evaluation.modes.mode_effects import transitions
from reverse.evaluation.modes.question_means import estimate_mean, is_right
from reverse.evaluation.modes.sample_curves import count_samples, values_at
from reverse.evaluation.runs.benchmark_run import Decoding, EvalConfig, ProcessPlace, run
from reverse.evaluation.stats.bootstrap import BootstrapSettings
from reverse.evaluation.stats.intervals import Interval
from reverse.files.atomic_write import write_json
from reverse.progress import ProgressCallback
from reverse.selftrain.loops.stage import Stage, StageBody, StageContext

__all__ = ["ANSWER", "find_device", "find_model", "make_file_benchmark"]

WORK = "answers"  # folder of the runs while they go on
FIGURES = "figures.json"
BEFORE = "greedy"  # name of the run that others are compared with


def find_model(context: StageContext) -> str:
    """Return the checkpoint that a stage uses: that of its input "model", or the base."""
    return str(context.inputs["model"] / "model") if "model" in context.inputs else context.outside["model"]


def find_device(asked: str | None, place: ProcessPlace) -> str:
    """The device that was asked for; by default one GPU for each process, or the CPU."""
    import torch

    from reverse.models.devices import check_device

    if asked is None:
        cuda = torch.cuda.is_available()
        asked = f"cuda:{place.local_rank % torch.cuda.device_count()}" if cuda else "cpu"
    return str(check_device(asked))


def make_file_benchmark(name: str, images: str, *, verifies_steps: bool) -> Benchmark:
    """Make a benchmark of the questions of a draft file NAME.jsonl, which are asked unchanged."""
    return make_graded(
        name,
        name,
        files={"questions": PublishedFile((f"{name}.jsonl",), "questions", "the loop")},
        images=(images,),
        images_source="the recipe",
        read_questions=partial(_read_rows, verifies_steps=verifies_steps),
    )


def _read_rows(files: Mapping[str, Path], *, verifies_steps: bool) -> Iterator[QuestionRow]:
    for record in read_drafts(files["questions"]):
        assert record.gold is not None and record.images
        row: QuestionRow = {
            "id": record.id,
            "image": record.images[0],
            "prompt": record.question,
            "key": record.gold.key(),
        }
        if len(record.images) > 1:
            row["file"] = list(record.images)
        if verifies_steps:
            from reverse.data.scenes.reasoning import read_reasoning_question, verify_rationale

            row["verify"] = partial(verify_rationale, question=read_reasoning_question(record))
        yield row


def ask_questions(context: StageContext) -> None:
    """Answer this process's share of the questions in all modes of the stage."""
    if (context.out / FIGURES).exists():  # killed behind the last answer
        return
    from reverse.models import load

    settings, place = context.settings, context.place
    device, dtype = find_device(settings.get("device"), place), settings.get("dtype")
    loaded = load(find_model(context), device=device, dtype=dtype, require_tokens=False)
    if "value" in context.inputs:
        _attach_head(loaded[0], context.inputs["value"])
    questions = make_file_benchmark(
        settings["questions"], context.outside["images"], verifies_steps=settings["verifies_steps"]
    )
    for number, each in enumerate(settings["runs"]):
        config = EvalConfig(
            decoding=Decoding(
                mode=each["mode"],
                max_new_tokens=settings["max_new_tokens"],
                seed=context.seed,
                mode_settings=make_mode_settings(each.get("settings", {})),
            ),
            model_id=settings["model_name"],
            max_sequences=settings["max_sequences"],
            name=each["name"],
        )
        run(
            questions, loaded, context.inputs["questions"], context.out / WORK, config, at=place,
            progress=_count_runs(context.progress, number, len(settings["runs"])),
        )  # fmt: skip


def make_mode_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of a mode; the inner mode "plain" is the baseline of comparisons."""
    from reverse.modes import Plain

    made = dict(settings)
    if made.get("inner") == "plain":
        made["inner"] = Plain(keep_phrases=True)
    return made


def _attach_head(model: Any, folder: Path) -> None:
    from reverse.models.value_head import load_value_head

    load_value_head(folder, model=model)


def _count_runs(progress: ProgressCallback, number: int, runs: int) -> Any:
    return lambda done, total: progress(number * total + done, runs * total)


def keep_drafts(context: StageContext) -> dict[str, Any]:
    """Store the drafts of all runs, and return their figures."""
    figures: dict[str, Any] = {}
    tokens = 0
    records: dict[str, list[DraftRecord]] = {}
    for each in context.settings["runs"]:
        path = context.out / WORK / f"{each['name']}.drafts.jsonl"
        kept = context.out / path.name
        if path.exists():
            path.replace(kept)
        if not kept.exists():
            raise DataError(f"stage {context.name}: {path} is missing, not all questions were answered")
        records[each["name"]] = list(read_drafts(kept))
        tokens += sum(record.cost.tokens for record in records[each["name"]] if record.cost)
    before = records.get(BEFORE)
    for each in context.settings["runs"]:
        figures[each["name"]] = describe_run(records[each["name"]], each, before, context.seed)
    write_json(context.out / FIGURES, figures)
    shutil.rmtree(context.out / WORK, ignore_errors=True)
    return {"tokens": tokens, "runs": figures}


def describe_run(
    records: Sequence[DraftRecord], how: Mapping[str, Any], before: Sequence[DraftRecord] | None, seed: int
) -> dict[str, Any]:
    """Return accuracy as [point, low, high], changes to the greedy run, and figures of rules over samples."""
    settings = BootstrapSettings(seed=seed)
    found: dict[str, Any] = {
        "questions": len(records),
        "accuracy": _figure(estimate_mean(records, [is_right(record) for record in records], settings)),
        "tokens": sum(record.cost.tokens for record in records if record.cost),
    }
    n = count_samples(records)
    if n:
        for rule in ("vote", "oracle"):
            values = values_at(records, rule, n, seed)
            found[f"{rule}@{n}"] = _figure(estimate_mean(records, values, settings))
    if before is not None and how["name"] != BEFORE:
        changes = transitions(before, records, settings)
        found |= {
            "gain": _figure(changes.net),
            "wrong_to_right": _figure(changes.wrong_to_right),
            "right_to_wrong": _figure(changes.right_to_wrong),
        }
    return found


def _figure(interval: Interval) -> list[float | None]:
    """Return [point, low, high]; None for a figure that is not defined."""
    return [None if math.isnan(each) else round(float(each), 6) for each in interval]


def check_answers(stage: Stage, processes: int) -> None:
    """Check the device, and the settings of all modes."""
    from reverse.evaluation.runs.mode_drafts import make_mode

    find_device(stage.settings.get("device"), ProcessPlace())
    for each in stage.settings["runs"]:
        make_mode(each["mode"], make_mode_settings(each.get("settings", {})))


ANSWER = StageBody(keep_drafts, ask_questions, is_parallel=True, check=check_answers)
