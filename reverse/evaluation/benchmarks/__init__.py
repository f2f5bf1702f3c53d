"""The benchmarks by name: one line each. Everything else about a benchmark stands in its own file.

    from reverse.evaluation import benchmarks
    questions = benchmarks.named_one("pope").questions("playground/data/eval")

`docs/contributing/add_a_benchmark.md` shows how to add one. Default settings are those of the paper (§5): the
checkpoint's own threshold for captions and open questions, 0.5 if yes or no is wanted; temperature 0; blank
answers are asked once more only on MMHal-Bench and HaloQuest. Benchmarks whose answers `reverse.grading`
grades have the alias `graded`. The hash of AMBER's id list is known and checked; hashes of other lists are
only recorded with the answers.
"""

from __future__ import annotations

from reverse.errors import DataError
from reverse.evaluation.benchmarks.amber import AMBER_D, AMBER_G
from reverse.evaluation.benchmarks.benchmark import (
    Benchmark,
    BenchmarkQuestion,
    PublishedFile,
    ScoringOptions,
)
from reverse.evaluation.benchmarks.chair import CHAIR
from reverse.evaluation.benchmarks.graded.choices.ai2d_benchmark import AI2D
from reverse.evaluation.benchmarks.graded.choices.aokvqa_benchmark import AOKVQA
from reverse.evaluation.benchmarks.graded.choices.mmbench_benchmark import MMBENCH
from reverse.evaluation.benchmarks.graded.choices.mmmu_benchmark import MMMU
from reverse.evaluation.benchmarks.graded.choices.mmstar_benchmark import MMSTAR
from reverse.evaluation.benchmarks.graded.choices.scienceqa_benchmark import SCIENCEQA
from reverse.evaluation.benchmarks.graded.choices.vcr_benchmark import VCR
from reverse.evaluation.benchmarks.graded.maths.chartqa_benchmark import CHARTQA
from reverse.evaluation.benchmarks.graded.maths.clevr_math_benchmark import CLEVR_MATH
from reverse.evaluation.benchmarks.graded.maths.geoqa_benchmark import GEOQA
from reverse.evaluation.benchmarks.graded.maths.mathverse_benchmark import MATHVERSE
from reverse.evaluation.benchmarks.graded.maths.mathvision_benchmark import MATHVISION
from reverse.evaluation.benchmarks.graded.maths.mathvista_benchmark import MATHVISTA
from reverse.evaluation.benchmarks.graded.maths.mmk12_benchmark import MMK12
from reverse.evaluation.benchmarks.graded.maths.olympiadbench_benchmark import OLYMPIADBENCH
from reverse.evaluation.benchmarks.graded.maths.reasoning_benchmark import REASONING
from reverse.evaluation.benchmarks.graded.maths.tabmwp_benchmark import TABMWP
from reverse.evaluation.benchmarks.haloquest import HALOQUEST
from reverse.evaluation.benchmarks.mme import MME, MME_HALL
from reverse.evaluation.benchmarks.mmhal import MMHAL
from reverse.evaluation.benchmarks.pope import POPE, POPE_AOKVQA, POPE_GQA

__all__ = [
    "BENCHMARKS",
    "DATA",
    "Benchmark",
    "BenchmarkQuestion",
    "PublishedFile",
    "ScoringOptions",
    "named",
    "named_one",
    "register",
]

DATA = "playground/data/eval"  # where the published files are put
BENCHMARKS: dict[str, Benchmark] = {}


def register(benchmark: Benchmark) -> None:
    """Make a benchmark known by its name. Raises DataError if another one has the name."""
    if BENCHMARKS.setdefault(benchmark.name, benchmark) is not benchmark:
        raise DataError(f"there is a benchmark {benchmark.name!r} already: choose another name")


register(CHAIR)
register(AMBER_G)
register(AMBER_D)
register(POPE)
register(POPE_AOKVQA)
register(POPE_GQA)
register(MME_HALL)
register(MME)
register(MMHAL)
register(HALOQUEST)
register(TABMWP)
register(CHARTQA)
register(CLEVR_MATH)
register(GEOQA)
register(MATHVISTA)
register(MATHVERSE)
register(MATHVISION)
register(OLYMPIADBENCH)
register(MMK12)
register(MMMU)
register(MMSTAR)
register(AI2D)
register(MMBENCH)
register(SCIENCEQA)
register(AOKVQA)
register(VCR)
register(REASONING)


def named(*names: str) -> list[Benchmark]:
    """Benchmarks by name, alias or "all", in any case, each once. Raises DataError for an unknown name."""
    chosen: dict[str, Benchmark] = {}
    for name in names:
        key = name.strip().lower().replace("_", "-")
        found = [
            each
            for each in BENCHMARKS.values()
            if key == each.name or (key == "all" and each.in_all) or key in each.aliases
        ]
        if not found:
            aliases = dict.fromkeys(alias for each in BENCHMARKS.values() for alias in each.aliases)
            known = ", ".join((*BENCHMARKS, "all", *aliases))
            raise DataError(f"there is no benchmark {name!r}: known are {known}")
        chosen |= {each.name: each for each in found}
    return list(chosen.values())


def named_one(name: str) -> Benchmark:
    """The one benchmark of a name or alias. Raises DataError for an unknown name and for one of several."""
    found = named(name)
    if len(found) > 1:
        raise DataError(f"{name!r} are several benchmarks: name one of {', '.join(b.name for b in found)}")
    return found[0]
