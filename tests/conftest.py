"""Fixtures shared by all tests: tiny models of both families, with the three tokens, random weights."""

import torchvision_cpu_shim  # noqa: F401, I001  lets a CUDA-linked torchvision import beside a CPU-only torch

import gc
import signal
import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # unit tests need no network
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

from importlib.metadata import version

import numpy as np
import pytest
import torch
from PIL import Image

import reverse
from experiments.tiny_models import build_tiny_llava, build_tiny_qwen
from reverse.models import family_of, prepare_inputs
from reverse.tokens import add_tokens
from tests.chat_server import ChatServer

BUILDERS = {"llava": build_tiny_llava, "qwen": build_tiny_qwen}


def pytest_configure(config):
    """End at once where the releases are others than those that this run is for: it would show nothing."""
    for asked in os.environ.get("REVERSE_TEST_RELEASES", "").split():
        name, release = asked.split("==")
        if version(name) != release:
            pytest.exit(f"this run is for {asked}, but {name} {version(name)} is installed", returncode=3)


def pytest_collection_finish():
    """Full garbage collections, of which loops and tests make many, pass over what is imported by now."""
    gc.freeze()


def make_tiny(name, *, dtype=torch.float32, seed=0, init_std=0.2, **sizes):
    """A tiny model of a family ("llava", "qwen") with the three tokens, and its processor.

    `init_std` above the usual 0.02 makes logits that differ from token to token, so that greedy decoding
    depends on what was said before.
    """
    text = {"initializer_range": init_std, **sizes.pop("text", {})}
    model, processor = BUILDERS[name](seed=seed, text=text, **sizes)
    add_tokens(model, processor, seed=seed)
    return model.to(dtype), processor


@pytest.fixture(scope="session")
def tiny():
    """The factory `make_tiny(name, dtype=, seed=, init_std=, **sizes)`: a fresh model at each call."""
    return make_tiny


@pytest.fixture(scope="session")
def tiny_llava():
    """(model, processor) in float32; shared by the session, so not to be changed."""
    return make_tiny("llava")


@pytest.fixture(scope="session")
def tiny_qwen():
    """(model, processor) in float32; shared by the session, so not to be changed."""
    return make_tiny("qwen")


@pytest.fixture(scope="session")
def tiny_llava64():
    """As `tiny_llava`, in float64 (use it with sdpa: eager gives NaN under left padding)."""
    return make_tiny("llava", dtype=torch.float64)


@pytest.fixture(scope="session")
def tiny_qwen64():
    """As `tiny_qwen`, in float64 (use it with sdpa: eager gives NaN under left padding)."""
    return make_tiny("qwen", dtype=torch.float64)


@pytest.fixture(params=["llava", "qwen"])
def tiny_any(request):
    """(model, processor) in float32, once for each family; shared by the session."""
    return request.getfixturevalue(f"tiny_{request.param}")


@pytest.fixture(scope="session")
def picture():
    """The factory `picture(seed=0, size=(112, 112))`: an RGB picture of coloured noise."""

    def make(seed=0, size=(112, 112)):
        width, height = size
        pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
        return Image.fromarray(pixels)

    return make


@pytest.fixture
def ask(tiny_llava, picture):
    """`ask(**changes)`: generate() with a picture and a question that are good, and `changes`."""
    model, processor = tiny_llava

    def call(**changes):
        settings = {
            "images": picture(),
            "prompt": "Describe this image.",
            "max_new_tokens": 6,
            "threshold": 0.5,
        }
        return reverse.generate(model, processor, **settings | changes)

    return call


@pytest.fixture
def drop_in(tiny_any, picture):
    """`drop_in(**options)`: the drop-in on good inputs, `options` for model.generate()."""
    model, processor = tiny_any

    def call(prompts=("Describe this image.",), settings=None, **options):
        inputs = prepare_inputs(processor, [picture()] * len(prompts), list(prompts), family_of(model))
        decoder = reverse.retrospective(processor, **{"threshold": 0.5} | (settings or {}))
        return model.generate(**inputs, custom_generate=decoder, **{"max_new_tokens": 6} | options)

    return call


# A shell that starts the tests in the background has them ignore Ctrl-C, which some tests send to themselves.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture
def chat_server():
    """The factory `chat_server(respond)` of servers of chat completions, see `tests.chat_server`."""
    servers = []

    def make(respond):
        servers.append(ChatServer(respond))
        return servers[-1]

    yield make
    for server in servers:
        server.shutdown()
        server.server_close()
