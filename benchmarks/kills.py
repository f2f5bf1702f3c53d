"""Commands killed with SIGKILL again and again, each against an unbroken run.

    PYTHONPATH=. python benchmarks/kills.py --out /tmp/kills         # CPU, 60 kills, about 15 minutes
    PYTHONPATH=. python benchmarks/kills.py --out /tmp/kills --command eval --kills 20

A kill falls at a random moment between the start of the command and its end. The command is started again
as it was; where it ends by itself, its result is compared with that of the unbroken run and it begins anew.
What must be the same: answers but for their timings, adapters and losses bit for bit, scenes, imported,
tagged and paired records byte for byte.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from reverse.files.atomic_write import write_json

ROOT = Path(__file__).resolve().parent.parent
KILLS = {"eval": 16, "train": 10, "scenes": 9, "import": 9, "tag": 8, "negatives": 8}


@dataclass(frozen=True)
class Job:
    """A command: `words` of one that writes to `out`, and `result` of what it has written, to be compared."""

    words: Callable[[Path], list[str]]
    result: Callable[[Path], Any]


def start(words: list[str]) -> subprocess.Popen[bytes]:
    """A command in a process of its own, on one thread."""
    env = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, "-m", "reverse", *words],
        env=env,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


def finish(words: list[str]) -> float:
    """Run a command to its end; its seconds."""
    begun = time.monotonic()
    if code := start(words).wait():
        raise SystemExit(f"exit code {code}: reverse {' '.join(words)}")
    return time.monotonic() - begun


def survive(job: Job, kills: int, folder: Path, seed: int = 0, tell: Callable[[str], None] = print) -> int:
    """Kill a job so often; returns the kills that were survived. Raises SystemExit where a result differs."""
    folder.mkdir(parents=True, exist_ok=True)
    whole = folder / "whole"
    seconds = finish(job.words(whole))
    wanted = job.result(whole)
    draw = random.Random(seed)
    done = turn = 0
    while done < kills:
        broken, turn = folder / f"broken{turn}", turn + 1
        while done < kills:
            child = start(job.words(broken))
            end = time.monotonic() + seconds * draw.uniform(0.1, 1.0)
            while time.monotonic() < end and child.poll() is None:
                time.sleep(0.01)
            if child.poll() is not None:
                break
            child.send_signal(signal.SIGKILL)
            if child.wait() == -signal.SIGKILL:
                done += 1
                tell(f"kill {done} of {kills}")
        finish(job.words(broken))
        if job.result(broken) != wanted:
            raise SystemExit(f"{broken} is NOT the same as {whole}, after {done} kills")
        for path in folder.glob(f"{broken.name}*"):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    return done


# ---------------------------------------------------------------------- the commands
def jobs(folder: Path, model: str, limit: int) -> dict[str, Callable[[], Job]]:
    """Every command by name; each is made ready when it is its turn."""
    return {
        "eval": lambda: eval_job(model, limit),
        "train": lambda: train_job(folder),
        "scenes": lambda: Job(lambda out: ["data", "scenes", str(out), "--count", "400"], files_of),
        "import": lambda: import_job(folder),
        "tag": lambda: records_job("tag", plain_records(folder / "plain.jsonl", 3000, tagged=False)),
        "negatives": lambda: records_job(
            "negatives", plain_records(folder / "tagged.jsonl", 8000, tagged=True)
        ),
    }


def eval_job(model: str, limit: int) -> Job:
    def rows(out: Path) -> list[str]:
        from reverse.evaluation.reading.answers import read_run_answers
        from reverse.evaluation.runs.answers_files import remove_timing

        path = next(iter(out.glob("pope*.jsonl")))
        return [json.dumps(remove_timing(row)) for row in read_run_answers(path, complete=True).rows]

    words = [
        "eval",
        "pope",
        "--model",
        model,
        "--data",
        "scenes",
        "--limit",
        str(limit),
        "--max-sequences",
        "8",
        "--window",
        "16",
    ]
    return Job(lambda out: [*words, "--out", str(out)], rows)


def train_job(folder: Path) -> Job:
    """A LoRA run with dropout on a tiny model, saved every third step."""
    from experiments.tiny_models import build_tiny_llava
    from reverse.data.scenes import write_scenes
    from reverse.tokens import add_tokens

    model, processor = build_tiny_llava(seed=0)
    add_tokens(model, processor, seed=0)
    model.save_pretrained(folder / "base")
    processor.save_pretrained(folder / "base")
    write_scenes(folder / "scenes", "train", 2, 0)
    recipe = {
        "model": str(folder / "base"),
        "output": "",
        "data": {
            "records": str(folder / "scenes/instruct.json"),
            "images": str(folder / "scenes"),
            "workers": 0,
        },
        "tune": {"method": "lora", "rank": 4, "alpha": 8, "dropout": 0.1},
        "optim": {"lr": 1e-3, "steps": 24, "global_batch": 4, "batch": 2, "projector_lr": 1e-4},
        "log": {"steps": 1, "save_steps": 3},
    }
    path = folder / "recipe.yaml"
    path.write_text(json.dumps(recipe), encoding="utf-8")

    def result(out: Path) -> tuple[str, Any]:
        losses = json.loads((out / "training.json").read_text(encoding="utf-8"))["losses"]
        return _hash(out / "adapter_model.safetensors"), losses

    return Job(lambda out: ["train", str(path), "--set", f"output={out}"], result)


def import_job(folder: Path) -> Job:
    source = plain_records(folder / "large.jsonl", 150_000, tagged=True, padding=1000)
    return Job(lambda out: ["data", "import", str(source), str(out)], files_of)


def records_job(command: str, source: Path) -> Job:
    """A command whose output is a file; what stands beside it is compared too."""

    def result(out: Path) -> dict[str, str]:
        found = sorted(path for path in out.parent.glob(f"{out.name}.jsonl*"))
        return {path.name.removeprefix(out.name): _hash(path) for path in found}

    return Job(lambda out: ["data", command, str(source), f"{out}.jsonl"], result)


def plain_records(path: Path, count: int, tagged: bool, padding: int = 0) -> Path:
    """Records about made-up pictures, all different."""
    from reverse.data.records.schema import make_record

    things = ("dog", "cat", "cup", "red car", "tall tree", "blue bird", "wooden table", "small boat")
    left, right = ("<SPAN>", "</CN>") if tagged else ("", "")
    with path.open("w", encoding="utf-8") as stream:
        for i in range(count):
            one, other = things[i % 8], things[i // 8 % 8]
            answer = f"There is {left}a {one}{right} beside {left}the {other}{right}, number {i}."
            record = make_record(str(i), f"images/{i}.png", "What is there?" + " " * padding, answer)
            stream.write(json.dumps(record) + "\n")
    return path


def files_of(folder: Path) -> dict[str, str]:
    """Every file below a folder with its hash; files of locks hold nothing."""
    return {
        str(path.relative_to(folder)): _hash(path)
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.stat().st_size
    }


def _hash(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def measure(
    out: Path,
    kills: dict[str, int] | None = None,
    model: str = "tiny-llava",
    limit: int = 60,
    seed: int = 0,
    tell: Callable[[str], None] = print,
) -> dict[str, int]:
    """The kills survived of each command. Raises SystemExit where one leaves another result."""
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    found = {}
    for name, count in (kills or KILLS).items():
        folder = out / name
        folder.mkdir()
        job = jobs(folder, model, limit)[name]()

        def say(line: str, name: str = name) -> None:
            tell(f"{name}: {line}")

        found[name] = survive(job, count, folder / "runs", seed, say)
        shutil.rmtree(folder)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--command", action="append", choices=[*KILLS], help="repeat it; by default all")
    parser.add_argument("--model", default="tiny-llava", help="of eval")
    parser.add_argument("--kills", type=int, help="of each command")
    parser.add_argument("--limit", type=int, default=60, help="scenes of eval")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--results", type=Path, help="file of claims to merge into")
    given = parser.parse_args()
    wanted = {name: given.kills or KILLS[name] for name in given.command or KILLS}
    found = measure(
        given.out, wanted, given.model, given.limit, given.seed, lambda line: print(line, flush=True)
    )
    total = sum(found.values())
    print(f"{total} kills survived: {', '.join(f'{name} {count}' for name, count in found.items())}")
    if given.results:
        content = json.loads(given.results.read_text(encoding="utf-8")) if given.results.exists() else {}
        content["claims"] = {**content.get("claims", {}), "kills_survived": total}
        write_json(given.results, content)


if __name__ == "__main__":
    main()
