"""The benchmarks: where their files lie, how questions are read, and how they are to be answered.

from reverse.evaluation import benches
questions = benches.named("pope")[0].questions("playground/data/eval")
"""

from reverse.evaluation.benches.registry import BENCHES, DATA, named
from reverse.evaluation.benches.spec import Bench, File, Question, ids_digest, is_scenes, read_rows
from reverse.evaluation.benches.where import where

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
