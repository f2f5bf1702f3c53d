"""Read the final answer of a text and compare it with the right one."""

from __future__ import annotations

from reverse.grading.answer_key import AnswerFormat, AnswerKey, Grade
from reverse.grading.choices_in_answers import read_choice, right_letters
from reverse.grading.final_answer import find_final_answer
from reverse.grading.latex_answers import normalise_latex, same_expression
from reverse.grading.numbers_in_answers import compare_numbers, read_number
from reverse.grading.text_matching import normalise_text, read_members, same_text
from reverse.grading.yes_no_in_answers import read_yes_no

__all__ = ["extract_answer", "grade"]


def extract_answer(text: str, form: AnswerFormat) -> str | None:
    """Return the final answer of a text in a normal form; None if it gives no answer.

    Equal answers have equal forms, so that modes can vote. No right answer is needed.
    """
    return _read(text, form)[0]


def grade(text: str, key: AnswerKey) -> Grade:
    """Compare the final answer of a text with the right answers.

    The verdict is unknown if the text gives no answer or several, or if the key cannot be read as its kind.
    """
    extracted, trouble = _read(text, key.format)
    if extracted is None:
        return Grade("unknown", trouble)
    if key.kind == "number":
        return _grade_number(text, key, extracted)
    if key.kind == "choice":
        letters = right_letters(key.answers, key.choices)
        if not letters:
            return Grade("unknown", f"the key {key.answers!r:.80} names no option", extracted)
        return _verdict(extracted in letters, extracted, " or ".join(letters))
    if key.kind == "yes_no":
        right = {read_yes_no(answer) for answer in key.answers}
        if None in right:
            return Grade("unknown", f"the key {key.answers!r:.80} is neither yes nor no", extracted)
        return _verdict(extracted in right, extracted, " or ".join(sorted(str(each) for each in right)))
    if key.kind == "set":
        same = any(read_members(answer) == read_members(find_final_answer(text)[0]) for answer in key.answers)
    elif key.kind == "latex":
        same = any(same_expression(extracted, answer) for answer in key.answers)
    else:
        said, is_marked = find_final_answer(text)
        same = any(same_text(said, answer) for answer in key.answers)
        if not same and not is_marked:
            same = _last_line_says(text, key)
    return _verdict(same, extracted, " or ".join(key.answers)[:80])


def _read(text: str, form: AnswerFormat) -> tuple[str | None, str]:
    """Return the final answer in its normal form, or None and the reason."""
    said, is_marked = find_final_answer(text)
    if not said:
        return None, "the text is empty"
    if form.kind == "number":
        number = read_number(said, is_marked=is_marked)
        return (None, number) if isinstance(number, str) else (number.text, "")
    if form.kind == "choice":
        letter = read_choice(said, form.choices)
        if isinstance(letter, str):
            return letter, ""
        return None, f"it names {' and '.join(letter)}" if letter else "it names no option"
    if form.kind == "yes_no":
        found = read_yes_no(said)
        return found, "" if found else "it says neither yes nor no, or both"
    if form.kind == "set":
        members = read_members(said)
        return (", ".join(members), "") if members else (None, "it lists nothing")
    if form.kind == "latex":
        return (normalise_latex(said) or None), "it holds no expression"
    return (normalise_text(said) or None), "it holds no words"


def _grade_number(text: str, key: AnswerKey, extracted: str) -> Grade:
    if all(isinstance(read_number(answer, is_marked=False), str) for answer in key.answers):
        return Grade("unknown", f"the key {key.answers!r:.80} holds no number", extracted)
    said, is_marked = find_final_answer(text)
    number = read_number(said, is_marked=is_marked)
    reason = None if isinstance(number, str) else compare_numbers(number, key)
    if reason is not None:
        return Grade("right", reason, extracted)
    return Grade("wrong", f"{extracted} is not {' or '.join(key.answers)[:80]}", extracted)


def _last_line_says(text: str, key: AnswerKey) -> bool:
    """Whether the last line consists of a right answer and nothing else."""
    lines = [line for line in text.strip().splitlines() if line.strip()]
    return bool(lines) and any(same_text(lines[-1], answer) for answer in key.answers)


def _verdict(is_right: bool, extracted: str, right: str) -> Grade:
    if is_right:
        return Grade("right", f"{extracted[:80]} is the answer", extracted)
    return Grade("wrong", f"{extracted[:80]} is not {right}", extracted)
