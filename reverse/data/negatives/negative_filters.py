"""Reject replacements that are not negatives, because they say the same or may be true.

>>> find_rejection("a couch", "a sofa", PhraseContext("What is there?", OtherPhrases([])))
'synonym'
"""

from collections import Counter
from dataclasses import dataclass
from functools import lru_cache

from reverse.data.negatives.phrase_contents import (
    OtherPhrases,
    drop_small_words,
    find_content_words,
    split_words,
)
from reverse.data.tagging.lexicon import load_lexicon
from reverse.data.tagging.phrase_candidates import PREPOSITIONS
from reverse.tokens.spans import remove_tags

REASONS = {  # why a replacement is rejected, as it is told to a language model
    "empty": "the phrase is empty or holds a tag",
    "same": "the phrase is unchanged",
    "case_only": "only upper and lower case differ",
    "article_or_pronoun": "only an article or a pronoun differs",
    "plural_only": "only singular and plural differ",
    "synonym": "it may be true of the same thing",
    "part_of": "it is the same phrase made longer or shorter",
    "repeated": "it says a word twice",
    "in_question": "the question says it already",
    "in_answer": "the answer says elsewhere that it is there",
}
SHARED_FORMS = (
    "adjective",
    "opposite",
)  # a second thing may be red and the first still not


@dataclass(frozen=True, slots=True)
class PhraseContext:
    """The context of a phrase: the question, and the other true phrases of the conversation's answers."""

    question: str
    others: OtherPhrases


def find_rejection(old: str, new: str, context: PhraseContext, *, closed: bool = False) -> str | None:
    """Return why `new` is not a negative of `old`, as a key of REASONS; None if it is one.

    closed: the question lists the possible answers (numbers, letters, "red or blue"), so it does not matter
    that the question or another answer contains `new`.
    """
    if not new.strip() or remove_tags(new) != new:
        return "empty"
    if new == old:
        return "same"
    old_words, new_words = split_words(old), split_words(new)
    if old_words == new_words:
        return "case_only"
    old_words, new_words = drop_small_words(old_words), drop_small_words(new_words)
    if not closed and (old_words == new_words or not new_words):
        return "article_or_pronoun"
    lexicon = load_lexicon()
    before, after = find_content_words(old), find_content_words(new)
    if before and before == after:
        return "plural_only"
    same_length = before and len(before) == len(after)
    if same_length and all(lexicon.may_be_same(a, b) for a, b in zip(before, after, strict=True)):
        return "synonym"
    if lexicon.may_be_same(" ".join(before), " ".join(after)):
        return "synonym"
    if closed:
        return None
    removed, added = Counter(before) - Counter(after), Counter(after) - Counter(before)
    if not removed or not added:
        return "part_of"
    if any(after.count(word) > max(1, before.count(word)) for word in added):
        return "repeated"
    return _find_known_words(new, list(added), context)


def repeats_question(phrase: str, question: str) -> bool:
    """Whether a phrase only repeats the question, and so claims nothing: "The car" for "What colour is the
    car?"."""
    meaningful = [word for word in drop_small_words(split_words(phrase)) if word not in PREPOSITIONS]
    return all(load_lexicon().singularize(word) in _question_words(question) for word in meaningful)


def _find_known_words(new: str, added: list[str], context: PhraseContext) -> str | None:
    """Return a reason if the new words of a phrase occur in the question or in another true phrase."""
    asked = _question_words(context.question)
    if all(word in asked for word in added):
        return "in_question"
    if context.others.contains_content(tuple(find_content_words(new))):
        return "in_answer"
    lexicon = load_lexicon()
    matches = [match.entry for match in lexicon.find_words(new) if match.entry.form not in SHARED_FORMS]
    names = [entry.word.lower() for entry in matches if set(entry.word.lower().split()) & set(added)]
    names = names or [word for word in added if not _has_shared_form(word)]
    return "in_answer" if any(context.others.mentions(name) for name in names) else None


@lru_cache(maxsize=64)  # all phrases of an answer have one question
def _question_words(question: str) -> frozenset[str]:
    return frozenset(find_content_words(question))


def _has_shared_form(word: str) -> bool:
    readings = load_lexicon().entries.get(word)
    return readings is not None and all(entry.form in SHARED_FORMS for entry, _ in readings)
