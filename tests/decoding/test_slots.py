"""Rows come and go: the same answers whoever stands beside, bounded memory, and nothing lost on the way."""

import functools
import gc
import itertools
import signal
import threading
import time
import weakref

import pytest
import torch

import reverse
from reverse.decoding.backends.hf import compat
from reverse.decoding.backends.hf.hf_backend import HfBackend
from reverse.decoding.scheduling.scheduler import Scheduler
from tests.decoding import mock
from tests.decoding.oracle import NaiveBackend
from tests.decoding.scripted import Scripted
from tests.decoding.worlds import picture, talkative

FAMILIES = ["llava", "qwen"]
SETTINGS = {"threshold": 0.3, "local_attempts": 3, "max_attempts": 10, "max_new_tokens": 32}
_talkative = functools.cache(talkative)


def mixed(family):
    """Requests that differ in all that matters: no picture, one, two, of different sizes, chats."""
    sized = {"max_pixels": 4 * 28 * 28} if family == "qwen" else {}  # as qwen-vl-utils' messages do
    chat = [
        {"role": "system", "content": "Be brief."},
        {
            "role": "user",
            "content": [
                {"type": "image", "image": picture(5, (84, 140))} | sized,
                {"type": "text", "text": "Is there a cat?"},
            ],
        },
    ]
    return [
        {"images": picture(0), "prompt": "Describe this image.", "seed": 3},
        {"prompt": "Tell me about cats, please, at some length.", "seed": 4},
        {"images": [picture(1, (140, 84)), picture(2, (56, 112))], "prompt": "What differs?", "seed": 5},
        {"prompt": chat, "seed": 6},
        {"images": picture(3, (168, 84)), "prompt": "Where is the bus?", "seed": 7},
        {"images": picture(4, (56, 56)), "prompt": "How many dogs?", "seed": 8},
        {"images": [picture(6), picture(7, (84, 84))], "prompt": "And now?", "seed": 9},
    ]


def many(family, requests, dtype=torch.float64, **options):
    model, processor = _talkative(family, dtype)
    return reverse.generate_many(model, processor, requests, **SETTINGS | options)


@functools.cache
def alone(family, dtype, sampled):
    """The answers of `mixed(family)`, each decoded on its own."""
    options = {"do_sample": True, "temperature": 0.8} if sampled else {}
    return [next(many(family, [request], dtype, **options)).ids for request in mixed(family)]


# ------------------------------------------------------------------ the same answers
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("dtype, sampled", [(torch.float32, False), (torch.float64, True)])
@pytest.mark.parametrize("max_sequences", [2, 3, 5])
def test_an_answer_does_not_depend_on_its_neighbours(family, dtype, sampled, max_sequences):
    """Rows admitted late, beside others of other lengths and pictures, would answer something else."""
    options = {"do_sample": True, "temperature": 0.8} if sampled else {}
    together = list(many(family, mixed(family), dtype, max_sequences=max_sequences, **options))
    assert [r.ids for r in together] == alone(family, dtype, sampled)
    assert sum(len(r.trace) for r in together) > 3


@pytest.mark.parametrize("family", FAMILIES)
def test_the_order_of_admission_plays_no_part(family):
    """The first of a list would be answered otherwise than the last."""
    expected = alone(family, torch.float64, True)
    for order in ([6, 5, 4, 3, 2, 1, 0], [3, 0, 6, 1, 5, 2, 4]):
        requests = [mixed(family)[i] for i in order]
        found = dict(
            many(
                family,
                requests,
                max_sequences=3,
                ordered=False,
                do_sample=True,
                temperature=0.8,
                candidates=1,
            )
        )
        assert [found[order.index(i)].ids for i in range(7)] == expected


@pytest.mark.parametrize("family", FAMILIES)
def test_candidates_in_few_slots(family):
    """A forked row would disturb the one that is admitted beside it."""
    options = {"hints": 0, "threshold": 0.05, "do_sample": True, "temperature": 0.8}
    one = [r.ids for r in many(family, mixed(family), max_sequences=2, **options)]
    assert [r.ids for r in many(family, mixed(family), max_sequences=2, candidates=3, **options)] == one


def test_unordered_results_come_as_they_finish():
    """A slow answer would hold back those that are ready."""
    lazy = many("llava", mixed("llava"), max_sequences=7, ordered=False)
    found = list(lazy)
    assert sorted(i for i, _ in found) == list(range(7)) and [i for i, _ in found] != list(range(7))


def test_pictures_are_read_when_a_row_is_free():
    """An endless iterable would be read to its end, or pictures opened long before their turn."""
    read = []

    def endless():
        for i in itertools.count():
            read.append(i)
            yield {"images": picture(i % 5), "prompt": "Describe this image."}

    lazy = many("llava", endless(), max_sequences=2)
    for taken in range(1, 6):
        next(lazy)
        assert len(read) <= taken + 4 * 2
    lazy.close()
    seen = len(read)
    assert list(lazy) == [] and len(read) == seen


# ------------------------------------------------------------------ memory
@pytest.mark.parametrize("count, ordered", [(10_000, True), (2_000, False)])
def test_thousands_of_requests_in_bounded_memory(monkeypatch, count, ordered):
    """A long list would keep every picture, policy and cache it ever saw."""
    scripted = Scripted(monkeypatch, mock.always(mock.SPAN, 7, mock.CN, mock.EOS))
    requests = ({"prompt": "?", "seed": i} for i in range(count))
    model, processor = _talkative("llava", torch.float64)
    answers = reverse.generate_many(
        model, processor, requests, max_sequences=8, ordered=ordered, mode=scripted.mode, threshold=0.3
    )
    assert sum(1 for _ in answers) == count
    assert scripted.most <= 4 * 8
    assert not scripted.backend.texts


def test_a_slow_answer_bounds_the_window(monkeypatch):
    """One endless answer at the front would let finished ones pile up behind it."""
    scripted, step = Scripted(monkeypatch, mock.hashed(1)), NaiveBackend.step

    def neglecting(self):
        """The first sequence is served when there is nothing else to do."""
        if 1 in self.segments and len(self.segments) > 1:
            first = self.segments.pop(1)
            outputs = step(self)
            self.segments[1] = first
            return outputs
        return step(self)

    monkeypatch.setattr(NaiveBackend, "step", neglecting)
    model, processor = _talkative("llava", torch.float64)
    requests = ({"prompt": "?", "seed": i} for i in range(200))
    answers = reverse.generate_many(
        model, processor, requests, max_sequences=4, mode=scripted.mode, threshold=0.3, hints=0
    )
    next(answers)
    assert scripted.prepared <= 4 * 4
    assert 1 + sum(1 for _ in answers) == 200


# ------------------------------------------------------------------ leaving early
def test_closing_frees_sequences_and_cache(monkeypatch):
    """A consumer that stops early would keep the model busy and its cache full."""
    made, original = [], HfBackend.__init__

    def noting(self, *args, **kwargs):
        original(self, *args, **kwargs)
        made.append(weakref.ref(self))

    monkeypatch.setattr(HfBackend, "__init__", noting)
    lazy = many("llava", itertools.cycle(mixed("llava")), max_sequences=3)
    next(lazy)
    backend = made[0]()
    assert backend._sequences and backend._cache._cache is not None
    lazy.close()
    assert not backend._sequences and backend._cache._cache is None
    del backend
    until(lambda: gc.collect() is None or made[0]() is None)
    free = threading.Thread(target=lambda: many("llava", mixed("llava")[:1]).__next__())
    free.start()
    free.join(30)
    assert not free.is_alive()


def until(holds, seconds=30):
    """Wait for something that another thread is about to do."""
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.01)


def interrupting(monkeypatch, calls, error=KeyboardInterrupt):
    """Raise `error` in the calls of the forward whose numbers are in `calls`, Ctrl-C in the main thread."""
    seen, forward = [0], compat.forward

    def fails(*args):
        seen[0] += 1
        if seen[0] in calls:
            if error is not KeyboardInterrupt:
                raise error
            signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)
            time.sleep(0.05)  # while the main thread takes notice
        return forward(*args)

    monkeypatch.setattr(compat, "forward", fails)
    return seen


def test_ctrl_c_returns_what_is_finished(monkeypatch):
    """Hours of answers would be lost with the last of them."""
    model, processor = _talkative("llava", torch.float64)
    prompts = [f"Is there a {name}?" for name in ("dog", "cat", "bus", "bird", "cup")]
    whole = reverse.generate(model, processor, prompt=prompts, batch_size=2, **SETTINGS)
    seen = interrupting(monkeypatch, ())
    reverse.generate(model, processor, prompt=prompts, batch_size=2, **SETTINGS)
    interrupting(monkeypatch, {seen[0] - 3})
    with pytest.raises(reverse.Interrupted) as stopped:
        reverse.generate(model, processor, prompt=prompts, batch_size=2, **SETTINGS)
    assert isinstance(stopped.value, KeyboardInterrupt)
    assert 2 <= len(stopped.value.results) < 5
    assert all(result.ids == whole[i].ids for i, result in stopped.value.results.items())


def test_ctrl_c_in_the_drop_in(monkeypatch, drop_in):
    """A batch of the drop-in would lose the rows that had ended."""
    interrupting(monkeypatch, {2})
    with pytest.raises(reverse.Interrupted) as stopped:
        drop_in(max_new_tokens=6)
    assert stopped.value.results == {}


def test_a_source_of_requests_may_ask_the_model(monkeypatch):
    """Reading requests under the model's lock would hang where they wait for another thread that decodes."""
    answers = []

    def ask(image):
        answers.append(next(many("llava", [image])))

    def requests():
        for image in mixed("llava")[:3]:
            thread = threading.Thread(target=ask, args=[image], daemon=True)
            thread.start()
            thread.join(60)
            assert not thread.is_alive()
            yield image

    expected = [r.ids for r in many("llava", mixed("llava")[:3], max_sequences=2)]
    assert [r.ids for r in many("llava", requests(), max_sequences=2)] == expected
    assert len(answers) == 3


@pytest.mark.parametrize("ordered", [True, False])
@pytest.mark.parametrize("bad", [{"images": "no such file.png"}, {"image": "misspelt"}, 7])
def test_a_bad_request_does_not_take_its_neighbours_along(bad, ordered):
    """Hours of answers would be lost with one missing picture."""
    good = mixed("llava")
    expected = [r.ids for r in many("llava", good[:4], max_sequences=3)]
    found = {}
    with pytest.raises((OSError, ValueError, TypeError)):
        for item in enumerate(many("llava", [*good[:4], bad, *good[4:]], max_sequences=3, ordered=ordered)):
            i, result = item if ordered else item[1]
            found[i] = result.ids
    assert [found[i] for i in range(4)] == expected and set(found) <= {0, 1, 2, 3}


# ------------------------------------------------------------------ out of memory
def memory():
    return torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("settings", [{}, {"candidates": 3, "threshold": 0.05}], ids=["alone", "forked"])
def test_out_of_memory_in_a_step_changes_no_answer(family, settings, monkeypatch):
    """A full device would end the run, or rows put back would go on with another text or other noise."""
    options = {"do_sample": True, "temperature": 0.8, "max_sequences": 6} | settings
    expected = [r.ids for r in many(family, mixed(family), **options)]
    for calls in ({1}, {7, 8}, {12, 21}):
        with monkeypatch.context() as patch:
            interrupting(patch, calls, memory())
            assert [r.ids for r in many(family, mixed(family), **options)] == expected


@pytest.mark.parametrize("where", ["build_positions", "move_layer"])
def test_out_of_memory_in_an_admission_changes_no_answer(where, monkeypatch):
    """The requests that did not fit would be lost, or a half-moved cache be used."""
    expected = [r.ids for r in many("qwen", mixed("qwen"), max_sequences=4)]
    for failing in ({1}, {2}, {3, 4}):
        seen, original = [0], getattr(compat, where)

        def fails(*args, seen=seen, original=original, failing=failing):
            seen[0] += 1
            if seen[0] in failing:
                raise memory()
            return original(*args)

        with monkeypatch.context() as patch:
            patch.setattr(compat, where, fails)
            assert [r.ids for r in many("qwen", mixed("qwen"), max_sequences=4)] == expected


def test_out_of_memory_while_pictures_are_encoded(monkeypatch):
    """The vision tower's memory would not be part of what halving is for."""
    model, _ = _talkative("llava", torch.float64)
    expected = [r.ids for r in many("llava", mixed("llava"), max_sequences=6)]
    tower, calls = reverse.models.family_of(model).vision_tower(model), []

    def full(module, args, kwargs):
        calls.append(1)
        if len(calls) == 1:
            raise memory()

    hook = tower.register_forward_pre_hook(full, with_kwargs=True)
    try:
        assert [r.ids for r in many("llava", mixed("llava"), max_sequences=6)] == expected
    finally:
        hook.remove()
    assert len(calls) > 1


@pytest.mark.parametrize("family", FAMILIES)
def test_out_of_memory_in_the_drop_in(family, monkeypatch):
    """Rows that model.generate() prepared together would get each other's pictures when they go in parts."""
    from tests.decoding.test_backend import config, decode

    expected = [r.ids for r in decode(family, range(6), config(), temperature=0.8)[0]]
    for calls in ({1}, {4, 5}, {9}):
        with monkeypatch.context() as patch:
            interrupting(patch, calls, memory())
            results, _ = decode(family, range(6), config(), temperature=0.8)
        assert [r.ids for r in results] == expected


def test_out_of_memory_with_one_row_names_the_mend(monkeypatch):
    """Halving would go on for ever, or the error say nothing of what to do."""
    interrupting(monkeypatch, set(range(1, 100)), memory())
    with pytest.raises(torch.OutOfMemoryError, match=r"single row \(CUDA out of memory.*smaller pictures"):
        list(many("llava", mixed("llava"), max_sequences=4))


def test_out_of_memory_lets_go_of_what_it_held(monkeypatch):
    """The error's own traceback would keep the tensors alive that the next attempt needs the room of.

    The first time that memory runs out the kept pictures go and the sequences stay; then the sequences go.
    """
    held, alive, forward, step = [], [], compat.forward, Scheduler.step

    def full(model, cache, *args):
        if len(held) < 2 and cache.layers[0].keys is not None:
            held.append([weakref.ref(tensor) for tensor in (cache.layers[0].keys, cache.layers[1].values)])
            raise memory()
        return forward(model, cache, *args)

    def stepping(self):
        before = len(held)
        found = step(self)
        if len(held) > before:
            alive.append([ref() is not None for ref in held[-1]])
        return found

    monkeypatch.setattr(compat, "forward", full)
    monkeypatch.setattr(Scheduler, "step", stepping)
    gc.disable()
    try:
        assert len(list(many("qwen", mixed("qwen"), max_sequences=4))) == 7
    finally:
        gc.enable()
    assert alive == [[True, True], [False, False]]


# ------------------------------------------------------------------ threads
@pytest.mark.parametrize("family", FAMILIES)
def test_two_threads_on_one_model(family):
    """Rotary offsets are a state of Qwen's module: one thread would decode with those of the other."""
    expected = alone(family, torch.float64, True)
    found = {}

    def work(name, order):
        requests = [mixed(family)[i] for i in order]
        answers = many(family, requests, max_sequences=2, do_sample=True, temperature=0.8)
        found[name] = dict(zip(order, (r.ids for r in answers), strict=True))

    orders = {"a": list(range(7)), "b": [6, 3, 5, 1, 0, 2, 4]}
    threads = [threading.Thread(target=work, args=item) for item in orders.items()]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    for name in orders:
        assert [found[name][i] for i in range(7)] == expected


def test_threads_take_turns():
    """One long list would keep all other threads waiting until it is done."""
    model, processor = _talkative("llava", torch.float64)
    steps, started = [], threading.Event()

    def endless():
        for result in many("llava", itertools.cycle(mixed("llava")), max_sequences=2, ordered=False):
            steps.append(result)
            started.set()
            if len(steps) >= 400:
                return

    long = threading.Thread(target=endless)
    long.start()
    started.wait(30)
    reverse.generate(model, processor, prompt="Is there a cat?", **SETTINGS | {"max_new_tokens": 4})
    assert len(steps) < 400
    steps.extend([None] * 400)
    long.join(30)


def test_nobody_waits_for_a_prompt_that_was_cancelled(monkeypatch):
    """The others wait to be prefilled together with it, and nobody would tell them that it never comes."""
    engine, begun, go_on = _prepare_slowly(monkeypatch)
    slow = engine.submit(reverse.Request(None, "slow", max_new_tokens=4))
    assert begun.wait(60)
    others = [engine.submit(reverse.Request(None, "Is there a cat?", max_new_tokens=4)) for _ in range(2)]
    _wait_until(lambda: sum(len(each.waiting) for each in engine._schedulers.values()) == 2)
    slow.cancel()
    assert all(other.result(timeout=60).usage.forwards for other in others)
    go_on.set()


def test_a_slow_picture_keeps_the_others_waiting_for_a_moment_only(monkeypatch):
    """All answers would begin when the slowest picture is read."""
    engine, begun, go_on = _prepare_slowly(monkeypatch, patience=0.05)
    slow = engine.submit(reverse.Request(None, "slow", max_new_tokens=4))
    assert begun.wait(60)
    other = engine.submit(reverse.Request(None, "Is there a cat?", max_new_tokens=4))
    assert other.result(timeout=60).usage.forwards and not slow.is_done
    go_on.set()
    assert slow.result(timeout=60).usage.forwards


def _prepare_slowly(monkeypatch, patience=60.0):
    """An engine, an event that is set when "slow" is being prepared, and one that lets it go on."""
    monkeypatch.setattr("reverse.decoding.engine._PATIENCE", patience)
    engine = reverse.Engine(*_talkative("llava", torch.float64), max_sequences=8)
    begun, go_on, prepare = threading.Event(), threading.Event(), engine.preparer.prepare

    def slowly(conversation, request, uses_hints):
        if request.prompt == "slow":
            begun.set()
            go_on.wait(60)
        return prepare(conversation, request, uses_hints)

    monkeypatch.setattr(engine.preparer, "prepare", slowly)
    return engine, begun, go_on


def test_requests_that_are_over_at_once_make_room(monkeypatch):
    """Those behind them would never begin."""
    mode = _Fails()
    engine = reverse.Engine(*_talkative("llava", torch.float64), max_sequences=2)
    handles = [engine.submit(reverse.Request(None, "?", mode=mode)) for _ in range(20)]
    for handle in handles:
        with pytest.raises(ValueError, match="at once"):
            handle.result(timeout=60)


class _Fails:
    """A mode that is over before it asks for anything."""

    name = "fails"

    def run(self, request):
        raise ValueError("at once")
        yield []


@pytest.mark.parametrize("operation", ["step", "release"])
def test_after_an_error_of_the_backend_the_others_go_on(monkeypatch, operation):
    """Requests that wait would never be told, and nothing would decode later ones."""
    engine, raised = reverse.Engine(*_talkative("llava", torch.float64), max_sequences=2), []
    original = getattr(HfBackend, operation)

    def failing(self, *args):
        if not raised:
            raised.append(True)
            raise RuntimeError("once")
        return original(self, *args)

    request = reverse.Request(None, "Is there a cat?", max_new_tokens=4)
    monkeypatch.setattr(HfBackend, operation, failing)
    handles = [engine.submit(request) for _ in range(6)]
    if operation == "release":
        handles[0].cancel()
    ended = [_outcome(handle) for handle in handles]
    assert raised and len(ended) == 6 and any(ended)
    assert engine.submit(request).result(timeout=60).usage.forwards, "the thread is gone"


def _outcome(handle):
    """Whether a request has an answer; waits for its end."""
    try:
        return bool(handle.result(timeout=60).usage.forwards)
    except (RuntimeError, reverse.errors.BackendError) as error:
        assert not isinstance(error, TimeoutError)
        return False


def _wait_until(holds):
    end = time.monotonic() + 60
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.001)


def test_a_reader_of_events_may_ask_something_else():
    """A question asked from inside a callback would wait for itself for ever."""
    model, processor = _talkative("llava", torch.float64)
    asked = []

    def ask(event):
        if not asked:
            asked.append(event)
            asked.append(reverse.generate(model, processor, prompt="Is there a cat?", **SETTINGS))

    outer = reverse.generate(model, processor, prompt="Where is the bus?", events=ask, **SETTINGS)
    assert outer.ids == reverse.generate(model, processor, prompt="Where is the bus?", **SETTINGS).ids
    assert asked[1].ids == reverse.generate(model, processor, prompt="Is there a cat?", **SETTINGS).ids


# ------------------------------------------------------------------ what it is given
@pytest.mark.parametrize(
    "request_, error, message",
    [
        ("Describe", TypeError, "request 0 is a str: give a mapping with images and prompt, or a pair"),
        ({"image": None}, ValueError, "request 0 has 'image': known are images, prompt, seed"),
    ],
)
def test_requests_of_the_wrong_form(request_, error, message):
    """A misspelt key would be ignored, and the question asked without its picture."""
    with pytest.raises(error, match=message):
        next(many("llava", [request_]))


def test_bad_arguments_are_refused_at_the_call():
    """A generator would only complain when it is first read, far from the mistake."""
    with pytest.raises(ValueError, match="max_sequences must be a whole number of at least 1, got 0"):
        many("llava", [], max_sequences=0)
    with pytest.raises(TypeError, match="unknown setting tresholds"):
        many("llava", [], tresholds=1)


def test_pairs_and_defaults():
    """(images, prompt) would not be the same request as its mapping, or the seed of all not be used."""
    pair, mapping = (picture(0), "Is there a cat?"), {"images": picture(0), "prompt": "Is there a cat?"}
    first, second = many("llava", [pair, mapping], do_sample=True, temperature=1.0, seed=5)
    assert first.ids == second.ids
