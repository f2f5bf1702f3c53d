"""Ask a model all questions of a benchmark, and keep every answer as it comes.

    model = reverse.load("tiny-llava")
    run(benches.named("chair")[0], model, "playground/data/eval", "out", Decoding(threshold=0.003))

Questions are cut into windows, a few times as many as there are sequences side by side, and each goes through
`generate_many()` (rows that finish make room for the next) into an `AnswersFile`. The run may be killed at
any moment, and the same call goes on: a window that was not finished is decoded again as a whole and gives
only what was missing. So every answer is computed beside the same neighbours as in an unbroken run, and is
the same to the last bit even where the batch shows in the numbers (bfloat16). Several processes, told apart
by RANK and WORLD_SIZE as torchrun and accelerate set them, take every WORLD_SIZE-th window each; whoever is
last joins what they wrote into the file that one process would have written. They need a common folder and
no network.
"""

from __future__ import annotations

import hashlib
import os
import platform
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from reverse.errors import DataError
from reverse.evaluation.benchmarks import Bench, Question, ids_digest
from reverse.evaluation.runs.answers_files import AnswersFile, answer_row, config_hash, settle

__all__ = ["Decoding", "Outcome", "Place", "answers_path", "place", "question_seed", "run"]

Ask = Callable[[Iterable[dict[str, Any]]], Iterator[Any]]  # requests in, Results out, in order
_A_SEQUENCE = 8  # questions of a window
_NOT_DECIDING = ("seed",)  # of ResamplingConfig: it stands beside it


@dataclass(frozen=True)
class Decoding:
    """How answers are made; None: the benchmark's or the checkpoint's default."""

    mode: str = "resample"  # "plain" checks nothing
    threshold: float | None = None
    max_new_tokens: int | None = None
    do_sample: bool = False
    temperature: float = 1.0  # of do_sample
    seed: int = 0
    settings: Mapping[str, Any] = field(default_factory=dict)  # further fields of ResamplingConfig


@dataclass(frozen=True)
class Place:
    """Which of how many processes this is."""

    rank: int = 0
    world: int = 1
    local_rank: int = 0  # on its machine: the number of its device


@dataclass(frozen=True)
class Outcome:
    """What a run left: `done` of `total` questions are answered; `complete`: all, in one file."""

    path: Path
    done: int
    total: int
    complete: bool
    published: str  # how the ids stand to the published list


def place() -> Place:
    """Of this process, by what torchrun or accelerate launch put into the environment."""
    try:
        found = Place(*(int(os.environ.get(name, default)) for name, default in _ENVIRONMENT))
    except ValueError as error:
        raise DataError(f"RANK, WORLD_SIZE and LOCAL_RANK must be whole numbers ({error})") from None
    if not 0 <= found.rank < found.world:
        raise DataError(
            f"RANK={found.rank} must lie below WORLD_SIZE={found.world}: unset both for one process"
        )
    return found


_ENVIRONMENT = (("RANK", "0"), ("WORLD_SIZE", "1"), ("LOCAL_RANK", "0"))


def run(
    bench: Bench,
    loaded: tuple[Any, Any],
    data: str | Path,
    out: str | Path,
    decoding: Decoding = Decoding(),
    *,
    model_id: str = "model",
    max_sequences: int = 8,
    window: int | None = None,
    images: int | None = None,
    at: Place = Place(),
    name: str | None = None,
    progress: Callable[[int, int], None] | None = None,
    ask: Ask | None = None,
    command: str | None = None,
    checkpoint: str | None = None,
) -> Outcome:
    """Answer the questions of a benchmark that are not answered yet.

    Args:
        loaded: model and processor, of `reverse.load`.
        data: the root that `bench.questions` reads.
        window: questions that are decoded together, see above; by default 8 a slot, fewer where that would
            leave a process without work. Slots and window may change between runs, at the cost of last bits.
        images: only questions about the first so many pictures.
        name: of the answers file in `out`; by default the benchmark's.
        progress: called with (answered, to be answered by this process).
        ask: in place of `generate_many()`.
        checkpoint: `checkpoint_fingerprint` of what was loaded, so that answers of another one of the same
            name are refused; without it only samples of the weights are compared, no tokenizer and no
            processor.

    Raises FileNotFoundError, ValueError for missing or damaged files, and answers made otherwise;
    KeyboardInterrupt after what was finished is written.
    """
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    questions = bench.questions(data, images)
    window = window or min(_A_SEQUENCE * max_sequences, -(-len(questions) // at.world))
    windows = [questions[i : i + window] for i in range(0, len(questions), window)][at.rank :: at.world]
    settings = _settled(bench, loaded[0], decoding)
    config = _config(bench, loaded[0], decoding, settings, model_id, data)
    if checkpoint is not None:
        config["checkpoint"] = checkpoint
    record = _record(bench, data, questions, config, command)
    record["batching"] = [{"max_sequences": max_sequences, "window": window, "processes": at.world}]
    path = answers_path(out, name or bench.name)
    key = config_hash(config)
    asking = ask or _asking(loaded, decoding, settings, config, max_sequences)
    with AnswersFile(path, record, at.rank, at.world) as file:
        total = sum(map(len, windows))
        reached = sum(str(question.id) in file.done for part in windows for question in part)

        def tell(more: int = 0) -> None:
            nonlocal reached
            reached += more
            if progress is not None:
                progress(reached, total)

        def keep(question: Question, result: Any) -> None:
            if str(question.id) not in file.done:
                file.write(answer_row(question, result, benchmark=bench.name, model_id=model_id, config=key))
                tell(1)

        tell()
        for part in windows:
            if all(str(question.id) in file.done for question in part):
                continue
            try:
                results = asking(_request(question, decoding.seed) for question in part)
                for question, result in zip(part, results, strict=True):
                    keep(question, result)
            except KeyboardInterrupt as stopped:
                for i, result in sorted(getattr(stopped, "results", {}).items()):  # of reverse.Interrupted
                    keep(part[i], result)
                raise
        done = sum(str(question.id) in file.done for question in questions)
    complete = settle(path, [question.id for question in questions], key)
    total = len(questions)
    return Outcome(path, total if complete else done, total, complete, bench.published(data))


def answers_path(out: str | Path, name: str) -> Path:
    return Path(out) / f"{name}.jsonl"


def question_seed(seed: int, identity: Any) -> int:
    """Of one question: its own noise, wherever it stands in whichever batch or process."""
    return int.from_bytes(hashlib.sha256(f"{seed} {identity}".encode()).digest()[:6], "big")


def _request(question: Question, seed: int) -> dict[str, Any]:
    return {
        "images": question.picture(),
        "prompt": question.prompt,
        "seed": question_seed(seed, question.id),
    }


def _asking(
    loaded: tuple[Any, Any], decoding: Decoding, settings: Any, config: Mapping[str, Any], max_sequences: int
) -> Ask:
    from reverse.api import generate_many

    def ask(requests: Iterable[dict[str, Any]]) -> Iterator[Any]:
        return generate_many(
            *loaded,
            requests,
            max_sequences=max_sequences,
            mode=decoding.mode,
            config=settings,
            max_new_tokens=config["max_new_tokens"],
            do_sample=decoding.do_sample,
            temperature=decoding.temperature,
        )

    return ask


def _settled(bench: Bench, model: Any, decoding: Decoding) -> Any:
    """The ResamplingConfig of a benchmark: defaults of its kind below what the caller wants."""
    from reverse.decoding.config import ResamplingConfig
    from reverse.models import default_threshold

    checking = decoding.mode != "plain"
    changes: dict[str, Any] = {"yes_no": bench.kind == "yes_no"}
    changes["open_ended"] = bench.kind == "open" and checking  # a plain model gets no second question
    changes |= decoding.settings
    settings = ResamplingConfig().with_changes(changes)
    threshold = decoding.threshold
    if threshold is None:
        threshold = 0.5 if settings.yes_no else default_threshold(model)
    return replace(settings, threshold=threshold)


def _config(
    bench: Bench, model: Any, decoding: Decoding, settings: Any, model_id: str, data: str | Path
) -> dict[str, Any]:
    """All that decides the answers, and nothing else: not batch, processes or device."""
    fields = {name: value for name, value in asdict(settings).items() if name not in _NOT_DECIDING}
    if decoding.mode == "plain":
        fields = {}
    return {
        "benchmark": bench.name,
        "questions": bench.digest(data),
        "model": model_id,
        "weights": _fingerprint(model),
        "dtype": str(getattr(model, "dtype", None)).removeprefix("torch."),
        "mode": decoding.mode,
        "max_new_tokens": decoding.max_new_tokens or bench.max_new_tokens,
        "temperature": decoding.temperature if decoding.do_sample else 0.0,
        "seed": decoding.seed,
        **fields,
    }


def _fingerprint(model: Any) -> str:
    if not hasattr(model, "named_parameters"):
        return "none"
    from reverse.models.adapters.adapter_card import base_fingerprint

    return base_fingerprint(model)


def _record(
    bench: Bench,
    data: str | Path,
    questions: Sequence[Question],
    config: Mapping[str, Any],
    command: str | None,
) -> dict[str, Any]:
    """What NAME.run.json keeps beside the configuration."""
    ids = [question.id for question in questions]
    pictures = list(dict.fromkeys(question.image for question in questions))
    root = Path(data)
    return {
        "title": bench.title,
        "config": dict(config),
        "prompts": list(dict.fromkeys(question.prompt for question in questions))[:3],
        "data": {name: _digest(path) for name, path in bench.found(root).items() if path.is_file()},
        "published": bench.published(root),
        "questions": {"count": len(ids), "sha256": ids_digest(ids), "ids": ids},
        "images": {"count": len(pictures), "sha256": ids_digest(pictures), "ids": pictures},
        "versions": [_versions()],
        "command": command or " ".join(sys.argv[:1]),
    }


def _digest(path: Path) -> str:
    from reverse.files.atomic_write import sha256

    return sha256(path)


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for name in ("reverse-vlm", "torch", "transformers"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    from reverse import __version__

    return found | {"reverse-vlm": __version__}
