"""The flags and keys of published evaluations, answered by the library's benchmarks and modes.

    python -m scripts.eval.published_evaluation run_eval scienceqa --yaml_path config.yaml
    python -m scripts.eval.published_evaluation inference --model_name llava-cot-folder

run_eval is TSST's (`run_eval_scienceqa.sh`, `run_eval_vcr.sh`), inference is LLaVA-SCo's `inference.py`.
What has
no effect here is named in one line on stderr. Published files are looked for as `reverse eval --where` says.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from reverse.commands.runtime_setup import silence_libraries
from reverse.data.drafts.draft_files import read_drafts
from reverse.errors import DataError, RequestError, ReverseError
from reverse.evaluation.runs.benchmark_run import Decoding
from reverse.evaluation.runs.evaluation import DATA, Plan, evaluate
from reverse.files.atomic_write import atomic_write, json_bytes
from reverse.files.text_reading import read_json_lines, read_text

TASKS = ("multiple_choice", "multiple_choice_steps", "multiple_choice_steps_beam", "qa")
# Keys of TSST's YAML files. The others of its keys are read below.
NO_EFFECT = {
    "num_return_sequences": "num_beams says how many sentences are tried",
    "use_value": "sentences are scored by the model's own confidence",
    "dataset_name": "the script's name says it",
    "data_subset": "all questions of the published split are asked",
    "data_partition": "the benchmark's own split is asked",
}
READ = {
    "num_beams", "max_length", "do_sample", "temperature", "task", "dataset_root", "sample_size", "seed",
    "branch", "n_consistency", "batch_size", "models",
}  # fmt: skip
MODEL_KEYS = {"policy_model", "value_model", "tag", "run_flag", "use_value"}
DEPTH, STEP_TOKENS = 30, 256  # of TSST's search


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one published evaluation; return its exit code."""
    name, *flags = sys.argv[1:] if arguments is None else arguments
    silence_libraries()
    try:
        COMMANDS[name](flags)
    except (ReverseError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def run_eval(flags: Sequence[str]) -> None:
    """Answer ScienceQA or VCR with every model of a YAML file of TSST whose run_flag is true."""
    parser = argparse.ArgumentParser("run_eval", allow_abbrev=False)
    parser.add_argument("benchmark", choices=("scienceqa", "vcr"))
    parser.add_argument("--yaml_path", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=Path("output/eval_data"))
    given = parser.parse_args(flags)
    for plan in read_plans(given.yaml_path, given.benchmark, given.out):
        for outcome in evaluate(plan):
            print(f"{outcome.path}: {outcome.done} of {outcome.total} questions; `reverse score` scores them")


def read_plans(path: Path, benchmark: str, out: Path) -> list[Plan]:
    """An evaluation for each model that is to run. Raises DataError and RequestError naming the key."""
    try:
        config = yaml.safe_load(read_text(path, max_bytes=1 << 20))
    except yaml.YAMLError as error:
        raise DataError(f"{path} is not a YAML: {str(error)[:200]}: mend it") from error
    if not isinstance(config, dict) or not isinstance(config.get("models"), list):
        raise DataError(f"{path} needs a list `models`, as TSST's config files have it")
    entries = [each for each in config["models"] if isinstance(each, dict)]
    for found, known in ((set(config), READ | set(NO_EFFECT)), (set().union(*entries), MODEL_KEYS)):
        if unknown := sorted(map(str, found - known)):
            raise RequestError(
                f"{path} has the key {unknown[0]!r:.60}, which TSST's files do not have: remove it"
            )
    reasons = {key: why for key, why in NO_EFFECT.items() if key in config}
    if any(entry.get("value_model") for entry in entries):
        reasons["value_model"] = NO_EFFECT["use_value"]
    if reasons:
        print(
            "without effect: " + ", ".join(f"{key} ({why})" for key, why in reasons.items()), file=sys.stderr
        )
    running = [entry for entry in entries if entry.get("run_flag")]
    if not running:
        raise RequestError(f"no model of {path} has run_flag: true: set it for those that are to run")
    return [_make_plan(config, entry, benchmark, out) for entry in running]


def _make_plan(config: Mapping[str, Any], entry: Mapping[str, Any], benchmark: str, out: Path) -> Plan:
    model = str(entry.get("policy_model"))
    if "gpt" in model.lower() and not Path(model).is_dir():
        raise RequestError(
            f"policy_model {model!r:.80} is behind an address: `reverse curate answer-eval` asks such models"
        )
    task = config.get("task", "multiple_choice")
    if task not in TASKS:
        raise RequestError(f"task must be one of {', '.join(TASKS)}, got {task!r:.60}")
    seed = _number(config, "seed", 0)
    temperature = config.get("temperature", 0.7)
    if not isinstance(temperature, (int, float)) or isinstance(temperature, bool) or temperature < 0:
        raise RequestError(f"temperature must be a number of at least 0, got {temperature!r:.60}")
    if task == "multiple_choice_steps_beam":
        # Their `branch` is how many partial answers are kept, `num_beams` the sentences tried for each.
        tree = {
            "beams": _number(config, "branch", 5),
            "branch": _number(config, "num_beams", 5),
            "finished": _number(config, "n_consistency", 5),
            "depth": DEPTH,
            "step_tokens": STEP_TOKENS,
            "temperature": float(temperature) or 0.7,
            "seed": seed,
            "inner": "plain",
        }
        decoding = Decoding("tree", seed=seed, mode_settings=tree)
    else:
        samples = bool(config.get("do_sample")) and temperature > 0
        decoding = Decoding(
            "plain",
            max_new_tokens=_number(config, "max_length", 0) or None,
            do_sample=samples,
            temperature=float(temperature) if samples else 1.0,
            seed=seed,
        )
    return Plan(
        model,
        (benchmark,),
        str(out / str(entry.get("tag") or Path(model).name)),
        str(config.get("dataset_root") or DATA),
        decoding,
        max_sequences=_number(config, "batch_size", 8) or 8,
        limit=_number(config, "sample_size", 0) or None,
    )


def _number(config: Mapping[str, Any], key: str, default: int) -> int:
    value = config.get(key, default)
    if value is None:
        return default
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise RequestError(f"{key} must be a whole number of at least 0, got {value!r:.60}")
    return value


def inference(flags: Sequence[str]) -> None:
    """Answer MathVista in four stages, check each answer in a second turn, and write the published file."""
    parser = argparse.ArgumentParser("inference", allow_abbrev=False)
    parser.add_argument("--temperature", type=float, default=0.7)
    parser.add_argument("--top_p", type=float, default=0.9)
    parser.add_argument("--model_name", default="meta-llama/Llama-3.2-11B-Vision-Instruct")
    parser.add_argument("--finetuning_path")
    parser.add_argument("--gradio_ui", action="store_true")
    parser.add_argument("--data", default=DATA)
    parser.add_argument("--out", type=Path, default=Path("out/eval/sco"))
    given = parser.parse_args(flags)
    if given.finetuning_path is not None:
        raise RequestError(
            f"--finetuning_path {given.finetuning_path!r:.80}: merge the adapter first, `reverse merge "
            f"ADAPTER OUT`, "
            "and name OUT with --model_name"
        )
    if given.gradio_ui:
        print("without effect: --gradio_ui (`reverse generate` answers one question)", file=sys.stderr)
    samples = given.temperature > 0
    decoding = Decoding(
        "self_correct",
        do_sample=samples,
        temperature=given.temperature if samples else 1.0,
        settings={"top_p": given.top_p},
        mode_settings={"schema": "cot4", "inner": "plain"},
    )
    (outcome,) = evaluate(Plan(given.model_name, ("mathvista",), str(given.out), given.data, decoding))
    truths = {
        record.id: record.gold.answers[0]
        for record in read_drafts(outcome.path.with_name("mathvista.drafts.jsonl"))
        if record.gold is not None
    }
    target = given.out / "answer_for_detectiumfire_sft.json"
    answers = [
        {"prompt": row["prompt"], "answer": row["text"], "ground_truth": truths.get(str(row["question_id"]))}
        for _, row in read_json_lines(outcome.path)
    ]
    with atomic_write(target) as stream:
        stream.write(json_bytes(answers, indent=2) + b"\n")
    print(f"{target}: {len(answers)} answers; `reverse score {outcome.path}` scores them")


COMMANDS = {"run_eval": run_eval, "inference": inference}


if __name__ == "__main__":
    sys.exit(main())
