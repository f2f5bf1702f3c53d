"""Common parts of modes: asking for one answer, the drafts of a request, budgets and gates."""

from __future__ import annotations

import math
import time
from collections.abc import Generator, Sequence
from dataclasses import dataclass, field, replace
from numbers import Real
from typing import Any

from reverse.decoding.asks import (
    Ask,
    Conversation,
    Generate,
    Mode,
    Node,
    Outcome,
    PolicyFactory,
    Run,
    Sampling,
    Score,
    find_policy,
    resolve_mode,
)
from reverse.decoding.config import check_whole_number
from reverse.decoding.result import Draft, Phrase, Result
from reverse.decoding.scheduling.tasks import ModeRequest
from reverse.decoding.turns import read_turn
from reverse.errors import RequestError
from reverse.grading import AnswerFormat, extract_answer
from reverse.modes.shared.confidence import compute_confidence

__all__ = [
    "TEXT",
    "Asks",
    "Budget",
    "Drafts",
    "ModeRequest",
    "answer_once",
    "ask_for_answer",
    "ask_for_samples",
    "count_tokens_left",
    "find_inner_policy",
    "question_of",
    "replace_question",
    "score_answers",
    "score_likelihood",
    "turn_of",
]

Asks = Generator[list[Ask], list[Any], Outcome]
TEXT = AnswerFormat("text")


@dataclass(frozen=True, slots=True)
class Budget:
    """The limits of one request. A mode stops asking when a limit is reached, and returns the best it has.

    Args:
        max_tokens_total: tokens generated, discarded ones included.
        max_seconds: seconds since the mode began.
        max_calls: answers and parts of answers that were asked for.
    """

    max_tokens_total: int | None = None
    max_seconds: float | None = None
    max_calls: int | None = None

    def __post_init__(self) -> None:
        for name in ("max_tokens_total", "max_calls"):
            if getattr(self, name) is not None:
                check_whole_number(name, getattr(self, name), 1)
        seconds = self.max_seconds
        is_number = isinstance(seconds, Real) and not isinstance(seconds, bool)
        if seconds is not None and not (is_number and 0 < seconds < math.inf):
            raise RequestError(f"max_seconds must be a number above 0, got {self.max_seconds!r:.80}")


@dataclass(slots=True)
class Drafts:
    """The drafts that a mode made for one request, and their cost.

    Args:
        form: the form of answers, for extraction.
        budget: what the request may cost.
    """

    form: AnswerFormat = TEXT
    budget: Budget = field(default_factory=Budget)
    made: list[Draft] = field(default_factory=list)
    calls: int = 0
    tokens: int = 0
    began: float = field(default_factory=lambda: time.perf_counter())

    def add(
        self,
        role: str,
        outcome: Outcome,
        confidence: float,
        *,
        text: str | None = None,
        malformed: bool = False,
        is_counted: bool = False,
    ) -> Draft:
        """Record one answer, and charge it to the budget unless it was charged already.

        `text` is the part of the turn that holds the answer, if that is not the whole turn.
        """
        result = turn_of(outcome)
        shown = result.text if text is None else text
        draft = Draft(
            role=role,
            text=shown,
            answer=extract_answer(shown, self.form),
            confidence=confidence,
            tokens=result.usage.kept + result.usage.discarded,
            seconds=result.usage.seconds,
            malformed=malformed,
            phrases=_find_phrases(result, shown),
        )
        self.made += [*outcome.result.drafts, draft]
        if not is_counted:
            self.count(outcome)
        return draft

    def count(self, outcome: Outcome) -> None:
        """Charge an outcome to the budget; an outcome of an inner mode counts all that it asked for."""
        self.calls += outcome.calls
        self.tokens += outcome.result.usage.kept + outcome.result.usage.discarded

    @property
    def is_spent(self) -> bool:
        """Whether any limit of the budget is reached."""
        budget = self.budget
        return (
            (budget.max_calls is not None and self.calls >= budget.max_calls)
            or (budget.max_tokens_total is not None and self.tokens >= budget.max_tokens_total)
            or (budget.max_seconds is not None and time.perf_counter() - self.began >= budget.max_seconds)
        )

    def calls_left(self, wanted: int) -> int:
        """Return how many of `wanted` answers the budget of calls allows, at least one."""
        if self.budget.max_calls is None:
            return wanted
        return max(1, min(wanted, self.budget.max_calls - self.calls))

    def finish(self, outcome: Outcome, draft: Draft) -> Outcome:
        """Make the outcome of the mode: the whole turn, its answer, and all drafts with this one accepted."""
        drafts = tuple(replace(each, accepted=each is draft) for each in self.made)
        result = replace(turn_of(outcome), answer=draft.answer, drafts=drafts)
        return Outcome(result, outcome.node)


def _find_phrases(result: Result, part: str) -> tuple[Phrase, ...]:
    """Return the phrases of a part of a result's text, with their offsets in the part."""
    start = result.text.rfind(part) if part else -1
    if start < 0:
        return ()
    end = start + len(part)
    return tuple(
        replace(phrase, start=phrase.start - start, end=phrase.end - start)
        for phrase in result.phrases
        if start <= phrase.start and phrase.end <= end
    )


def turn_of(outcome: Outcome) -> Result:
    """Return the whole turn of the assistant that an outcome ends. Outcomes of modes are whole already."""
    return outcome.result if outcome.result.drafts or not outcome.node.parts else read_turn(outcome.node)


def question_of(source: Conversation) -> str:
    """Return the text of the last turn of the user."""
    if isinstance(source.prompt, str):
        return source.prompt
    content = next(turn["content"] for turn in reversed(source.prompt) if turn.get("role") == "user")
    if isinstance(content, str):
        return content
    return " ".join(part["text"] for part in content if part.get("type") == "text")


def count_tokens_left(request: ModeRequest, source: Conversation | Node) -> int | None:
    """Count the tokens that may still be added to the turn that `source` ends; None: no limit is known."""
    if request.max_new_tokens is None:
        return None
    written = source.turn_length if isinstance(source, Node) else 0
    return max(0, request.max_new_tokens - written)


def replace_question(source: Conversation, text: str) -> Conversation:
    """Return the conversation with another text in its last turn of the user; its pictures stay."""
    if isinstance(source.prompt, str):
        return replace(source, prompt=text)
    turns = [dict(turn) for turn in source.prompt]
    last = max(i for i, turn in enumerate(turns) if turn.get("role") == "user")
    content = turns[last]["content"]
    if isinstance(content, str):
        turns[last]["content"] = text
    else:
        pictures = [part for part in content if part.get("type") != "text"]
        turns[last]["content"] = [*pictures, {"type": "text", "text": text}]
    return replace(source, prompt=turns)


def answer_once(request: ModeRequest, policy: PolicyFactory | None) -> Asks:
    """Ask for one answer; after a blank answer to an open-ended question, ask once more (arXiv 2504.13169
    §4).
    """
    source, config = request.conversation, request.config
    if not config.open_ended or not isinstance(source, Conversation):
        (outcome,) = yield [Generate(source, final=True, policy=policy)]
        return outcome
    (first,) = yield [Generate(source, final="unless_blank", policy=policy)]
    if first.text.strip():
        return first
    question = source.with_instruction(config.false_premise)
    (second,) = yield [Generate(question, final=True, policy=policy)]
    return second


def find_inner_policy(inner: str | Mode | None) -> PolicyFactory | None:
    """Return the policy of the innermost mode; None: the policy of the configuration."""
    return None if inner is None else find_policy(resolve_mode(inner))


def ask_for_answer(
    source: Conversation | Node,
    inner: str | Mode | None,
    *,
    role: str = "",
    round: int = 0,
    final: bool = False,
) -> Ask:
    """Ask for one answer of the inner mode: a single `Generate` where that mode makes a single answer."""
    mode = None if inner is None else resolve_mode(inner)
    if mode is not None and not hasattr(mode, "policy"):
        return Run(mode, source, role=role, round=round)
    return Generate(
        source,
        final="unless_blank" if final else False,  # a blank answer may be passed over
        policy=find_inner_policy(mode),
        role=role,
        round=round,
    )


def ask_for_samples(
    source: Conversation | Node, inner: str | Mode | None, n: int, how: Sampling, *, round: int = 0
) -> list[Ask]:
    """Ask for `n` samples of the inner mode; all answers that it asks for are sampled."""
    mode = None if inner is None else resolve_mode(inner)
    if mode is not None and not hasattr(mode, "policy"):
        return [Run(mode, source, sampling=how, role="sample", round=round) for _ in range(n)]
    policy = find_inner_policy(mode)
    return [Generate(source, n, sampling=how, policy=policy, role="sample", round=round)]


def score_answers(
    outcomes: Sequence[Outcome], kind: str | None
) -> Generator[list[Ask], list[Any], list[float]]:
    """Return the confidence of each answer, as `compute_confidence` defines it.

    With None: `"min"`; if no answer has phrases, `"likelihood"` in [0, 1], or 0 if the backend has none.
    """
    turns = [turn_of(outcome) for outcome in outcomes]
    if kind is None:
        has_phrases = any(phrase.p_un is not None for turn in turns for phrase in turn.phrases)
        if not has_phrases:
            return (yield from score_likelihood(outcomes, default=-math.inf))
        kind = "min"
    if kind == "likelihood":
        return (yield from score_likelihood(outcomes))
    return [compute_confidence(turn, kind) for turn in turns]


def score_likelihood(
    outcomes: Sequence[Outcome], default: float | None = None
) -> Generator[list[Ask], list[Any], list[float]]:
    """Return the length-normalised probability of each answer; `default` is its logarithm if unknown."""
    scores = yield [Score(outcome.node, "likelihood", default) for outcome in outcomes]
    return [0.0 if math.isnan(score) else math.exp(min(0.0, score)) for score in scores]
