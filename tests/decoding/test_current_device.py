"""Without this, a model on any GPU but the first fails or computes on the wrong one."""

from types import SimpleNamespace

import pytest
import torch

from reverse.decoding import engines
from reverse.decoding.engines import ChosenBackend

VERBS = {
    "admit": (None,),
    "rewind": (0, [1]),
    "start": (0, None),
    "fork": (0, []),
    "adopt": (0, 0),
    "extend": (),
    "finish": (0,),
    "close": (),
}


class RecordingBackend:
    """Notes which device was current in every call."""

    slots = 1

    def __init__(self, current: list):
        self.current, self.seen = current, {}

    def __getattr__(self, name):
        def verb(*_):
            self.seen[name] = self.current[-1]

        return verb


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


def choose(device, inner):
    model = SimpleNamespace(device=torch.device(device), dtype=torch.float32)
    return ChosenBackend(model, lambda: inner, engine="dynamic", style=None, slots=1, candidates=1)


def test_every_verb_runs_on_the_models_gpu(current):
    """Without this, kernels and graphs start on the current GPU while the weights are on another."""
    inner = RecordingBackend(current)
    backend = choose("cuda:1", inner)
    for name, arguments in VERBS.items():
        getattr(backend, name)(*arguments)
    assert inner.seen == dict.fromkeys(VERBS, torch.device("cuda:1"))
    assert current == [None]


def test_a_model_on_the_cpu_touches_no_gpu(current):
    """Without this, decoding on a CPU would need CUDA."""
    inner = RecordingBackend(current)
    backend = choose("cpu", inner)
    backend.admit(None)
    backend.extend()
    assert inner.seen == {"admit": None, "extend": None}


def test_every_verb_is_covered():
    """Without this, a verb that is added later would run on whatever GPU is current."""
    verbs = {name for name in vars(engines.ChosenBackend) if not name.startswith("_")} - {
        "slots",
        "chosen",
        "free",
    }
    assert verbs == set(VERBS)
