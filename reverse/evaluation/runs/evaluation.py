"""A whole evaluation: load a checkpoint once, find or make the data, run every benchmark and decoding seed.

    evaluate(Plan("tiny-llava", ("chair", "pope"), "out/eval", data="scenes", limit=20))

`evaluate` is what every process of `torchrun` or `accelerate launch` calls, and every worker of Ray.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from reverse.errors import DataError, MissingFileError
from reverse.evaluation.benchmarks import DATA, Bench, named
from reverse.evaluation.runs.answers_files import locked
from reverse.evaluation.runs.benchmark_run import Decoding, Outcome, Place, place, run

__all__ = ["SCENES", "Plan", "data_root", "evaluate", "evaluate_on_ray", "summary"]

SCENES = "scenes"  # as `data`: make them


@dataclass(frozen=True)
class Plan:
    """All that an evaluation is told; plain values, so that it can be sent to other machines."""

    model: str
    benches: tuple[str, ...]
    out: str
    data: str = DATA
    decoding: Decoding = field(default_factory=Decoding)
    decode_seeds: int = 1  # runs whose seeds count up from decoding.seed
    max_sequences: int = 8
    window: int | None = None  # questions decoded together, see `reverse.evaluation.runs.benchmark_run`
    limit: int | None = None  # pictures a benchmark
    scenes: int = 500
    split: str = "test"
    device: str | None = None
    dtype: str | None = None
    command: str | None = None


Watch = Callable[[Bench, int, int, int], None]  # (bench, decoding seed, answered, to be answered)


def evaluate(plan: Plan, at: Place | None = None, watch: Watch | None = None) -> list[Outcome]:
    """Answer every benchmark of the plan with every decoding seed; what this process left.

    Raises as `reverse.load` and `run`; all benchmarks' files are looked at before the model is loaded.
    """
    at = at or place()
    chosen = named(*plan.benches)
    root = data_root(plan)
    for bench in chosen:
        bench.questions(root, plan.limit)
    from reverse.models import load
    from reverse.models.checkpoints.fingerprint import checkpoint_fingerprint

    device, dtype = _device(plan.device, at), plan.dtype
    loaded = load(plan.model, device=device, dtype=dtype, require_tokens=plan.decoding.mode != "plain")
    fingerprint = checkpoint_fingerprint(plan.model)
    outcomes = []
    for bench in chosen:
        for seed in range(plan.decoding.seed, plan.decoding.seed + plan.decode_seeds):
            first = seed == plan.decoding.seed
            outcomes.append(
                run(
                    bench,
                    loaded,
                    root,
                    plan.out,
                    replace(plan.decoding, seed=seed),
                    model_id=Path(plan.model).name or plan.model,
                    max_sequences=plan.max_sequences,
                    window=plan.window,
                    images=plan.limit,
                    at=at,
                    name=bench.name if first else f"{bench.name}.seed{seed}",
                    progress=None if watch is None else _watching(watch, bench, seed),
                    command=plan.command,
                    checkpoint=fingerprint,
                )
            )
    return looked_at_again(outcomes)


def evaluate_on_ray(plan: Plan, workers: int) -> list[Outcome]:
    """The same on `workers` Ray workers, of one machine or of a cluster that shares the folder `plan.out`.

    Each worker takes one GPU where there are GPUs. Raises ValueError where ray is not installed.
    """
    try:
        import ray
    except ImportError as error:
        raise DataError("--ray needs ray: pip install 'reverse-vlm[ray]'") from error
    data_root(plan)  # made once, here, where scenes are asked for
    plan = replace(plan, out=os.path.abspath(plan.out))
    if plan.data != SCENES:
        plan = replace(plan, data=os.path.abspath(plan.data))
    if Path(plan.model).is_dir():
        plan = replace(plan, model=os.path.abspath(plan.model))
    ray.init(ignore_reinit_error=True, log_to_driver=False, logging_level="error")
    gpus = 1 if ray.cluster_resources().get("GPU", 0) >= workers else 0
    work = ray.remote(num_gpus=gpus, max_retries=3)(_on_ray)  # a worker that dies is started again
    try:
        found = ray.get([work.remote(plan, Place(rank, workers)) for rank in range(workers)])
    except ray.exceptions.RayTaskError as error:
        raise DataError(f"a worker failed: {error.cause}") from error
    return looked_at_again(found[0])


def looked_at_again(outcomes: Sequence[Outcome]) -> list[Outcome]:
    """The same after what other processes finished since: whoever ends last sees that all is there."""
    from reverse.evaluation.runs.answers_reading import read_answers

    now = []
    for outcome in outcomes:
        if not outcome.complete and outcome.path.exists() and not read_answers(outcome.path).missing:
            outcome = replace(outcome, done=outcome.total, complete=True)
        now.append(outcome)
    return now


def _on_ray(plan: Plan, at: Place) -> list[Outcome]:
    return evaluate(plan, at)


def data_root(plan: Plan) -> Path:
    """Where the benchmarks' files are; scenes are made in OUT/data by the first process that comes."""
    if plan.data != SCENES:
        root = Path(plan.data)
        if not root.is_dir():
            raise MissingFileError(
                f"there is no folder {root}: put the published files there (`reverse eval --where` says what "
                f"and where), or use --data {SCENES}"
            )
        return root
    from reverse.data.scenes.benchmark_files import write_benchmarks
    from reverse.models.checkpoints.loading import find_checkpoint

    find_checkpoint(plan.model)  # its errors come before the scenes are made
    out = Path(plan.out)
    out.mkdir(parents=True, exist_ok=True)
    root = out / "data"
    with locked(out):
        write_benchmarks(root, plan.split, plan.scenes)
    return root


def _watching(watch: Watch, bench: Bench, seed: int) -> Callable[[int, int], None]:
    return lambda done, total: watch(bench, seed, done, total)


def _device(asked: str | None, at: Place) -> str:
    """One device a process, where nobody said otherwise."""
    import torch

    from reverse.models.devices import check_device

    if asked is not None:
        return str(check_device(asked))
    if not torch.cuda.is_available():
        return "cpu"
    return f"cuda:{at.local_rank % torch.cuda.device_count()}"


def summary(outcomes: Sequence[Outcome]) -> list[dict[str, Any]]:
    """What stands in each file: counts that go beside every score."""
    from reverse.evaluation.runs.answers_reading import read_answers

    rows = []
    for outcome in outcomes:
        answers = read_answers(outcome.path).rows if outcome.path.exists() else []
        kept = sum(row["usage"]["kept"] for row in answers)
        made = kept + sum(row["usage"]["discarded"] for row in answers)
        rows.append(
            {
                "path": str(outcome.path),
                "done": outcome.done,
                "total": outcome.total,
                "complete": outcome.complete,
                "empty": sum(not row["text"].strip() for row in answers),
                "unresolved": sum(row["resolved"] is False for row in answers),
                "ratio": made / kept if kept else 1.0,
                "published": outcome.published,
            }
        )
    return rows
