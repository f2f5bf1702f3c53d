"""The engine with a scripted model in place of transformers: all of it is real but prompts and backend."""

import threading
import weakref

import torch

from reverse.decoding import engine, shared_engines
from reverse.decoding.asks import Node
from reverse.decoding.policies.resample_policy import ResamplePolicy
from reverse.decoding.preparing.preparing import CallerOptions, PreparedPrompt, Preparer
from reverse.decoding.text.codec import TextCodec
from reverse.modes import Resample
from tests.decoding import mock
from tests.decoding.oracle import NaiveBackend


class Writer:
    """Reads the ids of the mock model."""

    tags = mock.TAGS
    decode = staticmethod(mock.decode)

    def encode_user_turn(self, text):
        return [8, 9, 8], 1

    def encode_continuation(self, text):
        return [9]


class Scripted:
    """Patches the engine for the time of a test.

    `alive` holds the policies that exist, `most` how many there were at once; `mode` makes them.
    """

    def __init__(self, monkeypatch, model, room=20):
        self.model, self.room, self.backend = model, room, None
        self.monkeypatch = monkeypatch
        self.alive, self.most, self.prepared = weakref.WeakSet(), 0, 0
        self.mode = Resample(policy=self.policy)
        monkeypatch.setattr(
            shared_engines, "_engines", weakref.WeakKeyDictionary()
        )  # one of before would decode
        monkeypatch.setattr(engine, "choose_backend", self.choose)
        monkeypatch.setattr(Preparer, "prepare", self.prepare)
        monkeypatch.setattr(TextCodec, "decode", staticmethod(mock.decode))
        original = TextCodec.__init__

        def init(codec, processor):
            original(codec, processor)
            codec.tags, codec.partial_byte_token = mock.TAGS, None

        monkeypatch.setattr(TextCodec, "__init__", init)

    def policy(self, config, tags, max_new_tokens, temperature):
        one = ResamplePolicy(config, tags, max_new_tokens, temperature)
        self.alive.add(one)
        self.most = max(self.most, len(self.alive))
        return one

    def choose(self, model, name, *, max_sequences, tags, processors=""):
        self.backend = mock.backend(self.model, max_sequences)
        return self.backend

    def prepare(self, conversation, request, hints):
        self.prepared += 1
        options = CallerOptions(frozenset({mock.EOS}), self.room, torch.tensor([mock.BOS]))
        return PreparedPrompt(Node((mock.BOS,), writer=Writer()), options)

    def watch_steps(self):
        """A list that gets how many sequences were decoded in every step."""
        widths, step = [], NaiveBackend.step

        def watched(backend):
            widths.append(len(backend.segments))
            return step(backend)

        self.monkeypatch.setattr(NaiveBackend, "step", watched)
        return widths

    def pause_after(self, steps):
        """Let the engine wait for `go_on` after so many steps; `paused` is set when it does."""
        self.paused, self.go_on = threading.Event(), threading.Event()
        made, step = [], NaiveBackend.step

        def pausing(backend):
            if len(made) == steps:
                self.paused.set()
                self.go_on.wait(10)
            made.append(True)
            return step(backend)

        self.monkeypatch.setattr(NaiveBackend, "step", pausing)
