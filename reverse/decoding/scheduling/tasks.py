"""A task runs the generators of one request's modes and collects the outcomes of their asks.

A task knows no backend. It turns the results of ended branches into outcomes and sends them to the
generators, until the outermost generator returns the answer.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Generator
from dataclasses import dataclass, field, replace
from itertools import count
from typing import Any, Literal, Protocol

from reverse.decoding.asks import (
    Ask,
    Conversation,
    Generate,
    Mode,
    Node,
    Outcome,
    Release,
    Run,
    Sampling,
    Score,
    resolve_mode,
)
from reverse.decoding.config import ResamplingConfig
from reverse.decoding.events import NO_LABEL, DraftLabel
from reverse.decoding.result import Result, Usage
from reverse.decoding.scheduling.branch import Branch
from reverse.errors import RequestError, RequestTypeError

__all__ = ["BranchPlace", "ModeRequest", "Task", "TaskHost"]


@dataclass(frozen=True, slots=True)
class ModeRequest:
    """The part of a request that a mode sees."""

    conversation: Conversation | Node  # to answer
    config: ResamplingConfig
    max_new_tokens: int | None = None  # most tokens of an answer, for modes that write it in parts


class TaskHost(Protocol):
    """The operations that a task needs from the request that it answers."""

    def prepare(self, conversation: Conversation, then: Callable[[Node], None]) -> None:
        """Tokenise a conversation, then call `then` with its node in the engine's thread."""

    def decode(self, node: Node, ask: Generate, place: BranchPlace) -> Branch:
        """Start one answer of `ask` after a node. `Task.take` receives the branch when it has ended."""

    def release(self, node: Node) -> None:
        """Free the cache of a node."""

    def begin_draft(self, label: DraftLabel) -> None:
        """Announce an answer that has a role, before it is decoded."""

    def end_draft(self, label: DraftLabel, result: Result) -> None:
        """Announce that this answer is complete."""

    def can_score(self, kind: str) -> bool:
        """Whether `score` gives scores of this kind."""

    def score(
        self, node: Node, kind: str, order: tuple[int, ...], then: Callable[[float | Exception], None]
    ) -> None:
        """Compute a score of a node, and call `then` with it or with the error, in the engine's thread."""

    def explain_missing_score(self, kind: str) -> str:
        """Say why there is no score of this kind, and the remedy."""


@dataclass(frozen=True, slots=True)
class BranchPlace:
    """Where a branch stands: its `order` among all that wait, the `path` of its noise, and if it is final."""

    order: tuple[int, ...]
    path: tuple[int, ...]
    final: bool | Literal["unless_blank"]  # `Generate.final` if all modes around it are final, else False
    label: DraftLabel = NO_LABEL


@dataclass(slots=True, eq=False)
class _ModeRun:
    """A mode that runs, its generator, and the outcomes that it waits for."""

    mode: Mode
    source: Conversation | Node
    path: tuple[int, ...]
    is_final: bool
    parent: tuple[_ModeRun, int] | None = None  # (asking run, place of the outcome)
    sampling: Sampling | None = None  # of asks without parameters of their own
    label: DraftLabel = NO_LABEL
    generator: Generator[list[Ask], list[Any], Outcome] = field(init=False)
    spent: list[Usage] = field(default_factory=list)  # of all branches, those of inner runs included
    began: float = math.inf
    outcomes: list[Any] = field(default_factory=list)
    missing: int = 0
    ask_count: int = 0  # number of asks so far, which numbers the paths


class Task:
    """The modes of one request while it is answered.

    `number` counts requests, the oldest first; `max_new_tokens` is the limit that modes see in the request.
    At the end, either `answer` or `error` is set.
    """

    def __init__(
        self, number: int, config: ResamplingConfig, host: TaskHost, max_new_tokens: int | None = None
    ):
        self.number, self.host, self.config = number, host, config
        self.max_new_tokens = max_new_tokens
        self.answer: Outcome | None = None
        self.error: BaseException | None = None
        # (asking run, place of the outcome, label of the answer)
        self.branches: dict[Branch, tuple[_ModeRun, int, DraftLabel]] = {}
        self.nodes: list[Node] = []  # of answers; the engine may hold their caches
        self._labels: dict[Node, DraftLabel] = {}
        self._roots: dict[int, _Root] = {}  # by the identity of their conversations
        self._runs: list[_ModeRun] = []
        self._orders = count()

    def start(self, mode: Mode, conversation: Conversation | Node) -> None:
        """Run the mode up to its first asks."""
        self._run_guarded(lambda: self._start(_ModeRun(mode, conversation, (), True)))

    @property
    def is_over(self) -> bool:
        return self.answer is not None or self.error is not None

    def take(self, branch: Branch) -> None:
        """Pass the result of an ended branch to the run that asked for it."""
        run, place, label = self.branches.pop(branch)
        if branch.error is not None:
            self.fail(branch.error)
            return
        assert branch.result is not None
        run.spent.append(branch.result.usage)
        run.began = min(run.began, branch.began)
        self.nodes.append(branch.node)
        self._labels[branch.node] = label
        if label.role:
            self.host.end_draft(label, branch.result)
        outcome = Outcome(branch.result, branch.node)
        self._run_guarded(lambda: self._deliver(run, place, outcome))

    def fail(self, error: BaseException) -> None:
        """End the task with an error. The caller cancels its branches."""
        self.error = self.error or error
        self.close()

    def close(self) -> None:
        """Close the generators, innermost first."""
        while self._runs:
            run = self._runs.pop()
            try:
                run.generator.close()
            except Exception as error:  # a mode that yields or raises while it is closed
                self.error = self.error or error

    def _run_guarded(self, call: Callable[[], None]) -> None:
        """Make a call; an error of a mode ends the task."""
        try:
            call()
        except Exception as error:
            self.fail(error)

    # ------------------------------------------------------------------ generators
    def _start(self, run: _ModeRun) -> None:
        run.generator = run.mode.run(ModeRequest(run.source, self.config, self.max_new_tokens))
        self._runs.append(run)
        if run.label.role:
            self.host.begin_draft(run.label)
        self._send(run, None)

    def _send(self, run: _ModeRun, outcomes: list[Any] | None) -> None:
        """Send outcomes to a generator until it waits for further ones."""
        while not self.is_over:
            try:
                asks = run.generator.send(outcomes)  # type: ignore[arg-type]
            except StopIteration as stop:
                self._return(run, stop.value)
                return
            if not isinstance(asks, (list, tuple)) or not asks:
                raise RequestTypeError(
                    f"a mode must yield a list of asks, got {asks!r:.80}: yield [Generate(...)]"
                )
            sizes = [_count_outcomes(ask) for ask in asks]
            run.outcomes = [None] * sum(sizes)
            run.missing = sum(sizes) + 1  # one more, so that nothing continues before all asks have begun
            place, first = 0, run.ask_count
            run.ask_count += len(asks)
            for number, (ask, size) in enumerate(zip(asks, sizes, strict=True), first):
                self._begin(run, ask, place, number)
                place += size
            run.missing -= 1
            if run.missing:
                return
            outcomes = run.outcomes

    def _deliver(self, run: _ModeRun, place: int, outcome: Any) -> None:
        run.outcomes[place] = outcome
        run.missing -= 1
        if run.missing == 0:
            self._send(run, run.outcomes)

    def _return(self, run: _ModeRun, outcome: Any) -> None:
        if not isinstance(outcome, Outcome):
            raise RequestTypeError(
                f"a mode must return an outcome, got {outcome!r:.80}: return one that it was sent"
            )
        self._runs.remove(run)
        if len(run.spent) > 1:
            usage = _sum_usage(run, outcome.result.usage)
            outcome = Outcome(replace(outcome.result, usage=usage), outcome.node, len(run.spent))
        if run.parent is None:
            self.answer = outcome
            return
        asking, place = run.parent
        asking.spent += run.spent
        asking.began = min(asking.began, run.began)
        if run.label.role:
            self.host.end_draft(run.label, outcome.result)
        self._deliver(asking, place, outcome)

    def find_label(self, node: Node | None) -> DraftLabel:
        """Return the label of the answer that a node ends or goes on from."""
        while node is not None and node not in self._labels:
            node = node.base
        return NO_LABEL if node is None else self._labels[node]

    # ------------------------------------------------------------------ asks
    def _begin(self, run: _ModeRun, ask: Ask, place: int, number: int) -> None:
        if isinstance(ask, Generate):
            if isinstance(ask.source, Node):
                self._decode(run, ask, place, number, ask.source)
            else:
                self._find_root(ask.source, lambda node: self._decode(run, ask, place, number, node))
        elif isinstance(ask, Run):
            source = run.source if ask.source is None else ask.source
            path = (*run.path, number, 0)
            sampling = run.sampling if ask.sampling is None else ask.sampling.fill_from(run.sampling)
            label = DraftLabel(ask.role, ask.round, path)
            is_final = run.is_final and ask.final
            mode = resolve_mode(ask.mode)
            self._start(_ModeRun(mode, source, path, is_final, (run, place), sampling, label))
        elif isinstance(ask, Score):
            self._score(run, ask, place)
        elif isinstance(ask, Release):
            self.host.release(ask.node)
            self._deliver(run, place, None)

    def _score(self, run: _ModeRun, ask: Score, place: int) -> None:
        """Deliver the score of a node: one that was read when it was decoded, or one that is computed now."""
        score = ask.node.scores.get(ask.kind)
        if score is None and self.host.can_score(ask.kind):

            def take(found: float | Exception) -> None:
                if isinstance(found, Exception):
                    self.fail(found)
                else:
                    self._run_guarded(lambda: self._deliver(run, place, found))

            self.host.score(ask.node, ask.kind, (self.number, next(self._orders)), take)
            return
        score = ask.default if score is None else score
        if score is None:
            raise RequestError(self.host.explain_missing_score(ask.kind))
        self._deliver(run, place, score)

    def _find_root(self, conversation: Conversation, then: Callable[[Node], None]) -> None:
        """Call `then` with the node of a conversation. Each conversation is prepared once."""
        root = self._roots.get(id(conversation))
        if root is None:
            root = self._roots[id(conversation)] = _Root(conversation)
            self.host.prepare(conversation, root.set_node)
        root.call(lambda node: self._run_guarded(lambda: then(node)))

    def _decode(self, run: _ModeRun, ask: Generate, place: int, number: int, node: Node) -> None:
        final = ask.final if run.is_final else False
        if run.sampling is not None:
            ask = replace(ask, sampling=(ask.sampling or Sampling()).fill_from(run.sampling))
        for i in range(ask.n):
            branch_path = (*run.path, number, i)
            label = DraftLabel(ask.role, ask.round, branch_path)
            order = (self.number, next(self._orders))
            if label.role:
                self.host.begin_draft(label)
            path = _strip_zeros(branch_path)
            branch = self.host.decode(node, ask, BranchPlace(order, path, final, label))
            self.branches[branch] = (run, place + i, label)


@dataclass(slots=True, eq=False)
class _Root:
    """A conversation, its node, and the calls that wait for the node."""

    conversation: Conversation  # kept, so that its identity stays its own
    node: Node | None = None
    waiting: list[Callable[[Node], None]] = field(default_factory=list)

    def call(self, then: Callable[[Node], None]) -> None:
        if self.node is None:
            self.waiting.append(then)
        else:
            then(self.node)

    def set_node(self, node: Node) -> None:
        self.node = node
        waiting, self.waiting = self.waiting, []
        for then in waiting:
            then(node)


def _sum_usage(run: _ModeRun, usage: Usage) -> Usage:
    """Return the usage of a mode's answer, with the tokens of all its other branches as discarded."""
    generated = sum(spent.kept + spent.discarded for spent in run.spent)
    return Usage(
        usage.kept,
        generated - usage.kept,
        sum(spent.forwards for spent in run.spent),
        time.perf_counter() - run.began,
        sum(spent.unused for spent in run.spent),
    )


def _count_outcomes(ask: Any) -> int:
    if isinstance(ask, Generate):
        if ask.n < 1:
            raise RequestError(f"Generate(n={ask.n}): n must be at least 1")
        return ask.n
    if not isinstance(ask, (Run, Score, Release)):
        raise RequestTypeError(f"a mode must yield asks, got {ask!r:.80}: Generate, Run, Score or Release")
    return 1


def _strip_zeros(path: tuple[int, ...]) -> tuple[int, ...]:
    """Return the path without zeros at its end, so that the first answer of a request has the empty path."""
    length = len(path)
    while length and path[length - 1] == 0:
        length -= 1
    return path[:length]
