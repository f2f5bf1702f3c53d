"""One request while it is answered: the generators of its modes, and the branches that they ask for.

A task knows no backend. The engine gives it nodes and takes its branches; the task turns their results into
outcomes and sends them to the generators, until the outermost has returned the answer.
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
    Score,
    resolve_mode,
)
from reverse.decoding.branch import Branch
from reverse.decoding.config import ResamplingConfig
from reverse.decoding.result import Usage
from reverse.errors import RequestError, RequestTypeError

__all__ = ["BranchPlace", "ModeRequest", "Task", "TaskHost"]


@dataclass(frozen=True, slots=True)
class ModeRequest:
    """What a mode sees of a request."""

    conversation: Conversation | Node  # what is to be answered
    config: ResamplingConfig


class TaskHost(Protocol):
    """What a task needs of the engine."""

    def prepare(self, task: Task, conversation: Conversation, then: Callable[[Node], None]) -> None:
        """Tokenise a conversation, and call `then` with its node in the engine's thread."""

    def make_branch(self, task: Task, node: Node, ask: Generate, place: BranchPlace) -> Branch:
        """One answer behind a node."""

    def decode(self, branch: Branch) -> None:
        """Let a branch be decoded; the task is told by `take` when it ends."""

    def score(self, node: Node, kind: str) -> float:
        """A number for what is cached of a node."""

    def release(self, node: Node) -> None:
        """Let the cache of a node go."""


@dataclass(frozen=True, slots=True)
class BranchPlace:
    """Where a branch stands: `order` among all that wait, `path` for its noise, and whether it is final."""

    order: tuple[int, ...]
    path: tuple[int, ...]
    final: bool | Literal["unless_blank"]  # as of `Generate`, where all modes around it agree


@dataclass(slots=True, eq=False)
class _ModeRun:
    """A generator of a mode, and what it waits for."""

    generator: Generator[list[Ask], list[Any], Outcome]
    source: Conversation | Node
    path: tuple[int, ...]
    is_final: bool
    parent: tuple[_ModeRun, int] | None = None  # and the place of its outcome there
    outcomes: list[Any] = field(default_factory=list)
    missing: int = 0
    asked: int = 0  # asks so far, which number its paths


class Task:
    """A request being answered.

    `number` says how old it is; `answer` is the outcome once the outermost mode has returned, `error` why
    there will be none.
    """

    def __init__(self, number: int, config: ResamplingConfig, host: TaskHost):
        self.number, self.host, self.config = number, host, config
        self.answer: Outcome | None = None
        self.error: BaseException | None = None
        self.branches: dict[Branch, tuple[_ModeRun, int]] = {}  # and the places of their outcomes
        self.nodes: list[Node] = []  # answers whose cache may be held
        self._roots: dict[int, _Root] = {}  # by the identity of their conversations
        self._runs: list[_ModeRun] = []
        self._spent: list[Usage] = []  # of all branches
        self._began = math.inf
        self._orders = count()

    def start(self, mode: Mode, conversation: Conversation | Node) -> None:
        """Let the mode ask for what it wants first."""
        self._guarded(lambda: self._start(mode, conversation, (), True, None))

    @property
    def is_over(self) -> bool:
        return self.answer is not None or self.error is not None

    def take(self, branch: Branch) -> None:
        """A branch of this task has ended."""
        run, place = self.branches.pop(branch)
        if branch.error is not None:
            self.fail(branch.error)
            return
        assert branch.result is not None
        self._spent.append(branch.result.usage)
        self._began = min(self._began, branch.began)
        self.nodes.append(branch.node)
        outcome = Outcome(branch.result, branch.node)
        self._guarded(lambda: self._deliver(run, place, outcome))

    def fail(self, error: BaseException) -> None:
        """End the task with an error; whoever calls cancels its branches."""
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

    def _guarded(self, call: Callable[[], None]) -> None:
        """Make an error of a mode the task's own."""
        try:
            call()
        except Exception as error:
            self.fail(error)

    # ------------------------------------------------------------------ generators
    def _start(
        self,
        mode: Mode,
        source: Conversation | Node,
        path: tuple[int, ...],
        is_final: bool,
        parent: tuple[_ModeRun, int] | None,
    ) -> None:
        generator = mode.run(ModeRequest(source, self.config))
        run = _ModeRun(generator, source, path, is_final, parent)
        self._runs.append(run)
        self._send(run, None)

    def _send(self, run: _ModeRun, outcomes: list[Any] | None) -> None:
        """Let a generator go on until it waits for something."""
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
            run.missing = sum(sizes) + 1  # and one, so that nothing goes on before all have begun
            place, first = 0, run.asked
            run.asked += len(asks)
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
        if run.parent is not None:
            self._deliver(*run.parent, outcome)
            return
        if len(self._spent) > 1:
            usage = self._whole_usage(outcome.result.usage)
            outcome = Outcome(replace(outcome.result, usage=usage), outcome.node)
        self.answer = outcome

    def _whole_usage(self, usage: Usage) -> Usage:
        """The usage of the answer, with all that was made beside it."""
        made = sum(spent.kept + spent.discarded for spent in self._spent)
        return Usage(
            usage.kept,
            made - usage.kept,
            sum(spent.forwards for spent in self._spent),
            time.perf_counter() - self._began,
            sum(spent.unused for spent in self._spent),
        )

    # ------------------------------------------------------------------ asks
    def _begin(self, run: _ModeRun, ask: Ask, place: int, number: int) -> None:
        if isinstance(ask, Generate):
            if isinstance(ask.source, Node):
                self._decode(run, ask, place, number, ask.source)
            else:
                self._find_root(ask.source, lambda node: self._decode(run, ask, place, number, node))
        elif isinstance(ask, Run):
            source = run.source if ask.source is None else ask.source
            is_final = run.is_final and ask.final
            self._start(resolve_mode(ask.mode), source, (*run.path, number, 0), is_final, (run, place))
        elif isinstance(ask, Score):
            self._deliver(run, place, self.host.score(ask.node, ask.kind))
        elif isinstance(ask, Release):
            self.host.release(ask.node)
            self._deliver(run, place, None)

    def _find_root(self, conversation: Conversation, then: Callable[[Node], None]) -> None:
        """Call `then` with the node of a conversation, which is prepared once."""
        root = self._roots.get(id(conversation))
        if root is None:
            root = self._roots[id(conversation)] = _Root(conversation)
            self.host.prepare(self, conversation, root.set_node)
        root.call(lambda node: self._guarded(lambda: then(node)))

    def _decode(self, run: _ModeRun, ask: Generate, place: int, number: int, node: Node) -> None:
        final = ask.final if run.is_final else False
        for i in range(ask.n):
            path = _strip_zeros((*run.path, number, i))
            order = (self.number, next(self._orders))
            branch = self.host.make_branch(self, node, ask, BranchPlace(order, path, final))
            self.branches[branch] = (run, place + i)
            self.host.decode(branch)


@dataclass(slots=True, eq=False)
class _Root:
    """A conversation and its node, and who waits for it."""

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


def _count_outcomes(ask: Any) -> int:
    if isinstance(ask, Generate):
        if ask.n < 1:
            raise RequestError(f"Generate(n={ask.n}): n must be at least 1")
        return ask.n
    if not isinstance(ask, (Run, Score, Release)):
        raise RequestTypeError(f"a mode must yield asks, got {ask!r:.80}: Generate, Run, Score or Release")
    return 1


def _strip_zeros(path: tuple[int, ...]) -> tuple[int, ...]:
    """The path without zeros at its end, so that the first answer of a request has the empty one."""
    length = len(path)
    while length and path[length - 1] == 0:
        length -= 1
    return path[:length]
