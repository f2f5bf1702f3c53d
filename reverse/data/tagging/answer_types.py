"""Find the type of an answer, the `A_type` of a record.

    >>> find_answer_type("Two.", "How many dogs are there?", parse_tags("<SPAN>Two</CN>.").phrases)
    'number'

Only the name "general_answer" is published, and it is the only one that training uses.
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
    """Return `A_type` of an answer: yes_no, number, choice (the letter of an option) or general_answer."""
    listed = list(phrases)
    if not listed:
        return ANSWER_TYPE
    first = listed[0]
    if yes_no_words.find_yes_no(text) == (first.start, first.end):
        return "yes_no"
    if _LETTER.fullmatch(text) and _OPTION.search(question):
        return "choice"
    is_alone = len(listed) == 1 and not re.search(r"\w", text[: first.start] + text[first.end :])
    if is_alone and numbers.is_number(first.text):
        return "number"
    if _ASKS_NUMBER.search(question) and any(numbers.find_numbers(phrase.text) for phrase in listed):
        return "number"
    return ANSWER_TYPE


def remove_image_tokens(value: str) -> str:
    """Return a human turn without the placeholder of the picture."""
    return value.replace(IMAGE_TOKEN, "").strip()
