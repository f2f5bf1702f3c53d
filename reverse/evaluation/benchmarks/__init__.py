"""The benchmarks: where their files lie, how questions are read, and how they are to be answered.

from reverse.evaluation import benchmarks
questions = benchmarks.named("pope")[0].questions("playground/data/eval")
"""

from reverse.evaluation.benchmarks.benchmark import Bench, File, Question, ids_digest, is_scenes, read_rows
from reverse.evaluation.benchmarks.registry import BENCHES, DATA, named
from reverse.evaluation.benchmarks.where_table import where

__all__ = [
    "BENCHES",
    "DATA",
    "Bench",
    "File",
    "Question",
    "ids_digest",
    "is_scenes",
    "named",
    "read_rows",
    "where",
]
