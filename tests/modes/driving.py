"""Run a mode with scripted outcomes: no model, no engine."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from reverse.decoding.asks import Conversation, Generate, Node, Outcome, Release, Run, Score, resolve_mode
from reverse.decoding.config import ResamplingConfig
from reverse.decoding.result import Phrase, Result, Usage
from reverse.decoding.scheduling.tasks import ModeRequest
from reverse.tokens.spans import TokenIds


class Letters:
    """A writer whose ids are the code points of a text."""

    tags = TokenIds(-1, -2, -3)

    def decode(self, ids: Sequence[int]) -> str:
        return "".join(chr(i) for i in ids)

    def encode_user_turn(self, text: str) -> tuple[list[int], int]:
        return [ord(c) for c in f"|{text}|"], 1

    def encode_continuation(self, text: str) -> list[int]:
        return [ord(c) for c in text]


@dataclass
class Say:
    """One scripted answer: its text, its confidence, why it ended, its tokens."""

    text: str
    confidence: float | None = 0.5
    end: str = "eos"
    tokens: int | None = None


def outcome_of(node: Node, said: Say) -> Outcome:
    phrases = (
        ()
        if said.confidence is None
        else (Phrase(said.text, 0, len(said.text), 1 - said.confidence, "accepted"),)
    )
    ids = tuple(ord(c) for c in said.text)
    tokens = len(ids) if said.tokens is None else said.tokens
    usage = Usage(tokens, 0, tokens, 0.0)
    result = Result(said.text, said.text, phrases, True, said.end, (), usage, ids)
    return Outcome(result, node.add_answer(ids, result))


@dataclass
class Driver:
    """`answer(ask, prompt)` gives the next answer; `asked` keeps every `Generate` with its prompt."""

    answer: Callable[[Generate, str], Say]
    likelihood: float = -1.0
    asked: list[tuple[Generate, str]] = field(default_factory=list)
    released: list[Node] = field(default_factory=list)
    steps: int = 0
    usages: list[Usage] = field(default_factory=list)

    def run(self, mode: Any, conversation: Conversation | Node | None = None) -> Outcome:
        source = Conversation(None, "How many?") if conversation is None else conversation
        generator = mode.run(ModeRequest(source, ResamplingConfig(threshold=0.1)))
        sent: Any = None
        began = len(self.usages)
        while True:
            self.steps += 1
            assert self.steps < 500, "the mode does not end"
            try:
                asks = generator.send(sent)
            except StopIteration as stop:
                assert isinstance(stop.value, Outcome)
                made = self.usages[began:]
                if len(made) < 2:
                    return stop.value
                kept = sum(each.kept for each in made)  # as the engine counts
                result = replace(stop.value.result, usage=Usage(kept, 0, kept, 0.0))
                return Outcome(result, stop.value.node, len(made))
            assert isinstance(asks, list) and asks
            self.begin(asks)
            sent = [outcome for ask in asks for outcome in self.follow(ask, source)]

    def begin(self, asks: list[Any]) -> None:
        """Called with each list of asks, before any of them is answered."""

    def follow(self, ask: Any, source: Conversation | Node) -> list[Any]:
        if isinstance(ask, Run):
            return [self.run(resolve_mode(ask.mode), source if ask.source is None else ask.source)]
        if isinstance(ask, Score):
            return [self.likelihood]
        if isinstance(ask, Release):
            self.released.append(ask.node)
            return [None]
        node = ask.source
        if isinstance(node, Conversation):
            text = node.prompt if isinstance(node.prompt, str) else repr(node.prompt)
            node = Node(tuple(ord(c) for c in text), writer=Letters())
        found = []
        for _ in range(ask.n):
            prompt = "".join(chr(i) for i in node.ids)
            self.asked.append((ask, prompt))
            found.append(outcome_of(node, self.answer(ask, prompt)))
            self.usages.append(found[-1].result.usage)
        return found


def script(*answers: Say | str) -> Driver:
    """A driver that gives these answers in order, and the last one for ever."""
    left = [Say(each) if isinstance(each, str) else each for each in answers]
    return Driver(lambda ask, prompt: left.pop(0) if len(left) > 1 else left[0])
