"""The engine decodes requests of all modes and settings side by side on one model.

    engine = Engine(model, processor, max_sequences=32)
    handle = engine.submit(Request("kitchen.png", "Describe this image."))
    handle.result().text

Threads of the engine prepare requests ahead of need. The model's worker thread decodes them, so Ctrl-C in a
caller's thread never interrupts a step. `generate`, `generate_many`, `stream` and `custom_generate` share one
engine for each model.
"""

from __future__ import annotations

import os
import time
import weakref
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import replace
from functools import partial
from typing import Any

import torch

from reverse.decoding.asks import Node
from reverse.decoding.backends.auto import BackendName, check_backend, choose_backend
from reverse.decoding.calls.handles import Handle, Mailbox
from reverse.decoding.config import check_whole_number
from reverse.decoding.preparing.picture_cache import PictureCache
from reverse.decoding.preparing.preparing import CallerOptions, Preparer, resolve_threshold
from reverse.decoding.preparing.preparing_threads import PreparingThreads
from reverse.decoding.request import Request
from reverse.decoding.scheduling.active_request import ActiveRequest
from reverse.decoding.scheduling.branch import Branch
from reverse.decoding.scheduling.scheduler import PREFILL, Scheduler
from reverse.decoding.scheduling.score_queue import WantedScore
from reverse.decoding.scheduling.worker import eval_mode, find_worker
from reverse.decoding.text.codec import TextCodec
from reverse.errors import RequestTypeError
from reverse.models import family_of
from reverse.models.unwrapping import check_adapter_hooks, check_wrappers, input_device, unwrap_model
from reverse.models.value_head import find_value_head

__all__ = ["Engine", "read_autocast"]

_PATIENCE = 0.5  # seconds that prompts wait for others, such as slow pictures, to be prefilled with them


class Engine:
    """Decodes requests on a model.

    Args:
        model: a LLaVA or Qwen2.5-VL model, or what wraps one (peft, torch.compile).
        processor: its processor.
        max_sequences: most answers decoded side by side, candidates not counted.
        backend: "auto", "hf" (any device, eager) or "cuda_graph" (captured steps on CUDA).

    Raises RequestError for a model without a language-model head, or one that is not supported.
    """

    def __init__(
        self,
        model: Any,
        processor: Any,
        *,
        max_sequences: int = 8,
        backend: BackendName = "auto",
        reserves: bool = True,
    ):
        check_wrappers(model)
        self.model, self.base = model, unwrap_model(model)
        if not hasattr(self.base, "generate"):
            raise RequestTypeError(
                f"{type(self.base).__name__} has no language-model head: give the "
                f"{family_of(self.base).model_class} that reverse.load() returns"
            )
        self.codec = TextCodec(processor)
        self.backend_name = backend
        self.worker = find_worker(model)
        self.pictures = PictureCache()
        self.preparer = Preparer(model, self.codec, self.pictures)
        self._threads: PreparingThreads | None = None
        self._schedulers: dict[bool, Scheduler] = {}  # by whether its answers have logits processors
        self._inbox: deque[ActiveRequest] = deque()  # submitted and not begun
        self._active: list[ActiveRequest] = []  # begun, the oldest first
        self._of_branch: dict[Branch, ActiveRequest] = {}
        self._calls: deque[Callable[[], None]] = deque()  # for the worker's thread
        self._mailboxes: list[weakref.ref[Mailbox]] = []
        self._modules: list[Any] | None = None  # of the model, kept because walking through it takes long
        self._last_number = 0
        self._preparing: dict[Future[Any], ActiveRequest] = {}  # conversations that are not taken up yet
        self.wakes_after: float | None = None
        self._autocast = read_autocast(self.base)
        if reserves:
            most = check_whole_number("max_sequences", max_sequences, 1)
            self._reservation = self.open_mailbox(most, most, in_background=True)

    # ------------------------------------------------------------------ what callers do
    def submit(self, request: Request, *, events: bool = False) -> Handle:
        """Submit a request and decode it in the background; with `events`, the handle yields its events."""
        mailbox = self.open_mailbox(0, 0, in_background=True)
        return self.submit_to(mailbox, request, events=events)

    def open_mailbox(self, branches: int, sequences: int, in_background: bool = False) -> Mailbox:
        """Open a mailbox for a caller who wants `branches` answers decoded side by side on `sequences`."""
        mailbox = Mailbox(branches, sequences, in_background)
        self._mailboxes.append(weakref.ref(mailbox))
        return mailbox

    def submit_to(
        self,
        mailbox: Mailbox,
        request: Request,
        *,
        row: int = 0,
        events: bool = False,
        text: bool = False,
        source: Node | None = None,
        options: CallerOptions | None = None,
        has_left: Callable[[], bool] | None = None,
    ) -> Handle:
        """Submit a request whose events and answer go to a mailbox.

        Args: `source` and `options` replace the request's conversation if the caller has prepared it;
        `has_left` says whether the reader has gone. Raises RequestError for settings that cannot be honoured,
        RuntimeError in the worker's thread.
        """
        request = replace(request, config=resolve_threshold(request.config, self.base))
        handle = Handle(request, row, mailbox, self.worker.poke, events=events, text=text)
        self._last_number += 1
        active = ActiveRequest(self, handle, self._last_number, source, options, has_left)
        self._inbox.append(active)
        self.worker.start(self)
        return handle

    def check(self, request: Request) -> None:
        """Check a request's settings before a picture is read.

        Raises RequestError for settings that cannot be honoured, RuntimeError in the worker's thread.
        """
        self.worker.check_not_inside()
        check_wrappers(self.model)  # adapters may have been switched since the engine was made
        check_adapter_hooks(self.base)
        check_backend(self.base, self.backend_name)
        ActiveRequest(self, Handle(request, 0, Mailbox(0, 0), lambda: None), 0).forget()

    # ------------------------------------------------------------------ the worker's thread
    @property
    def has_work(self) -> bool:
        """Whether any request is unfinished."""
        return bool(self._inbox or self._active)

    @property
    def is_wanted(self) -> bool:
        """Whether a caller waits for an answer or has cancelled one."""
        return any(a.handle.mailbox.is_waiting or a.is_given_up for a in (*self._inbox, *self._active))

    @torch.no_grad()
    def step(self) -> bool:
        """Begin new requests and decode one token of every answer; False if all wait for pictures."""
        self.wakes_after = None
        with self._device_context():
            is_busy = bool(self._calls)
            try:
                is_busy |= self._end_given_up()
                if self._modules is None:
                    self._modules = list(self.base.modules())
                with eval_mode(self._modules, self.worker):
                    is_busy |= self._step()
            except BaseException as error:  # raised by a backend, whose sequences are lost
                self._fail(error)
                is_busy = True
            ended = [a for a in self._active if a.task.is_over]
            for active in ended:
                self._end(active)
        return is_busy or bool(ended)  # an ended request makes room for one that has not begun

    def _step(self) -> bool:
        is_busy = False
        self._begin_new()
        for scheduler in list(self._schedulers.values()):
            is_busy |= scheduler.scores.step()
        while self._calls:
            self._calls.popleft()()
        for scheduler in list(self._schedulers.values()):
            if scheduler.has_work and not self._waits_for_more(scheduler):
                is_busy = True
                scheduler.set_size(*self._sum_wanted())
                scheduler.expects_more = self._is_preparing
                self._take(scheduler.step())
        return is_busy

    def rest(self) -> None:
        """Free what the backends hold, because no work is left."""
        with self._device_context():
            for scheduler in self._schedulers.values():
                scheduler.backend.reset()
        self._schedulers.clear()
        self._modules = None  # adapters may come and go meanwhile
        self.pictures.forget()
        if self._threads is not None:
            self._threads.close()
            self._threads = None
        self._preparing.clear()

    def prepare(
        self, active: ActiveRequest, prepare: Callable[[], Any], then: Callable[[Future[Any]], None]
    ) -> None:
        """Call `prepare` in a preparing thread (oldest request first), then `then` in the worker thread.

        `then` receives the future; it is not called if the request is over by then.
        """
        if self._threads is None or self._threads.process != os.getpid():
            self._preparing.clear()  # of threads that a forked process does not have
            self._threads = PreparingThreads()

        def accept(future: Future[Any]) -> None:
            self._preparing.pop(future, None)
            if not (active.task.is_over or active.is_given_up):
                then(future)

        def queue(future: Future[Any]) -> None:
            if active.task.is_over or active.is_given_up:
                self._preparing.pop(future, None)  # at once: its pictures would be kept until the next step
            else:
                self._calls.append(partial(accept, future))
            self.worker.notify()  # in both cases: other prompts may wait for this one, see `_waits_for_more`

        future = self._threads.submit(active.number, prepare)
        self._preparing[future] = active
        future.add_done_callback(queue)

    def decode(self, branch: Branch, active: ActiveRequest) -> None:
        """Start decoding a branch of a request."""
        self._of_branch[branch] = active
        self._find_scheduler(branch).add(branch)

    def release(self, node: Node) -> None:
        """Free the cache of a node."""
        for scheduler in self._schedulers.values():
            scheduler.release_node(node)

    def can_score(self, kind: str) -> bool:
        """Whether a backend in use gives scores of this kind."""
        return find_value_head(self.base) is not None and self._find_scorer() is not None

    def score(self, wanted: WantedScore) -> None:
        """Score a node before the next step of decoding."""
        scheduler = self._find_scorer(wanted.node)
        assert scheduler is not None  # `can_score` was asked
        scheduler.scores.add(wanted)

    def explain_missing_score(self, kind: str) -> str:
        """Say why there is no score of this kind, and the remedy."""
        if kind == "value" and find_value_head(self.base) is None:
            return (
                "there is no score 'value': the model has no value head; load one with "
                "reverse.models.value_head.load_value_head(folder, model=model)"
            )
        remedy = "take backend='hf'" if kind == "value" else "ask for 'likelihood' or 'value'"
        return f"there is no score {kind!r} of this answer: the backend does not give it; {remedy}"

    def _find_scorer(self, node: Node | None = None) -> Scheduler | None:
        """A scheduler whose backend shows hidden states: the one that holds the node, if one does."""
        able = [each for each in self._schedulers.values() if each.backend.capabilities.hidden_states]
        holding = [each for each in able if node is not None and each.holds(node)]
        return next(iter([*holding, *able]), None)

    def _waits_for_more(self, scheduler: Scheduler) -> bool:
        """Whether nothing is decoded yet and more prompts will soon be ready to be prefilled together."""
        few = len(scheduler.waiting) < min(scheduler.limit, PREFILL)
        if scheduler.running or scheduler.has_ended or not few or not self._is_preparing:
            scheduler.waits_since = None
            return False
        now = time.monotonic()
        scheduler.waits_since = scheduler.waits_since or now
        left = scheduler.waits_since + _PATIENCE - now
        if left > 0:
            self.wakes_after = left if self.wakes_after is None else min(left, self.wakes_after)
        return left > 0

    @property
    def _is_preparing(self) -> bool:
        """Whether a prompt is being prepared that will be decoded."""
        return any(not (a.task.is_over or a.is_given_up) for a in list(self._preparing.values()))

    def _begin_new(self) -> None:
        most = 2 * self._sum_wanted()[0]
        while self._inbox and len(self._active) < most:
            active = self._inbox.popleft()
            self._active.append(active)
            active.begin()

    def _take(self, branches: list[Branch]) -> None:
        for branch in branches:
            active = self._of_branch.pop(branch, None)
            if active is not None:
                active.take(branch)

    def _end_given_up(self) -> bool:
        """End the requests that their callers have cancelled."""
        given_up = [a for a in (*self._inbox, *self._active) if a.is_given_up]
        for active in given_up:
            active.task.close()
            self._end(active)
        return bool(given_up)

    def _end(self, active: ActiveRequest) -> None:
        if active in self._active:
            self._active.remove(active)
        elif active in self._inbox:
            self._inbox.remove(active)
        try:
            self._release_all(active)
        except BaseException as error:  # raised by a backend, whose sequences are lost
            self._fail(error)
        active.report_end()
        active.forget()

    def _release_all(self, active: ActiveRequest) -> None:
        """Free the caches of a request, and stop decoding its branches."""
        for branch in active.task.branches:
            self._of_branch.pop(branch, None)
            for scheduler in self._schedulers.values():
                scheduler.cancel(branch)
        for node in active.task.nodes:
            self.release(node)

    def _fail(self, error: BaseException) -> None:
        """End the answers that were being decoded when a backend raised `error`."""
        ended: list[Branch] = []
        for scheduler in self._schedulers.values():
            scheduler.recover(error)
            ended += scheduler.take_ended()
        self._take(ended)
        if not ended:  # the same call would fail again, and no caller may wait for ever
            for active in self._active:
                active.task.fail(error)

    # ------------------------------------------------------------------ backends
    def _sum_wanted(self) -> tuple[int, int]:
        """Return how many answers, and with candidates sequences, all callers want side by side."""
        for reference in list(self._mailboxes):  # callers may append to it meanwhile
            if reference() is None:
                self._mailboxes.remove(reference)
        boxes = [box for reference in list(self._mailboxes) if (box := reference()) and not box.is_closed]
        return max(1, sum(box.branches for box in boxes)), max(1, sum(box.sequences for box in boxes))

    def _find_scheduler(self, branch: Branch) -> Scheduler:
        """Return a scheduler whose backend calls logits processors if the branch has some."""
        processes = branch.rules.process is not None
        for scheduler in self._schedulers.values():
            if scheduler.backend.capabilities.logits_processors or not processes:
                return scheduler
        branches, sequences = self._sum_wanted()
        backend = choose_backend(
            self.base,
            self.backend_name,
            max_sequences=sequences,
            tags=self.codec.tags,
            processors=branch.rules.processor_names,
        )
        scheduler = self._schedulers[processes] = Scheduler(backend, branches, self.pictures)
        scheduler.pause_preparing = self._pause_preparing
        return scheduler

    def _pause_preparing(self) -> AbstractContextManager[None]:
        """Return a context in which the preparing threads begin nothing new."""
        return nullcontext() if self._threads is None else self._threads.paused()

    def _device_context(self) -> ExitStack:
        """Make the model's GPU the current one, and compute in the precision of the engine's maker."""
        stack, device = ExitStack(), input_device(self.base)
        if device.type == "cuda":
            stack.enter_context(torch.cuda.device(device))
        if self._autocast[0]:
            stack.enter_context(torch.autocast(device.type, dtype=self._autocast[1]))
        return stack


def read_autocast(model: Any) -> tuple[bool, torch.dtype]:
    """Return whether the calling thread uses autocast on the model's device, and its dtype."""
    kind = input_device(model).type
    return torch.is_autocast_enabled(kind), torch.get_autocast_dtype(kind)
