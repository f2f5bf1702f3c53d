"""Make answer keys from the published rows of benchmarks.

Each preset names the fields that it reads. Where a published grader errs, the comment says how ours differs.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from reverse.errors import DataError
from reverse.grading.answer_key import AnswerKey
from reverse.grading.numbers_in_answers import read_number
from reverse.grading.yes_no_in_answers import read_yes_no

__all__ = ["PRESETS", "answer_key"]

Row = Mapping[str, Any]
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


def answer_key(preset: str, row: Row) -> AnswerKey:
    """Make the answer key of one row of a benchmark.

    Raises DataError for an unknown preset and for a row without the fields that it needs.
    """
    if preset not in PRESETS:
        raise DataError(f"there is no preset {preset!r:.80}: choose one of {', '.join(sorted(PRESETS))}")
    try:
        return PRESETS[preset](row)
    except KeyError as error:
        raise DataError(
            f"a row of {preset} needs the field {error.args[0]!r}, it has {', '.join(map(str, row))}"
        ) from error


def tabmwp(row: Row) -> AnswerKey:
    """TabMWP: `answer`, `choices`, `unit`, `ans_type`. (Published: numbers are compared as rounded texts.)"""
    answer, unit = _text(row["answer"]), str(row.get("unit") or "")
    if row.get("choices"):
        return _choice(row["choices"], answer)
    if row.get("ans_type") in ("integer_number", "decimal_number") or _is_number(answer):
        return AnswerKey("number", (answer,), unit=unit)
    return _open(answer)


def chartqa(row: Row) -> AnswerKey:
    """ChartQA: `label`. Numbers may differ by 5 %, as in the paper; years may not, which differs from the
    paper.
    """
    answer = _text(row["answer"] if "answer" in row and "label" not in row else row["label"])
    if ("," in answer and not _is_number(answer)) or answer.startswith("["):
        return AnswerKey("set", (answer.strip("[]"),))
    if _is_number(answer):
        is_year = re.fullmatch(r"(?:1[89]|20)\d\d", answer.strip()) is not None
        return AnswerKey("number", (answer,), tolerance=0.0 if is_year else 0.05)
    return _open(answer)


def clevr_math(row: Row) -> AnswerKey:
    """CLEVR-Math: `label`, a whole number. The published grader takes the first digit of the text."""
    return AnswerKey("number", (_text(row["label"] if "label" in row else row["answer"]),))


def geoqa(row: Row) -> AnswerKey:
    """GeoQA: `choices`, `label` (an index) or `answer` (a letter). No letter gives no credit."""
    return _choice(row["choices"], _text(row["answer"]) if "answer" in row else _letter(row["label"]))


def mathvista(row: Row) -> AnswerKey:
    """MathVista: `question_type`, `answer_type`, `answer`, `choices`, `precision`, `unit`."""
    if row["question_type"] == "multi_choice":
        return _choice(row["choices"], _text(row["answer"]))
    if row["answer_type"] in ("integer", "float"):
        digits = row.get("precision")
        absolute = 0.5 * 10 ** -int(digits) if row["answer_type"] == "float" and digits else 1e-6
        return AnswerKey(
            "number", (_text(row["answer"]),), absolute=absolute, unit=str(row.get("unit") or "")
        )
    if row["answer_type"] == "list":
        return AnswerKey("set", (_text(row["answer"]).strip("[]"),))
    return _open(_text(row["answer"]))


def mathverse(row: Row) -> AnswerKey:
    """MathVerse: `question_type`, `answer`; options of multi-choice questions stand in `question`."""
    if row["question_type"] == "multi-choice":
        return _choice(
            _options_in(str(row.get("question_for_eval") or row["question"])), _text(row["answer"])
        )
    return _math(_text(row["answer"]))


def mathvision(row: Row) -> AnswerKey:
    """MathVision: `options` (empty for open questions), `answer`."""
    options = row["options"]
    return _choice(options, _text(row["answer"])) if options else _math(_text(row["answer"]))


def olympiadbench(row: Row) -> AnswerKey:
    """OlympiadBench: `final_answer` (a list), `answer_type`, `error` (tolerances), `unit`."""
    answers = row["final_answer"]
    answers = tuple(_text(each) for each in (answers if isinstance(answers, list | tuple) else [answers]))
    error = _text(row.get("error") or "")
    if row.get("answer_type") == "Numerical" and all(_is_number(each) for each in answers):
        room = max([float(each) for each in re.findall(r"\d*\.?\d+(?:e-?\d+)?", error)] or [1e-8])
        return AnswerKey("number", answers, absolute=room, unit=str(row.get("unit") or ""))
    return AnswerKey("latex", answers)


def mmk12(row: Row) -> AnswerKey:
    """MMK12: `answer`, a letter if `question` lists options (test split), else a number or an expression."""
    answer = _text(row["answer"])
    if re.fullmatch(r"[A-H]", answer) and row.get("question"):
        return _choice(_options_in(str(row["question"])), answer)
    return _math(answer)


def mmmu(row: Row) -> AnswerKey:
    """MMMU: `question_type`, `options`, `answer`. (Published: if no letter is read, one is drawn.)"""
    if row.get("question_type", "multiple-choice") == "multiple-choice":
        return _choice(row["options"], _text(row["answer"]))
    answers = _list(row["answer"])
    numbers = tuple(each for each in answers if _is_number(each))
    if numbers:
        return AnswerKey("number", numbers, tolerance=0.01)
    return AnswerKey("text", tuple(answers))


def mmstar(row: Row) -> AnswerKey:
    """MMStar: the options stand in `question` ("Options: A: …, B: …"), `answer` is a letter."""
    return _choice(_options_in(str(row["question"])), _text(row["answer"]))


def ai2d(row: Row) -> AnswerKey:
    """AI2D: `options`, `answer` (an index that may be a text, or a letter)."""
    return _choice(row["options"], _letter(row["answer"]))


def mmbench(row: Row) -> AnswerKey:
    """MMBench: the columns `A`, `B`, `C`, `D` (some empty), `answer`."""
    options = [
        str(row[name]) for name in "ABCD" if row.get(name) not in (None, "") and row[name] == row[name]
    ]
    return _choice(options, _text(row["answer"]))


def scienceqa(row: Row) -> AnswerKey:
    """ScienceQA: `choices`, `answer` (an index)."""
    return _choice(row["choices"], _letter(row["answer"]))


def aokvqa(row: Row) -> AnswerKey:
    """A-OKVQA, multiple choice: `choices`, `correct_choice_idx`."""
    return _choice(row["choices"], _letter(row["correct_choice_idx"]))


def vcr(row: Row) -> AnswerKey:
    """VCR: `answer_choices` (texts, or lists of words and object numbers), `answer_label` (an index)."""
    choices = [
        " ".join(_flatten(each)) if not isinstance(each, str) else each for each in row["answer_choices"]
    ]
    return _choice(choices, _letter(row["answer_label"]))


PRESETS: dict[str, Callable[[Row], AnswerKey]] = {
    "ai2d": ai2d, "aokvqa": aokvqa, "chartqa": chartqa, "clevr-math": clevr_math, "geoqa": geoqa,
    "mathverse": mathverse, "mathvision": mathvision, "mathvista": mathvista, "mmbench": mmbench,
    "mmk12": mmk12, "mmmu": mmmu, "mmstar": mmstar,
    "olympiadbench": olympiadbench, "scienceqa": scienceqa, "tabmwp": tabmwp, "vcr": vcr,
}  # fmt: skip


def _choice(options: Any, answer: str) -> AnswerKey:
    choices = tuple(_list(options))
    if len(choices) < 2:
        raise DataError(f"a question of several options needs at least two, got {options!r:.80}")
    return AnswerKey("choice", (answer,), choices)


def _open(answer: str) -> AnswerKey:
    return AnswerKey("yes_no" if read_yes_no(answer) else "text", (answer,))


def _math(answer: str) -> AnswerKey:
    plain = answer.strip().strip("$")
    return AnswerKey("number", (plain,)) if _is_number(plain) else AnswerKey("latex", (answer,))


def _is_number(text: str) -> bool:
    """Whether a text is one number, with at most a sign, a currency or percent around it."""
    number = read_number(text, is_marked=True)
    return not isinstance(number, str) and not re.search(r"[A-Za-z\\{}^_]", text)


def _letter(value: Any) -> str:
    """Return the letter of an option that is given by index or by letter."""
    text = _text(value)
    if text.isdigit() and int(text) < len(LETTERS):
        return LETTERS[int(text)]
    return text


def _text(value: Any) -> str:
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return str(value).strip()


def _list(value: Any) -> list[str]:
    """Return a list of texts, which some files write as a Python literal."""
    if isinstance(value, str):
        try:
            value = (
                ast.literal_eval(value) if value.lstrip().startswith("[") and len(value) < 10_000 else [value]
            )
        except (ValueError, SyntaxError, MemoryError, RecursionError) as error:
            raise DataError(f"a list of options cannot be read: {value[:80]!r}") from error
    if not isinstance(value, Sequence):
        raise DataError(f"a list of options was expected, got {value!r:.80}")
    return [_text(each) for each in value]


def _options_in(question: str) -> list[str]:
    """Return the options that a question lists as "A: …, B: …" or "(A) … (B) …"."""
    marks = list(re.finditer(r"(?:^|[\s,;(])\(?([A-H])\s?[):.]\s?", question))
    start = next((i for i in range(len(marks) - 1, -1, -1) if marks[i][1] == "A"), None)
    if start is None:
        raise DataError(f"the question lists no options A, B, …: {question[-120:]!r}")
    marks = [mark for i, mark in enumerate(marks[start:]) if mark[1] == LETTERS[i]]
    ends = [mark.start() for mark in marks[1:]] + [len(question)]
    return [question[mark.end() : end].strip(" ,;\n") for mark, end in zip(marks, ends, strict=True)]


def _flatten(value: Any) -> list[str]:
    if isinstance(value, list | tuple):
        return [word for each in value for word in _flatten(each)]
    return [str(value)]
