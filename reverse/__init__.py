"""REVERSE: decoding that lets vision-language models take back phrases that they are unsure of.

>>> import reverse
>>> model, processor = reverse.load("tiny-llava")
>>> result = reverse.generate(model, processor, images="kitchen.png", prompt="Describe this image.")
>>> print(result.text, result.phrases, result.resolved)
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from reverse import modes
    from reverse.api import Engine, generate, generate_many, stream
    from reverse.custom_generate import Retrospective, retrospective
    from reverse.decoding.calls.call import Interrupted
    from reverse.decoding.calls.failures import FailedRequest
    from reverse.decoding.calls.text_stream import TextStream
    from reverse.decoding.config import ResamplingConfig
    from reverse.decoding.request import Request
    from reverse.decoding.result import Phrase, Result, TraceEntry, Usage
    from reverse.models.checkpoints.loading import load
    from reverse.tokens import add_tokens

__version__ = "0.2.0"

__all__ = [
    "Engine",
    "FailedRequest",
    "Interrupted",
    "Phrase",
    "Request",
    "ResamplingConfig",
    "Result",
    "Retrospective",
    "TextStream",
    "TraceEntry",
    "Usage",
    "add_tokens",
    "generate",
    "generate_many",
    "load",
    "modes",
    "retrospective",
    "stream",
]

_MODULES = {
    "api": ("Engine", "generate", "generate_many", "stream"),
    "custom_generate": ("Retrospective", "retrospective"),
    "decoding.calls.call": ("Interrupted",),
    "decoding.calls.failures": ("FailedRequest",),
    "decoding.calls.text_stream": ("TextStream",),
    "decoding.config": ("ResamplingConfig",),
    "decoding.request": ("Request",),
    "decoding.result": ("Phrase", "Result", "TraceEntry", "Usage"),
    "models.checkpoints.loading": ("load",),
    "tokens": ("add_tokens",),
}


def __getattr__(name: str) -> Any:
    """Import a name on first use, because `import reverse` must not import torch or transformers."""
    from importlib import import_module

    if name == "modes":
        return import_module("reverse.modes")
    for module, names in _MODULES.items():
        if name in names:
            return getattr(import_module(f"reverse.{module}"), name)
    raise AttributeError(f"module 'reverse' has no attribute {name!r}")
