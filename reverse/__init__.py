"""REVERSE: a vision-language model takes back what it should not have said.

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
    from reverse.decoding.calls.calls import Interrupted
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

_WHERE = {
    "Engine": "api",
    "FailedRequest": "decoding.calls.failures",
    "Interrupted": "decoding.calls.calls",
    "Phrase": "decoding.result",
    "Request": "decoding.request",
    "ResamplingConfig": "decoding.config",
    "Result": "decoding.result",
    "Retrospective": "custom_generate",
    "TextStream": "decoding.calls.text_stream",
    "TraceEntry": "decoding.result",
    "Usage": "decoding.result",
    "add_tokens": "tokens",
    "generate": "api",
    "generate_many": "api",
    "load": "models.checkpoints.loading",
    "retrospective": "custom_generate",
    "stream": "api",
}


def __getattr__(name: str) -> Any:
    """Import on first use: `import reverse` and the scenes need neither torch nor transformers."""
    from importlib import import_module

    if name == "modes":
        return import_module("reverse.modes")
    if name in _WHERE:
        return getattr(import_module(f"reverse.{_WHERE[name]}"), name)
    raise AttributeError(f"module 'reverse' has no attribute {name!r}")
