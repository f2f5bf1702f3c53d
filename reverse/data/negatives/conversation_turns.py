"""From a tagged record to its negatives, and both to training records.

A negative keeps the answer up to one phrase, says that phrase wrongly and stops right after `</UN>`:

    There are <SPAN>three players</CN> <SPAN>on a field</CN>.      ->  There are <SPAN>five players</UN>

Layout, after the published set, which holds each conversation twice: of a record come two, `id` and `id-neg`
(both without id where it has none), with the same questions. Each answer that has a negative stands rightly
in one and wrongly in the other; which in which is drawn, half and half. An answer without negative stays
right in both. Where no answer has one, the second record is left out. Records of a pair that was made before
are passed on as they are (`find_pairs`).
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
from reverse.data.negatives.rule_negatives import PhraseSlot, find_replacements
from reverse.data.negatives.true_statements import OtherPhrases, PhraseCounts
from reverse.data.records.published_set import id_text
from reverse.data.records.schema import NEGATIVE, pictures_of
from reverse.data.tagging import numbers, yes_no_words
from reverse.data.tagging.answer_types import find_answer_type, remove_image_tokens
from reverse.data.tagging.lexicon import Lexicon, load_lexicon
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

# Answers that are left as they are.
PASS_ON = ("no_phrase", "malformed", "negative_already", "too_long", "record_too_long")
TRIES = 24  # replacements of one phrase that are looked at
LONGEST = 10_000  # characters of a question or an answer; of longer ones no negative is made
LONGEST_RECORD = 50_000  # characters of all questions and answers of a record; of longer ones none is made
LONGEST_PHRASE = 400  # characters; longer ones are passed over
MOST_PHRASES = 50  # of one answer, in the order drawn, that are tried
LONGEST_NAME = 1000  # characters of an id that the draw depends on
_NEGATIVE = re.compile(rf"(?:{NEGATIVE})+\Z")


@dataclass(frozen=True)
class AnswerTurn:
    """One tagged answer: where it stands, what was asked, and what else the conversation says.

    `told`: the true phrases of all answers of the record. `problem`: why no negative can be made of it, or
    None.
    """

    name: str
    at: int
    question: str
    answer: TaggedText
    kind: str
    told: PhraseCounts
    problem: str | None = None

    def rng(self, seed: int, purpose: str = "negative") -> Random:
        """Random numbers of this answer alone: by id, place and words, not by when or where it is worked
        on."""
        drawn_by = f"{seed}\n{purpose}\n{self.name}\n{self.at}\n{self.question}\n{self.answer.text}"
        return Random(drawn_by.encode("utf-8", "surrogatepass"))  # JSON may hold halves of a surrogate

    def context(self, phrase: TaggedPhrase) -> PhraseContext:
        """The question, and the true phrases of other answers with all others of this one."""
        true, own = self._own
        return PhraseContext(
            self.question, OtherPhrases((self.told, own), (true, PhraseCounts([phrase.text])))
        )

    @cached_property
    def _own(self) -> tuple[PhraseCounts, PhraseCounts]:
        """This answer's true phrases, and all of its phrases."""
        phrases = self.answer.phrases
        return PhraseCounts(p.text for p in phrases if p.confident), PhraseCounts(p.text for p in phrases)

    def slot(self, phrase: TaggedPhrase) -> PhraseSlot:
        return PhraseSlot(phrase.text, self.question, self.answer.text[: phrase.start])


@dataclass(frozen=True)
class NegativeAnswer:
    """`value`: the tagged text up to and with `</UN>`; `hint`: the wrong phrase, lower case; `at`: which
    phrase."""

    value: str
    hint: str
    at: int


@dataclass(frozen=True)
class NegativeOutcome:
    """A negative, or why there is none; `refused` counts the replacements that were filtered, by reason."""

    negative: NegativeAnswer | None
    reason: str | None
    refused: Counter[str]
    detail: str = ""


def find_pairs(records: Iterable[Mapping[str, Any]]) -> frozenset[int]:
    """Which conversations of a set have a wrong answer already, as `read_turns` takes them.

    The right record of a pair looks like any other, so the set is read for this before negatives are made.
    """
    return frozenset(_pair_key(record) for record in records if _holds_negative(record))


def read_turns(record: Mapping[str, Any], pairs: Collection[int] = frozenset()) -> list[AnswerTurn]:
    """The answers of a record, in order; of one of `pairs` none is to get a negative."""
    paired = bool(pairs) and _pair_key(record) in pairs
    conversation = record["conversations"]
    answers = [parse_tags(turn["value"]) for turn in conversation[1::2]]
    is_too_long = sum(len(turn["value"]) for turn in conversation) > LONGEST_RECORD
    turns = []
    true = PhraseCounts(p.text for answer in answers for p in answer.phrases if p.confident)
    for i, (asked, told) in enumerate(zip(conversation[::2], conversation[1::2], strict=False)):
        question = remove_image_tokens(remove_tags(asked["value"]))
        kind = find_answer_type(answers[i].text, question, answers[i].phrases)
        turns.append(
            AnswerTurn(
                str(record.get("id", ""))[:LONGEST_NAME],
                i,
                question,
                answers[i],
                kind,
                true,
                _problem(asked["value"], told["value"], answers[i])
                or ("negative_already" if paired else "record_too_long" if is_too_long else None),
            )
        )
    return turns


def make_negative(turn: AnswerTurn, seed: int, lexicon: Lexicon | None = None) -> NegativeOutcome:
    """A negative by rule and lexicon: the first phrase, in an order drawn by `seed`, that can be said
    wrongly."""
    if turn.problem:
        return NegativeOutcome(None, turn.problem, Counter())
    lexicon = lexicon or load_lexicon()
    rng = turn.rng(seed)
    refused: Counter[str] = Counter()
    for at in order_phrases(turn, rng)[:MOST_PHRASES]:
        phrase = turn.answer.phrases[at]
        if len(phrase.text) > LONGEST_PHRASE:
            refused["too_long"] += 1
            continue
        context = turn.context(phrase)
        given = repeats_question(phrase.text, turn.question, lexicon)
        for new, closed in islice(find_replacements(turn.slot(phrase), rng, lexicon), TRIES):
            if given and not closed:
                refused["given"] += 1
                break
            reason = find_rejection(phrase.text, new, context, lexicon, closed=closed)
            if reason is None:
                return NegativeOutcome(write_negative(turn.answer, at, new), None, refused)
            refused[reason] += 1
    return NegativeOutcome(None, "nothing_to_swap", refused)


def order_phrases(turn: AnswerTurn, rng: Random) -> list[int]:
    """In which order phrases are tried: a yes or no, or the number that was asked for, before all others."""
    phrases = turn.answer.phrases
    order = [at for at in range(len(phrases)) if not _is_early(turn.answer, phrases[at])]
    rng.shuffle(order)
    if turn.kind == "yes_no":
        found = yes_no_words.find_yes_no(turn.answer.text)
        return sorted(order, key=lambda at: found != (phrases[at].start, phrases[at].end))
    if turn.kind == "number":
        return sorted(order, key=lambda at: not numbers.find_numbers(phrases[at].text))
    return order


def _is_early(answer: TaggedText, phrase: TaggedPhrase) -> bool:
    """ "On the left …" before what stands there is named: nothing has been said that could be wrong."""
    before = answer.text[: phrase.start].rstrip(" \"'*(")
    opens = not before or before[-1] in ".!?\n:;" or before.endswith("\n")
    if not opens:
        return False
    alone = len(answer.phrases) == 1 or not answer.text[phrase.end :].strip(" .\n")
    return not alone and phrase.text.split()[0].lower() in PREPOSITIONS


def write_negative(answer: TaggedText, at: int, new: str) -> NegativeAnswer:
    """`answer` with phrase number `at` said as `new`, ending there."""
    phrase = answer.phrases[at]
    text = answer.text[: phrase.start] + new
    phrases = [*answer.phrases[:at], TaggedPhrase(new, phrase.start, phrase.start + len(new), False)]
    return NegativeAnswer(add_tags(text, phrases), new.lower(), at)


def make_record_pair(
    record: Mapping[str, Any], turns: Sequence[AnswerTurn], outcomes: Sequence[NegativeOutcome], seed: int
) -> tuple[list[dict[str, Any]], Counter[str], list[dict[str, Any]]]:
    """The records that come of one, what is to be counted, and a line for each answer without a negative."""
    counts: Counter[str] = Counter(records_in=1, answers=len(turns))
    wrong_before = sum(UN in turn["value"] for turn in record["conversations"][1::2])
    failures = []
    for turn, outcome in zip(turns, outcomes, strict=True):
        counts.update({f"filtered.{reason}": many for reason, many in outcome.refused.items()})
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
    rng = turns[0].rng(seed, "order")
    wrong_first = set(rng.sample(made, (len(made) + rng.randrange(2)) // 2 if made else 0))
    first = _record(record, turns, outcomes, wrong_first)
    counts["positive_answers"] += len(turns) - len(wrong_first) - wrong_before
    counts["negative_answers"] += len(wrong_first) + wrong_before
    if not made:
        return [first], counts, failures
    wrong_second = set(made) - wrong_first
    second = _record(record, turns, outcomes, wrong_second)
    if len(made) == len(turns) == 1:  # a name should not say "neg" of what is right
        first, second = (first, second) if 0 in wrong_second else (second, first)
        pairs = [first, _named_negative(second)]
        if 0 in wrong_first:
            pairs.reverse()
    else:
        pairs = [first, _named_negative(second)]
    counts["positive_answers"] += len(turns) - len(wrong_second) - wrong_before
    counts["negative_answers"] += len(wrong_second) + wrong_before
    counts["negative_first"] += min(made) in wrong_first
    counts["pairs"] += 1
    return pairs, counts, failures


def _named_negative(record: dict[str, Any]) -> dict[str, Any]:
    name = id_text(record)
    return record if name is None else record | {"id": name + NEGATIVE}


def _record(
    record: Mapping[str, Any],
    turns: Sequence[AnswerTurn],
    outcomes: Sequence[NegativeOutcome],
    wrong: set[int],
) -> dict[str, Any]:
    conversation = list(record["conversations"])
    for turn, outcome in zip(turns, outcomes, strict=True):
        place = 2 * turn.at + 1
        answer = conversation[place]
        negative, kind = outcome.negative, answer.get("A_type") or turn.kind
        if negative is None:
            conversation[place] = answer | {"A_type": kind, "hint": answer.get("hint")}
            continue
        value = negative.value if turn.at in wrong else answer["value"]
        conversation[place] = answer | {"value": value, "A_type": kind, "hint": negative.hint}
    return dict(record) | {"conversations": conversation}


def _holds_negative(record: Mapping[str, Any]) -> bool:
    return any(UN in turn["value"] for turn in record["conversations"][1::2])


def _pair_key(record: Mapping[str, Any]) -> int:
    """64 bits of what both records of a pair share: the id without "-neg", or else the picture, and the
    questions."""
    name = id_text(record)
    shared = "\0".join(pictures_of(record)) if name is None else _NEGATIVE.sub("", name)
    asked = (turn["value"] for turn in record["conversations"][::2])
    text = "\0".join((shared, *asked)).encode("utf-8", "surrogatepass")
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little")


def _problem(asked: str, value: str, answer: TaggedText) -> str | None:
    if max(len(asked), len(value)) > LONGEST:
        return "too_long"
    if find_problems(value) or not all(phrase.text.strip() for phrase in answer.phrases):
        return "malformed"
    if not answer.phrases:
        return "no_phrase"
    return "negative_already" if UN in value else None
