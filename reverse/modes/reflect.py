"""One answer that thinks, answers, reflects and answers again (SRPO)."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass, field
from typing import Any, Literal

from reverse.decoding.asks import Ask, Conversation, Generate, Mode, Node, Outcome, Sampling
from reverse.decoding.config import check_whole_number
from reverse.decoding.result import Draft
from reverse.errors import RequestError
from reverse.grading import AnswerFormat
from reverse.modes.grammar.reflection_grammar import (
    CONTINUATION,
    SCHEMAS,
    follows_grammar,
    read_last_answer,
    write_reflection_turn,
)
from reverse.modes.mode import (
    TEXT,
    Asks,
    Budget,
    Drafts,
    ModeRequest,
    count_tokens_left,
    find_inner_policy,
    score_answers,
    turn_of,
)
from reverse.modes.shared.mode_settings import check_choice, check_settings, check_single_inner

__all__ = ["Reflect"]


@dataclass(frozen=True)
class Reflect:
    """One turn in the grammar think, answer, reflection, think, answer. The last answer counts.

    Args:
        schema: `"tarta"` has a second think before the last answer, `"taranswer"` has none.
        inner: the mode whose policy decodes; None: resample.
        gate: stop after the first answer if its confidence is at least this, which saves the second half.
        rounds: reflections; more than one needs a gate: a further one is appended while the confidence is
            below it.
        confidence: a kind of `compute_confidence`; None: by phrases if there are any, else by likelihood.
        instruction: added to the question, for checkpoints that need to be told; "" for those that do not.

    A turn that does not follow the grammar is marked as malformed; its last answer counts all the same, and
    the whole text if it holds none. Source: SRPO (arXiv 2506.01713) §3.
    """

    name = "reflect"
    schema: Literal["tarta", "taranswer"] = "tarta"
    inner: str | Mode | None = None
    gate: float | None = None
    rounds: int = 1
    confidence: str | None = None
    instruction: str = ""
    answer_format: AnswerFormat = TEXT
    budget: Budget = field(default_factory=Budget)

    def __post_init__(self) -> None:
        check_settings(self)
        check_single_inner(self)
        check_choice("schema", self.schema, SCHEMAS)
        check_whole_number("rounds", self.rounds, 1)
        if self.rounds > 1 and self.gate is None:
            raise RequestError(f"rounds={self.rounds} needs a gate, which ends them: try gate=0.7")

    def run(self, request: ModeRequest) -> Asks:
        source, policy = self.ask(request.conversation), find_inner_policy(self.inner)
        drafts = Drafts(self.answer_format, self.budget)
        if self.gate is None:
            (outcome,) = yield [Generate(source, final=True, policy=policy, role="reflection")]
            return drafts.finish(outcome, (yield from self._add("reflection", outcome, drafts)))
        outcome, draft = yield from self._answer(request, source, drafts)
        for number in range(1, self.rounds + 1):
            if draft.confidence >= self.gate or outcome.result.finish_reason != "stop" or drafts.is_spent:
                break
            node = outcome.node.continue_assistant(CONTINUATION)
            if count_tokens_left(request, node) == 0:
                break
            outcome, draft = yield from self._answer(request, node, drafts, number)
        return drafts.finish(outcome, draft)

    def _answer(
        self, request: ModeRequest, source: Conversation | Node, drafts: Drafts, number: int = 0
    ) -> Generator[list[Ask], list[Any], tuple[Outcome, Draft]]:
        """Decode up to the end of the next answer tag."""
        role, how = (
            "reflection" if number else "first",
            Sampling(max_new_tokens=count_tokens_left(request, source)),
        )
        policy = find_inner_policy(self.inner)
        (outcome,) = yield [
            Generate(source, until=("</answer>",), sampling=how, policy=policy, role=role, round=number)
        ]
        return outcome, (yield from self._add(role, outcome, drafts))

    def _add(self, role: str, outcome: Outcome, drafts: Drafts) -> Generator[list[Ask], list[Any], Draft]:
        (confidence,) = yield from score_answers([outcome], self.confidence)
        text = turn_of(outcome).text
        follows = text.rstrip().endswith("</answer>") if role == "first" else self.follows(text)
        return drafts.add(role, outcome, confidence, text=read_last_answer(text), malformed=not follows)

    def ask(self, source: Conversation | Node) -> Conversation | Node:
        """Return the conversation with the instruction in its question; a node stays as it is."""
        if self.instruction and isinstance(source, Conversation):
            return source.with_instruction(self.instruction)
        return source

    def write_turn(self, first: tuple[str, str], reflection: str, second: tuple[str, str]) -> tuple[str, str]:
        """Write a turn in the grammar with `write_reflection_turn`."""
        return write_reflection_turn(self.schema, first, reflection, second)

    def follows(self, text: str) -> bool:
        """Whether a turn has the tags of the grammar, in their order, and a last answer."""
        return follows_grammar(text, self.schema)
