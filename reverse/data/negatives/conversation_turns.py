"""Split a tagged record into answers, and turn them and their negatives into training records.

A negative keeps the answer up to one phrase, makes that phrase wrong and stops right after `</UN>`:

    There are <SPAN>three players</CN> <SPAN>on a field</CN>.      ->  There are <SPAN>five players</UN>

Layout, after the published set, which holds each conversation twice: a record becomes two, `id` and `id-neg`
(both without an id if it has none), with the same questions. Each answer that has a negative is right in one
of them and wrong in the other; which one is drawn, half and half. An answer without a negative stays right in
both. If no answer has one, the second record is left out. Records that already are a pair are passed on as
they are (`find_pairs`).
"""

import hashlib
import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from random import Random
from typing import Any

from reverse.data.negatives.negative_filters import PhraseContext, find_rejection, repeats_question
from reverse.data.negatives.phrase_contents import OtherPhrases, PhraseCounts
from reverse.data.negatives.rule_negatives import PhraseSlot, find_replacements
from reverse.data.records.published_set import id_text
from reverse.data.records.schema import NEGATIVE, pictures_of
from reverse.data.tagging import numbers, yes_no_words
from reverse.data.tagging.answer_types import find_answer_type, remove_image_tokens
from reverse.data.tagging.phrase_candidates import PREPOSITIONS
from reverse.tokens.spans import (
    UN,
    TaggedPhrase,
    TaggedText,
    add_tags,
    find_problems,
    parse_tags,
    remove_tags,
)

MAX_REPLACEMENTS = 24  # tried for one phrase
MAX_TEXT = 10_000  # characters of a question or an answer; longer ones get no negative
MAX_RECORD = 50_000  # characters of all questions and answers of a record; longer ones get no negative
MAX_PHRASE = 400  # characters; longer phrases are skipped
MAX_PHRASES = 50  # of one answer, in the order drawn, that are tried
MAX_ID = 1000  # characters of an id that the random numbers depend on
_NEGATIVE_SUFFIX = re.compile(rf"(?:{NEGATIVE})+\Z")


@dataclass(frozen=True)
class AnswerTurn:
    """One tagged answer of a record.

    at: its index among the answers. true_phrases: the true phrases of all answers of the record.
    problem: why no negative can be made of it, or None.
    """

    name: str
    at: int
    question: str
    answer: TaggedText
    kind: str
    true_phrases: PhraseCounts
    problem: str | None = None

    def make_rng(self, seed: int, purpose: str = "negative") -> Random:
        """Return random numbers for this answer.

        They depend on id, place and words, not on the order of processing.
        """
        key = f"{seed}\n{purpose}\n{self.name}\n{self.at}\n{self.question}\n{self.answer.text}"
        return Random(key.encode("utf-8", "surrogatepass"))  # JSON may hold halves of a surrogate pair

    def make_context(self, phrase: TaggedPhrase) -> PhraseContext:
        """Return the context of a phrase: the question, true phrases of other answers, and this answer's
        other phrases.
        """
        own_true, own = self._own_phrases
        others = OtherPhrases((self.true_phrases, own), (own_true, PhraseCounts([phrase.text])))
        return PhraseContext(self.question, others)

    @cached_property
    def _own_phrases(self) -> tuple[PhraseCounts, PhraseCounts]:
        """Return this answer's true phrases, and all of its phrases."""
        phrases = self.answer.phrases
        return PhraseCounts(p.text for p in phrases if p.confident), PhraseCounts(p.text for p in phrases)


@dataclass(frozen=True)
class NegativeAnswer:
    """A wrong answer. value: tagged text up to `</UN>`. hint: the wrong phrase in lower case.

    at: its index.
    """

    value: str
    hint: str
    at: int


@dataclass(frozen=True)
class NegativeOutcome:
    """A negative, or the reason why none could be made; `rejected` counts rejected replacements by reason."""

    negative: NegativeAnswer | None
    reason: str | None
    rejected: Counter[str]
    detail: str = ""


def find_pairs(records: Iterable[Mapping[str, Any]]) -> frozenset[int]:
    """Return the keys of the conversations of a set that already have a negative, for `read_turns`.

    The right record of a pair looks like any other, so the set is read for this before negatives are made.
    """
    return frozenset(_pair_key(record) for record in records if _count_negatives(record))


def read_turns(record: Mapping[str, Any], pairs: Collection[int] = frozenset()) -> list[AnswerTurn]:
    """Return the answers of a record in order.

    Answers of a record in `pairs` are marked and get no negative.
    """
    conversation = record["conversations"]
    answers = [parse_tags(turn["value"]) for turn in conversation[1::2]]
    problem = None
    if pairs and _pair_key(record) in pairs:
        problem = "negative_already"
    elif sum(len(turn["value"]) for turn in conversation) > MAX_RECORD:
        problem = "record_too_long"
    true_phrases = PhraseCounts(p.text for answer in answers for p in answer.phrases if p.confident)
    turns = []
    for i, (human, gpt) in enumerate(zip(conversation[::2], conversation[1::2], strict=False)):
        question = remove_image_tokens(remove_tags(human["value"]))
        turns.append(
            AnswerTurn(
                str(record.get("id", ""))[:MAX_ID],
                i,
                question,
                answers[i],
                find_answer_type(answers[i].text, question, answers[i].phrases),
                true_phrases,
                _find_turn_problem(human["value"], gpt["value"], answers[i]) or problem,
            )
        )
    return turns


def make_negative(turn: AnswerTurn, seed: int) -> NegativeOutcome:
    """Make a negative by rules and lexicon: phrases are tried in an order drawn by `seed`."""
    if turn.problem:
        return NegativeOutcome(None, turn.problem, Counter())
    rng = turn.make_rng(seed)
    rejected: Counter[str] = Counter()
    for at in order_phrases(turn, rng)[:MAX_PHRASES]:
        phrase = turn.answer.phrases[at]
        if len(phrase.text) > MAX_PHRASE:
            rejected["too_long"] += 1
            continue
        context = turn.make_context(phrase)
        is_given = repeats_question(phrase.text, turn.question)
        slot = PhraseSlot(phrase.text, turn.question, turn.answer.text[: phrase.start])
        for new, closed in islice(find_replacements(slot, rng), MAX_REPLACEMENTS):
            if is_given and not closed:
                rejected["given"] += 1
                break
            reason = find_rejection(phrase.text, new, context, closed=closed)
            if reason is None:
                return NegativeOutcome(build_negative(turn.answer, at, new), None, rejected)
            rejected[reason] += 1
    return NegativeOutcome(None, "nothing_to_swap", rejected)


def order_phrases(turn: AnswerTurn, rng: Random) -> list[int]:
    """Return the order in which phrases are tried: a yes, no or number that was asked for goes first."""
    phrases = turn.answer.phrases
    order = [at for at in range(len(phrases)) if not _precedes_claim(turn.answer, phrases[at])]
    rng.shuffle(order)
    if turn.kind == "yes_no":
        found = yes_no_words.find_yes_no(turn.answer.text)
        return sorted(order, key=lambda at: found != (phrases[at].start, phrases[at].end))
    if turn.kind == "number":
        return sorted(order, key=lambda at: not numbers.find_numbers(phrases[at].text))
    return order


def _precedes_claim(answer: TaggedText, phrase: TaggedPhrase) -> bool:
    """Whether a phrase ("On the left …") stands before the thing it describes and cannot be wrong yet."""
    before = answer.text[: phrase.start].rstrip(" \"'*(")
    if before and before[-1] not in ".!?\n:;":
        return False
    is_alone = len(answer.phrases) == 1 or not answer.text[phrase.end :].strip(" .\n")
    return not is_alone and phrase.text.split()[0].lower() in PREPOSITIONS


def build_negative(answer: TaggedText, at: int, new: str) -> NegativeAnswer:
    """Return `answer` up to phrase number `at`, which is replaced by `new`."""
    start = answer.phrases[at].start
    phrases = [*answer.phrases[:at], TaggedPhrase(new, start, start + len(new), False)]
    return NegativeAnswer(add_tags(answer.text[:start] + new, phrases), new.lower(), at)


def make_record_pair(
    record: Mapping[str, Any], turns: Sequence[AnswerTurn], outcomes: Sequence[NegativeOutcome], seed: int
) -> tuple[list[dict[str, Any]], Counter[str], list[dict[str, Any]]]:
    """Make two records from one, or one if no answer has a negative.

    Each answer that has a negative is right in one of the two records and wrong in the other.
    Returns the records, counts of what was done, and one entry for each answer without a negative.
    """
    counts: Counter[str] = Counter(records_in=1, answers=len(turns))
    failures = []
    for turn, outcome in zip(turns, outcomes, strict=True):
        counts.update({f"filtered.{reason}": count for reason, count in outcome.rejected.items()})
        if outcome.negative is None:
            counts[f"without_negative.{outcome.reason}"] += 1
            failures.append(
                {"id": record.get("id"), "turn": turn.at, "reason": outcome.reason, "A_type": turn.kind}
                | ({"detail": outcome.detail} if outcome.detail else {})
            )
        else:
            counts[f"negatives.{turn.kind}"] += 1
            counts["hints"] += 1
    made = [i for i, outcome in enumerate(outcomes) if outcome.negative is not None]
    rng = turns[0].make_rng(seed, "order")
    wrong_first = set(rng.sample(made, (len(made) + rng.randrange(2)) // 2 if made else 0))
    wrong_answers = [wrong_first, set(made) - wrong_first] if made else [wrong_first]
    wrong_before = _count_negatives(record)
    for wrong in wrong_answers:
        counts["positive_answers"] += len(turns) - len(wrong) - wrong_before
        counts["negative_answers"] += len(wrong) + wrong_before
    records = [_replace_answers(record, turns, outcomes, wrong) for wrong in wrong_answers]
    if made:
        # A single answer's wrong record is the one named "-neg"; otherwise both hold wrong answers.
        negative = 0 if len(made) == len(turns) == 1 and wrong_first else 1
        name = id_text(record)
        if name is not None:
            records[negative]["id"] = name + NEGATIVE
        counts["negative_first"] += min(made) in wrong_first
        counts["pairs"] += 1
    return records, counts, failures


def _replace_answers(
    record: Mapping[str, Any],
    turns: Sequence[AnswerTurn],
    outcomes: Sequence[NegativeOutcome],
    wrong: set[int],
) -> dict[str, Any]:
    """Return the record with hints and types; the answers at the indices `wrong` become their negatives."""
    conversation = list(record["conversations"])
    for turn, outcome in zip(turns, outcomes, strict=True):
        answer = conversation[2 * turn.at + 1]
        value, hint = answer["value"], answer.get("hint")
        if outcome.negative is not None:
            hint = outcome.negative.hint
            value = outcome.negative.value if turn.at in wrong else value
        kind = answer.get("A_type") or turn.kind
        conversation[2 * turn.at + 1] = answer | {"value": value, "A_type": kind, "hint": hint}
    return dict(record) | {"conversations": conversation}


def _count_negatives(record: Mapping[str, Any]) -> int:
    return sum(UN in turn["value"] for turn in record["conversations"][1::2])


def _pair_key(record: Mapping[str, Any]) -> int:
    """Hash what a pair of records shares to 64 bits: id without "-neg" (or picture), and questions."""
    name = id_text(record)
    shared = "\0".join(pictures_of(record)) if name is None else _NEGATIVE_SUFFIX.sub("", name)
    questions = (turn["value"] for turn in record["conversations"][::2])
    text = "\0".join((shared, *questions)).encode("utf-8", "surrogatepass")
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little")


def _find_turn_problem(question: str, value: str, answer: TaggedText) -> str | None:
    if max(len(question), len(value)) > MAX_TEXT:
        return "too_long"
    if find_problems(value) or not all(phrase.text.strip() for phrase in answer.phrases):
        return "malformed"
    if not answer.phrases:
        return "no_phrase"
    return "negative_already" if UN in value else None
