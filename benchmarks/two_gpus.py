"""Two processes against one: losses of every way to train in parallel, and answers of `reverse eval`.

`compare_losses`: a tiny model in float32, one recipe; `reverse train` with ddp, fsdp, zero2 and zero3 on two
processes under torchrun against one process, full and with LoRA. `compare_eval`: `reverse eval` as one
process and as two under torchrun, each on a GPU of its own. The answers files must be equal but for their
timings. Throughput counts the answers after the first ones, so that starting and loading are left out: they
are the same for one process and for two. The whole command's seconds stand beside it.

`benchmarks/training.py --parts losses,eval` runs both.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parent.parent
TOLERANCE = 1e-3  # of a loss, relative; float32 without TF32, sums in another order
PARALLEL_MODES = {"qwen3b": ("ddp", "fsdp"), "llava7b": ("ddp", "fsdp")}  # timed on two GPUs
TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
LOSS_RUNS = (
    *(("full", mode) for mode in ("none", "ddp", "fsdp", "zero2", "zero3")),
    *(("lora", mode) for mode in ("none", "ddp", "fsdp", "zero2", "zero3")),
)


def run_json(command: list[str], env: dict[str, str], limit: float) -> dict[str, Any]:
    """Run a process and return its last line of JSON, or why there is none."""
    path = {"PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])}
    try:
        done = subprocess.run(
            command, env=os.environ | path | env, capture_output=True, text=True, timeout=limit, cwd=ROOT
        )
    except subprocess.TimeoutExpired:
        return {"failed": f"no end after {limit:.0f} s"}
    for line in reversed(done.stdout.splitlines()):
        if line.startswith("{"):
            return json.loads(line)
    return {"failed": find_errors(done.stderr or done.stdout), "code": done.returncode}


def find_errors(log: str) -> str:
    """The lines of a log that name an error, else its end; torchrun's own report hides a worker's."""
    named = [
        line for line in log.splitlines() if re.match(r"(\[rank\d\]: )?(\w+\.)*\w*(Error|Exception)\b", line)
    ]
    return "\n".join(named[:3])[:1500] or log[-1500:]


# ---------------------------------------------------------------- training


def compare_losses(options: argparse.Namespace) -> dict[str, Any]:
    """Losses of one recipe in every mode, and their greatest relative difference from one process."""
    folder = Path(options.scratch)
    recipe = write_recipe(folder)
    losses = {
        f"{method}_{mode}": train_losses(method, mode, recipe, folder, options) for method, mode in LOSS_RUNS
    }
    difference = {}
    for name, found in losses.items():
        single = losses[f"{name.split('_')[0]}_none"]
        if isinstance(found, list) and isinstance(single, list) and not name.endswith("_none"):
            pairs = zip(found, single, strict=True)
            difference[name] = max(abs(a - b) / max(abs(b), 1e-9) for a, b in pairs)
    return {
        "tolerance": TOLERANCE,
        "losses": losses,
        "difference": difference,
        "all_within_tolerance": all(value <= TOLERANCE for value in difference.values()),
        "compared": sorted(difference),
    }


def write_recipe(folder: Path) -> Path:
    """Scenes, records with and without pictures, a tiny base checkpoint and the recipe that trains it."""
    from experiments.tiny_models import build_tiny_llava
    from reverse.data.scenes import write_scenes
    from reverse.tokens import add_tokens

    write_scenes(folder / "scenes", "train", 12, 0)
    records = json.loads((folder / "scenes/instruct.json").read_text(encoding="utf-8"))
    said = [{"from": "human", "value": "Hello?"}, {"from": "gpt", "value": "Hi"}]
    # Texts without a picture in between: processes that share weights out would wait for each other for ever.
    for place in range(0, 40, 2):
        records.insert(place, {"id": f"text {place}", "conversations": said})
    (folder / "scenes/instruct.json").write_text(json.dumps(records), encoding="utf-8")
    model, processor = build_tiny_llava(seed=0)
    add_tokens(model, processor)
    model.save_pretrained(folder / "base")
    processor.save_pretrained(folder / "base")
    recipe = {
        "model": str(folder / "base"),
        "output": "",
        "data": {
            "records": str(folder / "scenes/instruct.json"), "images": str(folder / "scenes"), "workers": 0,
        },
        "tune": {"rank": 4, "alpha": 8, "dropout": 0.0},
        "optim": {"lr": 1e-3, "steps": 6, "global_batch": 8, "batch": 2, "weight_decay": 0.1},
        "compute": {"precision": "float32", "weights": "float32", "save_dtype": None},
        "log": {"steps": 1, "save_steps": 0},
    }  # fmt: skip
    path = folder / "recipe.yaml"
    path.write_text(json.dumps(recipe), encoding="utf-8")  # JSON is YAML
    return path


def train_losses(method: str, mode: str, recipe: Path, folder: Path, options: argparse.Namespace) -> Any:
    """The losses of every step, or what is missing or failed."""
    if mode.startswith("zero") and importlib.util.find_spec("deepspeed") is None:
        return {"missing": "deepspeed is not installed"}
    if mode in ("fsdp", "zero2", "zero3") and torch.cuda.device_count() < 2:
        return {"missing": "needs two GPUs"}
    output = folder / f"{method}_{mode}"
    launch = ["-m"] if mode == "none" else [*TORCHRUN, "-m"]
    command = [sys.executable, *launch, "reverse", "train", str(recipe), "--quiet"]
    for setting in (f"output={output}", f"tune.method={method}", f"compute.parallel={mode}"):
        command += ["--set", setting]
    env = {"NVIDIA_TF32_OVERRIDE": "0", "REVERSE_DEBUG": "1", "OMP_NUM_THREADS": "1"}
    outcome = run_json(command, env, options.limit)
    manifest = output / "training.json"
    if not manifest.is_file():
        return outcome
    return [loss for _, loss in json.loads(manifest.read_text(encoding="utf-8"))["losses"]]


# ---------------------------------------------------------------- evaluation


def compare_eval(options: argparse.Namespace) -> dict[str, Any]:
    """Answers and throughput of `reverse eval` as one process and as two."""
    folder = Path(options.scratch)
    if options.tiny or not torch.cuda.is_available():
        plan = {"tiny-llava": ("tiny-llava", 24, 4, 12, 48)}
    else:
        plan = {
            "tiny-llava": ("tiny-llava", 1024, 32, 64, 96),
            "llava7b": (str(folder / "llava7b"), 512, 32, 64, 96),
        }
        if "llava7b" in options.models:
            save_large_model(folder / "llava7b")
    plan = {name: plan[name] for name in options.models if name in plan}
    found: dict[str, Any] = {}
    for name, (model, pictures, rows, window, tokens) in plan.items():
        words = ["reverse", "eval", "chair", "--model", model, "--data", "scenes", "--scenes", str(pictures)]
        words += ["--max-sequences", str(rows), "--window", str(window), "--max-new-tokens", str(tokens)]
        one = time_eval(["-m", *words], folder / f"{name}_one", options)
        two = time_eval([*TORCHRUN, "-m", *words], folder / f"{name}_two", options)
        entry: dict[str, Any] = {"command": " ".join([*words[:4], name, *words[5:]]), "one": one, "two": two}
        if "failed" not in one and "failed" not in two:
            entry["same_answers"] = read_rows(folder / f"{name}_one") == read_rows(folder / f"{name}_two")
            ratio = round(two["answers_per_second"] / one["answers_per_second"], 4)
            entry["two_over_one" if entry["same_answers"] else "ratio_of_other_answers"] = ratio
        found[name] = entry
    return {"models": found}


def save_large_model(path: Path) -> None:
    """Write LLaVA-1.5-7B with random weights, as `reverse eval` loads checkpoints from folders."""
    from geometry import build

    model, processor = build("llava7b")
    model.save_pretrained(path)
    processor.save_pretrained(path)
    del model
    torch.cuda.empty_cache()


def time_eval(command: list[str], out: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Run the command and watch the lines of its answers files grow."""
    env = os.environ | {
        "OMP_NUM_THREADS": "4",
        "REVERSE_DEBUG": "1",
    }  # tracebacks, for the report of a failure
    env["PYTHONPATH"] = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    log = out.with_suffix(".log")
    seen: list[tuple[float, int]] = []  # seconds, answers
    began = time.perf_counter()
    with log.open("w", encoding="utf-8") as output:
        process = subprocess.Popen(
            [sys.executable, *command, "--out", str(out)], env=env, stdout=output, stderr=output, cwd=ROOT
        )
        while process.poll() is None:
            count = sum(path.read_bytes().count(b"\n") for path in shards(out))
            if count > (seen[-1][1] if seen else 0):
                seen.append((time.perf_counter() - began, count))
            if time.perf_counter() - began > options.limit:
                process.kill()
            time.sleep(0.02)
    whole = time.perf_counter() - began
    if process.returncode or len(seen) < 2:
        return {"failed": find_errors(log.read_text(encoding="utf-8")), "code": process.returncode}
    (first, before), (last, answers) = seen[0], seen[-1]
    return {
        "answers": answers,
        "answers_per_second": round((answers - before) / (last - first), 3),
        "tokens_per_second": round(
            sum(row["usage"]["kept"] for row in read_rows(out))
            / answers
            * (answers - before)
            / (last - first),
            1,
        ),
        "first_answer_seconds": round(first, 2),
        "command_seconds": round(whole, 2),
    }


def shards(out: Path) -> list[Path]:
    """The files that answers are appended to; the joined file replaces them at the end."""
    found = list(out.glob("chair.shard-*.jsonl"))
    return found or list(out.glob("chair.jsonl"))


def read_rows(out: Path) -> list[dict[str, Any]]:
    """The rows without their timings."""
    from reverse.evaluation.runs.answers_files import remove_timing

    text = (out / "chair.jsonl").read_text(encoding="utf-8")
    return [remove_timing(json.loads(line)) for line in text.splitlines()]
