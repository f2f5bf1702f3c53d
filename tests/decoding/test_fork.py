"""A process forked while another thread decodes can decode too, and does not wait for a thread it has not."""

import os
import threading
import time
import traceback

import pytest
import torch

import reverse
from reverse.decoding.scheduling.worker import find_worker
from tests.decoding.worlds import talkative

SETTINGS = {"prompt": "Is there a dog?", "threshold": 0.3, "max_new_tokens": 6, "max_attempts": 2}
pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")


def in_child(check, patience=60):
    """Run `check` in a forked child; fails where it raises, returns False or does not end."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            torch.set_num_threads(1)
            code = 0 if check() is not False else 2
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    for _ in range(patience * 50):
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            assert os.waitstatus_to_exitcode(status) == 0
            return
        time.sleep(0.02)
    os.kill(child, 9)
    os.waitpid(child, 0)
    pytest.fail("the child hangs")


@pytest.fixture(scope="module")
def world():
    return talkative("llava")


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_fork_in_the_middle_of_a_stream_can_decode(world):
    """Locks that the decoding thread holds would never be released in the child, which has no such thread."""
    model, processor = world
    expected = reverse.generate(model, processor, **SETTINGS).ids
    inside, go_on = threading.Event(), threading.Event()

    def wait(*_):
        inside.set()
        go_on.wait(60)

    thread = threading.Thread(target=lambda: reverse.generate(model, processor, **SETTINGS))
    model.train()
    hook = model.register_forward_pre_hook(wait)
    thread.start()
    assert inside.wait(60) and not model.training  # a step is under way, in eval mode
    try:

        def check():
            hook.remove()
            assert all(module.training for module in model.modules())
            assert reverse.generate(model, processor, **SETTINGS).ids == expected

        in_child(check)
    finally:
        hook.remove()
        go_on.set()
        thread.join()
        assert model.training
        model.eval()
    assert reverse.generate(model, processor, **SETTINGS).ids == expected


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_stream_is_not_read_in_a_child(world):
    """The child would wait for pieces that the parent's thread writes elsewhere."""
    reader = reverse.stream(*world, **SETTINGS)
    first = next(reader)

    def check():
        with pytest.raises(RuntimeError, match=r"begun in process \d+, and this is \d+, forked"):
            next(reader)
        reader.close()
        assert "".join(reverse.stream(*world, **SETTINGS))

    in_child(check)
    assert first + "".join(reader) == reader.result.text


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_reader_of_events_may_fork(world):
    """A process that is forked between two events would wait for a thread that it does not have."""
    model, processor = world
    expected = reverse.generate(model, processor, **SETTINGS).ids
    forked = []

    def fork(event):
        if not forked:
            forked.append(True)
            in_child(lambda: reverse.generate(model, processor, **SETTINGS).ids == expected)

    assert reverse.generate(model, processor, events=fork, **SETTINGS).ids == expected
    assert forked and find_worker(model).training == []


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_an_engine_that_prepares_a_prompt_can_be_used_in_a_child(world, monkeypatch):
    """The child would wait for a prompt that only a thread of its parent prepares."""
    monkeypatch.setattr("reverse.decoding.engine._PATIENCE", 60.0)
    engine = reverse.Engine(*world, max_sequences=8)
    begun, go_on, prepare = threading.Event(), threading.Event(), engine.preparer.prepare

    def slowly(*given):
        begun.set()
        go_on.wait(60)
        return prepare(*given)

    monkeypatch.setattr(engine.preparer, "prepare", slowly)
    request = reverse.Request(None, "Is there a cat?", max_new_tokens=4)
    handle = engine.submit(request)
    assert begun.wait(60)
    try:

        def check():
            engine.preparer.prepare = prepare
            assert engine.submit(request).result(timeout=30).usage.forwards

        in_child(check)
    finally:
        go_on.set()
    assert handle.result(timeout=60).usage.forwards
