"""Grading: which final answer a text gives, and whether it is right.

    >>> key = AnswerKey("number", ("1,200",), tolerance=0.05)
    >>> grade("So the total is $1,180.", key)
    Grade(verdict='right', reason='1180 is within 5% of 1200', extracted='1180')

A verdict is right, wrong or unknown, with a reason. A text that gives no answer, or two different ones, is
unknown:
no credit is given at random. Used by modes, curation, rewards and benchmarks.
"""

from reverse.grading.answer_key import KINDS, AnswerFormat, AnswerKey, Grade
from reverse.grading.final_answer import find_final_answer
from reverse.grading.grader import extract_answer, grade
from reverse.grading.presets import PRESETS, answer_key

__all__ = [
    "KINDS",
    "PRESETS",
    "AnswerFormat",
    "AnswerKey",
    "Grade",
    "answer_key",
    "extract_answer",
    "find_final_answer",
    "grade",
]
