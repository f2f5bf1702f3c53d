"""Pictures: prepared by several threads, encoded together and once, and never mixed up."""

import functools
import gc
import io
import subprocess
import sys
import textwrap
import threading
import time

import pytest
import torch
from PIL import Image

import reverse
from reverse.decoding.asks import PictureRef
from reverse.decoding.backends.protocol import EncodedPicture, OutOfMemory, Picture
from reverse.decoding.preparing import preparing_threads
from reverse.decoding.preparing.picture_cache import PictureCache
from reverse.decoding.preparing.preparing_threads import PreparingThreads
from reverse.decoding.scheduling.picture_batches import encode_pictures
from reverse.decoding.shared_engines import find_shared_engine
from reverse.models import family_of, prepare_inputs, window_attention
from tests.decoding.worlds import picture, talkative

FAMILIES = ["llava", "qwen"]
SETTINGS = {"threshold": 0.3, "max_attempts": 4, "max_new_tokens": 10}
_talkative = functools.cache(talkative)


def many(family, requests, **options):
    return reverse.generate_many(*_talkative(family), requests, **SETTINGS | options)


def jpeg(seed, size=(112, 84)):
    file = io.BytesIO()
    picture(seed, size).save(file, "JPEG")
    return file.getvalue()


def chat(*parts):
    content = [
        {"type": "text", "text": p} if isinstance(p, str) else {"type": "image", "image": p} for p in parts
    ]
    return [{"role": "user", "content": content}]


def requests():
    shared = picture(20)
    return [
        {"images": jpeg(i, (84 + 28 * (i % 3), 112)), "prompt": f"What is in picture {i}?"} for i in range(6)
    ] + [
        {"images": [shared, picture(21, (56, 140))], "prompt": "Compare <image> with <image>."},
        {"images": shared, "prompt": "Is there a cat?"},
        {"prompt": chat("Look:", jpeg(30), "and", shared, "Which is larger?")},
        {"prompt": "Is there a cat?"},
    ]


@pytest.fixture
def encodings():
    """`encodings(family)`: a list of how many pictures each run of the tower has encoded."""
    hooks = []

    def watch(family):
        model, _ = _talkative(family)
        found = []

        def note(module, args, kwargs, output):
            grids = kwargs.get("grid_thw")
            found.append(len(args[0] if args else kwargs["pixel_values"]) if grids is None else len(grids))

        hooks.append(family_of(model).vision_tower(model).register_forward_hook(note, with_kwargs=True))
        return found

    yield watch
    for hook in hooks:
        hook.remove()


# ------------------------------------------------------------------ the same tensors
@pytest.mark.parametrize("family", FAMILIES)
def test_pictures_one_by_one_are_those_of_all_at_once(family):
    """Another tensor than that of the processor would be another picture to the model."""
    model, processor = _talkative(family)
    record = family_of(model)
    for request in requests():
        given = processor, [request.get("images")], [request["prompt"]], record
        expected, refs, cache = prepare_inputs(*given), [], PictureCache()

        def process(image, settings, make, cache=cache, refs=refs):
            refs.append(cache.find(image, settings, lambda: record.split_pictures(make())[0]))
            return refs[-1].outline

        for _ in range(2):  # prepared, and found again
            refs.clear()
            found = prepare_inputs(*given, process=process)
            assert torch.equal(found["input_ids"], expected["input_ids"])
            assert set(found) == set(expected)
            tensors = record.split_pictures(expected)
            assert len(refs) == len(tensors)
            for ref, wanted in zip(refs, tensors, strict=True):
                assert set(ref.picture.tensors) == set(wanted)
                for name, value in wanted.items():
                    assert torch.equal(ref.picture.tensors[name], value)
                    assert ref.picture.tensors[name].dtype == value.dtype


@pytest.mark.parametrize("family", FAMILIES)
def test_answers_do_not_depend_on_the_number_of_threads(family, monkeypatch):
    """Threads that share a tokenizer, a picture or a stream would tokenise or read something else."""
    expected = None
    for threads in (1, 2, 8):
        monkeypatch.setattr(preparing_threads, "count_cores", lambda threads=threads: threads)
        found = [(r.ids, r.text) for r in many(family, requests(), max_sequences=4)]
        expected = found if expected is None else expected
        assert found == expected


def test_one_lazy_image_and_one_stream_for_all_threads():
    """A PIL image that two threads decode at once, or a stream that two read, would be cut off."""
    expected = next(many("llava", [{"images": jpeg(5)}])).ids
    lazy, stream = Image.open(io.BytesIO(jpeg(5))), io.BytesIO(jpeg(5))
    found = many("llava", [{"images": each} for each in [lazy, stream] * 12], max_sequences=12)
    assert all(result.ids == expected for result in found)


def test_a_tokenizer_that_others_made_pad(tiny_llava):
    """Changing the padding of a tokenizer while a thread encodes raises "Already borrowed"."""
    _, processor = tiny_llava
    model, _ = tiny_llava
    wrong, stop = [], threading.Event()

    def work(prompts):
        try:
            while not stop.is_set():
                prepare_inputs(processor, [None] * len(prompts), prompts, family_of(model))
        except RuntimeError as error:
            wrong.append(error)

    batches = [["Is there a cat? " * 40], ["Is there a dog?", "Describe this image. " * 40]] * 2
    threads = [threading.Thread(target=work, args=(each,)) for each in batches]
    for thread in threads:
        thread.start()
    time.sleep(1.0)
    stop.set()
    for thread in threads:
        thread.join()
    assert not wrong


# ------------------------------------------------------------------ encoded once
@pytest.mark.parametrize("family", FAMILIES)
def test_a_repeated_picture_is_encoded_once(family, encodings):
    """Ten questions about one picture would encode it ten times."""
    found = encodings(family)
    same = [{"images": jpeg(1), "prompt": f"Question {i}?"} for i in range(10)]
    alone = [next(many(family, [each])).ids for each in same]
    found.clear()
    assert [r.ids for r in many(family, same, max_sequences=3)] == alone
    assert found == [1]


def test_pictures_that_differ_little_are_not_mixed_up(encodings):
    """One pixel, the size, or the settings of the processor: another picture to the model."""
    found = encodings("llava")
    first = picture(1)
    second = first.copy()
    second.putpixel((3, 3), (1, 2, 3))
    turned = Image.frombytes("RGB", (224, 56), first.tobytes())
    given = [{"images": each, "prompt": "Describe."} for each in (first, second, turned, first)]
    alone = [next(many("llava", [each])).ids for each in given]
    found.clear()
    assert [r.ids for r in many("llava", given, max_sequences=4)] == alone
    assert sum(found) == 3
    cache = PictureCache()
    make = lambda: {"pixel_values": torch.zeros(1, 3, 28, 28)}  # noqa: E731
    assert cache.find(first, "a", make) is not (held := cache.find(first, "b", make))
    assert cache.find(first.copy(), "b", make) is held


def test_the_cache_is_bounded_and_forgets():
    """Features of every picture that was ever seen would fill the GPU."""
    cache = PictureCache(most_bytes=4000)
    refs = []
    for i in range(10):
        ref = cache.find(picture(i), "", lambda: {"pixel_values": torch.zeros(1, 3, 28, 28)})
        ref.encoded, ref.picture = EncodedPicture(torch.zeros(25, 10)), None  # 1,000 bytes
        cache.keep(ref)
        refs.append(id(ref))
        assert cache.bytes <= 4000
        if i:  # the first is used again and again
            assert cache.find(picture(0), "", pytest.fail).encoded is not None
        del ref
    assert len(cache) == 4
    made = []
    again = cache.find(picture(1), "", lambda: made.append(1) or {"pixel_values": torch.zeros(1)})
    assert made and again.encoded is None  # those not used for longest went first
    cache.forget()
    assert len(cache) == cache.bytes == 0
    assert cache.find(picture(0), "", lambda: {"pixel_values": torch.zeros(1)}).encoded is None


def test_nothing_is_kept_once_the_engine_rests():
    """Features of weights that are trained in between would be those of another model."""
    model, processor = _talkative("llava")
    list(many("llava", requests()[:3]))
    engine = find_shared_engine(model, processor)
    for _ in range(100):
        if engine._threads is None and not engine._schedulers:
            break
        time.sleep(0.02)
    assert len(engine.pictures) == 0 and not engine._preparing and engine._threads is None


# ------------------------------------------------------------------ encoded together
class Encoder:
    """A backend that encodes, `room` values at once."""

    class capabilities:
        max_sequences = 8

    def __init__(self, room):
        self.room, self.calls = room, []

    def encode(self, pictures):
        self.calls.append(len(pictures))
        if sum(p.tensors["pixel_values"].numel() for p in pictures) > self.room:
            raise OutOfMemory("full")
        return [EncodedPicture(p.tensors["pixel_values"]) for p in pictures]


def refs_of(*sizes):
    return [
        PictureRef(Picture({"pixel_values": torch.full((size,), float(i))})) for i, size in enumerate(sizes)
    ]


def test_pictures_are_encoded_in_bounded_batches(monkeypatch):
    """Sixteen large pictures at once would run out of memory where four and four fit."""
    monkeypatch.setattr("reverse.decoding.scheduling.picture_batches._ENCODED_TOGETHER", 100)
    backend, refs = Encoder(1 << 20), refs_of(*[40] * 5, 500, 10)
    encode_pictures(refs, backend, PictureCache())
    assert backend.calls == [2, 2, 1, 1, 1]
    assert [float(ref.encoded.features[0]) for ref in refs] == list(range(7))
    assert all(ref.picture is None for ref in refs)


def test_encoding_halves_when_memory_runs_out():
    """The answers would be put back and fewer decoded side by side, although only pictures did not fit."""
    backend, refs = Encoder(80), refs_of(*[40] * 5)
    encode_pictures(refs, backend, PictureCache())
    assert backend.calls == [5, 2, 2, 1] and all(ref.encoded is not None for ref in refs)
    with pytest.raises(OutOfMemory):
        encode_pictures(refs_of(40), Encoder(10), PictureCache())


@pytest.mark.parametrize("family", FAMILIES)
def test_prompts_are_prefilled_together(family, encodings):
    """Each prompt on its own: a forward pass of one row takes nearly as long as one of sixteen."""
    found = encodings(family)
    list(
        many(family, [{"images": jpeg(i), "prompt": "What?", "seed": i} for i in range(24)], max_sequences=8)
    )
    assert sum(found) == 24 and len(found) <= 12


# ------------------------------------------------------------------ errors and ends
def test_an_error_of_one_picture_is_its_own_requests():
    """The other requests that were being prepared would end with it."""
    given = [{"images": jpeg(i)} for i in range(6)]
    given[2] = {"images": jpeg(2)[:200]}
    found = list(many("llava", given, on_error="yield", max_sequences=4))
    assert [type(each).__name__ for each in found] == ["Result", "Result", "FailedRequest"] + ["Result"] * 3
    assert str(found[2].error).startswith("request 2: image of 200 bytes is not a picture that can be read (")


def test_closing_early_ends_the_threads():
    """Threads that prepare what nobody wants any more would go on, and hold its pictures."""
    answers = many("llava", ({"images": jpeg(i)} for i in range(1000)), max_sequences=8, ordered=False)
    next(answers)
    answers.close()
    for _ in range(250):
        if not any(thread.name.startswith("reverse-preparing") for thread in threading.enumerate()):
            return
        time.sleep(0.02)
    pytest.fail("a thread prepares still")


def test_the_oldest_request_is_prepared_first():
    """A second question about an old request's picture would wait for all new requests."""
    pool, go_on, order = PreparingThreads(1), threading.Event(), []
    futures = [pool.submit(0, go_on.wait)]
    futures += [pool.submit(n, functools.partial(order.append, n)) for n in (5, 9, 7, 3)]
    go_on.set()
    for future in futures:
        future.result(10)
    assert order == [3, 5, 7, 9]
    pool.close()


def test_what_was_not_begun_is_cancelled():
    """Whoever waits for it would wait for ever."""
    pool, go_on = PreparingThreads(1), threading.Event()
    running = pool.submit(0, go_on.wait)
    while not running.running():
        time.sleep(0.001)
    waiting = pool.submit(1, pytest.fail)
    pool.close()
    assert waiting.cancelled()
    go_on.set()
    running.result(10)


def test_nothing_is_begun_while_threads_are_paused():
    """Threads that prepare pictures would take Python's lock from the thread that encodes them."""
    pool, made = PreparingThreads(2), []
    with pool.paused():
        futures = [pool.submit(i, functools.partial(made.append, i)) for i in range(4)]
        time.sleep(0.05)
        assert made == []
    for future in futures:
        future.result(10)
    assert sorted(made) == [0, 1, 2, 3]
    with pool.paused():
        pool.close()


@pytest.mark.parametrize("ends", ["main thread", "Ctrl-C"])
def test_python_ends_although_a_thread_prepares(ends):
    """The interpreter joins the threads of `concurrent.futures`: a slow disk would keep it from ending."""
    end = "pass" if ends == "main thread" else "os.kill(os.getpid(), signal.SIGINT); time.sleep(30)"
    code = f"""
        import os, signal, sys, time
        from reverse.decoding.preparing.preparing_threads import PreparingThreads
        signal.signal(signal.SIGINT, signal.default_int_handler)
        pool = PreparingThreads(2)
        futures = [pool.submit(i, lambda: time.sleep(60)) for i in range(8)]
        while not futures[0].running(): time.sleep(0.001)
        print("prepares", flush=True)
        {end}
    """
    child = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert child.stdout.readline() == "prepares\n"
    child.communicate(timeout=30)  # about a tenth of a second; the threads sleep for 60


@pytest.mark.parametrize("family", FAMILIES)
def test_features_go_with_their_answer(family, monkeypatch):
    """Reference cycles would keep the features of answers that are over until Python collects its garbage."""
    engine = find_shared_engine(*_talkative(family))  # held, so that the calls below use this one
    monkeypatch.setattr(engine.pictures, "most_bytes", 0)
    requests = [{"images": picture(i), "prompt": "Describe this image."} for i in range(10)]
    gc.collect()
    gc.disable()
    try:
        for _ in many(family, requests, max_sequences=2):
            held = sum(type(o) is PictureRef and o.encoded is not None for o in gc.get_objects())
            assert held <= 6  # of two answers that are decoded, two that wait, and two that end
    finally:
        gc.enable()


def test_windows_are_attended_to_together(monkeypatch):
    """Qwen2.5-VL's tower would call the attention thousands of times a picture, and the GPU wait for it."""
    model, processor = _talkative("qwen")
    monkeypatch.setattr(window_attention, "_kernel_here", lambda tower: True)
    attend, calls = window_attention._attend, []
    monkeypatch.setattr(window_attention, "_attend", lambda *a, **k: calls.append(1) or attend(*a, **k))
    images = [picture(i, (140, 84)) for i in range(3)]
    reverse.generate(model, processor, images, "Describe this image.", **SETTINGS)
    layers = model.config.vision_config.depth
    assert calls and len(calls) % layers == 0 and len(calls) < 2 * 3 * layers
