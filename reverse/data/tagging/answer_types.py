"""What kind of answer one is, which decides what can be wrong about it: the `A_type` of a record.

    >>> answer_type("Two.", "How many dogs are there?", parse("<SPAN>Two</CN>.").phrases)
    'number'

Of the published names only "general_answer" is known, and only that one is ever looked at by a trainer.
"""

import re
from collections.abc import Iterable

from reverse.data.records.schema import ANSWER_TYPE, IMAGE_TOKEN
from reverse.data.tagging import numbers, yes_no_words
from reverse.tokens.spans import TaggedPhrase

_ASKS_NUMBER = re.compile(
    r"\b(?:how (?:many|much|old|tall|long)|what (?:number|time|year)|which year|number of)\b", re.IGNORECASE
)
_LETTER = re.compile(r"\s*\(?[A-H][.)]?\s*")
_OPTION = re.compile(r"(?:^|\s)\(?[A-H][.):]\s")


def find_answer_type(text: str, question: str, phrases: Iterable[TaggedPhrase]) -> str:
    """`A_type` of an answer: yes_no, number, choice (the letter of an option) or general_answer."""
    said = list(phrases)
    if not said:
        return ANSWER_TYPE
    first = said[0]
    if yes_no_words.find_yes_no(text) == (first.start, first.end):
        return "yes_no"
    if _LETTER.fullmatch(text) and _OPTION.search(question):
        return "choice"
    alone = len(said) == 1 and not re.search(r"\w", text[: first.start] + text[first.end :])
    if alone and numbers.is_number(first.text):
        return "number"
    if _ASKS_NUMBER.search(question) and any(numbers.find_numbers(phrase.text) for phrase in said):
        return "number"
    return ANSWER_TYPE


def remove_image_tokens(value: str) -> str:
    """A human turn without the picture's placeholder."""
    return value.replace(IMAGE_TOKEN, "").strip()
