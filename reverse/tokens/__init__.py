"""The three tokens: in text (`spans`, no torch) and in a checkpoint's vocabulary (`vocabulary`)."""

from typing import TYPE_CHECKING, Any

from reverse.tokens.spans import (
    CN,
    SPAN,
    TAGS,
    UN,
    Parsed,
    Phrase,
    Problem,
    TokenIds,
    break_tags,
    parse,
    problems,
    render,
    strip,
)

if TYPE_CHECKING:
    from reverse.tokens.vocabulary import add_tokens, ensure_ordinary, token_ids

__all__ = [
    "CN",
    "SPAN",
    "TAGS",
    "UN",
    "Parsed",
    "Phrase",
    "Problem",
    "TokenIds",
    "add_tokens",
    "break_tags",
    "ensure_ordinary",
    "parse",
    "problems",
    "render",
    "strip",
    "token_ids",
]


def __getattr__(name: str) -> Any:
    """Import `vocabulary`, which needs torch and transformers, only when one of its names is asked for."""
    if name in ("add_tokens", "ensure_ordinary", "token_ids"):
        from reverse.tokens import vocabulary

        return getattr(vocabulary, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
