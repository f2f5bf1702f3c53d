"""Find the parts of an answer that may be a key phrase, by characters alone, without grammar or model.

>>> find_protected("Run `ls` or see https://example.org.")
[(4, 8), (16, 36)]
>>> is_skipped("in the picture"), is_skipped("the picture frame")
(True, False)
"""

import re
from bisect import bisect_right
from collections.abc import Iterable

# Code, mathematics, addresses and markup, which are never tagged. No part of the pattern may scan the same
# text from many starts: what opens ends at the next opening, and an address begins where a word does.
_PROTECTED = re.compile(
    r"```.*?(?:```|\Z)"  # fenced code, closed or not
    r"|~~~.*?(?:~~~|\Z)"
    r"|`[^`\n]+`"
    r"|\$\$.+?\$\$"
    r"|\\\[(?:(?!\\\[).)+?\\\]|\\\((?:(?!\\\().)+?\\\)"
    r"|\\begin\{([a-zA-Z*]+)\}.*?(?:\\end\{\1\}|\Z)"
    r"|\$(?=[^\s$])(?=[^$\n\\^_{}=+]*[\\^_{}=+])[^$\n]*+(?<=\S)\$|\$[a-zA-Z]\$"
    r"|\\[a-zA-Z]+(?:\{[^{}\n]*\})+"
    r"|(?:https?|ftp|file)://[^\s<>\"')\]]+|www\.[^\s<>\"')\]]+"
    r"|(?<![\w.+-])[\w.+-]++@[\w-]+\.[\w.-]+"
    r"|<[/!]?[a-zA-Z][^<>\n]{0,200}>"
    r"|^(?: {4}|\t)[^\n]*$",  # an indented line; see below
    re.DOTALL | re.MULTILINE,
)
_EXAMPLE_OF_CODE = re.compile(r"[;{}=]|\w\(|=>|->|::")

_SKIPPED_TEXT = (
    # question words
    """who whom whose which what when where why how whoever whichever whatever"""
    # demonstratives
    """ this that these those here there such"""
    # pronouns
    """ i me we us you he him she her it they them myself ourselves yourself yourselves himself herself
    itself themselves one ones oneself other others another each both either neither all some any many most
    much few several everyone everybody everything someone somebody something anyone anybody anything
    who's
    it's that's"""
    # possessives
    """ my mine our ours your yours his hers its their theirs"""
    # articles
    """ a an the"""
)
SKIPPED_WORDS = frozenset(_SKIPPED_TEXT.split())

_PICTURE = re.compile(
    r"(?:(?:in|of|from|to|on|at|for|with|within|throughout|across|about|by|into|inside|around|outside)\s+)?"
    r"(?:(?:a|an|the|this|that|these|those|each|both|my|your|our|its|their|given|provided|whole|entire|overall|"
    r"first|second|other|same|following|above|below|current|particular|accompanying)\s+)*"
    r"(?:image|picture|photo|photograph|pic|snapshot|screenshot|scene|shot|photography|foto|imagen|bild)s?",
    re.IGNORECASE,
)
_EDGE = " \t\r\n.,;:!?\"'“”‘’«»()[]{}*_#|<>~`…-–—/\\=+。，！？；：、「」"
_NUMBERED = re.compile(r"(?m)^[ \t]*(?:\(?\d{1,3}[.):](?=\s|$)|[-*+•](?:\s|$))")


_EMPHASIS = re.compile(r"\*{1,3}|(?m:^#{1,6} )|_{2,}")


def find_protected(text: str) -> list[tuple[int, int]]:
    """Return the parts of `text` that are code, LaTeX, URLs, e-mail addresses, markup or list numbers."""
    found = []
    for match in _PROTECTED.finditer(text):
        if match.group().startswith((" ", "\t")) and not _EXAMPLE_OF_CODE.search(match.group()):
            continue  # indented prose
        found.append(match.span())
    code = SpanIndex(found)
    found += [match.span() for match in _NUMBERED.finditer(text) if not code.overlaps(*match.span())]
    return sorted(found)


class SpanIndex:
    """Disjoint spans of a text, searched by bisection."""

    def __init__(self, parts: Iterable[tuple[int, int]]):
        ordered = sorted(parts)
        self.starts = [start for start, _ in ordered]
        self.ends = [end for _, end in ordered]

    def overlaps(self, start: int, end: int) -> bool:
        """Whether a span shares a character with `start` to `end`."""
        k = bisect_right(self.ends, start)  # the first span that ends after the start
        return k < len(self.starts) and self.starts[k] < end


def mask_parts(text: str, parts: list[tuple[int, int]]) -> str:
    """Replace the protected parts of `text` by blanks or "x" for the parser; the length stays."""
    pieces = []
    at = 0
    for start, end in parts:
        inner = text[start:end]
        blank = " " if "\n" in inner or _NUMBERED.match(inner) else "x"
        pieces += [text[at:start], "".join(letter if letter == "\n" else blank for letter in inner)]
        at = end
    return _EMPHASIS.sub(lambda match: " " * len(match.group()), "".join([*pieces, text[at:]]))


def trim_span(text: str, start: int, end: int) -> tuple[int, int]:
    """Trim spaces, quotes, brackets and sentence marks off a span.

    Start and end are equal if nothing is left.
    """
    while start < end and text[start] in _EDGE and not _begins_number(text, start):
        start += 1
    while start < end and text[end - 1] in _EDGE:
        end -= 1
    return start, end


def is_skipped(phrase: str) -> bool:
    """Whether a phrase is never tagged: it consists of small words, or means the picture itself."""
    words = re.findall(r"[^\W_]+(?:['’][^\W_]+)?", phrase.lower())
    if not words:
        return True
    if all(word in SKIPPED_WORDS or word in PREPOSITIONS for word in words):
        return True
    return _PICTURE.fullmatch(phrase.strip()) is not None


_PREPOSITIONS_TEXT = """
    about above across after against along among around as at before behind below beneath beside
    besides between beyond by despite down during except for from in inside into like near of off on
    onto out outside over past per since through throughout to toward towards under underneath until
    up upon via with within without"""
PREPOSITIONS = frozenset(_PREPOSITIONS_TEXT.split())

# Prepositions of several words, which a parser splits into several phrases; each ends where its noun begins.
COMPLEX_PREPOSITION = re.compile(
    r"(?<![\w-])(?:in front of|in back of|in between|in the (?:middle|center|centre|corner|back|front) of"
    r"|in the (?:background|foreground) of"
    r"|on (?:the )?top of|on the (?:far |very )?(?:left|right|other|opposite)(?:[- ]hand)? side of"
    r"|on (?:the|either|each|one|both) (?:sides?|edge|back|front|outside|inside|end|left|right) of"
    r"|(?:to|on|at) the (?:far |very |immediate )?(?:left|right|top|bottom|side|back|front)(?: side)? of"
    r"|(?:to|on|at) the (?:far |very )?(?:edge|end|rear|base|foot) of"
    r"|at the (?:top|bottom|end|edge|center|centre) of|next to|close to|far from|away from|along with"
    r"|together with"
    r"|across from|out of|inside of|outside of|because of|instead of|such as|because of|due to|according to"
    r"|up to"
    r"|ahead of|apart from|adjacent to|as well as)\s+\Z",
    re.IGNORECASE,
)
# "a pair of skis", "a group of people": one phrase.
_PARTITIVES_TEXT = """
    pair group cup glass mug piece slice bunch plate bowl bottle couple number lot set row stack
    pile crowd herd flock dozen handful bag box basket can jar loaf line series collection variety
    assortment cluster bouquet team stream sheet bundle school pack swarm kind type sort sense part
    half majority total hundreds thousands dozens lots pairs groups cups glasses pieces slices
    bunches plates bowls bottles rows stacks piles types kinds sets"""
PARTITIVES = frozenset(_PARTITIVES_TEXT.split())


def _begins_number(text: str, at: int) -> bool:
    """Whether the "." or "-" at a position begins a number, as in ".5" and "-3"."""
    return text[at] in ".-" and text[at + 1 : at + 2].isdigit() and (at == 0 or text[at - 1].isspace())
