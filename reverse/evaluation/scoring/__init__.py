"""Answers files scored as published, and better: one call for every benchmark.

    table, metrics = score_file("answers.jsonl", "playground/data/eval")

`table` holds what each answer was counted as, `metrics` the figures made of it; intervals, comparisons and
reports take it from there. What a benchmark needs of its truth stands in its module, with every intended
difference from the published script.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from reverse.errors import DataError, MissingFileError
from reverse.evaluation.scoring.scored_rows import Answer, cost_metrics, of_a_whole_run, once, read_answers
from reverse.evaluation.stats.scored_tables import Metric, Table
from reverse.files.cell_values import shorten

if TYPE_CHECKING:
    from reverse.evaluation.scoring.judge import Judge

__all__ = ["BENCHMARKS", "JUDGED", "benchmark_of", "score_file"]

JUDGED = ("mmhal", "haloquest")
BENCHMARKS = ("chair", "amber-g", "amber-d", "pope", "pope-aokvqa", "pope-gqa", "mme", "mme-hall", *JUDGED)


def score_file(
    answers_path: str | Path,
    truth: str | Path,
    benchmark: str | None = None,
    *,
    judge: Judge | None = None,
    partial: bool = False,
    workers: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[Table, list[Metric]]:
    """What every answer was counted as, and the figures of the benchmark, costs last.

    Args: `truth`, the benchmark's own folder or file, or a root that holds it where it is published;
    `benchmark`, one of BENCHMARKS, else told from the answers; `judge` for MMHal-Bench and HaloQuest;
    `partial` scores what is there where questions are missing. Raises FileNotFoundError for files that are
    not there, ValueError for answers that cannot be scored, with the reason.
    """
    answers = read_answers(answers_path)
    if not partial:
        of_a_whole_run(answers_path, answers)
    name = benchmark_of(answers, truth) if benchmark is None else _agreed(_known(benchmark), answers)
    if not Path(truth).exists():
        raise MissingFileError(f"no truth at {truth}: give the benchmark's folder")
    if not name.startswith(("pope", "mme")):  # their ids stand for several questions, told apart there
        once(answers)
    table, metrics = _score(name, answers, truth, judge, partial, workers, progress)
    return table, metrics + cost_metrics(table)


def _score(
    name: str,
    answers: Sequence[Answer],
    truth: str | Path,
    judge: Judge | None,
    partial: bool,
    workers: int | None,
    progress: Callable[[int, int], None] | None,
) -> tuple[Table, list[Metric]]:
    if name == "chair":
        from reverse.evaluation.scoring import chair

        return chair.score(answers, truth, partial, workers, progress)
    if name.startswith("amber"):
        from reverse.evaluation.scoring import amber

        return amber.score(answers, truth, partial, name)
    if name.startswith("pope"):
        from reverse.evaluation.scoring import yes_no_scoring

        return yes_no_scoring.score(answers, truth, partial, name)
    if name.startswith("mme"):
        from reverse.evaluation.scoring import mme

        return mme.score(answers, truth, partial, name)
    if judge is None:
        raise DataError(f"{name} is scored by a judge: give one, such as Judge.from_environment(cache)")
    if name == "mmhal":
        from reverse.evaluation.scoring import mmhal

        return mmhal.score(answers, truth, judge, partial, progress)
    from reverse.evaluation.scoring import haloquest

    return haloquest.score(answers, truth, judge, partial, progress)


def _agreed(name: str, answers: Sequence[Answer]) -> str:
    """The benchmark that was asked for. Raises ValueError where the rows say that they answer another."""
    for answer in answers:
        told = _known(shorten(str(_named(answer) or name)))
        if told != name and not {told, name} <= {"mme", "mme-hall"}:
            raise DataError(
                f"line {answer.line} is an answer to {told}, not to {name}: leave --benchmark out"
            )
    return name


def _named(answer: Answer) -> Any:
    return answer.row.get("benchmark") or answer.metadata.get("benchmark")


def benchmark_of(answers: Sequence[Answer], truth: str | Path) -> str:
    """The benchmark that the rows name (`benchmark`, in the row or its metadata), else what the truth is of.

    Raises ValueError where neither tells it.
    """
    named = {shorten(str(name)) for answer in answers if (name := _named(answer))}
    if len(named) == 1:
        return _known(named.pop())
    if len(named) > 1:
        raise DataError(
            f"the file holds answers to several benchmarks ({', '.join(sorted(named))}): one a file"
        )
    found = _of_truth(truth, answers)
    if len(found) == 1:
        return found[0]
    told = f"{truth} holds {', '.join(found)}" if found else f"{truth} holds no known truth"
    raise DataError(
        f"which benchmark are these answers to? {told}: say it with --benchmark ({', '.join(BENCHMARKS)})"
    )


def _of_truth(truth: str | Path, answers: Sequence[Answer]) -> list[str]:
    from reverse.evaluation.benchmarks import mme_files
    from reverse.evaluation.reading import coco_truth
    from reverse.evaluation.scoring import amber, haloquest, mmhal, yes_no_scoring
    from reverse.evaluation.scoring.scored_rows import locate

    patterns: dict[str, tuple[Sequence[str], Sequence[str]]] = {
        "chair": (coco_truth.PLACES, ["instances*.json"]),
        "amber": (amber.PLACES, ["relation.json"]),
        "pope": (
            yes_no_scoring.PLACES,
            ["*pope_random.json", "*pope_popular.json", "*pope_adversarial.json"],
        ),
        "mmhal": (mmhal.PLACES, ["response_template.json"]),
        "haloquest": (haloquest.PLACES, ["haloquest-eval.jsonl"]),
    }
    found = []
    for name, (places, files) in patterns.items():
        paths = locate(truth, places, files)
        if not paths:
            continue
        if name == "amber":
            kinds = {name: item["type"] for name, item in amber.read_items(truth).items()}
            name = "amber-g" if any(kinds.get(a.question_id) == "generative" for a in answers) else "amber-d"
        elif name == "pope" and (stem := paths[0].name.partition("_")[0]) in ("aokvqa", "gqa"):
            name = f"pope-{stem}"
        found.append(name)
    if mme_files.find_files(truth) is not None:
        found.append("mme")
    return found


def _known(name: str) -> str:
    plain = name.strip().lower().replace("_", "-")
    plain = {"chair-mscoco": "chair", "mmhal-bench": "mmhal", "pope-coco": "pope"}.get(plain, plain)
    if plain not in BENCHMARKS:
        raise DataError(f"there is no benchmark {name!r}: known are {', '.join(BENCHMARKS)}")
    return plain
