"""A submitted request: it prepares its prompts and turns what its task asks for into branches.

The engine makes one for each request. All methods but the constructor run in the worker's thread.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import CancelledError, Future
from dataclasses import replace
from typing import Any, Protocol

import torch

from reverse.decoding.asks import Conversation, Generate, Node, Sampling, find_policy, resolve_mode
from reverse.decoding.calls.handles import FinalText, Handle
from reverse.decoding.events import NO_LABEL, BeginDraft, Complete, DraftLabel, EndDraft, EventEmitter
from reverse.decoding.policies import make_policy_factory
from reverse.decoding.preparing.preparing import (
    CallerOptions,
    PreparedPrompt,
    Preparer,
    check_request_texts,
    limit_new_tokens,
    wants_hints,
)
from reverse.decoding.result import Result
from reverse.decoding.scheduling.branch import Branch
from reverse.decoding.scheduling.score_queue import WantedScore
from reverse.decoding.scheduling.tasks import BranchPlace, Task

__all__ = ["ActiveRequest", "RequestHost"]


class RequestHost(Protocol):
    """The operations that a request needs from the engine."""

    preparer: Preparer

    def prepare(
        self, active: ActiveRequest, prepare: Callable[[], Any], then: Callable[[Future[Any]], None]
    ) -> None:
        """Call `prepare` in a preparing thread, then `then` in the worker's unless the request is over."""

    def decode(self, branch: Branch, active: ActiveRequest) -> None:
        """Start decoding a branch; `ActiveRequest.take` receives it when it has ended."""

    def release(self, node: Node) -> None:
        """Free the cache of a node."""

    def can_score(self, kind: str) -> bool:
        """Whether a backend in use gives scores of this kind."""

    def score(self, wanted: WantedScore) -> None:
        """Score a node before the next step of decoding."""

    def explain_missing_score(self, kind: str) -> str:
        """Say why there is no score of this kind, and the remedy."""


class ActiveRequest:
    """A submitted request. Raises RequestError for settings that cannot be honoured.

    Args: `source` and `options` replace the request's conversation if the caller has prepared it; `has_left`
    says whether the reader of the answer has gone.
    """

    def __init__(
        self,
        host: RequestHost,
        handle: Handle,
        number: int,
        source: Node | None = None,
        options: CallerOptions | None = None,
        has_left: Callable[[], bool] | None = None,
    ):
        self.host, self.handle, self.number, self.has_left = host, handle, number, has_left
        self.preparer, self.codec = host.preparer, host.preparer.codec
        request = self.request = handle.request
        self.mode = resolve_mode(request.mode)
        self.factory = find_policy(self.mode) or make_policy_factory(request.config, self.codec)
        self.is_checked = getattr(self.factory, "is_checked", True)
        self.uses_hints = self.is_checked and wants_hints(request)
        if self.is_checked:
            self.codec.check_tags()
        if self.uses_hints:
            self.codec.get_hint_writer(request.config.hints)  # refuses a template without a place for hints
        check_request_texts(self.codec, request)
        self.source: Conversation | Node = request.conversation if source is None else source
        self.task = Task(number, request.config, self, request.max_new_tokens)
        self._options: dict[Node, CallerOptions] = {}
        if source is not None and options is not None:
            self._options[source] = options
        self._was_streamed = False  # the final answer was emitted while it was made

    @property
    def is_given_up(self) -> bool:
        return self.handle.is_cancelled or self.handle.mailbox.is_closed

    def begin(self) -> None:
        """Start the mode."""
        self.handle.has_begun = True
        self.task.start(self.mode, self.source)

    def take(self, branch: Branch) -> None:
        """Take in a branch that has ended."""
        if branch.emitter is not None and branch.result is not None and not branch.emitter.is_blank:
            self._was_streamed = True
        self.task.take(branch)

    def report_end(self) -> None:
        """Give the caller the answer, the error, or the news that the request was cancelled."""
        task, handle = self.task, self.handle
        if task.error is not None:
            handle.fail(task.error)
        elif task.answer is None:
            handle.finish(None)
        else:
            result = task.answer.result
            if not self._was_streamed:
                # All conversations of a request end with the same ids.
                eos = next((options.eos for options in self._options.values()), frozenset[int]())
                label = task.find_label(task.answer.node)
                emitter = self._make_emitter(eos, is_checked=False, label=label)
                if emitter is not None:
                    emitter.emit_answer(result)
            if handle.wants_events:
                handle.put(Complete(handle.row, result))
            handle.finish(result)

    def forget(self) -> None:
        """Break the reference cycle with the task, which would keep features of pictures."""
        del self.task.host
        self._options.clear()

    # ------------------------------------------------------------------ what the task needs
    def prepare(self, conversation: Conversation, then: Callable[[Node], None]) -> None:
        """Tokenise a conversation, then call `then` with its node in the worker's thread."""

        def work() -> PreparedPrompt:
            if self.task.is_over or self.is_given_up:
                raise CancelledError
            return self.preparer.prepare(conversation, self.request, self.uses_hints)

        def accept(future: Future[PreparedPrompt]) -> None:
            error = future.exception()
            if error is not None:
                self.task.fail(error)
                return
            prepared = future.result()
            self._options[prepared.node] = prepared.options
            then(prepared.node)

        self.host.prepare(self, work, accept)

    def decode(self, node: Node, ask: Generate, place: BranchPlace) -> Branch:
        """Start one answer of `ask` after a node."""
        request, preparer = self.request, self.preparer
        options = self._find_options(node)
        sampling = ask.sampling or Sampling()
        factory = ask.policy or self.factory
        is_checked = getattr(factory, "is_checked", True)
        changes = {"top_k": sampling.top_k, "top_p": sampling.top_p}
        config = request.config.with_changes({name: v for name, v in changes.items() if v is not None})
        uses_hints = is_checked and self.uses_hints and node.hint_at is not None
        asked = options.max_new_tokens if sampling.max_new_tokens is None else sampling.max_new_tokens
        max_new_tokens = limit_new_tokens(len(node.ids), preparer.context, asked, uses_hints)
        temperature = request.base_temperature if sampling.temperature is None else sampling.temperature
        rules = preparer.make_rules(config, options, max_new_tokens, request.seed or 0, uses_hints)
        emitter = None
        if place.final:
            emitter = self._make_emitter(options.eos, is_checked, place.final == "unless_blank", place.label)
            self.handle.prompt_ids = node.ids
        strings = ask.until if isinstance(ask.until, tuple) else ()
        branch = Branch(
            node,
            factory(config, rules.tags, max_new_tokens, temperature),
            rules,
            order=place.order,
            path=place.path,
            until="sentence" if ask.until == "sentence" else "end",
            stops=preparer.make_stops(request, options, strings, self.has_left, is_checked),
            emitter=emitter,
            keeps_cache=not place.final,
        )
        self.host.decode(branch, self)
        return branch

    def release(self, node: Node) -> None:
        """Free the cache of a node."""
        self.host.release(node)

    def begin_draft(self, label: DraftLabel) -> None:
        """Announce an answer of the mode."""
        if self.handle.wants_events:
            self.handle.put(BeginDraft(self.handle.row, label.role, label.round, label.branch))

    def end_draft(self, label: DraftLabel, result: Result) -> None:
        """Announce that an answer of the mode is complete."""
        if self.handle.wants_events:
            tokens = result.usage.kept + result.usage.discarded
            place = (self.handle.row, label.role, label.round, label.branch)
            self.handle.put(EndDraft(*place, result.text, tokens))

    def can_score(self, kind: str) -> bool:
        """Whether scores of this kind are computed when they are asked for."""
        return kind == "value" and self.host.can_score(kind)

    def score(
        self, node: Node, kind: str, order: tuple[int, ...], then: Callable[[float | Exception], None]
    ) -> None:
        """Compute a score of a node."""

        def is_over() -> bool:
            return self.task.is_over or self.is_given_up

        placeholder = self.preparer.family.image_token_id(self.preparer.base.config)
        self.host.score(WantedScore(node, kind, order, placeholder, then, is_over))

    def explain_missing_score(self, kind: str) -> str:
        """Say why there is no score of this kind, and the remedy."""
        return self.host.explain_missing_score(kind)

    def _find_options(self, node: Node) -> CallerOptions:
        """Return the caller's options for a node. A later turn is a prompt of its own."""
        if node not in self._options:
            if self.request.generation:
                found = self.preparer.read_options(node.ids, self.request)
            else:
                first = next(iter(self._options.values()))
                prompt = torch.tensor(node.ids, dtype=first.prompt.dtype, device=first.prompt.device)
                found = replace(first, prompt=prompt)
            self._options[node] = found
        return self._options[node]

    def _make_emitter(
        self,
        eos: frozenset[int],
        is_checked: bool,
        holds_blank: bool = False,
        label: DraftLabel = NO_LABEL,
    ) -> EventEmitter | None:
        handle, codec = self.handle, self.codec
        if not (handle.wants_events or handle.wants_text):
            return None

        def put_text(ids: list[int], text: str) -> None:
            handle.put(FinalText(tuple(ids), text))

        return EventEmitter(
            handle.row,
            codec,
            eos=eos,
            on_event=handle.put if handle.wants_events else None,
            on_text=put_text if handle.wants_text else None,
            is_checked=is_checked,
            holds_blank=holds_blank,
            label=label,
        )
