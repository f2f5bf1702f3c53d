"""A request in the engine: its task, and how what the task asks for becomes branches.

The engine makes one for each request that is submitted. All methods but the constructor run in the worker's
thread.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import CancelledError, Future
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import torch

from reverse.decoding.asks import Conversation, Generate, Node, Sampling, policy_of, resolve_mode
from reverse.decoding.branch import Branch
from reverse.decoding.calls.handles import FinalText, Handle
from reverse.decoding.events import EventEmitter, Finish
from reverse.decoding.policies import policy_factory
from reverse.decoding.preparing.preparing import (
    CallerOptions,
    Prepared,
    answer_room,
    check_request_texts,
    wants_hints,
)
from reverse.decoding.tasks import BranchPlace, Task
from reverse.errors import RequestError

if TYPE_CHECKING:
    from reverse.decoding.engine import Engine

__all__ = ["ActiveRequest"]


class ActiveRequest:
    """A submitted request. Raises ValueError, TypeError for settings that cannot be honoured.

    Args: `source` and `options` stand for the request's conversation where somebody else has prepared it;
    `left` says whether the reader of the answer has gone.
    """

    def __init__(
        self,
        engine: Engine,
        handle: Handle,
        number: int,
        source: Node | None = None,
        options: CallerOptions | None = None,
        left: Callable[[], bool] | None = None,
    ):
        self.engine, self.handle, self.number, self.left = engine, handle, number, left
        request = self.request = handle.request
        codec = engine.codec
        self.mode = resolve_mode(request.mode)
        self.factory = policy_of(self.mode) or policy_factory(request.config, codec)
        self.is_checked = getattr(self.factory, "is_checked", True)
        self.hints = self.is_checked and wants_hints(request)
        if self.is_checked:
            codec.check_tags()
        if self.hints:
            codec.hint_writer(request.config.hints)  # a template without a place for them is refused here
        check_request_texts(codec, request)
        self.source: Conversation | Node = request.conversation if source is None else source
        self._options: dict[Node, CallerOptions] = {}
        if source is not None and options is not None:
            self._options[source] = options
        self.task: Task | None = None
        self._streamed = False  # the final answer was told while it was made

    @property
    def is_given_up(self) -> bool:
        return self.handle.is_cancelled or self.handle.mailbox.is_closed

    @property
    def is_over(self) -> bool:
        return self.task is not None and self.task.is_over

    @property
    def branches(self) -> list[Branch]:
        return [] if self.task is None else list(self.task.branches)

    @property
    def nodes(self) -> list[Node]:
        return [] if self.task is None else self.task.nodes

    def begin(self) -> None:
        """Start the mode."""
        self.handle.has_begun = True
        self.task = Task(self.number, self.request.config, self)
        self.task.start(self.mode, self.source)

    def take(self, branch: Branch) -> None:
        """A branch has ended."""
        assert self.task is not None
        if branch.emitter is not None and branch.result is not None and not branch.emitter.is_blank:
            self._streamed = True
        self.task.take(branch)

    def fail(self, error: BaseException) -> None:
        if self.task is not None:
            self.task.fail(error)

    def close(self) -> None:
        """Nobody waits any more: close the generators."""
        if self.task is not None:
            self.task.close()

    def tell_end(self) -> None:
        """Tell the caller the answer, or why there is none."""
        task, handle = self.task, self.handle
        if task is None or (task.answer is None and task.error is None):
            handle.end_cancelled()
        elif task.error is not None:
            handle.fail(task.error)
        elif task.answer is not None:
            result = task.answer.result
            if not self._streamed and (emitter := self._make_emitter(result_eos(self), False)) is not None:
                emitter.tell_whole(result)
            if handle.wants_events:
                handle.tell(Finish(handle.row, result))
            handle.finish(result)

    def forget(self) -> None:
        """Let go of the task, which refers back to this: the cycle would keep its pictures' features."""
        self.task = None
        self._options.clear()

    # ------------------------------------------------------------------ what the task needs
    def prepare(self, task: Task, conversation: Conversation, then: Callable[[Node], None]) -> None:
        engine = self.engine

        def done(future: Future[Prepared]) -> None:
            if task.is_over or self.is_given_up:
                engine.end_preparing(future)  # else its pictures would be kept until the next step
            else:
                engine.call_in_thread(partial(self._accept, task, future, then))

        def work() -> Prepared:
            if task.is_over or self.is_given_up:
                raise CancelledError
            return engine.preparer.prepare(conversation, self.request, self.hints)

        engine.prepare(self.number, work).add_done_callback(done)

    def _accept(self, task: Task, future: Future[Prepared], then: Callable[[Node], None]) -> None:
        self.engine.end_preparing(future)
        if task.is_over or self.is_given_up:
            return
        error = future.exception()
        if error is not None:
            task.fail(error)
            return
        prepared = future.result()
        self._options[prepared.node] = prepared.options
        then(prepared.node)

    def make_branch(self, task: Task, node: Node, ask: Generate, place: BranchPlace) -> Branch:
        request, engine = self.request, self.engine
        options = self._options_of(node)
        sampling = ask.sampling or Sampling()
        factory = ask.policy or self.factory
        is_checked = getattr(factory, "is_checked", True)
        config = request.config
        if sampling.top_k is not None or sampling.top_p is not None:
            changes = {"top_k": sampling.top_k, "top_p": sampling.top_p}
            config = config.with_changes({name: v for name, v in changes.items() if v is not None})
        hints = is_checked and self.hints and node.hint_at is not None
        asked = options.room if sampling.max_new_tokens is None else sampling.max_new_tokens
        room = answer_room(len(node.ids), engine.preparer.context, asked, hints)
        temperature = request.base_temperature if sampling.temperature is None else sampling.temperature
        rules = engine.preparer.rules(config, options, room, request.seed or 0, hints)
        emitter = None
        if place.final:
            emitter = self._make_emitter(options.eos, is_checked, place.final == "unless_blank")
            self.handle.prompt_ids = node.ids
        strings = ask.until if isinstance(ask.until, tuple) else ()
        return Branch(
            node,
            factory(config, rules.tags, room, temperature),
            rules,
            order=place.order,
            path=place.path,
            until="sentence" if ask.until == "sentence" else "end",
            stops=engine.preparer.stops(request, options, strings, self.left, is_checked),
            emitter=emitter,
            keeps_cache=not place.final,
        )

    def decode(self, branch: Branch) -> None:
        self.engine.decode(branch, self)

    def score(self, node: Node, kind: str) -> float:
        found = node.scores.get(kind)
        if found is None:
            raise RequestError(f"there is no score {kind!r} of this answer: the backend does not give it")
        return found

    def release(self, node: Node) -> None:
        self.engine.release(node)

    def _options_of(self, node: Node) -> CallerOptions:
        """What the caller's options ask for behind a node; a later turn is a prompt of its own."""
        if node not in self._options:
            if self.request.generation:
                found = self.engine.preparer.options(node.ids, self.request)
            else:
                first = next(iter(self._options.values()))
                prompt = torch.tensor(node.ids, dtype=first.prompt.dtype, device=first.prompt.device)
                found = replace(first, prompt=prompt)
            self._options[node] = found
        return self._options[node]

    def _make_emitter(
        self, eos: frozenset[int], is_checked: bool, keeps_open: bool = False
    ) -> EventEmitter | None:
        handle, codec = self.handle, self.engine.codec
        if not (handle.wants_events or handle.wants_text):
            return None

        def tell_text(ids: Any, text: str) -> None:
            handle.tell(FinalText(tuple(ids), text))

        return EventEmitter(
            handle.row,
            codec.decode,
            codec.tags,
            half=codec.partial_byte_token,
            eos=eos,
            on_event=handle.tell if handle.wants_events else None,
            on_text=tell_text if handle.wants_text else None,
            is_checked=is_checked,
            keeps_open=keeps_open,
        )


def result_eos(active: ActiveRequest) -> frozenset[int]:
    """Ids that end a text, as the request's options say."""
    return next((options.eos for options in active._options.values()), frozenset())
