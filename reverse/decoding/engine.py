"""The engine: requests of all modes and settings, decoded side by side on one model.

    engine = Engine(model, processor, max_sequences=32)
    handle = engine.submit(Request("kitchen.png", "Describe this image."))
    handle.result().text

An engine lives as long as its model is used. Requests are prepared by threads of its own ahead of need and
decoded by the model's worker thread; what a caller does meanwhile, Ctrl-C too, never meets a step half done.
`generate`, `generate_many`, `stream` and `custom_generate` share one engine for each model.
"""

from __future__ import annotations

import os
import weakref
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import Any
from weakref import WeakKeyDictionary, WeakValueDictionary

import torch

from reverse.decoding.active_request import ActiveRequest
from reverse.decoding.asks import Node
from reverse.decoding.backends.auto import BackendName, check_backend, choose_backend
from reverse.decoding.branch import Branch
from reverse.decoding.calls.handles import Handle, Mailbox
from reverse.decoding.config import check_whole
from reverse.decoding.preparing.picture_cache import PictureCache
from reverse.decoding.preparing.preparing import CallerOptions, Preparer, resolve_threshold
from reverse.decoding.preparing.preparing_threads import PreparingThreads
from reverse.decoding.request import Request
from reverse.decoding.scheduler import PREFILL, Scheduler
from reverse.decoding.text.codec import TextCodec
from reverse.decoding.worker import eval_mode, worker_of
from reverse.errors import RequestTypeError
from reverse.models import family_of
from reverse.models.unwrapping import check_adapter_hooks, check_wrappers, input_device, unwrap_model

__all__ = ["Engine", "shared_engine"]


class Engine:
    """Decodes requests on a model.

    Args:
        model: a LLaVA or Qwen2.5-VL model, or what wraps one (peft, torch.compile).
        processor: its processor.
        max_sequences: answers decoded side by side at most; candidates come on top.
        backend: "auto", "hf" (any device, eager) or "cuda_graph" (captured steps on CUDA).

    Raises ValueError, TypeError for a model that cannot be decoded with.
    """

    def __init__(
        self,
        model: Any,
        processor: Any,
        *,
        max_sequences: int = 8,
        backend: BackendName = "auto",
        own: bool = True,
    ):
        check_wrappers(model)
        self.model, self.base = model, unwrap_model(model)
        if not hasattr(self.base, "generate"):
            raise RequestTypeError(
                f"{type(self.base).__name__} has no head to generate with: give the "
                f"{family_of(self.base).model_class} that reverse.load() returns"
            )
        self.codec = TextCodec(processor)
        self.backend_name = backend
        self.worker = worker_of(model)
        self.pictures = PictureCache()
        self.preparer = Preparer(model, self.codec, self.pictures)
        self._threads: PreparingThreads | None = None
        self._schedulers: dict[bool, Scheduler] = {}  # for answers with logits processors, and without
        self._inbox: deque[ActiveRequest] = deque()  # submitted and not begun
        self._active: list[ActiveRequest] = []  # begun, the oldest first
        self._of_branch: dict[Branch, ActiveRequest] = {}
        self._calls: deque[Callable[[], None]] = deque()  # to be made in the worker's thread
        self._mailboxes: list[weakref.ref[Mailbox]] = []
        self._modules: list[Any] | None = None  # of the model; walking through it takes long
        self._numbers = 0
        self._preparing: set[Future[Any]] = set()  # conversations
        self._autocast = _autocast_state(self.base)
        if own:
            most = check_whole("max_sequences", max_sequences, 1)
            self._reservation = self.open_mailbox(most, most, in_background=True)

    # ------------------------------------------------------------------ what callers do
    def submit(self, request: Request, *, events: bool = False) -> Handle:
        """Begin a request, which is answered in the background; with `events` the handle tells of tokens."""
        mailbox = self.open_mailbox(0, 0, in_background=True)
        return self.submit_to(mailbox, request, events=events)

    def open_mailbox(self, branches: int, sequences: int, in_background: bool = False) -> Mailbox:
        """A mailbox for requests of one caller, who wants so many answers decoded side by side."""
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
        left: Callable[[], bool] | None = None,
    ) -> Handle:
        """Begin a request whose news go to a mailbox; `source` with `options` stand for its conversation.

        Raises ValueError, TypeError for settings that cannot be honoured, RuntimeError in the worker's
        thread.
        """
        request = replace(request, config=resolve_threshold(request.config, self.base))
        handle = Handle(request, row, mailbox, self.worker.poke, events=events, text=text)
        self._numbers += 1
        active = ActiveRequest(self, handle, self._numbers, source, options, left)
        self._inbox.append(active)
        self.worker.start(self)
        return handle

    def check(self, request: Request) -> None:
        """Refuse settings of a request that cannot be honoured, before a picture is read.

        Raises ValueError, TypeError; RuntimeError in the worker's thread, which would wait for itself.
        """
        self.worker.check_not_inside()
        check_wrappers(self.model)  # adapters may have been switched since the engine was made
        check_adapter_hooks(self.base)
        check_backend(self.base, self.backend_name)
        ActiveRequest(self, Handle(request, 0, Mailbox(0, 0), _do_nothing), 0)

    # ------------------------------------------------------------------ the worker's thread
    @property
    def has_work(self) -> bool:
        """Whether any request is unfinished."""
        return bool(self._inbox or self._active)

    @property
    def is_wanted(self) -> bool:
        """Whether anybody waits for an answer, or has given one up."""
        return any(a.handle.mailbox.is_waiting or a.is_given_up for a in (*self._inbox, *self._active))

    @torch.no_grad()
    def step(self) -> bool:
        """Begin what is new, decode one token of everything; False where all of it waits for pictures."""
        with _device(self.base):
            return self._step()

    def _step(self) -> bool:
        is_busy = self._end_given_up() or bool(self._calls)
        try:
            if self._modules is None:
                self._modules = list(self.base.modules())
            with eval_mode(self._modules, self.worker), _autocast(self.base, self._autocast):
                self._begin_new()
                while self._calls:
                    self._calls.popleft()()
                for scheduler in list(self._schedulers.values()):
                    if scheduler.has_work and not self._waits_for_more(scheduler):
                        is_busy = True
                        self._fit(scheduler)
                        scheduler.expects_more = bool(self._preparing)
                        self._take(scheduler.step())
        except BaseException as error:  # of a backend: whatever it was doing is lost
            self._fail(error)
        for active in [a for a in self._active if a.is_over]:
            self._end(active)
        return is_busy

    def rest(self) -> None:
        """Nothing is left to be done: let go of what the backends hold."""
        with _device(self.base):
            for scheduler in self._schedulers.values():
                scheduler.backend.reset()
        self._schedulers.clear()
        self._modules = None  # adapters may come and go meanwhile
        self.pictures.forget()
        if self._threads is not None:
            self._threads.close()
            self._threads = None
        self._preparing.clear()

    def call_in_thread(self, call: Callable[[], None]) -> None:
        """Let the worker's thread make a call before its next step."""
        self._calls.append(call)
        self.worker.notify()

    def prepare(self, number: int, prepare: Callable[[], Any]) -> Future[Any]:
        """Open pictures and tokenise in other threads than the worker's, for the oldest request first."""
        if self._threads is None or self._threads.process != os.getpid():
            self._threads = PreparingThreads()
        future = self._threads.submit(number, prepare)
        self._preparing.add(future)
        return future

    def end_preparing(self, future: Future[Any]) -> None:
        """What was prepared has been taken up, or nobody wants it any more."""
        self._preparing.discard(future)

    def decode(self, branch: Branch, active: ActiveRequest) -> None:
        """Let a branch of a request be decoded."""
        self._of_branch[branch] = active
        self._scheduler_for(branch).add(branch)

    def release(self, node: Node) -> None:
        """Let the cache of a node go."""
        for scheduler in self._schedulers.values():
            scheduler.release_node(node)

    def _waits_for_more(self, scheduler: Scheduler) -> bool:
        """Nothing is decoded yet, and more prompts are about to be ready: they are prefilled together."""
        few = len(scheduler.waiting) < min(scheduler.limit, PREFILL)
        return bool(self._preparing) and not scheduler.running and few and not scheduler.has_ended

    def _begin_new(self) -> None:
        most = 2 * max(1, self._wanted()[0])
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
        """Let go of what nobody waits for any more."""
        given_up = [a for a in (*self._inbox, *self._active) if a.is_given_up]
        for active in given_up:
            active.close()
            self._end(active)
        return bool(given_up)

    def _end(self, active: ActiveRequest) -> None:
        if active in self._active:
            self._active.remove(active)
        elif active in self._inbox:
            self._inbox.remove(active)
        for branch in active.branches:
            self._of_branch.pop(branch, None)
            for scheduler in self._schedulers.values():
                scheduler.cancel(branch)
        for node in active.nodes:
            self.release(node)
        active.tell_end()
        active.forget()

    def _fail(self, error: BaseException) -> None:
        """A backend has raised: the answers that it was decoding have no end."""
        ended: list[Branch] = []
        for scheduler in self._schedulers.values():
            scheduler.recover(error)
            ended += scheduler.take_ended()
        self._take(ended)
        if not ended:  # what failed will fail again, and nobody may wait for ever
            for active in self._active:
                active.fail(error)

    # ------------------------------------------------------------------ backends
    def _wanted(self) -> tuple[int, int]:
        """Answers, and with candidates sequences, that all callers want side by side."""
        for reference in list(self._mailboxes):
            if reference() is None:
                self._mailboxes.remove(reference)
        boxes = [reference() for reference in list(self._mailboxes)]
        open_boxes = [box for box in boxes if box is not None and not box.is_closed]
        return sum(box.branches for box in open_boxes), sum(box.sequences for box in open_boxes)

    def _fit(self, scheduler: Scheduler) -> None:
        branches, sequences = self._wanted()
        scheduler.set_size(max(1, branches), max(1, sequences))

    def _scheduler_for(self, branch: Branch) -> Scheduler:
        """Processors have to see every step, which not every backend lets them do."""
        processes = branch.rules.process is not None
        for scheduler in self._schedulers.values():
            if scheduler.backend.capabilities.logits_processors or not processes:
                return scheduler
        branches, sequences = (max(1, n) for n in self._wanted())
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
        return nullcontext() if self._threads is None else self._threads.paused()


_engines: WeakKeyDictionary[Any, WeakValueDictionary[Any, Engine]] = WeakKeyDictionary()


def shared_engine(model: Any, processor: Any, backend: BackendName = "auto") -> Engine:
    """The engine that all calls on a model share while any of them is under way.

    Those in another precision (autocast), with another processor or backend have one of their own.
    """
    base = unwrap_model(model)
    if not hasattr(base, "generate"):
        return Engine(model, processor)  # which says what is wrong
    check_backend(base, backend)
    key = (id(model), id(processor), backend, _autocast_state(base))
    engines = _engines.setdefault(base, WeakValueDictionary())
    engine = engines.get(key)
    if engine is None:  # no lock: two engines of two threads would step in turns, too
        engine = engines.setdefault(key, Engine(model, processor, backend=backend, own=False))
    return engine


def _reset_after_fork() -> None:
    """In a child process no engine has a thread."""
    _engines.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_reset_after_fork)


def _do_nothing() -> None:
    """What cancels a request that was only checked."""


def _autocast_state(model: Any) -> tuple[bool, torch.dtype]:
    """Whether the calling thread computes in mixed precision on the model's device, and in which."""
    kind = input_device(model).type
    return torch.is_autocast_enabled(kind), torch.get_autocast_dtype(kind)


def _device(model: Any) -> AbstractContextManager[Any]:
    """The model's GPU as the current one, which the worker's thread does not take over from a caller."""
    device = input_device(model)
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()


def _autocast(model: Any, state: tuple[bool, torch.dtype]) -> AbstractContextManager[Any]:
    if not state[0]:
        return nullcontext()
    return torch.autocast(input_device(model).type, dtype=state[1])
