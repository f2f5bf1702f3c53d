"""REVERSE: a vision-language model takes back what it should not have said.

>>> import reverse
>>> model, processor = reverse.load("tiny-llava")
>>> result = reverse.generate(model, processor, images="kitchen.png", prompt="Describe this image.")
>>> print(result.text, result.phrases, result.resolved)
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from reverse.decoding.config import ResamplingConfig
    from reverse.decoding.failures import FailedRequest
    from reverse.decoding.generate import generate, generate_many
    from reverse.decoding.retrospective import Interrupted, Retrospective, retrospective
    from reverse.decoding.stream import TextStream, stream
    from reverse.decoding.trace import Phrase, Result, TraceEntry, Usage
    from reverse.models.loading import load
    from reverse.tokens import add_tokens

__version__ = "0.1.0"

__all__ = [
    "FailedRequest",
    "Interrupted",
    "Phrase",
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
    "retrospective",
    "stream",
]

_WHERE = {
    "FailedRequest": "decoding.failures",
    "Interrupted": "decoding.retrospective",
    "Phrase": "decoding.trace",
    "ResamplingConfig": "decoding.config",
    "Result": "decoding.trace",
    "Retrospective": "decoding.retrospective",
    "TextStream": "decoding.stream",
    "TraceEntry": "decoding.trace",
    "Usage": "decoding.trace",
    "add_tokens": "tokens",
    "generate": "decoding.generate",
    "generate_many": "decoding.generate",
    "load": "models.loading",
    "retrospective": "decoding.retrospective",
    "stream": "decoding.stream",
}


def __getattr__(name: str) -> Any:
    """Import on first use: `import reverse` and the scenes need neither torch nor transformers."""
    if name in _WHERE:
        from importlib import import_module

        return getattr(import_module(f"reverse.{_WHERE[name]}"), name)
    raise AttributeError(f"module 'reverse' has no attribute {name!r}")
