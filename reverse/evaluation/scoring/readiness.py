"""Check, before any model is loaded or any answer is made, that a benchmark's answers can be scored.

check_scoring(named("chair", "mmhal"), "playground/data/eval")
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from reverse.errors import DataError
from reverse.evaluation.benchmarks import Bench

__all__ = ["check_scoring"]

_WORDS = ("chair", "amber-g")  # read with NLTK
_JUDGED = ("mmhal", "haloquest")


def check_scoring(benches: Sequence[Bench], root: str | Path | None) -> None:
    """Refuse benchmarks whose truth, language data or judge is missing, all of them in one error.

    `root` holds the benchmarks' files; None where they will be made (scenes have every file). Raises
    ValueError.
    """
    lacking: list[str] = []
    for bench in benches:
        if root is not None:
            files = [file for file in bench.missing(Path(root), ("score",)) if file.needed == "score"]
            lacking += [f"{bench.title}: no {file.places[0]} under {root} ({file.what})" for file in files]
        try:
            if bench.name in _WORDS:
                from reverse.evaluation.reading import english_words

                english_words.prepare()
            elif bench.name in _JUDGED:
                from reverse.evaluation.scoring.judge import Judge

                Judge.from_environment("judge.jsonl").check()
        except (ImportError, ValueError) as error:
            lacking.append(f"{bench.title}: {error}")
    if lacking:
        told = "\n  ".join(dict.fromkeys(lacking))
        raise DataError(f"what is answered could not be scored (leave --score out to answer only):\n  {told}")
