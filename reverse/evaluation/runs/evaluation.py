"""Run a whole evaluation: load a checkpoint once, find or make the data, run every benchmark and seed.

    evaluate(Plan("tiny-llava", ("chair", "pope"), "out/eval", data="scenes", limit=20))

`evaluate` is what every process of `torchrun` or `accelerate launch` calls, and every worker of Ray.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from reverse.errors import DataError, MissingFileError
from reverse.evaluation.benchmarks import DATA, Benchmark, named
from reverse.evaluation.reading.answers import read_run_answers
from reverse.evaluation.runs.answers_files import lock_folder
from reverse.evaluation.runs.benchmark_run import (
    Decoding,
    EvalConfig,
    ProcessPlace,
    RunOutcome,
    find_place,
    run,
)

__all__ = ["SCENES", "Plan", "data_root", "evaluate", "evaluate_on_ray", "summarise"]

SCENES = "scenes"  # as `data`: make them


@dataclass(frozen=True)
class Plan:
    """All settings of an evaluation, as plain values, so that they can be sent to other machines."""

    model: str
    benchmarks: tuple[str, ...]
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
    # Further modes with their settings; with any, the files of each mode have its name: BENCHMARK.MODE.jsonl.
    more_modes: tuple[tuple[str, Mapping[str, Any]], ...] = ()

    @property
    def decodings(self) -> list[Decoding]:
        """Return the settings of decoding of each mode."""
        more = [
            replace(self.decoding, mode=name, mode_settings=settings) for name, settings in self.more_modes
        ]
        return [self.decoding, *more]


Watch = Callable[[Benchmark, int, int, int], None]  # (benchmark, decoding seed, answered, to be answered)


def evaluate(plan: Plan, at: ProcessPlace | None = None, watch: Watch | None = None) -> list[RunOutcome]:
    """Answer every benchmark of the plan with every decoding seed; return the outcomes of this process.

    All benchmarks' files are read before the model is loaded. Raises what `reverse.load` and `run` raise.
    """
    at = at or find_place()
    chosen = named(*plan.benchmarks)
    root = data_root(plan)
    for benchmark in chosen:
        benchmark.questions(root, plan.limit)
    from reverse.models import load
    from reverse.models.checkpoints.fingerprint import checkpoint_fingerprint

    device, dtype = _device(plan.device, at), plan.dtype
    needs_tokens = any(decoding.mode != "plain" for decoding in plan.decodings)
    loaded = load(plan.model, device=device, dtype=dtype, require_tokens=needs_tokens)
    config = EvalConfig(
        model_id=Path(plan.model).name or plan.model,
        checkpoint=checkpoint_fingerprint(plan.model),
        max_sequences=plan.max_sequences,
        window=plan.window,
        images=plan.limit,
        command=plan.command,
    )
    outcomes, first = [], plan.decoding.seed
    for benchmark in chosen:
        for decoding, seed in itertools.product(plan.decodings, range(first, first + plan.decode_seeds)):
            ending = f".{decoding.mode}" if plan.more_modes else ""
            name = benchmark.name + ending + ("" if seed == first else f".seed{seed}")
            own = replace(config, decoding=replace(decoding, seed=seed), name=name)
            shown = replace(benchmark, title=f"{benchmark.title}{ending.replace('.', ', ')}")
            progress = None if watch is None else partial(watch, shown, seed)
            outcomes.append(run(benchmark, loaded, root, plan.out, own, at=at, progress=progress))
    return refresh_completion(outcomes)


def evaluate_on_ray(plan: Plan, workers: int) -> list[RunOutcome]:
    """Run the plan on Ray workers of one machine, or of a cluster that shares the folder `plan.out`.

    Each worker takes one GPU if there are enough. Raises DataError if ray is not installed or a worker fails.
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
    work = ray.remote(num_gpus=gpus, max_retries=3)(evaluate)  # a worker that dies is started again
    try:
        found = ray.get([work.remote(plan, ProcessPlace(rank, workers)) for rank in range(workers)])
    except ray.exceptions.RayTaskError as error:
        raise DataError(f"a worker failed: {error.cause}") from error
    return refresh_completion(found[0])


def refresh_completion(outcomes: Sequence[RunOutcome]) -> list[RunOutcome]:
    """Mark runs as complete that other processes have finished in the meantime."""
    now = []
    for outcome in outcomes:
        if not outcome.complete and outcome.path.exists() and not read_run_answers(outcome.path).missing:
            outcome = replace(outcome, done=outcome.total, complete=True)
        now.append(outcome)
    return now


def data_root(plan: Plan) -> Path:
    """Return the folder of the benchmarks' files; for scenes, the first process makes it in OUT/data."""
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
    with lock_folder(out):
        write_benchmarks(root, plan.split, plan.scenes)
    return root


def _device(asked: str | None, at: ProcessPlace) -> str:
    """Return the requested device. Default: one GPU for each process."""
    import torch

    from reverse.models.devices import check_device

    if asked is not None:
        return str(check_device(asked))
    if not torch.cuda.is_available():
        return "cpu"
    return f"cuda:{at.local_rank % torch.cuda.device_count()}"


def summarise(outcomes: Sequence[RunOutcome]) -> list[dict[str, Any]]:
    """Return counts of each answers file, for printing."""
    rows = []
    for outcome in outcomes:
        answers = read_run_answers(outcome.path).rows if outcome.path.exists() else []
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
