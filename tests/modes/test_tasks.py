"""Requests of many modes in one engine: whatever a mode does, nothing is lost, mixed up or left behind."""

import functools
import gc
import random
import signal
import threading
import time
import weakref
from dataclasses import dataclass

import pytest
import torch

import reverse
from reverse.decoding.asks import Generate, Release, Run, Sampling, Score
from reverse.decoding.scheduling.worker import find_worker
from reverse.modes import Plain, Resample, Select
from tests.decoding import mock
from tests.decoding.scripted import Scripted
from tests.decoding.test_slots import until
from tests.decoding.worlds import talkative

world = functools.cache(talkative)
CONFIG = reverse.ResamplingConfig(threshold=0.3, hints=0, local_attempts=2, max_attempts=4)


def request(seed=0, mode="resample", **options):
    return reverse.Request(prompt="?", config=CONFIG, seed=seed, mode=mode, do_sample=True, **options)


def engine_of(scripted, **options):
    return reverse.Engine(*world("llava", torch.float64), **{"max_sequences": 4} | options)


@pytest.fixture
def scripted(monkeypatch):
    return Scripted(monkeypatch, mock.hashed(3))


@dataclass(frozen=True)
class Nested:
    """Runs other modes side by side, in two rounds, and keeps the answer with the most ids."""

    name = "nested"

    def run(self, request):
        first = yield [Run(Select(n=2)), Run(Plain()), Generate(request.conversation, n=2)]
        again = yield [Generate(first[0].node.continue_assistant(), n=2), Release(first[1].node)]
        assert again[2] is None
        return max([*first, *again[:2]], key=lambda outcome: len(outcome.result.ids))


MODES = [Resample(), Plain(), Select(n=3), Nested(), Select(n=2, inner=Nested())]


def signature(result):
    return result.ids, result.finish_reason, len(result.trace), result.usage.kept, result.usage.discarded


# ------------------------------------------------------------------ side by side
def test_a_result_does_not_depend_on_what_else_is_in_flight(scripted):
    """Noise, order or outcomes of one request would depend on its neighbours."""
    requests = [request(seed=i, mode=MODES[i % len(MODES)]) for i in range(25)]
    alone = []
    for one in requests:
        engine = engine_of(scripted)
        alone.append(signature(engine.submit(one).result()))
        del engine
    engine = engine_of(scripted)
    handles = [engine.submit(one) for one in requests]
    assert [signature(handle.result()) for handle in handles] == alone
    for size in (1, 2, 9):
        engine = engine_of(scripted, max_sequences=size)
        order = random.Random(size).sample(range(25), 25)
        handles = {i: engine.submit(requests[i]) for i in order}
        assert [signature(handles[i].result()) for i in range(25)] == alone


def test_thousands_of_requests_of_many_modes_in_constant_memory(monkeypatch):
    """Nodes, policies or sequences of finished requests would stay."""
    scripted = Scripted(monkeypatch, mock.always(mock.SPAN, 7, mock.CN, mock.EOS))
    engine = engine_of(scripted, max_sequences=8)
    modes = [scripted.mode, Select(n=2, inner=scripted.mode), Plain()]
    open_handles, done = [], 0
    for i in range(3_000):
        open_handles.append(engine.submit(request(i, modes[i % 3])))
        if len(open_handles) == 40:
            for handle in open_handles[:20]:
                handle.result()
            done, open_handles = done + 20, open_handles[20:]
            assert len(engine._active) + len(engine._inbox) <= 40
    for handle in open_handles:
        handle.result()
    until(lambda: not find_worker(engine.base)._engines)
    assert not scripted.backend.texts and not engine._of_branch and scripted.most <= 4 * 16


def test_streams_of_several_threads_are_decoded_together(scripted):
    """Threads would take turns: every one of them as slow as all together."""
    engine = engine_of(scripted)
    steps, widths = scripted.watch_steps(), []
    handles = [engine.submit(request(seed=i)) for i in range(4)]
    for handle in handles:
        handle.result()
    widths.extend(steps)
    assert max(widths) == 4


# ------------------------------------------------------------------ leaving
@pytest.mark.parametrize("mode", MODES, ids=lambda mode: mode.name)
def test_cancel_at_any_moment_frees_everything(mode, monkeypatch):
    """A cancelled request, also inside of nested modes, would keep sequences, or its generators run on."""
    for after in range(0, 40, 3):
        with monkeypatch.context() as patch:
            scripted = Scripted(patch, mock.hashed(5))
            engine = engine_of(scripted)
            scripted.pause_after(after)
            handle, other = engine.submit(request(seed=1, mode=mode)), engine.submit(request(seed=2))
            until(lambda: scripted.paused.is_set() or not engine.has_work)  # noqa: B023
            handle.cancel()
            scripted.go_on.set()
            expected = other.result()
            until(lambda: handle.is_done and not engine.has_work)  # noqa: B023
            assert not scripted.backend.texts and not engine._of_branch and not engine._active
            if not handle.has_result:
                with pytest.raises(RuntimeError, match="was cancelled"):
                    handle.result()
            del engine
            engine = engine_of(scripted)
            assert signature(engine.submit(request(seed=2)).result()) == signature(expected)


def test_generators_are_closed_innermost_first(scripted):
    """A mode that holds a file would leave it open."""
    closed = []

    @dataclass(frozen=True)
    class Inner:
        name = "inner"
        label: str = "inner"

        def run(self, request):
            try:
                yield [Generate(request.conversation, sampling=Sampling(max_new_tokens=19))]
                yield [Run(Inner("deeper"))] if self.label != "deeper" else [Generate(request.conversation)]
                raise AssertionError("it was cancelled")
            finally:
                closed.append(self.label)

    scripted.pause_after(10)
    engine = engine_of(scripted)
    handle = engine.submit(request(mode=Inner("outer")))
    until(lambda: handle.has_begun)
    scripted.paused.wait(10)
    handle.cancel()
    scripted.go_on.set()
    until(lambda: handle.is_done)
    assert closed[-1] == "outer" and len(closed) >= 1


def test_dropping_an_engine_lets_the_model_go(scripted):
    """A model would stay in memory for as long as the process runs."""
    engine, gone = engine_of(scripted), []
    engine.submit(request()).result()
    weakref.finalize(engine, gone.append, True)
    del engine
    until(lambda: gc.collect() >= 0 and bool(gone))


# ------------------------------------------------------------------ modes that are wrong
def broken(body):
    @dataclass(frozen=True)
    class Broken:
        name = "broken"
        run = staticmethod(body)

    return Broken()


def yields(*asks):
    def run(request):
        yield [ask(request) if callable(ask) else ask for ask in asks]

    return run


def raises(request):
    yield [Generate(request.conversation)]
    raise ZeroDivisionError("in the mode")


@pytest.mark.parametrize(
    "body, error, message",
    [
        (yields("ask"), TypeError, "a mode must yield asks, got 'ask': Generate, Run, Score or Release"),
        (yields(), TypeError, r"a mode must yield a list of asks, got \[\]"),
        (
            yields(lambda r: Generate(r.conversation, n=0)),
            ValueError,
            r"Generate\(n=0\): n must be at least 1",
        ),
        (yields(lambda r: Generate(r.conversation)), TypeError, "a mode must return an outcome, got None"),
        (yields(lambda r: Run("misspelt")), ValueError, "mode must be one of"),
        (raises, ZeroDivisionError, "in the mode"),
    ],
)
def test_a_wrong_mode_fails_its_own_request(body, error, message, scripted):
    """A mistake in one mode would end the engine's thread, and all others wait for ever."""
    engine = engine_of(scripted)
    good = engine.submit(request(seed=1))
    bad = engine.submit(request(seed=1, mode=broken(body)))
    late = engine.submit(request(seed=1))
    with pytest.raises(error, match=message):
        bad.result()
    assert good.result().ids == late.result().ids
    until(lambda: not engine.has_work)
    assert not scripted.backend.texts


def test_a_score_that_no_backend_gives_is_an_error(scripted):
    """The best answer would be chosen by numbers that are none."""

    def run(request):
        (one,) = yield [Generate(request.conversation)]
        yield [Score(one.node, "value")]

    with pytest.raises(ValueError, match="there is no score 'value'"):
        engine_of(scripted).submit(request(mode=broken(run))).result()


def test_modes_may_not_call_generate(scripted):
    """The engine's thread would wait for itself for ever."""

    def run(request):
        reverse.generate(*world("llava", torch.float64), prompt="?")
        yield [Generate(request.conversation)]

    with pytest.raises(RuntimeError, match=r"would wait for itself: let a mode yield Generate"):
        engine_of(scripted).submit(request(mode=broken(run))).result()


# ------------------------------------------------------------------ Ctrl-C
def test_ctrl_c_at_any_moment_leaves_the_model_usable(scripted):
    """An interrupt between two lines would leave a lock, a request or a sequence behind for ever."""
    model, processor = world("llava", torch.float64)
    options = {"prompt": ["?", "?"], "seed": [1, 2], "config": CONFIG, "do_sample": True, "batch_size": 2}

    def call():
        return [r.ids for r in reverse.generate(model, processor, **options)]

    expected, began = call(), time.perf_counter()
    assert call() == expected
    seconds, interrupted = time.perf_counter() - began, 0
    for i in range(40):
        interrupted += is_interrupted(seconds * (i + 1) / 40, call)
        gc.collect()
        worker = find_worker(model)
        worker.notify()  # as the next call does
        until(lambda: not worker._engines)  # noqa: B023
        assert not worker.training and not scripted.backend.texts
    assert call() == expected and interrupted > 10


def is_interrupted(seconds, call):
    """Make a call that is interrupted after so many seconds, as by Ctrl-C; False where it was sooner done."""

    def interrupt(*_):
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        signal.setitimer(signal.ITIMER_REAL, seconds)
        call()
        signal.setitimer(signal.ITIMER_REAL, 0)
    except KeyboardInterrupt:
        return True
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    return False


def test_a_real_ctrl_c_while_waiting(scripted):
    """A caller who waits for a long answer could not be interrupted."""
    model, processor = world("llava", torch.float64)
    scripted.pause_after(3)

    def interrupt():
        scripted.paused.wait(10)
        signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)
        time.sleep(0.05)
        scripted.go_on.set()

    thread = threading.Thread(target=interrupt)
    thread.start()
    with pytest.raises(reverse.Interrupted):
        reverse.generate(model, processor, prompt="?", config=CONFIG, do_sample=True)
    thread.join()
    until(lambda: not find_worker(model)._engines)
    assert not scripted.backend.texts
