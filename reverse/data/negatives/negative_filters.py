"""Which replacements are no negatives: they say the same, or what may well be true.

>>> trivial("a couch", "a sofa", Context("What is there?", ()), load_lexicon())
'synonym'
"""

import re
from collections import Counter
from dataclasses import dataclass
from functools import lru_cache

from reverse.data.negatives.true_statements import OtherPhrases, PhraseCounts
from reverse.data.tagging.lexicon import Lexicon
from reverse.data.tagging.phrase_candidates import PREPOSITIONS
from reverse.tokens.spans import remove_tags

REASONS = (
    "empty", "same", "case_only", "article_or_pronoun", "plural_only", "synonym", "part_of", "repeated",
    "in_question", "in_answer",
)  # fmt: skip

_SMALL_WORDS_TEXT = """
    a an the this that these those i me my mine you your yours he him his she her hers it its we us
    our ours they them their theirs one's some any another other each every both either neither such
    same very really quite there here"""
SMALL_WORDS = frozenset(_SMALL_WORDS_TEXT.split())
_WORD = re.compile(r"[^\W_]+(?:['’-][^\W_]+)*")
FREE = ("adjective", "opposite")  # a second thing may be red, or on the right, and the first still not


@dataclass(frozen=True, slots=True)
class PhraseContext:
    """What stands around a phrase: the question, and the other true phrases of the conversation's answers."""

    question: str
    said: tuple[str, ...] | OtherPhrases


def find_rejection(
    old: str, new: str, context: PhraseContext, lexicon: Lexicon, *, closed: bool = False
) -> str | None:
    """Why `new` is no negative for `old`, as one of REASONS; None where it is one.

    `closed`: the question itself lists what may be answered (numbers, letters, "red or blue"), so that
    standing in it, or elsewhere in the answers, says nothing.
    """
    if not new.strip() or remove_tags(new) != new:
        return "empty"
    if new == old:
        return "same"
    if " ".join(_words(new)) == " ".join(_words(old)):
        return "case_only"
    was, now = _content(old), _content(new)
    if not closed and (was == now or not now):
        return "article_or_pronoun"
    was, now = _singular(was, lexicon), _singular(now, lexicon)
    if was and was == now:
        return "plural_only"
    if was and len(was) == len(now) and all(lexicon.may_be_same(a, b) for a, b in zip(was, now, strict=True)):
        return "synonym"
    if lexicon.may_be_same(" ".join(was), " ".join(now)):
        return "synonym"
    if closed:
        return None
    kept, added = Counter(was) - Counter(now), Counter(now) - Counter(was)
    if not kept or not added:
        return "part_of"
    many, before = Counter(now), Counter(was)
    if any(many[word] > max(1, before[word]) for word in added):
        return "repeated"
    return _known(new, list(added), context, lexicon)


def repeats_question(phrase: str, question: str, lexicon: Lexicon) -> bool:
    """Whether a phrase only repeats the question, and so claims nothing: "The car" of "What colour is the
    car?"."""
    asked = _asked(question, lexicon)
    words = _singular([word for word in _content(phrase) if word not in PREPOSITIONS], lexicon)
    return all(word in asked for word in words)


def _known(new: str, added: list[str], context: PhraseContext, lexicon: Lexicon) -> str | None:
    """Whether what is new in a phrase stands in the question or in another true phrase."""
    asked = _asked(context.question, lexicon)
    if all(word in asked for word in added):
        return "in_question"
    said = (
        context.said
        if isinstance(context.said, OtherPhrases)
        else OtherPhrases((PhraseCounts(context.said),))
    )
    if said.say(tuple(content_words(new, lexicon))):
        return "in_answer"
    names = [match.entry.word.lower() for match in lexicon.find(new) if match.entry.form not in FREE]
    fresh = [name for name in names if set(name.split()) & set(added)]
    fresh = fresh or [word for word in added if not _is_free(word, lexicon)]
    return "in_answer" if any(said.speak_of(word, lexicon) for word in fresh) else None


@lru_cache(maxsize=64)  # all phrases of an answer have one question
def _asked(question: str, lexicon: Lexicon) -> frozenset[str]:
    return frozenset(content_words(question, lexicon))


def content_words(text: str, lexicon: Lexicon) -> list[str]:
    """The words of a text that say something, in their base form."""
    return _singular(_content(text), lexicon)


def _is_free(word: str, lexicon: Lexicon) -> bool:
    readings = lexicon.entries.get(word)
    return readings is not None and all(entry.form in FREE for entry, _ in readings)


def _words(text: str) -> list[str]:
    return [word.lower() for word in _WORD.findall(text)]


def _content(text: str) -> list[str]:
    return [word for word in _words(text) if word not in SMALL_WORDS]


def _singular(words: list[str], lexicon: Lexicon) -> list[str]:
    return [lexicon.singular(word) for word in words]
