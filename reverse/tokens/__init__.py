"""The three tokens: in text (`spans`, no torch) and in a checkpoint's vocabulary (`vocabulary`)."""

from typing import TYPE_CHECKING, Any

from reverse.tokens.spans import (
    CN,
    SPAN,
    TAGS,
    UN,
    TaggedPhrase,
    TaggedText,
    TagProblem,
    TokenIds,
    add_tags,
    break_tags,
    find_problems,
    parse_tags,
    remove_tags,
)

if TYPE_CHECKING:
    from reverse.tokens.vocabulary import add_tokens, ensure_ordinary_tags, find_token_ids

__all__ = [
    "CN", "SPAN", "TAGS", "UN", "TagProblem", "TaggedPhrase", "TaggedText", "TokenIds", "add_tags",
    "add_tokens", "break_tags", "ensure_ordinary_tags", "find_problems", "find_token_ids", "parse_tags",
    "remove_tags",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    """Import `vocabulary`, which needs torch and transformers, only if one of its names is used."""
    if name in ("add_tokens", "ensure_ordinary_tags", "find_token_ids"):
        from reverse.tokens import vocabulary

        return getattr(vocabulary, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
