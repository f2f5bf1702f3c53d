"""Answers in rounds: the loop that `SelfCorrect` and `Refine` share."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from typing import Any, Literal, Protocol

from reverse.decoding.asks import Ask, Conversation, Mode, Node, Outcome
from reverse.decoding.config import check_whole_number
from reverse.decoding.result import Draft
from reverse.errors import RequestError
from reverse.grading import AnswerFormat
from reverse.modes.mode import (
    Asks,
    Budget,
    Drafts,
    ModeRequest,
    ask_for_answer,
    score_answers,
    turn_of,
)
from reverse.modes.shared.confidence import find_first_equal
from reverse.modes.shared.judging import pick_by_model
from reverse.modes.shared.mode_settings import check_choice, check_settings

__all__ = ["Accept", "RoundSettings", "add_round", "answer_in_rounds", "check_rounds", "choose_round"]

Accept = Literal["last", "confidence", "judge"]
MOST_ROUNDS = 3

# The question of the next round, from the outcome of the last one and its draft.
NextQuestion = Callable[[Outcome, Draft], Conversation | Node]
# The part of a turn that holds its answer; None: the turn does not follow the expected form.
ReadAnswer = Callable[[str], str | None]


class RoundSettings(Protocol):
    """The settings that modes in rounds share."""

    @property
    def rounds(self) -> int:
        """Answers after the first."""

    @property
    def inner(self) -> str | Mode | None:
        """The mode that makes each answer."""

    @property
    def accept(self) -> Accept:
        """The round that is returned."""

    @property
    def stop_when_same(self) -> bool:
        """Whether two equal answers end the rounds."""

    @property
    def gate(self) -> float | None:
        """The confidence of the first answer that is enough to skip the rounds."""

    @property
    def confidence(self) -> str | None:
        """A kind of `compute_confidence`."""

    @property
    def answer_format(self) -> AnswerFormat:
        """The form of answers."""

    @property
    def budget(self) -> Budget:
        """What the request may cost."""


def check_rounds(settings: RoundSettings, least: int) -> None:
    """Raise RequestError for settings that are out of range."""
    check_whole_number("rounds", settings.rounds, least)
    if settings.rounds > MOST_ROUNDS:
        raise RequestError(f"rounds must be at most {MOST_ROUNDS}, got {settings.rounds}")
    check_choice("accept", settings.accept, ("last", "confidence", "judge"))
    check_settings(settings)


def answer_in_rounds(
    settings: RoundSettings,
    request: ModeRequest,
    role: str,
    ask_again: NextQuestion,
    read: ReadAnswer | None = None,
) -> Asks:
    """Answer, then ask again up to `rounds` times, and return the accepted round.

    `role` is that of the further answers. Without `read` a turn is its answer, and it is malformed if blank.
    """
    drafts = Drafts(settings.answer_format, settings.budget)
    can_stream = settings.accept == "last" and read is None
    (first,) = yield [
        ask_for_answer(
            request.conversation, settings.inner, role="first", final=can_stream and settings.rounds == 0
        )
    ]
    outcomes, made = [first], [(yield from add_round(settings, drafts, "first", first, read))]
    is_sure = settings.gate is not None and made[0].confidence >= settings.gate
    for number in range(1, 1 if is_sure else settings.rounds + 1):
        if drafts.is_spent:
            break
        is_last = can_stream and number == settings.rounds
        question = ask_again(outcomes[-1], made[-1])
        (outcome,) = yield [ask_for_answer(question, settings.inner, role=role, round=number, final=is_last)]
        outcomes.append(outcome)
        made.append((yield from add_round(settings, drafts, role, outcome, read)))
        if settings.stop_when_same and made[-1].answer is not None and made[-1].answer == made[-2].answer:
            break
    if settings.accept == "judge" and len(made) > 1 and not drafts.is_spent:
        # What the model is shown, and what it may choose: rounds in the expected form.
        shown = [i for i, draft in enumerate(made) if not draft.malformed] or list(range(len(made)))
        chosen = shown[(yield from pick_by_model(request.conversation, [made[i] for i in shown], drafts))]
    else:
        chosen = choose_round(made, settings.accept)
    if settings.accept != "last":
        chosen = find_first_equal(outcomes, chosen)
    return drafts.finish(outcomes[chosen], made[chosen])


def add_round(
    settings: RoundSettings,
    drafts: Drafts,
    role: str,
    outcome: Outcome,
    read: ReadAnswer | None,
    *,
    is_counted: bool = False,
) -> Generator[list[Ask], list[Any], Draft]:
    """Score an answer and record it; if `read` finds nothing, it is malformed and its whole text counts."""
    (confidence,) = yield from score_answers([outcome], settings.confidence)
    text = turn_of(outcome).text
    found = text.strip() if read is None else read(text)
    shown = text if read is None else found or text
    return drafts.add(role, outcome, confidence, text=shown, malformed=not found, is_counted=is_counted)


def choose_round(drafts: Sequence[Draft], accept: Accept) -> int:
    """Choose the accepted round: the last one, or the most confident one (of equal ones the last).

    A malformed draft is chosen only if all are.
    """
    places = [i for i, draft in enumerate(drafts) if not draft.malformed] or list(range(len(drafts)))
    if accept == "last":
        return places[-1]
    return max(places, key=lambda i: (drafts[i].confidence, i))
