"""Score answers files exactly as published: one call for every benchmark.

    table, metrics = score_file("answers.jsonl", "playground/data/eval")

`table` holds what each answer was counted as, `metrics` the figures made of it; intervals, comparisons and
reports take it from there. What a benchmark needs of its truth stands in its own file under
`reverse.evaluation.benchmarks`, with every intended difference from the published script.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from reverse.errors import DataError, MissingFileError
from reverse.evaluation.benchmarks import BENCHMARKS, Benchmark, ScoringOptions, named_one
from reverse.evaluation.reading import english_words
from reverse.evaluation.reading.answers import BenchmarkAnswer, read_answers
from reverse.evaluation.scoring.answer_table import make_cost_metrics, refuse_repeated, refuse_unfinished_run
from reverse.evaluation.scoring.judge import Judge
from reverse.evaluation.stats.scored_tables import Metric, Table
from reverse.files.cell_values import shorten
from reverse.grading.latex_answers import require_math_verify

__all__ = ["check_scoring", "find_benchmark", "score_file"]


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
    """Return a table of the counts of every answer, and the metrics of the benchmark, costs last.

    Args:
        truth: the benchmark's own folder or file, or a root that holds it in its published place.
        benchmark: its name; by default the answers tell it, or the truth if they do not.
        judge, partial, workers, progress: see `ScoringOptions`.

    Raises MissingFileError for files that are not there; DataError for answers that cannot be scored, with
    the reason.
    """
    answers = read_answers(answers_path)
    options = ScoringOptions(partial, judge, workers, progress)
    if not partial:
        refuse_unfinished_run(answers_path, answers)
    chosen = find_benchmark(answers, truth) if benchmark is None else named_one(benchmark)
    if benchmark is not None:
        _refuse_other_benchmark(chosen, answers)
    if not Path(truth).exists():
        raise MissingFileError(f"no truth at {truth}: give the benchmark's folder")
    if chosen.unique_ids:
        refuse_repeated(answers)
    table, metrics = chosen.score(answers, truth, options)
    return table, [*metrics, *make_cost_metrics(table)]


def find_benchmark(answers: Sequence[BenchmarkAnswer], truth: str | Path) -> Benchmark:
    """Return the benchmark that the rows name (in the row or its metadata), or that the truth belongs to.

    Raises DataError if neither tells it.
    """
    told = {shorten(str(name)) for answer in answers if (name := _benchmark_name(answer))}
    if len(told) == 1:
        return named_one(told.pop())
    if len(told) > 1:
        raise DataError(
            f"the file holds answers to several benchmarks ({', '.join(sorted(told))}): one a file"
        )
    found = [each for each in BENCHMARKS.values() if each.holds_truth(truth, answers)]
    if len(found) == 1:
        return found[0]
    holds = ", ".join(each.name for each in found) or "no known truth"
    raise DataError(
        f"which benchmark are these answers to? {truth} holds {holds}: name it with --benchmark "
        f"({', '.join(BENCHMARKS)})"
    )


def _refuse_other_benchmark(benchmark: Benchmark, answers: Sequence[BenchmarkAnswer]) -> None:
    """Raise DataError for rows that name another benchmark than the given one."""
    for answer in answers:
        told = named_one(shorten(str(_benchmark_name(answer) or benchmark.name)))
        if told.files != benchmark.files:  # those of mme and mme-hall are the same
            raise DataError(
                f"line {answer.line} is an answer to {told.name}, not to {benchmark.name}: leave --benchmark "
                "out"
            )


def _benchmark_name(answer: BenchmarkAnswer) -> Any:
    return answer.row.get("benchmark") or answer.metadata.get("benchmark")


def check_scoring(chosen: Sequence[Benchmark], root: str | Path | None) -> None:
    """Raise DataError, before a model is loaded, for missing truth, language data, judge or packages.

    `root` holds the benchmarks' files; None if they will be made (scenes have every file). One error lists
    all that is missing.
    """
    lacking: list[str] = []
    for benchmark in chosen:
        if root is not None:
            files = [file for file in benchmark.missing(Path(root), ("score",)) if file.needed == "score"]
            lacking += [f"{benchmark.title}: no {f.places[0]} under {root} ({f.description})" for f in files]
        try:
            if benchmark.needs == "words":
                english_words.prepare_words()
            elif benchmark.needs == "judge":
                Judge.from_environment("judge.jsonl").check()
            elif benchmark.needs == "math":
                require_math_verify()
        except (ImportError, ValueError) as error:
            lacking.append(f"{benchmark.title}: {error}")
    if lacking:
        told = "\n  ".join(dict.fromkeys(lacking))
        raise DataError(f"what is answered could not be scored (leave --score out to answer only):\n  {told}")
