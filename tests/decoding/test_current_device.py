"""Without this, a model on any GPU but the first fails or computes on the wrong one."""

import pytest
import torch

import reverse
from reverse.decoding import engine
from reverse.decoding.backends.protocol import Backend
from tests.decoding import mock
from tests.decoding.oracle import NaiveBackend
from tests.decoding.scripted import Scripted
from tests.decoding.test_slots import until

VERBS = ("reserve", "encode", "add", "split", "set_tokens", "start", "step", "score", "release", "reset")


@pytest.fixture
def current(monkeypatch):
    """The stack of devices that were made current, without any GPU."""
    stack = [None]

    class Device:
        def __init__(self, device):
            self.device = device

        def __enter__(self):
            stack.append(self.device)

        def __exit__(self, *_):
            stack.pop()

    monkeypatch.setattr(torch.cuda, "device", Device)
    return stack


@pytest.fixture
def seen(current, monkeypatch):
    """Which devices were current in the calls of every verb."""
    devices = {}

    def record(name, verb):
        def call(*args):
            devices.setdefault(name, set()).add(current[-1])
            return verb(*args)

        return call

    for name in VERBS:
        monkeypatch.setattr(NaiveBackend, name, record(name, getattr(NaiveBackend, name)))
    return devices


def decode(world, monkeypatch):
    """Answer with candidates and rejections, and give an answer up, on a scripted backend."""
    scripted = Scripted(monkeypatch, mock.hashed(3))
    options = {"mode": scripted.mode, "threshold": 0.02, "candidates": 3, "hints": 0, "commit": "answer"}
    assert any(r.trace for r in reverse.generate(*world, prompt=["a?", "b?"], **options))
    lazy = reverse.generate_many(*world, [{"prompt": "c?"}] * 9, max_sequences=2, **options)
    next(lazy)
    lazy.close()


def test_every_verb_runs_on_the_models_gpu(current, seen, tiny_llava, monkeypatch):
    """Without this, kernels and graphs start on the current GPU while the weights are on another."""
    monkeypatch.setattr(engine, "input_device", lambda model: torch.device("cuda:1"))
    decode(tiny_llava, monkeypatch)
    assert set(seen) >= {"add", "split", "set_tokens", "start", "step", "release", "reset"}
    assert all(devices == {torch.device("cuda:1")} for devices in seen.values()), seen
    until(lambda: current == [None])  # the worker may still be inside its last step


def test_a_model_on_the_cpu_touches_no_gpu(seen, tiny_llava, monkeypatch):
    """Without this, decoding on a CPU would need CUDA."""
    decode(tiny_llava, monkeypatch)
    assert all(devices == {None} for devices in seen.values()), seen


def test_every_verb_is_covered():
    """Without this, a verb that is added later would run on whatever GPU is current."""
    verbs = {name for name in vars(Backend) if not name.startswith("_")} - {"capabilities"}
    assert verbs == set(VERBS)
