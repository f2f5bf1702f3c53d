"""Ask a model all questions of a benchmark, and keep every answer as it comes.

    model = reverse.load("tiny-llava")
    config = EvalConfig(Decoding(threshold=0.003))
    run(benchmarks.named_one("chair"), model, "playground/data/eval", "out", config)

Questions are cut into windows, a few times as many as there are sequences side by side. Each window goes
through `generate_many()` (sequences that finish make room for the next) into an `AnswersFile`. The run may be
killed at any moment, and the same call continues it: an unfinished window is decoded again as a whole, and
only missing answers are added. So every answer is computed in the same batch as in an uninterrupted run, and
is bit-identical even where the batch changes numbers (bfloat16).

Several processes, told apart by RANK and WORLD_SIZE as torchrun and accelerate set them, take every
WORLD_SIZE-th window each. The last process joins all answers into the file that one process would have
written. The processes need a common folder but no network.
"""

from __future__ import annotations

import hashlib
import os
import platform
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from reverse.errors import DataError
from reverse.evaluation.benchmarks import Benchmark, BenchmarkQuestion
from reverse.evaluation.benchmarks.benchmark import digest_ids
from reverse.evaluation.runs.answers_files import AnswersFile, hash_config, make_answer_row, merge_shards
from reverse.evaluation.runs.mode_drafts import (
    answer_format,
    describe_mode,
    make_mode,
    set_answer_format,
    write_run_drafts,
)
from reverse.files.atomic_write import sha256
from reverse.grading.latex_answers import require_math_verify

__all__ = ["Decoding", "EvalConfig", "ProcessPlace", "RunOutcome", "find_place", "question_seed", "run"]

Ask = Callable[[Sequence[BenchmarkQuestion]], Iterator[Any]]  # questions in, Results out, in order
WINDOW_PER_SEQUENCE = 8  # questions


@dataclass(frozen=True)
class Decoding:
    """Settings of decoding. None means the benchmark's or the checkpoint's default."""

    mode: str = "resample"  # a name of `reverse.modes`; "plain" checks nothing
    threshold: float | None = None
    max_new_tokens: int | None = None
    do_sample: bool = False
    temperature: float = 1.0  # if do_sample
    seed: int = 0
    settings: Mapping[str, Any] = field(default_factory=dict)  # further fields of ResamplingConfig
    seed_per_question: bool = True  # False: every question is decoded with the seed itself
    mode_settings: Mapping[str, Any] = field(default_factory=dict)  # of the mode: n, judge, rounds, gate, …


@dataclass(frozen=True)
class EvalConfig:
    """Settings of a run of one model on a benchmark."""

    decoding: Decoding = Decoding()
    model_id: str = "model"
    # `checkpoint_fingerprint` of what was loaded, so that answers of another checkpoint of the same name are
    # refused. Without it only samples of the weights are compared, no tokenizer and no processor.
    checkpoint: str | None = None
    max_sequences: int = 8  # decoded side by side
    # Questions that are decoded together; by default 8 a sequence. Both may change between runs, at the cost
    # of the last bits.
    window: int | None = None
    images: int | None = None  # only questions about the first so many pictures
    name: str | None = None  # of the answers file; by default the benchmark's
    command: str | None = None  # for the record


@dataclass(frozen=True)
class ProcessPlace:
    """The rank of this process, and the number of processes."""

    rank: int = 0
    world: int = 1
    local_rank: int = 0  # on its machine: the number of its device


@dataclass(frozen=True)
class RunOutcome:
    """The outcome of a run: `done` of `total` questions have answers; `complete`: all, in one file."""

    path: Path
    done: int
    total: int
    complete: bool
    published: str  # how the ids compare with the published list


def find_place() -> ProcessPlace:
    """Return the place of this process, from the environment of torchrun or accelerate launch."""
    try:
        names = (("RANK", "0"), ("WORLD_SIZE", "1"), ("LOCAL_RANK", "0"))
        found = ProcessPlace(*(int(os.environ.get(name, default)) for name, default in names))
    except ValueError as error:
        raise DataError(f"RANK, WORLD_SIZE and LOCAL_RANK must be whole numbers ({error})") from None
    if not 0 <= found.rank < found.world:
        raise DataError(
            f"RANK={found.rank} must lie below WORLD_SIZE={found.world}: unset both for one process"
        )
    return found


def run(
    benchmark: Benchmark,
    loaded: tuple[Any, Any],
    data: str | Path,
    out: str | Path,
    config: EvalConfig = EvalConfig(),
    *,
    at: ProcessPlace = ProcessPlace(),
    progress: Callable[[int, int], None] | None = None,
    ask: Ask | None = None,
) -> RunOutcome:
    """Answer the questions of a benchmark that are not answered yet.

    Args:
        loaded: model and processor, of `reverse.load`.
        data: the root that `benchmark.questions` reads.
        at: rank of this process and number of processes.
        progress: called with the number of answered questions, and the number that this process answers.
        ask: answers questions in their order, in place of `generate_many()`.

    Raises MissingFileError and DataError for missing or damaged files and for answers made with other
    settings; KeyboardInterrupt after what was finished is written.
    """
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    questions = benchmark.questions(data, config.images)
    if any(question.key is not None and question.key.kind == "latex" for question in questions):
        require_math_verify()  # before anything is answered
    # Fewer than 8 a sequence if a process would else be left without work.
    window = config.window or min(WINDOW_PER_SEQUENCE * config.max_sequences, -(-len(questions) // at.world))
    windows = [questions[i : i + window] for i in range(0, len(questions), window)][at.rank :: at.world]
    settings = _resolve_settings(benchmark, loaded[0], config.decoding)
    identity = _identify(benchmark, loaded[0], config, settings, data)
    record = _describe(benchmark, data, questions, identity, config.command)
    record["batching"] = [{"max_sequences": config.max_sequences, "window": window, "processes": at.world}]
    path = out / f"{config.name or benchmark.name}.jsonl"
    key = hash_config(identity)
    ask = ask or _make_ask(loaded, config, settings, identity["max_new_tokens"])
    with AnswersFile(path, record, at.rank, at.world) as file:

        def keep(question: BenchmarkQuestion, result: Any) -> None:
            file.write(
                make_answer_row(
                    question, result, benchmark=benchmark.name, model_id=config.model_id, config=key
                )
            )

        _answer_windows(windows, file, ask, keep, progress)
        done = sum(str(question.id) in file.done for question in questions)
    complete = merge_shards(path, [question.id for question in questions], key)
    if complete:
        write_run_drafts(path, questions, config.decoding.mode, config.model_id)
    total = len(questions)
    published = benchmark.compare_with_published(data)
    return RunOutcome(path, total if complete else done, total, complete, published)


def _answer_windows(
    windows: Sequence[Sequence[BenchmarkQuestion]],
    file: AnswersFile,
    ask: Ask,
    keep: Callable[[BenchmarkQuestion, Any], None],
    progress: Callable[[int, int], None] | None,
) -> None:
    """Answer the windows of questions that are not finished, and store the missing answers."""
    total = sum(map(len, windows))
    reached = sum(str(question.id) in file.done for part in windows for question in part)

    def keep_missing(question: BenchmarkQuestion, result: Any) -> None:
        nonlocal reached
        if str(question.id) not in file.done:
            keep(question, result)
            reached += 1
            if progress is not None:
                progress(reached, total)

    if progress is not None:
        progress(reached, total)
    for part in windows:
        if all(str(question.id) in file.done for question in part):
            continue
        try:
            for question, result in zip(part, ask(part), strict=True):
                keep_missing(question, result)
        except KeyboardInterrupt as stopped:
            for i, result in sorted(getattr(stopped, "results", {}).items()):  # of reverse.Interrupted
                keep_missing(part[i], result)
            raise


def question_seed(seed: int, identity: Any) -> int:
    """Return the seed of one question, which does not depend on its place in a batch or process."""
    return int.from_bytes(hashlib.sha256(f"{seed} {identity}".encode()).digest()[:6], "big")


def _make_ask(loaded: tuple[Any, Any], config: EvalConfig, settings: Any, max_new_tokens: int) -> Ask:
    from reverse.api import generate_many

    decoding = config.decoding
    mode = make_mode(decoding.mode, decoding.mode_settings)

    def make_request(question: BenchmarkQuestion) -> dict[str, Any]:
        own = question_seed(decoding.seed, question.id) if decoding.seed_per_question else decoding.seed
        form = answer_format(question, settings.yes_no)
        return {
            "images": question.picture(),
            "prompt": question.prompt,
            "seed": own,
            "mode": set_answer_format(mode, form),
        }

    def ask(questions: Sequence[BenchmarkQuestion]) -> Iterator[Any]:
        return generate_many(
            *loaded,
            map(make_request, questions),
            max_sequences=config.max_sequences,
            mode=mode,
            config=settings,
            max_new_tokens=max_new_tokens,
            do_sample=decoding.do_sample,
            temperature=decoding.temperature,
        )

    return ask


def _resolve_settings(benchmark: Benchmark, model: Any, decoding: Decoding) -> Any:
    """Return the ResamplingConfig: the defaults of the benchmark's kind, overridden by the caller's settings.

    It is None if the mode is not one of the library, so that `ask` decodes by itself.
    """
    from reverse.decoding.config import ResamplingConfig
    from reverse.models import default_threshold
    from reverse.modes import MODES

    if decoding.mode not in MODES:  # another decoder, which `ask` calls
        return None
    # A plain model gets no second question after a blank answer.
    changes: dict[str, Any] = {
        "yes_no": benchmark.kind == "yes_no",
        "open_ended": benchmark.kind == "open" and decoding.mode != "plain",
    }
    settings = ResamplingConfig().with_changes(changes | dict(decoding.settings))
    threshold = decoding.threshold
    if threshold is None:
        threshold = 0.5 if settings.yes_no else default_threshold(model)
    return replace(settings, threshold=threshold)


def _identify(
    benchmark: Benchmark, model: Any, config: EvalConfig, settings: Any, data: str | Path
) -> dict[str, Any]:
    """Return all settings that decide the answers; batch, processes and device do not."""
    from reverse.models.adapters.adapter_card import base_fingerprint

    decoding = config.decoding
    fields = dict(decoding.settings) if settings is None else asdict(settings)
    if decoding.mode == "plain":
        fields = {"keep_phrases": True}
    fields.pop("seed", None)  # it stands beside them
    identity = {
        "benchmark": benchmark.name,
        "questions": benchmark.digest(data),
        "model": config.model_id,
        "weights": base_fingerprint(model) if hasattr(model, "named_parameters") else "none",
        "dtype": str(getattr(model, "dtype", None)).removeprefix("torch."),
        "mode": decoding.mode,
        **describe_mode(decoding.mode, decoding.mode_settings),
        "max_new_tokens": decoding.max_new_tokens or benchmark.max_new_tokens,
        "temperature": decoding.temperature if decoding.do_sample else 0.0,
        "seed": decoding.seed,
        **fields,
    }
    if not decoding.seed_per_question:
        identity["seed_per_question"] = False
    if config.checkpoint is not None:
        identity["checkpoint"] = config.checkpoint
    return identity


def _describe(
    benchmark: Benchmark,
    data: str | Path,
    questions: Sequence[BenchmarkQuestion],
    identity: Mapping[str, Any],
    command: str | None,
) -> dict[str, Any]:
    """Return the further content of NAME.run.json, beside the configuration."""
    ids = [question.id for question in questions]
    pictures = list(dict.fromkeys(question.image for question in questions))
    root = Path(data)
    return {
        "title": benchmark.title,
        "config": dict(identity),
        "prompts": list(dict.fromkeys(question.prompt for question in questions))[:3],
        "data": {name: sha256(path) for name, path in benchmark.found(root).items() if path.is_file()},
        "published": benchmark.compare_with_published(root),
        "questions": {"count": len(ids), "sha256": digest_ids(ids), "ids": ids},
        "images": {"count": len(pictures), "sha256": digest_ids(pictures), "ids": pictures},
        "versions": [_find_versions()],
        "command": command or " ".join(sys.argv[:1]),
    }


def _find_versions() -> dict[str, str]:
    from reverse import __version__

    found = {"python": platform.python_version(), "reverse-vlm": __version__}
    for name in ("torch", "transformers"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found
